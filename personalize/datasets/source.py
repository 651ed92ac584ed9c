"""What every reader of a data set shares: its records, and finding files in copies that are never quite alike.

Copies differ in case, spelling and depth (archives unzipped into a folder of their own name), so folders are looked up by meaning, and
pictures by their number. A folder that cannot be used ends in one line that says what was expected where.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..aus import AUS, MAX_INTENSITY, UNKNOWN_CODES, parse_au
from ..errors import InputError
from ..video import PICTURE_SUFFIXES, open_media


@dataclass(frozen=True, eq=False)
class Record:
    """One labelled frame.

    subject, sequence: names, a sequence's unique in its data set. path: a video, a picture, or a zip of pictures with ``member`` in it.
    frame: index of the decoded frame from 0 in a video; a picture's own number. target: (K,) float32 on the AU axis of
    :data:`personalize.aus.AUS`: intensity 0-5, or presence 0/1 where ``occurrence`` says so; NaN where not coded or unknown.
    occurrence: (K,) int8: 0, an intensity; j in 1-5, presence that means an intensity of at least j (1 = A, 2 = B).
    """

    subject: str
    sequence: str
    path: Path
    frame: int
    target: np.ndarray
    occurrence: np.ndarray
    member: str = ""
    video: bool = False


@dataclass(frozen=True)
class Clip:
    """A sequence that can be read: ``data`` is its reader's own."""

    name: str
    subject: str
    data: Any


class AUDataset(ABC):
    """A data set on the user's disk. Making one only lists folders; :meth:`records` reads the labels of one sequence.

    aus: what it codes. present_means: the intensity that its presence codes mean at least. present_at: intensity from which its
    literature counts an AU as present. quoted: the AUs over which its papers average detection, where not all. people: whose subjects
    they are; data sets that filmed the same people share it. compared: the shards of tracking that are known to hold the labels as they
    were when this was made.
    """

    name: ClassVar[str]
    layout: ClassVar[str]
    aus: tuple[int, ...]
    present_means: int = 1
    present_at: float = 1.0
    quoted: tuple[int, ...] = ()
    people: str

    def __init__(self, path: str | Path, present_at: float | None = None) -> None:
        self.path = Path(path).expanduser()
        self.compared: set[Path] = set()
        self.people = getattr(self, "people", self.name)
        self.present_at = self.present_at if present_at is None else float(present_at)
        if not self.path.exists():
            raise InputError(f"{self.name}: no such folder: {self.path}")
        self.clips: list[Clip] = sorted(self._clips(), key=lambda c: c.name)
        if not self.clips:
            raise InputError(f"{self.name}: nothing that is labelled and filmed in {self.path}. Expected {self.layout}.")

    @abstractmethod
    def _clips(self) -> Iterator[Clip]:
        """Sequences that have both labels and pictures."""

    @abstractmethod
    def records(self, clip: Clip) -> list[Record]:
        """The labelled frames of a sequence, in order. Raises InputError where its files contradict each other."""

    def folds(self) -> dict[int, frozenset[str]]:
        """Fold -> its test subjects; a subject is tested in at most one."""
        return leave_out(self.subjects, 10)

    @property
    def subjects(self) -> list[str]:
        """Sorted."""
        return sorted({c.subject for c in self.clips})

    def person(self, subject: str) -> str:
        """Who a subject is, across data sets."""
        return f"{self.people}/{subject}"

    def is_among(self, subject: str, people: Collection[str]) -> bool:
        """Whether a subject is one of the people that a model's card names."""
        return self.person(subject) in people

    def __iter__(self) -> Iterator[Record]:
        for clip in self.clips:
            yield from self.records(clip)

    def _root(self, *names: str) -> Path:
        """The folder that holds one of these: the given one, or one in it."""
        if self.path.is_dir():
            for folder in (self.path, *sorted(d for d in self.path.iterdir() if d.is_dir())):
                if child(folder, *names) is not None:
                    return folder
        raise InputError(f"{self.name}: no '{names[0]}' in {self.path}. Expected {self.layout}. Give the folder that holds them.")

    def _need(self, folder: Path, *names: str) -> Path:
        found = child(folder, *names)
        if found is None:
            raise InputError(f"{self.name}: no '{names[0]}' in {folder}. Expected {self.layout}.")
        return found

    def _skip(self, names: Sequence[str], why: str) -> None:
        """One line for all that is left out for the same reason."""
        if names:
            some = ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
            warn(f"{self.name}: left out {len(names)} without {why} ({some})")


def warn(text: str) -> None:
    from .. import ui

    ui.warn(text)


def leave_out(subjects: Sequence[str], folds: int) -> dict[int, frozenset[str]]:
    """Leave-subjects-out folds: the sorted subjects dealt out in turn."""
    n = min(folds, len(subjects))
    return {k + 1: frozenset(sorted(subjects)[k::n]) for k in range(n)}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.casefold())


def child(folder: Path, *names: str) -> Path | None:
    """The entry of a folder with the first of these names that is there, in any case; where one of them is inside it, the inner one."""
    if not folder.is_dir():
        return None
    entries = {_plain(p.name): p for p in sorted(folder.iterdir()) if not p.name.startswith(".")}
    for name in names:
        found = entries.get(_plain(name))
        if found is not None:
            return child(found, *names) or found
    return None


def folders(folder: Path) -> list[Path]:
    """The folders in a folder; none of the hidden ones that archives of Macs leave behind."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX")))


def number_of(name: str) -> int | None:
    """The number at the end of a file's stem: widths of padding vary, so pictures are known by number and never by name."""
    match = re.search(r"(\d+)$", Path(name).stem)
    return int(match.group(1)) if match else None


def numbered(names: Sequence[str], where: str) -> dict[int, str]:
    """Number -> name of the pictures among these file names, in order. Raises InputError where two have the same number."""
    found: dict[int, str] = {}
    for name in sorted(names):
        base = Path(name).name
        if Path(base).suffix.lower() not in PICTURE_SUFFIXES or base.startswith("."):
            continue
        number = number_of(base)
        if number is None:
            continue
        if number in found:
            raise InputError(f"{where}: '{Path(found[number]).name}' and '{base}' are both picture {number}. Keep one of them.")
        found[number] = name
    return dict(sorted(found.items()))


def pictures(folder: Path | None) -> dict[int, Path]:
    """Number -> picture of a folder; empty where there is none."""
    if folder is None or not folder.is_dir():
        return {}
    return {n: folder / name for n, name in numbered([p.name for p in folder.iterdir()], str(folder)).items()}


def near(path: Path) -> str:
    """A file with the two folders above it: its own name alone often stands in hundreds of them."""
    return str(Path(*path.parts[-3:]))


def lines_of(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of a label file; commas, semicolons or white space between cells; blank and '#' lines are skipped."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    rows = []
    for i, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            cells = re.split(r"\s*[,;]\s*", line.strip()) if re.search("[,;]", line) else line.split()
            rows.append((i, cells))
    return rows


def number(cells: list[str], column: int, path: Path, line: int) -> float:
    """A cell as a number. Raises InputError with its line."""
    try:
        return float(cells[column])
    except (ValueError, IndexError):
        given = cells[column] if column < len(cells) else ""
        raise InputError(f"{near(path)} line {line}: '{given}' in column {column + 1} is not a number.") from None


def frame_of(cells: list[str], path: Path, line: int) -> int:
    """The first cell as the number of a frame. Raises InputError with its line."""
    found = number(cells, 0, path, line)
    if not found.is_integer():
        raise InputError(f"{near(path)} line {line}: '{cells[0]}' is no number of a frame.")
    return int(found)


def value(cells: list[str], column: int, path: Path, line: int, top: float = MAX_INTENSITY) -> float:
    """A cell as an AU value 0 to ``top``; NaN for the codes that mean unknown. Raises InputError for others."""
    if column < len(cells) and cells[column] in ("", "nan", "NaN"):
        return float("nan")
    v = number(cells, column, path, line)
    if v in UNKNOWN_CODES:
        return float("nan")
    if not 0 <= v <= top:
        raise InputError(f"{near(path)} line {line}: {v:g} is outside 0-{top:g} (9, -1, 999: unknown).")
    return v


def frames_and_values(path: Path) -> tuple[list[int], list[float]]:
    """A file of ``frame,intensity`` lines without header."""
    rows = lines_of(path)
    return [frame_of(c, path, i) for i, c in rows], [value(c, 1, path, i) for i, c in rows]


def au_columns(header: list[str]) -> dict[int, int]:
    """AU -> its column in a header of AU numbers, the first column being the frame; AUs that the base does not read are left out."""
    found = {}
    for i, cell in enumerate(header[1:], 1):
        au = parse_au(cell.strip().strip('"'))
        if au in AUS:
            found[au] = i
    return found  # type: ignore[return-value]


def check_rows(frames: Sequence[int], path: Path) -> None:
    """Rows stand for decoded frames in order, whatever they are numbered from: raises InputError where numbers jump."""
    for a, b in zip(frames, frames[1:], strict=False):
        if b != a + 1:
            raise InputError(f"{near(path)}: frame {b} follows frame {a}. Rows must be consecutive frames; copy the file again.")


def with_picture(
    dataset: str, clip: Clip, coded: Collection[int], shown: Collection[int], advice: str, offset: int = 0, spare: int = 0
) -> list[int]:
    """The numbers of coded frames that have a picture, ``offset`` further on, in order.

    More than ``spare`` without are warned of; raises InputError where more than half are.
    """
    here = sorted(n for n in coded if n + offset in shown)
    lost = f"{dataset}: {len(coded) - len(here)} of {len(coded)} coded frames of {clip.name} have no picture"
    if len(here) < len(coded) / 2:
        raise InputError(f"{lost} (codes {span(coded)}, pictures {span(shown)}). {advice}")
    if len(coded) - len(here) > spare:
        warn(f"{lost} and are left out")
    return here


def span(numbers: Collection[int]) -> str:
    """From which number to which."""
    return f"{min(numbers)}-{max(numbers)}" if numbers else "none"


def check_length(dataset: str, rows: int, video: Path) -> None:
    """A row more or less than frames is usual, and warned of; raises InputError for more."""
    length = open_media(video).length
    if length is None or length == rows:
        return
    if abs(length - rows) > 1:
        raise InputError(f"{dataset}: {video.name} has {length} frames and its labels {rows} rows. They may differ by 1; copy both again.")
    warn(f"{dataset}: {video.name} has {length} frames and its labels {rows} rows; matched from the first on")


def blank() -> tuple[np.ndarray, np.ndarray]:
    """An unlabelled frame: target (K,) NaN, occurrence (K,) 0."""
    return np.full(len(AUS), np.nan, np.float32), np.zeros(len(AUS), np.int8)
