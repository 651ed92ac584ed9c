"""``personalize generate``: parsing, grids, drivers, composites, what is written and what it says of itself, refusals."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest
from conftest import Clip, Said, write_clip
from PIL import Image

from personalize import composite, generate, geometry
from personalize import drive as drive_module
from personalize.aus import AUS, COLUMNS
from personalize.config import load_recipe
from personalize.drive import DEAD, Driver, drive, faded, read_driver, smoothed
from personalize.errors import ConfigError, InputError
from personalize.faces import Observation
from personalize.generate import SHEET_FACES, Sheet, parse_aus, parse_pose, sheet_cells
from personalize.generators import Generator, Request, Sample, ask
from personalize.identity import Identity
from personalize.labels import read_labels
from personalize.profile import Profile
from personalize.video import open_media

Command = Callable[..., Said]

# what is asked for


def test_aus_are_read_in_any_spelling() -> None:
    assert parse_aus("AU06=3,au12=2.5") == {6: 3.0, 12: 2.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("AU06=7", "the intensity of AU06 must be a number from 0 to 5, not '7'."),
        ("AU06", "the intensity of AU06 must be a number from 0 to 5, not ''."),
    ],
)
def test_bad_intensities(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_aus(text)
    assert str(error.value) == message


def test_unknown_au() -> None:
    with pytest.raises(ConfigError, match=r"^unknown AU 'AU99'\. "):
        parse_aus("AU99=1")


def test_pose_keeps_what_is_not_named() -> None:
    assert parse_pose("yaw=20", np.array([0.1, 0.0, 0.3])) == pytest.approx((0.1, math.radians(20), 0.0))


def test_pose_with_a_roll_is_what_a_reading_has() -> None:
    pitch, yaw, tilt = parse_pose("yaw=15,roll=40,pitch=-5", np.zeros(3))
    assert np.degrees(geometry.tilted(pitch, yaw, tilt)) == pytest.approx([-5, 15, 40])
    assert abs(math.degrees(pitch) + 5) > 5, "not what the upright picture shows"


def seen(view: np.ndarray, pose: tuple[float, float, float] = (0.0, 0.0, 0.0), frame: int = 0) -> Observation:
    points = np.random.default_rng(1).uniform(10, 50, (478, 3)).astype(np.float32)
    to_frame = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    return Observation(
        *(frame, 0.0, 0, view, points, np.array(pose), to_frame, points, np.zeros(4), 1.0, 1.0), view=view, view_to_frame=to_frame
    )


def test_sheet_shows_every_au_at_every_intensity_and_the_poses() -> None:
    cells = sheet_cells(np.array([0.1, 0.2, 0.3]), 7)
    first = [c for c in cells if c.block == 0]
    assert [(c.row, c.column) for c in first] == [(r, c) for r in range(len(AUS)) for c in range(6)]
    assert all(c.request.aus == ({AUS[c.row]: c.column} if c.column else {}) for c in first)
    assert {(c.request.pose, c.request.source) for c in first} == {((0.1, 0.2, 0.0), 7)}
    yaw = [round(math.degrees(c.request.pose[1])) for c in cells if c.block == 1 and c.row == 1 and c.request.pose]
    pitch = [round(math.degrees(c.request.pose[0])) for c in cells if c.block == 2 and c.row == 1 and c.request.pose]
    assert yaw == [-30, -20, -10, 0, 10, 20, 30] and pitch == [-20, -10, 0, 10, 20]
    assert [aus for _, aus in SHEET_FACES] == [{}, {6: 4.0}, {17: 4.0}]


def test_sheet_puts_pictures_in_their_cells() -> None:
    sheet = Sheet((20, 10))
    blank = np.array(sheet.canvas)
    cell = next(c for c in sheet_cells(np.zeros(3), 0) if c.block == 1 and c.row == 2 and c.column == 3)
    sheet.place(cell, np.full((10, 20, 3), (255, 0, 0), np.uint8))
    changed = np.argwhere((np.array(sheet.canvas) != blank).any(-1))
    assert (np.array(sheet.canvas)[tuple(changed.T)] == (255, 0, 0)).all() and len(changed) == 200
    assert changed[0].tolist() == [sheet.tops[1] + sheet.HEAD + 2 * 12, sheet.LEFT + 3 * 22]


# composites


def face_points(middle: tuple[float, float], radius: float) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    return np.stack([middle[0] + radius * np.cos(angle), middle[1] + radius * np.sin(angle)], 1)


def smooth_picture(seed: int, shape: tuple[int, int]) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0, 255, (*shape, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 6)
    return np.asarray((blurred - blurred.min()) / (blurred.max() - blurred.min()) * 180 + 30).astype(np.uint8)


def test_composite_changes_nothing_outside_the_soft_edge() -> None:
    frame, picture = smooth_picture(1, (120, 160)), smooth_picture(2, (80, 80))
    points, unit = face_points((70, 60), 30), 30.0
    out = composite.put_back(frame, picture, np.array([[1.0, 0, 30], [0, 1, 20]]), points, unit, np.random.default_rng(0))
    depth = composite.depth_inside(composite.face_mask(points, frame.shape))
    outside = depth < -composite.FEATHER * unit / 2
    assert (out[outside] == frame[outside]).all()
    inside = depth > 12
    assert (out[inside] != frame[inside]).any(-1).mean() > 0.9


def test_composite_of_the_frame_itself_is_the_frame() -> None:
    frame = smooth_picture(1, (120, 160))
    to_frame = np.array([[1.0, 0, 30], [0, 1, 20]])
    out = composite.put_back(frame, frame[20:100, 30:110], to_frame, face_points((70, 60), 30), 30.0, np.random.default_rng(0))
    assert np.abs(out.astype(int) - frame).max() <= 1


def test_composite_of_a_face_beside_the_frame() -> None:
    frame, picture = smooth_picture(1, (60, 60)), smooth_picture(2, (40, 40))
    shift = np.array([[1.0, 0, 200], [0, 1, 10]])
    assert (composite.put_back(frame, picture, shift, face_points((220, 30), 15), 15, np.random.default_rng(0)) == frame).all()
    half = composite.put_back(frame, picture, np.array([[1.0, 0, 40], [0, 1, 10]]), face_points((60, 30), 15), 15, np.random.default_rng(0))
    assert (half[:, :40] == frame[:, :40]).all() and (half[25:35, 55:] != frame[25:35, 55:]).any()


def test_colours_get_the_mean_and_spread_of_the_band() -> None:
    like = smooth_picture(3, (60, 60))
    lab = cv2.cvtColor(like.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    changed = (lab * (0.9, 1.1, 0.95) + (4.0, -3.0, 5.0)).astype(np.float32)  # known, and to be undone exactly
    image = cv2.cvtColor(changed, cv2.COLOR_LAB2RGB) * 255
    where = np.zeros((60, 60), bool)
    where[:, :30] = True
    back = composite.match_colour(image, like, where)
    inside = (image > 1).all(-1) & (image < 254).all(-1)  # where RGB could hold it
    assert inside.mean() > 0.9
    assert np.abs(back - like)[inside].max() < 1.5


def test_colour_match_needs_a_band_and_is_bounded() -> None:
    image, like = smooth_picture(3, (60, 60)).astype(np.float32), smooth_picture(4, (60, 60)) // 6
    assert (composite.match_colour(image, like, np.zeros((60, 60), bool)) == image).all()
    grey = composite.match_colour(image, like, np.ones((60, 60), bool)).mean(-1)
    assert grey.std() > image.mean(-1).std() / composite.MOST_GAIN / 1.6


def test_missing_grain_is_added() -> None:
    rng = np.random.default_rng(5)
    frame = np.clip(smooth_picture(1, (160, 160)) * 0.6 + 50 + rng.normal(0, 6, (160, 160, 1)), 0, 255).astype(np.uint8)
    clean = (smooth_picture(1, (160, 160)) * 0.6 + 50).astype(np.uint8)
    everywhere = np.ones((160, 160), bool)
    assert composite.grain(frame, everywhere) == pytest.approx(6, rel=0.15)
    out = composite.put_back(frame, clean, np.array([[1.0, 0, 0], [0, 1, 0]]), face_points((80, 80), 55), 40.0, np.random.default_rng(0))
    middle = np.zeros((160, 160), bool)
    middle[50:110, 50:110] = True
    assert composite.grain(out, middle) == pytest.approx(6, rel=0.2)


def test_steady_points_give_the_similarity() -> None:
    points = np.random.default_rng(2).uniform(0, 100, (478, 3))
    turn = np.array([[1.2, -0.5, 7.0], [0.5, 1.2, -3.0]])
    assert composite.align(points, composite.moved(points, turn), "mesh478") == pytest.approx(turn)


def test_tilt_is_clockwise() -> None:
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 35] = 255
    assert np.unravel_index(composite.tilted(image, math.pi / 2)[..., 0].argmax(), (41, 41)) == (35, 20)


@pytest.mark.parametrize("shape", [(160, 160), (240, 320), (1080, 1920)])
def test_watermark_changes_its_corner_only(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 130, np.uint8)
    for corner in range(4):
        out = composite.watermark(image, corner)
        x0, y0, x1, y1 = composite.label_box(image.shape, corner)
        changed = (out != image).any(-1)
        assert changed[y0:y1, x0:x1].mean() > 0.5 and changed.sum() == changed[y0:y1, x0:x1].sum()
        assert (out[y0:y1, x0:x1] > 200).any()  # the word, on its dark ground
        assert (x1 - x0) * (y1 - y0) < 0.09 * shape[0] * shape[1]


def test_watermark_leaves_the_face_where_it_can() -> None:
    mask = np.zeros((160, 160), np.uint8)
    mask[60:, :] = 255
    assert composite.free_corner(mask.shape, mask) == 2
    mask[:, 80:] = 255
    assert composite.free_corner(mask.shape, mask) == 3


# drivers


def test_smoothing_keeps_the_level_and_knows_its_gaps() -> None:
    times = np.arange(50) / 25
    known = np.ones(50, bool)
    known[20:40] = False
    level, weight = smoothed(times, np.where(known, 2.0, 99.0)[:, None], known, 0.05)
    assert level[weight > 0.1] == pytest.approx(2.0)
    assert (weight > 0.1)[:21].all() and not (weight > 0.1)[24:36].any()
    step, _ = smoothed(times, (np.arange(50) >= 25)[:, None] * 4.0, np.ones(50, bool), 0.05)
    assert (np.diff(step[:, 0]) >= 0).all() and step[21, 0] < 0.1 and step[28, 0] > 3.9


def test_trembling_at_rest_fades_and_order_stays() -> None:
    x = np.linspace(0, 6, 601)
    y = faded(x)
    assert (np.diff(y) >= 0).all() and y[20] < 0.3 * x[20] and y[-1] == 5
    assert y[x >= DEAD] == pytest.approx(np.minimum(x[x >= DEAD], 5))


class Brush(Generator):
    """Paints the intensity of AU12 as brightness; refuses AU12 above 4."""

    def prepare(self, identity: Identity, seed: int) -> None:
        self.asked: list[Request] = []

    def generate(self, requests: list[Request]) -> list[Sample | None]:
        self.asked += requests
        return [self.paint(r) for r in requests]

    @staticmethod
    def paint(request: Request) -> Sample | None:
        value = request.aus.get(12, 0.0)
        image = np.full((64, 64, 3), int(20 * value) + 50, np.uint8)
        target = np.array([request.aus.get(au, 0.0) for au in AUS], np.float32)
        return None if value > 4 else Sample(image, target, np.ones(len(AUS), bool), request, 0)


def test_frames_that_cannot_be_made_hold_the_last(tmp_path: Path) -> None:
    smile = np.array([0.0, 1, 2, 4.5, 4.5, 3, 2, 2, 1, 0])
    intensity = np.zeros((10, len(AUS)))
    intensity[:, AUS.index(12)] = smile
    turn = np.linspace(0, 0.05, 10)[:, None] * np.array([[1.0, 2.0, 0.0]])
    driver = Driver("d.mp4", 10.0, 0.5 + np.arange(10) / 10, intensity, turn, smile != 3)
    identity, generator = (
        Identity("p", [seen(np.zeros((64, 64, 3), np.uint8), (0.1, 0.2, 0.3))], np.zeros((1, 22)), None, (64, 64)),
        Brush(),
    )
    generator.prepare(identity, 0)
    made = drive(driver, identity, generator, None, None, tmp_path, record={"synthetic": True})  # type: ignore[arg-type]
    assert (made.frames, made.held, made.bare) == (10, 3, 0)
    light = [f.image[:40, :40].mean() for f in open_media(tmp_path / "video.mp4").frames()]
    assert light == pytest.approx([50, 70, 90, 90, 90, 90, 90, 90, 70, 50], abs=3)
    rows = list(csv.DictReader((tmp_path / "labels.csv").open()))
    assert [r["success"] for r in rows] == [str(int(s not in (4.5, 3))) for s in smile]
    assert [float(r["timestamp"]) for r in rows] == pytest.approx(np.arange(10) / 10), "those of the video, which begins with the driver"
    assert [float(r["AU12_r"]) for r in rows] == [0, 1, 2, 2, 2, 2, 2, 2, 1, 0]
    # relative to the person's own pose, upright as the view is
    pitch, yaw, _ = geometry.upright((0.1, 0.2, 0.3))
    shown = [float(rows[-1][c]) for c in ("pose_Rx", "pose_Ry", "pose_Rz")]
    assert shown == pytest.approx(geometry.tilted(pitch + 0.05, yaw + 0.1).tolist(), abs=1e-4)
    assert {r.source for r in generator.asked} == {0}
    assert all(r.aus.keys() == set(AUS) and r.exact for r in generator.asked[1:])


def test_a_clip_that_changes_its_resolution_is_driven_in_its_own_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(64, 48), (32, 24), (128, 96)]  # width and height
    frames = [(np.full((h, w, 3), 10 * i, np.uint8), seen(np.zeros((64, 64, 3), np.uint8))) for i, (w, h) in enumerate(sizes)]
    corners = [np.array([[0.0, 0], [w - 1, h - 1]]) for w, h in sizes]
    given = []

    class Play:
        still = frames[0][0]

        def __init__(self, *_: Any) -> None: ...

        def at(self, time: float) -> tuple[np.ndarray, Observation]:
            return frames[round(time)]

    def insert(frame: np.ndarray, *_: Any) -> tuple[np.ndarray, np.ndarray]:
        given.append(frame.shape[1::-1])
        return frame, corners[len(given) - 1]

    monkeypatch.setattr(drive_module, "Stage", Play)
    monkeypatch.setattr(drive_module, "inserted", insert)
    person, generator = Identity("p", [frames[0][1]], np.zeros((1, 22)), None, (64, 48)), Brush()
    generator.prepare(person, 0)
    driver = Driver("d.mp4", 1.0, np.arange(3.0), np.zeros((3, len(AUS))), np.zeros((3, 3)), np.ones(3, bool))
    performer = drive_module.Performer(generator, person)
    scenes = list(drive_module._in_clip(driver, performer, None, None, 0))  # type: ignore[arg-type]
    assert given == sizes and [s.image.shape for s in scenes] == [(48, 64, 3)] * 3
    # what lay in the corners of the frame lies in those of the video, to half a pixel of either
    for scene in scenes:
        assert np.abs(scene.points - corners[0]).max() <= 0.5


def test_the_label_keeps_away_from_where_the_face_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video's label does not move: where the first frame shows no face, those that do say where it may stand."""
    person = seen(np.zeros((64, 64, 3), np.uint8))
    person.image_landmarks = np.array([[0, 30, 0], [159, 30, 0], [0, 119, 0], [159, 119, 0]], np.float32)  # all but the top
    blank, corners = np.zeros((120, 160, 3), np.uint8), []
    scenes = [drive_module._Scene(blank, state, np.zeros((0, 2)), None, None) for state in ("bare", "made")]
    monkeypatch.setattr(drive_module, "_in_clip", lambda *_: iter(scenes))
    monkeypatch.setattr(drive_module, "watermark", lambda image, corner: corners.append(corner) or image)
    driver = Driver("d.mp4", 10.0, np.arange(2) / 10, np.zeros((2, len(AUS))), np.zeros((2, 3)), np.ones(2, bool))
    identity, generator = Identity("p", [person], np.zeros((1, 22)), None, (160, 120)), Brush()
    generator.prepare(identity, 0)
    drive(driver, identity, generator, None, None, tmp_path, composite=True, mark=True, record={})  # type: ignore[arg-type]
    assert corners == [2, 2], "top right"


def test_a_driver_of_which_nothing_can_be_made(tmp_path: Path) -> None:
    driver = Driver("d.mp4", 10.0, np.arange(3) / 10, np.full((3, len(AUS)), 5.0), np.zeros((3, 3)), np.ones(3, bool))
    identity, generator = Identity("p", [seen(np.zeros((64, 64, 3), np.uint8))], np.zeros((1, 22)), None, (64, 64)), Brush()
    generator.prepare(identity, 0)
    with pytest.raises(InputError) as error:
        drive(driver, identity, generator, None, None, tmp_path, record={})  # type: ignore[arg-type]
    assert str(error.value).startswith("none of the 3 frames of d.mp4 could be made with p's face: ")
    assert not (tmp_path / "video.mp4").exists()


def test_mesh_warp_takes_the_frame_wished_for() -> None:
    from personalize_plugins.generators.mesh_warp import MeshWarp

    warp: Any = MeshWarp(max_yaw_change=10.0)
    warp._sources = [
        SimpleNamespace(index=i, angles=np.array([0, yaw, 0]), shown=np.zeros(22), hinted=np.zeros(22), quality=1.0)
        for i, yaw in ((3, 0), (8, 0.15))
    ]

    def chosen(pose: tuple[float, float, float] | None, source: int | None) -> int:
        return int(warp._choose(Request({}, pose, source), np.random.default_rng(0))[0].index)

    assert (chosen((0, 0, 0), None), chosen((0, 0, 0), 8), chosen(None, 8)) == (3, 8, 8)
    assert chosen((0, -0.1, 0), 8) == 3  # turned too far for it
    assert chosen((0, 0, 0), 99) == 3  # none of those it can use


def test_lips_that_tremble_about_zero_do_not_jump() -> None:
    from personalize_plugins.generators.mesh_warp import _JAW_FROM, _JAW_POWER, _JAW_SPAN, _millimetres, jaw_drop

    drop = [_millimetres(v, _JAW_FROM, _JAW_SPAN, _JAW_POWER) for v in np.arange(0, 5.01, 0.02)]
    assert drop[0] == 0 and (np.diff(drop) > 0).all() and np.diff(drop).max() < 0.25
    for value in (0.3, 1.0, 4.0):
        assert jaw_drop(_millimetres(value, _JAW_FROM, _JAW_SPAN, _JAW_POWER)) == pytest.approx(value)


@pytest.fixture(scope="module")
def tools() -> Any:
    """Reader of the base and tracker."""
    from personalize import registry
    from personalize.reader import Reader
    from personalize.weights import load_base

    tracker = registry.create("trackers", "mediapipe", {})
    yield Reader(load_base("base")), tracker
    tracker.close()


@pytest.fixture(scope="module")
def own(face_clip: Clip, tools: Any) -> Driver:
    """What ``face_clip`` does."""
    return read_driver(open_media(face_clip.path), *tools)


def test_a_face_driven_by_its_own_clip_does_the_same(command: Command, face_clip: Clip, own: Driver, tools: Any, tmp_path: Path) -> None:
    out = tmp_path / "driven"
    said = command("generate", "--identity", face_clip.path, "--driver", face_clip.path, "--output", out)
    assert said.code == 0, said.err
    made = read_driver(open_media(out / "video.mp4"), *tools)
    assert len(made) == len(own) and made.seen.all()
    moving = np.flatnonzero(own.intensity.std(0) > 0.4)
    assert len(moving) >= 2
    alike = [np.corrcoef(own.intensity[:, k], made.intensity[:, k])[0, 1] for k in moving]
    assert np.nanmean(alike) > 0.5, dict(zip([COLUMNS[k] for k in moving], alike, strict=True))
    assert np.corrcoef(own.turn[:, 1], made.turn[:, 1])[0, 1] > 0.6
    rows = list(csv.DictReader((out / "labels.csv").open()))
    assert len(rows) == len(own) and rows[0]["frame"] == "0"
    with av.open(str(out / "video.mp4")) as video:
        tags = video.metadata
    record = json.loads(tags["comment"])
    digest = hashlib.sha256(face_clip.path.read_bytes()).hexdigest()
    assert record["synthetic"] is True and tags["title"].startswith("synthetic, made by personalize ")
    assert record["source"] == record["driver"] == {"file": "face.mp4", "sha256": digest}
    beside = json.loads((out / "provenance.json").read_text())
    assert {k: beside[k] for k in record} == record and beside["frames"] == len(own)
    assert json.loads(Image.open(out / "sheet.png").info["personalize"]) == record
    assert sorted(p.name for p in out.iterdir()) == ["labels.csv", "provenance.json", "sheet.png", "video.mp4"]


def test_whose_expressions_drive_is_said(face_clip: Clip, tools: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    two = np.concatenate([face_clip.images[:8], face_clip.images[:8, :, ::-1]], 2)
    read_driver(open_media(write_clip(tmp_path / "pair.mp4", two)), *tools)
    who = "it drives by the one who is largest and longest in it, seen in 8 of 8 frames; cut or crop it to somebody else to take theirs"
    assert f"warning: pair.mp4 shows 2 people: {who}" in capfd.readouterr().err.splitlines()


def test_a_drivers_profile_of_another_base(command: Command, face_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is tracked, and by an option that there is."""
    Profile("me", "mine", "f" * 64).save(tmp_path / "me")
    monkeypatch.setattr(generate, "collect", lambda *_, **__: pytest.fail("tracked for nothing"))
    words = ["--driver", face_clip.path, "--driver-profile", tmp_path / "me" / "profile", "--output", tmp_path / "out"]
    said = command("generate", "--identity", face_clip.path, *words)
    assert said.code == 2 and len(said.err) == 1
    begins = f"error: the profile {tmp_path / 'me' / 'profile'} was fitted on base 'mine' (ffffffffffff), and the recipe's is 'base-s' ("
    assert said.err[0].startswith(begins)
    assert said.err[0].endswith("): give that one with base=PATH, or leave --driver-profile out.")


def test_a_resting_driver_leaves_the_face_at_rest_in_its_clip(command: Command, face_clip: Clip, tmp_path: Path) -> None:
    calm = int(face_clip.target.sum(1).argmin())
    still = write_clip(tmp_path / "still.mp4", np.repeat(face_clip.images[calm : calm + 1], 16, 0))
    photo = tmp_path / "calm.png"
    Image.fromarray(face_clip.images[calm]).save(photo)
    out = tmp_path / "held"
    said = command("generate", "--identity", photo, "--driver", still, "--composite", "--watermark", "--output", out)
    assert said.code == 0, said.err
    frames = [f.image.astype(int) for f in open_media(out / "video.mp4").frames()]
    assert len(frames) == 16 and frames[0].shape == face_clip.images[calm].shape
    rest = np.abs(frames[8] - face_clip.images[calm])[:200]  # above the label
    assert rest.mean() < 4 and np.percentile(rest, 99) < 30
    rows = list(csv.DictReader((out / "labels.csv").open()))
    assert max(float(r[f"{c}_r"] or 0) for r in rows for c in COLUMNS) < 1.5


# pictures


def test_a_neutral_named_by_the_user_is_the_one_that_is_moved(face_clip: Clip, tools: Any) -> None:
    args = SimpleNamespace(face=None, neutral=1.0)
    identity = generate._identify(args, {"base": "base"}, open_media(face_clip.path), tools[1])
    assert identity.neutral is not None
    times = np.array([identity.observations[i].timestamp for i in identity.neutral.indices])
    assert len(times) >= 4 and (np.abs(times - 1.0) <= 0.26).all()


def test_of_two_runs_into_one_folder_both_are_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "generated"
    folder.mkdir()
    for i, name in enumerate(("generated", "generated-2", "generated-3")):
        made = tmp_path / f".{i}.partial"
        made.mkdir()
        (made / "own").write_text(str(i))
        assert generate._put(made, folder) == tmp_path / name and (tmp_path / name / "own").read_text() == str(i)
        said = f"warning: generated was filled meanwhile: this run is in {name}"
        assert capfd.readouterr().err.splitlines() == ([said] if i else [])


def test_a_folder_that_was_filled_meanwhile_keeps_both_inside(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    made = generate._partial(folder)
    made.mkdir()
    (made / "own").touch()
    (folder / "others").touch()
    assert generate._put(made, folder) == folder / "mounted-2"
    assert capfd.readouterr().err == "warning: mounted was filled meanwhile: this run is in mounted/mounted-2\n"
    assert sorted(p.name for p in folder.rglob("*")) == ["mounted-2", "others", "own"]


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Runs that take no time and write one file; returns where each made it."""
    places: list[Path] = []

    def make(args: Any, recipe: Any, media: Any, tracker: Any, folder: Path, partial: Path) -> str:
        places.append(partial)
        partial.mkdir(parents=True)
        (partial / "own").touch()
        if args.n == 13:
            raise InputError("no luck.")
        return "a file"

    monkeypatch.setattr(generate, "_pictures", make)
    return places


@pytest.mark.parametrize("output", ["there", "link", "."])
def test_a_folder_that_is_there_is_not_replaced(
    command: Command, face_photo: Path, tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    """It may be a mount point, which no folder can be renamed to, in a parent that is not the user's to write."""
    folder, rename = tmp_path / "there", Path.rename
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder if output == "." else tmp_path)

    def busy(self: Path, target: Path) -> Path:
        if Path(target) == folder:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", busy)
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) == folder)
    said = command("generate", "--identity", face_photo, "--aus", "AU06=1", "--output", output)
    assert (said.code, said.err) == (0, [f"wrote a file to {output}"])
    assert [p.parent for p in pictures] == [folder] and [p.name for p in folder.iterdir()] == ["own"]
    assert (tmp_path / "link").is_symlink()


def test_a_run_that_fails_leaves_no_folders(command: Command, face_photo: Path, tmp_path: Path, pictures: list[Path]) -> None:
    (tmp_path / "mine").mkdir()
    for output in ("new/deep/out", "mine", "mine/new/out"):
        said = command("generate", "--identity", face_photo, "--aus", "AU06=1", "-n", "13", "--output", tmp_path / output)
        assert (said.code, said.err) == (2, ["error: no luck."])
        assert [p.name for p in tmp_path.rglob("*")] == ["mine"]
    said = command("generate", "--identity", face_photo, "--aus", "AU06=1", "--output", tmp_path / "new/deep/out")
    assert said.code == 0 and (tmp_path / "new/deep/out/own").exists()


def test_the_clip_says_the_size_of_faces_only_where_nobody_else_does(tmp_path: Path) -> None:
    """Twice the side is four times the pixels, and for a generator that trains on the clip four times the hours."""
    recipe = tmp_path / "own.yaml"
    recipe.write_text("generator:\n  name: mesh_warp\n  options:\n    size: 160\n")
    for name, overrides, wanted in (
        ("default", [], True),
        ("default", ["generator.options.sources=3"], True),
        ("default", ["generator=mesh_warp"], True),
        ("default", ["generator.options.size=160"], False),  # the default, but said
        (str(recipe), [], False),
        ("default", ["generator=pix2pix"], False),
        ("default", ["generator=ganimation"], False),
    ):
        args: Any = SimpleNamespace(recipe=name, overrides=overrides)
        assert generate._chooses_size(load_recipe(name, overrides), args) is wanted, (name, overrides)


def test_a_generator_is_not_asked_for_nothing() -> None:
    class Strict(Brush):
        def generate(self, requests: list[Request]) -> list[Sample | None]:
            assert requests
            return super().generate(requests)

    assert ask(Strict(), []) == []


def test_the_sheet_does_not_keep_whole_frames(command: Command, face_photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, large, draw = [], tmp_path / "large.png", generate.contact_sheet
    with Image.open(face_photo) as picture:
        picture.resize((640, 480)).save(large)
    monkeypatch.setattr(generate, "contact_sheet", lambda shown: shapes.extend(i.shape for i, _ in shown) or draw(shown))
    said = command("generate", "--identity", large, "--aus", "AU12=1", "--composite", "--output", tmp_path / "out")
    assert said.code == 0 and shapes == [(240, 320, 3)]
    assert Image.open(tmp_path / "out" / "images" / "00000.png").size == (640, 480)


def test_a_tracker_without_depth_gets_no_pictures(face_clip: Clip, tmp_path: Path, command: Command) -> None:
    """Not half-black ones with full labels."""
    plugin = tmp_path / "flat.py"
    plugin.write_text(
        "import numpy as np\nfrom personalize.registry import register\n"
        "from personalize_plugins.trackers.mediapipe import MediaPipeTracker\n\n\n@register('flat')\n"
        "class Flat(MediaPipeTracker):\n    def detect(self, *given):\n        found = super().detect(*given)\n"
        "        for face in found:\n            face.landmarks[:, 2] = np.nan\n        return found\n"
    )
    words = ["--tracker", "flat", "--plugins", plugin, "--output", tmp_path / "out"]
    said = command("generate", "--identity", face_clip.path, "--aus", "AU12=3", *words)
    why = "could make none of the pictures asked for from face.mp4: it needs a tracker of 478 points with depth, as mediapipe."
    assert said.code == 2 and said.err[-1] == f"error: au_residual {why}" and not (tmp_path / "out").exists()


def test_pictures_labels_and_sheet(command: Command, face_clip: Clip, tmp_path: Path) -> None:
    out = tmp_path / "made"
    said = command("generate", "--identity", face_clip.path, "--aus", "AU12=1", "-n", "2", "--output", out)
    assert said.code == 0
    rows = list(csv.DictReader((out / "labels.csv").open()))
    assert [r["file"] for r in rows] == ["00000.png", "00001.png"]
    assert all(float(r["AU12_r"]) == 1.0 for r in rows)
    # An intensity of 1 is not the presence that a column of zeros and ones without "_r" would be taken for.
    assert not read_labels(out / "labels.csv").occurrence.any()
    record = json.loads(Image.open(out / "images" / "00000.png").info["personalize"])
    assert record["synthetic"] is True and record["tool"].startswith("personalize ") and record["generator"] == "au_residual"
    assert record["source"] == {"file": "face.mp4", "sha256": hashlib.sha256(face_clip.path.read_bytes()).hexdigest()}
    assert record["aus"] == {"AU12": 1.0} and set(record["pose"]) == {"pitch", "yaw", "roll"} and record["seed"] == 0
    for file in ("masks/00001.png", "sheet.png"):
        assert json.loads(Image.open(out / file).info["personalize"])["synthetic"] is True
    points = np.load(out / "landmarks.npz")
    assert points["landmarks"].shape == (2, 478, 3) and points["name"].tolist() == ["00000.png", "00001.png"]
    mask = np.array(Image.open(out / "masks" / "00000.png"))
    inside = np.round(points["landmarks"][0, 4, :2]).astype(int)  # the tip of the nose
    assert set(np.unique(mask)) == {0, 255} and mask[inside[1], inside[0]] == 255 and 0.1 < (mask > 0).mean() < 0.7
    assert json.loads((out / "provenance.json").read_text())["pictures"] == 2
    again = command("generate", "--identity", face_clip.path, "--aus", "AU12=3", "--output", out)
    assert again.code == 2
    assert again.err[-1] == f"error: {out} is not empty: name another folder with --output."


def test_pictures_put_back_into_their_frames(command: Command, face_clip: Clip, tmp_path: Path) -> None:
    out = tmp_path / "put"
    said = command("generate", "--identity", face_clip.path, "--aus", "AU04=4", "-n", "2", "--composite", "--watermark", "--output", out)
    assert said.code == 0, said.err
    frames = {f.index: f.image for f in open_media(face_clip.path).frames()}
    points = np.load(out / "landmarks.npz")["landmarks"]
    for i in range(2):
        picture = Image.open(out / "images" / f"{i:05d}.png")
        image, frame = np.array(picture), frames[json.loads(picture.info["personalize"])["frame"]]
        assert image.shape == frame.shape
        depth = composite.depth_inside(composite.face_mask(points[i], image.shape))
        outside = depth < -0.25 * float(np.hypot(*(points[i, 33, :2] - points[i, 263, :2])))
        x0, y0, x1, y1 = composite.label_box(image.shape, 0)
        outside[y0:y1, x0:x1] = False
        assert (image[outside] == frame[outside]).all() and outside.mean() > 0.5
        assert (image[y0:y1, x0:x1] != frame[y0:y1, x0:x1]).any()
        assert np.abs(image.astype(int) - frame)[depth > 0].max() > 15


def test_sheet_of_all_aus(command: Command, face_clip: Clip, tmp_path: Path) -> None:
    out = tmp_path / "sheet"
    said = command("generate", "--identity", face_clip.path, "--grid", "sheet", "generator.options.size=64", "--output", out)
    assert said.code == 0, said.err
    rows = list(csv.DictReader((out / "labels.csv").open()))
    assert len(rows) >= 6 * len(AUS)  # poses beyond the clip's are left out
    assert [float(r["AU06_r"]) for r in rows[24:30]] == [0, 1, 2, 3, 4, 5]
    sheet = Image.open(out / "sheet.png")
    assert sheet.size == Sheet((64, 64)).canvas.size
    record = json.loads((out / "provenance.json").read_text())
    assert sum(record["refused"].values()) == record["asked"] - len(rows) > 0
    assert all("yaw" in cell for cell in record["refused"]), "what was left out, and at which pose"


# refusals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--driver", "d.mp4", "--grid", "sheet"], "--driver brings expressions and poses of its own: leave --grid out."),
        (["--driver", "d.mp4", "--aus", "AU06=1"], "--driver brings expressions and poses of its own: leave --aus out."),
        (["--driver-profile", "runs/me", "--aus", "AU06=1"], "--driver-profile is the profile of a driver: name its clip with --driver."),
        (["--grid", "balanced", "--aus", "AU06=1"], "--grid brings expressions of its own: leave --aus out."),
        (["--grid", "sheet", "-n", "3"], "--grid sheet is always the same pictures: leave -n out."),
        (["--grid", "sheets"], "unknown grid 'sheets'. Did you mean 'sheet'? There is: balanced, sheet."),
        (["--driver", "none.mp4"], "no such file: none.mp4"),
        (["--driver", "PHOTO"], "photo.png is no video: --driver takes a clip whose expressions are put onto the face."),
        (["--output", "PHOTO"], "PHOTO is a file: name a folder with --output."),
        (["--output", "PHOTO/sub/below"], "PHOTO is a file: name a folder with --output."),
        (["--recipe", "base"], "recipe base is of kind 'base', and this command takes one of kind 'fit', as default is."),
    ],
)
def test_refusals(command: Command, face_photo: Path, tmp_path: Path, words: list[str], message: str) -> None:
    out = tmp_path / "out"
    words = [w.replace("PHOTO", str(face_photo)) for w in words]
    said = command("generate", "--identity", face_photo, *([] if "--output" in words else ["--output", out]), *words)
    assert (said.code, said.err) == (2, [f"error: {message.replace('PHOTO', str(face_photo))}"])
    assert not list(tmp_path.iterdir())


def test_full_disk_is_said_before_the_work(command: Command, face_photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10, 9, 1_000_000))
    out = tmp_path / "out"
    for size, needed in (("160", 66), ("512", 657)):  # 2.5 bytes a pixel
        words = ["--aus", "AU06=1", "-n", "1000", f"generator.options.size={size}"]
        said = command("generate", "--identity", face_photo, "--output", out, *words)
        need = f"about {needed} MB are needed, 1 MB are free. Free some or name another place with --output."
        assert (said.code, said.err) == (2, [f"error: not enough disk for {out}: {need}"])
    assert not list(tmp_path.iterdir())


def test_driver_without_a_face(command: Command, face_photo: Path, tmp_path: Path) -> None:
    empty = write_clip(tmp_path / "empty.mp4", np.full((20, 64, 64, 3), 90, np.uint8))
    said = command("generate", "--identity", face_photo, "--driver", empty, "--output", tmp_path / "out")
    wanted = "give one where a face is at least 40 pixels wide, lit and mostly turned to the camera"
    assert (said.code, said.err[-1]) == (2, f"error: no face found in empty.mp4: {wanted}")
    assert [p.name for p in tmp_path.iterdir()] == ["empty.mp4"]
