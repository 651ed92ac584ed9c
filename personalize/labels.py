"""Label files: AU intensities or occurrences per frame, or in spans, put on the frames of a clip.

Two layouts, told apart by their header (comma, semicolon or tab between cells):

* one row a frame: ``frame`` (from 0) or ``timestamp`` (seconds) or ``file`` (name of a still), then a column an AU in any spelling; where
  names of stills are given they count, whatever ``frame`` says;
* one row a span: ``au,start_s,end_s,value`` (``state`` also names the value); a span holds from its start up to, not including, its end.

An optional ``clip`` column says which clip a row is about. 9, -1, 999 and an empty cell mean unknown.
"""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np

from .aus import AUS, MAX_INTENSITY, UNKNOWN_CODES, column, parse_au
from .errors import InputError
from .video import PICTURE_SUFFIXES, VIDEO_SUFFIXES

_KEYS = ("frame", "timestamp", "file")
_SPAN = ("au", "start_s", "end_s")
_VALUE = ("value", "state")
_EMPTY = {"", "na", "n/a", "nan", "none", "null", "?"}
_LETTERS = {letter: float(i) for i, letter in enumerate("abcde", start=1)}
_LAYOUTS = "Give 'frame', 'timestamp' or 'file' and then AU columns (AU06, ...), or 'au,start_s,end_s,value'"


class Extent(NamedTuple):
    """The clip that labels are put on, of which not all frames need be at hand. frames: how many it has; step: seconds from one to the
    next; seconds: it lasts."""

    frames: int
    step: float
    seconds: float


@dataclass
class LabelTable:
    """A label file, read and checked; :meth:`align` puts it on the frames of a clip.

    kind: 'frame', 'timestamp', 'file' or 'span'.
    keys: one a row: frame index, seconds, file name, or (start_s, end_s).
    values: (R, K) float32 0-5, NaN where unknown, on the AU axis of :data:`personalize.aus.AUS`.
    occurrence: (K,) bool; True: the AU is only coded as absent 0 or present 1, and 1 says nothing about its intensity.
    lines: line of the file that each row stands on. left_out: AUs of the file that the base model does not read.
    """

    path: Path
    kind: str
    keys: list[float] | list[str] | list[tuple[float, float]]
    values: np.ndarray
    occurrence: np.ndarray
    lines: list[int]
    left_out: tuple[int, ...] = ()
    clips: tuple[str, ...] = field(default=())

    @property
    def aus(self) -> tuple[int, ...]:
        """The AUs with at least one known value."""
        return tuple(au for k, au in enumerate(AUS) if np.isfinite(self.values[:, k]).any())

    def is_about(self, frame: int, timestamp: float, file: str, step: float) -> bool:
        """Whether a row is about this frame of a clip. file: name of a still. step: seconds between frames."""
        if self.kind == "file":
            return bool(file) and (_name(file) in self._files or _stem(file) in self._stems)
        if self.kind == "span":
            start, end = self._sorted.T
            return bool(((start <= timestamp + 1e-6) & (timestamp < end - 1e-6)).any())
        at, reach = (timestamp, step / 2 + 1e-6) if self.kind == "timestamp" else (frame, 0.0)
        i = int(np.searchsorted(self._sorted, at))
        return any(abs(key - at) <= reach for key in self._sorted[max(i - 1, 0) : i + 1])

    @cached_property
    def _sorted(self) -> np.ndarray:
        return np.sort(np.asarray(self.keys, dtype=float), axis=0) if self.kind != "span" else np.asarray(self.keys, dtype=float)

    @cached_property
    def _files(self) -> set[str]:
        return {_name(str(key)) for key in self.keys}

    @cached_property
    def _stems(self) -> set[str]:
        return {_stem(name) for name in self._files}

    def align(
        self, frames: np.ndarray, timestamps: np.ndarray, files: list[str] | None = None, clip: Extent | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels of the given frames: ``target`` (T, K) float32, 0 where unknown, and ``known`` (T, K) bool.

        frames: (T,) int from 0; timestamps: (T,) seconds, finite; files: T names of stills, needed for a file with a ``file`` column.
        Frames may be missing (no face, or not kept) and may repeat (two faces). Timestamped rows go to the nearest frame, at most half a
        frame away. clip: where these are not all of its frames; None: they are.
        Rows that lie outside the clip are left out with one warning line. Raises InputError where two rows contradict each other and
        where no row is about these frames.
        """
        frames, timestamps = np.asarray(frames), np.asarray(timestamps, dtype=float)
        if self.kind in ("span", "timestamp") and files and any(files):
            raise InputError(f"{self.path.name} labels times, and photographs have none. Use a 'file' column with their names.")
        if self.kind == "span":
            rows_of, outside = self._spans(timestamps, clip)
        elif self.kind == "timestamp":
            rows_of, outside = self._nearest(timestamps, clip)
        elif self.kind == "frame":
            rows_of, outside = self._exact(frames.astype(float), np.asarray(self.keys, dtype=float), clip)
        else:
            if not files or not any(files):
                raise InputError(f"{self.path.name} labels files by name, and this clip is a video. Use a 'frame' or 'timestamp' column.")
            rows_of, outside = self._exact_files(files)
        target = np.zeros((len(frames), len(AUS)), dtype=np.float32)
        known = np.zeros(target.shape, dtype=bool)
        for t, rows in enumerate(rows_of):
            for row in rows:
                value = self.values[row]
                new = np.isfinite(value)
                clash = new & known[t] & (np.nan_to_num(value) != target[t])
                if clash.any():
                    k = int(np.flatnonzero(clash)[0])
                    first = next(r for r in rows if np.isfinite(self.values[r, k]))
                    raise InputError(
                        f"{self.path.name} lines {self.lines[first]} and {self.lines[row]} give {column(AUS[k])} two values "
                        f"({self.values[first, k]:g} and {value[k]:g}) at the same time. Keep one of them."
                    )
                target[t, new] = value[new]
                known[t] |= new
        if len(outside) == len(self.keys):
            where = self._range(frames, timestamps, files, clip)
            raise InputError(f"{self.path.name}: no row is about this clip ({where}). Is it another clip's?")
        if outside:
            _warn(
                f"{self.path.name}: {len(outside)} of {len(self.keys)} rows lie outside the clip "
                f"({self._range(frames, timestamps, files, clip)}) and were left out{self._hint(frames)}."
            )
        return target, known

    def _range(self, frames: np.ndarray, timestamps: np.ndarray, files: list[str] | None, clip: Extent | None) -> str:
        if self.kind == "file":
            return f"{len(set(files or []))} files"
        if not len(frames):
            return "no frames"
        if clip is not None:
            return f"frames 0 to {clip.frames - 1}" if self.kind == "frame" else f"0.00 to {clip.seconds:.2f} s"
        if self.kind == "frame":
            return f"frames {int(frames.min())} to {int(frames.max())}"
        return f"{timestamps.min():.2f} to {timestamps.max():.2f} s"

    def _hint(self, frames: np.ndarray) -> str:
        if self.kind != "frame" or not len(frames):
            return ""
        keys = [float(k) for k in self.keys]  # type: ignore[arg-type]
        return "; frames count from 0 here" if min(keys) == 1 and max(keys) == frames.max() + 1 else ""

    def _exact(self, wanted: np.ndarray, keys: np.ndarray, clip: Extent | None) -> tuple[list[list[int]], list[int]]:
        rows: dict[float, list[int]] = {}
        for row, key in enumerate(keys.tolist()):
            rows.setdefault(key, []).append(row)
        low, high = (wanted.min(), wanted.max()) if len(wanted) else (0.0, -1.0)
        if clip is not None:
            low, high = 0, clip.frames - 1
        # A frame inside the range without an observation had no face, or was not kept: its row is about the clip all the same.
        return [rows.get(key, []) for key in wanted.tolist()], np.flatnonzero((keys < low) | (keys > high)).tolist()

    def _exact_files(self, files: list[str]) -> tuple[list[list[int]], list[int]]:
        keys = [_name(str(key)) for key in self.keys]
        stems = {_stem(name) for name in files}
        by_stem = not set(keys) & set(map(_name, files)) and len(stems) == len(set(files))
        label = [_stem(key) for key in keys] if by_stem else keys
        wanted = [_stem(name) if by_stem else _name(name) for name in files]
        rows: dict[str, list[int]] = {}
        for row, key in enumerate(label):
            rows.setdefault(key, []).append(row)
        return [rows.get(key, []) for key in wanted], [row for row, key in enumerate(label) if key not in set(wanted)]

    def _nearest(self, timestamps: np.ndarray, clip: Extent | None) -> tuple[list[list[int]], list[int]]:
        keys = np.asarray(self.keys, dtype=float)
        if not len(timestamps):
            return [], list(range(len(keys)))
        steps = np.diff(np.unique(timestamps))
        step = float(np.median(steps)) if len(steps) else 1.0
        low, high = timestamps.min(), timestamps.max()
        if clip is not None:
            step, low, high = clip.step, 0.0, max(clip.seconds, high)
        reach = step / 2 + 1e-6
        order = np.argsort(keys, kind="stable")
        rising = keys[order]
        rows: list[list[int]] = []
        for t in timestamps:
            i = int(np.searchsorted(rising, t))
            near = min((j for j in (i - 1, i) if 0 <= j < len(rising)), key=lambda j: abs(rising[j] - t))
            # All rows with that very time: two rows may complete or contradict each other.
            same = np.flatnonzero(rising == rising[near])
            rows.append([int(order[j]) for j in same] if abs(rising[near] - t) <= reach else [])
        return rows, np.flatnonzero((keys < low - reach) | (keys > high + reach)).tolist()

    def _spans(self, timestamps: np.ndarray, clip: Extent | None) -> tuple[list[list[int]], list[int]]:
        spans = np.asarray(self.keys, dtype=float).reshape(-1, 2)
        low, high = (timestamps.min(), timestamps.max()) if len(timestamps) else (np.inf, -np.inf)
        if clip is not None:
            low, high = 0.0, max(clip.seconds, high)
        rows: list[list[int]] = [[] for _ in timestamps]
        outside = []
        for row, (start, end) in enumerate(spans):
            # A microsecond of tolerance: timestamps are fractions, and 1.2 s typed by hand is meant to be the frame at 1.2 s.
            inside = np.flatnonzero((timestamps >= start - 1e-6) & (timestamps < end - 1e-6))
            for t in inside:
                rows[int(t)].append(row)
            if end <= low or start > high:
                outside.append(row)
        return rows, outside


def read_labels(path: str | Path, clip: str | None = None) -> LabelTable:
    """Read a label CSV; see the module for the layouts.

    clip: name of the clip, to choose rows by where the file has a ``clip`` column; folders are ignored.

    Columns named as occurrence (``AU06_c``, ``Occ_au_6``) and a span file's ``state`` of at most 1 are occurrences; named as intensity
    (``AU06_r``, ``Int_au_6``) they are intensities. The rest share one scale: intensities if any of their values is a letter A-E or
    other than 0 and 1, of whichever clip.
    Where a file has both for an AU, the intensity is taken. AUs that the base model does not read are left out with one warning line.

    Raises:
        InputError: no such file, not text, wrong columns, no AU that the base reads, or a cell that is no value (with its line).
    """
    path = Path(path)
    rows, decimal_comma = _rows(path)
    if not rows:
        raise InputError(f"label file '{path}' is empty. {_LAYOUTS}.")
    head_line, head = rows[0]
    shown = [cell.strip() for cell in head]
    names = [name.lower() for name in shown]
    body = [(line, cells) for line, cells in rows[1:]]
    for line, cells in body:
        if len(cells) > len(names) and any(c.strip() for c in cells[len(names) :]):
            raise InputError(f"{path.name} line {line} has {len(cells)} cells, the header has {len(names)}.")
    if not body:
        raise InputError(f"label file '{path}' has a header and no rows.")
    body = [(line, cells + [""] * (len(names) - len(cells))) for line, cells in body]
    parse = _Cells(path, decimal_comma, [cells for _, cells in body])
    body, clips = _of_clip(path, names, body, clip)
    if all(name in names for name in _SPAN) and any(name in names for name in _VALUE):
        return _read_spans(path, names, body, parse, clips)
    if "au" in names and any(name in names for name in ("start_s", "end_s", *_VALUE)):
        missing = [name for name in _SPAN if name not in names] or ["value"]
        raise InputError(f"{path.name} has no column '{missing[0]}'; spans need au,start_s,end_s,value. It has: {', '.join(shown)}.")
    return _read_frames(path, names, shown, head_line, body, parse, clips)


def _read_spans(path: Path, names: list[str], body: list[tuple[int, list[str]]], parse: _Cells, clips: tuple[str, ...]) -> LabelTable:
    value_name = next(name for name in _VALUE if name in names)
    at = {name: names.index(name) for name in (*_SPAN, value_name)}
    keys: list[tuple[float, float]] = []
    values, lines, left_out = [], [], set()
    for line, cells in body:
        au = parse_au(cells[at["au"]])
        if au is None:
            raise InputError(f"{path.name} line {line}: '{cells[at['au']]}' is no AU. Write it as AU06 or 6.")
        start, end = parse.number(cells[at["start_s"]], line, "start_s"), parse.number(cells[at["end_s"]], line, "end_s")
        if end <= start:
            given = f"the span ends at {end:g} s and starts at {start:g} s"
            raise InputError(f"{path.name} line {line}: {given}. The end must come after the start.")
        value = parse.value(cells[at[value_name]], line, value_name)
        if au not in AUS:
            left_out.add(au)
            continue
        row = np.full(len(AUS), np.nan, dtype=np.float32)
        row[AUS.index(au)] = value
        keys.append((start, end))
        values.append(row)
        lines.append(line)
    if not values:
        raise _no_au(path, left_out)
    table = np.stack(values)
    occurrence = np.full(len(AUS), parse.binary([at[value_name]])) & np.isfinite(table).any(axis=0)
    return _done(LabelTable(path, "span", keys, table, occurrence, lines, tuple(sorted(left_out)), clips))


def _read_frames(
    path: Path, names: list[str], shown: list[str], head_line: int, body: list[tuple[int, list[str]]], parse: _Cells, clips: tuple[str, ...]
) -> LabelTable:
    kind = next((name for name in _KEYS if name in names), None)
    if "file" in names:
        given = [cells[names.index("file")].strip() for _, cells in body]
        if all(given) and len(set(given)) >= min(len(given), 2):  # else it names the clip, in every row
            kind = "file"
    columns: dict[int, dict[str, int]] = {}
    left_out: set[int] = set()
    for i, name in enumerate(names):
        au = None if name in (*_KEYS, "clip", "au") else parse_au(name)
        if not au:  # AU 0 does not exist in FACS's facial part; BP4D heads its frame column with 0.
            continue
        if au not in AUS:
            left_out.add(au)
            continue
        scale = _scale(name)
        if scale in columns.setdefault(au, {}):
            other = shown[columns[au][scale]]
            raise InputError(f"{path.name}: columns '{other}' and '{shown[i]}' are both {column(au)}. Keep one of them.")
        columns[au][scale] = i
    if kind is None:
        close = ((k, given) for n, given in zip(names, shown, strict=True) for k in difflib.get_close_matches(n, (*_KEYS, *_SPAN), 1, 0.75))
        meant = next((f" Did you mean '{k}' instead of '{given}'?" for k, given in close), "")
        raise InputError(f"{path.name} line {head_line}: wrong columns: {', '.join(shown) or 'none'}.{meant} {_LAYOUTS}.")
    if not columns:
        raise _no_au(path, left_out) if left_out else InputError(f"{path.name} has no AU column. It has: {', '.join(shown)}. {_LAYOUTS}.")
    success = names.index("success") if "success" in names else None
    keys: list = []
    values = np.full((len(body), len(AUS)), np.nan, dtype=np.float32)
    chosen = {au: next((s, c[s]) for s in ("intensity", "unmarked", "occurrence") if s in c) for au, c in columns.items()}
    for row, (line, cells) in enumerate(body):
        cell = cells[names.index(kind)].strip()
        if kind == "file":
            if not cell:
                raise InputError(f"{path.name} line {line}: the cell 'file' is empty.")
            keys.append(cell)
        else:
            key = parse.number(cell, line, kind)
            if kind == "frame" and key != int(key):
                raise InputError(f"{path.name} line {line}: frame {cell} is not a whole number. Is the column 'timestamp'?")
            keys.append(key)
        failed = success is not None and cells[success].strip() in ("0", "0.0")
        for au, (scale, i) in chosen.items():
            value = parse.value(cells[i], line, shown[i])
            if scale == "occurrence" and value > 1:
                raise InputError(f"{path.name} line {line}: {value:g} in column '{shown[i]}', which holds occurrences: 0 or 1.")
            # Other tools write zeros where they saw no face.
            values[row, AUS.index(au)] = np.nan if failed else value
    occurrence = np.zeros(len(AUS), dtype=bool)
    unmarked = {AUS.index(au): i for au, (scale, i) in chosen.items() if scale == "unmarked"}
    occurrence[list(unmarked)] = parse.binary(unmarked.values())
    occurrence[[AUS.index(au) for au, (scale, _) in chosen.items() if scale == "occurrence"]] = True
    return _done(LabelTable(path, kind, keys, values, occurrence, [line for line, _ in body], tuple(sorted(left_out)), clips))


def _done(table: LabelTable) -> LabelTable:
    if not table.aus:
        raise InputError(f"{table.path.name}: every value is unknown (empty, 9, -1 or 999). Fill in some intensities, 0-5.")
    if table.left_out:
        _warn(f"{table.path.name}: {', '.join(map(column, table.left_out))} left out: the base model does not read them.")
    return table


@dataclass
class _Cells:
    """Reads cells, and says in one line what is wrong with one. rows: those of all clips."""

    path: Path
    decimal_comma: bool
    rows: list[list[str]]

    def number(self, cell: str, line: int, name: str) -> float:
        text = cell.strip().replace(",", ".") if self.decimal_comma else cell.strip()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"{self.path.name} line {line}: '{cell.strip()}' in column '{name}' is not a number.")
        return value

    def value(self, cell: str, line: int, name: str) -> float:
        text = cell.strip().lower()
        if text in _EMPTY:
            return math.nan
        value = _LETTERS.get(text)
        if value is None:
            value = self.number(cell, line, name)
        if value in UNKNOWN_CODES:
            return math.nan
        if not 0 <= value <= MAX_INTENSITY:
            raise InputError(
                f"{self.path.name} line {line}: {value:g} in column '{name}' is outside 0-5 "
                "(0 absent to 5 maximum; 9, -1, 999 or empty: unknown)."
            )
        return value

    def binary(self, columns: Collection[int]) -> bool:
        """Whether these columns say nothing but 0 and 1, in the rows of all clips: whoever grades does so in the whole file. What is no
        value is left to those who read that clip."""
        for cell in {row[i].strip().lower() for row in self.rows for i in columns if i < len(row)} - set(_EMPTY):
            try:
                value = float(cell.replace(",", ".") if self.decimal_comma else cell)
            except ValueError:
                if cell in _LETTERS:
                    return False
                continue
            if value not in (0, 1, *UNKNOWN_CODES):
                return False
        return True


def _scale(name: str) -> str:
    if name.startswith("occ") or re.search(r"(\d|[_ -])(c|occurrence)$", name):
        return "occurrence"
    if name.startswith("int") or re.search(r"(\d|[_ -])(r|intensity)$", name):
        return "intensity"
    return "unmarked"


def _of_clip(
    path: Path, names: list[str], body: list[tuple[int, list[str]]], clip: str | None
) -> tuple[list[tuple[int, list[str]]], tuple[str, ...]]:
    if "clip" not in names:
        return body, ()
    i = names.index("clip")
    clips = tuple(dict.fromkeys(_name(cells[i]) for _, cells in body))
    if clip is None:
        if len(clips) > 1:
            raise InputError(f"{path.name} labels several clips and none was chosen. It has: {', '.join(clips)}.")
        return body, clips
    wanted = _name(clip)
    # With its suffix or without, as far as that leaves no doubt; of a clip that was converted, that of the file that was labelled.
    alike = {name for name in clips if _stem(name) == _stem(wanted)}
    suffixed = {name for name in alike if _stem(name) != name}
    mine = alike if len(suffixed) < 2 else alike & {wanted}
    if alike and not mine:
        raise InputError(
            f"{path.name} has rows of {' and '.join(sorted(suffixed))}, and '{wanted}' may be either. Write the clip's own name."
        )
    chosen = [row for row in body if _name(row[1][i]) in mine]
    if not chosen:
        raise InputError(f"{path.name} has no row whose clip is '{wanted}'. It has: {', '.join(clips)}.")
    return chosen, clips


def _rows(path: Path) -> tuple[list[tuple[int, list[str]]], bool]:
    """(line, cells) of every line that is not blank, and whether commas are decimal."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"no such label file: '{path}'.") from None
    except OSError as error:
        raise InputError(f"cannot read label file '{path}': {error.strerror}.") from None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encodings = ["utf-16"]
    elif b"\x00" in data:
        raise InputError(f"label file '{path}' is not text. Save it as CSV (UTF-8).")
    else:
        encodings = ["utf-8-sig", "cp1252", "latin-1"]
    text = None
    for encoding in encodings:
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    if text is None:
        raise InputError(f"label file '{path}' is not text. Save it as CSV (UTF-8).")
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(), delimiter=delimiter, skipinitialspace=True)
    try:
        rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise InputError(f"label file '{path}' is no CSV (line {reader.line_num}: {error}).") from None
    return rows, delimiter != ","


def _name(text: str) -> str:
    return PureWindowsPath(text.strip()).name


def _stem(text: str) -> str:
    """A file's name without folders, and without a picture's or video's suffix: 'ann.day2' is no suffix."""
    name = PureWindowsPath(text.strip())
    return name.stem if name.suffix.lower() in (*PICTURE_SUFFIXES, *VIDEO_SUFFIXES) else name.name


def _no_au(path: Path, left_out: set[int]) -> InputError:
    given = ", ".join(column(au) for au in sorted(left_out))
    return InputError(f"{path.name} labels only {given}, and the base model reads none of them. It reads: {', '.join(map(column, AUS))}.")


def _warn(text: str) -> None:
    from .ui import warn

    warn(text)
