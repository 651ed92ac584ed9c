"""Data sets through the tracker, once: aligned crops and landmarks of every labelled frame, a file for each sequence.

The files have the fields of :mod:`personalize.synth.dataset`'s shards, so that both are read alike. They hold pictures of faces: what the
data set's licence says of the data holds for them too.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from .. import geometry, ui
from ..aus import AUS
from ..errors import ConfigError, InputError
from ..faces import Tracker
from ..tracks import tracked_sample
from ..video import open_media, read_picture
from .source import AUDataset, Clip, Record, near

SHAPES: dict[str, tuple[type, tuple[int, ...]]] = {
    "crop": (np.uint8, (112, 112, 3)),
    "landmarks": (np.float16, (478, 3)),
    "pose": (np.float32, (3,)),
    "target": (np.float16, (len(AUS),)),
    "occurrence": (np.int8, (len(AUS),)),
    "neutral": (np.bool_, ()),
    "frame": (np.int32, ()),
}
"""Fields of a shard: type, and shape of one row. target: NaN where unknown; occurrence: see :class:`~.source.Record`. Beside them stand
'subject', whose sequence it is, 'counts' (see :class:`Tracked`), and digests of which 'pictures' are labelled and of their 'labels'."""
# What zipfile and Pillow raise for archives and pictures that are damaged, locked or packed in another way.
_UNREADABLE = (
    OSError,
    EOFError,
    KeyError,
    RuntimeError,
    SyntaxError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass
class Tracked:
    """What tracking a data set came to, in this run or before. frames: with a face; left_out: labelled, decoded, no face; missing: labelled
    and not decoded, past the end of a video or broken."""

    folder: Path
    paths: dict[str, Path]
    frames: int = 0
    left_out: int = 0
    missing: int = 0


def cache_folder(dataset: AUDataset, cache: Path, tracker: str = "mediapipe") -> Path:
    """Where its shards go: another path, option, tracker or alignment is another folder."""
    options = {k: v for k, v in sorted(vars(dataset).items()) if isinstance(v, (int, float, str)) and k not in ("present_at", "people")}
    key = json.dumps([str(dataset.path.resolve()), options, tracker, *_alignment()])
    return cache / f"{dataset.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _alignment() -> list[float]:
    return [geometry.CROP_SIZE, geometry.WINDOW, *geometry.CENTRE.tolist()]


def track_dataset(
    dataset: AUDataset, cache: Path, tracker: Tracker | None = None, subjects: Sequence[str] | None = None, tracker_name: str = "mediapipe"
) -> Tracked:
    """Track what is not tracked yet; returns a shard's path for each sequence.

    Labels that changed since are written into their shards; sequences of which other frames are labelled are tracked again.
    tracker: None makes the named plug-in, and only where something is left to do. subjects: only theirs. Interrupted, it goes on with the
    sequence that was not finished.
    """
    folder = cache_folder(dataset, cache, tracker_name)
    folder.mkdir(parents=True, exist_ok=True)
    clips = [c for c in dataset.clips if subjects is None or c.subject in set(subjects)]
    done = Tracked(folder, {c.name: folder / _file(c.name) for c in clips})
    untold = not dataset.compared.issuperset(done.paths.values())
    todo = [c for c in clips if not _refresh(dataset, c, done.paths[c.name])]
    if todo:
        own = None
        if tracker is None:
            from ..registry import create

            tracker = own = create("trackers", tracker_name)  # as predict has it: told to find one face, MediaPipe smooths its points
        assert tracker is not None
        if tracker.scheme != "mesh478":
            raise ConfigError(f"training data need a tracker of 478 points, and this one's scheme is '{tracker.scheme}'. Use mediapipe.")
        try:
            with ui.progress(None, len(todo), f"Tracking {len(todo)} sequences of {dataset.name}") as bar:
                for clip in todo:
                    _track(dataset, clip, done.paths[clip.name], tracker, bar)
        finally:
            if own is not None:
                own.close()
    for path in done.paths.values():
        with np.load(path, allow_pickle=False) as shard:
            frames, left_out, missing = shard["counts"].tolist()
        done.frames, done.left_out, done.missing = done.frames + frames, done.left_out + left_out, done.missing + missing
    dataset.compared.update(done.paths.values())
    if untold or todo:
        lost = f"; {done.missing} were labelled and could not be decoded" if done.missing else ""
        ui.info(f"{dataset.name}: {done.frames} frames of {len({c.subject for c in clips})} people; {done.left_out} without a face{lost}")
    return done


def _file(sequence: str) -> str:
    """A file name for any name of a sequence; those that no disk would take are cut and told apart by a digest."""
    name = quote(sequence, safe="+")
    return f"{name if len(name) <= 150 else name[:150] + hashlib.sha256(sequence.encode()).hexdigest()[:8]}.npz"


def _refresh(dataset: AUDataset, clip: Clip, path: Path) -> bool:
    """Whether a shard is there and of the frames that are labelled now; if only their labels changed, it gets the new ones."""
    try:
        with np.load(path, allow_pickle=False) as file:
            before = {k: str(file[k]) for k in ("pictures", "labels")}
    except _UNREADABLE:  # none, cut off, or of an older version
        return False
    if path in dataset.compared:
        return True
    records = dataset.records(clip)
    now = _digests(clip, records)
    if before["pictures"] != now["pictures"]:
        return False
    if before["labels"] != now["labels"]:
        with np.load(path, allow_pickle=False) as file:
            shard = dict(file)
        row = {r.frame: i for i, r in enumerate(records)}
        kept = [row[frame] for frame in shard["frame"].tolist()]
        _save(path, {**shard, **{k: v[kept] for k, v in _labels(records).items()}, "subject": clip.subject, **now})
    return True


def _labels(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """The fields of a shard that labels tell, a row a record."""
    target = np.array([r.target for r in records], np.float16).reshape(-1, len(AUS))
    coded = np.isfinite(target).any(0)
    # NaN is not 0: a frame that may show something is nobody's neutral.
    neutral = (target[:, coded] == 0).all(1) & coded.any()
    occurrence = np.array([r.occurrence for r in records], np.int8).reshape(-1, len(AUS))
    return {"target": target, "occurrence": occurrence, "neutral": neutral, "frame": np.array([r.frame for r in records], np.int32)}


def _digests(clip: Clip, records: Sequence[Record]) -> dict[str, str]:
    """Of which pictures are labelled, and of what the reader makes of their labels."""
    # Of videos there are shards with smoothed points and made-up times: they are tracked again.
    shown = json.dumps([(r.path.name, r.member, r.frame, *(["by its times"] * r.video)) for r in records]).encode()
    labels = clip.subject.encode() + b"".join(v.tobytes() for v in _labels(records).values())
    return {"pictures": hashlib.sha256(shown).hexdigest(), "labels": hashlib.sha256(labels).hexdigest()}


def _track(dataset: AUDataset, clip: Clip, path: Path, tracker: Tracker, bar: Any) -> None:
    records = dataset.records(clip)
    if not records:
        ui.warn(f"{dataset.name}: no frame of {clip.name} is labelled")
    row = {r: i for i, r in enumerate(records)}
    seen: dict[str, list[Any]] = {"crop": [], "landmarks": [], "pose": []}
    kept: list[int] = []
    decoded = 0
    tracker.reset()
    for record, image, time in decode(records):
        decoded += 1
        bar.advance(1 / len(records))
        found = tracked_sample(image, tracker, time, not record.video)
        if found is None:
            continue
        kept.append(row[record])
        for values, value in zip(seen.values(), found, strict=True):
            values.append(value)
    bar.advance(1 - decoded / len(records) if records else 1)
    rows = {**seen, **{k: v[kept] for k, v in _labels(records).items()}}
    arrays: dict[str, Any] = {k: np.array(rows[k], dtype).reshape(-1, *shape) for k, (dtype, shape) in SHAPES.items()}
    counts = np.array([len(kept), decoded - len(kept), len(records) - decoded])
    _save(path, {**arrays, "subject": clip.subject, "counts": counts, **_digests(clip, records)})


def _save(path: Path, arrays: dict[str, Any]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp.npz")  # two ranks may be at it
    try:
        np.savez(temporary, **arrays)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def decode(records: Iterable[Record]) -> Iterator[tuple[Record, np.ndarray, float]]:
    """The pictures (H, W, 3) of records of one sequence, in order, with their time in a video in seconds (of single pictures: 0).

    A video is decoded once, and frames past its end are left out.

    Single pictures that cannot be read are left out with a warning; raises InputError where those are more than half.
    """
    records = list(records)
    if records and records[0].video:
        wanted = {r.frame: r for r in records}
        last = max(wanted)
        for frame in open_media(records[0].path).frames():
            if frame.index in wanted:
                yield wanted[frame.index], frame.image, frame.timestamp
            if frame.index >= last:
                return
        return
    archive: zipfile.ZipFile | None = None
    bad: list[str] = []
    try:
        for record in records:
            try:
                if record.member:
                    archive = archive or zipfile.ZipFile(record.path)
                    with Image.open(io.BytesIO(archive.read(record.member))) as picture:
                        image = np.array(picture.convert("RGB"))
                else:
                    image = read_picture(record.path)
            except (InputError, *_UNREADABLE):
                bad.append(near(record.path / record.member))
                continue
            yield record, image, 0.0
    finally:
        if archive is not None:
            archive.close()
    if bad:
        some = ", ".join(bad[:3]) + (" ..." if len(bad) > 3 else "")
        lost = f"{len(bad)} of {len(records)} pictures of {records[0].sequence} cannot be read"
        if len(bad) > len(records) / 2:
            raise InputError(f"{lost}: copy or unzip them again ({some}).")
        ui.warn(f"{lost} and are left out ({some})")
