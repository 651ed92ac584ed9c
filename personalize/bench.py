"""``personalize bench``: does personalising help people whom nobody has seen, and does it harm others?

Each synthetic person of the split 'benchmark' is filmed twice: a calm support clip to learn from, and a lively query clip on another day,
in another light, with another camera. Both are real video files. The same query frames are read by the base, by the simple calibrations
that people use today, and by the person's model; all are compared with the exact truth.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from . import registry, scoring, ui
from .aus import AUS, COLUMNS, MAX_INTENSITY
from .circumstances import circumstances
from .errors import ConfigError, InputError
from .faces import Observation
from .metrics import Interval
from .synth.clips import Clip, read_truth, render

WORKERS = 2
"""Processes; 0: none beside this one."""
BASE, MEDIAN, NEUTRAL, NEUTRAL_INPUT, NO_GENERATOR = "base", "median_subtraction", "neutral_subtraction", "neutral_input", "replay_only"
SIMPLE = (MEDIAN, NEUTRAL)
"""Calibrations that need no training: the personal model must beat the better of them."""
LABELS = {
    BASE: "base",
    MEDIAN: "median subtraction",
    NEUTRAL: "neutral subtraction",
    NEUTRAL_INPUT: "neutral as input, untrained",
    NO_GENERATOR: "adapted, no generator",
}
NAMED = ("AU06", "AU17")
"""The AUs that the generator must help."""
_FORMAT = 1
_QUICK = ["rounds=1", "optim.max_steps=8", "generator.samples=16"]
_PRESENTATION = ("bench", "cli", "demo", "overlay", "report", "scaffold", "scoring", "tracking", "ui")


@dataclass(frozen=True)
class Job:
    """One person's part of the benchmark. others: query clips of other people, for forgetting. recipes: name of the fit -> recipe. parts:
    name of a part ('base' or of a fit) -> the file that its readings are kept in."""

    name: str
    folder: Path
    support: Clip
    query: Clip
    others: tuple[Clip, ...]
    recipes: dict[str, dict[str, Any]]
    parts: dict[str, Path]


def bench_command(args: argparse.Namespace) -> int:
    """``personalize bench``. args: people, output, recipe, generators, seed, quick, plugins, overrides."""
    from .base import load_base
    from .profile import strip_paths

    started = time.perf_counter()
    folder = Path(args.output)
    jobs = plan(args, folder)
    folder.mkdir(parents=True, exist_ok=True)
    clips = list(dict.fromkeys(clip for job in jobs for clip in (job.support, job.query)))
    store = folder / "clips"
    film(clips, store, args)
    skipped = in_processes(measure, jobs, [p for job in jobs for p in job.parts.values()], "Fitting and reading", args, folder)
    left_out = {job.name: why for job, why in zip(jobs, skipped, strict=True) if why}
    for name, why in left_out.items():
        ui.warn(f"{name} is left out of every row: {why}")
    kept = [job for job in jobs if job.name not in left_out]
    if not kept:
        raise InputError("no person could be read: see the warnings above.")
    result = assemble(kept, args.seed)
    for name, facts in result["people"].items():
        for fit, held in facts["fits"].items():
            if held["refused"]:
                ui.warn(f"{name}: {label(fit)} stays with the base: {held['refused']}")
    result |= {"skipped": left_out, "quick": bool(args.quick), "seconds": round(time.perf_counter() - started, 1)}
    words = ["personalize", "bench", "--people", args.people, "--recipe", Path(args.recipe).name, "--generators", args.generators]
    words += ["--seed", args.seed, *(["--quick"] if args.quick else []), *args.overrides]
    base = load_base(_recipe(jobs[0])["base"])
    result |= circumstances(words) | {"base": {"name": Path(base.name).name, "sha256": base.sha256}}
    result["recipes"] = strip_paths(jobs[0].recipes)
    write(folder, result)
    show(result)
    ui.info(f"wrote {folder / 'bench.json'}, bench.csv, bench.md, bench.png")
    return 0


# --- what is measured -----------------------------------------------------------------------------------------------------------------


def plan(args: argparse.Namespace, folder: Path) -> list[Job]:
    """The jobs. Raises ConfigError for unknown recipes, keys and generators before anything is rendered."""
    from .config import load_recipe, one_device

    if args.seed > 900:
        raise ConfigError(f"--seed must be at most 900, not {args.seed}.")
    generators = list(dict.fromkeys(g.strip() for g in args.generators.split(",") if g.strip()))
    if not generators:
        raise ConfigError("--generators needs at least one name, as in --generators au_residual.")
    quick = _QUICK if args.quick else []
    asked = ["tracking.wandb='off'", *quick, *args.overrides]
    recipes = {name: load_recipe(args.recipe, [*asked, f"generator.name={name}"], "fit") for name in generators}
    if NO_GENERATOR not in recipes:
        # Always in the comparison, and last, so that the first named one stands for 'personalised'; options are the others'.
        recipes[NO_GENERATOR] = load_recipe(args.recipe, [*asked, f"generator.name={NO_GENERATOR}", "generator.options=null"], "fit")
    one_device(next(iter(recipes.values())), "bench")
    people, seconds = (min(args.people, 3), 8.0) if args.quick else (args.people, 20.0)
    first = 1000 * args.seed
    pairs = [
        (
            Clip("benchmark", first + i, 2 * args.seed, seconds, liveliness=0.6),
            Clip("benchmark", first + i, 2 * args.seed + 1, seconds, liveliness=1.5),
        )
        for i in range(people)
    ]
    return jobs_of(pairs, recipes, folder)


def jobs_of(pairs: Sequence[tuple[Clip, Clip]], recipes: dict[str, dict[str, Any]], folder: Path) -> list[Job]:
    """A job for each person's support and query clip, with a fit by each of the recipes; the others are the next two people."""
    from .base import load_base
    from .config import digest

    any_recipe = next(iter(recipes.values()))
    base, code, people = load_base(any_recipe["base"]), code_hash(), len(pairs)
    jobs = []
    for i, (support, query) in enumerate(pairs):
        others = tuple(pairs[(i + step) % people][1] for step in (1, 2) if step < people)
        common = [_FORMAT, code, base.sha256, digest(base.card), support.key, query.key]
        keys = {BASE: [*common, any_recipe["tracker"], any_recipe["base"], plugins_hash(any_recipe, "trackers/")]}
        keys |= {name: [*common, [c.key for c in others], recipe, plugins_hash(recipe)] for name, recipe in recipes.items()}
        name = f"person{support.person:04d}"
        parts = {part: folder / "people" / f"{name}_{part}_{digest(key)}.json" for part, key in keys.items()}
        jobs.append(Job(name, folder, support, query, others, recipes, parts))
    return jobs


@functools.lru_cache(maxsize=1)
def code_hash() -> str:
    """SHA-256 of the code and data that decide a reading: results of older ones are not taken for those of these."""
    digest = hashlib.sha256()
    for package in ("personalize", "personalize_plugins"):
        root = Path(str(resources.files(package)))
        for file in sorted(root.rglob("*.py")):
            if file.stem not in _PRESENTATION and "synth" not in file.parts:
                digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    for file in sorted(Path(str(resources.files("personalize") / "assets")).iterdir()):  # weights, cards, what is rehearsed
        if file.is_file():
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def plugins_hash(recipe: dict[str, Any], of: str = "") -> list[str]:
    """What else decides: files of plug-ins that a recipe names, as they are now, and versions of those that are installed. of: which."""
    sources = [Path(source) for key, source in registry.used(recipe).items() if key.startswith(of)]
    return [hashlib.sha256(s.read_bytes()).hexdigest() if s.is_file() else str(s) for s in sources]


def film(clips: Sequence[Clip], folder: Path, args: argparse.Namespace) -> None:
    """Render the clips that are not in the folder yet. Their truth, written last, says that a clip is there."""
    missing = {clip.path(folder).with_suffix(".npz"): clip for clip in clips}
    missing = {file: clip for file, clip in missing.items() if not file.is_file()}
    if missing:
        in_processes(_render, [(clip, folder) for clip in missing.values()], list(missing), "Rendering clips", args, folder.parent)


def _render(job: tuple[Clip, Path]) -> None:
    render(*job)


def measure(job: Job) -> str | None:
    """Read one person's query clip in every way that is not in its file yet. Returns why the person cannot be read, or None."""
    try:
        for part, path in job.parts.items():
            if not path.is_file():
                _save(path, _read_base(job) if part == BASE else _read_fit(job, part))
    except InputError as problem:
        return str(problem)
    return None


def _recipe(job: Job) -> dict[str, Any]:
    return next(iter(job.recipes.values()))


@functools.lru_cache(maxsize=4)
def _tracked(path: Path, tracker_name: str, options: str) -> tuple[list[Observation], int]:
    """The person's observations in a clip and the number of its frames; kept for the next way of reading it."""
    from .tracks import Survey, observe
    from .video import open_media

    media, survey = open_media(path), Survey()
    tracker = registry.create("trackers", tracker_name, json.loads(options))
    frames, found = 0, []
    try:
        for _, seen in observe(media, tracker, survey=survey):
            frames += 1
            found += seen
    finally:
        tracker.close()
    person = survey.identity(name=path.name)
    return [o for o in found if o.face_id == person], frames


def track(clip: Clip, folder: Path, recipe: dict[str, Any]) -> tuple[list[Observation], np.ndarray, int]:
    """(observations, their (N, K) truth, frames of the clip): the truth is joined by frame number, frames without the face fall out."""
    path = clip.path(folder / "clips")
    observations, frames = _tracked(path, recipe["tracker"]["name"], json.dumps(recipe["tracker"]["options"], sort_keys=True))
    return observations, align(read_truth(path), [o.frame for o in observations], frames), frames


def align(truth: np.ndarray, indices: Sequence[int] | np.ndarray, frames: int) -> np.ndarray:
    """Rows of ``truth`` (T, K) for the frames at ``indices``. Raises RuntimeError where the video does not have T frames."""
    if frames != len(truth):
        raise RuntimeError(f"the clip has {frames} frames, its truth {len(truth)}: they cannot be aligned")
    return truth[np.asarray(indices, dtype=int)]


def _read_base(job: Job) -> dict[str, Any]:
    """The base, and what calibrations without training need: all from one pass over each clip."""
    from .base import load_base
    from .identity import find_neutral
    from .profile import Profile
    from .reader import Reader, neutral_features

    recipe = _recipe(job)
    base = load_base(recipe["base"])
    query, target, frames = track(job.query, job.folder, recipe)
    try:
        support, _, support_frames = track(job.support, job.folder, recipe)
    except InputError:  # nothing to calibrate with, which is no reason to leave the person out
        support, support_frames = [], 0
    reader = Reader(base)
    read, calm = reader.read(query).base, reader.read(support)
    neutral = find_neutral(support, calm.expected)
    out: dict[str, Any] = {
        "frames": frames,
        "indices": [o.frame for o in query],
        "support_frames": support_frames,
        "support_tracked": len(support),
        "target": target,
        "thresholds": base.thresholds,
        BASE: read,
        # A clip without any usable frame has no neutral: nothing is subtracted.
        "rest": np.zeros(len(AUS)) if neutral is None else calm.base[neutral.indices].mean(0),
        "neutral_confidence": 0.0 if neutral is None else float(neutral.trusted.mean()),
        NEUTRAL_INPUT: read,
        "neutral_thresholds": base.thresholds,
    }
    if neutral is not None:
        features = neutral_features(base.net, neutral)
        wide = np.full(len(AUS), MAX_INTENSITY, np.float32)
        profile = Profile("untrained", base.name, base.sha256, neutral=features, gate=np.ones(len(AUS), np.float32), trust=wide)
        out[NEUTRAL_INPUT] = Reader(base, profile).read(query).best
        out["neutral_thresholds"] = base.thresholds_with(1.0)
    return out


def _read_fit(job: Job, part: str) -> dict[str, Any]:
    """Fit on the support clip as a user would, read the query, and the others' queries for forgetting."""
    from . import engine
    from .base import load_base
    from .profile import Profile
    from .reader import Reader
    from .video import open_media

    recipe = job.recipes[part]
    base = load_base(recipe["base"])
    # A folder of its own for each fit: a replay buffer that runs share would make people depend on each other and on their order.
    run = job.folder / "runs" / part / job.name / job.name / "v1"
    shutil.rmtree(run.parent.parent, ignore_errors=True)
    run.mkdir(parents=True)
    query, _, _ = track(job.query, job.folder, recipe)
    started, refused = time.perf_counter(), ""
    try:
        profile = engine.fit(open_media(job.support.path(job.folder / "clips")), recipe, run, job.name).profile
    except InputError as problem:
        # Who cannot be fitted stays with the base.
        refused, profile = str(problem), Profile(job.name, base.name, base.sha256, thresholds=base.thresholds)
    seconds = time.perf_counter() - started
    # What another person gets from these weights: neither this person's neutral nor their offsets are theirs.
    weights = replace(profile, neutral={}, offsets=np.zeros(len(AUS), np.float32))
    wide = replace(weights, gate=np.ones(len(AUS), np.float32), trust=np.full(len(AUS), MAX_INTENSITY, np.float32))
    others = {}
    for clip in job.others:
        try:
            seen, target, _ = track(clip, job.folder, recipe)
        except InputError:
            continue
        others[f"person{clip.person:04d}"] = {
            "target": target,
            "before": Reader(base).read(seen).base,
            "gated": Reader(base, weights).read(seen).best,
            "ungated": Reader(base, wide).read(seen).best,
        }
    return {
        "readings": Reader(base, profile).read_clip(query).best,
        "thresholds": np.asarray(profile.thresholds),
        "gate": np.asarray(profile.gate),
        "seconds": round(seconds, 1),
        "refused": refused,
        "others": others,
    }


def _plain(value: Any) -> Any:
    """For JSON: arrays as lists with four decimals, NaN as null."""
    if isinstance(value, np.ndarray):
        return _plain(np.round(value.astype(float), 4).tolist())
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Interval):
        return _plain(value.as_dict())
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    return value


def _save(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(_plain(content)), encoding="utf-8")
    temporary.replace(path)


# --- processes ------------------------------------------------------------------------------------------------------------------------


def in_processes(
    function: Callable[[Any], Any], jobs: Sequence[Any], files: Sequence[Path], title: str, args: argparse.Namespace, folder: Path
) -> list[Any]:
    """``function`` of every job, in WORKERS processes; results in order. files: what they write, which is what the progress counts.

    What the workers say goes to ``folder/workers.log``. A job that fails does not stop the others; its exception is raised after them, and
    what is done is found again by the next run.
    """
    counter: ui.Progress[Any] = ui.progress(None, len(files), title)
    with counter as bar:
        if not WORKERS:
            return [_counted(function, job, files, bar) for job in jobs]
        # One thread a process: two that each take both cores are slower than one after the other.
        before = {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "WANDB_MODE")}
        os.environ |= {"OMP_NUM_THREADS": "1"}
        context = multiprocessing.get_context("spawn")
        setup = (str(folder / "workers.log"), tuple(args.plugins or ()))
        # Not a multiprocessing.Pool: its processes may have no children, and data loaders have.
        pool = ProcessPoolExecutor(min(WORKERS, os.cpu_count() or 1), context, _enter_worker, setup)
        try:
            futures = [pool.submit(function, job) for job in jobs]
            pending = set(futures)
            while pending:
                _, pending = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
                bar.advance(sum(f.is_file() for f in files) - bar.done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            for key, value in before.items():
                os.environ.pop(key, None) if value is None else os.environ.update({key: value})
        pool.shutdown()
        return [f.result() for f in futures]


def _counted(function: Callable[[Any], Any], job: Any, files: Sequence[Path], bar: ui.Progress) -> Any:
    result = function(job)
    bar.advance(sum(f.is_file() for f in files) - bar.done)
    return result


def _enter_worker(log: str, plugins: Sequence[str]) -> None:
    """Workers write to the log, not over the progress bar."""
    import torch

    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    torch.set_num_threads(1)
    for file in plugins:
        registry.load_file(file)


# --- scores ---------------------------------------------------------------------------------------------------------------------------


def methods_of(job: Job) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]], dict[str, Any]]:
    """(truth (N, K), method -> (readings (N, K), thresholds (K,)), facts) of one person from their files."""
    base = json.loads(job.parts[BASE].read_text(encoding="utf-8"))
    read, thresholds = np.array(base[BASE]), np.array(base["thresholds"])
    methods = {name: (values, thresholds) for name, values in calibrations(read, np.array(base["rest"])).items()}
    methods[NEUTRAL_INPUT] = (np.array(base[NEUTRAL_INPUT]), np.array(base["neutral_thresholds"]))
    facts: dict[str, Any] = {
        "support": asdict(job.support),
        "query": asdict(job.query),
        "frames": base["frames"],
        "read": len(read),
        "dropped": base["frames"] - len(read),
        "support_frames": base["support_frames"],
        "support_tracked": base["support_tracked"],
        "neutral_confidence": base["neutral_confidence"],
        "fits": {},
        "others": {},
    }
    for name in job.recipes:
        fit = json.loads(job.parts[name].read_text(encoding="utf-8"))
        methods[name] = (np.array(fit["readings"]), np.array(fit["thresholds"]))
        gate = dict(zip(COLUMNS, fit["gate"], strict=True))
        facts["fits"][name] = {"seconds": fit["seconds"], "refused": fit["refused"], "gate": gate, "thresholds": fit["thresholds"]}
        facts["others"][name] = fit["others"]
    return np.array(base["target"]), methods, facts


def calibrations(read: np.ndarray, rest: np.ndarray) -> dict[str, np.ndarray]:
    """The base and what people do to it today. read: (N, K) base readings of the query; rest: (K,) of the support's neutral."""
    return {
        BASE: read,
        MEDIAN: np.clip(read - np.median(read, axis=0), 0, MAX_INTENSITY),
        NEUTRAL: np.clip(read - rest, 0, MAX_INTENSITY),
    }


def assemble(jobs: Sequence[Job], seed: int) -> dict[str, Any]:
    """The result from the people's files: scores, differences, forgetting, bars."""
    target: dict[str, np.ndarray] = {}
    pred: dict[str, dict[str, np.ndarray]] = {}
    thresholds: dict[str, dict[str, np.ndarray]] = {}
    people: dict[str, dict[str, Any]] = {}
    others: dict[str, dict[str, Any]] = {}
    for job in jobs:
        target[job.name], methods, facts = methods_of(job)
        for name, (values, levels) in methods.items():
            pred.setdefault(name, {})[job.name] = values
            thresholds.setdefault(name, {})[job.name] = levels
        others[job.name] = facts.pop("others")
        people[job.name] = facts
    fits = list(jobs[0].recipes)
    result = compare(pred, target, thresholds, fits)
    result["forgetting"] = {fit: forgetting({name: held[fit] for name, held in others.items()}) for fit in fits}
    result |= {"seed": seed, "people": people, "bars": bars(result)}
    return result


def compare(
    pred: dict[str, dict[str, np.ndarray]],
    target: dict[str, np.ndarray],
    thresholds: dict[str, dict[str, np.ndarray]],
    fits: Sequence[str],
) -> dict[str, Any]:
    """Scores of every method and the differences of every fit to the base and to the best simple calibration.

    pred, thresholds: method -> person -> array. 'best_simple': 'pooled' and 'per_person' -> metric -> which calibration, by mean over AUs.
    'differences': fit -> 'base' or 'best_simple' -> 'per_person' and 'pooled' -> metric -> AU or 'mean' -> Interval of fit minus other.
    """
    scores = {name: scoring.evaluate(values, target, thresholds[name]) for name, values in pred.items()}
    kinds = ("pooled", "per_person")
    best = {kind: {m: scoring.best_of(scores, SIMPLE, m, kind) for m in scoring.METRICS} for kind in kinds}
    found: dict[str, Any] = {}
    for fit in fits:
        found[fit] = {}
        for rival in ("base", "best_simple"):
            single = {m: scores[BASE if rival == "base" else best["per_person"][m]] for m in scoring.METRICS}
            found[fit][rival] = {
                "per_person": {m: scoring.differences(single[m], scores[fit], m) for m in scoring.METRICS},
                "pooled": {
                    m: scoring.pooled_differences(pred[BASE if rival == "base" else best["pooled"][m]], pred[fit], target)[m]
                    for m in ("icc", "mae")
                },
            }
    return {"methods": list(pred), "fits": list(fits), "personalised": fits[0], "best_simple": best, "scores": scores, "differences": found}


def forgetting(held: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a person's weights do to others. held: adapted person -> other person -> 'target', 'before', 'gated', 'ungated', (N, K) lists.

    The others' query clips are read with the adapter, without the adapted person's neutral and offsets. ICC(3,1) within each clip, mean
    over AUs, then over the others. 'gated': through the profile's gates, as shipped; 'ungated': the bare weights.
    """
    rows: dict[str, dict[str, float]] = {}
    per_au: dict[str, list[np.ndarray]] = {"before": [], "gated": [], "ungated": []}
    for name, clips in held.items():
        icc: dict[str, list[np.ndarray]] = {key: [] for key in per_au}
        for clip in clips.values():
            truth = {"other": np.array(clip["target"])}
            for key in per_au:
                icc[key].append(scoring.pooled_icc(scoring.sums({"other": np.array(clip[key])}, truth))[0])
        if clips:
            rows[name] = {key: float(np.mean([np.nanmean(v) for v in values])) for key, values in icc.items()}
            for key, values in icc.items():
                per_au[key] += values
    out: dict[str, Any] = {"metric": "ICC(3,1)", "people": rows}
    for key in ("gated", "ungated"):
        change = [row[key] - row["before"] for row in rows.values()]
        single = [np.array(after) - np.array(before) for after, before in zip(per_au[key], per_au["before"], strict=True)]
        means = [scoring._mean(column) for column in np.array(single).T] if single else []
        out[key] = {"change": scoring.bootstrap(change), "per_au": dict(zip(COLUMNS, means, strict=False))}
    for key in per_au:
        out.setdefault("mean", {})[key] = scoring._mean([row[key] for row in rows.values()])
    return out


def bars(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What the project asks of the personalised model: each with its figure and whether it is met."""
    found = result["differences"][result["personalised"]]
    out = []
    for metric, kind in (("icc", "pooled"), ("icc", "per_person"), ("mae", "per_person")):
        for rival in ("base", "best_simple"):
            interval = found[rival][kind][metric]["mean"]
            what = f"mean {metric.upper()} ({kind.replace('_', ' ')}) better than {rival.replace('_', ' ')}, interval clear of zero"
            out.append({"what": what, "figure": _shown(interval), "met": scoring.improves(interval, metric)})
    for kind in ("pooled", "per_person"):
        icc = found["base"][kind]["icc"]
        for au in NAMED:
            out.append({"what": f"{au} gains ICC ({kind.replace('_', ' ')})", "figure": _shown(icc[au]), "met": bool(icc[au].mean > 0)})
        lost = {au: round(icc[au].mean, 3) for au in COLUMNS if au not in NAMED and icc[au].mean < -0.01}
        shown = ", ".join(f"{au} {value:+.3f}" for au, value in lost.items()) or "none loses more"
        out.append({"what": f"others lose at most 0.01 ICC ({kind.replace('_', ' ')})", "figure": shown, "met": not lost})
    return out


# --- what is written and shown --------------------------------------------------------------------------------------------------------


def write(folder: Path, result: dict[str, Any]) -> None:
    """bench.json with everything, bench.csv with every score of every AU, bench.md with the tables, bench.png."""
    text = json.dumps(_plain(result), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "bench.json").write_text(text + "\n", encoding="utf-8")
    with (folder / "bench.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "au", "metric", "pooled", "per_person", "people"])
        for method, table in result["scores"].items():
            for au, row in table.items():
                for m in scoring.METRICS:
                    values = ("" if math.isnan(v) else f"{v:.4f}" for v in (row["pooled"][m], row["per_person"][m]))
                    writer.writerow([method, au, m, *values, row["defined"][m] if au != "mean" else len(row["people"])])
    (folder / "bench.md").write_text("\n".join(ui.markdown(*table) for table in tables(result)), encoding="utf-8")
    plot(folder / "bench.png", result)


def label(method: str) -> str:
    """A method's name in tables."""
    return LABELS.get(method, f"adapted, {method}")


def _shown(interval: Interval) -> str:
    """The interval, or what there is of it: one person has a difference but no interval, nobody has neither."""
    if math.isnan(interval.mean):
        return "-"
    return f"{interval.mean:+.3f}" if math.isnan(interval.low) else str(interval)


def tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[Any]]]]:
    """Title, columns and rows of what there is to see."""
    out: list[tuple[str, list[str], list[list[Any]]]] = []
    scores, people = result["scores"], result["people"]
    read, dropped = sum(p["read"] for p in people.values()), sum(p["dropped"] for p in people.values())
    title = f"{len(people)} unseen people, {read} query frames ({dropped} without a tracked face left out for all); means over AUs"
    head = ["", "ICC pooled", "ICC", "PCC pooled", "PCC", "MAE", "F1 pooled", "F1", "AUC"]

    def row(table: dict[str, Any]) -> list[float]:
        pooled, each = table["pooled"], table["per_person"]
        return [pooled["icc"], each["icc"], pooled["pcc"], each["pcc"], each["mae"], pooled["f1"], each["f1"], each["auc"]]

    out.append((title, head, [[label(m), *row(scores[m]["mean"])] for m in result["methods"]]))
    best, chosen, fit = result["best_simple"]["per_person"], result["personalised"], scores[result["personalised"]]
    found = result["differences"][chosen]
    rows = []
    for au in (*COLUMNS, "mean"):
        simple = {m: scores[best[m]][au]["per_person"][m] for m in ("icc", "mae")}
        base, own = scores[BASE][au], fit[au]
        cells = [au, base["defined"]["icc"] if au != "mean" else len(people), base["per_person"]["icc"], simple["icc"]]
        cells += [scores[NO_GENERATOR][au]["per_person"]["icc"], own["per_person"]["icc"]]
        cells += [_shown(found[rival]["per_person"]["icc"][au]) for rival in ("base", "best_simple")]
        rows.append([*cells, base["per_person"]["mae"], simple["mae"], own["per_person"]["mae"]])
    head = ["AU", "people", "ICC base", "simple", "no gen.", "personal", "- base", "- simple", "MAE base", "simple", "personal"]
    simple_names = f"{LABELS[best['icc']]} (ICC), {LABELS[best['mae']]} (MAE)"
    out.append((f"Per person: personal = {label(chosen)}; simple = {simple_names}; 95% intervals", head, rows))
    rows = []
    for au in NAMED:
        for m in result["methods"]:
            gain = _shown(result["differences"][m]["base"]["per_person"]["icc"][au]) if m in result["fits"] else None
            rows.append([au, label(m), *row(scores[m][au]), gain])
    columns = ["AU", "", "ICC pooled", "ICC", "PCC pooled", "PCC", "MAE", "F1 pooled", "F1", "AUC", "ICC - base"]
    out.append(("AU06 and AU17 by name", columns, rows))
    rows = [
        [
            label(f),
            g["mean"]["before"],
            g["mean"]["gated"],
            _shown(g["gated"]["change"]),
            g["mean"]["ungated"],
            _shown(g["ungated"]["change"]),
        ]
        for f, g in result["forgetting"].items()
    ]
    note = "Forgetting: other people's query clips, ICC with this person's weights, without this person's neutral"
    out.append((note, ["", "before", "after, gated", "change", "after, ungated", "change"], rows))
    out.append(("Bars", ["", "figure", "met"], [[b["what"], b["figure"], "yes" if b["met"] else "no"] for b in result["bars"]]))
    return out


def show(result: dict[str, Any]) -> None:
    """The tables on stdout."""
    for table in tables(result):
        ui.table(*table)
    if result.get("quick"):
        ui.warn("--quick shows that the benchmark runs: its figures mean nothing.")


def plot(path: Path, result: dict[str, Any]) -> None:
    """Per-AU ICC of base, best simple calibration and personalised model, and the paired differences with their intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    names = [*COLUMNS, "mean"]
    x = np.arange(len(names), dtype=float)
    x[-1] += 0.6
    chosen, simple = result["personalised"], result["best_simple"]["per_person"]["icc"]
    drawn = ((BASE, "base", "#9aa3ad"), (simple, f"best simple: {LABELS[simple]}", "#e0a458"), (chosen, "personalised", "#2f7fb8"))
    for i, (method, text, colour) in enumerate(drawn):
        values = [result["scores"][method][au]["per_person"]["icc"] for au in names]
        above.bar(x + (i - 1) * 0.27, values, 0.27, label=text, color=colour)
    above.set_ylabel("ICC(3,1), mean over people")
    above.legend(frameon=False, ncols=3, loc="upper left")
    above.margins(y=0.2)
    for i, (rival, text, colour) in enumerate((("base", "minus base", "#2f7fb8"), ("best_simple", "minus best simple", "#e0a458"))):
        intervals = [result["differences"][chosen][rival]["per_person"]["icc"][au] for au in names]
        middle = np.array([v.mean for v in intervals])
        reach = np.abs(np.array([[v.low for v in intervals], [v.high for v in intervals]]) - middle)
        below.errorbar(x + (i - 0.5) * 0.24, middle, reach, fmt="o", ms=4, capsize=2, label=f"personalised {text}", color=colour)
    below.axhline(0, color="black", lw=0.8)
    below.set_ylabel("paired difference in ICC\n(95% bootstrap over people)")
    below.legend(frameon=False, ncols=2, loc="upper left")
    below.margins(y=0.2)
    below.set_xticks(x, [n.replace("AU0", "AU") for n in names])
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
    quick = " (quick run: no figures to quote)" if result.get("quick") else ""
    figure.suptitle(f"{len(result['people'])} unseen synthetic people, query clip of another day{quick}")
    figure.savefig(path, dpi=110)
