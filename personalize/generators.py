"""The base class of generators: labelled pictures of one person.

A generator sees the person (:class:`~personalize.identity.Identity`) once, in ``prepare``, and then answers requests. The data module calls
it, runs the answers through the tracker, drops what the tracker cannot find, and caches the rest.
"""

from __future__ import annotations

import hashlib
import inspect
import secrets
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .identity import Identity


@dataclass
class Request:
    """One picture to make: AU number -> intensity 0-5 (AUs not named are to be 0), and the head pose in radians (None: any).

    pose: pitch and yaw as an upright picture shows them, and tilt (:func:`personalize.geometry.upright`); pictures are upright, and who
    asks tilts them.
    source: the frame to make it from, an index in ``identity.observations``, for generators that start from frames. A wish: where the frame
    cannot serve, another is taken, and ``Sample.source`` says which. None: any. A video made from one frame does not flicker.
    exact: as strong as asked, without the random differences that pictures for training may have under one label.
    """

    aus: dict[int, float]
    pose: tuple[float, float, float] | None = None
    source: int | None = None
    exact: bool = False


@dataclass
class Sample:
    """One generated picture and what is known about it.

    image: (H, W, 3) uint8 RGB, the face with a margin around it. target: (K,) float32 intensities on the AU axis; known: (K,) bool,
    which of them hold. source: index in ``identity.observations`` of the frame that it was made from.
    """

    image: np.ndarray
    target: np.ndarray
    known: np.ndarray
    request: Request
    source: int
    info: dict[str, float] = field(default_factory=dict)


class Generator(ABC):
    """Base class of generators. The signature of ``__init__`` is the plug-in's configuration; keep it typed and cheap."""

    @abstractmethod
    def prepare(self, identity: Identity, seed: int) -> None:
        """Fit to the person. Called once, before any request."""

    def restart(self, number: int) -> None:  # noqa: B027 (a hook, empty on purpose)
        """Called before each set of requests of a fit: what is random in it must follow from the seed and its ``number``, not from what was
        made before, which a fit that goes on after a kill has not made."""

    def content(self) -> str:
        """What decides its pictures beside options, person and seed: the same text, the same pictures, and a fit need not make them anew.
        Here a hash of the source beside the class; add to it where there is more, weights for instance."""
        try:
            path = Path(inspect.getfile(type(self)))
        except (TypeError, OSError):  # typed in by hand: nobody knows whether it is still the same
            return secrets.token_hex(16)
        # A built-in's helpers lie in its folder; a loose file stands alone.
        files = sorted(path.parent.glob("*.py")) if (path.parent / "__init__.py").exists() else [path]
        digest = hashlib.sha256()
        for file in files:
            digest.update(file.read_bytes())
        return digest.hexdigest()

    @abstractmethod
    def generate(self, requests: list[Request]) -> list[Sample | None]:
        """One sample a request, in order; None where the request cannot be met honestly (mostly invisible, out of range)."""
