"""The field's table for one data set: per AU over the pooled frames of a test fold, then the mean over folds; intervals over people."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import ui
from ..aus import AUS, column
from ..errors import ConfigError, InputError
from ..faces import Tracker
from ..metrics import auc, bootstrap, f1, icc31, mae, pcc
from . import SYNTHETIC, AUDataset, Source, make_dataset
from .mixing import fold_people, read_shards, track_dataset

METRICS = ("f1", "f1_micro", "auc", "icc", "pcc", "mae")
Reading = Callable[[dict[str, np.ndarray], bool], np.ndarray]
"""(arrays of one person, whether to use the neutral) -> (N, K) intensities."""


def frame_scores(
    prediction: np.ndarray, target: np.ndarray, present_only: np.ndarray, threshold: float, present_at: float
) -> dict[str, float]:
    """One AU on some frames, 1-D arrays without unknowns. present_only: the target is presence; it has no ICC, PCC and MAE.

    f1_micro counts both classes, as scikit-learn's ``average="micro"`` does: for one AU that is the share of frames that are right.
    """
    present = np.where(present_only, target >= 0.5, target >= present_at).astype(float)
    p, t = prediction[~present_only], target[~present_only]
    right = (prediction >= threshold) == (present > 0.5)
    return {
        "f1": f1(prediction, present, threshold),
        "f1_micro": float(right.mean()) if len(right) else float("nan"),
        "auc": auc(prediction, present),
        "icc": icc31(p, t),
        "pcc": pcc(p, t),
        "mae": mae(p, t),
        "frames": float(len(target)),
        "present": float(present.sum()),
    }


def field_tables(
    prediction: np.ndarray,
    target: np.ndarray,
    mask: np.ndarray,
    subject: Sequence[str] | np.ndarray,
    fold: Sequence[int] | np.ndarray,
    thresholds: np.ndarray,
    occurrence: np.ndarray | None = None,
    present_at: float = 2.0,
) -> dict[str, Any]:
    """All metrics of all AUs that are coded.

    prediction, target: (N, K); mask: (N, K) bool; subject: (N,) names; fold: (N,) the fold in which a frame's person is tested;
    thresholds: (K,) predicted intensity from which an AU counts as present; occurrence: (N, K), above 0 where the target is presence;
    present_at: target intensity that counts as present.

    Returns:
        'aus': AU column -> 'folds' (fold -> metric -> value over its pooled frames), 'mean' (metric -> mean over the folds where it is
        defined), 'people' (metric -> mean over people with its bootstrap interval, undefined people counted). 'mean' and 'people':
        the same of the AUs' mean. 'subjects', 'frames'.
    """
    subject, fold = np.asarray(subject), np.asarray(fold)
    flags = np.zeros(target.shape, bool) if occurrence is None else np.asarray(occurrence) > 0
    names = list(dict.fromkeys(subject.tolist()))
    folds = sorted(set(fold.tolist()))
    aus: dict[str, Any] = {}
    each: dict[str, list[dict[str, float]]] = {}
    for k, au in enumerate(AUS):
        if not mask[:, k].any():
            continue

        def on(rows: np.ndarray, k: int = k) -> dict[str, float]:
            rows = rows & mask[:, k]
            return frame_scores(prediction[rows, k], target[rows, k], flags[rows, k], float(thresholds[k]), present_at)

        by_fold = {str(f): on(fold == f) for f in folds}
        each[column(au)] = [on(subject == s) for s in names]
        aus[column(au)] = {
            "folds": by_fold,
            "mean": {m: _mean([s[m] for s in by_fold.values()]) for m in METRICS},
            "people": {m: bootstrap([s[m] for s in each[column(au)]]).as_dict() for m in METRICS},
        }
    person_mean = {m: [_mean([each[a][i][m] for a in each]) for i in range(len(names))] for m in METRICS}
    return {
        "aus": aus,
        "mean": {m: _mean([a["mean"][m] for a in aus.values()]) for m in METRICS},
        "people": {m: bootstrap(person_mean[m]).as_dict() for m in METRICS},
        "subjects": len(names),
        "frames": len(subject),
        "folds": folds,
    }


def _mean(values: Iterable[float]) -> float:
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else float("nan")


def print_tables(title: str, table: dict[str, Any]) -> None:
    """One row an AU: pooled metrics, mean over folds, and two intervals over people ('of N' of them, where it is undefined for others);
    last the mean over the AUs that papers quote."""

    def row(name: str, part: dict[str, Any], frames: float | None, present: float | None) -> list[Any]:
        spans: list[str | None] = []
        for s in (part["people"][m] for m in ("f1", "icc")):
            some = f" of {s['n']}" if s["n"] < table["subjects"] else ""
            spans.append(f"{s['mean']:.3f} [{s['low']:.3f}, {s['high']:.3f}]{some}" if s["n"] > 1 else None)
        share = 100 * present / frames if frames and present is not None else None
        return [name, None if frames is None else int(frames), share, *(part["mean"][m] for m in METRICS), *spans]

    rows = []
    for name, part in table["aus"].items():
        totals = [sum(f[k] for f in part["folds"].values()) for k in ("frames", "present")]
        rows.append(row(name, part, *totals))
    rows.append(row("mean", table, None, None))
    if "usual" in table:
        rows.append([f"mean of {len(table['usual']['aus'])}", None, None, *(table["usual"]["mean"][m] for m in METRICS), None, None])
    folds = f"fold{'s' * (len(table['folds']) > 1)} {', '.join(map(str, table['folds']))}"
    heads = ["AU", "frames", "present %", "F1", "F1-micro", "AUC", "ICC(3,1)", "PCC", "MAE", "F1 a person [95 %]", "ICC a person [95 %]"]
    lost = [f"{table[key]} {what}" for key, what in (("without_face", "without a face"), ("not_decoded", "not decoded")) if table.get(key)]
    left_out = f"; left out: {', '.join(lost)}" if lost else ""
    ui.table(f"{title}: {table['frames']} frames of {table['subjects']} people, {folds}{left_out}", heads, rows)


def write_tables(tables: dict[str, dict[str, Any]], path: Path) -> None:
    """PATH.json with everything, PATH.csv with a row for each table, AU and fold ('mean': over the folds). tables: name -> table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ended(path, ".json").write_text(json.dumps(_finite(tables), indent=1) + "\n")
    with ended(path, ".csv").open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["table", "au", "fold", *METRICS, "frames", "present"])
        for name, table in tables.items():
            for au, part in table["aus"].items():
                for fold, s in part["folds"].items():
                    out.writerow([name, au, fold, *(_cell(s[m]) for m in METRICS), int(s["frames"]), int(s["present"])])
                out.writerow([name, au, "mean", *(_cell(part["mean"][m]) for m in METRICS), "", ""])
            out.writerow([name, "mean", "mean", *(_cell(table["mean"][m]) for m in METRICS), "", ""])


def ended(path: Path, ending: str) -> Path:
    """PATH with an ending ('.json', '.csv'), in place of one of these that it may have; other points belong to the name."""
    return Path(str(path).removesuffix(".json").removesuffix(".csv") + ending)


def _cell(x: float) -> str:
    return f"{x:.6f}" if np.isfinite(x) else ""


def _finite(x: Any) -> Any:
    """NaN is no JSON: null."""
    if isinstance(x, dict):
        return {k: _finite(v) for k, v in x.items()}
    return None if isinstance(x, float) and not np.isfinite(x) else x


def evaluate_sources(
    read: Reading,
    sources: Sequence[Source | tuple[str, Path | None]],
    cache: Path,
    thresholds: np.ndarray,
    fold: int | None = None,
    learned_from: Collection[str] = (),
    tracker: Tracker | None = None,
) -> dict[str, dict[str, Any]]:
    """Tables of a model on data sets, 'NAME' and 'NAME+neutral' (with the person's most typical neutral-labelled frame given); of a second
    source of that name 'NAME (2)'.

    read: see :data:`Reading`; gets one person at a time, fields as of :meth:`AUDataModule.train_arrays`. fold: only its test people;
    None: those of all folds, each in the fold that tests them. learned_from: the 'people' of the model's card; raises InputError where one
    of them would be tested. thresholds: (K,) intensity from which an AU counts as present, or (2, K) of those read without and with the
    neutral. A frame that served as neutral is judged in neither table; people without one are not in the second.
    """
    learned_from = set(learned_from)
    tables: dict[str, dict[str, Any]] = {}
    named: dict[str, int] = {}
    chosen: list[tuple[AUDataset, list[str]]] = []
    for source in (Source(*s) for s in sources):  # all of what can be wrong is said before the first is tracked and read
        if source.name == SYNTHETIC:
            ui.warn("synthetic renders are judged by themselves: give their folder alone; left out here")
            continue
        dataset = make_dataset(source.name, source.path or ".", **source.options)
        people = fold_people(dataset, fold)
        subjects = [s for s in dataset.subjects if dataset.person(s) in people]
        if not subjects:
            part = "any fold's" if fold is None else f"fold {fold}'s"
            raise InputError(f"{dataset.name}: nobody of {part} test part is in {dataset.path}.")
        seen = [s for s in subjects if dataset.is_among(s, learned_from)]
        if seen:
            some = ", ".join(seen[:4]) + (" ..." if len(seen) > 4 else "")
            raise InputError(
                f"{dataset.name}: the model learned from {len(seen)} of these {len(subjects)} people ({some}). "
                "Give the fold that its training left out: --fold"
            )
        chosen.append((dataset, subjects))
    if not chosen:
        raise ConfigError("no real data to evaluate on: give --data NAME=PATH.")
    for dataset, subjects in chosen:
        made = _evaluate(read, dataset, cache, subjects, thresholds, tracker)
        named[dataset.name] = again = named.get(dataset.name, 0) + 1
        tables |= {key.replace(dataset.name, f"{dataset.name} ({again})", 1) if again > 1 else key: table for key, table in made.items()}
    return tables


def _evaluate(
    read: Reading, dataset: AUDataset, cache: Path, subjects: list[str], thresholds: np.ndarray, tracker: Tracker | None
) -> dict[str, dict[str, Any]]:
    tested_in = {s: k for k, part in dataset.folds().items() for s in part}
    parts: dict[str, list[Any]] = {k: [] for k in ("plain", "neutral", "target", "mask", "occurrence", "subject", "fold", "has")}
    tracked = track_dataset(dataset, cache, tracker, subjects)
    shards = {s: [tracked.paths[c.name] for c in dataset.clips if c.subject == s] for s in subjects}
    for subject in ui.progress(subjects, len(subjects), f"Reading {len(subjects)} people of {dataset.name}"):
        data = read_shards(shards[subject], one_neutral=True)
        if not len(data["crop"]):
            continue
        query = ~data["neutral"]
        calm = bool(data["neutral"].any())
        plain = read(data, False)
        parts["plain"].append(plain[query])
        parts["neutral"].append((read(data, True) if calm else plain)[query])
        for k in ("target", "mask", "occurrence"):
            parts[k].append(data[k][query])
        n = int(query.sum())
        parts["subject"] += [subject] * n
        parts["fold"] += [tested_in.get(subject, 0)] * n
        parts["has"] += [calm] * n
    if not parts["subject"]:
        raise InputError(f"{dataset.name}: no face was found in any labelled frame of {dataset.path}.")
    joined = {k: np.concatenate(parts[k]) for k in ("plain", "neutral", "target", "mask", "occurrence")}
    names, fold, has = np.array(parts["subject"]), np.array(parts["fold"]), np.array(parts["has"])
    target = joined["target"].astype(np.float64)

    alone, told = np.broadcast_to(thresholds, (2, np.shape(thresholds)[-1]))

    def table(prediction: np.ndarray, rows: np.ndarray, levels: np.ndarray) -> dict[str, Any]:
        judged = (prediction[rows], target[rows], joined["mask"][rows], names[rows], fold[rows])
        made = field_tables(*judged, levels, joined["occurrence"][rows], dataset.present_at)
        made |= {"without_face": tracked.left_out, "not_decoded": tracked.missing}  # which no score counts
        usual = [column(a) for a in dataset.quoted if column(a) in made["aus"]]
        if usual:
            made["usual"] = {"aus": usual, "mean": {m: _mean([made["aus"][a]["mean"][m] for a in usual]) for m in METRICS}}
        return made

    out = {dataset.name: table(joined["plain"], np.ones(len(fold), bool), alone)}
    if has.any():
        out[f"{dataset.name}+neutral"] = table(joined["neutral"], has, told)
    return out
