"""Judging a generator: the figures against closed forms and worlds whose answer is known, the command, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Clip, Said
from PIL import Image
from scipy import linalg

from personalize import geometry, judge, likeness
from personalize.aus import AUS, COLUMNS
from personalize.config import load_recipe
from personalize.faces import Face, Observation
from personalize.generators import Generator, Request, Sample
from personalize.identity import Identity
from personalize.labels import Extent, read_labels
from personalize.requests import balanced, needs, of_round
from personalize.weights import load_base

K = len(AUS)


def at(au: int) -> int:
    return AUS.index(au)


# distances


def test_frechet_of_gaussians_that_differ_in_mean_and_spread() -> None:
    # In one dimension the distance is (m1 - m2)^2 + (s1 - s2)^2; independent dimensions add up.
    rng = np.random.default_rng(0)
    z = rng.normal(0, 1, (400, 3))
    z = (z - z.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T  # exactly white
    a, b = z * [1, 2, 3] + [0, 1, 2], z * [2, 2, 0.5] + [1, 1, 5]
    assert likeness.frechet(a, b) == pytest.approx((0 - 1) ** 2 + (2 - 5) ** 2 + (1 - 2) ** 2 + (3 - 0.5) ** 2)
    assert likeness.frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_is_that_of_a_matrix_root() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, (50, 8)) @ rng.normal(0, 1, (8, 8)), rng.normal(0.3, 1, (70, 8)) @ rng.normal(0, 1, (8, 8))
    sa, sb = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(sa @ sb).real
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sa + sb - 2 * root)
    assert likeness.frechet(a, b) == pytest.approx(wanted)
    few = rng.normal(0, 1, (5, 40))  # fewer samples than dimensions: singular covariances
    assert likeness.frechet(few, few + 2) == pytest.approx(4 * 40)


def test_kid_by_its_definition() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 1, (7, 5)), rng.normal(0.5, 1, (9, 5))

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 5 + 1) ** 3)

    xx = np.mean([k(a[i], a[j]) for i in range(7) for j in range(7) if i != j])
    yy = np.mean([k(b[i], b[j]) for i in range(9) for j in range(9) if i != j])
    xy = np.mean([k(x, y) for x in a for y in b])
    assert likeness.kid(a, b) == pytest.approx(xx + yy - 2 * xy)


def test_kid_is_unbiased() -> None:
    rng = np.random.default_rng(3)
    drawn = [likeness.kid(*rng.normal(0, 1, (2, 20, 4))) for _ in range(400)]
    assert abs(np.mean(drawn)) < 3 * np.std(drawn) / 20 and min(drawn) < 0


def test_psnr() -> None:
    a = np.full((10, 10, 3), 100, np.uint8)
    assert judge.psnr(a, a + 1) == pytest.approx(20 * np.log10(255))
    assert judge.psnr(a, a) == judge.ALIKE_DB


# faces


def test_chip_puts_the_five_points_where_the_network_wants_them() -> None:
    size = 400
    image = np.zeros((size, size, 3), np.uint8)
    points = np.zeros((478, 3), np.float32)
    spot = (0.25 + likeness._CHIP_POINTS) / 1.5 * 150
    turn = 1.7 * np.exp(0.4j)  # larger, tilted, elsewhere
    for index, (x, y) in zip((263, 362, 33, 133, 2), spot, strict=True):
        there = turn * (x + 1j * y) + (120 + 20j)
        points[index, :2] = there.real, there.imag
        cv2.circle(image, (round(there.real), round(there.imag)), 5, (255, 255, 255), -1)
    chip = likeness.chip(image, points)
    assert chip.shape == (150, 150, 3)
    for x, y in spot:
        assert chip[round(y), round(x)].min() > 200
    assert (chip > 128).mean() < 0.03


def test_similarity_leaves_out_a_frames_neighbours() -> None:
    own = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    times = np.array([0.0, 0.5, 10.0])
    half = 1 / np.sqrt(2)
    assert likeness.similarity(own, own, times, times) == pytest.approx([half, half, half])
    assert likeness.similarity(own[:1], own) == pytest.approx([(1 + 0 + half) / 3])
    assert np.isnan(likeness.similarity(own[:1], own[:1], times[:1], times[:1])).all()


# control and leakage


def asked_alone() -> tuple[np.ndarray, np.ndarray]:
    """Each AU at 1-5 from two frames, and an unchanged picture of each frame: (asked, source)."""
    one = np.vstack([np.zeros((1, K)), *(np.eye(K)[i] * v for i in range(K) for v in range(1, 6))])
    return np.vstack([one, one]), np.repeat([4, 9], len(one))


def test_control_of_a_generator_with_a_known_leak() -> None:
    asked, source = asked_alone()
    rest = np.where(source[:, None] == 4, 0.4, 0.1)  # the frames do not rest alike
    read = rest + 0.8 * asked
    read[:, at(7)] += 0.5 * asked[:, at(6)]  # AU6 brings AU7
    read[:, at(25)] += 0.6 * asked[:, at(26)]  # and AU26 parts the lips
    target = asked.copy()
    target[:, at(25)] += 0.6 * asked[:, at(26)]  # which the sample knows
    found, matrix = judge.control(asked, read, target, source)
    wanted = 0.8 * np.eye(K)
    wanted[at(6), at(7)], wanted[at(26), at(25)] = 0.5, 0.6
    assert matrix == pytest.approx(wanted)
    assert found["AU06"]["off_target"] == pytest.approx(0.5 / (K - 1))
    assert (found["AU06"]["worst"], found["AU06"]["worst_share"]) == ("AU07", pytest.approx(0.5))
    assert found["AU26"]["off_target"] == pytest.approx(0) and found["AU17"]["off_target"] == pytest.approx(0)
    assert found["mean"]["off_target"] == pytest.approx(0.5 / (K - 1) / K)
    own = asked[:, at(6)] > 0
    every = own | (asked.sum(1) == 0)
    pcc = np.corrcoef(read[every, at(6)], asked[every, at(6)])[0, 1]
    assert found["AU06"]["pcc"] == pytest.approx(pcc) and found["AU06"]["n"] == 10
    assert found["AU06"]["mae"] == pytest.approx(np.abs(read - asked)[own, at(6)].mean())


def test_a_leak_that_the_sample_does_not_know_of_counts() -> None:
    asked, source = asked_alone()
    read = asked.copy()
    read[:, at(25)] += 0.6 * asked[:, at(26)]
    for unknown in (asked, np.where(asked > 0, asked, np.nan)):  # known to be absent, or nothing known
        found, _ = judge.control(asked, read, unknown, source)
        assert found["AU26"]["off_target"] == pytest.approx(0.6 / (K - 1))


def test_control_of_a_generator_that_does_nothing() -> None:
    asked, source = asked_alone()
    found, matrix = judge.control(asked, np.full_like(asked, 0.7), np.where(asked > 0, asked, 0), source)
    assert found["mean"]["pcc"] == 0 and found["mean"]["off_target"] == pytest.approx(0) and matrix == pytest.approx(np.zeros((K, K)))


def test_an_au_without_pictures_has_no_figures() -> None:
    asked, source = asked_alone()
    keep = asked[:, at(43)] == 0
    found, matrix = judge.control(asked[keep], asked[keep], asked[keep], source[keep])
    assert found["AU43"]["n"] == 0 and np.isnan(found["AU43"]["pcc"]) and np.isnan(matrix[at(43)]).all()
    assert found["mean"]["pcc"] == pytest.approx(1)


# the rest


def frames(times: list[float]) -> Identity:
    blank, eye = np.zeros((8, 8, 3), np.uint8), np.eye(2, 3, dtype=np.float32)
    found = [
        Observation(
            *(i, t, 0, blank, None, np.zeros(3), eye, np.zeros((478, 3)), np.zeros(4), 1.0, 1.0), view=np.full((8, 8, 3), i, np.uint8)
        )
        for i, t in enumerate(times)
    ]
    return Identity("somebody", found, np.zeros((len(times), K)), None, (8, 8))


def test_unchanged_picture_is_compared_with_its_own_frame() -> None:
    identity = frames([0.0, 1.0])
    request = Request({}, (0.0, 0.0, 0.0), 1)
    same = Sample(np.full((8, 8, 3), 1, np.uint8), np.zeros(K), np.ones(K, bool), request, 1)
    elsewhere = Sample(np.full((8, 8, 3), 90, np.uint8), np.zeros(K), np.ones(K, bool), request, 0)
    assert judge._unchanged([same, elsewhere], identity) == {"n": 1, "psnr_mean": 100.0, "psnr_least": 100.0, "psnr_face_mean": 100.0}


def test_a_picture_is_of_the_frame_it_was_made_from_whatever_was_left_out_before() -> None:
    """By its number in the clip or folder, by which the same photograph is left out of its likeness."""
    points = (40 * geometry.canonical() + (80, 80, 0)).astype(np.float32)
    tracker: Any = SimpleNamespace(scheme="mesh478", detect=lambda *_: [Face(points, np.array([40, 40, 120, 120], np.float32), 1.0)])
    identity = frames([0.0, 0.0, 0.0])
    identity.observations = identity.observations[1:]  # no face was found in the first
    sample = Sample(np.zeros((160, 160, 3), np.uint8), np.zeros(K), np.ones(K, bool), Request({}), 1)
    seen = judge.observed(sample, judge.Case(identity, tracker, None, None, {}))  # type: ignore[arg-type]
    assert seen is not None and seen.frame == 2


def test_held_out_frames_are_not_given(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("frame,AU06\n" + "".join(f"{i},{i % 6}\n" for i in range(20)))
    given, held = judge.split(frames([i / 2 for i in range(20)]), read_labels(path))
    assert [o.frame for o in held.observations] == [6, 7, 8, 9, 16, 17, 18, 19]
    assert sorted(o.frame for o in given.observations + held.observations) == list(range(20))
    assert held.target[:, at(6)].tolist() == [0, 1, 2, 3, 4, 5, 0, 1] and held.known.any(0).sum() == 1
    given, held = judge.split(frames([i / 2 for i in range(20)]), read_labels(path), 4.0)
    assert [o.frame for o in held.observations] == [6, 7, 9, 16, 17, 18, 19], "the moment named as neutral is given"
    assert given.neutral is not None and [given.observations[i].frame for i in given.neutral.indices] == [8]


def test_labels_in_seconds_are_of_the_clips_own_frames(tmp_path: Path) -> None:
    """Of a long clip a frame in a second is kept: a label half a second away is another frame's."""
    path = tmp_path / "labels.csv"
    path.write_text("timestamp,AU06\n" + "".join(f"{t},{v}\n" for t, v in ((3.0, 1), (4.04, 2), (4.4, 3), (8.0, 4), (50.0, 5))))
    _, held = judge.split(frames([float(i) for i in range(20)]), read_labels(path), clip=Extent(1500, 0.04, 60.0))
    known = held.known[:, at(6)]
    assert [o.timestamp for o, k in zip(held.observations, known, strict=True) if k] == [3.0, 8.0] and held.target[
        known, at(6)
    ].tolist() == [1, 4]


def test_likeness_of_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of stills only the picture's own source is no comparison; a moment of a clip has nothing to be compared with, and says so."""
    monkeypatch.setattr(judge.likeness, "face_network", lambda: FakeNetwork())
    monkeypatch.setattr(judge, "_chip", lambda o, scheme: o.view)
    monkeypatch.setattr(judge, "observed", lambda sample, case: case.identity.observations[sample.source])
    identity = frames([0.0] * 3)
    pictures = [Sample(np.zeros((8, 8, 3), np.uint8), np.zeros(K), np.ones(K, bool), Request({}), 1)]
    case = SimpleNamespace(identity=identity, others=[], others_are="")
    found = judge._similarity(pictures, case)
    assert found["same_person"]["mean"] == pytest.approx(np.cos(2 * np.pi / 3)) == found["generated"]["mean"]
    case.identity = frames([0.0, 0.3, 0.6])
    assert judge._similarity(pictures, case) == {"left_out": "needs frames of the person that are a second apart, or several photographs"}


class FakeNetwork:
    """A picture's direction by its grey: three of them a third of a turn apart."""

    name = sha256 = "fake"

    def __call__(self, chips: list[np.ndarray], title: str) -> np.ndarray:
        turn = 2 * np.pi / 3 * np.array([float(c[0, 0, 0]) for c in chips])
        return np.stack([np.cos(turn), np.sin(turn)], 1)


def test_bars() -> None:
    control: dict[str, dict[str, Any]] = {au: {"pcc": 0.75, "off_target": 0.1} for au in (*COLUMNS, "mean")}
    figures = {"control": control, "unchanged": {"psnr_least": 41.0}, "cost": {"pictures_per_s": 10.0}}
    met = {b["what"]: b["met"] for b in judge.bars({**figures, "similarity": {"left_out": "no network"}})}
    assert list(met.values()) == [False, True, True, True, None, True, False]
    alike = {"generated": {"mean": 0.91}, "same_person": {"mean": 0.95}}
    assert judge.bars({**figures, "similarity": alike})[4]["met"] is True


# the command


class Painter(Generator):
    """Answers every request with the frame itself, a spot in its corner for AU6."""

    size, learns_from_base = 192, True

    def prepare(self, identity: Identity, seed: int) -> None:
        self.identity = identity
        self.asked: list[Request] = []

    def restart(self, number: int) -> None:
        assert number == 0
        self.asked.clear()

    def generate(self, requests: list[Request]) -> list[Sample | None]:
        self.asked += requests
        return [self.answer(r) for r in requests]

    def answer(self, request: Request) -> Sample | None:
        source = request.source or 0
        seen = self.identity.observations[source]
        if request.pose is not None and abs(request.pose[1] - seen.pose[1]) > 0.15:
            return None
        view = seen.view
        assert view is not None
        image = view.copy()
        if 6 in request.aus:
            image[:9, :9] = 255
        target = np.array([request.aus.get(au, 0.0) for au in AUS], np.float32)
        return Sample(image, target, np.ones(K, bool), request, source)


def test_judging_writes_figures_and_pictures(
    command: Callable[..., Said], face_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painter = Painter()
    monkeypatch.setattr("personalize.judge.create_generator", lambda recipe: painter)
    monkeypatch.setattr(likeness, "find_spec", lambda name: None)  # the extra is not installed
    monkeypatch.setattr(judge, "SOURCES", 1)
    labels = tmp_path / "labels.csv"
    rows = [f"{t},{face_clip.target[t, at(12)]:.2f}" for t in range(len(face_clip.target))]
    labels.write_text("\n".join(["frame,AU12", *rows]))
    out = tmp_path / "judged"
    settings = ["generator.samples=24", "optim.max_steps=2", "generator.name=mesh_warp"]
    said = command("generate", "--identity", face_clip.path, "--judge", "--labels", labels, "--output", out, *settings)
    assert said.code == 0, said.err
    assert sorted(p.name for p in out.iterdir()) == ["judge.json", "leakage.png", "sheet.png"]
    found = json.loads((out / "judge.json").read_text())
    control = found["control"]
    assert control["AU06"]["n"] == 5 and control["AU06"]["refused"] == 0
    assert control["AU12"]["pcc"] == 0 and control["AU12"]["gain"] == pytest.approx(0, abs=0.02)  # nothing moves
    assert found["unchanged"] == {"n": K, "psnr_mean": 100.0, "psnr_least": 100.0, "psnr_face_mean": 100.0}
    refused = sum(painter.answer(r) is None for r in painter.asked)
    assert 0 < refused <= sum(r.pose is not None for r in painter.asked) < 12, "of some poses that the clip lacks"
    assert found["pictures"]["asked"] == 24 and found["pictures"]["refused"] == refused
    assert len(found["verifier"]["sha256"]) == 64 and found["provenance"]["synthetic"] is True
    assert set(found["held_out"]["aus"]) == {"AU12", "mean"} and found["held_out"]["frames"] >= 10
    held = found["held_out"]["aus"]["AU12"]
    assert held["base"]["icc"] is not None and held["base"] != held["neutral"] != held["generated"]
    extra = "pip install 'personalize[judge]'"
    assert found["similarity"]["left_out"].endswith(extra) and found["realism"]["left_out"].endswith(extra)
    assert f"warning: identity similarity and FD-lite0 and KID-lite0 left out; for them: {extra}" in said.err
    assert "PCC of asked and detected, AU06" in said.out and "similarity not measured" in said.out
    for name in ("sheet.png", "leakage.png"):
        assert json.loads(Image.open(out / name).info["personalize"]) == found["provenance"], "every PNG says what it is"
    assert found["verifier"]["independent"] is False
    assert "warning: mesh_warp learned from what base-s reads in the clip, and base-s judges it: name another --verifier" in said.err
    # made as fit and generate make them: of what the clip lacks and the base is weak in, begun anew, at the generator's size
    need = needs(painter.identity, load_base("base-s").reliability())
    assert painter.asked == of_round(painter.identity, need, load_recipe("default", settings, "fit"), 0) != balanced(24, 0)
    assert {o.view.shape for o in painter.identity.observations if o.view is not None} == {(192, 192, 3)}


def test_who_may_judge() -> None:
    """Not the base that told the generator which frame shows what, by whatever name it goes."""
    base, other = SimpleNamespace(sha256="a"), SimpleNamespace(sha256="b")
    learns, sees_no_base = Painter(), SimpleNamespace(learns_from_base=False)
    for generator, verifier, alone in ((learns, base, False), (learns, other, True), (sees_no_base, base, True)):
        case: Any = SimpleNamespace(base=base, verifier=verifier)
        assert judge.independent(generator, case) is alone  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--judge", "--aus", "AU06=1"], "--judge asks for pictures of its own: leave --aus out."),
        (["--judge", "-n", "3"], "--judge asks for pictures of its own: leave -n out."),
        (["--judge", "--watermark"], "--judge asks for pictures of its own: leave --watermark out."),
        (["--labels", "x.csv"], "--labels goes with --judge."),
        (["--judge", "--labels", "none.csv"], "no such label file: 'none.csv'."),
        (["--judge", "--verifier", "none"], "no base model at none.safetensors: give 'base-s', or the path that 'personalize base fit"),
        (["--judge", "--others", "none.mp4"], "no such file: none.mp4"),
        (["--judge", "--generator", "replay_only"], "replay_only makes no pictures of photo: there is nothing to judge."),
    ],
)
def test_refusals(command: Callable[..., Said], face_photo: Path, tmp_path: Path, words: list[str], message: str) -> None:
    said = command("generate", "--identity", face_photo, "--output", tmp_path / "out", *words)
    assert said.code == 2 and said.err[-1].startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


# the optional networks


def test_networks_of_the_extra_tell_faces_and_pictures_apart(face_clip: Clip, other_face: np.ndarray) -> None:
    faces, pictures = likeness.face_network(), likeness.picture_network()
    if faces is None or pictures is None:
        pytest.skip(likeness.missing())
    from personalize import registry

    tracker = registry.create("trackers", "mediapipe", {})
    chips, views = [], []
    for image in (*face_clip.images[[5, 40]], *other_face[[5, 20]]):
        points = tracker.detect(np.ascontiguousarray(image), 0.0, True)[0].landmarks
        chips.append(likeness.chip(image, points))
        views.append(geometry.view(image, geometry.fit_pose(points))[0])
    tracker.close()
    a = faces(chips, "faces")
    assert a.shape == (4, 128)
    assert likeness.similarity(a[:1], a[1:2]) > likeness.similarity(a[:1], a[2:]) + 0.02
    soft = [cv2.GaussianBlur(v, (0, 0), 3) for v in views]
    f = pictures([*views, *soft, *views], "pictures")
    assert f.shape == (12, 1280)
    assert likeness.frechet(f[:4], f[4:8]) > 1 and likeness.frechet(f[:4], f[8:]) == pytest.approx(0, abs=1e-6)
