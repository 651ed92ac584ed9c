"""Metrics against second implementations: a two-way ANOVA by least squares, SciPy, torchmetrics, counting, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from personalize import metrics
from personalize.aus import AUS

RNG = np.random.default_rng(0)
PAIRS = [(RNG.normal(size=n) * a + b, RNG.integers(0, 6, n).astype(float)) for n, a, b in ((5, 1, 0), (80, 2, 3), (300, 0.2, -1))]
PAIRS += [(t * 0.7 + RNG.normal(size=len(t)) + 0.5, t) for _, t in PAIRS]


def anova_icc(pred: np.ndarray, target: np.ndarray) -> float:
    """ICC(3,1) from the residuals of nested least-squares fits y ~ frame + rater, never forming the closed sums of squares."""
    n = len(pred)
    y = np.concatenate([pred, target])
    frame = np.tile(np.eye(n), (2, 1))
    rater = np.repeat([0.0, 1.0], n)[:, None]

    def rss(design: np.ndarray) -> float:
        fit, *_ = np.linalg.lstsq(design, y, rcond=None)
        return float(((y - design @ fit) ** 2).sum())

    full = rss(np.hstack([frame, rater]))
    mse = full / (n - 1)
    msr = (rss(np.hstack([np.ones((2 * n, 1)), rater])) - full) / (n - 1)
    return (msr - mse) / (msr + mse)


@pytest.mark.parametrize(("pred", "target"), PAIRS)
def test_icc_against_two_way_anova(pred, target):
    assert metrics.icc31(pred, target) == pytest.approx(anova_icc(pred, target), abs=1e-9)


def test_icc_is_consistency_and_pooling_sees_the_offset():
    t = np.array([0.0, 1, 3, 5, 2])
    assert metrics.icc31(t + 4, t) == pytest.approx(1)
    assert metrics.icc31(5 - t, t) == pytest.approx(-1)
    pooled = metrics.icc31(np.concatenate([t, t + 2]), np.concatenate([t, t]))
    assert pooled < 0.9
    # For two raters the ANOVA form reduces to 2 cov / (var + var); judges 1 and 2 of Shrout & Fleiss (1979), table 2.
    a, b = np.array([9.0, 6, 8, 7, 10, 6]), np.array([2.0, 1, 4, 1, 5, 2])
    assert metrics.icc31(a, b) == pytest.approx(2 * np.cov(a, b)[0, 1] / (a.var(ddof=1) + b.var(ddof=1)))


@pytest.mark.parametrize(("pred", "target"), PAIRS)
def test_pcc_ccc_mae_against_other_implementations(pred, target):
    import torch
    from torchmetrics.functional import concordance_corrcoef

    assert metrics.pcc(pred, target) == pytest.approx(stats.pearsonr(pred, target).statistic, abs=1e-12)
    assert metrics.mae(pred, target) == pytest.approx(sum(abs(p - t) for p, t in zip(pred, target, strict=True)) / len(pred))
    # torchmetrics takes unbiased variances but the plain squared difference of means; Lin (1989) population moments throughout.
    n = len(pred)
    s = np.cov(pred, target, ddof=0)
    lin = 2 * s[0, 1] / (s[0, 0] + s[1, 1] + (pred.mean() - target.mean()) ** 2)
    assert metrics.ccc(pred, target) == pytest.approx(lin, abs=1e-12)
    if n > 200:
        other = float(concordance_corrcoef(torch.tensor(pred), torch.tensor(target)))
        assert metrics.ccc(pred, target) == pytest.approx(other, abs=2e-3)


@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_auc_with_ties_is_the_count_of_pairs_and_mann_whitney(levels):
    rng = np.random.default_rng(levels)
    score, y = rng.integers(0, levels, 150).astype(float), rng.integers(0, 2, 150)
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in score[y == 1] for b in score[y == 0]]
    assert metrics.auc(score, y) == pytest.approx(np.mean(wins), abs=1e-12)
    u = stats.mannwhitneyu(score[y == 1], score[y == 0]).statistic
    assert metrics.auc(score, y) == pytest.approx(u / ((y == 1).sum() * (y == 0).sum()), abs=1e-12)


def test_auc_against_torchmetrics():
    import torch
    from torchmetrics.functional.classification import binary_auroc

    rng = np.random.default_rng(1)
    score, y = rng.random(200), rng.integers(0, 2, 200)
    assert metrics.auc(score, y) == pytest.approx(float(binary_auroc(torch.tensor(score), torch.tensor(y))), abs=1e-6)


def test_f1_by_counting_and_torchmetrics():
    import torch
    from torchmetrics.functional.classification import binary_f1_score

    rng = np.random.default_rng(2)
    score, y = rng.random(500), rng.integers(0, 2, 500)
    on = score >= 0.4
    tp, fp, fn = (on & (y == 1)).sum(), (on & (y == 0)).sum(), (~on & (y == 1)).sum()
    assert metrics.f1(score, y, 0.4) == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert metrics.f1(score, y, 0.4) == pytest.approx(float(binary_f1_score(torch.tensor(on.astype(int)), torch.tensor(y))), abs=1e-6)


@pytest.mark.parametrize("levels", [3, 1000])
def test_best_threshold_against_trying_all(levels):
    rng = np.random.default_rng(levels)
    score, y = rng.integers(0, levels, 120).astype(float), rng.integers(0, 2, 120)
    best = max(metrics.f1(score, y, t) for t in np.unique(score))
    assert metrics.f1(score, y, metrics.best_threshold(score, y)) == pytest.approx(best)


@pytest.mark.parametrize("name", ["icc31", "pcc", "ccc"])
def test_a_constant_target_is_undefined_not_zero(name):
    metric = getattr(metrics, name)
    assert np.isnan(metric(np.array([0.0, 1, 2]), np.full(3, 2.0)))
    assert np.isnan(metric(np.array([1.0]), np.array([1.0]))) and np.isnan(metric(np.zeros(0), np.zeros(0)))


def test_other_degenerate_cases():
    t = np.array([0.0, 1, 2])
    assert np.isnan(metrics.pcc(np.ones(3), t))  # a constant prediction has no correlation
    assert metrics.icc31(np.ones(3), t) == 0 and metrics.ccc(np.ones(3), t) == 0  # and no agreement
    assert np.isnan(metrics.f1(t, np.zeros(3), 1)) and np.isnan(metrics.auc(t, np.zeros(3))) and np.isnan(metrics.auc(t, np.ones(3)))
    assert metrics.f1(t, np.array([0, 0, 1]), 9.0) == 0  # missing every one is a true zero
    assert np.isnan(metrics.mae(np.zeros(0), np.zeros(0)))
    assert metrics.mae(np.array([1.0, np.nan]), np.array([2.0, 0.0])) == 1
    with pytest.raises(ValueError, match="same length"):
        metrics.mae(np.zeros(2), np.zeros(3))


def test_table_pools_splits_and_counts():
    rng = np.random.default_rng(3)
    n, k = 90, len(AUS)
    target = rng.integers(0, 6, (n, k)).astype(float)
    pred = np.clip(target + rng.normal(size=(n, k)), 0, 5)
    people = np.repeat(["a", "b", "c"], 30)
    known = np.zeros((n, k), dtype=bool)
    known[:, :3] = True
    known[60:, 1] = False
    target[30:60, 0] = 0  # b never shows AU1
    target[:, 2] = rng.integers(0, 2, n)
    occurrence = np.zeros(k, dtype=bool)
    occurrence[2] = True
    out = metrics.table(pred, target, known, people, np.full(k, 1.5), occurrence)
    assert list(out) == ["AU01", "AU02", "AU04", "mean"]
    au1 = out["AU01"]
    assert au1["pooled"]["icc"] == pytest.approx(anova_icc(pred[:, 0], target[:, 0])) and au1["pooled"]["n"] == n
    mine = people == "c"
    assert au1["people"]["c"]["pcc"] == pytest.approx(stats.pearsonr(pred[mine, 0], target[mine, 0]).statistic)
    assert np.isnan(au1["people"]["b"]["icc"]) and np.isnan(au1["people"]["b"]["f1"]) and np.isfinite(au1["people"]["b"]["mae"])
    assert au1["undefined"] == {"icc": 1, "pcc": 1, "ccc": 1, "mae": 0, "f1": 1, "auc": 1}
    assert au1["per_person"]["icc"] == pytest.approx(np.mean([au1["people"][p]["icc"] for p in "ac"]))
    assert set(out["AU02"]["people"]) == {"a", "b"} and out["AU02"]["pooled"]["n"] == 60
    # Presence is not intensity: 1 counts as present although intensities count from 2, and there is no ICC or MAE on it.
    assert out["AU04"]["pooled"]["present"] == target[:, 2].sum() and np.isnan(out["AU04"]["pooled"]["mae"])
    assert au1["pooled"]["present"] == (target[:, 0] >= 2).sum()
    assert out["mean"]["undefined"]["icc"] == 1
    assert out["mean"]["pooled"]["icc"] == pytest.approx((au1["pooled"]["icc"] + out["AU02"]["pooled"]["icc"]) / 2)
    with pytest.raises(ValueError, match="shapes differ"):
        metrics.table(pred, target, known, people[:-1], np.ones(k))


def test_bootstrap_against_scipy_and_the_normal_limit():
    x = np.random.default_rng(4).normal(1.0, 2.0, 40)
    mine = metrics.bootstrap(x, n=20_000, seed=1)
    other = stats.bootstrap((x,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    half = 1.96 * x.std() / np.sqrt(40)
    assert mine.mean == pytest.approx(x.mean()) and mine.n == 40
    assert (mine.low, mine.high) == pytest.approx((other.low, other.high), abs=0.03)
    assert (mine.low, mine.high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.06)
    assert mine == metrics.bootstrap(x, n=20_000, seed=1) and mine != metrics.bootstrap(x, n=20_000, seed=2)


def test_bootstrap_and_paired_count_what_is_undefined():
    interval = metrics.bootstrap([1.0, np.nan, 3.0])
    assert (interval.n, interval.undefined, interval.mean) == (2, 1, 2.0)
    alone = metrics.bootstrap([1.0])
    assert alone.mean == 1 and np.isnan(alone.low) and not alone.clear
    a, b = np.array([1.0, 2, 3, np.nan]), np.array([1.5, 2.5, 3.5, 9])
    pair = metrics.paired(a, b)
    assert (pair.mean, pair.low, pair.high, pair.undefined) == (0.5, 0.5, 0.5, 1) and pair.clear
    assert str(pair) == "+0.500 [+0.500, +0.500]" and pair.as_dict()["n"] == 3
    # The spread between people cancels in pairs.
    rng = np.random.default_rng(5)
    base = rng.normal(0, 3, 20)
    assert metrics.paired(base, base + 0.2 + rng.normal(0, 0.05, 20)).clear
