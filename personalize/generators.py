"""The base class of generators: labelled pictures of one person.

A generator sees the person (:class:`~personalize.identity.Identity`) once, in ``prepare``, and then answers requests. The data module calls
it, runs the answers through the tracker, drops what the tracker cannot find, and caches the rest.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import secrets
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .aus import AUS, MAX_INTENSITY, column
from .errors import ConfigError

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

    @property
    def cell(self) -> str:
        """Its cell of the grid: the AUs, the highest intensity rounded up and, where one is asked for, the pose to 15 degrees."""
        aus = "+".join(column(au) for au in sorted(self.aus)) or "rest"
        high = f" up to {math.ceil(max(self.aus.values()))}" if self.aus else ""
        if self.pose is None:
            return aus + high
        pitch, yaw = (15 * round(math.degrees(angle) / 15) for angle in self.pose[:2])
        return f"{aus}{high}, pitch {pitch:+d} yaw {yaw:+d}"


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
    """Base class of generators. The signature of ``__init__`` is the plug-in's configuration; keep it typed and cheap.

    makes_pictures: False for one that answers every request with None on purpose; of others a fit says so. trains_on_clip: whether it
    trains on pictures of its own ``size``, which videos and composites then leave as it is. learns_from_base: whether what the base model
    reads in the clip teaches it which pixels an AU is; that base is then no independent judge of its pictures.
    """

    makes_pictures: bool = True
    trains_on_clip: bool = False

    @property
    def learns_from_base(self) -> bool:
        """See the class."""
        return False

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


def ask(generator: Generator, requests: list[Request]) -> list[Sample | None]:
    """What a generator answers, checked: a plug-in that answers wrong is told so in one line, before anything is learned from it.
    Without requests it is not called.

    Raises ConfigError.
    """
    if not requests:
        return []
    made = generator.generate(requests)
    name = f"generator {getattr(generator, 'name', type(generator).__name__)}"
    if len(made) != len(requests):
        raise ConfigError(f"{name} gave {len(made)} answers to {len(requests)} requests: give one for each, None where it has none.")
    for sample in made:
        wrong = "" if sample is None else _fault(sample)
        if wrong:
            raise ConfigError(f"{name} gave {wrong}.")
    return made


def _fault(sample: Sample) -> str:
    image, target, known = (np.asarray(x) for x in (sample.image, sample.target, sample.known))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        return f"a picture of shape {image.shape} and type {image.dtype}: it must be (height, width, 3) of uint8"
    if target.shape != (len(AUS),) or known.shape != (len(AUS),):
        return f"labels of shapes {target.shape} and {known.shape} in target and known: both must be ({len(AUS)},), one of each AU"
    said = target[known.astype(bool)]
    if not ((said >= 0) & (said <= MAX_INTENSITY)).all():
        worst = said[~((said >= 0) & (said <= MAX_INTENSITY))][0]
        return f"{worst:g} as a known intensity: they are 0-{MAX_INTENSITY:g}"
    return ""
