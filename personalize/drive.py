"""Another clip's expressions on this person's face: read the driver, take its rest out, ask the generator frame by frame, write a video.

The driver is tracked and read once; of each frame its AUs and its head pose are kept, nothing else, and both are smoothed over time, ahead
as well as back. What the driver shows at rest is taken out of the AUs, and its pose counts from its own neutral, so that two people who
look different at rest both begin at rest. The pictures are made from one frame of the person where possible: a video that changes frames
flickers.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import geometry, ui
from .ahead import Prefetch
from .aus import AUS, COLUMNS, MAX_INTENSITY
from .collect import Keeper
from .composite import align, face_mask, free_corner, moved, put_back, scaled_to_frame, tilted, watermark
from .errors import InputError
from .faces import Observation, Tracker
from .generators import Generator, Request, Sample, ask
from .identity import Identity, calm_frames, find_neutral
from .reader import Reader, offsets_at, without_rest
from .tracks import Survey, no_face, observe
from .video import Media, VideoWriter

AU_SPAN_S, POSE_SPAN_S = 0.045, 0.1
"""Standard deviations of the smoothing over time, seconds: a blink lasts 0.2 s."""
DEAD = 0.6
"""Intensities below this fade: trembling at rest is no expression."""
NEAR = np.radians(8.0)
"""When the head comes this close to the main frame's pose again, pictures are made from the main frame again."""
_SPEECH = (25, 26)
_LEAST = 0.01  # lips asked to be 0 stay as the other AUs leave them; asked to be almost 0 they close, without a jump between the two
_READ, _CHUNK = 24, 8


@dataclass
class Driver:
    """What a clip's face does, frame by frame.

    name: the file's. times: (T,) seconds. intensity: (T, K) 0-5, its rest taken out, smoothed. turn: (T, 3) radians of pitch, yaw and roll
    from the driver's neutral, smoothed. seen: (T,) whether the face was there, or so shortly before and after that nothing is missing.
    """

    name: str
    fps: float
    times: np.ndarray
    intensity: np.ndarray
    turn: np.ndarray
    seen: np.ndarray

    def __len__(self) -> int:
        return len(self.times)


def read_driver(media: Media, reader: Reader, tracker: Tracker) -> Driver:
    """Track and read a driver's clip, once. With a profile in the reader, its readings have their rest out already.

    Raises InputError where there is no face.
    """
    survey, keeper = Survey(), Keeper()
    times: list[float] = []
    read: dict[int, dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    waiting: list[Observation] = []

    def flush() -> None:
        reading = reader.read(waiting)
        own = reading.expected if reading.own is None else reading.own
        for o, expected, personal in zip(waiting, reading.expected, own, strict=True):
            read.setdefault(o.face_id, {})[o.frame] = (expected, personal, o.upright)
        waiting.clear()

    with (
        Prefetch(observe(media, tracker, survey=survey)) as ahead,
        ui.progress(None, media.length, f"Reading {media.name}") as bar,
    ):
        for frame, seen in ahead:
            times.append(frame.timestamp)
            for o in seen:
                keeper.add(o, frame.image, tracker.scheme)
            waiting += seen
            if len(waiting) >= _READ:
                flush()
            bar.advance(1)
        flush()
        if not survey.people:
            raise InputError(no_face(media.name))
    who = survey.identity(None, media.name)
    others = survey.others(who)
    if others:
        ui.warn(
            f"{media.name} shows {len(others) + 1} people: it drives by the one who is largest and longest in it, seen in "
            f"{survey.people[who].frames} of {survey.frames} frames; cut or crop it to somebody else to take theirs"
        )
    mine, kept = read[who], keeper.of(who)
    values, turn, present = np.zeros((len(times), len(AUS))), np.zeros((len(times), 3)), np.zeros(len(times), bool)
    for index, (_, own, pose) in mine.items():
        values[index], turn[index], present[index] = own, pose, True
    stamps = np.array(times)
    if reader.profile is not None:
        expected = np.stack([mine[int(i)][0] for i in np.flatnonzero(present)])
        values[present] = reader.in_clip(values[present], expected, stamps[present].tolist())
    shown = np.array([mine[o.frame][0] for o in kept])
    neutral = find_neutral(kept, shown) if kept else None
    middle = np.median(turn[present], axis=0)
    if neutral is not None:
        rest = [kept[int(i)] for i in neutral.indices]
        middle = np.median([o.upright for o in rest], axis=0)
        # Without a profile what is expected drives: what is reported makes more of little, and a face at rest would be seen to move.
        if reader.profile is None:
            calm = calm_frames(values[present], shown[neutral.indices])
            offsets = offsets_at(values[present][calm], neutral.trusted, reader.base)
            values = without_rest(values, offsets).astype(np.float64)
    if neutral is None or neutral.calm.mean() < 0.5:
        ui.warn(f"{media.name} hardly shows its face at rest: what this face always shows is taken for expression")
    intensity, weight = smoothed(stamps, values, present, AU_SPAN_S)
    poses, _ = smoothed(stamps, turn - middle, present, POSE_SPAN_S)
    return Driver(media.name, media.fps, stamps, faded(intensity), poses, weight > 0.1)


def smoothed(times: np.ndarray, values: np.ndarray, known: np.ndarray, span: float) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian mean over time of the known values, and its weights, 0 where nothing near is known.

    times: (T,) seconds, rising. values: (T, D). known: (T,) bool. span: standard deviation in seconds.
    """
    n = len(times)
    # As many frames as are near where they are densest: telephones film unevenly.
    reach = int((np.searchsorted(times, times + 3 * span, "right") - 1 - np.arange(n)).max()) if n else 0
    total, weight = np.zeros_like(values, dtype=np.float64), np.zeros(n)
    for shift in range(-reach, reach + 1):
        at = np.arange(max(0, -shift), min(n, n - shift))
        w = np.exp(-0.5 * ((times[at + shift] - times[at]) / span) ** 2) * known[at + shift]
        total[at] += w[:, None] * values[at + shift]
        weight[at] += w
    return total / np.maximum(weight, 1e-12)[:, None], weight


def faded(intensity: np.ndarray) -> np.ndarray:
    """Intensities with what lies below ``DEAD`` faded towards 0, without a step; in order, 0-5."""
    share = np.clip(intensity / DEAD, 0, 1)
    return np.asarray(np.clip(intensity * share * share * (3 - 2 * share), 0, MAX_INTENSITY))


@dataclass
class Outcome:
    """What came of a driven video. frames: written. held: of these, how many repeat the last one that could be made. bare: how many are the
    clip's own, unchanged, as its face is not seen in them. thumbnails: some frames with captions, evenly spread."""

    frames: int
    held: int
    bare: int
    thumbnails: list[tuple[np.ndarray, str]]


class Performer:
    """The person: answers with pictures of one frame, as long as it can serve."""

    def __init__(self, generator: Generator, identity: Identity) -> None:
        self.generator, self.identity = generator, identity
        first = int(identity.neutral.indices[0]) if identity.neutral is not None else 0
        pose = identity.observations[first].upright.tolist()
        rest = ask(generator, [Request({}, (pose[0], pose[1], pose[2]), first)])[0] or ask(generator, [Request({}, None, first)])[0]
        if rest is None:
            raise InputError(f"the generator can make no picture of {identity.name}: no frame of the clip can be used, or choose another.")
        self.rest, self.main = rest, rest.source
        self._now = rest.source

    @property
    def pose(self) -> np.ndarray:
        """(3,) radians: the head's in the main frame, upright."""
        return self.identity.observations[self.main].upright

    def perform(self, intensity: np.ndarray, pose: np.ndarray) -> list[Sample | None]:
        """Pictures with these AUs (N, K) in these poses (N, 3), None where one cannot be made."""
        requests, rest = [], self.pose[:2]
        for values, angles in zip(intensity, pose, strict=True):
            if np.abs(angles[:2] - rest).max() < NEAR:
                self._now = self.main
            aus = {au: max(float(v), _LEAST if au in _SPEECH else 0.0) for au, v in zip(AUS, values, strict=True)}
            requests.append(Request(aus, (float(angles[0]), float(angles[1]), float(angles[2])), self._now, exact=True))
        made = ask(self.generator, requests)
        last = next((s for s in reversed(made) if s is not None), None)
        self._now = last.source if last is not None else self._now
        return made


class Stage:
    """The person's clip, played by time and streamed; after its end, and for photographs, one frame is held."""

    def __init__(self, media: Media, tracker: Tracker, held: Observation) -> None:
        self.held, self.who = held, held.face_id
        # the frame that is held is looked up first: a clip is never kept
        for frame in ui.progress(media.frames(), held.frame + 1, f"Finding the neutral frame of {media.name}"):
            self.still = frame.image
            if frame.index == held.frame:
                break
        self._stream = iter(()) if media.kind != "video" else observe(media, tracker)
        self._next = next(self._stream, None)
        self._now: tuple[np.ndarray, Observation | None] = (self.still, held)

    def at(self, time: float) -> tuple[np.ndarray, Observation | None]:
        """The frame that is shown at a time (rising from call to call), and the person in it, None where they are not seen."""
        while self._next is not None and self._next[0].timestamp <= time + 1e-6:
            frame, seen = self._next
            self._now = (frame.image, next((o for o in seen if o.face_id == self.who), None))
            self._next = next(self._stream, None)
            if self._next is None:
                return self._now
        return (self.still, self.held) if self._next is None else self._now


def drive(
    driver: Driver,
    identity: Identity,
    generator: Generator,
    media: Media,
    tracker: Tracker,
    folder: Path,
    *,
    composite: bool = False,
    mark: bool = False,
    seed: int = 0,
    record: dict[str, Any],
) -> Outcome:
    """Write ``folder``/video.mp4 and labels.csv. The generator is prepared. record: goes into the video's metadata.

    composite: into the frames of the person's clip, whose head poses are kept. mark: the label 'synthetic' in a corner of each frame.
    Raises InputError where not a single frame can be made.
    """
    performer = Performer(generator, identity)
    scenes = _in_clip(driver, performer, media, tracker, seed) if composite else _alone(driver, performer)
    outcome = Outcome(0, 0, 0, [])
    wanted = set(np.linspace(0, len(driver) - 1, 16).astype(int).tolist())
    tags = {"title": f"synthetic, made by {record.get('tool', 'personalize')}", "comment": json.dumps(record)}
    writer: VideoWriter | None = None
    corner = 0
    with (
        (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file,
        ui.progress(None, len(driver), f"Driving {identity.name}") as bar,
        ExitStack() as stack,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["frame", "timestamp", "success", "pose_Rx", "pose_Ry", "pose_Rz", *(f"{c}_r" for c in COLUMNS)])
        for i, scene in enumerate(scenes):
            image = scene.image
            if writer is None:
                size = (image.shape[1], image.shape[0])
                writer = stack.enter_context(VideoWriter(folder / "video.mp4", driver.fps, size, tags))
                everywhere = [o.image_landmarks for o in identity.observations] if composite else []
                masks = [face_mask(points, image.shape) for points in (scene.points, *everywhere)]
                corner = free_corner(image.shape, np.maximum.reduce(masks))  # the label stays there while the face moves about
            if mark:
                image = watermark(image, corner)
            at = float(driver.times[i] - driver.times[0])
            writer.write(image, at)
            table.writerow(scene.row(i, at))
            outcome.held += scene.state == "held"
            outcome.bare += scene.state == "bare"
            outcome.frames += 1
            if i in wanted:
                strongest = np.argsort(-driver.intensity[i])[:3]
                caption = " ".join(f"{COLUMNS[k]} {driver.intensity[i, k]:.1f}" for k in strongest if driver.intensity[i, k] >= 0.5)
                outcome.thumbnails.append((thumbnail(image), f"{driver.times[i]:.1f} s {caption or 'rest'}"))
            bar.advance(1)
        if outcome.held + outcome.bare == outcome.frames:
            raise InputError(
                f"none of the {outcome.frames} frames of {driver.name} could be made with {identity.name}'s face: "
                "the heads are turned too far from what the clip shows."
            )
    return outcome


@dataclass
class _Scene:
    """One frame of the video. state: 'made', 'held' or 'bare'. points: the face's, in its pixels. sample: what is shown, None if 'bare'."""

    image: np.ndarray
    state: str
    points: np.ndarray
    sample: Sample | None
    pose: np.ndarray | None

    def row(self, index: int, time: float) -> list[object]:
        """A row of labels.csv: without AUs where the frame is the clip's own."""
        angles = [""] * 3 if self.pose is None else [f"{a:.4f}" for a in self.pose]
        aus = [""] * len(AUS)
        if self.sample is not None:
            aus = [f"{v:.2f}" if k else "" for v, k in zip(self.sample.target, self.sample.known, strict=True)]
        return [index, f"{time:.3f}", int(self.state == "made"), *angles, *aus]


def thumbnail(image: np.ndarray) -> np.ndarray:
    """A picture at most 320 pixels long, for a sheet."""
    import cv2

    factor = 320 / max(image.shape[:2])
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)) if factor < 1 else image


def _chunks(driver: Driver) -> Iterator[np.ndarray]:
    for start in range(0, len(driver), _CHUNK):
        yield np.arange(start, min(start + _CHUNK, len(driver)))


def source_points(identity: Identity, sample: Sample) -> np.ndarray:
    """(N, 2) the points of the frame that a picture was made from, in the picture's pixels."""
    import cv2

    origin = identity.observations[sample.source]
    assert origin.view is not None and origin.view_to_frame is not None
    to_frame = scaled_to_frame(origin.view_to_frame, origin.view.shape[0], sample.image.shape[0])
    return moved(origin.image_landmarks, cv2.invertAffineTransform(to_frame))


def _alone(driver: Driver, performer: Performer) -> Iterator[_Scene]:
    """The face with what surrounds it in its view; the head turns as the driver's."""
    last = performer.rest
    # the view has the frame's roll taken out
    upright = performer.pose * (1.0, 1.0, 0.0)
    held_pose = upright
    points = source_points(performer.identity, last)
    for rows in _chunks(driver):
        poses = performer.pose + driver.turn[rows]
        samples: Iterator[Sample | None] = iter(performer.perform(driver.intensity[rows][driver.seen[rows]], poses[driver.seen[rows]]))
        for i in rows:
            sample = next(samples) if driver.seen[i] else None
            if sample is not None:
                last, held_pose = sample, upright + driver.turn[i]
            state = "held" if sample is None else "made"
            yield _Scene(tilted(last.image, float(held_pose[2])), state, points, last, geometry.tilted(*held_pose))


def _in_clip(driver: Driver, performer: Performer, media: Media, tracker: Tracker, seed: int) -> Iterator[_Scene]:
    """The face in the frames of the person's clip; the head turns as in the clip."""
    identity = performer.identity
    stage = Stage(media, tracker, identity.observations[performer.main])
    size = (stage.still.shape[1], stage.still.shape[0])
    rng = np.random.default_rng([seed, 9203])
    last: _Scene | None = None
    for rows in _chunks(driver):
        shown = [stage.at(float(driver.times[i])) for i in rows]
        able = [o is not None and bool(driver.seen[i]) for i, (_, o) in zip(rows, shown, strict=True)]
        poses = np.array([o.upright for (_, o), a in zip(shown, able, strict=True) if a and o is not None]).reshape(-1, 3)
        samples: Iterator[Sample | None] = iter(performer.perform(driver.intensity[rows[able]], poses))
        for (frame, o), a in zip(shown, able, strict=True):
            sample = next(samples) if a else None
            if o is None:
                yield _Scene(_sized(frame, size), "bare", np.zeros((0, 2)), None, None)
                continue
            if sample is not None:
                # in the frame's own pixels, which are those of what is seen in it
                image, points = inserted(frame, o, sample, identity, tracker, rng)
                last = _Scene(_sized(image, size), "made", _scaled(points, frame, size), sample, np.asarray(o.pose, np.float64))
                yield last
            elif last is not None:
                yield _Scene(last.image, "held", last.points, last.sample, last.pose)
            else:  # nothing to hold yet: the person at rest
                points = _scaled(o.image_landmarks[:, :2], frame, size)
                yield _Scene(_sized(frame, size), "held", points, None, np.asarray(o.pose, np.float64))


def _sized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame of a clip that changes its resolution midway, at the video's (width, height)."""
    import cv2

    return frame if frame.shape[:2] == size[::-1] else np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))


def _scaled(points: np.ndarray, frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N, 2) points of a frame where :func:`_sized` brings them."""
    return np.asarray((points + 0.5) * (np.array(size) / frame.shape[1::-1]) - 0.5)


def inserted(
    frame: np.ndarray, seen: Observation, sample: Sample, identity: Identity, tracker: Tracker, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The frame with a generated face in the place of the one seen in it, and the points (N, 2) of what was replaced.

    Where the picture was made from this very frame, it goes back by the view's own map, else by the face's steady points.
    """
    origin = identity.observations[sample.source]
    tracked = landmarks_in(tracker, sample.image)
    found = source_points(identity, sample) if tracked is None else tracked
    if origin.frame == seen.frame and origin.file == seen.file:
        assert origin.view is not None and origin.view_to_frame is not None
        to_frame = scaled_to_frame(origin.view_to_frame, origin.view.shape[0], sample.image.shape[0])
    else:
        to_frame = align(found, seen.image_landmarks, tracker.scheme)
    points = np.concatenate([moved(found, to_frame), seen.image_landmarks[:, :2]])
    unit = geometry.fit_pose(seen.image_landmarks, tracker.scheme).scale
    return put_back(frame, sample.image, to_frame, points, unit, rng), points


def landmarks_in(tracker: Tracker, image: np.ndarray, near: np.ndarray | None = None) -> np.ndarray | None:
    """(N, 3) landmarks of the face nearest to a point (the middle without one) in a picture, None where none is found."""
    faces = tracker.detect(image, 0.0, True)
    if not faces:
        return None
    at = np.array([image.shape[1], image.shape[0]]) / 2 if near is None else near
    return np.asarray(min(faces, key=lambda f: float(np.hypot(*((f.box[:2] + f.box[2:]) / 2 - at)))).landmarks)
