"""The reader for what users film and label themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ..aus import AUS
from ..errors import InputError
from ..labels import _name, _rows, _stem, read_labels
from ..video import VIDEO_SUFFIXES, open_media
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

    @cached_property
    def _media(self) -> dict[str, Path]:
        return {p.name: p for p in sorted(self.path.iterdir()) if p.is_file() and p != self._csv and not p.name.startswith(".")}

    def _clips(self) -> Iterator[Clip]:
        rows, _ = _rows(self._csv)
        head = [c.strip().lower() for c in rows[0][1]] if rows else []
        key = next((k for k in ("clip", "file") if k in head), None)
        media = self._media
        videos = {name: p for name, p in media.items() if p.suffix.lower() in VIDEO_SUFFIXES}
        if key is None and len(videos) != 1:
            raise InputError(f"folder: {self._csv.name} has neither a column 'clip' nor 'file'. Expected {self.layout}.")
        who: dict[str, set[str]] = {}
        missing: dict[str, None] = {}
        for _, cells in rows[1:]:
            cell = dict(zip(head, cells + [""] * (len(head) - len(cells)), strict=False))
            given = _name(cell[key]) if key else next(iter(videos))
            name = _named(given, media if key == "file" or given in media else videos)
            if not name:
                missing[given] = None
                continue
            subject = cell.get("subject", "").strip() or (_stem(name) if key != "file" else self.path.name)
            who.setdefault(name, set()).add(subject)
        for name, subjects in who.items():
            if len(subjects) > 1:
                raise InputError(f"folder: {self._csv.name} gives '{name}' to {' and '.join(sorted(subjects))}. Give one subject.")
        self._skip(list(missing), "a picture" if key == "file" else "a video")
        of = {name: next(iter(subjects)) for name, subjects in who.items()}
        if key == "file":
            for subject in sorted(set(of.values())):
                yield Clip(subject, subject, [name for name, s in of.items() if s == subject])
            return
        for name, subject in of.items():
            yield Clip(name, subject, media[name])

    def records(self, clip: Clip) -> list[Record]:
        if isinstance(clip.data, list):
            return self._of_pictures(clip)
        video: Path = clip.data
        table = read_labels(self._csv, clip.name if "clip" in _head(self._csv) else None)
        media = open_media(video)
        if table.kind in ("timestamp", "span"):  # a clip need not begin at 0 s, nor run evenly: times are known when it is decoded
            times = np.array([frame.timestamp for frame in media.frames()])
        else:
            last = int(max((float(np.max(k)) for k in table.keys), default=0)) if table.kind == "frame" else 0
            times = np.arange(media.length or last + 1) / media.fps
        target, known = table.align(np.arange(len(times)), times)
        return [
            Record(clip.subject, clip.name, video, i, np.where(known[i], target[i], np.nan), table.occurrence.astype(np.int8), video=True)
            for i in np.flatnonzero(known.any(1)).tolist()
        ]

    def _of_pictures(self, clip: Clip) -> list[Record]:
        table = read_labels(self._csv)
        if table.kind != "file":
            raise InputError(f"folder: {self._csv.name} does not name a picture in each row's cell 'file'. Fill them in.")
        # Among the pictures of all: that of another may have the same stem.
        named = [_named(_name(str(key)), self._media) for key in table.keys]
        mine = [row for row, name in enumerate(named) if name in clip.data]
        # Rows may complete each other; rows that contradict each other are refused.
        own = replace(table, keys=[named[r] for r in mine], values=table.values[mine], lines=[table.lines[r] for r in mine])
        target, known = own.align(np.arange(len(clip.data)), np.zeros(len(clip.data)), clip.data)
        occurrence = table.occurrence.astype(np.int8)
        return [
            Record(clip.subject, clip.name, self.path / name, i, np.where(known[i], target[i], np.nan), occurrence)
            for i, name in enumerate(clip.data)
            if known[i].any()
        ]

    def person(self, subject: str) -> str:
        """Names are a study's own: that of its folder goes with them."""
        return f"{self.people}/{self.path.resolve().name}/{subject}"

    def is_among(self, subject: str, people: Collection[str]) -> bool:
        """Also where an older card names them without their folder."""
        return super().is_among(subject, people) or f"{self.people}/{subject}" in people

    def folds(self) -> dict[int, frozenset[str]]:
        return leave_out(self.subjects, 5)


def _named(given: str, there: Mapping[str, object]) -> str:
    """The name among those ``there`` that is meant: as it stands, or the only one of that stem. Empty: none."""
    if given in there:
        return given
    alike = [name for name in there if _stem(name) == _stem(given)]
    return alike[0] if len(alike) == 1 else ""


def _head(path: Path) -> list[str]:
    return [c.strip().lower() for c in _rows(path)[0][0][1]]
