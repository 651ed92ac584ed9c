"""Faces over time: from frames to observations of people, streamed.

Each face of a frame is joined to a track (one person) by where it was expected and by its shape, aligned, and given a quality. Frames are
decoded once and dropped; what is kept grows with the number of people, not with the clip.

Quality is the product of four parts, each 0-1:

- ``blur``: detail of the crop at 64 pixels, relative to its own contrast: 1 for a sharp face, about 0.65, 0.4 and 0.1 for one whose
  112-pixel crop is blurred with a Gaussian of 2, 3 and 5 pixels. Compression and small faces lose detail too.
- ``size``: distance of the outer eye corners in pixels: 0 below 12, 1 from 40.
- ``pose``: 1 up to 25 degrees off the camera's axis, 0 from 75.
- ``occlusion``: a heuristic. It compares the middle of the face, region by region, with what the same track looked like when the mesh sat
  still, and falls when several regions change or when the mesh trembles against its smooth path. It is weak evidence: on a filmed hand
  over mouth and eye it falls to 0.6-0.9 for the first seconds only, a strong turn of the head lowers it as much, and it is blind to what
  covers the face from the first frame on and to small things. MediaPipe's presence score would help, but its API does not give it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from personalize import geometry, registry
from personalize.ahead import Apart, Prefetch
from personalize.errors import InputError
from personalize.faces import Face, Observation, Tracker
from personalize.video import Frame, Media

# Laplacian energy over contrast of a 64-pixel crop; calibrated on rendered and filmed faces with Gaussian blur added
BLUR_LOG_RANGE = (-2.2, -0.7)
SIZE_RANGE = (12.0, 40.0)
POSE_RANGE = (25.0, 75.0)
MAX_GAP_S = 2.0
LATE_S = 1.0
SHAPE_POINTS = 8.0
"""Weight of the difference of face shapes (canonical units) in the cost of joining a face to a track."""
OTHER_SHAPE = 0.05
"""Difference of face shapes (canonical units) from which three frames in a row show another person. Within 30 degrees of the camera's axis
one rendered person in any expression came to 0.031, and of pairs of people a sixth is further apart: the most alike are not told apart."""
_FRONTAL = np.radians(30.0)
_STRANGE = 2
"""Frames of another shape that a track takes, as the mesh may slip, before it refuses the next."""


def _ramp(value: float, zero: float, one: float) -> float:
    return float(np.clip((value - zero) / (one - zero), 0.0, 1.0))


def sharpness(crop: np.ndarray) -> float:
    """Detail of an aligned crop (size, size, 3) uint8: log10 of the Laplacian's variance over the variance, at 64 pixels, middle part."""
    grey = cv2.cvtColor(cv2.resize(crop, (64, 64), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)[10:58, 10:54].astype(np.float32)
    laplacian = cv2.Laplacian(grey, cv2.CV_32F, ksize=1)[1:-1, 1:-1]
    return float(np.log10((laplacian.var() + 1e-3) / (grey.var() + 4.0)))


def quality_parts(crop: np.ndarray, pose: geometry.Pose) -> dict[str, float]:
    """The parts of the quality that one frame tells: 'blur', 'size', 'pose' (0-1 each)."""
    away = np.degrees(pose.off_axis)
    turned = _ramp(float(away), POSE_RANGE[1], POSE_RANGE[0])
    return {
        "blur": _ramp(sharpness(crop), *BLUR_LOG_RANGE),
        "size": _ramp(pose.scale, *SIZE_RANGE),
        "pose": turned * turned * (3 - 2 * turned),
    }


class OcclusionMeter:
    """How far one track's face is covered, frame by frame, against what it looked like before. State: two small arrays a track."""

    GRID = 4

    def __init__(self) -> None:
        self._template: np.ndarray | None = None
        self._seen = 0
        self._shape: np.ndarray | None = None

    def update(self, crop: np.ndarray, landmarks: np.ndarray | None) -> float:
        """0-1, 1 = nothing seems to cover the face. crop: (size, size, 3) uint8; landmarks: (478, 3) normalised or None."""
        grey = cv2.cvtColor(cv2.resize(crop, (32, 32), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY).astype(np.float32)
        cells = grey[4:28, 4:28]
        cells = cells - cells.mean()
        cells /= cells.std() + 4.0
        visible = 1.0
        if self._template is not None:
            n, template = self.GRID, self._template
            side = cells.shape[0] // n
            different = ((cells - template) ** 2).reshape(n, side, n, side).mean((1, 3))
            # cells that changed by more than most expressions change them; one of sixteen is free
            changed = np.clip((different - 0.35) / 0.7, 0, 1).sum()
            visible = 1.0 - float(np.clip((changed - 1.0) / 5.0, 0, 1))
        steady = 1.0
        if landmarks is not None:
            rigid = landmarks[_RIGID]
            if self._shape is not None:
                jitter = float(np.sqrt(((rigid - self._shape) ** 2).sum(1).mean()))
                steady = 1.0 - _ramp(jitter, 0.06, 0.15)
                self._shape += 0.2 * (rigid - self._shape)
            else:
                self._shape = rigid.copy()
        score = visible * steady
        # a covered face must not become the template: it learns fast at first, then slowly and by how clear the view is
        self._seen += 1
        rate = max(1.0 / self._seen, 0.02) * score**2
        self._template = cells if self._template is None else self._template + (rate + 0.002) * (cells - self._template)
        return score


_RIGID = np.array([33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 127, 356, 10, 152, 234, 454])


@dataclass
class _Track:
    id: int
    box: np.ndarray
    velocity: np.ndarray
    time: float
    shape: np.ndarray | None
    seen: int = 1
    recent: np.ndarray | None = None
    strange: int = 0
    meter: OcclusionMeter = field(default_factory=OcclusionMeter)

    def expected(self, timestamp: float) -> np.ndarray:
        # a lost face does not fly on for ever
        return self.box + self.velocity * min(timestamp - self.time, 0.5)

    def differs(self, shape: np.ndarray | None, off_axis: float) -> bool:
        """Whether a face's shape is another person's than the track had all along, and than it had last."""
        if shape is None or self.shape is None or self.recent is None or self.seen < 5 or off_axis > _FRONTAL:
            return False
        return min(_difference(shape, self.shape), _difference(shape, self.recent)) > OTHER_SHAPE


class TrackBuilder:
    """Joins the faces of successive frames to tracks with stable numbers, in order of appearance.

    A face goes to the track whose expected box (constant velocity) it overlaps most, helped by how alike the two faces' shapes are. A track
    survives ``max_gap_s`` without a face in its place; after that, a face whose shape fits one lost track clearly better than any other,
    and closely, continues it (someone who looked away, left or was cut out); else it is a new person. Where a cut puts somebody else in the
    same place, the third frame of a clearly different shape (``OTHER_SHAPE``) begins a new track.
    """

    def __init__(self, max_gap_s: float = MAX_GAP_S) -> None:
        self.max_gap_s = max_gap_s
        self._tracks: list[_Track] = []

    def update(
        self,
        faces: list[Face],
        timestamp: float,
        shapes: list[np.ndarray | None] | None = None,
        off_axis: list[float] | None = None,
    ) -> list[int]:
        """Track numbers of the faces of the next frame, one each. shapes: pose-normalised landmarks where known; off_axis: how far each
        face is turned from the camera's axis, radians, 0 where not told."""
        shapes, off_axis = shapes or [None] * len(faces), off_axis or [0.0] * len(faces)
        pairs = []
        for i, face in enumerate(faces):
            for track in self._tracks:
                if track.strange >= _STRANGE and track.differs(shapes[i], off_axis[i]):
                    continue
                cost = self._cost(face.box, shapes[i], track, timestamp)
                if cost is not None:
                    pairs.append((cost, i, track))
        result: dict[int, _Track] = {}
        taken: set[int] = set()
        for _, i, track in sorted(pairs, key=lambda p: p[0]):
            if i not in result and track.id not in taken:
                result[i] = track
                taken.add(track.id)
        for i, face in enumerate(faces):
            if i not in result:
                known = self._lost(shapes[i], timestamp, taken)
                if known is None:
                    track = _Track(len(self._tracks), face.box.astype(float), np.zeros(4), timestamp, None, 0)
                    self._tracks.append(track)
                else:
                    track = known
                    track.velocity = np.zeros(4)
                    track.box, track.time = face.box.astype(float), timestamp
                result[i] = track
                taken.add(track.id)
            self._advance(result[i], face, shapes[i], off_axis[i], timestamp)
        return [result[i].id for i in range(len(faces))]

    def meter(self, track_id: int) -> OcclusionMeter:
        """The track's memory of what its face looks like."""
        return self._tracks[track_id].meter

    def _cost(self, box: np.ndarray, shape: np.ndarray | None, track: _Track, timestamp: float) -> float | None:
        if timestamp - track.time > self.max_gap_s:
            return None
        expected = track.expected(timestamp)
        side = max(face_side(expected), 1.0)
        distance = float(np.hypot(*((box[:2] + box[2:]) / 2 - (expected[:2] + expected[2:]) / 2))) / side
        ratio = abs(float(np.log(max(_area(box), 1.0) / max(_area(expected), 1.0)))) / 2
        allowed = 0.8 + 0.7 * min(timestamp - track.time, 1.0)  # the longer unseen, the further it may be
        if distance > allowed or ratio > 0.7:
            return None
        cost = (1 - iou(box, expected)) + distance + ratio
        if shape is not None and track.shape is not None:
            cost += SHAPE_POINTS * _difference(shape, track.shape)
        return cost

    def _lost(self, shape: np.ndarray | None, timestamp: float, taken: set[int]) -> _Track | None:
        if shape is None:
            return None
        known = [t for t in self._tracks if t.id not in taken and t.shape is not None and t.seen >= 5]
        ranked = sorted((_difference(shape, t.shape), t.id, t) for t in known if t.shape is not None)
        if not ranked or ranked[0][0] > 0.045:
            return None
        return ranked[0][2] if len(ranked) == 1 or ranked[0][0] < 0.7 * ranked[1][0] else None

    @staticmethod
    def _advance(track: _Track, face: Face, shape: np.ndarray | None, off_axis: float, timestamp: float) -> None:
        box = face.box.astype(float)
        passed = timestamp - track.time
        if track.differs(shape, off_axis):  # nothing is learnt of it: it may be another's
            track.velocity, track.box, track.time = np.zeros(4), box, timestamp
            track.strange += 1
            return
        if passed > 0:
            track.velocity = 0.6 * track.velocity + 0.4 * (box - track.box) / passed
        track.box, track.time = box, timestamp
        track.strange = 0
        track.seen += 1
        if shape is not None:
            points = shape[_IDENTITY]
            track.shape = points.copy() if track.shape is None else track.shape + max(1 / track.seen, 0.01) * (points - track.shape)
            if off_axis <= _FRONTAL:
                track.recent = points.copy() if track.recent is None else track.recent + max(1 / track.seen, 0.2) * (points - track.recent)


# points that differ between people more than they move: face outline above the mouth, eyes, nose
_IDENTITY = np.array(
    [
        10,
        338,
        297,
        332,
        284,
        251,
        389,
        356,
        454,
        109,
        67,
        103,
        54,
        21,
        162,
        127,
        234,
        33,
        133,
        263,
        362,
        168,
        6,
        197,
        195,
        5,
        4,
        1,
        2,
        98,
        327,
    ]
)


def _difference(shape: np.ndarray, identity: np.ndarray) -> float:
    points = shape[_IDENTITY] - identity
    return float(np.sqrt((points[:, :2] ** 2).sum(1).mean()))


def _area(box: np.ndarray) -> float:
    return float(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))


def face_side(box: np.ndarray) -> float:
    """Side of the square as large as a box (4,) x0 y0 x1 y1, in its pixels: by its sum over a clip the identity is chosen."""
    return float(np.sqrt(_area(box)))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (4,) x0 y0 x1 y1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = float(width * height)
    return both / (_area(a) + _area(b) - both)


@dataclass
class _Seen:
    frames: int = 0
    weight: float = 0.0
    first: float = 0.0
    size: float = 0.0


class Survey:
    """What a stream of observations held, in a few numbers a person: who was there, how large, since when."""

    def __init__(self) -> None:
        self.frames = 0
        self.with_face = 0
        self.people: dict[int, _Seen] = {}

    def add(self, observations: Iterable[Observation], count_frame: bool = True) -> None:
        """Counts one frame."""
        self.frames += count_frame
        found = False
        for seen in observations:
            found = True
            person = self.people.setdefault(seen.face_id, _Seen(first=seen.timestamp))
            person.frames += 1
            size = face_side(seen.box)
            person.size += size
            person.weight += size
        self.with_face += found

    def identity(self, face: int | None = None, name: str = "the input") -> int:
        """The track to take: ``face`` where given, else the largest and longest (sum over frames of the face's side).

        Raises InputError where there is no face, or no such one.
        """
        if not self.people:
            raise InputError(no_face(name))
        if face is not None:
            if face not in self.people:
                raise InputError(f"no face {face} in {name}: there is {self._listing()}")
            return face
        # a copy of the keys: another thread may be counting frames
        return max(list(self.people), key=lambda k: (self.people[k].weight, -k))

    def _listing(self) -> str:
        return ", ".join(f"{k} ({v.frames} frames, {v.size / v.frames:.0f} px)" for k, v in sorted(self.people.items()))

    def others(self, taken: int, still: bool = False) -> list[int]:
        """The people beside one; of a video without those seen for a moment: a false alarm or a passer-by, not worth a line."""
        return [k for k, v in self.people.items() if k != taken and (still or v.frames >= max(5, 0.02 * self.frames))]

    def warnings(self, media: Media, face: int | None = None) -> list[str]:
        """One line for each thing a user should know of the clip; empty where all is well. Raises as :meth:`identity` does."""
        taken = self.identity(face, media.name)
        lines = []
        person = self.people[taken]
        if media.kind == "image":
            lines.append(
                f"{media.name} is one photograph: it shows neither this person's neutral face beside others nor how the face moves"
            )
        if media.kind == "video" and person.first >= LATE_S:
            lines.append(f"{media.name}: the face appears late, first seen at {person.first:.1f} s; what comes before is left out")
        others = self.others(taken, media.still)
        if others and face is None:
            lines.append(
                f"{media.name} shows {len(others) + 1} people: took face {taken}, the largest and longest; "
                f"choose with --face ({self._listing()})"
            )
        if media.kind == "folder" and person.frames < self.frames:
            lines.append(f"{media.name}: left out {self.frames - person.frames} of {self.frames} pictures, in which no face was found")
        return lines

    def report(self, media: Media, face: int | None = None) -> int:
        """Warns the user, once each, and returns the identity's track."""
        from personalize import ui

        for line in self.warnings(media, face):
            ui.warn(line)
        return self.identity(face, media.name)


def no_face(name: str) -> str:
    """The line for a clip or picture without a face."""
    return f"no face found in {name}: give one where a face is at least 40 pixels wide, lit and mostly turned to the camera"


def observe(
    media: Media, tracker: Tracker, all_faces: bool = True, survey: Survey | None = None
) -> Iterator[tuple[Frame, list[Observation]]]:
    """Decodes and tracks a clip once, frame by frame; yields every frame, those without a face with an empty list.

    all_faces: whether to give every face, or only that of the track which so far is the largest and longest. survey: filled on the way.
    In stills people are numbered by size, largest first, as nothing joins one picture to the next.
    """
    survey = survey if survey is not None else Survey()
    builder = TrackBuilder()
    mesh = tracker.scheme == "mesh478"
    tracker.reset()
    for frame, detected in _detected(media, tracker):
        faces, poses, points, shapes = [], [], [], []
        for face in detected:
            try:
                pose = geometry.fit_pose(face.landmarks, tracker.scheme)
            except (ValueError, np.linalg.LinAlgError):
                continue  # a collapsed mesh is no face
            faces.append(face)
            poses.append(pose)
            points.append(geometry.as_mesh(face.landmarks, pose, tracker.scheme))
            shapes.append(points[-1] if mesh and not np.isnan(pose.translation[2]) else None)
        if media.still:
            order = np.argsort([-_area(f.box) for f in faces], kind="stable")
            ids = [int(np.flatnonzero(order == i)[0]) for i in range(len(faces))]
        else:
            ids = builder.update(faces, frame.timestamp, shapes, [float(pose.off_axis) for pose in poses])
        seen = []
        for face, pose, normal, shape, number in zip(faces, poses, points, shapes, ids, strict=True):
            crop, to_frame = geometry.crop(frame.image, pose, tracker.scheme)
            parts = quality_parts(crop, pose)
            parts["occlusion"] = 1.0 if media.still else builder.meter(number).update(crop, shape)
            seen.append(
                Observation(
                    frame=frame.index,
                    timestamp=frame.timestamp,
                    face_id=number,
                    crop=crop,
                    landmarks=normal,
                    pose=np.array(pose.angles, dtype=np.float32),
                    to_frame=to_frame,
                    image_landmarks=face.landmarks,
                    box=face.box,
                    confidence=face.confidence,
                    quality=float(np.prod(list(parts.values()))),
                    parts=parts,
                    file=frame.file,
                )
            )
        seen.sort(key=lambda o: o.face_id)
        survey.add(seen)
        if not all_faces and seen:
            main = survey.identity()
            seen = [o for o in seen if o.face_id == main]
        yield frame, seen


def observe_apart(
    media: Media, tracker: str, options: dict[str, Any], survey: Survey | None = None
) -> Iterator[tuple[Frame, list[Observation]]]:
    """As :func:`observe`, by a tracker named, in a process of its own: Python code here, importing PyTorch above all, would hold it up.
    All faces; frames come without their picture."""
    for frame, seen in Apart(_observe_by_name, media, tracker, options):
        if survey is not None:
            survey.add(seen)
        yield frame, seen


def _observe_by_name(media: Media, name: str, options: dict[str, Any]) -> Iterator[tuple[Frame, list[Observation]]]:
    tracker = registry.create("trackers", name, options)
    try:
        yield from without_pictures(observe(media, tracker))
    finally:
        tracker.close()


def without_pictures(stream: Iterator[tuple[Frame, list[Observation]]]) -> Iterator[tuple[Frame, list[Observation]]]:
    """Where nobody looks at the frames again: waiting for the model, those of a 4K clip would take gigabytes."""
    nothing = np.zeros((0, 0, 3), np.uint8)
    for frame, seen in stream:
        frame.image = nothing
        yield frame, seen


def _detected(media: Media, tracker: Tracker) -> Iterator[tuple[Frame, list[Face]]]:
    """Frames with the tracker's faces. Decoding and tracking, the slowest stages, have a thread each and run a few frames ahead."""
    with Prefetch(media.frames(), depth=2) as frames:
        found = ((frame, tracker.detect(frame.image, frame.timestamp, media.still)) for frame in frames)
        with Prefetch(found, depth=2) as ahead:
            yield from ahead


def face_of(image: np.ndarray, tracker: Tracker, timestamp: float = 0.0, still: bool = True) -> tuple[Face, geometry.Pose] | None:
    """Of a picture that is of one person, their face, the largest, and its pose; None where there is none."""
    faces = tracker.detect(image, timestamp, still)
    if not faces:
        return None
    face = max(faces, key=lambda f: _area(f.box))
    try:
        return face, geometry.fit_pose(face.landmarks, tracker.scheme)
    except (ValueError, np.linalg.LinAlgError):  # a collapsed mesh is no face
        return None


def tracked_sample(
    image: np.ndarray, tracker: Tracker, timestamp: float = 0.0, still: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Crop (112, 112, 3), normalised landmarks (478, 3) and pose (3,) of a picture's largest face; None where there is none. For training:
    the tracker's scheme is 'mesh478'."""
    found = face_of(image, tracker, timestamp, still)
    if found is None:
        return None
    face, pose = found
    crop, _ = geometry.crop(image, pose, tracker.scheme)
    return crop, geometry.normalise(face.landmarks, pose), np.array(pose.angles, np.float32)
