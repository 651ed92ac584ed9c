"""A sanity benchmark of the continual-learning plug-ins: permuted digits, domain-incremental, minutes on a CPU.

    OMP_NUM_THREADS=1 python benchmarks/continual.py [--seeds 3] [--epochs 20] [--json out.json]

Five tasks: scikit-learn's digits (1437 train, 360 test) under five fixed permutations of the 64 pixels, the first of them none. One MLP
64-100-100-10 without a task label, Adam 1e-3, batch 32. Reported: accuracy on all five test sets after the last task, their mean and its
standard deviation over seeds. The plug-ins are the package's own; their weights were chosen on seed 107, which is none of those reported.
Ends with exit code 1 where the order naive < EWC < replay < joint does not hold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from personalize.buffers import Field
from personalize.regularizers import FunctionRegularizer, ParameterRegularizer, Regularizer
from personalize_plugins.buffers.reservoir import Reservoir
from personalize_plugins.regularizers.ewc import EWC
from personalize_plugins.regularizers.l2sp import L2SP
from personalize_plugins.regularizers.lwf import LwF

Task = tuple[Tensor, Tensor, Tensor, Tensor]
TASKS, BATCH, CAPACITY = 5, 32, 200
METHODS: dict[str, Callable[[int], Regularizer] | None] = {
    "naive": None,
    "lwf": lambda seed: LwF(weight=1.0, temperature=2.0, likelihood="categorical"),
    "l2sp": lambda seed: L2SP(weight=0.1),
    "ewc (empirical)": lambda seed: EWC(weight=300.0, fisher="empirical", samples=10_000, chunk=256, likelihood="categorical", seed=seed),
    "ewc (exact)": lambda seed: EWC(weight=100.0, fisher="exact", samples=10_000, chunk=256, likelihood="categorical", seed=seed),
    "replay (200)": None,
    "joint": None,
}


class DigitsReservoir(Reservoir):
    """The reservoir, for digits instead of faces."""

    schema = {"x": Field((64,), torch.float32), "target": Field((), torch.int64)}


def tasks(seed: int) -> list[Task]:
    """x_train, y_train, x_test, y_test of each task."""
    digits = load_digits()
    x = torch.tensor(digits.data / 16.0, dtype=torch.float32)
    y = torch.tensor(digits.target)
    train, test = train_test_split(range(len(y)), test_size=360, random_state=0, stratify=digits.target)
    generator = torch.Generator().manual_seed(1000 + seed)
    orders = [torch.arange(64)] + [torch.randperm(64, generator=generator) for _ in range(TASKS - 1)]
    return [(x[train][:, order], y[train], x[test][:, order], y[test]) for order in orders]


def predict(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Class logits of a batch."""
    return {"logits": model(batch["x"])}


def accuracy(model: nn.Module, stream: list[Task]) -> list[float]:
    """Percent right on the test set of each task."""
    with torch.no_grad():
        return [100 * float((model(x).argmax(1) == y).float().mean()) for _, _, x, y in stream]


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epochs: int,
    regularizer: Regularizer | None,
    buffer: DigitsReservoir | None,
    generator: torch.Generator,
) -> None:
    """One task."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            batch = {"x": x[rows], "target": y[rows]}
            outputs = predict(model, batch)
            loss = F.cross_entropy(outputs["logits"], batch["target"])
            if buffer is not None and len(buffer):
                replay = buffer.sample(BATCH)
                loss = loss + F.cross_entropy(predict(model, replay)["logits"], replay["target"])
            if isinstance(regularizer, FunctionRegularizer):
                loss = loss + regularizer.loss(model, batch, outputs)
            optimizer.zero_grad()
            loss.backward()
            if isinstance(regularizer, ParameterRegularizer):
                regularizer.gradients(model.named_parameters())
            optimizer.step()


def run(method: str, seed: int, epochs: int) -> list[float]:
    """Accuracies on all tasks after the last one."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    generator = torch.Generator().manual_seed(seed)
    stream = tasks(seed)
    if method == "joint":
        train(model, torch.cat([t[0] for t in stream]), torch.cat([t[1] for t in stream]), epochs, None, None, generator)
        return accuracy(model, stream)
    make = METHODS[method]
    regularizer = make(seed) if make else None
    buffer = DigitsReservoir(capacity=CAPACITY, seed=seed) if method.startswith("replay") else None
    for t, (x, y, _, _) in enumerate(stream):
        train(model, x, y, epochs, regularizer if t else None, buffer, generator)
        batch = {"x": x, "target": y}
        if buffer is not None:
            buffer.add(batch, person=f"task {t}")
        if isinstance(regularizer, FunctionRegularizer):
            regularizer.start(model, predict)
        elif isinstance(regularizer, ParameterRegularizer):
            regularizer.start(model, [batch], predict=predict)
    return accuracy(model, stream)


def main() -> int:
    """Run, print, write; 1 where the order is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, dict[str, object]] = {}
    means: dict[str, float] = {}
    print(f"{'method':<18}{'mean':>7}{'sd':>6}   {'by task':<32}{'s/seed':>7}")
    for method in options.methods:
        begin = time.perf_counter()
        runs = [run(method, seed, options.epochs) for seed in range(options.first_seed, options.first_seed + options.seeds)]
        seconds = (time.perf_counter() - begin) / options.seeds
        finals = [statistics.fmean(r) for r in runs]
        by_task = [statistics.fmean(column) for column in zip(*runs, strict=True)]
        means[method] = statistics.fmean(finals)
        sd = statistics.stdev(finals) if len(finals) > 1 else 0.0
        results[method] = {"mean": means[method], "sd": sd, "by_task": by_task, "runs": runs, "seconds_per_seed": seconds}
        print(f"{method:<18}{means[method]:7.1f}{sd:6.1f}   {' '.join(f'{a:5.1f}' for a in by_task):<32}{seconds:7.1f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"seeds": options.seeds, "epochs": options.epochs, "results": results}, indent=2) + "\n")
    order = [m for m in ("naive", "ewc (empirical)", "replay (200)", "joint") if m in means]
    wrong = [
        f"{a} ({means[a]:.1f}) is not below {b} ({means[b]:.1f})" for a, b in zip(order, order[1:], strict=False) if means[a] >= means[b]
    ]
    for line in wrong:
        print(f"wrong order: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
