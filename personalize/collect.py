"""From a clip to the frames of one person: decoded and tracked once, a few hundred kept, read by the base, their neutral found.

What is kept does not grow with the clip: frames spread evenly over it, those that a label is about, and those around the moment which the
user calls neutral.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import geometry, ui
from .ahead import Prefetch
from .aus import AUS, COLUMNS
from .errors import ConfigError, InputError
from .faces import Observation, Tracker
from .identity import Identity, find_neutral, is_named
from .labels import Extent, LabelTable
from .reader import Reader
from .tracks import Survey, face_side, observe
from .video import Media
from .weights import Base

KEEP = 400
"""Frames of a person that are kept: spread over the clip, at most so many, whatever its length; and as many with labels."""
PRESENT = 2
"""What a label that says 'present' and no more is known to reach: from here on frames count as present."""
MAX_PEOPLE = 6
"""People of whom frames are kept at a time: the largest and longest so far, one of whom the clip will be about."""


class _Spread:
    """Keeps at most ``limit`` of what it is offered, evenly spread: every ``stride``-th, the stride doubling when it is full."""

    def __init__(self, limit: int) -> None:
        self.limit, self.seen, self.stride = limit, 0, 1
        self.kept: list[Observation] = []

    def takes_next(self) -> bool:
        return self.seen % self.stride == 0

    def add(self, observation: Observation) -> None:
        if self.takes_next():
            self.kept.append(observation)
            if len(self.kept) > self.limit:
                self.kept = self.kept[::2]
                self.stride *= 2
        self.seen += 1


class Keeper:
    """Frames of each person: ``limit`` spread over the clip, and as many of each further sort that is asked for.

    sorts: which frames a sort is made of. face: a track that is kept whoever else there is.
    """

    def __init__(self, limit: int = KEEP, sorts: tuple[Callable[[Observation], bool], ...] = (), face: int | None = None) -> None:
        self.limit, self.sorts, self.face = limit, (lambda _: True, *sorts), face
        self.people: dict[int, tuple[_Spread, ...]] = {}
        self.weight: dict[int, float] = {}

    def add(self, observation: Observation, image: np.ndarray, scheme: str) -> None:
        """Keep a frame's face, with the wider view that generators work on, if it is one of those to keep."""
        who = observation.face_id
        self.weight[who] = self.weight.get(who, 0.0) + face_side(observation.box)
        if who not in self.people and not self._admit(who):
            return
        mine = [s for s, wanted in zip(self.people[who], self.sorts, strict=True) if wanted(observation)]
        if any(s.takes_next() for s in mine):
            pose = geometry.fit_pose(observation.image_landmarks, scheme)
            observation.view, observation.view_to_frame = geometry.view(image, pose, scheme)
        for spread in mine:
            spread.add(observation)

    def _admit(self, who: int) -> bool:
        """Make room for a person; False where all who are kept count for more."""
        if len(self.people) >= MAX_PEOPLE:
            least = min((p for p in self.people if p != self.face), key=lambda p: self.weight[p])
            if who != self.face and self.weight[who] <= self.weight[least]:
                return False
            del self.people[least]
        self.people[who] = tuple(_Spread(self.limit) for _ in self.sorts)
        return True

    def of(self, who: int) -> list[Observation]:
        """A person's frames, in order of time."""
        kept = {id(o): o for spread in self.people.get(who, ()) for o in spread.kept}
        return sorted(kept.values(), key=lambda o: o.frame)

    def offered(self, who: int, sort: int) -> int:
        """How many frames of a person were of a sort, kept or not; 0 is the sort that all are of."""
        return self.people[who][sort].seen if who in self.people else 0


@dataclass
class Collected:
    """The identity's kept frames, in order of time, and what is known of the clip. labelled: frames of theirs that a label is about."""

    observations: list[Observation]
    frames: int
    frames_with_face: int
    warnings: list[str]
    scheme: str
    labelled: int = 0


def collect(
    media: Media,
    tracker: Tracker,
    face: int | None = None,
    labels: LabelTable | None = None,
    neutral_at: float | str | None = None,
    quiet: bool = False,
) -> Collected:
    """Decode and track a clip once and keep the identity's frames. Raises InputError where there is no face.

    labels: frames that they are about are kept (at most :data:`KEEP`). neutral_at: so are those that :func:`identity.is_named` names.
    """

    def labelled(o: Observation) -> bool:
        return labels is not None and labels.is_about(o.frame, o.timestamp, o.file, step)

    def near(o: Observation) -> bool:
        return neutral_at is not None and is_named(o, neutral_at)

    step = 1 / media.fps if media.fps > 0 else 1.0
    survey, keeper = Survey(), Keeper(sorts=(labelled, near), face=face)
    with (
        Prefetch(observe(media, tracker, survey=survey), depth=32) as ahead,
        ui.progress(None, media.length, f"Tracking {media.name}") as bar,
    ):
        for frame, seen in ahead:
            for observation in seen:
                keeper.add(observation, frame.image, tracker.scheme)
            bar.advance(1)
    who = survey.identity(face, media.name) if quiet else survey.report(media, face)
    if media.kind == "folder":
        # Nothing joins one photograph to the next: the largest face of each is taken to be the person.
        who = 0 if face is None else face
    warnings = survey.warnings(media, face)
    return Collected(keeper.of(who), survey.frames, survey.with_face, warnings, tracker.scheme, keeper.offered(who, 1))


def check_neutral(at: float | str | None, media: Media) -> None:
    """Raise ConfigError, before the work, where what is given as neutral cannot be a moment of the clip, or one of the pictures."""
    if at is None:
        return
    if media.still:
        names = [path.name for path in media.files]
        if not isinstance(at, str):
            raise ConfigError(
                f"--neutral {at:g} is a moment of a video, and {media.name} is none: name a picture, as --neutral {names[0]}."
            )
        if Path(at).name not in names:
            raise ConfigError(f"--neutral {at} is none of the pictures of {media.name}.")
    elif isinstance(at, str):
        raise ConfigError(f"--neutral {at} is no moment of {media.name}: give seconds, as --neutral 3.5.")
    elif media.duration is not None and not 0 <= at <= media.duration:
        raise ConfigError(f"--neutral {at:g} lies outside the clip, which lasts {media.duration:.1f} s.")


def identify(found: Collected, base: Base, media: Media, name: str, neutral_at: float | str | None, notes: list[str]) -> Identity:
    """The person of a clip, read by the base, with their neutral; adds to ``notes`` (and warns of) what the clip lacks."""
    observations = [o for o in found.observations if o.quality > 0.02]
    if not observations:
        raise InputError(
            f"no usable face in {media.name}: all are too small, too blurred or turned away. Use a clip in which the face is larger."
        )
    reading = Reader(base).read(observations)
    intensity, spread = reading.expected, reading.spread.mean(0)
    neutral = find_neutral(observations, intensity, neutral_at)
    lacks = []
    if neutral is not None and neutral_at is None:
        remedy = "name a calm moment with --neutral SECONDS"
        if media.still:
            remedy = "add a photograph of the calm face, and name it with --neutral"
        busy = [c for c, calm in zip(COLUMNS, neutral.calm, strict=True) if calm < 0.5]
        if len(busy) > len(AUS) // 2:
            what = {"image": "the picture hardly shows", "folder": "the pictures hardly show"}.get(media.kind, "the clip hardly shows")
            lacks.append(f"{what} the face at rest, so little is personalised; {remedy}")
        elif busy:
            lacks.append(f"the calmest frames do not show {', '.join(busy)} at rest, so little of that is personalised; {remedy}")
    if media.kind == "video" and (found.frames / max(media.fps, 1)) < 1.0:
        lacks.append("the clip is shorter than a second: what it does not show cannot be learned")
    for line in lacks:
        notes.append(line)
        ui.warn(line)
    unsure = np.clip(0.5 * spread / max(float(spread.mean()), 1e-6), 0, 1)
    return Identity(name, observations, intensity, neutral, media.size, found.scheme, unsure)


def extent(found: Collected, media: Media) -> Extent | None:
    """Of a video, of which not all frames are kept, all that labels may be about; None of photographs."""
    if media.fps <= 0:
        return None
    return Extent(found.frames, 1 / media.fps, media.duration or found.frames / media.fps)


@dataclass
class Truth:
    """Labels of N kept frames. target: (N, K) 0-5; known: (N, K) bool; occurrence: (K,) bool, of which AUs they say presence alone, of
    which a target of ``PRESENT`` is learned and judged as 'at least so much', one of 0 as it stands."""

    target: np.ndarray
    known: np.ndarray
    occurrence: np.ndarray

    @classmethod
    def unknown(cls, n: int) -> Truth:
        """Of frames without labels."""
        return cls(np.zeros((n, len(AUS)), np.float32), np.zeros((n, len(AUS)), bool), np.zeros(len(AUS), bool))

    def judge(self, reading: np.ndarray) -> np.ndarray:
        """(N, K) readings of these frames, those above what presence says no more than it: they are not wrong."""
        return np.where(self.occurrence & (self.target >= 1), np.minimum(reading, self.target), reading)

    def rows(self, chosen: np.ndarray) -> Truth:
        """Of some of the frames."""
        return Truth(self.target[chosen], self.known[chosen], self.occurrence)

    @property
    def at_least(self) -> np.ndarray:
        """(N, K) int8: ``PRESENT`` where no more is known than that, 0 where the target is an intensity."""
        return np.where(self.occurrence & (self.target >= 1), PRESENT, 0).astype(np.int8)


def labels_of(labels: LabelTable | None, identity: Identity, found: Collected, media: Media, notes: list[str]) -> Truth:
    """The labels of the kept frames. Adds to ``notes``, and warns, where fewer are used than were given."""
    observations = identity.observations
    n = len(observations)
    if labels is None:
        return Truth.unknown(n)
    frames, times = np.array([o.frame for o in observations]), np.array([o.timestamp for o in observations])
    target, known = labels.align(frames, times, [o.file for o in observations], extent(found, media))
    target = np.where(labels.occurrence[None] & (target >= 1), PRESENT, target).astype(np.float32)
    truth = Truth(target, known, labels.occurrence)
    used = int(known.any(1).sum())
    if not used:
        line = "no label falls on a frame with a face: fitted without labels"
    elif used < found.labelled:
        line = f"{used} of {found.labelled} labelled frames are used, spread over the clip"
    else:
        return truth
    notes.append(line)
    ui.warn(line)
    return truth
