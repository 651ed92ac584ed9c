"""The causal filter behind ``predict --smooth``: its recursion, what it promises, its fit, and its place in the card."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from importlib import resources
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Clip, Said, write_clip

from personalize.aus import AUS, COLUMNS
from personalize.errors import InputError, ProfileError
from personalize.profile import Profile
from personalize.smooth import FLOOR, Course, Smoother, fit_smoother, from_card, to_card
from personalize.weights import load_base

Run = Callable[..., Said]

LIKE = np.repeat(np.array([[-2.5], [3.0], [-1.5], [0.2]]), len(AUS), 1)
"""Such as a fit finds them."""


def shipped_or_like() -> np.ndarray:
    found = from_card(json.loads(resources.files("personalize").joinpath("assets/base-s.json").read_text()), len(AUS))
    return LIKE if found is None else found


def run(params: np.ndarray, times: np.ndarray, x: np.ndarray, face: int = 0) -> np.ndarray:
    smoother = Smoother(params)
    return np.stack([smoother(face, float(t), row) for t, row in zip(times, x, strict=True)])


def test_recursion() -> None:
    """Number by number as it is written down."""
    rng = np.random.default_rng(0)
    params, x = rng.normal(0, 1, (4, 3)), rng.uniform(0, 5, (30, 3))
    times = np.cumsum(rng.uniform(0.01, 0.1, 30))
    got = run(params, times, x)
    for k in range(3):
        s = x[0, k]
        for t in range(1, 30):
            z = params[0, k] + params[1, k] * abs(x[t, k] - s) + params[2, k] * abs(x[t, k] - x[t - 1, k])
            z += params[3, k] * log(25 * (times[t] - times[t - 1]))
            s += (FLOOR + (1 - FLOOR) / (1 + exp(-z))) * (x[t, k] - s)
            assert got[t, k] == pytest.approx(s, abs=1e-5)


def test_constant_stays() -> None:
    x = np.full((20, len(AUS)), 1.7, np.float32)
    assert np.array_equal(run(LIKE, np.arange(20) / 30, x), x)


@pytest.mark.parametrize("fps", [10, 25, 60])
@pytest.mark.parametrize("way", [3.0, -3.0])
def test_a_step_is_followed(fps: int, way: float) -> None:
    """A step of 3 to 80 % within 3 frames, and without overshoot."""
    x = np.full((20, len(AUS)), 3.5 if way < 0 else 0.5)
    x[10:] += way
    followed = (run(shipped_or_like(), np.arange(20) / fps, x) - x[0]) / way
    assert followed[12].min() >= 0.8 and followed.max() <= 1 + 1e-6 and np.abs(followed[:10]).max() < 1e-6


def test_slow_moves_lag_three_frames_at_most() -> None:
    """However it was fitted: here by parameters that never follow."""
    x = np.arange(60)[:, None] * 0.05
    got = run(np.array([[-50.0], [0.0], [0.0], [0.0]]), np.arange(60) / 25, x)
    assert (x - got)[-1, 0] / 0.05 == pytest.approx(3.0, abs=0.01)


def test_trembling_is_damped() -> None:
    x = 2 + np.random.default_rng(1).normal(0, 0.08, (200, len(AUS)))
    got = run(shipped_or_like(), np.arange(200) / 25, x)
    assert np.abs(np.diff(got, 2, axis=0)).mean() < 0.6 * np.abs(np.diff(x, 2, axis=0)).mean()


def test_no_look_ahead() -> None:
    rng = np.random.default_rng(2)
    x, times = rng.uniform(0, 5, (40, len(AUS))), np.arange(40) / 25
    other = x.copy()
    other[25:] = rng.uniform(0, 5, (15, len(AUS)))
    assert np.array_equal(run(LIKE, times, x)[:25], run(LIKE, times, other)[:25])


def test_a_gap_starts_anew() -> None:
    x = np.random.default_rng(3).uniform(0, 5, (12, len(AUS)))
    times = np.arange(12) / 25
    whole, cut = run(LIKE, times, x), run(LIKE, times + 0.6 * (np.arange(12) >= 6), x)
    assert np.array_equal(cut[6:], run(LIKE, times[6:], x[6:])) and np.array_equal(cut[:6], whole[:6])
    assert np.allclose(cut[6], x[6]) and not np.allclose(whole[6], x[6])
    # Half a second is bridged.
    assert not np.allclose(run(LIKE, times + 0.4 * (np.arange(12) >= 6), x)[6], x[6])


def test_faces_do_not_mix() -> None:
    a, b = np.random.default_rng(4).uniform(0, 5, (2, 15, len(AUS)))
    smoother, got = Smoother(LIKE), []
    for t in range(15):
        got.append([smoother(0, t / 25, a[t]), smoother(7, t / 25, b[t])])
    times = np.arange(15) / 25
    assert np.array_equal(np.stack([g[0] for g in got]), run(LIKE, times, a))
    assert np.array_equal(np.stack([g[1] for g in got]), run(LIKE, times, b))


def made(seed: int, fps: float, frames: int = 240) -> Course:
    """Steps of 1 to 4 about every second, read with noise: much in the second AU."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(rng.choice([0.0, 1.0, 2.0, 4.0], (int(frames / fps) + 1, 2)), int(fps), axis=0)[:frames]
    return Course(np.arange(len(truth)) / fps, (truth + rng.normal(0, [0.05, 0.25], truth.shape)).clip(0, 5), truth)


def test_fit_beats_no_smoothing() -> None:
    params = fit_smoother([made(0, 60), made(1, 30), made(2, 30)], steps=60)
    assert params.shape == (4, 2) and (params[1] > 0).all() and (params[1] + params[2] >= 0).all() and (params[3] >= 0).all()
    for fps in (10, 60):  # promised for any fit, see HALF_AT
        step = np.repeat([[0.0], [3.0]], 2, 1)[[0, 0, 1, 1, 1]]
        assert run(params, np.arange(5) / fps, step)[3].min() > 2.4
    for fps in (12, 30, 60):
        held_out = made(9, fps)
        got, x, truth = held_out.smoothed(params), held_out.readings, held_out.truth
        rest = (np.abs(np.diff(truth, 2, axis=0)) == 0).all(1)
        assert (np.abs(got - truth).mean(0) < np.abs(x - truth).mean(0))[1]
        assert (np.abs(np.diff(got, 2, axis=0))[rest].mean(0) < 0.5 * np.abs(np.diff(x, 2, axis=0))[rest].mean(0)).all()
        for k in range(2):
            fits = [np.corrcoef(got[by:, k], truth[: len(truth) - by, k])[0, 1] for by in range(9)]
            assert int(np.argmax(fits)) <= 3


def test_fit_repeats() -> None:
    assert np.array_equal(*(fit_smoother([made(0, 30)], steps=3) for _ in range(2)))


def test_nothing_to_learn_from() -> None:
    with pytest.raises(InputError, match="no face was seen for long enough to learn from"):
        fit_smoother([made(0, 30, 3)])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[np.ndarray | None], Path]:
    """(parameters or None) -> a copy of the shipped base with a card that holds these."""
    assets = Path(str(resources.files("personalize").joinpath("assets")))

    def copy(params: np.ndarray | None) -> Path:
        folder = tmp_path_factory.mktemp("copy")
        shutil.copy(assets / "base-s.safetensors", folder)
        card = json.loads((assets / "base-s.json").read_text())
        card.pop("smoothing", None)
        (folder / "base-s.json").write_text(json.dumps(card | ({} if params is None else {"smoothing": to_card(params)})))
        return folder / "base-s"

    return copy


def test_card_holds_the_parameters(base: Callable[..., Path]) -> None:
    """They come back from it; a base without them has none, and what is broken is said in one line."""
    assert load_base(str(base(None))).smoothing is None
    params = fit_smoother([Course(c.times, np.tile(c.readings, (1, 11)), np.tile(c.truth, (1, 11))) for c in (made(0, 25, 64),)], steps=3)
    path = base(params)
    learnt = load_base(str(path)).smoothing
    assert learnt is not None and np.allclose(learnt, params, atol=1e-4)
    card = json.loads(path.with_suffix(".json").read_text())
    card["smoothing"]["bias"] = [0.0]
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(ProfileError, match="cannot be read"):
        load_base(str(path))


def table(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Timestamps (T,), intensities (T, K) and occurrences (T, K) of a table of one face."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    values = [np.array([[float(r[f"{c}_{what}"]) for c in COLUMNS] for r in rows]) for what in "rc"]
    return np.array([float(r["timestamp"]) for r in rows]), values[0], values[1]


@pytest.mark.parametrize("own", [False, True])
def test_predict_smooth(own: bool, base: Callable[..., Path], face_clip: Clip, tmp_path: Path, command: Run) -> None:
    """What is reported is smoothed, with a profile the person's; occurrence follows from it."""
    path, k = base(LIKE), len(AUS)
    thresholds = load_base(str(path)).thresholds.astype(float)
    words = ["predict", "--input", write_clip(tmp_path / "short.mp4", face_clip.images[15:35]), "--base", path]
    if own:
        thresholds = np.full(k, 0.75)
        values: dict[str, Any] = {"gate": np.full(k, 0.5), "trust": np.full(k, 0.2), "offsets": np.full(k, 0.5), "thresholds": thresholds}
        loaded = load_base(str(path))
        Profile(name="her", base_name=loaded.name, base_sha256=loaded.sha256, **values).save(tmp_path / "her")
        words += ["--profile", tmp_path / "her"]
    assert command(*words, "--output", tmp_path / "raw.csv").code == 0
    said = command(*words, "--smooth", "--output", tmp_path / "smooth.csv")
    assert said.code == 0 and said.warnings == []
    times, raw, _ = table(tmp_path / "raw.csv")
    _, got, present = table(tmp_path / "smooth.csv")
    assert np.abs(got - run(LIKE, times, raw)).max() < 4e-3 and np.abs(got - raw).max() > 0.05
    assert np.array_equal(present, got >= np.round(thresholds, 3))


def test_predict_smooth_needs_parameters(base: Callable[..., Path], face_clip: Clip, tmp_path: Path, command: Run) -> None:
    said = command("predict", "--input", face_clip.path, "--smooth", "--base", base(None), "--output", tmp_path / "a.csv")
    assert said.code == 2 and not (tmp_path / "a.csv").exists()
    assert said.err[-1] == (
        "error: the base model 'base-s' has not learnt to smooth: leave --smooth out, or train it with smoothing.people above 0."
    )


def test_predict_smooth_on_a_photograph(base: Callable[..., Path], face_photo: Path, tmp_path: Path, command: Run) -> None:
    words = ["predict", "--input", face_photo, "--base", base(None)]
    said = command(*words, "--smooth", "--output", tmp_path / "a.csv")
    assert said.code == 0
    assert said.warnings[0] == "warning: photo.png is no video: there is nothing to smooth, --smooth is left out"
    assert command(*words, "--output", tmp_path / "b.csv").code == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
