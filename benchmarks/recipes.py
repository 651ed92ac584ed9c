"""Is the default recipe the best there is? Fits of validation people, not those of the bench, by recipes that differ in one plug-in.

Run: python benchmarks/recipes.py --people 8 --output recipes

Each person is filmed as the bench films its people: a calm support clip, a lively query clip on another day. Every recipe is fitted to the
support clip and reads the query, and the others' clips for forgetting. Differences from the default recipe are paired per person, with 95 %
bootstrap intervals. Writes recipes.md and recipes.json; what is measured already is not measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench_together import METRICS, values

from personalize import bench, ui
from personalize.circumstances import circumstances
from personalize.config import load_recipe
from personalize.metrics import paired
from personalize.synth.clips import Clip

FIRST_PERSON = 220
"""Validation people before this one chose thresholds, gates and what is reported."""
VARIANTS: dict[str, list[str]] = {
    "default": [],
    "adapter head": ["adapter.name=head"],
    "adapter norm": ["adapter.name=norm"],
    "adapter full": ["adapter.name=full", "profile.max_mb=5"],
    "lora of rank 16": ["adapter.options.rank=16"],
    "no regularizer": ["regularizers=null"],
    "lwf alone": ["regularizers=lwf"],
    "l2sp alone": ["regularizers=l2sp"],
    "ewc beside both": ["regularizers.ewc.weight=1.0"],
    "none turned": ["generator.turned=0"],
    "half of them turned": ["generator.turned=0.5"],
    "128 rehearsed": ["buffer.options.capacity=128"],
    "128 in a reservoir": ["buffer.name=reservoir", "buffer.options.capacity=128"],
}


def table(result: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Head and rows: ICC per person and pooled, MAE, F1, AUC, AU6 and AU17, what others lose, and ICC and MAE against the default."""
    scores, rows = result["scores"], []
    for name in (bench.BASE, *result["fits"]):
        mean = scores[name]["mean"]
        cells = [mean["per_person"]["icc"], mean["pooled"]["icc"], *(mean["per_person"][m] for m in METRICS[1:])]
        cells += [scores[name][au]["per_person"]["icc"] for au in bench.NAMED]
        lost, against = "-", ["-", "-"]
        if name != bench.BASE:
            forgetting = result["forgetting"][name]["ungated"]["change"]
            lost = f"{forgetting.mean:+.3f} [{forgetting.low:+.3f}, {forgetting.high:+.3f}]"
        if name not in (bench.BASE, result["fits"][0]):
            found = [paired(*(values([result], fit, "mean", m) for fit in (result["fits"][0], name))) for m in METRICS[:2]]
            against = [f"{x.mean:+.3f} [{x.low:+.3f}, {x.high:+.3f}]" for x in found]
        rows.append([name, *cells, lost, *against])
    head = [
        "recipe",
        "ICC",
        "pooled",
        "MAE",
        "F1",
        "AUC",
        "AU6",
        "AU17",
        "others, ungated (ICC)",
        "ICC less default's",
        "MAE less default's",
    ]
    return head, rows


def main() -> None:
    """Film, fit, read, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--first", type=int, default=FIRST_PERSON, help="the first of them; leave out whom another choice was made on")
    parser.add_argument("--recipes", default=",".join(VARIANTS), help="some of them, separated by commas; the first is compared with")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each clip")
    parser.add_argument("--output", type=Path, default=Path("runs/recipes"))
    args = parser.parse_args()
    names = args.recipes.split(",")
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        parser.error(f"no recipe '{unknown[0]}': there is {', '.join(VARIANTS)}")
    args.plugins = ()
    recipes = {name: load_recipe("default", ["tracking.wandb='off'", *VARIANTS[name]], "fit") for name in names}
    numbers = range(args.first, args.first + args.people)
    pairs = [
        (Clip("validation", i, 0, args.seconds, liveliness=0.6), Clip("validation", i, 1, args.seconds, liveliness=1.5)) for i in numbers
    ]
    jobs = bench.jobs_of(pairs, recipes, args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    bench.film([clip for job in jobs for clip in (job.support, job.query)], args.output / "clips", args)
    files = [path for job in jobs for path in job.parts.values()]
    left_out = bench.in_processes(bench.measure, jobs, files, "Fitting and reading", args, args.output)
    kept = [job for job, why in zip(jobs, left_out, strict=True) if not why]
    result = bench.assemble(kept, 0)
    head, rows = table(result)
    made = circumstances(["python", "benchmarks/recipes.py", "--people", args.people, "--first", args.first, "--recipes", args.recipes])
    (args.output / "recipes.md").write_text(ui.markdown(None, head, rows))
    scores = {name: {au: row["per_person"] for au, row in found.items()} for name, found in result["scores"].items()}
    (args.output / "recipes.json").write_text(json.dumps({"made": made, "people": len(kept), "scores": scores}, indent=1) + "\n")
    ui.table(f"Recipes on {len(kept)} validation people", head, rows)


if __name__ == "__main__":
    main()
