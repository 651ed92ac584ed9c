"""Coarse events on real clips: does the trace of an AU rise where somebody saw it, and stay down where not? Before and after a fit.

    python benchmarks/real_events.py CLIPS_FOLDER [--fit] [--seeds 0,1,2] [key=value ...]

CLIPS_FOLDER holds the clips and events.csv (clip, au, start_s, end_s, state). For each clip and AU with both states, by the base and
(--fit) by the model fitted to that very clip: frame-level AUC inside the clip of the intensity; and, as a reading in the right order may
still be far too low, its mean where the AU is on and off and the share of frames in which it is reported present. Beside them the AUC of
the base's crop and landmark branch, each alone, and how well they agree: the correlation of their expected intensities over the clip, of
AUs that both see move.
Sanity checks made by eye, not FACS codes; nothing is trained or tuned on them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from personalize import engine, registry, ui
from personalize.aus import AUS, COLUMNS
from personalize.config import load_recipe
from personalize.faces import Observation
from personalize.labels import read_labels
from personalize.metrics import auc, pcc
from personalize.reader import Reader
from personalize.tracks import Survey, observe
from personalize.video import open_media
from personalize.weights import load_base

MOVES = 0.05
"""Standard deviation of expected intensities from which on a branch sees an AU move in a clip."""


def branches(reader: Reader, seen: list[Observation]) -> dict[str, np.ndarray]:
    """(T, K) expected intensities of each branch alone; of a person's model gated as its readings are."""
    alone = {branch: reader.read(seen, branch) for branch in ("crop", "landmarks")}
    return {branch: r.expected if r.own is None else r.own for branch, r in alone.items()}


def agreement(crop: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(K,) correlation of the two branches, NaN where one of them does not see the AU move."""
    moves = (crop.std(0) > MOVES) & (points.std(0) > MOVES)
    return np.array([pcc(crop[:, k], points[:, k]) if moves[k] else np.nan for k in range(len(AUS))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--base", default="base")
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_intermixed_args()
    base = load_base(args.base)
    tracker = registry.create("trackers", "mediapipe", {})
    rows, heights, agree = [], [], []
    result: dict[str, dict] = {}
    for name in sorted({line.split(",")[0] for line in (args.folder / "events.csv").read_text().splitlines()[1:]}):
        media = open_media(args.folder / name)
        survey = Survey()
        seen = [o for _, found in observe(media, tracker, survey=survey) for o in found]
        who = survey.identity()
        seen = [o for o in seen if o.face_id == who]
        labels = read_labels(args.folder / "events.csv", clip=name)
        times = np.array([o.timestamp for o in seen])
        target, known = labels.align(np.array([o.frame for o in seen]), times, [])
        readers = {"base": Reader(base)}
        if args.fit:
            for seed in args.seeds.split(","):
                with tempfile.TemporaryDirectory() as folder:
                    recipe = load_recipe("default", [f"seed={seed}", "tracking.wandb='off'", f"base={args.base}", *args.overrides])
                    fitted = engine.fit(media, recipe, Path(folder) / "runs" / "clip" / "v1", "clip")
                    readers[f"fit{seed}"] = Reader(base, fitted.profile)
        readings = {key: r.read_clip(seen).best for key, r in readers.items()}
        alone = {key: branches(r, seen) for key, r in readers.items()}
        together = {key: agreement(*values.values()) for key, values in alone.items()}
        agree += [[name, COLUMNS[k], *(t[k] for t in together.values())] for k in range(len(AUS)) if not np.isnan(together["base"][k])]
        for k in range(len(AUS)):
            truth = target[known[:, k], k] >= 1
            if truth.any() and not truth.all():
                figures = {key: auc(values[known[:, k], k], truth) for key, values in {**readings, **alone["base"]}.items()}
                gates = {key: float(r.profile.gate[k]) for key, r in readers.items() if r.profile is not None}
                result[f"{name} {COLUMNS[k]}"] = {**figures, **{f"gate_{key}": g for key, g in gates.items()}}
                rows.append([name, COLUMNS[k], int(truth.sum()), int((~truth).sum()), *figures.values(), *gates.values()])
                heights.append([name, COLUMNS[k]])
                for key, values in readings.items():
                    own, height = values[known[:, k], k], {}
                    present = np.round(own, 3) >= np.round(readers[key].thresholds[k], 3)
                    for state, frames in (("on", truth), ("off", ~truth)):
                        height[state] = {"mean": float(own[frames].mean()), "present": float(present[frames].mean())}
                        heights[-1] += height[state].values()
                    result[f"{name} {COLUMNS[k]}"][f"height_{key}"] = height
    tracker.close()
    measured = (*readings, "crop", "landmarks")
    columns = ["clip", "AU", "frames on", "frames off", *measured, *(f"gate {key}" for key in readers if key != "base")]
    ui.table("AUC inside the clip", columns, rows)
    states = [f"{key} {what} {state}" for key in readings for state in ("on", "off") for what in ("mean", "present")]
    ui.table("Intensity, and share of frames with the AU present, where it is on and off", ["clip", "AU", *states], heights)
    ui.table("Correlation of the crop and the landmark branch inside the clip", ["clip", "AU", *readings], agree)
    means = {key: float(np.mean([r[key] for r in result.values()])) for key in measured}
    print("mean", {k: round(v, 4) for k, v in means.items()})
    if args.json:
        agreed = {f"{clip} {au}": dict(zip(readings, map(float, values), strict=True)) for clip, au, *values in agree}
        args.json.write_text(json.dumps({"events": result, "mean": means, "agreement": agreed}, indent=1) + "\n")


if __name__ == "__main__":
    main()
