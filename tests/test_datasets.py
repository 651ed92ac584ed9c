"""Readers of real data sets on small trees in their layouts, traps included; tracking, mixing, folds and the field's table."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_clip
from PIL import Image

from personalize import geometry, registry
from personalize.aus import AUS
from personalize.cli import parse
from personalize.datasets import DATASETS, Record, Source, make_dataset, parse_source
from personalize.datasets.folds import BP4D_PARTS, BP4D_PLUS_FOLDS, DISFA_PARTS
from personalize.datasets.mixing import AUDataModule, MixedBatches, MixedRows, fold_people, read_shards, thin, typical
from personalize.datasets.tables import evaluate_sources, field_tables, print_tables, write_tables
from personalize.datasets.tracked import cache_folder, track_dataset
from personalize.errors import ConfigError, InputError
from personalize.faces import Face, Tracker
from personalize.model import ordinal_loss
from personalize.video import VideoWriter

DISFA_AUS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
SIDE = 48


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr("personalize.ui.warn", lines.append)
    return lines


def picture(path: Path, level: int = 100) -> Path:
    """A grey picture; the fake tracker sees a face in it from level 40 on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((SIDE, SIDE, 3), level, np.uint8)).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def film(path: Path, levels: Iterable[int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_clip(path, np.stack([np.full((SIDE, SIDE, 3), v, np.uint8) for v in levels]), 20.0)


class Grey(Tracker):
    """Sees one face, the canonical one, in every picture that is not dark. seen: the level of each picture it was shown."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def detect(self, frame: np.ndarray, timestamp: float, still: bool) -> list[Face]:
        self.seen.append(round(float(frame.mean())))
        if frame.mean() < 40:
            return []
        points = (12 * geometry.canonical() + (SIDE / 2, SIDE / 2, 0)).astype(np.float32)
        return [Face(points, np.array([0, 0, SIDE, SIDE], np.float32), 1.0)]


def known(record: Record) -> dict[int, float]:
    """AU -> target of what is known."""
    return {au: float(record.target[k]) for k, au in enumerate(AUS) if np.isfinite(record.target[k])}


def presence(record: Record) -> dict[int, int]:
    return {au: int(record.occurrence[k]) for k, au in enumerate(AUS) if record.occurrence[k]}


def line(path: Path, call: Callable[[], Any], error: type[Exception] = InputError) -> str:
    """The message of what must fail, its folder as ROOT."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), "ROOT")


def disfa(root: Path, subjects: dict[str, list[dict[int, float]]], levels: list[int] | None = None) -> Path:
    """subjects: name -> per frame, AU -> intensity. Written by AU in an order that is not theirs."""
    for name, frames in subjects.items():
        for au in reversed(DISFA_AUS):
            rows = "".join(f"{i},{int(f.get(au, 0))}\n" for i, f in enumerate(frames, 1))
            text(root / "ActionUnit_Labels" / name / f"{name}_au{au}.txt", rows)
        film(root / "Videos_LeftCamera" / f"LeftVideo{name}_comp.avi", levels or [80] * len(frames))
    return root


# --- readers ---------------------------------------------------------------------------------------------------------------------------


def test_disfa_rows_are_frames_and_labels_go_by_au_number(tmp_path, warned):
    root = disfa(tmp_path / "DISFA", {"SN002": [{12: 2, 1: 1}, {26: 5}, {}], "SN001": [{17: 3}] * 3})
    data = make_dataset("disfa", root)
    assert data.subjects == ["SN001", "SN002"] and data.present_at == 2 and make_dataset("disfa", root, present_at=1).present_at == 1
    records = data.records(data.clips[1])
    zeros = dict.fromkeys(DISFA_AUS, 0.0)
    assert [known(r) for r in records] == [zeros | {12: 2, 1: 1}, zeros | {26: 5}, zeros]
    assert [(r.subject, r.sequence, r.frame, r.video, r.path.name) for r in records[:2]] == [
        ("SN002", "SN002", 0, True, "LeftVideoSN002_comp.avi"),
        ("SN002", "SN002", 1, True, "LeftVideoSN002_comp.avi"),
    ]
    assert not records[0].occurrence.any() and len(list(data)) == 6 and not warned
    text(root / "Videos_LeftCamera" / "LeftVideoSN002_comp.csv", "of another program")
    assert {r.path.name for r in make_dataset("disfa", root)} == {"LeftVideoSN001_comp.avi", "LeftVideoSN002_comp.avi"}
    own = root / "Videos_LeftCamera" / "SN001"
    own.mkdir()
    (root / "Videos_LeftCamera" / "LeftVideoSN001_comp.avi").rename(own / "LeftVideoSN001_comp.avi")
    assert {r.path.parent.name for r in make_dataset("disfa", root)} == {"SN001", "Videos_LeftCamera"}, "a folder each, in some copies"


def test_disfa_in_other_spellings_unzipped_twice_and_the_right_camera(tmp_path, warned):
    plain = disfa(tmp_path / "a", {"SN001": [{4: 3}, {}]})
    odd = tmp_path / "b" / "DISFA"
    labels = odd / "actionunit_labels" / "ActionUnit_Labels" / "sn001"
    labels.mkdir(parents=True)
    for path in (plain / "ActionUnit_Labels" / "SN001").iterdir():
        path.rename(labels / path.name.lower())
    film(odd / "Video_RightCamera" / "RightVideoSN001_Comp.avi", [80, 80])
    (odd / "ActionUnit_Labels2").mkdir()
    data = make_dataset("disfa", tmp_path / "b", camera="right")
    records = list(data)
    assert [known(r)[4] for r in records] == [3, 0] and records[0].path.name == "RightVideoSN001_Comp.avi" and not warned


def test_disfa_one_row_more_is_warned_of_and_two_are_not_taken(tmp_path, warned):
    root = disfa(tmp_path, {"SN001": [{}] * 5}, levels=[80] * 4)
    assert len(list(make_dataset("disfa", root))) == 5
    assert warned == ["disfa: LeftVideoSN001_comp.avi has 4 frames and its labels 5 rows; matched from the first on"]
    root = disfa(tmp_path / "far", {"SN001": [{}] * 6}, levels=[80] * 4)
    assert line(root, lambda: list(make_dataset("disfa", root))) == (
        "disfa: LeftVideoSN001_comp.avi has 4 frames and its labels 6 rows. They may differ by 1; copy both again."
    )


def test_disfa_broken_copies_are_one_line(tmp_path, warned):
    root = disfa(tmp_path / "d", {"SN001": [{}] * 3, "SN002": [{}] * 3, "SN003": [{}] * 3})
    folder = root / "ActionUnit_Labels" / "SN001"
    data = make_dataset("disfa", root)
    read = lambda: data.records(data.clips[0])  # noqa: E731
    text(folder / "SN001_au9.txt", "1,0\n2,7\n3,0\n")
    assert line(root, read) == "ActionUnit_Labels/SN001/SN001_au9.txt line 2: 7 is outside 0-5 (9, -1, 999: unknown)."
    text(folder / "SN001_au9.txt", "1,0\n3,0\n4,0\n")
    expected = "SN001_au9.txt: frame 3 follows frame 1. Rows must be consecutive frames; copy the file again."
    assert line(root, read) == f"ActionUnit_Labels/SN001/{expected}"
    text(folder / "SN001_au9.txt", "1,0\n2,0\n")
    assert line(root, read) == "disfa: SN001_au9.txt has 2 rows, SN001_au1.txt 3. Copy them again."
    text(folder / "SN001_au9.txt", "1,0\n2,x\n3,0\n")
    assert line(root, read) == "ActionUnit_Labels/SN001/SN001_au9.txt line 2: 'x' in column 2 is not a number."
    text(folder / "SN001_au9.txt", "1,0\n2,9\n3,0\n")
    assert [9 in known(r) for r in read()] == [True, False, True]
    (folder / "SN001_au9.txt").unlink()
    assert line(root, read) == f"disfa: no 'SN001_au9.txt' in ROOT/ActionUnit_Labels/SN001. Expected {DATASETS['disfa'].layout}."
    (root / "Videos_LeftCamera" / "LeftVideoSN002_comp.avi").unlink()
    for path in (root / "ActionUnit_Labels" / "SN003").iterdir():
        path.unlink()
    assert make_dataset("disfa", root).subjects == ["SN001"]
    assert warned == ["disfa: left out 1 without label files (SN003)", "disfa: left out 1 without a video (SN002)"]


def test_a_folder_that_is_something_else_is_one_line(tmp_path):
    layout = "ActionUnit_Labels/SN001/SN001_au1.txt ... and Videos_LeftCamera/LeftVideoSN001_comp.avi"
    assert line(tmp_path, lambda: make_dataset("disfa", tmp_path / "no")) == "disfa: no such folder: ROOT/no"
    expected = f"disfa: no 'ActionUnit_Labels' in ROOT. Expected {layout}. Give the folder that holds them."
    assert line(tmp_path, lambda: make_dataset("disfa", tmp_path)) == expected
    (tmp_path / "ActionUnit_Labels").mkdir()
    assert line(tmp_path, lambda: make_dataset("disfa", tmp_path)) == f"disfa: no 'Videos_LeftCamera' in ROOT. Expected {layout}."
    (tmp_path / "Videos_LeftCamera").mkdir()
    assert line(tmp_path, lambda: make_dataset("disfa", tmp_path)) == (
        f"disfa: nothing that is labelled and filmed in ROOT. Expected {layout}."
    )
    assert line(tmp_path, lambda: make_dataset("disfa", tmp_path, camera="middle"), ConfigError) == (
        "disfa: camera must be left or right, not 'middle'."
    )


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_reader_says_what_it_expects_of_an_empty_folder(tmp_path, name):
    message = line(tmp_path, lambda: make_dataset(name, tmp_path))
    assert message.startswith(f"{name}: ") and f"Expected {DATASETS[name].layout}" in message


def test_unknown_names_and_options_are_one_line(tmp_path):
    there = "affwild2, bp4d, bp4d+, ck+, disfa, disfa+, fera2015, fera2017, folder, synthetic, unbc."
    message = line(tmp_path, lambda: make_dataset("dissfa", tmp_path), ConfigError)
    assert message == f"unknown data set 'dissfa'. Did you mean 'disfa'? There is: {there}"
    message = line(tmp_path, lambda: make_dataset("disfa", tmp_path, cammera="left"), ConfigError)
    assert message == "unknown option of disfa 'cammera'. Did you mean 'camera'? There is: camera, present_at."


def test_disfa_plus_joins_pictures_by_number(tmp_path, warned):
    for au in DISFA_AUS:
        text(
            tmp_path / "Labels" / "SN003" / "A1_t" / f"AU{au}.txt",
            f"# {au}\nframe intensity\n000.jpg     {au % 6}\n010.jpg     9\n2.jpg 1\n",
        )
    for name in ("000.jpg", "2.jpg", "010.jpg"):
        picture(tmp_path / "Images" / "SN003" / "A1_t" / name)
    (tmp_path / "Labels" / "SN003" / "empty").mkdir()
    data = make_dataset("disfa+", tmp_path)
    first, second, third = data.records(data.clips[0])
    assert known(first) == {au: au % 6 for au in DISFA_AUS} and known(second) == dict.fromkeys(DISFA_AUS, 1.0) and known(third) == {}
    assert [r.path.name for r in (first, second, third)] == ["000.jpg", "2.jpg", "010.jpg"]  # as time goes, not as names sort
    assert warned == ["disfa+: left out 1 without labels or pictures (SN003/empty)"]
    assert data.person("SN003") == "disfa/SN003" and "SN003" in data.folds()[1]
    text(tmp_path / "Labels" / "SN003" / "A1_t" / "AU1.txt", "000.jpg 8\n")
    assert line(tmp_path, lambda: list(data)) == "SN003/A1_t/AU1.txt line 1: 8 is outside 0-5 (9, -1, 999: unknown)."


def disfa_plus(root: Path, names: Iterable[str]) -> Path:
    """Labels of these names, and pictures 000.jpg to 003.jpg."""
    for au in DISFA_AUS:
        text(root / "Labels" / "SN003" / "A1" / f"AU{au}.txt", "".join(f"{name} 1\n" for name in names))
    for i in range(4):
        picture(root / "Images" / "SN003" / "A1" / f"{i:03d}.jpg")
    return root


@pytest.mark.parametrize("name", ["frame_{:03d}.jpg", "{:03d}", "SN003/A1/{}.png"])
def test_disfa_plus_names_of_pictures_in_other_spellings(tmp_path, name, warned):
    data = make_dataset("disfa+", disfa_plus(tmp_path, [name.format(i) for i in range(4)]))
    assert [r.frame for r in data] == [0, 1, 2, 3] and not warned


def test_disfa_plus_labels_that_meet_no_picture_are_told(tmp_path, warned):
    read = lambda *names: list(make_dataset("disfa+", disfa_plus(tmp_path, names)))  # noqa: E731
    assert len(read("001.jpg", "002.jpg", "003.jpg", "004.jpg")) == 3
    assert warned == ["disfa+: 1 of 4 coded frames of SN003_A1 have no picture and are left out"]
    assert line(tmp_path, lambda: read("003.jpg", "004.jpg", "005.jpg")) == (
        "disfa+: 2 of 3 coded frames of SN003_A1 have no picture (codes 3-5, pictures 0-3). Copy both again."
    )
    assert line(tmp_path, lambda: read("000.jpg", "first.jpg")) == (
        "SN003/A1/AU1.txt line 2: 'first.jpg' names no picture. Expected '000.jpg 2'."
    )
    data = make_dataset("disfa+", disfa_plus(tmp_path, ["000.jpg", "001.jpg"]))
    text(tmp_path / "Labels" / "SN003" / "A1" / "AU12.txt", "")
    assert [12 in known(r) for r in data] == [False, False]
    assert warned[1:] == ["disfa+: SN003_A1 has fewer rows in AU12.txt than in its other files; in the rest those AUs are unknown"]


def bp4d(root: Path, names: Iterable[str] = ("2440.jpg", "02441.jpg", "0002442.jpg", "2443.jpg")) -> Path:
    rows = ["0,1,2,4,6,12,39", "2440,0,1,9,1,0,0", "2441,1,0,0,0,1,0", "2442,9,9,9,9,9,9", "2443,0,0,0,0,0,0"]
    text(root / "AUCoding" / "AU_OCC" / "F001_T1.csv", "\n".join(rows) + "\n")
    for name in names:
        picture(root / "Sequences(2D+3D)" / "F001" / "T1" / name)
    return root


def test_bp4d_presence_with_unknowns_and_any_padding(tmp_path, warned):
    data = make_dataset("bp4d", bp4d(tmp_path))
    first, second, last = list(data)  # 2442 is all 9: nothing known
    assert known(first) == {1: 0, 2: 1, 6: 1, 12: 0} and known(second) == {1: 1, 2: 0, 4: 0, 6: 0, 12: 1}
    assert presence(first) == dict.fromkeys((1, 2, 4, 6, 12), 1)
    assert [(r.path.name, r.frame) for r in (first, second, last)] == [("2440.jpg", 2440), ("02441.jpg", 2441), ("2443.jpg", 2443)]
    assert (first.subject, first.sequence) == ("F001", "F001_T1") and not warned


@pytest.mark.parametrize("place", ["AU Intensity Codes3.0", "AUCoding/AU_INT"])
def test_bp4d_intensity_takes_the_place_of_presence_where_it_is_known(tmp_path, place, warned):
    root = bp4d(tmp_path)
    text(root / place / "AU06" / "F001_T1_AU06.csv", "2440,4\n2441,9\n")
    first, second, last = list(make_dataset("bp4d", root))
    assert [known(r)[6] for r in (first, second, last)] == [4, 0, 0]
    assert [presence(r).get(6) for r in (first, second, last)] == [None, 1, 1] and presence(first) == dict.fromkeys((1, 2, 4, 12), 1)
    for rows, coded in (("2439,0\n2440,4\n2441,0\n2442,0\n", "2439-2442"), ("", "none")):
        text(root / place / "AU06" / "F001_T1_AU06.csv", rows)
        message = f"AU06/F001_T1_AU06.csv ({coded}) and of F001_T1.csv (2440-2443) do not match. Copy both again."
        assert line(root, lambda: list(make_dataset("bp4d", root))) == f"bp4d: the frames of {Path(place).name}/{message}"


@pytest.mark.parametrize("spelling", ["{}", "AU {}", "Occ_au_{}", "AU{}_occurrence", '"{}"'])
def test_the_last_au_is_no_flag_of_occlusion_however_it_is_spelled(tmp_path, spelling):
    header = ",".join(["Frame", *(spelling.format(au) for au in (1, 12, 24))])
    text(tmp_path / "AUCoding" / "F001_T1.csv", f"{header}\n1,0,1,0\n2,1,0,1\n")
    for i in (1, 2):
        picture(tmp_path / "2D" / "F001" / "T1" / f"{i}.jpg")
    assert [known(r) for r in make_dataset("bp4d", tmp_path)] == [{1: 0, 12: 1, 24: 0}, {1: 1, 12: 0, 24: 1}]


def test_bp4d_older_drop_occlusion_flag_and_folders_without_pictures(tmp_path, warned):
    root = tmp_path / "outer"
    text(root / "BP4D" / "AUCoding" / "M018_T8.csv", "0,1,12,occluded\n1,0,1,0\n2,1,1,1\n3,1,0,0\n")
    text(root / "BP4D" / "AUCoding" / "F042_T11.csv", "0,1\n1,1\n")
    (root / "BP4D" / "2D+3D" / "F042" / "T11").mkdir(parents=True)
    for i in (1, 2, 3):
        picture(root / "BP4D" / "2D+3D" / "M018" / "T8" / f"{i:03d}.jpg")
    text(root / "BP4D" / "2D+3D" / "M018" / "T8" / "._001.jpg", "junk of a Mac")
    data = make_dataset("fera2015", root)
    assert [(r.frame, known(r)) for r in data] == [(1, {1: 0, 12: 1}), (3, {1: 1, 12: 0})]
    assert warned == ["fera2015: left out 1 without pictures (F042_T11)"]
    assert data.folds() == {1: {"M018"}} and data.person("M018") == "bp4d/M018"


def test_bp4d_wrong_offset_and_doubtful_pictures_are_one_line(tmp_path):
    root = bp4d(tmp_path / "a", ["2436.jpg", "2437.jpg", "2438.jpg", "2439.jpg", "2440.jpg"])
    assert line(root, lambda: list(make_dataset("bp4d", root))) == (
        "bp4d: 2 of 3 coded frames of F001_T1 have no picture (codes 2440-2443, pictures 2436-2440). Give another frame_offset than 0."
    )
    shifted = make_dataset("bp4d", root, frame_offset=-4)
    assert [r.path.name for r in shifted] == ["2436.jpg", "2437.jpg", "2439.jpg"]
    root = bp4d(tmp_path / "b", ["2440.jpg", "02440.jpg"])
    assert line(root, lambda: make_dataset("bp4d", root)) == (
        "ROOT/Sequences(2D+3D)/F001/T1: '02440.jpg' and '2440.jpg' are both picture 2440. Keep one of them."
    )
    root = bp4d(tmp_path / "c")
    text(root / "AUCoding" / "AU_OCC" / "F001_T1.csv", "2440,0,1\n2441,0,0\n")
    data = make_dataset("bp4d", root)
    message = "no header of AU numbers. Expected '0,1,2,4,6 ...' and then a row a frame."
    assert line(root, lambda: list(data)) == f"AUCoding/AU_OCC/F001_T1.csv: {message}"


def test_bp4d_plus_counts_from_one_and_reads_archives(tmp_path):
    text(tmp_path / "AUCoding" / "AU_OCC" / "F001_T1.csv", "0,1,12\n1,0,1\n2,1,0\n3,1,1\n")
    (tmp_path / "2D+3D").mkdir()
    levels = {"F001/T1/10.jpg": 200, "F001/T1/0002.jpg": 120, "F001/T1/0000.jpg": 60, "F001/T1/0001.jpg": 90, "F001/T6/0000.jpg": 10}
    with zipfile.ZipFile(tmp_path / "2D+3D" / "F001.zip", "w") as archive:
        for name, level in levels.items():
            archive.write(picture(tmp_path / "x.jpg", level), name)
    data = make_dataset("bp4d+", tmp_path)
    assert [(r.frame, r.member, known(r)) for r in data] == [
        (0, "F001/T1/0000.jpg", {1: 0, 12: 1}),
        (1, "F001/T1/0001.jpg", {1: 1, 12: 0}),
        (2, "F001/T1/0002.jpg", {1: 1, 12: 1}),
    ]
    tracker = Grey()
    track_dataset(data, tmp_path / "cache", tracker)
    assert tracker.seen == [60, 90, 120]
    (tmp_path / "2D+3D" / "F001" / "T6").mkdir(parents=True)  # begun to be unzipped
    assert [r.member for r in make_dataset("bp4d+", tmp_path)] == ["F001/T1/0000.jpg", "F001/T1/0001.jpg", "F001/T1/0002.jpg"]
    (tmp_path / "2D+3D" / "F001.zip").write_bytes(b"PK broken")
    message = "bp4d+: ROOT/2D+3D/F001.zip is no zip archive, or cut off. Copy it again."
    assert line(tmp_path, lambda: make_dataset("bp4d+", tmp_path)) == message


def test_fera2017_one_label_file_for_all_views(tmp_path, warned):
    for part, short, subject in (("Train", "TR", "F001"), ("Valid", "VA", "F007")):
        text(tmp_path / f"{part}_Occ" / f"FERA17_{short}_{subject}_T1.csv", "0,1,4,6,23\n0,0,1,0,1\n1,1,0,9,0\n")
        text(tmp_path / f"{part}_Int" / f"FERA17_{short}_{subject}_T1_AU04_Int.csv", "0,3\n1,0\n")
        for view, level in ((5, 60), (6, 120)):
            film(tmp_path / f"FERA17_{part}_MV" / f"FERA17_{short}_{subject}_T1_{view}.mp4", [level, level])
    data = make_dataset("fera2017", tmp_path)
    first, second = data.records(data.clips[0])
    assert known(first) == {1: 0, 4: 3, 6: 0, 23: 1} and known(second) == {1: 1, 4: 0, 23: 0} and presence(first) == {1: 1, 6: 1, 23: 1}
    assert first.path.name == "FERA17_TR_F001_T1_6.mp4" and (first.frame, second.frame) == (0, 1)
    assert next(iter(make_dataset("fera2017", tmp_path, view=5))).path.name == "FERA17_TR_F001_T1_5.mp4"
    # Training people are BP4D's; those of validation are others, whatever their number.
    assert [data.person(s) for s in data.subjects] == ["bp4d/F001", "fera2017/VA-F007"] and data.folds() == {1: {"VA-F007"}}
    assert line(tmp_path, lambda: make_dataset("fera2017", tmp_path, view=0), ConfigError) == "fera2017: view must be 1 to 9, not 0."
    assert not warned


def test_fera2017_intensities_of_other_frames_and_a_part_without_videos(tmp_path, warned):
    text(tmp_path / "Train_Occ" / "FERA17_TR_F001_T1.csv", "0,1,4\n0,0,1\n1,1,0\n")
    film(tmp_path / "FERA17_Train_MV" / "FERA17_TR_F001_T1_6.mp4", [80, 80])
    coded = tmp_path / "Train_Int" / "FERA17_TR_F001_T1_AU04_Int.csv"
    for rows, frames in (("1,3\n2,0\n", "1-2"), ("", "none")):
        text(coded, rows)
        message = line(tmp_path, lambda: list(make_dataset("fera2017", tmp_path)))
        assert message.endswith(f"_AU04_Int.csv ({frames}) and of FERA17_TR_F001_T1.csv (0-1) do not match. Copy both again.")
    text(coded, "0,3\n1,9\n")
    first, second = make_dataset("fera2017", tmp_path)
    assert known(first) == {1: 0, 4: 3} and known(second) == {1: 1, 4: 0} and presence(second) == {1: 1, 4: 1} and not warned
    text(tmp_path / "Valid_Occ" / "FERA17_VA_F007_T1.csv", "0,1\n0,0\n")
    assert make_dataset("fera2017", tmp_path).subjects == ["F001"]
    assert warned == [f"fera2017: left out all of Valid_Occ, because there is no 'FERA17_Valid_MV' in {tmp_path}"]


def test_ck_plus_first_is_neutral_and_zero_means_not_graded(tmp_path, warned):
    for i in (1, 2, 11):
        picture(tmp_path / "CK+" / "cohn-kanade-images" / "S005" / "001" / f"S005_001_{i:08d}.png")
    facs = tmp_path / "CK+" / "FACS" / "S005" / "001" / "S005_001_00000011_facs.txt"
    text(facs, "   9.0000000e+00   4.0000000e+00\n   1.7000000e+01   0.0000000e+00\n   2.7000000e+01   5.0000000e+00\n")
    (tmp_path / "CK+" / "FACS" / "S999" / "002").mkdir(parents=True)
    data = make_dataset("ck+", tmp_path)
    first, peak = list(data)
    assert known(first) == dict.fromkeys(AUS, 0.0) and presence(first) == {} and first.path.name == "S005_001_00000001.png"
    # AU27 (jaw wide open) is scored instead of AU25 and AU26, which are then not absent.
    assert known(peak) == dict.fromkeys((a for a in AUS if a not in (25, 26)), 0.0) | {9: 4, 17: 1} and presence(peak) == {17: 1}
    assert peak.path.name == "S005_001_00000011.png"
    assert warned == ["ck+: left out 1 without labels or pictures (S999/002)"]
    facs.rename(facs.with_name("S005_001_00000012_facs.txt"))
    message = line(tmp_path, lambda: list(make_dataset("ck+", tmp_path)))
    expected = "ck+: S005_001_00000012_facs.txt is about picture 12, and ROOT/CK+/cohn-kanade-images/S005/001 has none. Copy it again."
    assert message == expected


def test_ck_plus_unzipped_into_folders_named_like_the_archives(tmp_path, warned):
    for i in (1, 11):
        picture(tmp_path / "extended-cohn-kanade-images" / "cohn-kanade-images" / "S005" / "001" / f"S005_001_{i:08d}.png")
    text(tmp_path / "FACS_labels" / "FACS" / "S005" / "001" / "S005_001_00000011_facs.txt", "   9.0e+00   4.0e+00\n")
    assert [(r.subject, r.frame) for r in make_dataset("ck+", tmp_path)] == [("S005", 1), ("S005", 11)]
    (tmp_path / "extended-cohn-kanade-images" / "cohn-kanade-images").rename(tmp_path / "cohn-kanade-images")
    assert len(list(make_dataset("ck+", tmp_path))) == 2 and not warned


def test_unbc_an_empty_file_means_no_au_and_closed_eyes_are_presence(tmp_path, warned):
    take = Path("042-ll042") / "ll042t1aaaff"
    for i in (1, 2, 3):
        picture(tmp_path / "images" / take / f"ll042t1aaaff{i:03d}.png")
    labels = tmp_path / "Frame_Labels" / "FACS" / take
    text(labels / "ll042t1aaaff001_facs.txt", "")
    text(labels / "ll042t1aaaff002_facs.txt", "   4.3000000e+01   1.0e+00   0   0\n   6.0000000e+00   3.0e+00   0   0\n   50 1 0 0\n")
    text(labels / "ll042t1aaaff009_facs.txt", "")
    aus = (4, 6, 7, 9, 10, 12, 20, 25, 26, 43)
    data = make_dataset("unbc", tmp_path)
    first, second = list(data)
    assert known(first) == dict.fromkeys(aus, 0.0) and known(second) == dict.fromkeys(aus, 0.0) | {43: 1, 6: 3}
    assert presence(first) == presence(second) == {43: 2} and second.path.name == "ll042t1aaaff002.png"
    assert data.folds() == {1: {"042-ll042"}}
    assert warned == ["unbc: 1 of 3 coded frames of 042-ll042_ll042t1aaaff have no picture and are left out"]
    text(labels / "ll042t1aaaff008_facs.txt", "")
    text(labels / "ll042t1aaaff007_facs.txt", "")
    assert line(tmp_path, lambda: list(make_dataset("unbc", tmp_path))) == (
        "unbc: 3 of 5 coded frames of 042-ll042_ll042t1aaaff have no picture (codes 1-9, pictures 1-3). Copy both again."
    )


def test_affwild2_lines_are_pictures_from_one(tmp_path, warned):
    header = "AU1,AU2,AU4,AU6,AU7,AU10,AU12,AU15,AU23,AU24,AU25,AU26\n"
    row = "1,0,-1,0,0,0,1,0,0,0,1,0\n"
    empty = ",".join(["-1"] * 12) + "\n"
    labels = tmp_path / "6th ABAW Annotations" / "AU_Detection_Challenge"
    text(labels / "Train_Set" / "video1_left.txt", header + row + row + empty + row)
    text(labels / "Validation_Set" / "10-60.txt", header + row)
    text(labels / "Train_Set" / "gone.txt", header + row)
    for name in ("video1_left/00001.jpg", "video1_left/00003.jpg", "video1_left/00004.jpg", "10-60/00001.jpg"):
        picture(tmp_path / "cropped_aligned" / "cropped_aligned" / name)
    data = make_dataset("affwild2", tmp_path, every=1)
    found = data.records(next(c for c in data.clips if c.name == "video1_left"))
    assert [r.path.name for r in found] == ["00001.jpg", "00004.jpg"]  # 2 has no face, 3 no label
    assert known(found[0]) == {1: 1, 2: 0, 6: 0, 7: 0, 10: 0, 12: 1, 15: 0, 23: 0, 24: 0, 25: 1, 26: 0}
    assert set(presence(found[0]).values()) == {2} and data.folds() == {1: {"10-60"}}
    assert warned == ["affwild2: left out 1 without pictures (gone)"]
    assert [r.frame for r in make_dataset("affwild2", tmp_path).records(data.clips[-1])] == [1]  # every fifth
    by_three = make_dataset("affwild2", tmp_path, every=3)
    assert [r.path.name for r in by_three] == ["00001.jpg", "00001.jpg", "00004.jpg"]
    assert cache_folder(by_three, tmp_path) != cache_folder(data, tmp_path)
    text(labels / "Train_Set" / "video1_left.txt", header + row + row + "\n" + row)
    found = make_dataset("affwild2", tmp_path, every=1).records(data.clips[-1])
    assert [r.path.name for r in found] == ["00001.jpg", "00004.jpg"], "a blank line is a frame as well"
    text(labels / "Train_Set" / "video1_left.txt", header + row * 20)
    assert len(make_dataset("affwild2", tmp_path, every=1).records(data.clips[-1])) == 3
    assert warned[-1] == "affwild2: 17 of 20 labelled frames of video1_left have no picture and are left out"
    for path in (tmp_path / "cropped_aligned" / "cropped_aligned" / "10-60").iterdir():
        path.rename(path.with_name("00061.jpg"))
    assert line(tmp_path, lambda: list(make_dataset("affwild2", tmp_path))) == (
        "affwild2: none of the frames 1-1 of 10-60 has a picture (pictures 61-61). Copy both again."
    )
    text(labels / "Validation_Set" / "10-60.txt", row)
    message = "10-60.txt: no header of AUs. Expected 'AU1,AU2,AU4 ...' and then a line a frame."
    assert line(tmp_path, lambda: list(make_dataset("affwild2", tmp_path))) == message


def test_folder_of_videos_and_of_pictures(tmp_path, warned):
    videos = tmp_path / "videos"
    film(videos / "a.mp4", [60] * 4)
    film(videos / "b.mp4", [60] * 4)
    text(videos / "labels.csv", "clip,subject,frame,AU12\na.mp4,ann,0,3\na.mp4,ann,2,9\nb.mp4,ann,3,5\nc.mp4,bob,0,1\n")
    data = make_dataset("folder", videos)
    assert [(r.subject, r.sequence, r.frame, known(r), r.video) for r in data] == [
        ("ann", "a.mp4", 0, {12: 3}, True),
        ("ann", "b.mp4", 3, {12: 5}, True),
    ]
    assert warned == ["folder: left out 1 without a video (c.mp4)"]
    text(videos / "labels.csv", "clip,subject,frame,AU12\na.mp4,ann,0,3\na.mp4,bob,1,3\n")
    assert line(videos, lambda: make_dataset("folder", videos)) == "folder: labels.csv gives 'a.mp4' to ann and bob. Give one subject."
    text(videos / "labels.csv", "frame,AU12\n0,3\n")
    assert line(videos, lambda: make_dataset("folder", videos)) == (
        f"folder: labels.csv has neither a column 'clip' nor 'file'. Expected {DATASETS['folder'].layout}."
    )
    photos = tmp_path / "photos"
    for name in ("1.png", "2.png", "3.png"):
        picture(photos / name)
    text(photos / "labels.csv", "file,subject,AU06_c\n2.png,x,1\n1.png,y,0\n3.png,x,\n")
    assert [(r.subject, r.path.name, known(r), presence(r)) for r in make_dataset("folder", photos)] == [
        ("x", "2.png", {6: 1}, {6: 1}),
        ("y", "1.png", {6: 0}, {6: 1}),
    ]


def test_labels_in_seconds_are_of_the_frames_shown_then(tmp_path):
    """In a clip that does not run evenly: frames at 0, .1, 1 and 1.1 s."""
    with VideoWriter(tmp_path / "a.mp4", 10.0, (64, 48)) as clip:
        for i, at in enumerate((0.0, 0.1, 1.0, 1.1)):
            clip.write(np.full((48, 64, 3), 40 * i, np.uint8), at)
    text(tmp_path / "labels.csv", "clip,subject,timestamp,AU12\na.mp4,ann,0.1,3\na.mp4,ann,1.0,4\n")
    assert [(r.frame, known(r)) for r in make_dataset("folder", tmp_path)] == [(1, {12: 3}), (2, {12: 4})]
    text(tmp_path / "labels.csv", "clip,subject,au,start_s,end_s,value\na.mp4,ann,12,0.9,1.5,4\n")
    assert [(r.frame, known(r)) for r in make_dataset("folder", tmp_path)] == [(2, {12: 4}), (3, {12: 4})]


def test_videos_of_a_folder_are_known_by_their_whole_names(tmp_path, warned):
    """A point in a name begins no suffix, two suffixes of a stem are two clips, a name without one is that of the only such video."""
    for name in ("ann.mp4", "ann.day2.mp4", "both.mp4", "both.avi", "calm.mp4"):
        film(tmp_path / name, [60] * 3)
    text(tmp_path / "notes.txt", "no video")
    rows = "ann.mp4,ann,0,1\nann.day2.mp4,ann,0,4\nboth.mp4,bob,0,2\nboth.avi,cid,1,3\ncalm,dan,2,5\nboth,eve,0,1\n"
    text(tmp_path / "labels.csv", "clip,subject,frame,AU12\n" + rows)
    found = [(r.subject, r.sequence, r.frame, known(r)[12]) for r in make_dataset("folder", tmp_path)]
    assert sorted(found) == [
        ("ann", "ann.day2.mp4", 0, 4),
        ("ann", "ann.mp4", 0, 1),
        ("bob", "both.mp4", 0, 2),
        ("cid", "both.avi", 1, 3),
        ("dan", "calm.mp4", 2, 5),
    ]
    assert warned == ["folder: left out 1 without a video (both)"]
    done = track_dataset(make_dataset("folder", tmp_path), tmp_path / "cache", Grey())
    assert len(set(done.paths.values())) == 5 and done.frames == 5


def test_pictures_of_a_folder_are_labelled_as_evaluate_does(tmp_path, warned):
    """By name even where frames are numbered, rows that complete each other together, short rows, names without suffix or with folders."""
    for name in ("1.png", "2.png", "3.png"):
        picture(tmp_path / name)
    text(tmp_path / "labels.csv", "frame,AU06,AU12,file\n7,1,,2.png\n0,,3,2.png\n1,4,,shots\\\\3.png\n2,5,2,1\n3,1,1,9.png\n")
    found = {r.path.name: known(r) for r in make_dataset("folder", tmp_path)}
    assert found == {"2.png": {6: 1, 12: 3}, "3.png": {6: 4}, "1.png": {6: 5, 12: 2}}
    assert set(warned) == {"folder: left out 1 without a picture (9.png)"}
    text(tmp_path / "labels.csv", "AU06,file\n1,2.png\n2,2.png\n")
    assert line(tmp_path, lambda: list(make_dataset("folder", tmp_path))).startswith(
        "labels.csv lines 2 and 3 give AU06 two values (1 and 2)"
    )
    text(tmp_path / "labels.csv", "frame,AU06,file\n0,1,2.png\n1,2\n")
    assert line(tmp_path, lambda: list(make_dataset("folder", tmp_path))) == (
        "folder: labels.csv does not name a picture in each row's cell 'file'. Fill them in."
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("bp4d=X?frame_offset=x", "option frame_offset of bp4d is a whole number, not 'x'."),
        ("bp4d=X?frame_offset=-1.5", "option frame_offset of bp4d is a whole number, not '-1.5'."),
        ("disfa=X?present_at=two", "option present_at of disfa is a number, not 'two'."),
        ("affwild2=X?every=all", "option every of affwild2 is a whole number, not 'all'."),
        ("disfa=X?camera=2", "option camera of disfa is a word, not '2'."),
    ],
)
def test_options_of_another_type(source, message):
    given = parse_source(source)
    with pytest.raises(ConfigError) as error:
        make_dataset(given.name, given.path, **given.options)
    assert str(error.value) == message


# --- folds -----------------------------------------------------------------------------------------------------------------------------


def test_folds_part_the_people(tmp_path):
    assert sorted(map(len, DISFA_PARTS)) == [9, 9, 9] and len(frozenset().union(*DISFA_PARTS)) == 27
    assert not frozenset().union(*DISFA_PARTS) & {"SN014", "SN015", "SN019", "SN020", "SN022"}
    bp4d_people = {f"F{i:03d}" for i in range(1, 24)} | {f"M{i:03d}" for i in range(1, 19)}
    assert sum(map(len, BP4D_PARTS)) == 41 and frozenset().union(*BP4D_PARTS) == bp4d_people
    assert all(len(f) == 35 for f in BP4D_PLUS_FOLDS.values())
    plus_people = {f"F{i:03d}" for i in range(1, 83)} | {f"M{i:03d}" for i in range(1, 59)}
    assert frozenset().union(*BP4D_PLUS_FOLDS.values()) == plus_people
    data = make_dataset("disfa", disfa(tmp_path, {"SN001": [{}], "SN003": [{}]}))
    # ME-GraphAU: fold 1 trains on parts 1 and 2 and tests part 3.
    assert fold_people(data, 1) == {f"disfa/{s}" for s in DISFA_PARTS[2]} and fold_people(data, 3) >= {"disfa/SN001"}
    assert len(fold_people(data, None)) == 27
    assert line(tmp_path, lambda: fold_people(data, 4), ConfigError) == "disfa has the folds 1 to 3, not 4."


# --- tracking --------------------------------------------------------------------------------------------------------------------------


def test_tracking_writes_the_labels_beside_their_pictures_and_goes_on_where_it_stopped(tmp_path, capsys):
    root = disfa(tmp_path / "d", {"SN001": [{}, {12: 2}, {12: 3}, {}], "SN002": [{1: 1}]}, levels=[60, 120, 20, 200])
    film(root / "Videos_LeftCamera" / "LeftVideoSN002_comp.avi", [90])
    data, tracker = make_dataset("disfa", root), Grey()
    done = track_dataset(data, tmp_path / "cache", tracker)
    assert (done.frames, done.left_out, done.missing) == (4, 1, 0) and len(tracker.seen) == 5
    assert "disfa: 4 frames of 2 people; 1 without a face" in capsys.readouterr().err
    with np.load(done.paths["SN001"], allow_pickle=False) as file:
        shard = dict(file)
    assert shard["crop"].shape == (3, 112, 112, 3) and shard["crop"].dtype == np.uint8
    assert shard["landmarks"].shape == (3, 478, 3) and shard["landmarks"].dtype == shard["target"].dtype == np.float16
    np.testing.assert_allclose(shard["crop"][:, 56, 56, 0], [60, 120, 200], atol=4)  # the frame in which no face was found is not there
    assert shard["frame"].tolist() == [0, 1, 3] and shard["target"][:, AUS.index(12)].tolist() == [0, 2, 0]
    assert np.isnan(shard["target"][:, AUS.index(7)]).all() and shard["neutral"].tolist() == [True, False, True]
    assert str(shard["subject"]) == "SN001" and shard["occurrence"].shape == (3, len(AUS))
    np.testing.assert_allclose(shard["landmarks"][0], geometry.canonical(), atol=2e-3)

    done.paths["SN001"].unlink()
    again = track_dataset(data, tmp_path / "cache", tracker)
    assert len(tracker.seen) == 9 and (again.frames, again.left_out) == (4, 1)  # only that sequence
    track_dataset(data, tmp_path / "cache", tracker, ["SN002"])
    assert len(tracker.seen) == 9
    assert sorted(p.name for p in again.folder.iterdir()) == ["SN001.npz", "SN002.npz"]
    other = make_dataset("disfa", root, present_at=1)
    assert cache_folder(other, tmp_path) == cache_folder(data, tmp_path)  # the same frames
    assert cache_folder(data, tmp_path, "other") != cache_folder(data, tmp_path)


def test_people_who_join_a_data_set_later_are_nobody_else(tmp_path):
    """Their sequences are tracked beside those that are there, and each row is of its own person."""
    disfa(tmp_path / "d", {"SN002": [{}, {12: 2}], "SN004": [{}]})
    read = lambda: AUDataModule([("disfa", tmp_path / "d")], tmp_path / "c", validation=0, tracker=Grey()).train_arrays()  # noqa: E731
    assert read()["person"].tolist() == [0, 0, 1]
    disfa(tmp_path / "d", {"SN001": [{}, {1: 1}, {}], "SN002": [{}, {12: 2}], "SN004": [{}]})
    after = read()
    assert after["person"].tolist() == [0, 0, 0, 1, 1, 2] and after["target"][:, AUS.index(1)].tolist() == [0, 1, 0, 0, 0, 0]


def test_a_tracking_that_breaks_leaves_no_shard(tmp_path):
    data = make_dataset("disfa", disfa(tmp_path / "d", {"SN001": [{}] * 3}))

    class Breaks(Grey):
        def detect(self, frame: np.ndarray, timestamp: float, still: bool) -> list[Face]:
            if len(self.seen) == 2:
                raise KeyboardInterrupt
            return super().detect(frame, timestamp, still)

    with pytest.raises(KeyboardInterrupt):
        track_dataset(data, tmp_path / "cache", Breaks())
    assert list(cache_folder(data, tmp_path / "cache").iterdir()) == []


def test_a_frame_of_unknowns_is_nobodys_neutral_and_a_dark_clip_is_an_empty_shard(tmp_path):
    data = make_dataset("disfa", disfa(tmp_path / "d", {"SN001": [{}, {1: 9}, {}], "SN002": [{}] * 3}))
    film(tmp_path / "d" / "Videos_LeftCamera" / "LeftVideoSN002_comp.avi", [10] * 3)
    done = track_dataset(data, tmp_path / "cache", Grey())
    with np.load(done.paths["SN001"]) as file:
        assert file["neutral"].tolist() == [True, False, True]
    rows = read_shards([done.paths["SN002"], done.paths["SN001"]])
    assert len(rows["crop"]) == 3 and not rows["mask"][1, AUS.index(1)]
    ibug = type("Ibug", (Grey,), {"scheme": "ibug68"})()
    assert line(tmp_path, lambda: track_dataset(data, tmp_path / "new", ibug), ConfigError) == (
        "training data need a tracker of 478 points, and this one's scheme is 'ibug68'. Use mediapipe."
    )


def test_people_of_two_studies_are_two_though_their_clips_are_called_alike(tmp_path):
    for study in ("one", "two"):
        film(tmp_path / study / "a.mp4", [60])
        text(tmp_path / study / "labels.csv", "clip,frame,AU12\na.mp4,0,1\n")
    one, two = (make_dataset("folder", tmp_path / study) for study in ("one", "two"))
    assert one.person("a") == "folder/one/a"
    assert one.is_among("a", {"folder/one/a"}) and not two.is_among("a", {"folder/one/a"})
    assert two.is_among("a", {"folder/a"}), "a card of before does not say which"


def test_videos_are_tracked_as_predict_tracks_them(tmp_path, monkeypatch):
    """With the tracker's own defaults and the frames' own times."""
    with VideoWriter(tmp_path / "a.mp4", 10, (SIDE, SIDE)) as writer:
        for _ in range(4):
            writer.write(np.full((SIDE, SIDE, 3), 90, np.uint8))
    text(tmp_path / "labels.csv", "clip,frame,AU12\na.mp4,0,1\na.mp4,1,2\na.mp4,3,3\n")
    made, times = [], []

    class Timed(Grey):
        def detect(self, frame: np.ndarray, timestamp: float, still: bool) -> list[Face]:
            times.append(None if still else timestamp)
            return super().detect(frame, timestamp, still)

    monkeypatch.setattr(registry, "create", lambda *said: made.append(said) or Timed())
    track_dataset(make_dataset("folder", tmp_path), tmp_path / "cache")
    assert made == [("trackers", "mediapipe")] and times == pytest.approx([0, 0.1, 0.3])


def test_labels_that_changed_are_never_read_from_before(tmp_path):
    """Into the shard where the same frames are labelled, tracked again where others are."""
    film(tmp_path / "a.mp4", [60, 80, 20, 120])
    tracker = Grey()

    def tracked(rows: str) -> dict[str, np.ndarray]:
        text(tmp_path / "labels.csv", f"clip,subject,frame,AU12\n{rows}")
        done = track_dataset(make_dataset("folder", tmp_path), tmp_path / "cache", tracker)
        with np.load(done.paths["a.mp4"]) as file:
            return dict(file)

    first = tracked("a.mp4,ann,0,1\na.mp4,ann,2,2\na.mp4,ann,3,3\n")
    again = tracked("a.mp4,eve,0,0\na.mp4,eve,2,9\na.mp4,eve,3,5\n")  # 9 is unknown: its frame is no longer labelled
    assert len(tracker.seen) == 5 and again["target"][:, AUS.index(12)].tolist() == [0, 5]
    last = tracked("a.mp4,eve,0,4\na.mp4,eve,3,0\n")
    assert len(tracker.seen) == 5 and last["target"][:, AUS.index(12)].tolist() == [4, 0] and last["neutral"].tolist() == [False, True]
    assert first["neutral"].tolist() == [False, False] and [str(x["subject"]) for x in (first, last)] == ["ann", "eve"]
    assert last["counts"].tolist() == [2, 0, 0] and tracked("a.mp4,eve,1,0\na.mp4,eve,3,0\n")["frame"].tolist() == [1, 3]
    assert len(tracker.seen) == 7


def test_intensities_that_come_later_are_read_without_tracking_again(tmp_path):
    root, tracker = bp4d(tmp_path / "d"), Grey()
    track_dataset(make_dataset("bp4d", root), tmp_path / "cache", tracker)
    text(root / "AUCoding" / "AU_INT" / "AU06" / "F001_T1_AU06.csv", "2440,4\n2441,0\n2442,0\n2443,3\n")
    done = track_dataset(make_dataset("bp4d", root), tmp_path / "cache", tracker)
    with np.load(done.paths["F001_T1"]) as file:
        assert file["target"][:, AUS.index(6)].tolist() == [4, 0, 3] and not file["occurrence"][:, AUS.index(6)].any()
    assert len(tracker.seen) == 3


def test_what_was_lost_is_told_by_every_run_and_once_by_each(tmp_path, capsys):
    root = disfa(tmp_path / "d", {"SN001": [{}, {}, {}]}, levels=[60, 20])
    for _ in range(2):
        data = make_dataset("disfa", root)
        for _ in range(2):
            done = track_dataset(data, tmp_path / "cache", Grey())
            assert (done.frames, done.left_out, done.missing) == (1, 1, 1)
        said = capsys.readouterr().err
        assert said.count("disfa: 1 frames of 1 people; 1 without a face; 1 were labelled and could not be decoded") == 1


@pytest.mark.parametrize("left", [0, 10, 2000])
def test_a_shard_that_was_cut_off_is_made_again(tmp_path, left):
    data, tracker = make_dataset("disfa", disfa(tmp_path / "d", {"SN001": [{}, {12: 2}]})), Grey()
    shard = track_dataset(data, tmp_path / "cache", tracker).paths["SN001"]
    shard.write_bytes(shard.read_bytes()[:left])
    assert track_dataset(data, tmp_path / "cache", tracker).frames == 2 and len(tracker.seen) == 4


def test_names_that_no_disk_would_take(tmp_path):
    names = [30 * "\u8868" + f"{i}.mp4" for i in range(2)]
    for name in names:
        film(tmp_path / name, [60])
    text(tmp_path / "labels.csv", "clip,frame,AU12\n" + "".join(f"{name},0,3\n" for name in names))
    done = track_dataset(make_dataset("folder", tmp_path), tmp_path / "cache", Grey())
    assert done.frames == 2 and len(set(done.paths.values())) == 2


def test_single_pictures_that_cannot_be_read_are_left_out_and_many_are_not(tmp_path, warned):
    root = bp4d(tmp_path / "d")
    broken = root / "Sequences(2D+3D)" / "F001" / "T1"
    (broken / "02441.jpg").write_bytes(b"")
    done = track_dataset(make_dataset("bp4d", root), tmp_path / "a", Grey())
    assert (done.frames, done.missing) == (2, 1)
    assert warned == ["1 of 3 pictures of F001_T1 cannot be read and are left out (F001/T1/02441.jpg)"]
    (broken / "2443.jpg").write_bytes(b"")
    message = "2 of 3 pictures of F001_T1 cannot be read: copy or unzip them again (F001/T1/02441.jpg, F001/T1/2443.jpg)."
    assert line(root, lambda: track_dataset(make_dataset("bp4d", root), tmp_path / "b", Grey())) == message


def test_archives_that_are_damaged_or_packed_in_another_way(tmp_path, warned):
    text(tmp_path / "AUCoding" / "F001_T1.csv", "0,1,12\n1,0,1\n2,1,0\n3,1,1\n")
    path = tmp_path / "2D+3D" / "F001.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.write(picture(tmp_path / "x.png", 60 + i), f"T1/{i:04d}.png")
        second = archive.infolist()[1].header_offset + 30 + len("T1/0001.png")
    sound = path.read_bytes()
    path.write_bytes(sound[:second] + b"\xff" * 20 + sound[second + 20 :])
    assert track_dataset(make_dataset("bp4d+", tmp_path), tmp_path / "a", Grey()).frames == 2
    assert warned == ["1 of 3 pictures of F001_T1 cannot be read and are left out (F001.zip/T1/0001.png)"]
    for at, value in ((10, 9), (8, 1)):  # the method, Deflate64, and the flag of encryption, where each entry stands at the end
        locked = bytearray(sound)
        for entry in [i for i in range(len(sound)) if sound[i : i + 4] == b"PK\x01\x02"]:
            locked[entry + at] = value
        path.write_bytes(locked)
        data = make_dataset("bp4d+", tmp_path)
        assert line(tmp_path, lambda data=data: track_dataset(data, tmp_path / "b", Grey())).startswith(
            "3 of 3 pictures of F001_T1 cannot be read: copy or unzip them again (F001.zip/T1/0000.png, "
        )


def test_a_rendered_face_goes_through_the_default_tracker(tmp_path, world):
    shot = world.stills(world.person("validation", 3), 1, seed=1, neutral=1)
    (tmp_path / "p").mkdir()
    Image.fromarray(shot.images[0]).save(tmp_path / "p" / "1.png")
    text(tmp_path / "p" / "labels.csv", "file,AU12\n1.png,0\n")
    done = track_dataset(make_dataset("folder", tmp_path / "p"), tmp_path / "cache")
    with np.load(next(iter(done.paths.values()))) as file:
        assert done.frames == 1 and file["crop"].std() > 20 and file["neutral"].all()
        mouth = file["landmarks"][0, [61, 291]].astype(np.float32)
        np.testing.assert_allclose(mouth, geometry.canonical()[[61, 291]], atol=0.25)


# --- mixing ----------------------------------------------------------------------------------------------------------------------------


def two_sources(tmp_path: Path) -> list[tuple[str, Path]]:
    """DISFA with people of all parts, and BP4D, whose presence codes lack most of DISFA's AUs."""
    frames: list[dict[int, float]] = [{}, {12: 3}, {1: 2, 12: 1}, {}]
    names = ["SN001", "SN002", "SN003", "SN004", "SN006", "SN009"]
    root = disfa(tmp_path / "disfa", {n: frames for n in names}, levels=[50, 100, 150, 200])
    for subject in ("F001", "F002", "F003", "F004"):
        for task in ("T1", "T2"):
            text(tmp_path / "bp4d" / "AUCoding" / "AU_OCC" / f"{subject}_{task}.csv", "0,12,14\n1,0,0\n2,1,0\n3,0,1\n")
            for i in (1, 2, 3):
                picture(tmp_path / "bp4d" / "Sequences" / subject / task / f"{i}.png", 40 * i + 20)
    return [("disfa", root), ("bp4d", tmp_path / "bp4d")]


def test_sources_are_mixed_with_masks_and_nobody_is_on_two_sides(tmp_path, warned):
    module = AUDataModule(two_sources(tmp_path), tmp_path / "cache", fold=1, tracker=Grey(), validation=0.25)
    disfa_, bp4d_ = module._real()
    for dataset, tested in ((disfa_, {"SN003", "SN004"}), (bp4d_, {"F004"})):
        parts = module.split(dataset)
        assert set(parts["test"]) == tested and sorted(sum(parts.values(), [])) == dataset.subjects
        assert len(parts["validation"]) == 1
    data, other = module.train_arrays(), module.validation_arrays()
    assert len(data["crop"]) == 3 * 4 + 2 * 6 and len(other["crop"]) == 4 + 6
    assert np.unique(data["person"]).tolist() == [0, 1, 2, 3, 4]
    assert [np.unique(data["source"][data["person"] == p]).tolist() for p in range(5)] == [[0], [0], [0], [1], [1]]
    at = [AUS.index(a) for a in (1, 12, 14)]
    from_disfa, from_bp4d = data["source"] == 0, data["source"] == 1
    assert (data["mask"][from_disfa][:, at] == (True, True, False)).all() and (data["mask"][from_bp4d][:, at] == (False, True, True)).all()
    assert data["mask"][from_disfa].sum(1).tolist() == [12] * 12 and data["mask"][from_bp4d].sum(1).tolist() == [2] * 12
    assert not data["occurrence"][from_disfa].any() and (data["occurrence"][from_bp4d][:, at] == (0, 1, 1)).all()
    assert np.isfinite(data["target"]).all() and sorted(set(data["target"][from_disfa, AUS.index(12)].tolist())) == [0, 1, 3]
    # The picture is that of its label: grey levels of the films against the labels written above.
    level = data["crop"][:, 56, 56, 0].astype(int)
    for row in np.flatnonzero(from_disfa):
        truth = {50: (0, 0), 100: (0, 3), 150: (2, 1), 200: (0, 0)}[min((50, 100, 150, 200), key=lambda v: abs(v - level[row]))]
        assert (data["target"][row, AUS.index(1)], data["target"][row, AUS.index(12)]) == truth
    assert data["neutral"][from_disfa].sum() == 6 and data["neutral"][from_bp4d].sum() == 4
    card = module.card()
    assert card["sources"] == ["disfa", "bp4d"] and card["fold"] == 1
    expected = {disfa_.person(s) for s in ("SN001", "SN002", "SN006", "SN009")} | {f"bp4d/F00{i}" for i in (1, 2, 3)}
    assert set(card["people"]) == expected and not warned
    assert set(card["trained"]) == expected - module.validation_people


def test_a_person_of_two_data_sets_is_held_out_of_both(tmp_path):
    plus = tmp_path / "plus"
    for subject in ("SN001", "SN003"):
        for au in DISFA_AUS:
            text(plus / "Labels" / subject / "t" / f"AU{au}.txt", "000.jpg 0\n")
        picture(plus / "Images" / subject / "t" / "000.jpg")
    root = disfa(tmp_path / "d", {s: [{}] for s in ("SN001", "SN002", "SN003", "SN006")})
    module = AUDataModule([("disfa", root), ("disfa+", plus)], tmp_path / "c", fold=3, validation=0)
    first, second = module._real()
    assert module.split(first)["test"] == ["SN001", "SN002"] and module.split(second) == {
        "train": ["SN003"],
        "validation": [],
        "test": ["SN001"],
    }
    everybody = AUDataModule([("disfa", root)], tmp_path / "c", fold=None, validation=0)
    assert everybody.split(first)["train"] == ["SN001", "SN002", "SN003", "SN006"]
    assert AUDataModule([("disfa", root)], tmp_path / "c", validation=0.15, seed=1).split(first)["validation"]
    only = disfa(tmp_path / "only", {"SN003": [{}]})
    message = line(only, lambda: AUDataModule([("disfa", only)], tmp_path / "c", fold=1))
    assert message == "disfa: every person in ROOT is held out by fold 1; nobody is left to learn from."


def test_synthetic_shards_join_as_intensities_of_all_aus(tmp_path, monkeypatch):
    n = 4
    renders = {
        "crop": np.zeros((n, 112, 112, 3), np.uint8),
        "landmarks": np.zeros((n, 478, 3), np.float16),
        "pose": np.zeros((n, 3), np.float32),
        "target": np.full((n, len(AUS)), 2, np.float16),
        "person": np.array([7, 7, 9, 9], np.int32),
        "neutral": np.array([True, False, True, False]),
        "face_px": np.zeros(n),
    }
    asked = []
    monkeypatch.setattr("personalize.synth.dataset.load", lambda folder, split: asked.append((folder, split)) or renders)
    root = disfa(tmp_path / "d", {s: [{}, {}] for s in ("SN001", "SN002")})
    module = AUDataModule([Source("disfa", root), Source("synthetic", tmp_path / "renders")], tmp_path / "c", tracker=Grey(), validation=0)
    data = module.train_arrays()
    assert asked == [(tmp_path / "renders", "train")] and data["person"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert data["mask"][4:].all() and not data["occurrence"].any() and "face_px" not in data
    monkeypatch.undo()
    assert line(tmp_path, lambda: AUDataModule([("synthetic", tmp_path)], tmp_path).train_arrays()) == (
        "no synthetic shards 'train-*.npz' in ROOT. Give their folder: --data synthetic=DIR"
    )


def test_thinning_keeps_half_active_over_the_whole_time():
    rows, active = np.arange(100, 200), np.zeros(200, bool)
    active[190:200] = True
    kept = thin(rows, active, 20)
    assert len(kept) == 20 and active[kept].sum() == 10 and kept[0] == 100 and kept[9] == 189
    active[100:200] = True
    assert thin(rows, active, 20)[[0, -1]].tolist() == [100, 199] and len(thin(rows, active, 1000)) == 100
    active[:] = False
    assert len(thin(rows, active, 20)) == 20


def test_thinned_rows_keep_their_own_pictures(tmp_path):
    root = disfa(tmp_path / "d", {"SN001": [{}, {}, {}, {12: 4}, {}, {}]}, levels=[60, 80, 120, 160, 200, 240])
    done = track_dataset(make_dataset("disfa", root), tmp_path / "cache", Grey())
    rows = read_shards(done.paths.values(), per_person=3)
    np.testing.assert_allclose(rows["crop"][:, 56, 56, 0], [60, 160, 240], atol=4)
    assert rows["target"][:, AUS.index(12)].tolist() == [0, 4, 0]


def test_the_typical_neutral_is_no_open_mouth():
    landmarks = np.zeros((6, 478, 3), np.float16)
    landmarks[:, :, 1] = np.array([0.0, 0.01, 5.0, 0.02, 3.0, 9.0])[:, None]
    neutral = np.array([True, True, True, True, True, False])
    person = np.array([4, 4, 4, 4, 4, 4])
    # The median is 0.02: the three nearest of five, or the nearest; what is labelled active never is.
    assert typical(landmarks, neutral, person).tolist() == [True, True, False, True, False, False]
    assert typical(landmarks, neutral, person, True).tolist() == [False, False, False, True, False, False]
    assert not typical(landmarks, np.zeros(6, bool), person).any()


def rows_of_people() -> dict[str, np.ndarray]:
    """Source 0: ten people of 40 frames; source 1: two of 400; one more without a neutral."""
    person = np.concatenate([np.repeat(np.arange(10), 40), np.repeat([10, 11], 400), np.full(50, 12)])
    neutral = np.concatenate([np.arange(40) < 2 for _ in range(10)] + [np.arange(400) < 2] * 2 + [np.zeros(50, bool)])
    coded = {"mask": np.ones((len(person), len(AUS)), bool), "occurrence": np.zeros((len(person), len(AUS)), np.int8)}
    target = np.where(neutral, 0.0, 0.5)[:, None].repeat(len(AUS), 1).astype(np.float16)  # sums to 11: nobody else is calm
    return {"person": person, "neutral": neutral, "source": (person >= 10).astype(int), "target": target, **coded}


def test_now_and_then_the_reference_is_a_calm_picture():
    data = rows_of_people()
    data["target"][5::40] = 0.1  # sums to 2.2
    data["occurrence"][5:200:40] = 1  # presence says nothing of how calm
    references = np.array([row for batch in MixedBatches(data, 4, 5, 3, steps=400) for row in batch[:4]])
    calm = ~data["neutral"][references]
    assert set(references[calm] % 40) == {5} and references[calm].min() >= 200
    assert 0.05 < calm.mean() < 0.2


def test_ranks_see_different_frames_and_sources_count_alike():
    data = rows_of_people()
    ranks = [list(MixedBatches(data, 4, 5, 3, steps=10, rank=r, world=2)) for r in (0, 1)]
    pictures = [[row for batch in batches for row in batch[4:]] for batches in ranks]
    assert not set(pictures[0]) & set(pictures[1]) and all(len(set(p)) == len(p) == 200 for p in pictures)
    for batch in ranks[0] + ranks[1]:
        references, rest = batch[:4], np.reshape(batch[4:], (4, 5))
        assert data["neutral"][references].all()
        assert (data["person"][rest] == data["person"][references][:, None]).all()
        assert not (rest == np.array(references)[:, None]).any()
    shown = np.array(pictures[0] + pictures[1])
    assert np.bincount(data["source"][shown]).tolist() == [200, 200] and 12 not in data["person"][shown]
    # The same hands whatever the number of ranks is told afterwards; another epoch, another order.
    alone = list(MixedBatches(data, 4, 5, 3, steps=20))
    assert alone[0::2] == ranks[0] and alone[1::2] == ranks[1]
    sampler = MixedBatches(data, 4, 5, 3, steps=10, rank=0, world=2)
    assert list(sampler) == ranks[0] and list(sampler) != ranks[0]
    sampler.set_epoch(0)
    assert list(sampler) == ranks[0] and len(sampler) == 10
    assert len(MixedBatches(data, 4, 5, 3, world=2)) == len(data["person"]) // 40
    data["neutral"][:] = False
    with pytest.raises(InputError, match="^nobody in the training data has a neutral frame: bring recordings with a calm face, or add"):
        MixedBatches(data, 4, 5, 3)


def test_lightning_finds_set_epoch():
    from lightning.fabric.utilities.data import _set_sampler_epoch
    from torch.utils.data import DataLoader

    sampler = MixedBatches(rows_of_people(), 4, 5, 3)
    _set_sampler_epoch(DataLoader(list(range(2000)), batch_sampler=sampler), 6)
    assert sampler.epoch == 6


def test_the_loader_hands_out_batches_with_masks(tmp_path):
    module = AUDataModule(two_sources(tmp_path), tmp_path / "cache", fold=1, people=2, each=2, tracker=Grey(), validation=0.25)
    batch = next(iter(module.train_dataloader()))
    assert batch["crop"].shape == (6, 3, 112, 112) and batch["landmarks"].shape == (6, 478, 3) and batch["landmarks"].dtype == torch.float32
    assert batch["target"].shape == batch["mask"].shape == batch["occurrence"].shape == (6, len(AUS)) and batch["mask"].dtype == torch.bool
    assert batch["person"][2:].tolist() == batch["person"][:2].repeat_interleave(2).tolist()
    assert sum(len(b["crop"]) for b in module.val_dataloader()) == 10
    assert "crop" not in MixedRows(module.train_arrays(), pictures=False).__getitems__([0, 1])


# --- loss ------------------------------------------------------------------------------------------------------------------------------


def test_the_loss_of_presence_against_its_closed_form():
    logits = torch.tensor([[[2.0, 1.0, 0.0, -1.0, -2.0]] * 5], dtype=torch.float64)
    target, mask = torch.tensor([[1.5, 1.0, 0.0, 1.0, 0.0]]), torch.tensor([[True, True, True, False, True]])
    occurrence = torch.tensor([[0, 1, 2, 1, 0]])

    def bce(logit: float, y: float) -> float:
        p = 1 / (1 + np.exp(-logit))
        return -(y * np.log(p) + (1 - y) * np.log(1 - p))

    ordinal = sum(bce(z, y) + bce(z, 0) for z, y in zip((2, 1, 0, -1, -2), (1, 0.5, 0, 0, 0), strict=True))
    expected = (ordinal + bce(2, 1) + bce(1, 0)) / 4  # P(y >= 1) of a present, P(y >= 2) of an absent one
    assert ordinal_loss(logits, target, mask, occurrence=occurrence).item() == pytest.approx(expected, abs=1e-6)
    # A flag means level 1; what is masked has no gradient; nothing known costs nothing.
    flags = torch.tensor([[False, True, True, False, False]])
    assert ordinal_loss(logits, target, mask, occurrence=flags).item() == pytest.approx((ordinal + bce(2, 1) + bce(2, 0)) / 4, abs=1e-6)
    logits.requires_grad_(True)
    ordinal_loss(logits, target, mask, occurrence=occurrence).backward()
    moved = logits.grad[0] != 0
    assert moved.tolist() == [[True] * 5, [True] + [False] * 4, [False, True, False, False, False], [False] * 5, [True] * 5]
    assert ordinal_loss(logits, target, torch.zeros_like(mask), occurrence=occurrence).item() == 0


# --- tables ----------------------------------------------------------------------------------------------------------------------------


def readings() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    n = 240
    target = np.zeros((n, len(AUS)))
    target[:, AUS.index(12)] = rng.integers(0, 6, n)
    target[:, AUS.index(1)] = rng.integers(0, 2, n)
    mask = np.zeros(target.shape, bool)
    mask[:, AUS.index(12)] = True
    mask[: n - 20, AUS.index(1)] = True
    occurrence = np.zeros(target.shape, int)
    occurrence[:, AUS.index(1)] = 1
    return {
        "prediction": np.clip(0.6 * target + rng.normal(0.5, 0.8, target.shape), 0, 5),
        "target": target,
        "mask": mask,
        "subject": np.repeat([f"S{i}" for i in range(6)], 40),
        "fold": np.repeat([1, 1, 2, 2, 3, 3], 40),
        "thresholds": np.full(len(AUS), 1.7),
        "occurrence": occurrence,
    }


def test_field_tables_against_scikit_learn_and_hand():
    from sklearn.metrics import f1_score, roc_auc_score

    given = readings()
    table = field_tables(**given)
    assert list(table["aus"]) == ["AU01", "AU12"] and (table["subjects"], table["frames"], table["folds"]) == (6, 240, [1, 2, 3])
    k, p = AUS.index(12), given["prediction"]
    for fold in (1, 2, 3):
        rows = given["fold"] == fold
        got, truth, score = table["aus"]["AU12"]["folds"][str(fold)], given["target"][rows, k], p[rows, k]
        assert got["f1"] == pytest.approx(f1_score(truth >= 2, score >= 1.7))
        assert got["f1_micro"] == pytest.approx(f1_score(truth >= 2, score >= 1.7, average="micro"))
        assert got["auc"] == pytest.approx(roc_auc_score(truth >= 2, score))
        assert got["pcc"] == pytest.approx(np.corrcoef(truth, score)[0, 1])
        assert got["mae"] == pytest.approx(np.abs(truth - score).mean())
        # ICC(3,1) of two raters: (variance of sums - variance of differences) / their sum.
        a, b = np.var(truth + score), np.var(truth - score)
        assert got["icc"] == pytest.approx((a - b) / (a + b)) and (got["frames"], got["present"]) == (80, (truth >= 2).sum())
    for m in ("f1", "auc", "icc", "mae"):
        by_fold = [table["aus"]["AU12"]["folds"][f][m] for f in "123"]
        assert table["aus"]["AU12"]["mean"][m] == pytest.approx(np.mean(by_fold))
    assert table["mean"]["f1"] == pytest.approx((table["aus"]["AU01"]["mean"]["f1"] + table["aus"]["AU12"]["mean"]["f1"]) / 2)
    # Presence has no intensity, its 1 is present, and unknown frames are not counted.
    au1 = table["aus"]["AU01"]
    assert np.isnan([au1["mean"][m] for m in ("icc", "pcc", "mae")]).all() and au1["folds"]["3"]["frames"] == 60
    rows = given["mask"][:, AUS.index(1)] & (given["fold"] == 3)
    expected = f1_score(given["target"][rows, AUS.index(1)], p[rows, AUS.index(1)] >= 1.7)
    assert au1["folds"]["3"]["f1"] == pytest.approx(expected)
    # Intervals are over people.
    each = [
        f1_score(given["target"][given["subject"] == s, k] >= 2, p[given["subject"] == s, k] >= 1.7) for s in np.unique(given["subject"])
    ]
    interval = table["aus"]["AU12"]["people"]["f1"]
    assert interval["mean"] == pytest.approx(np.mean(each)) and interval["n"] == 6
    assert min(each) < interval["low"] < interval["mean"] < interval["high"] < max(each)
    assert field_tables(**given, present_at=1)["aus"]["AU12"]["folds"]["1"]["present"] > table["aus"]["AU12"]["folds"]["1"]["present"]


def test_tables_are_printed_and_written(tmp_path, capsys):
    table = field_tables(**readings())
    print_tables("DISFA", table)
    out = capsys.readouterr().out
    assert "DISFA: 240 frames of 6 people, folds 1, 2, 3" in out and "F1-micro" in out
    row = next(x for x in out.splitlines() if x.split()[:1] == ["AU01"]).split()
    assert row[1] == "220" and row[3] == f"{table['aus']['AU01']['mean']['f1']:.3f}" and "-" in row
    write_tables({"other": table}, tmp_path / "new" / "table.5")
    write_tables({"disfa": table}, tmp_path / "new" / "table.json")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["table.5.csv", "table.5.json", "table.csv", "table.json"]
    stored = json.loads((tmp_path / "new" / "table.json").read_text())["disfa"]
    assert stored["aus"]["AU01"]["mean"]["icc"] is None and stored["mean"]["f1"] == pytest.approx(table["mean"]["f1"])
    with (tmp_path / "new" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["au"], r["fold"]) for r in rows] == [(a, f) for a in ("AU01", "AU12") for f in ("1", "2", "3", "mean")] + [("mean", "mean")]
    assert float(rows[4]["icc"]) == pytest.approx(table["aus"]["AU12"]["folds"]["1"]["icc"], abs=1e-6) and rows[0]["icc"] == ""


def test_evaluation_reads_one_person_at_a_time_and_refuses_people_it_learned_from(tmp_path, warned):
    source, asked = two_sources(tmp_path)[0], []

    def read(data: dict[str, np.ndarray], with_neutral: bool) -> np.ndarray:
        asked.append((len(np.unique(data["person"])), int(data["neutral"].sum()), with_neutral))
        return data["target"].astype(np.float32) if with_neutral else np.ones(data["target"].shape, np.float32)

    thresholds = np.full(len(AUS), 2.0)
    tables = evaluate_sources(read, [source], tmp_path / "cache", thresholds, fold=1, tracker=Grey())
    assert list(tables) == ["disfa", "disfa+neutral"] and asked == [(1, 1, False), (1, 1, True)] * 2
    plain, neutral = tables["disfa"], tables["disfa+neutral"]
    # Two test people with four frames each; the one that served as neutral is judged in neither.
    assert plain["frames"] == neutral["frames"] == 6 and plain["folds"] == [1] and len(plain["aus"]) == 12
    assert neutral["aus"]["AU12"]["mean"]["f1"] == 1 and neutral["mean"]["mae"] == 0
    assert plain["aus"]["AU12"]["mean"]["f1"] == 0 and plain["aus"]["AU12"]["mean"]["mae"] == pytest.approx((1 + 2 + 0) / 3)
    # The mean that papers quote of DISFA is of eight AUs, without AU17.
    assert plain["usual"]["aus"] == [f"AU{a:02d}" for a in (1, 2, 4, 6, 9, 12, 25, 26)]
    assert plain["usual"]["mean"]["f1_micro"] == pytest.approx((6 + 2 * 4 / 6) / 8)  # never called present: right but for AU1 and AU12
    assert plain["mean"]["f1_micro"] == pytest.approx((10 + 2 * 4 / 6) / 12)
    everybody = evaluate_sources(read, [source], tmp_path / "cache", thresholds, tracker=Grey())["disfa"]
    assert everybody["folds"] == [1, 2, 3] and everybody["subjects"] == 6
    twice = evaluate_sources(read, [source, ("synthetic", None), source], tmp_path / "cache", thresholds, 1, tracker=Grey())
    assert list(twice) == ["disfa", "disfa+neutral", "disfa (2)", "disfa (2)+neutral"] and twice["disfa (2)"]["frames"] == 6
    assert warned == ["synthetic renders are judged by themselves: give their folder alone; left out here"]
    learned = ["disfa/SN003", "disfa/SN001"]
    call = lambda: evaluate_sources(read, [source], tmp_path / "cache", thresholds, 1, learned)  # noqa: E731
    assert line(tmp_path, call) == (
        "disfa: the model learned from 1 of these 2 people (SN003). Give the fold that its training left out: --fold"
    )


def test_a_table_says_how_many_frames_no_score_counts(tmp_path, capsys):
    """A tracker that finds fewer faces must not look better for it; in a run that reads what was tracked before, too."""
    frames: list[dict[int, float]] = [{}, {12: 3}, {12: 4}, {}]
    root = disfa(tmp_path / "disfa", {n: frames for n in ("SN003", "SN004")}, levels=[50, 100, 20, 200])

    def read(data: dict[str, np.ndarray], with_neutral: bool) -> np.ndarray:
        return data["target"].astype(np.float32)

    for _ in range(2):
        tables = evaluate_sources(read, [("disfa", root)], tmp_path / "cache", np.full(len(AUS), 2.0), fold=1, tracker=Grey())
        assert all((t["without_face"], t["not_decoded"]) == (2, 0) for t in tables.values())
        print_tables("disfa", tables["disfa"])
        assert "disfa: 4 frames of 2 people, fold 1; left out: 2 without a face" in capsys.readouterr().out


# --- command line ----------------------------------------------------------------------------------------------------------------------


def test_sources_of_the_command_line(tmp_path):
    assert parse_source("synthetic") == Source("synthetic", None, {})
    assert parse_source("synthetic=/a/b") == Source("synthetic", Path("/a/b"), {})
    assert parse_source("/a/renders") == Source("synthetic", Path("/a/renders"), {})  # as before there were data sets
    assert parse_source("bp4d+=/a?frame_offset=-2&present_at=1.5") == Source("bp4d+", Path("/a"), {"frame_offset": -2, "present_at": 1.5})
    for given, message in (
        ("disfa", "'disfa' needs its folder: --data disfa=/path/to/it"),
        ("bp44d=/x", "unknown data set 'bp44d'. Did you mean 'bp4d'? There is: "),
        ("disfa=/x?camera", "'camera' in --data disfa=/x?camera is no option. Write option=value."),
    ):
        with pytest.raises(ConfigError) as caught:
            parse_source(given)
        assert str(caught.value).startswith(message)


def test_the_flags_of_base_fit_and_evaluate():
    _, args = parse(["base", "fit", "--data", "disfa=/d", "--data", "synthetic", "--fold", "2", "seed=3"])
    assert args.sources == [Source("disfa", Path("/d")), Source("synthetic")] and args.fold == 2 and args.overrides == ["seed=3"]
    assert args.data == ["disfa=/d", "synthetic"] and args.cache == "runs/tracked"
    _, args = parse(["base", "evaluate", "--data", "renders"])
    assert args.data == "renders" and args.sources == [Source("synthetic", Path("renders"))] and args.fold is None
    _, args = parse(["base", "fit"])
    assert args.data is None and args.sources == []
    with pytest.raises(ConfigError, match="^--fold chooses people of a data set: name one, --data NAME=PATH.$"):
        parse(["base", "evaluate", "--data", "renders", "--fold", "1"])
    with pytest.raises(ConfigError, match="^--fold must be at least 1, not 0.$"):
        parse(["base", "evaluate", "--data", "disfa=/d", "--fold", "0"])
