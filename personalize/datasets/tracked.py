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
from .source import AUDataset, Clip, Record

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
'subject', whose sequence it is, and 'counts'."""


@dataclass
class Tracked:
    """What tracking a data set came to. frames: with a face; left_out: labelled, decoded, no face; missing: labelled and not decoded."""

    folder: Path
    paths: dict[str, Path]
    frames: int = 0
    left_out: int = 0
    missing: int = 0


def cache_folder(dataset: AUDataset, cache: Path, tracker: str = "mediapipe") -> Path:
    """Where its shards go: another path, option, tracker or alignment is another folder, so that nothing stale is ever read."""
    options = {k: v for k, v in sorted(vars(dataset).items()) if isinstance(v, (int, float, str)) and k not in ("present_at", "people")}
    key = json.dumps([str(dataset.path.resolve()), options, tracker, *_alignment()])
    return cache / f"{dataset.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _alignment() -> list[float]:
    return [geometry.CROP_SIZE, geometry.WINDOW, *geometry.CENTRE.tolist()]


def track_dataset(
    dataset: AUDataset, cache: Path, tracker: Tracker | None = None, subjects: Sequence[str] | None = None, tracker_name: str = "mediapipe"
) -> Tracked:
    """Track what is not tracked yet; returns a shard's path for each sequence.

    tracker: None makes the named plug-in, and only where something is left to do. subjects: only theirs. Interrupted, it goes on with the
    sequence that was not finished.
    """
    folder = cache_folder(dataset, cache, tracker_name)
    folder.mkdir(parents=True, exist_ok=True)
    clips = [c for c in dataset.clips if subjects is None or c.subject in set(subjects)]
    done = Tracked(folder, {c.name: folder / f"{quote(c.name, safe='+')}.npz" for c in clips})
    todo = [c for c in clips if not done.paths[c.name].exists()]
    if todo:
        own = None
        if tracker is None:
            from ..registry import create

            tracker = own = create("trackers", tracker_name, {"num_faces": 1} if tracker_name == "mediapipe" else None)
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
    if todo:
        lost = f"; {done.missing} were labelled and not in the video" if done.missing else ""
        ui.info(f"{dataset.name}: {done.frames} frames of {len({c.subject for c in clips})} people; {done.left_out} without a face{lost}")
    return done


def _track(dataset: AUDataset, clip: Clip, path: Path, tracker: Tracker, bar: Any) -> None:
    records = dataset.records(clip)
    rows: dict[str, list[Any]] = {k: [] for k in SHAPES}
    decoded = left_out = 0
    coded = [k for k in range(len(AUS)) if any(np.isfinite(r.target[k]) for r in records)]
    tracker.reset()
    for record, image in decode(records):
        decoded += 1
        bar.advance(1 / len(records))
        found = tracked_sample(image, tracker, record.frame / 25.0, not record.video)
        if found is None:
            left_out += 1
            continue
        # NaN is not 0: a frame that may show something is nobody's neutral.
        neutral = bool(coded) and bool((record.target[coded] == 0).all())
        values = (*found, record.target, record.occurrence, neutral, record.frame)
        for key, value in zip(SHAPES, values, strict=True):
            rows[key].append(value)
    bar.advance(1 - decoded / len(records) if records else 1)
    arrays: dict[str, Any] = {k: np.array(rows[k], dtype).reshape(-1, *shape) for k, (dtype, shape) in SHAPES.items()}
    arrays["subject"] = np.array(clip.subject)
    arrays["counts"] = np.array([len(rows["crop"]), left_out, len(records) - decoded])
    temporary = path.with_suffix(f".{os.getpid()}.tmp.npz")  # two ranks may be at it
    try:
        np.savez(temporary, **arrays)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def decode(records: Iterable[Record]) -> Iterator[tuple[Record, np.ndarray]]:
    """The pictures (H, W, 3) of records of one sequence, in order; a video is decoded once, and frames past its end are left out."""
    records = list(records)
    if records and records[0].video:
        wanted = {r.frame: r for r in records}
        last = max(wanted)
        for frame in open_media(records[0].path).frames():
            if frame.index in wanted:
                yield wanted[frame.index], frame.image
            if frame.index >= last:
                return
        return
    archive: zipfile.ZipFile | None = None
    try:
        for record in records:
            if not record.member:
                yield record, read_picture(record.path)
                continue
            if archive is None:
                archive = zipfile.ZipFile(record.path)
            try:
                with Image.open(io.BytesIO(archive.read(record.member))) as picture:
                    image = np.array(picture.convert("RGB"))
            except (OSError, zipfile.BadZipFile) as problem:
                raise InputError(f"{record.member} in {record.path.name} cannot be read: unzip or copy the archive again.") from problem
            yield record, image
    finally:
        if archive is not None:
            archive.close()
