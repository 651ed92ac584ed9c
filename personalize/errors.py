"""The exceptions of the package: each message is one line that says what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PersonalizeError(Exception):
    """Base of every error that the command line prints as one line and ends with exit code 2."""


class InputError(PersonalizeError):
    """A clip, photograph, label file or folder that cannot be used."""


class ConfigError(PersonalizeError):
    """A recipe, plug-in name or option that cannot be used."""


class ProfileError(PersonalizeError):
    """A profile or weights file that is broken or belongs to another base model."""


def unknown(kind: str, given: str, known: Iterable[str]) -> str:
    """One line for an unknown name: what was given, what was probably meant, what there is."""
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    meant = f" Did you mean '{close[0]}'?" if close else ""
    return f"unknown {kind} '{given}'.{meant} There is: {', '.join(names)}."
