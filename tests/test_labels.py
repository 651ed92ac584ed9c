"""Label files: layouts, spellings, alignment with frames, and exact messages for what cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from personalize.aus import AUS
from personalize.errors import InputError
from personalize.labels import Extent, read_labels

FPS = 30
AU6, AU12, AU17 = AUS.index(6), AUS.index(12), AUS.index(17)


def write(tmp_path: Path, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding=encoding)
    return path


def frames(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(n), np.arange(n) / FPS


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr("personalize.labels._warn", lines.append)
    return lines


@pytest.mark.parametrize("spelling", ["AU06", "AU6", "au_6", "AU06_r", "6", "Int_au_6", " au6 "])
def test_frame_rows_in_any_spelling(tmp_path, spelling, warned):
    table = read_labels(write(tmp_path, f"frame,{spelling},AU12\n0,0,5\n2,3.5,\n3,9,-1\n4,999,2\n"))
    target, known = table.align(*frames(5))
    assert target.dtype == np.float32 and known.dtype == bool and target.shape == (5, len(AUS))
    np.testing.assert_array_equal(target[:, AU6], [0, 0, 3.5, 0, 0])
    np.testing.assert_array_equal(known[:, AU6], [True, False, True, False, False])
    np.testing.assert_array_equal(target[:, AU12], [5, 0, 0, 0, 2])
    np.testing.assert_array_equal(known[:, AU12], [True, False, False, False, True])
    assert known.sum() == 4 and not table.occurrence.any() and table.aus == (6, 12) and not warned


@pytest.mark.parametrize(
    ("header", "values", "occurrence"),
    [
        ("AU06,AU12", "0,1", [True, True]),  # nothing but 0 and 1: presence
        ("AU06,AU12", "1,3", [False, False]),  # one scale: 1 is 'trace' beside a 3
        ("AU06,AU12", "1,0.4", [False, False]),
        ("AU06_c,AU12_r", "1,1", [True, False]),  # the name says it
        ("Occ_au_6,Int_au_12", "1,1", [True, False]),
        ("AU06_c,AU12", "1,4", [True, False]),
    ],
)
def test_occurrence_is_told_from_intensity(tmp_path, header, values, occurrence):
    table = read_labels(write(tmp_path, f"frame,{header}\n0,{values}\n1,0,0\n"))
    assert [bool(table.occurrence[k]) for k in (AU6, AU12)] == occurrence


def test_an_intensity_beside_its_occurrence_is_taken(tmp_path):
    table = read_labels(write(tmp_path, "frame,AU06_c,AU06_r\n0,1,2.5\n"))
    assert table.values[0, AU6] == 2.5 and not table.occurrence[AU6]


@pytest.mark.parametrize(
    ("text", "occurrence"),
    [
        ("frame,AU06\n0,A\n1,0\n", False),
        ("frame,AU06\n0,1\n1,0\n", True),
        ("frame,AU06r\n0,1\n1,0\n", False),
        ("frame,AU06c,AU06r\n0,1,1\n1,0,0\n", False),
        ("frame,AU06occurrence\n0,1\n", True),
    ],
)
def test_a_trace_is_an_intensity(tmp_path, text, occurrence):
    table = read_labels(write(tmp_path, text))
    assert table.values[0, AU6] == 1 and bool(table.occurrence[AU6]) is occurrence


def test_spans_hold_from_start_up_to_end(tmp_path):
    text = "au,start_s,end_s,value\nAU06,0.1,0.3,2\n6,0.3,0.4,0\nau_12,0,0.2,4\n12,0.3,0.5,9\n"
    target, known = read_labels(write(tmp_path, text)).align(np.arange(5), np.arange(5) / 10)
    np.testing.assert_array_equal(target[:, AU6], [0, 2, 2, 0, 0])
    np.testing.assert_array_equal(known[:, AU6], [False, True, True, True, False])
    np.testing.assert_array_equal(known[:, AU12], [True, True, False, False, False])


def test_spans_agree_with_a_brute_force_reading(tmp_path):
    rng = np.random.default_rng(0)
    time = np.sort(rng.uniform(0, 20, 400))
    edges = np.sort(rng.uniform(0, 20, 20)).reshape(-1, 2)
    values = rng.integers(0, 6, 10)
    text = "au,start_s,end_s,value\n" + "".join(f"17,{a!r},{b!r},{v}\n" for (a, b), v in zip(edges.tolist(), values, strict=True))
    target, known = read_labels(write(tmp_path, text)).align(np.arange(400), time)
    for i, t in enumerate(time):
        hit = [v for (a, b), v in zip(edges, values, strict=True) if a <= t < b]
        assert known[i, AU17] == bool(hit) and target[i, AU17] == (hit[0] if hit else 0)


def test_state_and_clip_columns(tmp_path):
    path = write(tmp_path, "clip,au,start_s,end_s,state\na.mp4,6,0,1,1\nb.mp4,6,0,1,0\nfolder\\b.mp4,12,0,1,1\n")
    table = read_labels(path, clip="/somewhere/b.mp4")
    target, known = table.align(*frames(10))
    assert table.occurrence[AU6] and table.occurrence[AU12]
    assert (target[:, AU6] == 0).all() and (target[:, AU12] == 1).all() and known[:, [AU6, AU12]].all()
    assert read_labels(path, clip="a.mov").values[0, AU6] == 1  # the same clip in another container
    with pytest.raises(InputError) as caught:
        read_labels(path, clip="c.mp4")
    assert str(caught.value) == "labels.csv has no row whose clip is 'c.mp4'. It has: a.mp4, b.mp4."
    text = "clip,frame,AU06\n" + "a.mp4,0,1\na.day2.mp4,0,4\nb,0,2\nc.mov,0,3\nc.avi,0,5\n"
    for clip, value in (("a.mp4", 1), ("a", 1), ("a.day2.mp4", 4), ("a.day2", 4), ("b.mp4", 2), ("c.avi", 5)):
        assert read_labels(write(tmp_path, text), clip).values[:, AU6].tolist() == [value], clip
    with pytest.raises(InputError) as caught:
        read_labels(path, "c.mp4")
    assert str(caught.value) == "labels.csv has rows of c.avi and c.mov, and 'c.mp4' may be either. Write the clip's own name."
    # Who grades one clip grades all: 1 is an intensity in b as well, though b has nothing else. Presence is presence in both.
    for text, graded in (("a,0,3\na,1,0\nb,0,1\nb,1,0\n", True), ("a,0,B\nb,0,1\n", True), ("a,0,1\nb,0,1\nb,1,0\n", False)):
        table = read_labels(write(tmp_path, "clip,frame,AU06\n" + text), "b")
        assert table.occurrence[AU6] == (not graded) and table.values[0, AU6] == 1, text
    spans = write(tmp_path, "clip,au,start_s,end_s,value\na,12,0,1,4\nb,6,0,1,1\n")
    assert not read_labels(spans, "b").occurrence.any()
    path = write(tmp_path, "clip,au,start_s,end_s,state\na.mp4,6,0,1,1\nb.mp4,6,0,1,0\n")
    with pytest.raises(InputError, match=r"^labels.csv labels several clips and none was chosen. It has: a.mp4, b.mp4.$"):
        read_labels(path)


def test_timestamps_go_to_the_nearest_frame(tmp_path, warned):
    path = write(tmp_path, "timestamp,AU06\n0.101,3\n0.19,2\n0.30,4\n7,5\n")
    target, known = read_labels(path).align(np.arange(5), np.arange(5) / 10)
    np.testing.assert_array_equal(target[:, AU6], [0, 3, 2, 4, 0])
    np.testing.assert_array_equal(known[:, AU6], [False, True, True, True, False])
    assert warned == ["labels.csv: 1 of 4 rows lie outside the clip (0.00 to 0.40 s) and were left out."]


@pytest.mark.parametrize(
    ("text", "frames_of_it"),
    [
        ("frame,AU06\n3,1\n599,2\n700,3\n", {3, 599}),
        ("timestamp,AU06\n1.1,1\n7.049,2\n59.9,4\n70,3\n", {11, 70, 599}),
        ("au,start_s,end_s,value\n6,1.1,1.3,1\n6,59.9,61,2\n6,70,71,3\n", {11, 12, 599}),
    ],
)
def test_of_a_long_clip_of_which_few_frames_are_kept(tmp_path, warned, text, frames_of_it):
    """Each tenth of 600 frames, and those that a row is about: they alone get its label, and only what lies after the end is outside."""
    table, clip = read_labels(write(tmp_path, text)), Extent(600, 0.1, 60.0)
    about = {i for i in range(600) if table.is_about(i, i / 10, "", clip.step)}
    assert about == frames_of_it
    kept = np.array(sorted(about | set(range(0, 600, 10))))
    target, known = table.align(kept, kept / 10, clip=clip)
    assert set(kept[known[:, AU6]].tolist()) == frames_of_it
    where = "frames 0 to 599" if table.kind == "frame" else "0.00 to 60.00 s"
    assert warned == [f"labels.csv: 1 of {len(table.keys)} rows lie outside the clip ({where}) and were left out."]
    some = kept[kept < 300]
    table.align(some, some / 10, clip=clip)
    assert warned[1:] == warned[:1], "the kept frames' end is not the clip's"


def test_pictures_that_rows_are_about(tmp_path):
    table = read_labels(write(tmp_path, "file,AU06\nimg/a.png,1\n"))
    assert [table.is_about(0, 0.0, file, 1.0) for file in ("a.png", "x/a.jpg", "b.png", "")] == [True, True, False, False]


def test_files_by_name_and_by_stem(tmp_path):
    table = read_labels(write(tmp_path, "file,AU06,AU12\nimg/a.png,1,3\nb.png,2,0\n"))
    target, known = table.align(np.arange(3), np.zeros(3), ["b.png", "c.png", "a.png"])
    np.testing.assert_array_equal(target[:, AU6], [2, 0, 1])
    np.testing.assert_array_equal(known[:, AU6], [True, False, True])
    target, _ = table.align(np.arange(2), np.zeros(2), ["a.jpg", "b.jpg"])
    np.testing.assert_array_equal(target[:, AU6], [1, 2])
    # As predict writes of photographs: the name says which it is.
    table = read_labels(write(tmp_path, "file,frame,AU06\nb.png,0,5\nc.png,1,0\n"))
    target, known = table.align(np.arange(3), np.zeros(3), ["a.png", "b.png", "c.png"])
    assert known[:, AU6].tolist() == [False, True, True] and target[:, AU6].tolist() == [0, 5, 0]
    table = read_labels(write(tmp_path, "file,frame,AU06\na.mp4,0,5\na.mp4,1,0\n"))
    assert table.align(*frames(3), [""] * 3)[0][:, AU6].tolist() == [5, 0, 0], "a name in every row is the clip's"
    table = read_labels(write(tmp_path, "file,AU06,AU12\nimg/a.png,1,3\nb.png,2,0\n"))
    with pytest.raises(InputError, match="labels files by name, and this clip is a video"):
        table.align(*frames(3), [""] * 3)


def test_rows_outside_the_clip_are_one_warning(tmp_path, warned):
    read_labels(write(tmp_path, "frame,AU06\n0,1\n1,2\n5,3\n9,4\n")).align(*frames(4))
    assert warned == ["labels.csv: 2 of 4 rows lie outside the clip (frames 0 to 3) and were left out."]


def test_frames_without_a_face_are_no_warning(tmp_path, warned):
    target, known = read_labels(write(tmp_path, "frame,AU06\n0,1\n1,2\n2,3\n")).align(np.array([0, 2]), np.array([0, 2 / FPS]))
    np.testing.assert_array_equal(target[:, AU6], [1, 3])
    assert known[:, AU6].all() and not warned


def test_frames_from_one_get_a_hint(tmp_path, warned):
    read_labels(write(tmp_path, "frame,AU06\n1,1\n2,2\n3,3\n")).align(*frames(3))
    assert warned == ["labels.csv: 1 of 3 rows lie outside the clip (frames 0 to 2) and were left out; frames count from 0 here."]


def test_two_faces_in_a_frame_get_the_same_labels(tmp_path):
    target, _ = read_labels(write(tmp_path, "frame,AU06\n0,1\n1,2\n")).align(np.array([0, 0, 1]), np.array([0, 0, 0.1]))
    np.testing.assert_array_equal(target[:, AU6], [1, 1, 2])


def test_aus_that_the_base_does_not_read_are_one_warning(tmp_path, warned):
    table = read_labels(write(tmp_path, "frame,AU06,AU45,AU11\n0,1,2,3\n"))
    assert table.left_out == (11, 45)
    assert warned == ["labels.csv: AU11, AU45 left out: the base model does not read them."]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("frame,AU06\n0,2.5\n", "utf-8-sig"),
        ("frame,AU06\n0,2.5\n", "utf-16"),
        ("frame;AU06;note\n0;2,5;Lächeln\n", "cp1252"),
        ("frame;AU06\r\n\r\n0;2.5\r\n", "utf-8"),
        ("frame\tAU06\n0\t2.5\n", "utf-8"),
        ("Frame, AU06 ,confidence\n0, 2.5 ,0.9\n", "utf-8"),
        ('"frame","AU06"\n"0","2.5"\n', "utf-8"),
    ],
)
def test_what_spreadsheets_write_is_read(tmp_path, text, encoding):
    assert read_labels(write(tmp_path, text, encoding=encoding)).values[0, AU6] == 2.5


def test_zeros_of_failed_frames_are_unknown(tmp_path):
    table = read_labels(write(tmp_path, "frame,success,AU06_r\n0,1,2.5\n1,0,0\n"))
    assert table.values[0, AU6] == 2.5 and np.isnan(table.values[1, AU6])


def test_facs_letters(tmp_path):
    np.testing.assert_array_equal(read_labels(write(tmp_path, "frame,AU06\n0,A\n1,e\n2,0\n")).values[:, AU6], [1, 5, 0])


LAYOUTS = "Give 'frame', 'timestamp' or 'file' and then AU columns (AU06, ...), or 'au,start_s,end_s,value'."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "label file '{path}' is empty. " + LAYOUTS),
        ("frame,AU06\n", "label file '{path}' has a header and no rows."),
        ("frames,AU06\n0,1\n", "labels.csv line 1: wrong columns: frames, AU06. Did you mean 'frame' instead of 'frames'? " + LAYOUTS),
        ("name,smile\nx,1\n", "labels.csv line 1: wrong columns: name, smile. " + LAYOUTS),
        ("frame,smile\n0,1\n", "labels.csv has no AU column. It has: frame, smile. " + LAYOUTS),
        ("au,start_s,value\n6,0,1\n", "labels.csv has no column 'end_s'; spans need au,start_s,end_s,value. It has: au, start_s, value."),
        ("au,start_s,end_s\n6,0,1\n", "labels.csv has no column 'value'; spans need au,start_s,end_s,value. It has: au, start_s, end_s."),
        ("frame,AU06\n0,1\n\n1,much\n", "labels.csv line 4: 'much' in column 'AU06' is not a number."),
        ("frame,AU06\nx,1\n", "labels.csv line 2: 'x' in column 'frame' is not a number."),
        ("frame,AU06\n0.5,1\n", "labels.csv line 2: frame 0.5 is not a whole number. Is the column 'timestamp'?"),
        (
            "frame,AU06\n0,7\n",
            "labels.csv line 2: 7 in column 'AU06' is outside 0-5 (0 absent to 5 maximum; 9, -1, 999 or empty: unknown).",
        ),
        ("frame,AU06_c\n0,3\n", "labels.csv line 2: 3 in column 'AU06_c', which holds occurrences: 0 or 1."),
        ("frame,AU06\n0,1,2\n", "labels.csv line 2 has 3 cells, the header has 2."),
        ("frame,AU06,AU6\n0,1,1\n", "labels.csv: columns 'AU06' and 'AU6' are both AU06. Keep one of them."),
        ("frame,AU06\n0,\n1,9\n", "labels.csv: every value is unknown (empty, 9, -1 or 999). Fill in some intensities, 0-5."),
        ("au,start_s,end_s,value\nsmile,0,1,1\n", "labels.csv line 2: 'smile' is no AU. Write it as AU06 or 6."),
        (
            "au,start_s,end_s,value\n6,2,1,1\n",
            "labels.csv line 2: the span ends at 1 s and starts at 2 s. The end must come after the start.",
        ),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_labels(path)
    assert str(caught.value) == message.replace("{path}", str(path))


def test_files_that_are_no_label_files(tmp_path):
    with pytest.raises(InputError) as caught:
        read_labels(tmp_path / "no.csv")
    assert str(caught.value) == f"no such label file: '{tmp_path / 'no.csv'}'."
    with pytest.raises(InputError, match="cannot read label file"):
        read_labels(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"\x00\x00\x00\x20ftypisom\x00")
    with pytest.raises(InputError, match=r"is not text. Save it as CSV \(UTF-8\).$"):
        read_labels(tmp_path / "clip.mp4")
    with pytest.raises(InputError, match="labels only AU45, and the base model reads none of them. It reads: AU01, "):
        read_labels(write(tmp_path, "frame,AU45\n0,1\n"))


def test_contradictions_and_foreign_files_are_errors(tmp_path):
    with pytest.raises(InputError) as caught:
        read_labels(write(tmp_path, "frame,AU06\n0,1\n0,2\n")).align(*frames(2))
    assert str(caught.value) == "labels.csv lines 2 and 3 give AU06 two values (1 and 2) at the same time. Keep one of them."
    with pytest.raises(InputError) as caught:
        read_labels(write(tmp_path, "frame,AU06\n90,1\n91,2\n")).align(*frames(2))
    assert str(caught.value) == "labels.csv: no row is about this clip (frames 0 to 1). Is it another clip's?"


def test_rows_that_complete_each_other_are_merged(tmp_path):
    target, known = read_labels(write(tmp_path, "frame,AU06,AU12\n0,3,\n0,,2\n0,3,2\n")).align(*frames(1))
    assert target[0, AU6] == 3 and target[0, AU12] == 2 and known.sum() == 2


@pytest.mark.parametrize("text", ["timestamp,AU06\n0,3\n", "au,start_s,end_s,value\n6,0,1,3\n"])
def test_times_say_nothing_of_photographs(tmp_path, text):
    table = read_labels(write(tmp_path, text))
    assert table.align(np.arange(1), np.zeros(1))[1].any()
    with pytest.raises(InputError) as caught:
        table.align(np.arange(2), np.zeros(2), ["a.png", "b.png"])
    assert str(caught.value) == "labels.csv labels times, and photographs have none. Use a 'file' column with their names."
