"""What the base model reads on synthetic people it never met: every table of its proof, each bar beside its figure.

    python benchmarks/base_tables.py --data FOLDER [--second FOLDER] [--train FOLDER] [--base NAME] [--json out.json] [--md out.md]

FOLDER holds tracked renders of validation people, as ``python -m personalize.synth.dataset FOLDER --split validation`` writes them, and
those of the second setting (``--setting second``; elsewhere: --second). What is missing is rendered first, also the pictures that show one
expression at several angles and sizes; it is kept in FOLDER and used again, so remove it when the renderer changes.

AUC: present from intensity 1. ICC(3,1) and AUC are pooled over pictures, per AU; a mean is over AUs. [low, high]: 95 % intervals from
drawing people, not pictures. A person's reference (the first neutral picture, which '+neutral' is given) is judged in no column.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from personalize import ui
from personalize.aus import AUS, COLUMNS
from personalize.base import references
from personalize.config import load_recipe
from personalize.errors import PersonalizeError
from personalize.geometry import IBUG_TO_MESH
from personalize.metrics import Interval
from personalize.predict import check_target
from personalize.synth import dataset
from personalize.tracks import BLUR_LOG_RANGE, sharpness
from personalize.weights import SHIPPED, Base, load_base

PRESENT, ABSENT = 1.0, 0.5
"""Intensity from which an AU is there, and below which it is not; what lies between counts for neither."""

CONDITIONS: tuple[tuple[int, int], ...] = ((6, 12), (17, 9), (17, 4), (17, 15), (9, 4), (15, 17))
"""(AU, the AU beside it): pairs that emotional faces show together, and a model must tell apart."""

YAWS = (0, 15, 30, 45)
"""Degrees."""
HEIGHTS = (48, 64, 96, 128, 160, 256)
"""Pixels from chin to hairline."""
TURNED_HEIGHT, TURNED_SHARE = 128, 2 / 3
EXPRESSIONS = 4
NEUTRAL, TURNED, SIZED = 0, 1, 2
"""What a row of the re-rendered pictures is for."""


# ---------------------------------------------------------------- figures


def draws(people: int, n: int, seed: int = 0) -> np.ndarray:
    """(1 + n, people) how often each person counts: once in the first row, then as often as each bootstrap sample drew them."""
    drawn = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), n)
    return np.concatenate([np.ones((1, people)), drawn])


def _summed(values: np.ndarray, own: np.ndarray, people: int) -> np.ndarray:
    """(N, ...) to (people, ...)."""
    out = np.zeros((people, *values.shape[1:]))
    np.add.at(out, own, values)
    return out


def _moments(a: np.ndarray, b: np.ndarray, own: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Variance of a, of b, and covariance, (B, K) each, under each row of weights. a, b: (N, K)."""
    people = weights.shape[1]
    a, b = a - a.mean(0), b - b.mean(0)
    n = (weights @ np.bincount(own, minlength=people))[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        ma, mb, aa, bb, ab = (weights @ _summed(v, own, people) / n for v in (a, b, a * a, b * b, a * b))
        return aa - ma**2, bb - mb**2, ab - ma * mb


def icc_draws(pred: np.ndarray, target: np.ndarray, own: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B, K) ICC(3,1), which for two raters is 2 cov / (var + var), under each row of ``weights``; see :func:`draws`.

    pred, target: (N, K). own: (N,) each picture's person, a column of weights. NaN where the target is constant.
    """
    p, t, both = _moments(pred, target, own, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(t > 1e-9, 2 * both / (p + t), np.nan)


def pcc_draws(a: np.ndarray, b: np.ndarray, own: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B, K) Pearson's correlation; arguments as :func:`icc_draws`. NaN where either is constant."""
    p, t, both = _moments(a, b, own, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.minimum(p, t) > 1e-12, both / np.sqrt(p * t), np.nan)


def mean_draws(values: np.ndarray, own: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B, K) means of (N, K) values."""
    n = weights @ np.bincount(own, minlength=weights.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(weights @ _summed(values, own, weights.shape[1]) / n[:, None])


def auc_draws(pred: np.ndarray, target: np.ndarray, own: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B, K) area under the ROC of ``target >= PRESENT``, ties counting half; arguments as :func:`icc_draws`."""
    out = []
    for k in range(pred.shape[1]):
        order = np.argsort(pred[:, k], kind="stable")
        score, present = pred[order, k], target[order, k] >= PRESENT
        w = weights[:, own[order]]
        starts = np.flatnonzero(np.r_[True, np.diff(score) > 0])
        on, off = (np.add.reduceat(w * flag, starts, axis=1) for flag in (present, ~present))
        below = np.cumsum(off, 1) - off / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            out.append((on * below).sum(1) / (on.sum(1) * off.sum(1)))
    return np.stack(out, 1)


def over_aus(values: np.ndarray) -> np.ndarray:
    """(B, K) to (B,): the mean over AUs that are defined."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(known, values, 0).sum(1) / known.sum(1))


def interval(values: np.ndarray, people: int) -> Interval:
    """Of (B,) draws, the first of which is the figure itself. NaN with fewer than two people."""
    rest = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(rest, [0.025, 0.975]) if people > 1 and len(rest) else (np.nan, np.nan)
    return Interval(float(values[0]), float(low), float(high), people)


# ---------------------------------------------------------------- tables


@dataclass
class Table:
    """Cells are text, counts, figures, or intervals."""

    title: str
    columns: list[str]
    rows: list[list[Any]]
    note: str = ""

    def markdown(self) -> str:
        """A section of its own."""
        body = ui.markdown(self.title, self.columns, [[shown(c) for c in row] for row in self.rows])
        return "\n".join([body, self.note]) if self.note else body.rstrip("\n")


@dataclass
class Bar:
    """A figure and what was asked of it. ``at_least``: whether more is better."""

    name: str
    value: float
    bar: float
    at_least: bool

    @property
    def met(self) -> bool:
        """NaN meets no bar."""
        return bool(self.value >= self.bar if self.at_least else self.value <= self.bar)

    def row(self) -> list[Any]:
        """For a table."""
        asked, away = f"{'>=' if self.at_least else '<='} {self.bar:g}", f"{abs(self.value - self.bar):.3f}"
        return [self.name, f"{self.value:.3f}", asked, f"{'met' if self.met else 'MISSED'} by {away}"]


@dataclass
class Report:
    """All tables and bars so far."""

    tables: list[Table] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)

    def add(self, table: Table, *bars: Bar) -> None:
        """A table, printed at once: the next one may take a while."""
        self.tables.append(table)
        self.bars += bars
        ui.table(table.title, table.columns, [[shown(c) for c in row] for row in table.rows])
        if table.note:
            print(table.note + "\n", flush=True)

    def verdict(self) -> Table:
        """Each bar beside its figure."""
        return Table("Bars", ["what", "figure", "bar", ""], [b.row() for b in self.bars])

    def markdown(self, heading: str) -> str:
        """All of it."""
        parts = [f"# {heading}", (__doc__ or "").split("\n\n")[-1].strip()]
        return "\n\n".join([*parts, *(t.markdown() for t in [self.verdict(), *self.tables])]) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is undefined is null."""
        bars = [{"name": b.name, "value": b.value, "bar": b.bar, "at_least": b.at_least, "met": b.met} for b in self.bars]
        tables = [{"title": t.title, "columns": t.columns, "rows": [[_plain(c) for c in r] for r in t.rows]} for t in self.tables]
        return {"bars": [{k: _plain(v) for k, v in b.items()} for b in bars], "tables": tables}


def shown(cell: Any) -> Any:
    """A cell as :func:`personalize.ui.table` takes it."""
    if isinstance(cell, Interval):
        return f"{cell.mean:.3f} [{cell.low:.3f}, {cell.high:.3f}]" if np.isfinite(cell.mean) else None
    return float(cell) if isinstance(cell, np.floating) else cell


def _plain(cell: Any) -> Any:
    if isinstance(cell, Interval):
        return {k: _plain(v) for k, v in cell.as_dict().items() if k in ("mean", "low", "high", "n")}
    if isinstance(cell, (float, np.floating)):
        return round(float(cell), 5) if np.isfinite(cell) else None
    return int(cell) if isinstance(cell, np.integer) else cell


# ---------------------------------------------------------------- reading


def only68(landmarks: Tensor, depth: bool = True) -> Tensor:
    """(N, 478, 3) with all but the 68 points of ibug's scheme NaN; without ``depth`` their z too."""
    out = torch.full_like(landmarks, torch.nan)
    out[:, list(IBUG_TO_MESH), : 3 if depth else 2] = landmarks[:, list(IBUG_TO_MESH), : 3 if depth else 2]
    return out


def reference_rows(data: dict[str, np.ndarray]) -> np.ndarray:
    """(N,) the row of each picture's person's first neutral picture; -1 where they have none."""
    first = references(data)
    return np.array([first.get(int(p), -1) for p in data["person"]])


@dataclass
class Way:
    """How a picture is read: by which branch, from which points, with the neutral or without."""

    crop: bool = True
    landmarks: bool = True
    neutral: bool = False
    points: str = "all"


WAYS = {
    "crop": Way(landmarks=False),
    "landmarks": Way(crop=False),
    "68 points": Way(crop=False, points="68"),
    "fused": Way(),
    "fused+neutral": Way(neutral=True),
    "crop+neutral": Way(landmarks=False, neutral=True),
    "landmarks+neutral": Way(crop=False, neutral=True),
    "68 points+neutral": Way(crop=False, points="68", neutral=True),
    "68 points, no depth": Way(crop=False, points="flat"),
    "fused, 68 points": Way(points="68"),
    "fused, 68 points+neutral": Way(points="68", neutral=True),
    "fused, 68 points, no depth": Way(points="flat"),
}
BRANCHES = ("crop", "landmarks", "68 points", "fused", "fused+neutral")


class Pictures:
    """Tracked pictures and what the model reads on them; the crops pass the backbone once.

    judged: (N,) bool, all but the references and the people who have none.
    """

    def __init__(self, base: Base, data: dict[str, np.ndarray], batch: int = 32) -> None:
        self.base, self.data = base, data
        self.target = data["target"].astype(np.float64)
        self.person = data["person"]
        self.reference = reference_rows(data)
        self.judged = (self.reference >= 0) & (self.reference != np.arange(len(self.reference)))
        self.points = torch.from_numpy(data["landmarks"].astype(np.float32))
        crop = torch.from_numpy(data["crop"]).permute(0, 3, 1, 2)
        with torch.no_grad():
            self.looks = torch.cat([base.net.crop_features(crop[i : i + batch]) for i in range(0, len(crop), batch)])
        self._kept: dict[str, dict[str, np.ndarray]] = {}

    @torch.no_grad()
    def read(self, way: str) -> dict[str, np.ndarray]:
        """'intensity' (N, K), as reported, and 'expected_error' (N,), read in one of WAYS."""
        if way not in self._kept:
            w = WAYS[way]
            points = self.points if w.points == "all" else only68(self.points, w.points == "68")
            on = torch.ones(len(points), dtype=torch.bool)
            neutral = has_neutral = None
            if w.neutral:
                own = torch.from_numpy(self.reference.clip(0))
                neutral, has_neutral = {"crop": self.looks[own], "landmarks": points[own]}, torch.from_numpy(self.reference >= 0)
            read = self.base.net.answer(self.looks, points, on & w.landmarks, neutral, has_neutral, on & w.crop)
            reported = self.base.report(read["intensity"].numpy(), float(w.neutral))
            self._kept[way] = {"intensity": reported.astype(np.float64), "expected_error": read["expected_error"].double().numpy()}
        return self._kept[way]


class Judge:
    """Figures of readings on some pictures, with intervals over their people.

    The people of all data sets given share the draws, so that differences between data sets of the same people are paired.
    """

    def __init__(self, n: int, *pictures: Pictures) -> None:
        self.ids = np.unique(np.concatenate([p.person for p in pictures]))
        self.weights = draws(len(self.ids), n)

    def take(self, p: Pictures, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """The judged pictures among ``rows`` and whose they are, as columns of the weights."""
        rows = np.flatnonzero(p.judged if rows is None else p.judged & rows)
        return rows, np.searchsorted(self.ids, p.person[rows])

    def draws(self, p: Pictures, way: str, metric: str, rows: np.ndarray | None = None) -> np.ndarray:
        """(B, K) of 'icc', 'auc' or 'mae' on the judged pictures among ``rows`` (a mask)."""
        take, own = self.take(p, rows)
        pred, target = p.read(way)["intensity"][take], p.target[take]
        if not len(take):
            return np.full((len(self.weights), pred.shape[1]), np.nan)
        if metric == "mae":
            return mean_draws(np.abs(pred - target), own, self.weights)
        return {"icc": icc_draws, "auc": auc_draws}[metric](pred, target, own, self.weights)

    def mean(self, p: Pictures, way: str, metric: str, rows: np.ndarray | None = None) -> Interval:
        """Of the mean over AUs."""
        return interval(over_aus(self.draws(p, way, metric, rows)), self.people(p, rows))

    def people(self, p: Pictures, rows: np.ndarray | None = None) -> int:
        """Who is in it."""
        return len(np.unique(self.take(p, rows)[1]))

    def count(self, p: Pictures, rows: np.ndarray | None = None) -> int:
        """Pictures in it."""
        return len(self.take(p, rows)[0])


# ---------------------------------------------------------------- the tables


def branch_tables(report: Report, judge: Judge, p: Pictures) -> None:
    """1: each AU by each branch."""
    present = (p.target[p.judged] >= PRESENT).sum(0)
    all_draws = {(w, m): judge.draws(p, w, m) for w in BRANCHES for m in ("icc", "auc", "mae")}
    people = judge.people(p)
    for metric, title in (("icc", "ICC"), ("auc", "AUC"), ("mae", "MAE")):
        d = {w: all_draws[w, metric] for w in BRANCHES}
        rows = [[c, int(present[k]), *(float(d[w][0, k]) for w in BRANCHES)] for k, c in enumerate(COLUMNS)]
        for k, row in enumerate(rows):
            row.append(interval(d["fused+neutral"][:, k] - d["fused"][:, k], people))
        means = {w: over_aus(d[w]) for w in BRANCHES}
        rows.append(["mean", None, *(interval(means[w], people) for w in BRANCHES)])
        rows[-1].append(interval(means["fused+neutral"] - means["fused"], people))
        bars = []
        if metric == "icc":
            bars = [Bar("ICC gained by the neutral", float(means["fused+neutral"][0] - means["fused"][0]), 0.05, True)]
        if metric == "mae":
            bars = [Bar("MAE changed by the neutral, share", float(means["fused+neutral"][0] / means["fused"][0] - 1), -0.15, False)]
        columns = ["AU", "n >= 1", *BRANCHES, "gained by the neutral"]
        report.add(Table(f"1. {title} by branch", columns, rows, f"{judge.count(p)} pictures of {people} people."), *bars)
    rows = [[w, judge.mean(p, w, "icc"), judge.mean(p, w, "mae")] for w in WAYS]
    note = "The 68 points are taken from the mesh as it was tracked and aligned; another tracker's own jitter and alignment are not in it."
    report.add(Table("1. Every way of reading, means over AUs", ["read from", "ICC", "MAE"], rows, note))


def setting_table(report: Report, judge: Judge, first: Pictures, second: Pictures) -> None:
    """2: the same people and expressions, filmed as training never sees them."""
    rows, lost = [], float("nan")
    for way in BRANCHES:
        row: list[Any] = [way]
        for metric in ("icc", "auc", "mae"):
            a, b = (over_aus(judge.draws(p, way, metric)) for p in (first, second))
            row += [interval(b, judge.people(second)), interval(b - a, judge.people(second))]
            if (way, metric) == ("fused", "icc"):
                lost = float(a[0] - b[0])
        rows.append(row)
    columns = ["read from", "ICC", "change", "AUC", "change", "MAE", "change"]
    note = f"{judge.count(second)} pictures of {judge.people(second)} people; change: from the first setting."
    bar = Bar("ICC lost in the second setting", lost, 0.05, False)
    report.add(Table("2. Second setting of the renderer, means over AUs", columns, rows, note), bar)
    found = [judge.draws(p, "fused", metric)[0] for metric in ("icc", "auc", "mae") for p in (first, second)]
    columns = ["AU", *(f"{metric} {setting}" for metric in ("ICC", "AUC", "MAE") for setting in ("first", "second"))]
    by_au = [[au, *map(float, figures)] for au, *figures in zip(COLUMNS, *found, strict=True)]
    report.add(Table("2. By AU, fused, in the first and the second setting", columns, by_au))


def conditional(
    pred: np.ndarray, target: np.ndarray, own: np.ndarray, weights: np.ndarray, au: int, beside: int, on: bool
) -> dict[str, Any]:
    """An AU where the one beside it is on, or off.

    pred, target: (N, K). 'n' pictures, 'present' of them with the AU, 'auc', 'icc' (intervals), 'absent': the mean reading where the AU is
    not there, which must not follow the AU beside it.
    """
    k, b = AUS.index(au), AUS.index(beside)
    rows = target[:, b] >= PRESENT if on else target[:, b] < ABSENT
    p, t, own = pred[rows][:, [k]], target[rows][:, [k]], own[rows]
    people, nothing = len(np.unique(own)), np.full(len(weights), np.nan)
    silent = p[t < ABSENT]
    return {
        "n": int(rows.sum()),
        "present": int((t >= PRESENT).sum()),
        "auc": interval(auc_draws(p, t, own, weights)[:, 0] if len(p) else nothing, people),
        "icc": interval(icc_draws(p, t, own, weights)[:, 0] if len(p) else nothing, people),
        "absent": float(silent.mean()) if len(silent) else float("nan"),
    }


def conditional_table(report: Report, judge: Judge, p: Pictures) -> None:
    """3: AUs that emotional faces show together."""
    take, own = judge.take(p, None)
    rows = []
    for way in ("fused", "fused+neutral"):
        for au, beside in CONDITIONS:
            for on in (False, True):
                c = conditional(p.read(way)["intensity"][take], p.target[take], own, judge.weights, au, beside, on)
                rows.append([f"AU{au}", f"AU{beside} {'on' if on else 'off'}", way, *c.values()])
    columns = ["AU", "where", "read from", "pictures", "n >= 1", "AUC", "ICC", "read where absent"]
    report.add(Table("3. AUs beside others", columns, rows, "On: at least 1; off, absent: below 0.5."))


def shared(data: dict[str, np.ndarray], kind: int, levels: Sequence[int], column: str) -> tuple[np.ndarray, dict[int, int]]:
    """Mask of the re-rendered pictures of a kind whose person and expression were found at every level, and how many were found at each."""
    of_kind = data["kind"] == kind
    key = data["person"].astype(np.int64) * EXPRESSIONS + data["expression"]
    found = {level: key[of_kind & (data[column] == level)] for level in levels}
    everywhere = set.intersection(*(set(f.tolist()) for f in found.values()))
    return of_kind & np.isin(key, list(everywhere)), {level: len(f) for level, f in found.items()}


def turned_table(report: Report, judge: Judge, p: Pictures, kind: int, asked: int) -> None:
    """4 and 5: one expression at several angles, or sizes."""
    pose = kind == TURNED
    levels, column = (YAWS, "yaw") if pose else (HEIGHTS, "height")
    mask, found = shared(p.data, kind, levels, column)
    base = levels[0] if pose else levels[-1]
    rows, lost = [], float("nan")
    ways = ("fused", "fused+neutral", "crop", "landmarks")
    start = over_aus(judge.draws(p, "fused", "icc", mask & (p.data[column] == base)))
    for level in levels:
        here = mask & (p.data[column] == level)
        change = over_aus(judge.draws(p, "fused", "icc", here)) - start
        if level == 30:
            lost = 0.0 - float(change[0])
        icc = [judge.mean(p, w, "icc", here) for w in ways]
        moved = interval(change, judge.people(p, here))
        name = f"{level} {'degrees' if pose else 'px'}"
        rows.append([name, f"{found[level]}/{asked}", judge.count(p, here), *icc, moved, judge.mean(p, "fused", "mae", here)])
    columns = ["yaw" if pose else "face", "found", "judged", *(f"ICC {w}" for w in ways), "change of fused", "MAE fused"]
    same = f"The same {EXPRESSIONS} expressions of the same {judge.people(p, mask)} people in every row, only those found in all rows"
    if pose:
        note = f"{same}. Faces of {TURNED_HEIGHT} px, left and right in turn, undegraded; the neutral is frontal. Change: from 0 degrees."
        bars = [Bar("ICC lost from frontal to 30 degrees", lost, 0.08, False)]
        report.add(Table("4. By pose: re-rendered at exact angles", columns, rows, note), *bars)
    else:
        note = f"{same}. Frontal, undegraded, shrunk from {HEIGHTS[-1]} px, which Change is from; the neutral has {TURNED_HEIGHT} px."
        report.add(Table("5. By size of the face: one picture at several sizes", columns, rows, note))


def off_axis(pose: np.ndarray) -> np.ndarray:
    """(N, 3) radians to (N,) degrees between the face's forward axis and the camera's; see ``geometry.Pose.off_axis``."""
    return np.asarray(np.degrees(np.arccos(np.clip(np.cos(pose[:, 0]) * np.cos(pose[:, 1]), -1, 1))))


def bins(values: np.ndarray, edges: Iterable[float]) -> list[np.ndarray]:
    """Masks of values below the first edge, from there to the next, ..., from the last edge on."""
    index = np.digitize(values, list(edges))
    return [index == i for i in range(len(list(edges)) + 1)]


def groups(data: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Factor -> its groups, each a mask over pictures."""
    below, hard = data["below"].astype(bool), data["hard"] >= 0.45

    def named(names: Sequence[str], values: np.ndarray, edges: list[float]) -> dict[str, np.ndarray]:
        return dict(zip(names, bins(values, edges), strict=True))

    return {
        "light": {"soft": ~below & ~hard, "hard": ~below & hard, "from below": below},
        # A tone lies between two swatches; it belongs to the nearer.
        "skin (Monk)": named(("0-3", "4-6", "7-9"), data["tone"], [3.5, 6.5]),
        "sex": {"male": data["sex"] == 0, "female": data["sex"] == 1},
        "age": {"< 35": data["age"] < 35, "35-60": (data["age"] >= 35) & (data["age"] <= 60), "> 60": data["age"] > 60},
        "in front": {"nothing": ~data["occluded"].astype(bool), "something": data["occluded"].astype(bool)},
        "off axis": named(("0-10", "10-20", "20-30", "30-45", "> 45"), off_axis(data["pose"]), [10, 20, 30, 45]),
        "face px": named(("< 64", "64-96", ">= 96"), data["face_px"], [64, 96]),
    }


def group_table(report: Report, judge: Judge, p: Pictures) -> None:
    """6: whom, and filmed how."""
    rows, gaps = [], []
    for factor, each in groups(p.data).items():
        icc = {}
        for name, mask in each.items():
            n = judge.count(p, mask)
            if n:
                icc[name] = over_aus(judge.draws(p, "fused", "icc", mask))
                people = judge.people(p, mask)
                rows.append([factor, name, n, people, interval(icc[name], people), judge.mean(p, "fused", "mae", mask)])
        # Groups of a handful have an ICC, but no business in a gap.
        big = {k: v for k, v in icc.items() if judge.count(p, each[k]) >= 60}
        if len(big) > 1:
            best, worst = max(big, key=lambda g: big[g][0]), min(big, key=lambda g: big[g][0])
            gaps.append([factor, best, worst, interval(big[best] - big[worst], len(judge.ids))])
    note = "As table 1's pictures were filmed: small faces are also degraded, turned ones also look up or down. Off axis: as tracked."
    report.add(Table("6. By light, person and picture; fused, means over AUs", ["by", "", "pictures", "people", "ICC", "MAE"], rows, note))
    note = "Groups of at least 60 pictures. The two ends of several groups are some way apart by chance alone."
    report.add(Table("6. Gaps in ICC", ["by", "best", "worst", "gap"], gaps, note))


def coactivation_table(report: Report, target: np.ndarray, whose: str, held: bool) -> None:
    """7: what the AUs' labels themselves would teach about each other. ``held``: whether the bar applies, which is on training data."""
    target = target.astype(np.float64)
    report.add(Table(f"7. Share of {whose} with the AU at 1 or more", list(COLUMNS), [[float(x) for x in (target >= PRESENT).mean(0)]]))
    pairs = correlations(target)
    rows = [[f"{COLUMNS[i]}, {COLUMNS[j]}", r] for i, j, r in pairs[:6]]
    # A dropped jaw parts the lips, and both are measured on the mesh: no sampling of expressions can part them.
    measured = {AUS.index(25), AUS.index(26)}
    others = max((abs(r) for i, j, r in pairs if {i, j} != measured), default=float("nan"))
    worst = abs(pairs[0][2]) if pairs else float("nan")
    bars = [Bar("largest correlation of two AUs in training, of either sign", worst, 0.3, False)]
    bars.append(Bar("the same, AU25 with AU26 aside", others, 0.3, False))
    report.add(Table("7. Largest correlations", ["pair", "r"], rows, f"{len(target)} {whose}."), *(bars if held else []))
    present = (target >= PRESENT).astype(float)
    r = np.full((len(COLUMNS), len(COLUMNS)), np.nan)
    for i, j, value in pairs:
        r[i, j] = r[j, i] = value
    for title, matrix in (
        (f"7. Share of {whose} with both AUs at 1 or more, on the diagonal with the AU itself", present.T @ present / len(present)),
        ("7. Correlations of intensities", r),
    ):
        report.add(Table(title, ["AU", *COLUMNS], [[c, *map(float, row)] for c, row in zip(COLUMNS, matrix, strict=True)]))


def correlations(target: np.ndarray) -> list[tuple[int, int, float]]:
    """(i, j, r) of all pairs of columns, the largest |r| first; a constant column has none."""
    moving = np.flatnonzero(np.ptp(target, axis=0) > 0)
    r = np.corrcoef(target[:, moving].T)
    pairs = [(int(moving[a]), int(moving[b]), float(r[a, b])) for a in range(len(moving)) for b in range(a + 1, len(moving))]
    return sorted(pairs, key=lambda x: -abs(x[2]))


def confidence_table(report: Report, judge: Judge, p: Pictures) -> None:
    """8: does the model know where it errs?"""
    take, own = judge.take(p, None)
    people = judge.people(p)
    rows, corr = [], []
    each = groups(p.data)
    for way in ("fused", "fused+neutral"):
        read = p.read(way)
        expected, true = read["expected_error"][take], np.abs(read["intensity"][take] - p.target[take]).mean(1)
        corr.append([way, interval(pcc_draws(expected[:, None], true[:, None], own, judge.weights)[:, 0], people)])
        quarter = np.digitize(expected, np.quantile(expected, [0.25, 0.5, 0.75]))
        masks = {f"{n} quarter by expectation": quarter == i for i, n in enumerate(("surest", "second", "third", "least sure"))}
        masks |= {"nothing in front": each["in front"]["nothing"][take], "something in front": each["in front"]["something"][take]}
        turned = off_axis(p.data["pose"])[take] > 30
        masks |= {"off axis up to 30 degrees": ~turned, "off axis over 30 degrees": turned}
        blurred = np.array([sharpness(crop) for crop in p.data["crop"][take]]) < np.mean(BLUR_LOG_RANGE)
        masks |= {"sharp": ~blurred, "blurred (that part of the quality under 0.5)": blurred}
        small = p.data["face_px"][take] < 64
        masks |= {"face of 64 px and more": ~small, "face under 64 px": small}
        for name, mask in masks.items():
            if mask.any():
                rows.append([way, name, int(mask.sum()), float(expected[mask].mean()), float(true[mask].mean())])
    report.add(Table("8. Expected and true error", ["read from", "correlation over pictures"], corr))
    columns = ["read from", "pictures", "n", "expected error", "true error"]
    report.add(Table("8. Expected and true error by picture", columns, rows))


# ---------------------------------------------------------------- pictures


def setting_data(folder: Path, setting: str, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """The validation people in a setting, rendered where the folder has none."""
    try:
        return dataset.load(folder, "validation", setting=setting)
    except FileNotFoundError:
        # As large as what the model was trained on.
        size = args.size or load_recipe("base", [])["world"]["size"]
        dataset.make(folder, "validation", args.people, args.pictures, size, args.workers, setting=setting)
        return dataset.load(folder, "validation", setting=setting)


def render_turned(first: int, people: int) -> dict[str, np.ndarray]:
    """EXPRESSIONS expressions of each validation person from ``first`` on: turned to YAWS, and frontal shrunk to HEIGHTS; one neutral.

    Rows as in the shards, with 'kind' (NEUTRAL, TURNED, SIZED), 'expression', 'yaw' (degrees, unsigned) and 'height' (px).
    """
    from personalize.synth import expression
    from personalize.synth.scene import Scene
    from personalize.synth.world import World
    from personalize_plugins.trackers.mediapipe import MediaPipeTracker

    torch.set_num_threads(1)
    small, large = (World(size=round(h / TURNED_SHARE)) for h in (TURNED_HEIGHT, HEIGHTS[-1]))
    tracker = MediaPipeTracker(num_faces=1)
    fields = ("crop", "landmarks", "pose", "target", "person", "neutral", "kind", "expression", "yaw", "height")
    rows: dict[str, list[Any]] = {k: [] for k in fields}

    def keep(image: np.ndarray, target: np.ndarray, index: int, kind: int, which: int, yaw: int, height: int) -> None:
        found = dataset.tracked_sample(image, tracker)
        if found is not None:
            for name, value in zip(rows, (*found, target, index, kind == NEUTRAL, kind, which, yaw, height), strict=True):
                rows[name].append(value)

    for index in range(first, first + people):
        person = small.person("validation", index)
        rng = np.random.default_rng([person.seed, 7101])
        drawn: list[tuple[np.ndarray, np.ndarray]] = []
        while len(drawn) < EXPRESSIONS:
            still = expression.sample_still(rng)
            if still[0].max() >= PRESENT:
                drawn.append(still)
        scenes = [Scene.sample(rng) for _ in drawn]
        for scene in scenes:
            scene.face_share, scene.offset = TURNED_SHARE, np.zeros(2)
        aus, extra = np.stack([a for a, _ in drawn]), np.stack([e for _, e in drawn])

        def shots(world: Any, order: list[int], yaws: np.ndarray, a: np.ndarray, e: np.ndarray, who: Any, lit: list[Any]) -> Any:
            pose = np.zeros((len(order), 3), np.float32)
            pose[:, 1] = np.radians(yaws)
            shot = next(world.render(who, a, e, pose, np.zeros((len(order), 2), np.float32), [lit[i] for i in order], batch=len(order)))
            return zip(order, shot.images, shot.target, strict=True)

        # The first row is the neutral one, in the light of the first expression.
        which = [0, *(i for i in range(EXPRESSIONS) for _ in YAWS)]
        side = np.array([1.0, *((-1.0) ** (index + i) for i in which[1:])])
        yaws = np.array([0, *(y for _ in range(EXPRESSIONS) for y in YAWS)])
        a, e = aus[which], extra[which]
        a[0], e[0] = 0, 0
        for row, (i, image, target) in enumerate(shots(small, which, side * yaws, a, e, person, scenes)):
            keep(image, target, index, TURNED if row else NEUTRAL, i, int(yaws[row]), TURNED_HEIGHT)
        order = list(range(EXPRESSIONS))
        for i, image, target in shots(large, order, np.zeros(EXPRESSIONS), aus, extra, person, scenes):
            for height in HEIGHTS:
                side_px = round(height / TURNED_SHARE)
                shrunk = cv2.resize(image, (side_px, side_px), interpolation=cv2.INTER_AREA) if height != HEIGHTS[-1] else image
                keep(shrunk, target, index, SIZED, i, 0, height)
    tracker.close()
    types = {"landmarks": np.float32, "target": np.float32, "person": np.int32, "neutral": bool}
    return {k: np.array(v, types.get(k)) for k, v in rows.items()}


def _job(job: tuple[int, int]) -> dict[str, np.ndarray]:
    return render_turned(*job)


def turned_data(folder: Path, people: int, workers: int) -> dict[str, np.ndarray]:
    """The re-rendered pictures of tables 4 and 5, from the folder or made."""
    path = folder / f"turned-{people}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [(i, min(5, people - i)) for i in range(0, people, 5)]
        if workers > 1:
            with multiprocessing.get_context("spawn").Pool(workers) as pool:
                parts = list(ui.progress(pool.imap(_job, jobs), len(jobs), f"Turning {people} people"))
        else:
            parts = [_job(job) for job in ui.progress(jobs, len(jobs), f"Turning {people} people")]
        temporary = path.with_suffix(".tmp.npz")
        arrays: dict[str, Any] = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
        np.savez(temporary, **arrays)
        temporary.rename(path)
    with np.load(path, allow_pickle=False) as data:
        return {k: data[k] for k in data.files}


def train_targets(folder: Path) -> np.ndarray:
    """(N, K) of all training shards, without their pictures."""
    parts = []
    for path in sorted(folder.glob(f"train-{'[0-9]' * 6}.npz")):
        with np.load(path, allow_pickle=False) as data:
            parts.append(data["target"])
    if not parts:
        raise FileNotFoundError(f"no training shards in {folder}")
    return np.concatenate(parts)


def build(base: Base, args: argparse.Namespace) -> Report:
    """The tables that were asked for, in order."""
    report, wanted = Report(), {int(t) for t in args.tables.split(",")}
    if wanted - {4, 5, 7} or (7 in wanted and not args.train):
        first = Pictures(base, setting_data(args.data, "first", args))
        pictures = [first]
        if 2 in wanted:
            pictures.append(Pictures(base, setting_data(args.second or args.data, "second", args)))
        judge = Judge(args.draws, *pictures)
        if 1 in wanted:
            branch_tables(report, judge, first)
        if 2 in wanted:
            setting_table(report, judge, *pictures)
        if 3 in wanted:
            conditional_table(report, judge, first)
    if wanted & {4, 5}:
        turned = Pictures(base, turned_data(args.data, args.turned, args.workers))
        own = Judge(args.draws, turned)
        for table, kind in ((4, TURNED), (5, SIZED)):
            if table in wanted:
                turned_table(report, own, turned, kind, args.turned * EXPRESSIONS)
    if 6 in wanted:
        group_table(report, judge, first)
    if 7 in wanted:
        target, whose = (train_targets(args.train), "training pictures") if args.train else (first.target, "validation pictures")
        coactivation_table(report, target, whose, bool(args.train))
    if 8 in wanted:
        confidence_table(report, judge, first)
    return report


def main(words: Sequence[str] | None = None) -> int:
    """Read, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--second", type=Path, help="folder of the second setting (default: the same)")
    parser.add_argument("--train", type=Path, help="folder of training shards, for table 7")
    parser.add_argument("--base", default=SHIPPED)
    parser.add_argument("--tables", default="1,2,3,4,5,6,7,8", help="which of the eight")
    parser.add_argument("--people", type=int, default=160, help="to render, where the folder has none")
    parser.add_argument("--pictures", type=int, default=9, help="of each person, two of them neutral")
    parser.add_argument("--size", type=int, help="side of these pictures in pixels (default: as the recipe 'base' has it)")
    parser.add_argument("--turned", type=int, default=40, help="people of tables 4 and 5")
    parser.add_argument("--draws", type=int, default=500, help="of the bootstrap")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--md", type=Path)
    args = parser.parse_args(words)
    args.turned = min(args.turned, args.people)
    try:
        for target in filter(None, (args.md, args.json)):
            check_target(target)  # not after all the reading
        base = load_base(args.base)
        report = build(base, args)
    except (PersonalizeError, FileNotFoundError) as e:
        ui.error(e)
        return 2
    verdict = report.verdict()
    ui.table(verdict.title, verdict.columns, verdict.rows)
    heading = f"Base model '{base.name}' ({base.sha256[:12]}) on unseen synthetic people"
    if args.md:
        args.md.write_text(report.markdown(heading))
    if args.json:
        about = {"base": base.name, "sha256": base.sha256, "draws": args.draws}
        args.json.write_text(json.dumps(about | report.as_dict(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
