"""The demo: its table against other implementations, its choices, and the whole command."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error

from personalize import demo, scoring
from personalize.aus import AUS, COLUMNS
from personalize.metrics import icc31
from personalize.predict import Row
from personalize.synth.clips import read_truth

K = len(AUS)


def still_life(frames: int = 30) -> np.ndarray:
    """Truth in which only AU06, AU12 and AU43 move."""
    truth = np.full((frames, K), 0.2)
    t = np.linspace(0, np.pi, frames)
    truth[:, COLUMNS.index("AU12")] = 4 * np.sin(t)
    truth[:, COLUMNS.index("AU06")] = 2 * np.sin(t) ** 2
    truth[5, COLUMNS.index("AU43")] = 5
    return truth


@pytest.mark.parametrize(
    ("means", "said"),
    [
        ([0.5, 0.6, 0.3, 0.2], "ICC and mean error better."),
        ([0.5, 0.6, 0.3, 0.4], "ICC better, mean error worse."),
        ([0.6, 0.5, 0.3, 0.302], "ICC worse."),
        ([0.6, 0.602, 0.3, 0.3], "nothing changed."),
    ],
)
def test_the_verdict_says_when_it_got_worse(means: list[float], said: str) -> None:
    assert demo.verdict([["demo", "1 that move", *means]]).startswith(
        f"For this person, where AUs move: {said} One person is an anecdote: "
    )
    several = [["demo", "", *(m + 0.1 for m in means)], ["demo2", "", *(m - 0.1 for m in means)], ["demo3", "", *[np.nan] * 4]]
    assert demo.verdict(several).startswith(f"For these 3 people, where AUs move: {said} So few are an anecdote: ")


def test_table_holds_what_moves_and_the_error_of_the_rest() -> None:
    truth = still_life()
    rng = np.random.default_rng(0)
    base, own = truth + rng.uniform(0, 1, truth.shape), truth + rng.uniform(0, 0.3, truth.shape)
    levels = np.full(K, 2.0)
    scores = [scoring.evaluate({"demo": x}, {"demo": truth}, {"demo": levels}) for x in (base, own)]
    rows = demo.table_rows(scores[0], scores[1], truth)
    assert [r[0] for r in rows] == ["AU06", "AU12", "AU43", "mean", "others"]
    k = COLUMNS.index("AU12")
    assert rows[1][1] == "lip corner puller" and rows[1][2] == pytest.approx(truth[:, k].max())
    assert rows[1][3:] == pytest.approx(
        [
            icc31(base[:, k], truth[:, k]),
            icc31(own[:, k], truth[:, k]),
            mean_absolute_error(truth[:, k], base[:, k]),
            mean_absolute_error(truth[:, k], own[:, k]),
        ]
    )
    assert rows[3][3] == pytest.approx(np.mean([r[3] for r in rows[:3]]))
    rest = [i for i, c in enumerate(COLUMNS) if c not in ("AU06", "AU12", "AU43")]
    assert rows[4][1] == "19 at rest" and rows[4][5] == pytest.approx(np.abs(base - truth)[:, rest].mean())


def test_telling_frames_differ() -> None:
    truth = still_life()
    chosen = demo.telling_frames(truth, 3)
    assert 5 in chosen and len(set(chosen)) == 3 and chosen == sorted(chosen)
    peak = int(truth[:, COLUMNS.index("AU12")].argmax())
    assert min(abs(c - peak) for c in chosen) <= 3


def test_rows_of_others_and_empty_frames_are_left_out() -> None:
    a, b, c = (np.full(K, x) for x in (1.0, 2.0, 3.0))
    rows = [
        Row("", (0, 1, 0.0), a, b),
        Row("", (0, 0, 0.0), c, c),
        Row("", (1, -1, 0.1)),
        Row("", (2, 1, 0.2), b),
    ]
    frames, before, after = demo.readings_of(rows, 1)
    assert frames.tolist() == [0, 2]
    assert before[:, 0].tolist() == [1, 2] and after[:, 0].tolist() == [2, 2]


def test_picture(tmp_path: Path) -> None:
    truth = still_life()
    images = {3: np.zeros((64, 64, 3), np.uint8), 9: np.full((64, 64, 3), 200, np.uint8)}
    demo.picture(tmp_path / "result.png", images, truth + 0.5, truth, truth, np.arange(len(truth)))
    assert (tmp_path / "result.png").read_bytes()[:4] == b"\x89PNG"


def test_support_and_query_are_two_days_of_one_person() -> None:
    support, query = demo.clips_of(4)
    assert support.split == query.split == "demo" and support.person == query.person == 4
    assert support.seed != query.seed and (support.seconds, query.seconds) == (20.0, 10.0)


@pytest.mark.slow
def test_demo_for_real(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Everything, with a fit made short."""
    from personalize.cli import main

    folder = tmp_path / "out"
    code = main(["demo", "--people", "2", "--output", str(folder), "optim.max_steps=8", "generator.samples=24", "rounds=1"])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert said.out.count("ICC personal") == 2 and "All of them" in said.out and "personalize fit --identity" in said.err
    assert "For these 2 people" in said.err and (folder / "runs/demo2/v1/profile/manifest.json").is_file()
    for name in ("overlay.mp4", "result.png", "query_aus.csv", "runs/demo/v1/report.html", "runs/demo/v1/profile/manifest.json"):
        assert (folder / name).stat().st_size > 0, name
    truth = read_truth(demo.clips_of(0)[1].path(folder / "clips"))
    rows = list(csv.DictReader((folder / "query_aus.csv").open()))
    assert len({r["frame"] for r in rows}) == len(truth) == 125


def test_demo_of_nobody(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from personalize.cli import main

    assert main(["demo", "--people", "0", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: --people must be at least 1, not 0.\n"
