"""Tracks, identity, quality and streaming, with a tracker whose answers are known."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from personalize import geometry, registry, tracks
from personalize.ahead import Apart, Prefetch
from personalize.errors import InputError
from personalize.faces import Face, Observation, Tracker
from personalize.video import Frame, Media, open_media

SIZE = (320, 240)


def face(x: float, y: float, scale: float, angles: tuple[float, float, float] = (0, 0, 0), wide: float = 1.0) -> Face:
    points = scale * (geometry.canonical() * (wide, 1, 1)) @ geometry.rotation_matrix(*angles).T + (x, y, 0)
    points = points.astype(np.float32)
    return Face(points, np.concatenate([points[:, :2].min(0), points[:, :2].max(0)]), 1.0)


class Script(Tracker):
    """A tracker that says what the test wrote: a list of faces a frame."""

    def __init__(self, frames: list[list[Face]]) -> None:
        self.script = frames
        self.at = 0

    def reset(self) -> None:
        self.at = 0

    def detect(self, frame: np.ndarray, timestamp: float, still: bool) -> list[Face]:
        self.at += 1
        return self.script[self.at - 1]


class Clip(Media):
    """Frames of noise, counted while alive."""

    def __init__(self, count: int, kind: str = "video", fps: float = 25.0) -> None:
        super().__init__(Path("clip.mp4"), kind, fps, count, SIZE, count / fps)
        self.live: weakref.WeakSet[Any] = weakref.WeakSet()
        self.most = 0

    def frames(self) -> Iterator[Frame]:
        rng = np.random.default_rng(0)
        texture = rng.integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        for i in range(self.length or 0):
            frame = Frame(i, i / self.fps if self.kind == "video" else 0.0, texture.copy(), "" if self.kind == "video" else f"{i}.png")
            self.live.add(frame)
            self.most = max(self.most, len(self.live))
            yield frame


def run(script: list[list[Face]], **options: Any) -> list[list[Observation]]:
    return [seen for _, seen in tracks.observe(Clip(len(script)), Script(script), **options)]


def test_observation_fields() -> None:
    seen = run([[face(150, 100, 50, (0.1, 0.2, 0.3))]])[0][0]
    assert seen.crop.shape == (112, 112, 3) and seen.landmarks is not None
    assert np.abs(seen.landmarks - geometry.canonical()).max() < 1e-3
    assert seen.pose == pytest.approx([0.1, 0.2, 0.3], abs=1e-4) and seen.pose.dtype == np.float32
    assert set(seen.parts) == {"blur", "size", "pose", "occlusion"}
    assert seen.quality == pytest.approx(np.prod(list(seen.parts.values())))


def test_frames_without_a_face_are_given_too() -> None:
    got = run([[], [face(150, 100, 50)], []])
    assert [len(g) for g in got] == [0, 1, 0] and got[1][0].frame == 1


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("hidden", [0, 4])
def test_two_faces_that_cross_keep_their_numbers(swap: bool, hidden: int) -> None:
    """Two people walk past each other at different heights; where they cross, the one behind is not seen for some frames."""
    script, truth = [], []
    for i in range(60):
        a, b = face(60 + 3.4 * i, 90, 34), face(260 - 3.4 * i, 108, 36, wide=1.06)
        near = abs(a.landmarks[168, 0] - b.landmarks[168, 0]) < 3.4 * hidden
        pair = [(0, a)] if near else [(0, a), (1, b)]
        pair = pair[::-1] if swap and i % 2 else pair
        script.append([f for _, f in pair])
        truth.append([p for p, _ in pair])
    builder = tracks.TrackBuilder()
    for i, faces in enumerate(script):
        shapes: list[np.ndarray | None] = [geometry.normalise(f.landmarks, geometry.fit_pose(f.landmarks)) for f in faces]
        assert builder.update(faces, i / 25, shapes) == truth[i], i


def test_a_gap_is_bridged_and_a_stranger_is_new() -> None:
    builder = tracks.TrackBuilder(max_gap_s=1.0)
    for i in range(10):
        assert builder.update([face(100, 100, 40)], i / 25) == [0]
    assert builder.update([], 0.5) == []
    assert builder.update([face(106, 100, 40)], 1.0) == [0]
    assert builder.update([face(250, 60, 40)], 1.04) == [1]  # elsewhere at once
    assert builder.update([face(106, 100, 40)], 9.0) == [2]  # long gone, and nothing to know them by


def test_someone_who_comes_back_is_known_by_shape() -> None:
    def shape(f: Face) -> list[np.ndarray | None]:
        return [geometry.normalise(f.landmarks, geometry.fit_pose(f.landmarks))]

    builder = tracks.TrackBuilder(max_gap_s=1.0)
    one, other = face(100, 100, 40), face(250, 120, 40, wide=1.25)
    for i in range(10):
        assert builder.update([one], i / 25, shape(one)) == [0]
    assert builder.update([other], 5.0, shape(other)) == [1]
    back = face(60, 80, 55, (0.1, 0.2, 0.1))
    assert builder.update([back], 10.0, shape(back)) == [0]


def test_identity_is_largest_and_longest_or_the_one_asked_for() -> None:
    small = [[face(60, 60, 20)] for _ in range(20)]
    both = [[face(60, 60, 20), face(220, 120, 50)] for _ in range(30)]
    survey = tracks.Survey()
    for _ in tracks.observe(Clip(50), Script(small + both), survey=survey):
        pass
    assert (survey.frames, survey.with_face, sorted(survey.people)) == (50, 50, [0, 1])
    assert survey.identity() == 1 and survey.identity(0) == 0
    with pytest.raises(InputError, match=r"^no face 7 in clip.mp4: there is 0 \(50 frames, \d+ px\), 1 \(30 frames, \d+ px\)$"):
        survey.identity(7, "clip.mp4")
    lines = survey.warnings(Clip(50))
    assert len(lines) == 1 and lines[0].startswith("clip.mp4 shows 2 people: took face 1, the largest and longest; choose with --face")
    assert {o.face_id for seen in run(small + both, all_faces=False) for o in seen[:1]} == {0, 1} and all(
        len(s) == 1 for s in run(small + both, all_faces=False)
    )


def test_late_face_and_no_face() -> None:
    survey = tracks.Survey()
    list(tracks.observe(Clip(60), Script([[]] * 40 + [[face(150, 100, 50)]] * 20), survey=survey))
    assert survey.warnings(Clip(60)) == ["clip.mp4: the face appears late, first seen at 1.6 s; what comes before is left out"]
    empty = tracks.Survey()
    list(tracks.observe(Clip(5), Script([[]] * 5), survey=empty))
    with pytest.raises(InputError) as caught:
        empty.warnings(Clip(5))
    assert (
        str(caught.value)
        == "no face found in clip.mp4: give one where a face is at least 40 pixels wide, lit and mostly turned to the camera"
    )
    with pytest.raises(InputError, match="^no face found in x: "):
        tracks.Survey().identity(name="x")


def test_stills_number_people_by_size() -> None:
    script = [[face(60, 60, 20), face(220, 120, 50)], [face(220, 120, 50), face(60, 60, 20)]]
    got = [seen for _, seen in tracks.observe(Clip(2, "folder"), Script(script))]
    assert [[round(float(o.box[2] - o.box[0])) > 60 for o in seen] for seen in got] == [[True, False]] * 2
    assert [o.file for seen in got for o in seen] == ["0.png", "0.png", "1.png", "1.png"]


@pytest.mark.parametrize(("degrees", "expected"), [(0, 1.0), (24, 1.0), (50, 0.5), (76, 0.0)])
def test_pose_quality(degrees: float, expected: float) -> None:
    got = run([[face(150, 100, 50, (0, np.radians(degrees), 0.5))]])[0][0]
    assert got.parts["pose"] == pytest.approx(expected, abs=0.02)  # roll does not matter


@pytest.mark.parametrize(("pixels", "expected"), [(11, 0.0), (26, 0.5), (45, 1.0)])
def test_size_quality(pixels: float, expected: float) -> None:
    assert run([[face(150, 100, pixels)]])[0][0].parts["size"] == pytest.approx(expected, abs=1e-3)


def test_blur_quality_falls_with_blur_and_not_with_contrast() -> None:
    rng = np.random.default_rng(1)
    # natural pictures' spectra fall with frequency: amplitude ~ 1/f
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(112), np.fft.fftfreq(112))) + 1 / 112
    grey = np.fft.ifft2(np.fft.fft2(rng.normal(size=(112, 112))) / f).real
    grey = np.clip(127 + 45 * (grey - grey.mean()) / grey.std(), 0, 255).astype(np.uint8)
    crop = np.repeat(grey[..., None], 3, 2)
    values = [tracks.sharpness(cv2.GaussianBlur(crop, (0, 0), s) if s else crop) for s in (0, 1, 2, 3, 5)]
    assert all(a > b for a, b in zip(values, values[1:], strict=False))
    assert values[0] - values[-1] > 1.0
    faint = (crop.astype(float) * 0.5 + 60).astype(np.uint8)
    assert tracks.sharpness(faint) == pytest.approx(values[0], abs=0.1)


def test_occlusion_falls_when_the_face_is_covered() -> None:
    rng = np.random.default_rng(2)
    base = cv2.GaussianBlur(rng.integers(0, 255, (112, 112, 3), dtype=np.uint8), (0, 0), 6)
    base = cv2.normalize(base, None, 0, 255, cv2.NORM_MINMAX)  # type: ignore[call-overload]
    meter = tracks.OcclusionMeter()
    clear = [meter.update(np.clip(base + rng.normal(0, 4, base.shape), 0, 255).astype(np.uint8), None) for _ in range(30)]
    covered = base.copy()
    covered[50:, :] = 255 - covered[50:, :]
    assert min(clear) > 0.95 and meter.update(covered, None) < 0.6
    assert meter.update(base, None) > 0.9


def test_memory_is_bounded() -> None:
    clip = Clip(300)
    survey = tracks.Survey()
    for _ in tracks.observe(clip, Script([[face(150, 100, 50)]] * 300), survey=survey):
        pass
    gc.collect()
    # Two threads run ahead: two frames wait behind each, and each stage holds one or two.
    assert clip.most <= 10 and survey.frames == 300


def test_decoding_and_tracking_have_a_thread_each() -> None:
    at_work: dict[str, set[int]] = {"decoding": set(), "tracking": set()}

    class Seen(Script):
        def detect(self, frame: np.ndarray, timestamp: float, still: bool) -> list[Face]:
            at_work["tracking"].add(threading.get_ident())
            if self.at == 20:
                raise InputError("the tracker gives up")
            return super().detect(frame, timestamp, still)

    class Read(Clip):
        def frames(self) -> Iterator[Frame]:
            for frame in super().frames():
                at_work["decoding"].add(threading.get_ident())
                yield frame

    got = []
    with pytest.raises(InputError, match="the tracker gives up"):
        for frame, _ in tracks.observe(Read(50), Seen([[face(150, 100, 50)]] * 50)):
            got.append(frame.index)
    assert got == list(range(20)), "what was tracked before comes first"
    one, other = at_work.values()
    assert len(one) == len(other) == 1 and one != other and threading.get_ident() not in one | other
    alive = {t.ident for t in threading.enumerate()}
    assert not alive & (one | other), "they end with the clip"


def test_prefetch_keeps_order_bounds_and_errors() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            yield i
        raise InputError("broken at the end")

    with Prefetch(items(), depth=4) as ahead:
        assert next(ahead) == 0
        time.sleep(0.2)
        assert len(made) <= 1 + 4 + 1  # read, queued, and the one waiting to be queued
        got = []
        with pytest.raises(InputError, match="broken at the end"):
            for item in ahead:
                got.append(item)
    assert got == list(range(1, 50))
    assert list(Prefetch(range(3))) == [0, 1, 2]


def test_prefetch_stops_its_thread_when_left_early() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    with Prefetch(items(), depth=2) as ahead:
        next(ahead)
    assert closed.wait(2) and not any(t.name == "prefetch" and t.is_alive() for t in threading.enumerate())


def _counted(n: int, fail: bool) -> Iterator[tuple[int, int]]:
    from personalize import ui

    ui.warn("[half] a\nwarning")
    for i in range(n):
        yield i, os.getpid()
    if fail:
        raise InputError("broken at the end")


def test_apart_gives_items_warnings_and_errors_of_another_process(capsys: pytest.CaptureFixture[str]) -> None:
    got = list(Apart(_counted, 500, False))
    assert [i for i, _ in got] == list(range(500)), "more than a pipe holds, in order"
    assert len({pid for _, pid in got}) == 1 and got[0][1] != os.getpid()
    assert capsys.readouterr().err == "warning: [half] a warning\n"
    some = []
    with pytest.raises(InputError, match="broken at the end") as caught:
        for item in Apart(_counted, 3, True):
            some.append(item)
    assert len(some) == 3 and str(caught.value) == "broken at the end" and "_counted" in caught.value.__notes__[0], (
        "where in the other process it happened"
    )


class _Particular(Exception):
    """Pickles, and fails to be made again: pickle gives it one argument."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{what} in {where}")


def _refusing(anything: object) -> Iterator[int]:
    yield 0
    raise _Particular("plug-in", "trouble") if anything is None else ValueError("trouble", lambda: None)


@pytest.mark.parametrize(("given", "said"), [(None, r"^_Particular: trouble in plug-in\n"), (1, "^ValueError: .*'trouble', <function")])
def test_an_exception_that_cannot_be_pickled_says_what_it_said(given: object, said: str) -> None:
    with pytest.raises(RuntimeError, match=said) as caught:
        list(Apart(_refusing, given))
    assert "_refusing" in caught.value.__notes__[0]


def _endless() -> Iterator[int]:
    while True:
        yield os.getpid()


def _dying() -> Iterator[int]:
    yield 0
    os._exit(7)


def test_apart_ends_its_process_when_left_early_and_says_when_it_died() -> None:
    with Prefetch(Apart(_endless), depth=4) as items:
        other = next(items)
        os.kill(other, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(other, 0)
    with pytest.raises(RuntimeError, match="ended with exit code 7"):
        list(Apart(_dying))


def test_a_clip_tracked_apart_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracker by its name, in another process: the same observations, the survey filled here, no pictures."""
    file = tmp_path / "tracker.py"
    file.write_text(
        "import numpy as np\n"
        "from personalize import geometry\n"
        "from personalize.registry import register\n"
        "from personalize.faces import Face, Tracker\n"
        "@register('one_place')\n"
        "class OnePlace(Tracker):\n"
        "    '''Finds a face where there is none.'''\n"
        "    def __init__(self, x: float = 50.0) -> None:\n"
        "        self.x = x\n"
        "    def detect(self, frame, timestamp, still):\n"
        "        points = geometry.canonical() * [40, 40, 40] + [self.x, 60, 0]\n"
        "        box = np.concatenate([points[:, :2].min(0), points[:, :2].max(0)])\n"
        "        return [Face(points.astype(np.float32), box.astype(np.float32), 1.0)]\n"
    )
    monkeypatch.setenv(registry.FILES_VARIABLE, "")
    registry.load_file(file)
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (128, 96))
    rng = np.random.default_rng(0)
    for _ in range(6):
        writer.write(rng.integers(0, 255, (96, 128, 3), np.uint8))
    writer.release()
    media = open_media(path)
    here = list(tracks.observe(media, registry.create("trackers", "one_place", {"x": 55.0})))
    survey = tracks.Survey()
    there = list(tracks.observe_apart(media, "one_place", {"x": 55.0}, survey))
    assert len(here) == len(there) == survey.frames == 6 and survey.identity() == 0
    for (f, (a,)), (g, (b,)) in zip(here, there, strict=True):
        assert f.timestamp == g.timestamp and f.image.size and not g.image.size
        np.testing.assert_array_equal(a.crop, b.crop)
        np.testing.assert_array_equal(a.landmarks, b.landmarks)
        assert a.quality == b.quality


@pytest.mark.parametrize("away_s", [1.0, 4.0])
def test_a_cut_to_another_person_in_the_same_place_begins_a_track(away_s: float) -> None:
    """And the cut back goes on with the first one's."""
    builder = tracks.TrackBuilder()
    one, other = face(100, 100, 40), face(100, 100, 40, wide=1.25)
    away = round(25 * away_s)
    got = []
    for i, f in enumerate([one] * 50 + [other] * away + [one] * 20):
        got += builder.update([f], i / 25, [geometry.normalise(f.landmarks, geometry.fit_pose(f.landmarks))])
    back = got[50 + away :]
    assert got[:50] == [0] * 50 and got[52 : 50 + away] == [1] * (away - 2), "two frames may be a slip of the mesh"
    assert back[2:] == [0] * 18 and (away_s > tracks.MAX_GAP_S or back[:2] == [0, 0])


def test_a_mesh_that_slips_for_two_frames_or_on_a_turned_face_is_no_other_person() -> None:
    builder = tracks.TrackBuilder()
    one, other = face(100, 100, 40), face(100, 100, 40, wide=1.25)
    turned = face(100, 100, 40, (0, 0.6, 0), wide=1.25)
    for i, f in enumerate([*[one] * 20, other, other, *[one] * 5, other, other, one, *[turned] * 10, one]):
        pose = geometry.fit_pose(f.landmarks)
        off_axis = [0.6 if f is turned else 0.0]
        assert builder.update([f], i / 25, [geometry.normalise(f.landmarks, pose)], off_axis) == [0], i


def test_one_rendered_person_stays_one_and_another_is_another(world: Any) -> None:
    """At 10 frames a second: rest, grin, dropped jaw, head to both sides and up and down; then a cut to someone in the same place."""
    from personalize.aus import AUS
    from personalize.synth.person import controls
    from personalize.synth.scene import Scene

    keys = [0, 6, 8, 10, 12, 14, 16, 18, 20, 24, 26, 28, 30, 32]
    said = {6: [0, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 12: [0, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]}
    said |= {25: [0, 0, 4, 4, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0], 26: [0, 0, 0, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0]}
    turns = [[0] * 10 + [0.5, -0.4, 0, 0], [0] * 7 + [0.8, 0.8, -0.8] + [0] * 4, [0] * 14]

    def course(values: list[list[float]]) -> np.ndarray:
        return np.stack([np.interp(np.arange(keys[-1]), keys, v) for v in values], 1).astype(np.float32)

    aus = course([said.get(au, [0] * len(keys)) for au in AUS])
    pose, extra = course(turns), np.zeros((len(aus), len(controls()[0])), np.float32)
    images = []
    for index, n in ((1, len(aus)), (7, 10)):
        scene = Scene.sample(np.random.default_rng(0))
        images += [
            i
            for s in world.render(world.person("train", index), aus[:n], extra[:n], pose[:n], np.zeros((n, 2), np.float32), [scene])
            for i in s.images
        ]
    tracker, builder = registry.create("trackers", "mediapipe"), tracks.TrackBuilder()
    got = []
    for i, image in enumerate(images):
        (found,) = tracker.detect(image, i / 10, False)
        p = geometry.fit_pose(found.landmarks)
        got += builder.update([found], i / 10, [geometry.normalise(found.landmarks, p)], [p.off_axis])
    tracker.close()
    cut = len(aus)
    assert got[:cut] == [0] * cut and got[cut + 2 :] == [1] * 8
