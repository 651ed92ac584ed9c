"""Comparing ways of reading the same frames: scores per AU, per person and pooled, and differences paired per person.

Readings and truth are given as ``{person: (T, K)}``, the same frames for every way of reading. Undefined scores are NaN and counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import metrics
from .aus import COLUMNS
from .metrics import Interval, bootstrap

METRICS = ("icc", "pcc", "mae", "f1", "auc")
"""The metrics that are compared, as in :mod:`personalize.metrics`."""
LESS_IS_BETTER = ("mae",)
People = Mapping[str, np.ndarray]


def evaluate(pred: People, target: People, thresholds: People, present_at: float = 2.0) -> dict[str, dict[str, Any]]:
    """Every metric of one way of reading.

    Args:
        pred, target: person -> (T, K) intensities 0-5. thresholds: person -> (K,), the reading from which an AU counts as present.
        present_at: true intensity that counts as present.

    Returns:
        For each AU column: 'pooled' (metric -> value over all people's frames), 'people' (person -> metric -> value), 'per_person'
        (metric -> mean over the people in whom it is defined), 'defined' (metric -> how many people that is). 'mean': the same four over
        AUs; there 'people' holds each person's mean over the AUs defined in them, 'defined' the number of AUs whose pooled metric is.
    """
    out: dict[str, dict[str, Any]] = {}
    everyone = list(pred)
    for k, au in enumerate(COLUMNS):
        people = {}
        for name in everyone:
            scores = metrics.scores(pred[name][:, k], target[name][:, k], float(thresholds[name][k]), present_at=present_at)
            people[name] = {m: scores[m] for m in METRICS}
        p, t = (np.concatenate([part[name][:, k] for name in everyone]) for part in (pred, target))
        # Each person may have a threshold of their own: how far the reading is above it is what they have in common.
        margin = np.concatenate([pred[name][:, k].astype(float) - float(thresholds[name][k]) for name in everyone])
        pooled = metrics.scores(p, t, 0.0, present_at=present_at)
        pooled["f1"] = metrics.f1(margin, (t >= present_at).astype(float), 0.0)
        out[au] = {
            "pooled": {m: pooled[m] for m in METRICS},
            "people": people,
            "per_person": {m: _mean([s[m] for s in people.values()]) for m in METRICS},
            "defined": {m: int(sum(np.isfinite(s[m]) for s in people.values())) for m in METRICS},
        }
    rows = list(out.values())
    out["mean"] = {
        "pooled": {m: _mean([r["pooled"][m] for r in rows]) for m in METRICS},
        "people": {name: {m: _mean([r["people"][name][m] for r in rows]) for m in METRICS} for name in everyone},
        "per_person": {m: _mean([r["per_person"][m] for r in rows]) for m in METRICS},
        "defined": {m: int(sum(np.isfinite(r["pooled"][m]) for r in rows)) for m in METRICS},
    }
    return out


def differences(before: Mapping[str, dict], after: Mapping[str, dict], metric: str) -> dict[str, Interval]:
    """``after - before`` of :func:`evaluate`'s scores, paired per person, per AU and for 'mean'; intervals bootstrap over people.

    'mean' is each person's mean over the AUs in which both are defined.
    """
    names = list(before[COLUMNS[0]]["people"])
    table = np.array([[after[au]["people"][n][metric] - before[au]["people"][n][metric] for au in COLUMNS] for n in names], dtype=float)
    out = {au: bootstrap(table[:, k]) for k, au in enumerate(COLUMNS)}
    out["mean"] = bootstrap([_mean(row) for row in table])
    return out


def sums(pred: People, target: People) -> np.ndarray:
    """(people, K, 7) float64 sums over frames: 1, p, t, p*p, t*t, p*t, |p - t|. What is pooled over any people is made of their sum."""
    rows = []
    for name in pred:
        p, t = pred[name].astype(np.float64), target[name].astype(np.float64)
        rows.append(np.stack([np.ones_like(p), p, t, p * p, t * t, p * t, np.abs(p - t)], axis=-1).sum(0))
    return np.stack(rows)


def pooled_icc(s: np.ndarray) -> np.ndarray:
    """ICC(3,1) of pooled frames from their :func:`sums` (..., 7) to (...); NaN where the target is constant.

    With two raters the ANOVA of Shrout & Fleiss (1979) comes down to 2 cov / (var + var).
    """
    n, p, t, pp, tt, pt = (s[..., i] for i in range(6))
    with np.errstate(divide="ignore", invalid="ignore"):
        vp, vt, cov = pp - p * p / n, tt - t * t / n, pt - p * t / n
        return np.where(vt > 1e-9 * np.maximum(tt, 1e-9), 2 * cov / (vp + vt), np.nan)


def pooled_mae(s: np.ndarray) -> np.ndarray:
    """Mean absolute error of pooled frames from their :func:`sums` (..., 7) to (...)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(s[..., 6] / s[..., 0])


def pooled_differences(before: People, after: People, target: People, draws: int = 4000, seed: int = 0) -> dict[str, dict[str, Interval]]:
    """``after - before`` of the pooled ICC and MAE, per AU and 'mean', with percentile bootstrap intervals.

    People are drawn, all their frames with them, and the pooled metric is computed anew for each draw.
    """
    a, b = sums(before, target), sums(after, target)
    people = len(a)
    counts = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), size=draws).astype(np.float64)
    out: dict[str, dict[str, Interval]] = {}
    for name, measure in (("icc", pooled_icc), ("mae", pooled_mae)):
        here = measure(b.sum(0)) - measure(a.sum(0))
        drawn = measure(np.tensordot(counts, b, 1)) - measure(np.tensordot(counts, a, 1))
        with warnings.catch_warnings():  # an AU that is undefined everywhere stays NaN
            warnings.simplefilter("ignore", RuntimeWarning)
            here = np.append(here, np.nanmean(here))
            drawn = np.column_stack([drawn, np.nanmean(drawn, axis=1)])
            low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
        if people < 2:
            low, high = np.full_like(low, np.nan), np.full_like(high, np.nan)
        out[name] = {au: Interval(float(here[k]), float(low[k]), float(high[k]), people) for k, au in enumerate((*COLUMNS, "mean"))}
    return out


def best_of(scores: Mapping[str, dict], among: tuple[str, ...], metric: str, kind: str) -> str:
    """The way of reading with the best mean. kind: 'pooled' or 'per_person'."""

    def worth(name: str) -> float:
        value = scores[name]["mean"][kind][metric]
        value = -value if metric in LESS_IS_BETTER else value
        return float(value) if np.isfinite(value) else -np.inf

    return max(among, key=worth)


def improves(interval: Interval, metric: str) -> bool:
    """Whether the difference is an improvement, its interval clear of zero."""
    return interval.high < 0 if metric in LESS_IS_BETTER else interval.low > 0


def _mean(values: Any) -> float:
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if len(finite) else float("nan")
