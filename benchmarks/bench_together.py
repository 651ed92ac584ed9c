"""Several runs of ``personalize bench`` with other people as one: differences paired per person over all of them.

Run: personalize bench --people 12 --output bench0; personalize bench --people 12 --seed 1 --output bench1;
python benchmarks/bench_together.py bench0/bench.json bench1/bench.json. A person's mean is over the AUs that are defined for them; the
bench's own tables average over people first. Runs of the same people by other generators or options are set side by side instead, on the
people whom all of them have; a method is read from the first run that has it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from personalize.bench import NAMED
from personalize.metrics import Interval, paired

METRICS = ("icc", "mae", "f1", "auc")


def values(runs: list[dict[str, Any]], method: str, au: str, metric: str) -> np.ndarray:
    """One a person, run by run; NaN where undefined. au: a column, or 'mean'."""
    found = [run["scores"][method][au]["people"][person][metric] for run in runs for person in run["people"]]
    return np.array([np.nan if v is None else v for v in found])


def beside(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Runs of the same people as one, with the methods of all."""
    people = [person for person in runs[0]["people"] if all(person in run["people"] for run in runs)]
    scores = {method: found for run in reversed(runs) for method, found in run["scores"].items()}
    return {**runs[0], "people": people, "methods": list(dict.fromkeys(m for run in runs for m in run["methods"])), "scores": scores}


def shown(interval: Interval) -> str:
    """Mean, interval, people."""
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}], {interval.n} people"


def main() -> None:
    """Read the runs and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="bench.json of each run")
    runs = [json.loads(path.read_text()) for path in parser.parse_args().runs]
    seeds = {run["seed"] for run in runs}
    if 1 < len(seeds) < len(runs):
        raise SystemExit("some of the runs have the same seed, so the same people, others not: give either the ones or the others.")
    alike = [("base models", "base"), ("lengths (--quick)", "quick")]
    for what, of in alike if len(seeds) == 1 else [*alike, ("first generators", "personalised")]:
        if any(run.get(of) != runs[0].get(of) for run in runs):
            raise SystemExit(f"the runs have different {what}: they cannot be taken together.")
    if len(seeds) == 1:
        runs = [beside(runs)]
    chosen = runs[0]["personalised"]
    methods = [m for m in runs[0]["methods"] if all(m in run["methods"] for run in runs)]
    for method in methods:
        print(method.ljust(22), *(f"{metric} {np.nanmean(values(runs, method, 'mean', metric)):.3f}" for metric in METRICS))
    for rival in (m for m in methods if m != chosen):
        for metric in METRICS:
            ours, theirs = (values(runs, m, "mean", metric) for m in (chosen, rival))
            print(f"{chosen} minus {rival}, {metric}: {shown(paired(theirs, ours))}")
        for au in NAMED:
            print(f"{chosen} minus {rival}, {au}, icc: {shown(paired(*(values(runs, m, au, 'icc') for m in (rival, chosen))))}")
    for au in (a for a in runs[0]["scores"][chosen] if a != "mean"):
        gain = paired(values(runs, "base", au, "icc"), values(runs, chosen, au, "icc"))
        print(f"{au}, ICC gained on the base: {shown(gain)}")


if __name__ == "__main__":
    main()
