"""Readers of the data sets that people of the field hold, each for the layout in which it is handed out; see docs/datasets.md.

None of the data is here, and none of it was at hand: layouts are those of published loaders. Labels are always opened by AU number and
joined by frame number, never by the order in which a folder lists them.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..aus import AUS, column, index, parse_au
from ..errors import ConfigError, InputError
from ..video import VIDEO_SUFFIXES
from .folds import BP4D_PARTS, BP4D_PLUS_FOLDS, DISFA_PARTS, last_part_first, odd_even
from .source import (
    AUDataset,
    Clip,
    Record,
    au_columns,
    blank,
    check_length,
    check_rows,
    child,
    folders,
    frame_of,
    frames_and_values,
    leave_out,
    lines_of,
    near,
    number_of,
    numbered,
    pictures,
    span,
    value,
    warn,
    with_picture,
)

_DISFA_AUS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
_BP4D_INTENSITY = (6, 10, 12, 14, 17)


class DISFA(AUDataset):
    """DISFA: 27 people, a video each, intensities of 12 AUs. camera: 'left' (as in the literature) or 'right'."""

    name = "disfa"
    layout = "ActionUnit_Labels/SN001/SN001_au1.txt ... and Videos_LeftCamera/LeftVideoSN001_comp.avi"
    aus = _DISFA_AUS
    present_at = 2.0  # the usual binarisation; OpenGraphAU takes 1
    quoted = (1, 2, 4, 6, 9, 12, 25, 26)

    def __init__(self, path: str | Path, camera: str = "left", present_at: float | None = None) -> None:
        if camera not in ("left", "right"):
            raise ConfigError(f"disfa: camera must be left or right, not '{camera}'.")
        self.camera = camera.capitalize()
        super().__init__(path, present_at)

    def _clips(self) -> Iterator[Clip]:
        root = self._root("ActionUnit_Labels")
        labels = self._need(root, "ActionUnit_Labels")
        filmed = self._need(root, f"Videos_{self.camera}Camera", f"Video_{self.camera}Camera")
        places = [filmed, *(f for f in folders(filmed) if re.fullmatch(r"SN\d{3}", f.name, re.I))]  # some copies have a folder each
        files = [p for place in places for p in sorted(place.iterdir()) if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file()]
        videos = {m.group().upper(): p for p in files if (m := re.search(r"SN\d{3}", p.name, re.I))}
        empty, unfilmed = [], []
        for folder in folders(labels):
            subject = folder.name.upper()
            if not re.fullmatch(r"SN\d{3}", subject):
                continue
            folder = child(labels, folder.name) or folder
            if not any(folder.glob("*.[tT][xX][tT]")):
                empty.append(subject)
            elif subject not in videos:
                unfilmed.append(subject)
            else:
                yield Clip(subject, subject, (folder, videos[subject]))
        self._skip(empty, "label files")
        self._skip(unfilmed, "a video")

    def records(self, clip: Clip) -> list[Record]:
        folder, video = clip.data
        columns: dict[int, list[float]] = {}
        for au in self.aus:
            path = self._need(folder, f"{clip.subject}_au{au}.txt")
            frames, columns[au] = frames_and_values(path)
            # Numbers start at 0 or 1, depending on whom one asks: the nth row is the nth decoded frame.
            check_rows(frames, path)
        lengths = {au: len(c) for au, c in columns.items()}
        if len(set(lengths.values())) > 1:
            au = next(a for a, n in lengths.items() if n != lengths[self.aus[0]])
            given = f"{clip.subject}_au{au}.txt has {lengths[au]} rows, {clip.subject}_au{self.aus[0]}.txt {lengths[self.aus[0]]}"
            raise InputError(f"disfa: {given}. Copy them again.")
        n = lengths[self.aus[0]]
        check_length(self.name, n, video)
        out = []
        for i in range(n):
            target, occurrence = blank()
            for au, c in columns.items():
                target[index(au)] = c[i]
            out.append(Record(clip.subject, clip.name, video, i, target, occurrence, video=True))
        return out

    def folds(self) -> dict[int, frozenset[str]]:
        return last_part_first(DISFA_PARTS)


class DISFAPlus(AUDataset):
    """DISFA+: posed, nine of DISFA's people (they keep DISFA's folds, so that nobody is on both sides)."""

    name = "disfa+"
    layout = "Labels/SN001/<trial>/AU1.txt ... and Images/SN001/<trial>/000.jpg"
    aus = _DISFA_AUS
    present_at = 2.0
    people = "disfa"

    def _clips(self) -> Iterator[Clip]:
        root = self._root("Labels")
        labels, images = self._need(root, "Labels"), self._need(root, "Images")
        missing = []
        for subject in folders(labels):
            subject = child(labels, subject.name) or subject
            for trial in folders(subject):
                shown = pictures(child(child(images, subject.name) or images / subject.name, trial.name))
                if shown and any(trial.iterdir()):
                    yield Clip(f"{subject.name.upper()}_{trial.name}", subject.name.upper(), (trial, shown))
                else:
                    missing.append(f"{subject.name}/{trial.name}")
        self._skip(missing, "labels or pictures")

    def records(self, clip: Clip) -> list[Record]:
        trial, shown = clip.data
        targets: dict[int, np.ndarray] = {}
        rows: dict[str, int] = {}
        for au in self.aus:
            path = child(trial, f"AU{au}.txt", f"AU{au:02d}.txt")
            if path is None:
                raise InputError(f"disfa+: no 'AU{au}.txt' in {trial}. Expected {self.layout}.")
            lines = lines_of(path)
            if lines and number_of(lines[0][1][0]) is None:
                del lines[0]  # a heading
            for line, cells in lines:
                n = number_of(cells[0])
                if n is None:
                    raise InputError(f"{near(path)} line {line}: '{cells[0]}' names no picture. Expected '000.jpg 2'.")
                targets.setdefault(n, blank()[0])[index(au)] = value(cells, 1, path, line)
            rows[path.name] = len(lines)
        short = [name for name, n in rows.items() if n < len(targets)]
        if short:
            warn(f"disfa+: {clip.name} has fewer rows in {', '.join(short)} than in its other files; in the rest those AUs are unknown")
        here = with_picture(self.name, clip, targets, shown, "Copy both again.")
        return [Record(clip.subject, clip.name, shown[n], n, targets[n], blank()[1]) for n in here]

    def folds(self) -> dict[int, frozenset[str]]:
        return last_part_first(DISFA_PARTS)


class BP4D(AUDataset):
    """BP4D-Spontaneous: 41 people, 8 tasks; presence of 12 AUs, intensities of 5 of them where their folder is there.

    frame_offset: what to add to a coded frame's number to get its picture's.
    """

    name = "bp4d"
    layout = "AUCoding/AU_OCC/F001_T1.csv and Sequences(2D+3D)/F001/T1/2440.jpg"
    aus = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)
    # FACS scores an AU from trace (A) on, and the coders marked onsets and offsets by FACS.
    present_means = 1
    offset = 0

    def __init__(self, path: str | Path, frame_offset: int | None = None, present_at: float | None = None) -> None:
        self.offset = self.offset if frame_offset is None else int(frame_offset)
        super().__init__(path, present_at)

    def _clips(self) -> Iterator[Clip]:
        root = self._root("AUCoding")
        coding = self._need(root, "AUCoding")
        images = self._need(root, "Sequences(2D+3D)", "2D+3D", "Sequences", "2D", "Images")
        found = (child(place, "AU Intensity Codes3.0", "AU_INT", "AU Intensity Codes") for place in (root, coding))
        self.intensities = next((f for f in found if f is not None), None)
        missing = []
        for path in sorted((child(coding, "AU_OCC") or coding).iterdir()):
            match = re.fullmatch(r"([FM]\d{3})_(T\d+)\.csv", path.name, re.I)
            if match is None:
                continue
            subject, task = match.group(1).upper(), match.group(2).upper()
            shown = self._pictures(images, subject, task)
            if shown:
                yield Clip(f"{subject}_{task}", subject, (path, shown))
            else:
                missing.append(f"{subject}_{task}")
        self._skip(missing, "pictures")

    def _pictures(self, images: Path, subject: str, task: str) -> dict[int, tuple[Path, str]]:
        """Number -> (picture, '') or (archive, member)."""
        unzipped = pictures(child(child(images, subject) or images / subject, task))
        archive = child(images, f"{subject}.zip")
        if unzipped or archive is None:
            return {n: (p, "") for n, p in unzipped.items()}
        # An archive's order is not that of time.
        names = [n for n in self._members(archive) if task in (part.upper() for part in Path(n).parts[:-1])]
        return {k: (archive, n) for k, n in numbered(names, archive.name).items()}

    def _members(self, archive: Path) -> list[str]:
        known: dict[Path, list[str]] = self.__dict__.setdefault("_archives", {})
        if archive not in known:
            try:
                with zipfile.ZipFile(archive) as z:
                    known[archive] = z.namelist()
            except zipfile.BadZipFile:
                raise InputError(f"{self.name}: {archive} is no zip archive, or cut off. Copy it again.") from None
        return known[archive]

    def records(self, clip: Clip) -> list[Record]:
        path, shown = clip.data
        table = read_occurrence(path, self.aus, self.present_means)
        for au in _BP4D_INTENSITY:
            folder = child(self.intensities, column(au)) if self.intensities is not None else None
            coded = child(folder, f"{clip.name}_{column(au)}.csv") if folder is not None else None
            if coded is not None:
                add_intensity(self.name, coded, au, table, path)
        advice = f"Give another frame_offset than {self.offset}."
        out = []
        for frame in with_picture(self.name, clip, table, shown, advice, self.offset, spare=1):  # one is how videos end
            source, member = shown[frame + self.offset]
            out.append(Record(clip.subject, clip.name, source, frame + self.offset, *table[frame], member))
        return out

    def folds(self) -> dict[int, frozenset[str]]:
        return last_part_first(BP4D_PARTS)


class FERA2015(BP4D):
    """The same people and files with FERA 2015's split: odd numbers train, even numbers test."""

    name = "fera2015"
    people = "bp4d"

    def folds(self) -> dict[int, frozenset[str]]:
        return odd_even(self.subjects)


class BP4DPlus(BP4D):
    """BP4D+: 140 other people (its F001 is not BP4D's), tasks 1, 6, 7 and 8 coded; pictures in folders or in each person's zip."""

    name = "bp4d+"
    layout = "AUCoding/AU_OCC/F001_T1.csv and 2D+3D/F001.zip (or unzipped, 2D+3D/F001/T1/0000.jpg)"
    offset = -1  # codes count from 1, pictures from 0

    def folds(self) -> dict[int, frozenset[str]]:
        return BP4D_PLUS_FOLDS


def read_occurrence(path: Path, aus: tuple[int, ...], means: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """A table of presence: header of AU numbers, first column the frame. Frame -> (target, occurrence).

    A last column that is headed by no AU is FERA's flag of occlusion: frames with a 1 are left out, as are those with nothing known.
    """
    rows = lines_of(path)
    columns = {au: i for au, i in au_columns(rows[0][1]).items() if au in aus} if rows else {}
    numbers = [au for cell in rows[0][1][1:] if (au := parse_au(cell.strip('"'))) is not None] if rows else []
    # A row of codes could pass for a header; one of AU numbers rises.
    if not columns or 0 in numbers or any(b <= a for a, b in zip(numbers, numbers[1:], strict=False)):
        raise InputError(f"{near(path)}: no header of AU numbers. Expected '0,1,2,4,6 ...' and then a row a frame.")
    header = rows[0][1]
    flag = len(header) - 1 if parse_au(header[-1].strip('"')) is None else None
    table = {}
    for line, cells in rows[1:]:
        if flag is not None and len(cells) > flag and cells[flag] in ("1", "1.0"):
            continue
        target, occurrence = blank()
        for au, i in columns.items():
            target[index(au)] = value(cells, i, path, line, 1)
            occurrence[index(au)] = means
        if np.isfinite(target).any():
            table[frame_of(cells, path, line)] = (target, occurrence)
    return table


def add_intensity(dataset: str, path: Path, au: int, table: dict[int, tuple[np.ndarray, np.ndarray]], presence: Path) -> None:
    """Puts the intensities of an AU in the place of its presence; where they are unknown, presence stays.

    One of the files may end before the other; raises InputError where each codes frames that the other does not, as if one were shifted.
    """
    frames, values = frames_and_values(path)
    coded = {frame_of(cells, presence, line) for line, cells in lines_of(presence)[1:]}
    if not (frames and (coded.issubset(frames) or coded.issuperset(frames))):
        given = f"the frames of {near(path)} ({span(frames)}) and of {presence.name} ({span(coded)})"
        raise InputError(f"{dataset}: {given} do not match. Copy both again.")
    for frame, v in zip(frames, values, strict=True):
        if frame in table and np.isfinite(v):
            target, occurrence = table[frame]
            target[index(au)], occurrence[index(au)] = v, 0


class FERA2017(AUDataset):
    """FERA 2017: BP4D's 41 people and 20 others, rendered in nine views. view: 1-9 (6 is frontal)."""

    name = "fera2017"
    layout = "Train_Occ/FERA17_TR_F001_T1.csv and FERA17_Train_MV/FERA17_TR_F001_T1_6.mp4"
    aus = (1, 4, 6, 7, 10, 12, 14, 15, 17, 23)
    _intensity = (1, 4, 6, 10, 12, 14, 17)

    def __init__(self, path: str | Path, view: int = 6, present_at: float | None = None) -> None:
        if view not in range(1, 10):
            raise ConfigError(f"fera2017: view must be 1 to 9, not {view}.")
        self.view = view
        super().__init__(path, present_at)

    def _clips(self) -> Iterator[Clip]:
        root = self._root("Train_Occ", "Valid_Occ")
        missing = []
        for part, short in (("Train", "TR"), ("Valid", "VA")):
            labels, films = child(root, f"{part}_Occ"), child(root, f"FERA17_{part}_MV", f"{part}_MV")
            if labels is None:
                continue
            if films is None:
                warn(f"fera2017: left out all of {part}_Occ, because there is no 'FERA17_{part}_MV' in {root}")
                continue
            videos = {p.name.casefold(): p for p in films.iterdir()}
            for path in sorted(labels.iterdir()):
                match = re.fullmatch(rf"FERA17_{short}_([FM]\d{{3}})_(T\d+)\.csv", path.name, re.I)
                if match is None:
                    continue
                # One label file serves all views.
                video = videos.get(f"{path.stem}_{self.view}.mp4".casefold())
                if video is None:
                    missing.append(path.stem)
                    continue
                subject = match.group(1).upper() if short == "TR" else f"VA-{match.group(1).upper()}"
                yield Clip(f"{short}_{match.group(1).upper()}_{match.group(2).upper()}", subject, (path, video, child(root, f"{part}_Int")))
        self._skip(missing, f"a video of view {self.view}")

    def records(self, clip: Clip) -> list[Record]:
        path, video, intensities = clip.data
        rows = lines_of(path)
        frames = [frame_of(c, path, i) for i, c in rows[1:]]
        check_rows(frames, path)
        check_length(self.name, len(frames), video)
        table = read_occurrence(path, self.aus, self.present_means)
        for au in self._intensity:
            file = child(intensities, f"{path.stem}_{column(au)}_Int.csv") if intensities is not None else None
            if file is not None:
                add_intensity(self.name, file, au, table, path)
        start = frames[0] if frames else 0
        return [Record(clip.subject, clip.name, video, f - start, t, o, video=True) for f, (t, o) in sorted(table.items())]

    def person(self, subject: str) -> str:
        return f"fera2017/{subject}" if subject.startswith("VA-") else f"bp4d/{subject}"

    def folds(self) -> dict[int, frozenset[str]]:
        return {1: frozenset(s for s in self.subjects if s.startswith("VA-"))}


def read_facs(path: Path) -> dict[int, float]:
    """A file of ``AU intensity`` lines (further columns ignored): AU -> intensity, of every AU that is listed."""
    found = {}
    for line, cells in lines_of(path):
        found[frame_of(cells, path, line)] = value(cells, 1, path, line)
    return found


def _facs_target(listed: dict[int, float], coded: tuple[int, ...], uncoded_intensity: bool) -> tuple[np.ndarray, np.ndarray]:
    """What is listed is present, what is not is absent; with AU27 (mouth stretch) listed, AU25 and AU26 are not scored."""
    target, occurrence = blank()
    for au in coded:
        target[index(au)] = listed.get(au, 0.0)
        if 27 in listed and au in (25, 26) and au not in listed:
            target[index(au)] = np.nan
        if uncoded_intensity and listed.get(au) == 0:
            target[index(au)], occurrence[index(au)] = 1, 1
    return target, occurrence


class CKPlus(AUDataset):
    """CK+: posed, from neutral to the peak; only the peak is coded, the first picture is neutral. Intensity 0: present, not graded."""

    name = "ck+"
    layout = "cohn-kanade-images/S005/001/S005_001_00000011.png and FACS/S005/001/S005_001_00000011_facs.txt"
    aus = AUS

    def _clips(self) -> Iterator[Clip]:
        names = ("cohn-kanade-images", "extended-cohn-kanade-images")  # archives unzipped into folders of their names have both
        root = self._root(*names)
        images, facs = self._need(root, *names), self._need(root, "FACS", "FACS_labels")
        missing = []
        for subject in folders(facs):
            for take in folders(subject):
                labels = facs_files(take)
                shown = pictures(child(child(images, subject.name) or images / subject.name, take.name))
                if labels and shown:
                    yield Clip(f"{subject.name}_{take.name}", subject.name, (labels[0], shown))
                else:
                    missing.append(f"{subject.name}/{take.name}")
        self._skip(missing, "labels or pictures")

    def records(self, clip: Clip) -> list[Record]:
        path, shown = clip.data
        peak = number_of_facs(path)
        first = min(shown)
        if peak not in shown:
            raise InputError(f"ck+: {path.name} is about picture {peak}, and {shown[first].parent} has none. Copy it again.")
        rest, graded = _facs_target({}, self.aus, True)
        target, occurrence = _facs_target(read_facs(path), self.aus, True)
        out = [Record(clip.subject, clip.name, shown[peak], peak, target, occurrence)]
        if first != peak:
            out.insert(0, Record(clip.subject, clip.name, shown[first], first, rest, graded))
        return out


def facs_files(folder: Path) -> list[Path]:
    """The FACS files of a sequence, sorted."""
    return [p for p in sorted(folder.iterdir()) if p.name.casefold().endswith("_facs.txt") and not p.name.startswith(".")]


def number_of_facs(path: Path) -> int:
    """The picture's number in the name of a FACS file."""
    match = re.search(r"(\d+)_facs$", path.stem, re.I)
    if match is None:
        raise InputError(f"{path.name}: its name does not say which picture it is about. Expected <picture>_facs.txt.")
    return int(match.group(1))


class UNBC(AUDataset):
    """UNBC-McMaster: people with shoulder pain; intensities of nine AUs, and whether the eyes are closed. An empty file: no AU."""

    name = "unbc"
    layout = "Images/042-ll042/<sequence>/<frame>.png and Frame_Labels/FACS/042-ll042/<sequence>/<frame>_facs.txt"
    aus = (4, 6, 7, 9, 10, 12, 20, 25, 26, 43)

    def _clips(self) -> Iterator[Clip]:
        root = self._root("Frame_Labels")
        facs, images = self._need(self._need(root, "Frame_Labels"), "FACS"), self._need(root, "Images")
        missing = []
        for subject in folders(facs):
            for take in folders(subject):
                labels = facs_files(take)
                shown = pictures(child(child(images, subject.name) or images / subject.name, take.name))
                if labels and shown:
                    yield Clip(f"{subject.name}_{take.name}", subject.name, (labels, shown))
                else:
                    missing.append(f"{subject.name}/{take.name}")
        self._skip(missing, "labels or pictures")

    def records(self, clip: Clip) -> list[Record]:
        labels, shown = clip.data
        coded = {number_of_facs(path): path for path in labels}
        out = []
        for n in with_picture(self.name, clip, coded, shown, "Copy both again."):
            listed = read_facs(coded[n])
            target, occurrence = _facs_target(listed, self.aus, False)
            # Closed or not: a lid that droops a little (A) was not scored.
            target[index(43)], occurrence[index(43)] = float(43 in listed), 2
            out.append(Record(clip.subject, clip.name, shown[n], n, target, occurrence))
        return out

    def folds(self) -> dict[int, frozenset[str]]:
        return leave_out(self.subjects, len(self.subjects))


class AffWild2(AUDataset):
    """Aff-Wild2: videos of the web, one person each ('_left' and '_right' are two), presence of 12 AUs; the official validation set.

    every: take one frame in so many; all of them are 2.7 million, some 100 GB of crops.
    """

    name = "affwild2"
    layout = "AU_Set/Train_Set/<video>.txt, AU_Set/Validation_Set/<video>.txt and cropped_aligned/<video>/00001.jpg"
    aus = (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26)
    # Marked by people watching the video, not by FACS frame by frame: what they saw at a glance is taken as B or more.
    present_means = 2

    def __init__(self, path: str | Path, every: int = 5, present_at: float | None = None) -> None:
        if every < 1:
            raise ConfigError(f"affwild2: every must be 1 or more, not {every}.")
        self.every = every
        super().__init__(path, present_at)

    def _clips(self) -> Iterator[Clip]:
        names = ("AU_Set", "AU_Detection_Challenge", "AU_Annotations")
        root = self._root("cropped_aligned")
        images = self._need(root, "cropped_aligned")
        inside = [d for d in folders(root) if child(d, *names) is not None]  # '6th ABAW Annotations/AU_Detection_Challenge'
        labels = self._need(inside[0] if inside and child(root, *names) is None else root, *names)
        shown = {p.name.casefold(): p for p in folders(images)}
        self._validation: set[str] = set()
        missing = []
        for part in ("Train_Set", "Validation_Set"):
            folder = child(labels, part)
            for path in sorted(folder.glob("*.txt")) if folder is not None else ():
                if path.stem.casefold() not in shown or path.name.startswith("."):
                    missing.append(path.stem)
                    continue
                if part == "Validation_Set":
                    self._validation.add(path.stem)
                yield Clip(path.stem, path.stem, (path, shown[path.stem.casefold()]))
        self._skip(missing, "pictures")

    def records(self, clip: Clip) -> list[Record]:
        path, folder = clip.data
        files = pictures(folder)
        rows = lines_of(path)
        # Here even the first column is an AU: columns are taken by their heading all the same.
        columns = {au: i - 1 for au, i in au_columns(["", *rows[0][1]]).items()} if rows else {}
        if not columns or not rows[0][1][0].casefold().startswith("au"):
            raise InputError(f"{path.name}: no header of AUs. Expected 'AU1,AU2,AU4 ...' and then a line a frame.")
        # Pictures count from 1; frames without a face have none, and so one video may lack many.
        # A line that is blank is a frame that nobody coded.
        coded = [line - rows[0][0] for line, _ in rows[1:]]
        if files.keys().isdisjoint(coded):
            given = f"none of the frames {span(coded)} of {clip.name} has a picture (pictures {span(files)})"
            raise InputError(f"affwild2: {given}. Copy both again.")
        out, lost = [], 0
        for n, (line, cells) in zip(coded[:: self.every], rows[1 :: self.every], strict=True):
            target, occurrence = blank()
            for au, i in columns.items():
                target[index(au)], occurrence[index(au)] = value(cells, i, path, line, 1), self.present_means
            if not np.isfinite(target).any():
                continue
            if n in files:
                out.append(Record(clip.subject, clip.name, files[n], n, target, occurrence))
            else:
                lost += 1
        if lost > len(out):
            warn(f"affwild2: {lost} of {lost + len(out)} labelled frames of {clip.name} have no picture and are left out")
        return out

    def folds(self) -> dict[int, frozenset[str]]:
        return {1: frozenset(self._validation)}
