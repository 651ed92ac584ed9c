"""``predict`` end to end, as a user runs it, on rendered people: the table's contract, its numbers, the overlay, phones' clips."""

from __future__ import annotations

import csv
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import FPS, Clip, Said, expected_of, on_canvas, write_clip

from personalize import predict, registry
from personalize.aus import AUS
from personalize.errors import ProfileError
from personalize.faces import Observation
from personalize.profile import Profile
from personalize.reader import Reader, Reading, batch_of, lasting
from personalize.tracks import observe
from personalize.video import Frame, open_media
from personalize.weights import KNOTS, load_base

Run = Callable[..., Said]

HEAD = ["frame", "face_id", "timestamp", "confidence", "success", "pose_Rx", "pose_Ry", "pose_Rz"]
AU_NAMES = [f"AU{n:02d}" for n in (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 16, 17, 18, 20, 22, 23, 24, 25, 26, 28, 43)]
HEADER = HEAD + [f"{a}_r" for a in AU_NAMES] + [f"{a}_c" for a in AU_NAMES]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def intensities(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array([[float(r[f"{a}_r"]) for a in AU_NAMES] for r in rows])


def encode(path: Path, images: np.ndarray, pts: list[int] | None = None, pix: str = "yuv420p", rate: int = 15, **options: str) -> Path:
    """A clip as some camera writes it; pts: milliseconds."""
    if "libx264" not in av.codecs_available:
        pytest.skip("needs libx264")
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = images.shape[2], images.shape[1], pix
        if pts:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if pts:
                frame.pts, frame.time_base = pts[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Set a clip's display matrix, as phones do."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16
    a, b, c, d = (v << 16 for v in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def read_once(face_clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[dict[str, str]], Path]:
    """Header, rows and overlay of the clip, by the command as it is installed, in a process of its own."""
    folder = tmp_path_factory.mktemp("read")
    words = ["predict", "--input", str(face_clip.path), "--overlay", "seen.mp4"]
    done = subprocess.run([sys.executable, "-m", "personalize.cli", *words], cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "wrote face_aus.csv: 45 rows, and seen.mp4" and done.stdout == ""
    assert sorted(os.listdir(folder)) == ["face_aus.csv", "seen.mp4"]
    table = folder / "face_aus.csv"
    return table.read_text().splitlines()[0].split(","), rows_of(table), folder / "seen.mp4"


def test_columns_and_rows(face_clip: Clip, read_once: tuple[list[str], list[dict[str, str]], Path]) -> None:
    header, rows, _ = read_once
    assert header == HEADER and len(header) == 8 + 2 * 22
    assert [r["frame"] for r in rows] == [str(i) for i in range(45)]
    assert [float(r["timestamp"]) for r in rows] == pytest.approx([i / FPS for i in range(45)], abs=1e-3)
    assert {r["face_id"] for r in rows} == {"0"} and {r["success"] for r in rows} == {"1"}
    values = intensities(rows)
    assert values.min() >= 0 and values.max() <= 5 and np.ptp(values, axis=0).max() > 0
    confidence = np.array([float(r["confidence"]) for r in rows])
    assert confidence.min() >= 0 and confidence.max() <= 1


def test_presence_follows_the_table(read_once: tuple[list[str], list[dict[str, str]], Path]) -> None:
    """Whoever thresholds the intensities of the table finds its occurrences."""
    _, rows, _ = read_once
    present = np.array([[int(r[f"{a}_c"]) for a in AU_NAMES] for r in rows])
    assert np.array_equal(present, intensities(rows) >= np.round(load_base().thresholds, 3))


def test_pose_is_the_rendered_one(world: Any, tmp_path: Path, command: Run) -> None:
    """Yaw of the head as it was rendered, with OpenFace's sign; the mesh of a stranger's face allows a few degrees."""
    from personalize.synth.scene import Scene

    person, rng = world.person("validation", 3), np.random.default_rng(4)
    yaw = np.linspace(-0.4, 0.4, 12).astype(np.float32)
    pose = np.stack([np.zeros(12), yaw, np.zeros(12)], 1).astype(np.float32)
    still = [np.zeros((12, n), np.float32) for n in (len(AUS), _extras(person))]
    shots = list(world.render(person, still[0], still[1], pose, np.zeros((12, 2), np.float32), [Scene.sample(rng)]))
    clip = write_clip(tmp_path / "turn.mp4", np.concatenate([s.images for s in shots]))
    assert command("predict", "--input", clip, "--output", tmp_path / "turn.csv").code == 0
    got = np.array([float(r["pose_Ry"]) for r in rows_of(tmp_path / "turn.csv")])
    assert np.corrcoef(got, yaw)[0, 1] > 0.98 and np.abs(got - yaw).max() < np.radians(9)


def _extras(person: Any) -> int:
    from personalize.synth.expression import sample_still

    return int(sample_still(np.random.default_rng(0))[1].shape[0])


def test_numbers_are_the_networks(face_clip: Clip, read_once: tuple[list[str], list[dict[str, str]], Path]) -> None:
    """Frame by frame through the network's own forward, one at a time: batches mix up no rows. Reported as the card says."""
    from personalize import registry
    from personalize.tracks import observe
    from personalize.video import open_media

    base = load_base()
    tracker = registry.create("trackers", "mediapipe", {})
    want = []
    with torch.inference_mode():
        for _, seen in observe(open_media(face_clip.path), tracker):
            crop = torch.from_numpy(seen[0].crop.transpose(2, 0, 1).copy())[None]
            points = torch.from_numpy(np.asarray(seen[0].landmarks, np.float32))[None]
            want.append(base.net(crop, points, torch.ones(1, dtype=torch.bool))["intensity"][0].numpy())
    tracker.close()
    table = base.card["readout"]["alone"]
    said = [[np.interp(x, t, KNOTS) for x, t in zip(row, table, strict=True)] for row in intensities(read_once[1])]
    assert np.abs(np.array(said) - np.stack(want)).max() < 2e-3


def test_overlay_is_the_clip_with_drawings(face_clip: Clip, read_once: tuple[list[str], list[dict[str, str]], Path]) -> None:
    with av.open(str(read_once[2])) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, float(stream.average_rate or 0)) == (320, 240, FPS)
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
    assert len(frames) == 45
    change = np.abs(np.stack(frames).astype(int) - face_clip.images).mean(-1)
    # All pixels of the panel of bars change, those of the face hardly: two encodings.
    assert (change.mean(0) > 25).mean() > 0.1
    assert np.median(change[:, 60:180, 140:180]) < 6


def test_frames_without_a_face(face_clip: Clip, tmp_path: Path, command: Run) -> None:
    images = face_clip.images[:30].copy()
    images[:6] = images[:6, :, :1]  # only the wall
    images[12:18] = 90
    said = command("predict", "--input", write_clip(tmp_path / "gap.mp4", images), "--output", tmp_path / "gap.csv")
    assert said.code == 0 and said.warnings == []
    rows = rows_of(tmp_path / "gap.csv")
    assert [int(r["frame"]) for r in rows] == list(range(30))
    empty = [i for i, r in enumerate(rows) if r["success"] == "0"]
    assert empty == [*range(6), *range(12, 18)]
    for i in empty:
        assert {rows[i][c] for c in HEADER if c not in ("frame", "timestamp", "confidence", "success")} == {""}
        assert float(rows[i]["confidence"]) == 0
    assert {r["face_id"] for i, r in enumerate(rows) if i not in empty} == {"0"}  # the same person before and after the gap


def test_late_face_is_said(face_clip: Clip, tmp_path: Path, command: Run) -> None:
    images = face_clip.images[:40].copy()
    images[:20] = 90
    said = command("predict", "--input", write_clip(tmp_path / "late.mp4", images), "--output", tmp_path / "late.csv")
    assert said.warnings == ["warning: late.mp4: the face appears late, first seen at 1.3 s; what comes before is left out"]


def test_folder_of_stills(face_clip: Clip, tmp_path: Path, command: Run) -> None:
    from PIL import Image

    folder = tmp_path / "stills"
    folder.mkdir()
    for n, i in ((2, 5), (10, 30), (1, 0)):
        Image.fromarray(face_clip.images[i]).save(folder / f"p{n}.png")
    Image.fromarray(np.full((240, 320, 3), 120, np.uint8)).save(folder / "p11.png")
    said = command("predict", "--input", folder, "--output", tmp_path / "stills.csv")
    assert said.code == 0
    assert said.warnings == ["warning: stills: left out 1 of 4 pictures, in which no face was found"]
    rows = rows_of(tmp_path / "stills.csv")
    assert list(rows[0]) == ["file", *HEADER]
    assert [(r["file"], r["success"]) for r in rows] == [("p1.png", "1"), ("p2.png", "1"), ("p10.png", "1"), ("p11.png", "0")]
    said = command("predict", "--input", folder, "--output", folder / "p2.png")
    assert (said.code, said.err[-1]) == (2, f"error: {folder / 'p2.png'} is the input itself: give another name to write to.")


def test_photograph(face_photo: Path, tmp_path: Path, command: Run) -> None:
    said = command("predict", "--input", face_photo, "--output", tmp_path / "photo.csv", "--overlay", tmp_path / "photo.mp4")
    assert said.code == 0 and len(said.warnings) == 1
    assert said.warnings[0].startswith("warning: photo.png is one photograph: ")
    rows = rows_of(tmp_path / "photo.csv")
    assert [(r["file"], r["frame"], r["success"]) for r in rows] == [("photo.png", "0", "1")]


@pytest.fixture(scope="module")
def pair(face_clip: Clip, other_face: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people side by side, the right one smaller."""
    import cv2

    small = np.stack([cv2.resize(f, (176, 176), interpolation=cv2.INTER_AREA) for f in other_face])
    left = face_clip.images[: len(small), :, 40:280]
    return write_clip(tmp_path_factory.mktemp("pair") / "pair.mp4", np.concatenate([left, on_canvas(small, (176, 240))], 2))


def test_two_people(pair: Path, read_once: tuple[list[str], list[dict[str, str]], Path], tmp_path: Path, command: Run) -> None:
    said = command("predict", "--input", pair, "--output", tmp_path / "all.csv")
    assert said.code == 0 and len(said.warnings) == 1
    assert said.warnings[0].startswith("warning: pair.mp4 shows 2 people: took face ")
    rows = rows_of(tmp_path / "all.csv")
    assert [(int(r["frame"]), r["face_id"]) for r in rows] == [(i, f) for i in range(24) for f in ("0", "1")]
    taken = said.warnings[0].split("took face ")[1][0]
    for face in ("0", "1"):
        said = command("predict", "--input", pair, "--face", face, "--output", tmp_path / "one.csv")
        assert said.code == 0 and said.warnings == []
        assert rows_of(tmp_path / "one.csv") == [r for r in rows if r["face_id"] == face]
    for face, words in (("1", ["--face", "1"]), (taken, [])):
        assert command("predict", "--input", pair, *words, "--no-all-faces", "--output", tmp_path / "one.csv").code == 0
        assert rows_of(tmp_path / "one.csv") == [r for r in rows if r["face_id"] == face], "the same readings, others left out"
    # The larger one was taken: his head turns as it does in the clip of him alone.
    alone = [float(r["pose_Ry"]) for r in read_once[1][:24]]
    off = {face: np.abs(np.array([float(r["pose_Ry"]) for r in rows if r["face_id"] == face]) - alone).mean() for face in ("0", "1")}
    assert taken == min(off, key=lambda face: off[face]) and off[taken] < 0.05


def observation(frame: int, face: int) -> Observation:
    blank = np.zeros((112, 112, 3), np.uint8)
    turned = np.zeros(3, np.float32)
    return Observation(frame, frame / 25, face, blank, None, turned, np.zeros((2, 3)), np.zeros((478, 3)), np.zeros(4), 1.0, 0.5)


def test_one_face_only_keeps_a_row_a_frame() -> None:
    table = predict.Table(still=False)
    for frame, faces in enumerate([[0, 1], [1], [], [1, 0]]):
        seen = [observation(frame, f) for f in faces]
        nothing = np.zeros((len(seen), len(AUS)), np.float32)
        reading = Reading(nothing, None, np.full(len(seen), 0.5, np.float32), nothing, nothing)
        table.add(Frame(frame, frame / 25, np.zeros((1, 1, 3), np.uint8)), seen, reading)
    assert {r[1][3] for r in table.rows} == {0.0, 0.25}, "confidence is the tracker's, times quality, times certainty"
    table.keep(0)
    assert [(r[1][0], r[1][1], r[1][4], r[2] is None) for r in table.rows] == [
        (0, 0, 1, False),
        (1, -1, 0, True),
        (2, -1, 0, True),
        (3, 0, 1, False),
    ]


def test_another_day_is_taken_out_of_the_profiles_person_alone() -> None:
    """Two faces, 10 s; the personal model reads 0.8 above the base throughout, 0.1 of it also in the person's clip."""
    base, k = load_base(), len(AUS)
    reader = Reader(base, Profile("her", base.name, base.sha256, lead=np.full(k, 0.1, np.float32)))
    table, rng = predict.Table(still=False), np.random.default_rng(0)
    expected = rng.uniform(0, 3, (101, 2, k)).astype(np.float32)
    for i in range(101):
        seen, own = [observation(i, 0), observation(i, 1)], expected[i] + 0.8
        reading = Reading(base.report(expected[i]), reader.personal(own), np.ones(2, np.float32), expected[i], 0 * expected[i], own)
        table.add(Frame(i, i / 10, np.zeros((1, 1, 3), np.uint8)), seen, reading)
    before = list(table.rows)
    table.settle(reader, 1)
    for i, (was, now) in enumerate(zip(before, table.rows, strict=True)):
        assert was.meta == now.meta and np.array_equal(was.base, now.base)
        if now.meta[1] == 0:
            assert np.array_equal(was.personal, now.personal)
        else:
            assert now.personal == pytest.approx(base.report(expected[i // 2, 1:] + 0.1)[0], abs=1e-4)


def save_profile(folder: Path, offset: float, **changes: Any) -> Path:
    """A profile that changes nothing but what it takes out as rest."""
    base, k = load_base(), len(AUS)
    given = {"base_name": base.name, "base_sha256": base.sha256} | changes
    per_au: dict[str, Any] = {
        "gate": np.full(k, 0.5),
        "trust": np.full(k, 0.2),
        "offsets": np.full(k, offset),
        "thresholds": np.full(k, 1.25),
    }
    return Profile(name="her", **given, **per_au).save(folder)


@pytest.mark.parametrize("offset", [0.1, 3.0])
def test_profile_is_of_one_person(pair: Path, tmp_path: Path, command: Run, offset: float) -> None:
    """Rest is taken out of one person's rows, and their thresholds apply; nothing happens to the other's."""
    save_profile(tmp_path / "her", offset)
    assert command("predict", "--input", pair, "--output", tmp_path / "base.csv").code == 0
    said = command(
        "predict", "--input", pair, "--profile", tmp_path / "her", "--output", tmp_path / "own.csv", "--overlay", tmp_path / "o.mp4"
    )
    assert said.code == 0
    person = said.warnings[0].split("took face ")[1][0]
    before, after = rows_of(tmp_path / "base.csv"), rows_of(tmp_path / "own.csv")
    assert [r for r in before if r["face_id"] != person] == [r for r in after if r["face_id"] != person]
    mine = [(b, a) for b, a in zip(before, after, strict=True) if a["face_id"] == person]
    was, now = intensities([b for b, _ in mine]), intensities([a for _, a in mine])
    base = load_base()
    expected = expected_of(base, was)
    seen = lasting(expected, [float(a["timestamp"]) for _, a in mine])
    rested = base.report(expected * (0.02 + 0.98 * seen**6 / (seen**6 + offset**6)))
    assert np.abs(now - rested).max() < 2e-3 and np.abs(now - was).max() > 0.01
    assert np.array_equal(np.array([[int(a[f"{n}_c"]) for n in AU_NAMES] for _, a in mine]), now >= 1.25)


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), 1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 3)])
def test_rotated_phone_video(face_clip: Clip, tmp_path: Path, command: Run, matrix: tuple[int, int, int, int], turns: int) -> None:
    """Stored lying, with the turn noted: read and drawn upright."""
    lying = np.rot90(face_clip.images[:16], turns, axes=(1, 2))
    turn(encode(tmp_path / "phone.mp4", lying), matrix)
    said = command("predict", "--input", tmp_path / "phone.mp4", "--output", tmp_path / "p.csv", "--overlay", tmp_path / "p_overlay.mp4")
    assert said.code == 0 and said.warnings == []
    rows = rows_of(tmp_path / "p.csv")
    assert {r["success"] for r in rows} == {"1"} and max(abs(float(r["pose_Rz"])) for r in rows) < 0.4
    with av.open(str(tmp_path / "p_overlay.mp4")) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (320, 240)
        assert len(list(container.decode(video=0))) == 16


def test_variable_frame_rate(face_clip: Clip, tmp_path: Path, command: Run) -> None:
    pts = [int(p) for p in np.cumsum([0, 40, 40, 120, 20, 33, 200] * 5)[:30]]
    said = command(
        "predict",
        "--input",
        encode(tmp_path / "vfr.mkv", face_clip.images[:30], pts),
        "--output",
        tmp_path / "vfr.csv",
        "--overlay",
        tmp_path / "seen.mp4",
    )
    assert said.code == 0 and said.warnings == []
    assert [float(r["timestamp"]) for r in rows_of(tmp_path / "vfr.csv")] == pytest.approx([p / 1000 for p in pts], abs=2e-3)
    assert [f.timestamp for f in open_media(tmp_path / "seen.mp4").frames()] == pytest.approx([p / 1000 for p in pts], abs=2e-3)


@pytest.mark.parametrize("pix", ["yuv444p", "yuv420p10le", "gray"])
def test_odd_pixel_format(face_clip: Clip, tmp_path: Path, command: Run, pix: str) -> None:
    clip = encode(tmp_path / "odd.mkv", face_clip.images[:16], pix=pix)
    assert command("predict", "--input", clip, "--output", tmp_path / "odd.csv").code == 0
    assert [r["success"] for r in rows_of(tmp_path / "odd.csv")] == ["1"] * 16


def test_odd_size(face_clip: Clip, tmp_path: Path, command: Run) -> None:
    clip = encode(tmp_path / "odd.mkv", face_clip.images[:16, :239, :317], pix="yuv444p")
    said = command("predict", "--input", clip, "--output", tmp_path / "odd.csv", "--overlay", tmp_path / "odd.mp4")
    assert said.code == 0 and len(rows_of(tmp_path / "odd.csv")) == 16
    with av.open(str(tmp_path / "odd.mp4")) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (318, 240)


def test_truncated_clip(face_clip: Clip, tmp_path: Path, command: Run) -> None:
    path = encode(tmp_path / "cut.mp4", face_clip.images, movflags="faststart", g="5")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    said = command("predict", "--input", path, "--output", tmp_path / "cut.csv")
    rows = rows_of(tmp_path / "cut.csv")
    assert said.code == 0 and 10 < len(rows) < 44
    assert len(said.warnings) == 1
    assert said.warnings[0].startswith(f"warning: cut.mp4 is cut off: used the {len(rows)} frames that decode (")


def test_clip_under_a_second(face_clip: Clip, tmp_path: Path, command: Run) -> None:
    said = command("predict", "--input", write_clip(tmp_path / "tiny.mp4", face_clip.images[:5]), "--output", tmp_path / "tiny.csv")
    assert said.code == 0 and len(rows_of(tmp_path / "tiny.csv")) == 5
    assert said.warnings == ["warning: tiny.mp4 is short (5 frames, 0.33 s): results will be rough; bring 10 s or more"]


def test_with_an_overlay_a_warning_is_said_once(face_clip: Clip, tmp_path: Path, command: Run) -> None:
    """The clip, and a photograph that is cut off, are read twice: to be tracked in another process, and to be drawn on."""
    from PIL import Image

    tiny = write_clip(tmp_path / "tiny.mp4", face_clip.images[:5])
    said = command("predict", "--input", tiny, "--output", tmp_path / "a.csv", "--overlay", tmp_path / "a.mp4")
    assert said.warnings == ["warning: tiny.mp4 is short (5 frames, 0.33 s): results will be rough; bring 10 s or more"]
    Image.fromarray(face_clip.images[0]).save(tmp_path / "cut.jpg", quality=95)
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: int(len(whole) * 0.97)])
    said = command("predict", "--input", tmp_path / "cut.jpg", "--output", tmp_path / "b.csv", "--overlay", tmp_path / "b.mp4")
    assert said.warnings.count("warning: cut.jpg is cut off: used the part that decodes") == 1


def test_waiting_frames_are_bounded(face_clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an overlay the pictures of frames are dropped before they wait for the model."""
    from personalize import registry
    from personalize.video import open_media

    held: list[int] = []
    whole = predict.Table.add

    def add(self: predict.Table, frame: Frame, *rest: Any) -> None:
        held.append(frame.image.nbytes)
        whole(self, frame, *rest)

    monkeypatch.setattr(predict.Table, "add", add)
    tracker = registry.create("trackers", "mediapipe", {})
    predict.predict(open_media(face_clip.path), predict.open_reader(None, None), tracker)
    tracker.close()
    assert held == [0] * 45


def test_a_core_is_left_to_the_tracker_alone(face_clip: Clip) -> None:
    """While it works in a process of its own PyTorch has a thread less, but one; afterwards all of them again."""
    before, during = torch.get_num_threads(), []
    base = load_base()

    class Watched(Reader):
        def read(self, observations: Any) -> Reading:
            during.append(torch.get_num_threads())
            return super().read(observations)

    try:
        torch.set_num_threads(3)
        predict.predict(open_media(face_clip.path), Watched(base), ("mediapipe", {}))
        assert set(during) == {2} and torch.get_num_threads() == 3
        torch.set_num_threads(1)
        predict.predict(open_media(face_clip.path), Watched(base), ("mediapipe", {}))
        assert set(during) == {2, 1} and torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_profile_whose_adapter_is_not_known_says_which_file_has_it() -> None:
    base = load_base()
    profile = Profile("her", base.name, base.sha256, adapter="gone", delta={"w": torch.zeros(2)}, plugins={"adapters/gone": "gone.py"})
    with pytest.raises(ProfileError) as caught:
        Reader(base, profile)
    assert str(caught.value) == "the profile needs the adapter 'gone' of gone.py: give that file with --plugins."


def test_one_branch_alone_reads_as_the_network_without_the_other(face_clip: Clip) -> None:
    """Of the base, and of a person's model whose gates are open."""
    base = load_base()
    net, tracker = base.net.eval(), registry.create("trackers", "mediapipe", {})
    seen = [o for _, found in observe(open_media(face_clip.path), tracker) for o in found][:5]
    tracker.close()
    batch = batch_of(seen)
    on = batch["has_landmarks"]
    assert len(seen) == 5 and on.all()
    wide = np.full(len(AUS), 5, np.float32)
    with torch.no_grad():
        rest = {k: v[:1] for k, v in net.neutral_features(batch["crop"][:1], batch["landmarks"][:1]).items()}
        person = Profile("her", base.name, base.sha256, neutral=rest, gate=wide / 5, trust=wide)
        look = net.crop_features(batch["crop"])
        for branch, has_landmarks, has_crop in (("crop", ~on, on), ("landmarks", on, ~on), ("fused", on, on)):
            read = Reader(base, person).read(seen, branch)
            plain, told = (net.answer(look, batch["landmarks"], has_landmarks, n, None, has_crop)["intensity"] for n in (None, rest))
            np.testing.assert_allclose(read.expected, plain.numpy(), atol=1e-4)
            assert read.own is not None
            np.testing.assert_allclose(read.own, told.numpy(), atol=1e-4)
            # The spread, from the chance of each intensity rather than of at least each.
            at_least = net.answer(look, batch["landmarks"], has_landmarks, None, None, has_crop)["logits"].sigmoid().double().numpy()
            chance = -np.diff(np.concatenate([np.ones_like(at_least[..., :1]), at_least, np.zeros_like(at_least[..., :1])], -1))
            values, mean = np.arange(6), (chance * np.arange(6)).sum(-1, keepdims=True)
            np.testing.assert_allclose(read.spread, np.sqrt((chance * (values - mean) ** 2).sum(-1)), atol=1e-3)
    assert np.abs(read.expected - Reader(base).read(seen, "crop").expected).max() > 0.01


@pytest.mark.parametrize("harm", ["blur", "cover", "yaw"])
def test_confidence_falls(harm: str, face_clip: Clip, world: Any, tmp_path: Path, command: Run) -> None:
    """From the tenth frame on the picture is worse, or the face turned away: what is read of it is told to be less sure."""
    import cv2

    if harm == "yaw":
        from personalize.synth.person import controls
        from personalize.synth.scene import Scene

        n, nothing = 16, np.zeros((16, 2), np.float32)
        pose = np.zeros((n, 3), np.float32)
        pose[:, 1] = np.interp(np.arange(n), [7, 10], [0, 0.9])
        scenes = [Scene.sample(np.random.default_rng(3))]
        aus, extra = np.zeros((n, len(AUS)), np.float32), np.zeros((n, len(controls()[0])), np.float32)
        shots = world.render(world.person("validation", 13), aus, extra, pose, nothing, scenes)
        images = np.concatenate([s.images for s in shots])
    else:
        images = face_clip.images[:16].copy()
        for image in images[10:]:
            if harm == "blur":
                image[:] = cv2.GaussianBlur(image, (0, 0), 4)
            else:
                image[115:, 100:220] = (70, 60, 50)
    clip = write_clip(tmp_path / f"{harm}.mp4", images)
    assert command("predict", "--input", clip, "--output", tmp_path / "out.csv").code == 0
    confidence = [float(r["confidence"]) for r in rows_of(tmp_path / "out.csv")]
    before, after = confidence[:7], confidence[10:]
    assert np.mean(after) < 0.8 * np.mean(before), (before, after)
