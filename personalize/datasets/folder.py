"""The reader for what users film and label themselves."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from ..aus import AUS
from ..errors import InputError
from ..labels import _rows, read_labels
from ..video import PICTURE_SUFFIXES, open_media
from .source import AUDataset, Clip, Record, leave_out


class Folder(AUDataset):
    """Your own: videos or pictures, and one CSV as ``personalize evaluate --labels`` reads it, with a ``subject`` column if you have one.

    Videos are told apart by the column ``clip``, pictures by ``file``. Without ``subject`` every video is a person of its own, and all
    pictures are of one.
    """

    name = "folder"
    layout = "videos or pictures, and one CSV with a column 'clip' (videos) or 'file' (pictures) and AU columns"
    aus = AUS
    present_at = 2.0

    @cached_property
    def _csv(self) -> Path:
        found = [p for p in sorted(self.path.iterdir()) if p.suffix.lower() == ".csv"] if self.path.is_dir() else []
        if len(found) != 1:
            raise InputError(f"folder: {len(found)} CSV files in {self.path}, not one. Expected {self.layout}.")
        return found[0]

    def _clips(self) -> Iterator[Clip]:
        rows, _ = _rows(self._csv)
        head = [c.strip().lower() for c in rows[0][1]] if rows else []
        key = next((k for k in ("clip", "file") if k in head), None)
        media = {p.name: p for p in sorted(self.path.iterdir()) if p.is_file() and p != self._csv and not p.name.startswith(".")}
        videos = {p.stem: p for p in media.values() if p.suffix.lower() not in PICTURE_SUFFIXES}
        if key is None and len(videos) != 1:
            raise InputError(f"folder: {self._csv.name} has neither a column 'clip' nor 'file'. Expected {self.layout}.")
        who: dict[str, set[str]] = {}
        order: dict[str, str] = {}
        for _, cells in rows[1:]:
            cell = dict(zip(head, cells, strict=False))
            name = Path(cell[key].strip()).name if key else next(iter(videos.values())).name
            subject = cell.get("subject", "").strip() or (Path(name).stem if key != "file" else self.path.name)
            who.setdefault(name, set()).add(subject)
            order[name] = subject
        for name, subjects in who.items():
            if len(subjects) > 1:
                raise InputError(f"folder: {self._csv.name} gives '{name}' to {' and '.join(sorted(subjects))}. Give one subject.")
        if key == "file":
            for subject in sorted(set(order.values())):
                yield Clip(subject, subject, [name for name, s in order.items() if s == subject])
            return
        missing = []
        for name, subject in order.items():
            video = media.get(name) or videos.get(Path(name).stem)
            if video is None:
                missing.append(name)
            else:
                yield Clip(Path(name).stem, subject, video)
        self._skip(missing, "a video")

    def records(self, clip: Clip) -> list[Record]:
        if isinstance(clip.data, list):
            return self._of_pictures(clip)
        video: Path = clip.data
        table = read_labels(self._csv, clip.name if "clip" in _head(self._csv) else None)
        media = open_media(video)
        # Times of frames are only known when they are decoded; a constant rate is near enough for labels in seconds.
        last = int(max((float(np.max(k)) for k in table.keys), default=0))
        n = media.length or (last + 1 if table.kind == "frame" else int((last + 1) * media.fps))
        target, known = table.align(np.arange(n), np.arange(n) / media.fps)
        return [
            Record(clip.subject, clip.name, video, i, np.where(known[i], target[i], np.nan), table.occurrence.astype(np.int8), video=True)
            for i in np.flatnonzero(known.any(1)).tolist()
        ]

    def _of_pictures(self, clip: Clip) -> list[Record]:
        table = read_labels(self._csv)
        mine = [name for name in clip.data if (self.path / name).is_file()]
        self._skip([name for name in clip.data if name not in mine], "a picture")
        if not mine:
            return []
        at = {Path(str(key)).name: row for row, key in enumerate(table.keys)}
        occurrence = table.occurrence.astype(np.int8)
        out = [Record(clip.subject, clip.name, self.path / n, i, table.values[at[n]], occurrence) for i, n in enumerate(mine)]
        return [r for r in out if np.isfinite(r.target).any()]

    def folds(self) -> dict[int, frozenset[str]]:
        return leave_out(self.subjects, 5)


def _head(path: Path) -> list[str]:
    return [c.strip().lower() for c in _rows(path)[0][0][1]]
