"""How good AU readings are: agreement with labels, per AU, pooled and per person, with intervals over people.

Undefined cases are NaN, never 0, and are counted: a person whose AU never moves has no ICC, no PCC and no AUC on it. Every function
takes 1-D arrays of the same length and looks only at frames where both are finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .aus import AUS, column

INTENSITY = ("icc", "pcc", "ccc", "mae")
"""Metrics of intensities."""
OCCURRENCE = ("f1", "auc")
"""Metrics of occurrence."""
METRICS = INTENSITY + OCCURRENCE


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"two 1-D arrays of the same length are needed, got {a.shape} and {b.shape}")
    ok = np.isfinite(a) & np.isfinite(b)
    return a[ok], b[ok]


def icc31(pred: np.ndarray, target: np.ndarray) -> float:
    """ICC(3,1), the consistency form, of two raters (Shrout & Fleiss, 1979): (MSR - MSE) / (MSR + MSE), in -1 to 1.

    MSR, MSE: mean squares of frames and of the residual in the two-way ANOVA. A constant offset leaves it unchanged, so one person's
    ICC does not see that person's offset, and the ICC of pooled people does. NaN with fewer than two frames or a constant target; a
    constant prediction against a moving target gives 0, which is its honest score.

    >>> round(icc31(np.array([0.0, 1.0, 3.0]), np.array([1.0, 2.0, 4.0])), 6)
    1.0
    """
    p, t = _pair(pred, target)
    if len(t) < 2 or np.ptp(t) == 0:
        return float("nan")
    table = np.stack([p, t], axis=1)
    rows, columns, grand = table.mean(axis=1), table.mean(axis=0), table.mean()
    msr = 2 * ((rows - grand) ** 2).sum() / (len(t) - 1)
    mse = ((table - rows[:, None] - columns + grand) ** 2).sum() / (len(t) - 1)
    return float((msr - mse) / (msr + mse))


def pcc(pred: np.ndarray, target: np.ndarray) -> float:
    """Pearson's correlation, -1 to 1; NaN where either is constant.

    >>> round(pcc(np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0, 4.0])), 6)
    1.0
    """
    p, t = _pair(pred, target)
    if len(t) < 2 or np.ptp(t) == 0 or np.ptp(p) == 0:
        return float("nan")
    p, t = p - p.mean(), t - t.mean()
    return float((p * t).sum() / np.sqrt((p**2).sum() * (t**2).sum()))


def ccc(pred: np.ndarray, target: np.ndarray) -> float:
    """Lin's (1989) concordance, with population moments: lowered by offset and scale too. NaN where the target is constant.

    >>> ccc(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    1.0
    """
    p, t = _pair(pred, target)
    if len(t) < 2 or np.ptp(t) == 0:
        return float("nan")
    covariance = ((p - p.mean()) * (t - t.mean())).mean()
    return float(2 * covariance / (p.var() + t.var() + (p.mean() - t.mean()) ** 2))


def mae(pred: np.ndarray, target: np.ndarray) -> float:
    """Mean absolute error in intensity units; NaN without frames."""
    p, t = _pair(pred, target)
    return float(np.abs(p - t).mean()) if len(t) else float("nan")


def f1(score: np.ndarray, present: np.ndarray, threshold: float) -> float:
    """F1 of ``score >= threshold`` against ``present`` (0 or 1), counted over all frames at once; NaN where it is never present.

    >>> f1(np.array([1.0, 3.0, 3.0]), np.array([0, 1, 0]), 2.0) == 2 / 3
    True
    """
    s, y = _pair(score, present)
    on, y = s >= threshold, y > 0.5
    if not y.any():
        return float("nan")
    return float(2 * (on & y).sum() / (on.sum() + y.sum()))


def best_threshold(score: np.ndarray, present: np.ndarray) -> float:
    """The threshold of the highest F1 on these frames, midway between two scores; NaN where it is never, or always, present."""
    s, y = _pair(score, present)
    y = y > 0.5
    if not y.any() or y.all():
        return float("nan")
    values, inverse = np.unique(s, return_inverse=True)
    positives = np.bincount(inverse, weights=y, minlength=len(values))[::-1].cumsum()[::-1]
    called = np.bincount(inverse, minlength=len(values))[::-1].cumsum()[::-1]
    best = int(np.argmax(2 * positives / (called + y.sum())))
    return float(values[best] if best == 0 else (values[best - 1] + values[best]) / 2)


def auc(score: np.ndarray, present: np.ndarray) -> float:
    """Area under the ROC: the chance that a present frame scores above an absent one, ties counting half (Mann & Whitney, 1947).

    NaN unless both states occur.

    >>> auc(np.array([0.0, 1.0, 1.0, 2.0]), np.array([0, 0, 1, 1]))
    0.875
    """
    s, y = _pair(score, present)
    y = y > 0.5
    n1, n0 = int(y.sum()), int((~y).sum())
    if not n1 or not n0:
        return float("nan")
    _, inverse, counts = np.unique(s, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[inverse]
    return float((ranks[y].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def scores(pred: np.ndarray, target: np.ndarray, threshold: float, occurrence: bool = False, present_at: float = 2.0) -> dict[str, float]:
    """Every metric of one AU on some frames, and 'n' frames, 'present' frames.

    target: intensity 0-5, present from ``present_at``; or, with ``occurrence``, 0 or 1 (intensity metrics are then NaN: a 1 is
    'present', not 'trace').
    """
    p, t = _pair(pred, target)
    y = (t >= (1.0 if occurrence else present_at)).astype(float)
    out = dict.fromkeys(METRICS, float("nan"))
    if not occurrence:
        out |= {"icc": icc31(p, t), "pcc": pcc(p, t), "ccc": ccc(p, t), "mae": mae(p, t)}
    out |= {"f1": f1(p, y, threshold), "auc": auc(p, y)}
    return out | {"n": float(len(t)), "present": float(y.sum())}


def table(
    pred: np.ndarray,
    target: np.ndarray,
    known: np.ndarray,
    people: Sequence[str] | np.ndarray,
    thresholds: np.ndarray,
    occurrence: np.ndarray | None = None,
    present_at: float = 2.0,
    aus: Sequence[int] = AUS,
) -> dict[str, dict]:
    """All metrics, per AU: pooled over frames, and per person.

    Args:
        pred, target: (T, K) intensities 0-5. known: (T, K) bool. people: (T,) names.
        thresholds: (K,) of the predicted intensity, from which an AU counts as present.
        occurrence: (K,) bool, see :func:`scores`. present_at: target intensity that counts as present (2 on DISFA by convention).

    Returns:
        For each AU column with a known label, e.g. 'AU06': 'pooled' (metric -> value), 'people' (name -> metric -> value),
        'per_person' (metric -> mean over people where it is defined) and 'undefined' (metric -> number of people where it is not,
        of the people with labels). 'mean': the same 'pooled' and 'per_person', averaged over AUs where defined, and 'undefined', the
        number of AUs where the pooled metric is not.
    """
    pred, target, known, people = np.asarray(pred), np.asarray(target), np.asarray(known, dtype=bool), np.asarray(people)
    if pred.shape != target.shape or pred.shape != known.shape or pred.shape != (len(people), len(aus)):
        given = f"pred {pred.shape}, target {target.shape}, known {known.shape}, {len(people)} people, {len(aus)} AUs"
        raise ValueError(f"shapes differ: {given}")
    flags = np.zeros(len(aus), dtype=bool) if occurrence is None else np.asarray(occurrence, dtype=bool)
    out: dict[str, dict] = {}
    for k, au in enumerate(aus):
        on = known[:, k]
        if not on.any():
            continue
        settings = (float(thresholds[k]), bool(flags[k]), present_at)
        each = {}
        for name in dict.fromkeys(people[on].tolist()):
            mine = on & (people == name)
            each[str(name)] = scores(pred[mine, k], target[mine, k], *settings)
        out[column(au)] = {
            "pooled": scores(pred[on, k], target[on, k], *settings),
            "people": each,
            "per_person": {m: _mean([s[m] for s in each.values()]) for m in METRICS},
            "undefined": {m: int(sum(np.isnan(s[m]) for s in each.values())) for m in METRICS},
        }
    rows = list(out.values())
    out["mean"] = {
        "pooled": {m: _mean([r["pooled"][m] for r in rows]) for m in METRICS},
        "per_person": {m: _mean([r["per_person"][m] for r in rows]) for m in METRICS},
        "undefined": {m: int(sum(np.isnan(r["pooled"][m]) for r in rows)) for m in METRICS},
    }
    return out


def _mean(values: Sequence[float]) -> float:
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if len(finite) else float("nan")


@dataclass(frozen=True)
class Interval:
    """A mean over people with its percentile bootstrap interval; ``undefined`` people were left out of the ``n``."""

    mean: float
    low: float
    high: float
    n: int
    undefined: int = 0
    level: float = 0.95

    @property
    def clear(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return bool(self.low > 0 or self.high < 0)

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def bootstrap(values: Sequence[float] | np.ndarray, n: int = 10_000, seed: int = 0, level: float = 0.95) -> Interval:
    """Percentile bootstrap interval of the mean (Efron & Tibshirani, 1993, ch. 13), people being what is drawn.

    values: one a person; NaN are left out and counted. With fewer than two people the interval is NaN.
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    undefined = int((~np.isfinite(x)).sum())
    x = x[np.isfinite(x)]
    if len(x) < 2:
        return Interval(float(x[0]) if len(x) else float("nan"), float("nan"), float("nan"), len(x), undefined, level)
    rng = np.random.default_rng(seed)
    step = max(1, 2_000_000 // len(x))  # bounded memory
    means = np.concatenate([x[rng.integers(0, len(x), (min(step, n - i), len(x)))].mean(axis=1) for i in range(0, n, step)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(x.mean()), float(low), float(high), len(x), undefined, level)


def paired(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, n: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Interval of the mean of ``b - a``, paired per person: above zero where b is larger. A person undefined in either is left out."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values must match, got {a.shape} and {b.shape}")
    return bootstrap(b - a, n, seed, level)
