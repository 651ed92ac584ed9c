"""What cannot be used: exit code 2, one line on stderr, and no file that was not there before."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Clip, Said, write_clip

from personalize import predict
from personalize.aus import AUS
from personalize.profile import Profile
from personalize.weights import load_base

Run = Callable[..., Said]


def listing(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too, and what they hold."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command in ``tmp_path`` that must fail; returns its line without 'error: '."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path) -> str:
        before = listing(tmp_path)
        said = command(*words)
        assert said.code == 2 and said.out == ""
        assert len(said.err) == 1 and said.err[0].startswith("error: "), said.err
        assert listing(tmp_path) == before
        return said.err[0].removeprefix("error: ")

    return run


def save_profile(folder: Path, **changes: Any) -> Path:
    base, k = load_base(), len(AUS)
    given = {"name": "her", "base_name": base.name, "base_sha256": base.sha256, "gate": np.ones(k), "trust": np.ones(k)} | changes
    return Profile(**given).save(folder)


WORDS = b"hello there\n" * 200
NOT_MEDIA = "is neither a video nor a picture that can be read: give a clip such as .mp4, .mov, .webm or .avi"
LAYOUTS = "Give 'frame', 'timestamp' or 'file' and then AU columns (AU06, ...), or 'au,start_s,end_s,value'."
NO_FACE = "give one where a face is at least 40 pixels wide, lit and mostly turned to the camera"


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("nope.mp4", None, "no such file: nope.mp4"),
        ("empty.mp4", b"", "empty.mp4 is empty: copy or export it again"),
        ("notes.mp4", WORDS, f"notes.mp4 {NOT_MEDIA}"),
        ("notes.txt", WORDS, f"notes.txt {NOT_MEDIA}"),
        ("face.jpg", b"\x00\x01nothing", "face.jpg is not a picture that can be read: save it again as .jpg or .png"),
    ],
)
def test_unusable_file(refused: Callable[..., str], tmp_path: Path, verb: str, name: str, content: bytes | None, line: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "labels.csv").write_text("frame,AU06\n0,1\n")
    extra = ["--labels", "labels.csv", "--output", "e.json"] if verb == "evaluate" else ["--overlay", "seen.mp4"]
    assert refused(verb, "--input", name, *extra) == line


def test_no_face(refused: Callable[..., str], tmp_path: Path) -> None:
    wall = np.random.default_rng(0).integers(60, 200, (20, 120, 160, 3)).astype(np.uint8)
    write_clip(tmp_path / "wall.mp4", wall)
    (tmp_path / "labels.csv").write_text("frame,AU06\n0,1\n")
    assert refused("predict", "--input", "wall.mp4", "--overlay", "seen.mp4") == f"no face found in wall.mp4: {NO_FACE}"
    assert (
        refused("evaluate", "--input", "wall.mp4", "--labels", "labels.csv", "--output", "e.json")
        == f"no face found in wall.mp4: {NO_FACE}"
    )


def test_earlier_results_stay(refused: Callable[..., str], tmp_path: Path) -> None:
    """A command that fails leaves what an earlier one wrote under the same names."""
    write_clip(tmp_path / "wall.mp4", np.full((20, 120, 160, 3), 90, np.uint8))
    (tmp_path / "wall_aus.csv").write_text("mine\n")
    (tmp_path / "seen.mp4").write_text("mine\n")
    assert refused("predict", "--input", "wall.mp4", "--overlay", "seen.mp4").startswith("no face found in wall.mp4: ")


def test_no_such_face(face_clip: Clip, refused: Callable[..., str]) -> None:
    line = refused("predict", "--input", face_clip.path, "--face", "3", "--overlay", "seen.mp4")
    assert line.startswith("no face 3 in face.mp4: there is 0 (45 frames, ")


def test_cut_off_before_the_index(face_clip: Clip, refused: Callable[..., str], tmp_path: Path) -> None:
    data = face_clip.path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: data.rindex(b"moov") - 4])
    assert refused("predict", "--input", "cut.mp4") == "cut.mp4 is a video that was cut off before its index: copy or export it again"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--output", "."], ". is a folder: give the name of a file to write."),
        (["--output", "a.xlsx"], "a.xlsx would be a table of commas under another name: call it a.csv."),
        (["--output", "nowhere/a.csv"], "cannot write nowhere/a.csv: there is no such folder"),
        (["--overlay", "nowhere/a.mp4"], "cannot write nowhere/a.mp4: there is no such folder"),
        (["--overlay", "mine.mp4"], "mine.mp4 is the input itself: give another name to write to."),
        (["--output", "mine.mp4"], "mine.mp4 is the input itself: give another name to write to."),
        (["--output", "a.mp4", "--overlay", "./a.mp4"], "--output and --overlay are both a.mp4: give two names."),
        (["--overlay", "a.txt"], "cannot write a.txt: '.txt' is no video format, use .mp4"),
        (["--overlay", "a.png"], "cannot write a.png: '.png' is no video format, use .mp4"),
        (["--tracker", "mediapip"], "unknown tracker 'mediapip'. Did you mean 'mediapipe'? There is: face_alignment, mediapipe."),
        (["--base", "other"], "no base model at other.safetensors: give 'base-s', or the path that 'personalize base fit --output' wrote."),
    ],
)
def test_unusable_targets_and_names(face_clip: Clip, refused: Callable[..., str], tmp_path: Path, words: list[str], line: str) -> None:
    (tmp_path / "mine.mp4").write_bytes(face_clip.path.read_bytes())
    assert refused("predict", "--input", "mine.mp4", *words) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "no such label file: 'labels.csv'."),
        (
            "",
            f"label file 'labels.csv' is empty. {LAYOUTS}",
        ),
        (
            "frme,AU06\n0,1\n",
            f"labels.csv line 1: wrong columns: frme, AU06. Did you mean 'frame' instead of 'frme'? {LAYOUTS}",
        ),
        (
            "frame,smile\n0,1\n",
            f"labels.csv has no AU column. It has: frame, smile. {LAYOUTS}",
        ),
        (
            "frame,AU06\n0,7\n",
            "labels.csv line 2: 7 in column 'AU06' is outside 0-5 (0 absent to 5 maximum; 9, -1, 999 or empty: unknown).",
        ),
        ("frame,AU06\n500,1\n", "labels.csv: no row is about this clip (frames 0 to 44). Is it another clip's?"),
        ("file,AU06\na.png,1\n", "labels.csv labels files by name, and this clip is a video. Use a 'frame' or 'timestamp' column."),
        ("clip,frame,AU06\nb.mp4,0,1\n", "labels.csv has no row whose clip is 'face.mp4'. It has: b.mp4."),
    ],
)
def test_unusable_labels(face_clip: Clip, refused: Callable[..., str], tmp_path: Path, text: str | None, line: str, request: Any) -> None:
    if text is not None:
        (tmp_path / "labels.csv").write_text(text)
    read = text is not None and text.startswith(("frame,AU06\n500", "file,"))  # known only once the clip was read, which is said
    words = ["evaluate", "--input", face_clip.path, "--labels", "labels.csv", "--output", "e.json"]
    if not read:
        assert refused(*words) == line
        return
    before = listing(tmp_path)
    said = request.getfixturevalue("command")(*words)
    assert said.code == 2 and said.err[-1] == f"error: {line}" and len([x for x in said.err if x.startswith("error")]) == 1
    assert listing(tmp_path) == before


def test_labelled_frames_show_nobody(face_clip: Clip, command: Run, tmp_path: Path) -> None:
    images = face_clip.images[:20].copy()
    images[:5] = 90
    (tmp_path / "labels.csv").write_text("frame,AU06\n0,1\n3,2\n")
    said = command("evaluate", "--input", write_clip(tmp_path / "a.mp4", images), "--labels", tmp_path / "labels.csv")
    assert said.code == 2
    assert said.err[-1] == "error: none of the 2 labelled frames of a.mp4 shows face 0: label frames where it is seen."


@pytest.mark.parametrize("value", ["0", "-1", "6", "nan"])
def test_threshold_out_of_range(face_clip: Clip, refused: Callable[..., str], tmp_path: Path, value: str) -> None:
    (tmp_path / "labels.csv").write_text("frame,AU06\n0,1\n")
    line = refused("evaluate", "--input", face_clip.path, "--labels", "labels.csv", f"--threshold={value}")
    assert line == f"--threshold is an intensity above 0 and up to 5, not {value}."


def test_profiles(face_clip: Clip, refused: Callable[..., str], tmp_path: Path) -> None:
    words = ["predict", "--input", face_clip.path, "--profile"]
    assert refused(*words, "runs/her") == (
        "no profile at 'runs/her': there is no such folder. Make one with: personalize fit --identity CLIP --name NAME."
    )
    folder = save_profile(Path("good"))
    sha = load_base().sha256[:12]
    save_profile(Path("other"), base_sha256="0" * 64)
    assert refused(*words, "other") == (
        f"the profile of 'her' was made for base 'base-s' (000000000000), and this is base 'base-s' ({sha}). "
        "Use that base, or fit again with this one."
    )
    (folder / "profile.safetensors").write_bytes(b"\x00" * 9)
    assert refused(*words, "good").startswith("'good/profile/profile.safetensors' is broken (")
    (folder / "manifest.json").write_text("{")
    assert refused(*words, "good") == "'good/profile/manifest.json' is broken: no JSON. Copy it again from where it was made, or fit again."
    (folder / "manifest.json").unlink()
    assert (
        refused(*words, "good")
        == "the profile in 'good/profile' is incomplete: manifest.json is missing. Copy the whole folder, or fit again."
    )
    save_profile(Path("named"), base_name="hers", base_sha256="0" * 64)
    assert (
        refused(*words, "named")
        == "the profile named was fitted on the base model 'hers', which is not the shipped one: give its path with --base."
    )
    save_profile(Path("adapted"), adapter="lorra", delta={"head.latent.bias": torch.zeros(22)})
    assert refused(*words, "adapted").startswith("unknown adapter 'lorra'. Did you mean 'lora'? There is: ")


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_disk_full_at_the_end(face_clip: Clip, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table cannot be put in its place: the overlay, complete by then, goes as well; with an earlier overlay nothing more is lost."""
    monkeypatch.setattr(predict.os, "replace", full)
    said = command("evaluate", "--input", face_clip.path, "--labels", _labels(tmp_path), "--output", tmp_path / "e.json")
    assert (said.code, said.err[-1]) == (2, "error: the disk is full. Free some space and run the command again.")
    assert os.listdir(tmp_path) == ["labels.csv"]
    said = command("predict", "--input", face_clip.path, "--output", tmp_path / "a.csv")
    assert (said.code, said.err[-1]) == (2, "error: the disk is full. Free some space and run the command again.")
    assert os.listdir(tmp_path) == ["labels.csv"]


def _labels(folder: Path) -> Path:
    (folder / "labels.csv").write_text("frame,AU25\n0,1\n20,3\n")
    return folder / "labels.csv"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(folder)], capture_output=True)
    except OSError:
        pytest.skip("mount is missing")
    if done.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full(face_clip: Clip, command: Run, small_disk: Path, tmp_path: Path) -> None:
    said = command("predict", "--input", face_clip.path, "--output", tmp_path / "a.csv", "--overlay", small_disk / "seen.mp4")
    assert said.code == 2 and [x for x in said.err if not x.startswith(("Reading ", "Drawing "))] == [said.err[-1]]
    assert said.err[-1].startswith(f"error: the disk is full while writing {small_disk}/")
    assert said.err[-1].endswith(". Free some space and run the command again.")
    assert os.listdir(small_disk) == [] and not (tmp_path / "a.csv").exists()
    (small_disk / "filler").write_bytes(bytes(36 * 1024))
    said = command("predict", "--input", face_clip.path, "--output", small_disk / "a.csv", "--overlay", tmp_path / "seen.mp4")
    assert said.code == 2 and said.err[-1] == "error: the disk is full. Free some space and run the command again."
    assert os.listdir(small_disk) == ["filler"] and not (tmp_path / "seen.mp4").exists()


def test_interrupted(face_clip: Clip, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C half-way: no table, no half video."""
    from personalize.reader import Reader

    whole, calls = Reader.read, []

    def read(self: Reader, observations: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, observations)

    monkeypatch.setattr(Reader, "read", read)
    said = command("predict", "--input", face_clip.path, "--output", tmp_path / "a.csv", "--overlay", tmp_path / "seen.mp4")
    assert said.code == 130 and said.err == ["Interrupted. Run the command again to start anew."]
    assert os.listdir(tmp_path) == []


def test_nothing_of_json_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from personalize import evaluate

    evaluate.write_json(tmp_path / "e.json", {"a": float("nan"), "b": {"c": 1.5}})
    assert json.loads((tmp_path / "e.json").read_text()) == {"a": None, "b": {"c": 1.5}}
    monkeypatch.setattr(evaluate.os, "replace", full)
    with pytest.raises(OSError):
        evaluate.write_json(tmp_path / "f.json", {})
    assert os.listdir(tmp_path) == ["e.json"]
