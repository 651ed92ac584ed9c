"""``personalize predict``: a clip in, one row a face a frame out, and the overlay video."""

from __future__ import annotations

import argparse
import csv
import functools
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import registry, ui
from .ahead import Prefetch, torch_threads
from .aus import AUS, COLUMNS
from .errors import InputError, ProfileError
from .faces import Observation, Tracker
from .profile import Profile, find_profile, read_manifest
from .smooth import Smoother
from .tracks import Survey, observe, observe_apart, without_pictures
from .video import Frame, Media, VideoWriter, open_media

if TYPE_CHECKING:
    from .reader import Reader, Reading
    from .weights import Base

BATCH = 24
"""Faces read at once. More gains little and delays the overlay."""

_AHEAD = 1200
"""Frames tracked ahead of the model, without their pictures: about what is tracked while PyTorch is being loaded."""

META = ("frame", "face_id", "timestamp", "confidence", "success", "pose_Rx", "pose_Ry", "pose_Rz")


def open_reader(profile: str | None, base: str | None) -> Reader:
    """The reader for a profile, or of the base alone. The profile names its base; ``base`` overrides where it is found.

    Imports PyTorch, which takes seconds: a clip can be tracked meanwhile.
    """
    # PyTorch's modules make millions of objects that stay: looking for dead ones among them takes a fifth of the import.
    collecting = gc.isenabled()
    gc.disable()
    try:
        from .reader import Reader
        from .weights import SHIPPED, load_base
    finally:
        if collecting:
            gc.enable()

    if profile is None:
        return Reader(load_base(base or SHIPPED))
    wanted = read_manifest(find_profile(profile))["base"]["name"]
    if base is None and wanted not in ("base", SHIPPED):
        raise ProfileError(
            f"the profile {profile} was fitted on the base model '{wanted}', which is not the shipped one: give its path with --base."
        )
    loaded = load_base(base or SHIPPED)
    return Reader(loaded, Profile.load(profile, base_name=loaded.name, base_sha256=loaded.sha256))


def batches(stream: Iterator[tuple[Frame, list[Observation]]], least: int = BATCH) -> Iterator[list[tuple[Frame, list[Observation]]]]:
    """Frames in runs that hold about ``least`` faces together."""
    run: list[tuple[Frame, list[Observation]]] = []
    faces = 0
    for item in stream:
        run.append(item)
        faces += len(item[1])
        if faces >= least or len(run) >= 2 * least:
            yield run
            run, faces = [], 0
    if run:
        yield run


class Row(NamedTuple):
    """One face in one frame, or a frame without one.

    file: of a still. meta: the columns of ``META``. base, personal: (K,) intensities, None where there is no face, or no profile. own,
    expected: of the :class:`~personalize.reader.Reading`. box: (4,) in pixels of the frame.
    """

    file: str
    meta: tuple[float, ...]
    base: np.ndarray | None = None
    personal: np.ndarray | None = None
    own: np.ndarray | None = None
    expected: np.ndarray | None = None
    box: np.ndarray | None = None

    def is_of(self, person: int) -> bool:
        """Whether it is a reading of that person's face."""
        return self.base is not None and int(self.meta[1]) == person

    @property
    def best(self) -> np.ndarray | None:
        """(K,) the person's where there is one, else the base's."""
        return self.base if self.personal is None else self.personal


class Table:
    """The rows of a prediction, kept as numbers until the clip is over: only then is it known who the clip is about, and what of it is
    another day's."""

    def __init__(self, still: bool) -> None:
        self.still = still
        self.rows: list[Row] = []

    def add(self, frame: Frame, seen: list[Observation], reading: Reading) -> None:
        """One frame with its faces; without faces a row with success 0. The confidence is the tracker's, times the picture's quality, times
        the model's certainty."""
        if not seen:
            self.rows.append(Row(frame.file, (frame.index, -1, frame.timestamp, 0.0, 0, np.nan, np.nan, np.nan)))
        for i, o in enumerate(seen):
            meta = (
                frame.index,
                o.face_id,
                frame.timestamp,
                o.confidence * o.quality * float(reading.certainty[i]),
                1,
                *(float(a) for a in o.pose),
            )
            personal, own = (None if values is None else values[i] for values in (reading.personal, reading.own))
            self.rows.append(Row(frame.file, meta, reading.base[i], personal, own, reading.expected[i], o.box))

    def settle(self, reader: Reader, person: int) -> None:
        """Take out of the readings of the person that the profile is of what another day adds (:meth:`Reader.another_day`)."""
        mine = [i for i, row in enumerate(self.rows) if row.is_of(person) and row.own is not None]
        if mine:
            own, expected = (np.stack([getattr(self.rows[i], key) for i in mine]) for key in ("own", "expected"))
            personal = reader.in_clip(own, expected, [self.rows[i].meta[2] for i in mine])
            for i, values in zip(mine, personal, strict=True):
                self.rows[i] = self.rows[i]._replace(personal=values)

    def smooth(self, base: Base) -> None:
        """Filter each face's intensities over time (:mod:`personalize.smooth`). Raises ProfileError where the base has not learnt how."""
        general, own = Smoother(_smoothing(base)), Smoother(_smoothing(base))
        for i, row in enumerate(self.rows):
            face, time = int(row.meta[1]), row.meta[2]
            if row.base is not None:
                personal = None if row.personal is None else own(face, time, row.personal)
                self.rows[i] = row._replace(base=general(face, time, row.base), personal=personal)

    def keep(self, person: int) -> None:
        """Leave out everybody else; a frame in which only others are seen stays as a row with success 0."""
        mine = {row.meta[0] for row in self.rows if row.is_of(person)}
        kept: dict[float, Row] = {}
        for row in self.rows:
            frame, _, time, *_ = row.meta
            if row.is_of(person):
                kept[frame] = row
            elif frame not in mine:
                kept[frame] = Row(row.file, (frame, -1, time, 0.0, 0, np.nan, np.nan, np.nan))
        self.rows = list(kept.values())

    def write(self, path: Path, thresholds: np.ndarray, base_thresholds: np.ndarray, person: int | None) -> None:
        """Write the CSV whole or not at all. person: the track that the profile is of; everybody else is read by the base."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow([*(["file"] if self.still else []), *META, *(f"{c}_r" for c in COLUMNS), *(f"{c}_c" for c in COLUMNS)])
                for row in self.rows:
                    aus = self._aus(row, thresholds, base_thresholds, person)
                    writer.writerow([*([row.file] if self.still else []), *_cells(row.meta), *aus])
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @staticmethod
    def _aus(row: Row, own: np.ndarray, general: np.ndarray, person: int | None) -> list[str]:
        if row.base is None:
            return [""] * (2 * len(AUS))
        mine = row.personal is not None and int(row.meta[1]) == person
        # Presence is decided on the rounded value that stands in the table, so that the two columns can never contradict each other.
        values = np.round(row.personal if mine and row.personal is not None else row.base, 3)
        present = values >= np.round(own if mine else general, 3)
        return [*(f"{v:.3f}" for v in values), *(str(int(p)) for p in present)]


def _cells(meta: tuple[float, ...]) -> list[str]:
    frame, face, time, confidence, success, *pose = meta
    shown = ["" if np.isnan(a) else f"{a:.4f}" for a in pose]
    return [str(int(frame)), "" if face < 0 else str(int(face)), f"{time:.3f}", f"{confidence:.3f}", str(int(success)), *shown]


def predict(
    media: Media,
    opened: Reader | Callable[[], Reader],
    tracker: Tracker | tuple[str, dict[str, Any]],
    face: int | None = None,
    all_faces: bool = True,
    overlay: Path | None = None,
    smooth: bool = False,
) -> tuple[Table, int]:
    """Read a clip or stills; returns the table and the track of the person it is about. Raises InputError where there is no face.

    opened: the reader, or what opens it, called when tracking has begun. tracker: one, or the name and options of one: that works in a
    process of its own. overlay: where to draw what is reported, in a second pass over the clip. smooth: filter each face's intensities over
    time, see :mod:`personalize.smooth`; raises ProfileError where the base has not learnt how. In stills there is nothing to smooth.
    """
    survey, table = Survey(), Table(media.still)
    size = media.size if min(media.size) > 0 else (640, 480)
    with ExitStack() as stack:
        writer = None if overlay is None else stack.enter_context(VideoWriter(overlay, media.fps or 2.0, size))
        if isinstance(tracker, tuple):
            stream = observe_apart(media, *tracker, survey)
        else:
            stream = without_pictures(observe(media, tracker, survey=survey))
        bar: ui.Progress[None] = ui.progress(None, media.length, f"Reading {media.name}")
        with Prefetch(stream, depth=_AHEAD) as ahead, bar:
            reader = opened() if callable(opened) else opened
            if isinstance(tracker, tuple):
                import torch

                stack.enter_context(torch_threads(torch.get_num_threads() - 1))  # a core is the tracker's
            smoothed = smooth and not media.still
            if smoothed:
                _smoothing(reader.base)
            for run in batches(ahead):
                reading = reader.read([o for _, seen in run for o in seen])
                at = 0
                for frame, seen in run:
                    table.add(frame, seen, reading[at : at + len(seen)])
                    at += len(seen)
                bar.advance(len(run))
            survey.identity(face, media.name)  # raises within the bar, which then does not say that it is done
        person = survey.report(media, face)
        table.settle(reader, person)
        if smoothed:
            table.smooth(reader.base)
        if writer is not None:
            _draw(media, table, person, "base" if reader.profile is None else reader.profile.name, writer)
    if not all_faces or face is not None:
        table.keep(person)
    return table, person


def _smoothing(base: Base) -> np.ndarray:
    if base.smoothing is None:
        raise ProfileError(
            f"the base model '{base.name}' has not learnt to smooth: leave --smooth out, or train it with smoothing.people above 0."
        )
    return base.smoothing


def _draw(media: Media, table: Table, person: int, name: str, writer: VideoWriter) -> None:
    """The clip once more, with what was read of the person: bars, and the base's readings as ticks beside a profile's."""
    from .overlay import draw

    rows = {int(row.meta[0]): row for row in table.rows if row.is_of(person)}
    with ui.unsaid():
        for frame in ui.progress(media.frames(), media.length, f"Drawing {media.name}"):
            image, row = frame.image, rows.get(frame.index)
            if row is not None and row.base is not None and row.best is not None:
                shown, base = (dict(zip(COLUMNS, values.tolist(), strict=True)) for values in (row.best, row.base))
                image = draw(image, row.box, name, shown, None if row.personal is None else base)
            writer.write(_fit(image, writer.size), frame.timestamp if media.kind == "video" else None)


def _fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture of a folder on the overlay's canvas: scaled to fit, on black."""
    import cv2

    width, height = size
    if image.shape[:2] == (height, width):
        return image
    scale = min(width / image.shape[1], height / image.shape[0])
    small = cv2.resize(image, (max(int(image.shape[1] * scale), 1), max(int(image.shape[0] * scale), 1)), interpolation=cv2.INTER_AREA)
    canvas = np.zeros((height, width, 3), np.uint8)
    y, x = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
    canvas[y : y + small.shape[0], x : x + small.shape[1]] = small
    return canvas


def check_target(target: Path, *inputs: Path, table: bool = False) -> None:
    """Raise InputError, before the work, for a file that cannot be written after it: a folder, one of ``inputs``, no folder to lie in; a
    ``table`` under the name of another kind of file."""
    if target.is_dir():
        raise InputError(f"{target} is a folder: give the name of a file to write.")
    if target.suffix.lower() in (".xlsx", ".xls", ".ods", ".json", ".parquet") and table:
        raise InputError(f"{target} would be a table of commas under another name: call it {target.stem}.csv.")
    if any(target.exists() and target.samefile(file) for file in inputs):
        raise InputError(f"{target} is the input itself: give another name to write to.")
    if not target.parent.is_dir():
        raise InputError(f"cannot write {target}: there is no such folder")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"cannot write {target}: permission denied")


def predict_command(args: argparse.Namespace) -> int:
    """``personalize predict``."""
    media = open_media(args.input)
    if args.smooth and media.still:
        ui.warn(f"{media.name} is no video: there is nothing to smooth, --smooth is left out")
    output = Path(args.output)
    overlay = Path(args.overlay) if args.overlay else None
    for target in filter(None, (output, overlay)):
        check_target(target, media.path, *media.files, table=target is output)
    if overlay is not None and overlay.resolve() == output.resolve():
        raise InputError(f"--output and --overlay are both {output}: give two names.")
    replaced = overlay is not None and overlay.exists()
    if args.profile:
        read_manifest(find_profile(args.profile))  # before anything is tracked for nothing
    name = args.tracker or "mediapipe"
    # As a fit has it, also where one face is wanted: told to find one only, MediaPipe smooths its points.
    options = registry.check_options("trackers", name, {})
    reader = functools.cache(lambda: open_reader(args.profile, args.base))
    table, person = predict(media, reader, (name, options), args.face, args.all_faces, overlay, args.smooth)
    try:
        own = reader()
        table.write(output, own.thresholds, own.base.thresholds, person if own.profile is not None else None)
    except BaseException:
        if overlay is not None and not replaced:
            overlay.unlink(missing_ok=True)
        raise
    ui.info(f"wrote {output}: {len(table.rows)} row{'s' * (len(table.rows) != 1)}" + (f", and {overlay}" if overlay else ""))
    return 0
