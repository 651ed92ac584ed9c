"""What each ingredient of the base's training gives, at small scale: its landmark branch and fusion trained without pictures.

    python benchmarks/ablations.py --data FOLDER [--steps 600] [--seeds 0,1] [--json out.json] [--md out.md]

FOLDER holds shards of 'train' and 'validation' people (``python -m personalize.synth.dataset``). Each variant leaves out one ingredient and
is otherwise trained as 'all': the same steps, batches of the same size, the same seeds. The figures are of validation people, means over
AUs, then over seeds; +- is half the distance of the lowest and the highest seed. All of it takes ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from base_tables import CONDITIONS, PRESENT, Table, conditional, reference_rows, shown

from personalize import ui
from personalize.augment import augment_landmarks, thin_out
from personalize.aus import AUS
from personalize.base import scores, standardise
from personalize.config import load_recipe
from personalize.errors import PersonalizeError
from personalize.model import AUNet, ordinal_loss

PROTOTYPES: tuple[tuple[int, ...], ...] = (
    (12,), (6, 12), (6, 7, 12),
    (1, 4), (1, 15), (4, 15), (1, 4, 15), (1, 15, 17), (1, 4, 17), (1, 4, 15, 17),
    (1, 2), (1, 2, 5), (2, 5),
    (1, 2, 4), (1, 2, 4, 5), (1, 2, 4, 5, 20), (1, 2, 4, 20), (5, 20),
    (4, 5), (4, 7), (4, 5, 7), (4, 7, 23), (4, 7, 24), (4, 23), (4, 24), (4, 5, 7, 23), (4, 17, 24),
    (9,), (10,), (9, 10), (9, 17), (10, 17), (9, 10, 17), (9, 15), (10, 15),
    (14,),
    (),
)  # fmt: skip
"""Happiness, sadness, surprise, fear, anger, disgust, contempt, and rest, by their AUs (loosely after EMFACS: Friesen & Ekman, 1983)."""
THEIRS = sorted({AUS.index(a) for p in PROTOTYPES for a in p})


@dataclass(frozen=True)
class Variant:
    """One training. rows: which pictures: 'all', 'prototypes', 'random' (as many, at rest and not), 'quarter' (of the people)."""

    name: str
    stretch: bool = True
    bend: bool = True
    tremble: bool = True
    neutral: bool = True
    rows: str = "all"


VARIANTS = (
    Variant("all"),
    Variant("no stretch of faces", stretch=False),
    Variant("no bending of pictures", bend=False),
    Variant("no tremble of points", tremble=False),
    Variant("no neutral in training", neutral=False),
    Variant("a quarter of the people", rows="quarter"),
    Variant("emotional prototypes only", rows="prototypes"),
    Variant("as many pictures, any expression", rows="random"),
)


def is_prototype(target: np.ndarray) -> np.ndarray:
    """(N, K) intensities to (N,) bool: the AUs at 1 or more, but for parted lips and jaw, are one of PROTOTYPES."""
    known = {frozenset(p) for p in PROTOTYPES}
    active = [{a for a, on in zip(AUS, row >= PRESENT, strict=True) if on} - {25, 26} for row in target]
    return np.array([a in known for a in active], bool)


def usable(data: dict[str, np.ndarray], rows: str, seed: int) -> np.ndarray:
    """Indices of the pictures that a variant trains on, all of people with a neutral."""
    free = np.flatnonzero(reference_rows(data) >= 0)
    if rows == "quarter":
        people = np.unique(data["person"][free])
        return free[np.isin(data["person"][free], people[: max(len(people) // 4, 1)])]
    if rows in ("prototypes", "random"):
        chosen = free[is_prototype(data["target"][free])]
        if rows == "prototypes":
            return chosen
        at_rest, moving = chosen[data["neutral"][chosen]], free[~data["neutral"][free]]
        return np.concatenate([at_rest, np.random.default_rng(seed).choice(moving, len(chosen) - len(at_rest), replace=False)])
    return free


def train(variant: Variant, data: dict[str, np.ndarray], model: dict[str, Any], steps: int, people: int, lr: float, seed: int) -> AUNet:
    """A net whose crop branch never learns. A batch: one picture each of so many people, beside a neutral of theirs."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = AUNet(**model)
    standardise(net, data)
    points, target = torch.from_numpy(data["landmarks"]), torch.from_numpy(data["target"].astype(np.float32))
    rows = usable(data, variant.rows, seed)
    neutrals = {int(p): np.flatnonzero((data["person"] == p) & data["neutral"]) for p in np.unique(data["person"][rows])}
    moving = [p for name, p in net.named_parameters() if not name.startswith(("backbone", "squeeze", "crop_project"))]
    optimizer = torch.optim.AdamW(moving, lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    own, on = torch.arange(people).repeat(2), torch.ones(people, dtype=torch.bool)
    look, known = torch.zeros(people, net.config["width"]), torch.ones(people, len(AUS), dtype=torch.bool)  # type: ignore[call-overload]
    net.train()
    for _ in range(steps):
        pictures = rng.choice(rows, people)
        chosen = [rng.choice(neutrals[int(data["person"][i])]) for i in pictures]
        both = points[np.concatenate([chosen, pictures])].float()
        both = augment_landmarks(
            both, people, 1, **{option: 0.0 for option in ("stretch", "bend", "tremble") if not getattr(variant, option)}
        )
        both = thin_out(both, own)
        has_neutral = (torch.rand(people) < 0.55) & variant.neutral
        neutral = {"crop": look, "landmarks": both[:people]}
        read = net.read(net.combine(look, both[people:], on, neutral, has_neutral, ~on))
        loss = ordinal_loss(read["logits"], target[pictures], known)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moving, 2.0)
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def judge(net: AUNet, data: dict[str, np.ndarray], neutral: bool) -> dict[str, float]:
    """Means over AUs: 'auc', 'icc', 'mae', 'theirs' (the ICC of the AUs that prototypes have), and 'beside' (the AUC of AUs where those of
    CONDITIONS beside them are on). The references are not judged."""
    own = reference_rows(data)
    rows = np.flatnonzero((own >= 0) & (own != np.arange(len(own))))
    points, on = torch.from_numpy(data["landmarks"].astype(np.float32)), torch.ones(len(rows), dtype=torch.bool)
    look = torch.zeros(len(rows), net.config["width"])  # type: ignore[call-overload]
    given = {"crop": look, "landmarks": points[own[rows]]} if neutral else None
    pred = net.read(net.combine(look, points[rows], on, given, None, ~on))["intensity"].double().numpy()
    target = data["target"][rows].astype(np.float64)
    each = list(scores(pred, target).values())
    once = np.ones((1, 1))
    beside = [conditional(pred, target, np.zeros(len(rows), int), once, au, other, True)["auc"].mean for au, other in CONDITIONS]
    means = {m: float(np.nanmean([s[m] for s in each])) for m in ("auc", "icc", "mae")}
    return means | {"theirs": float(np.nanmean([each[k]["icc"] for k in THEIRS])), "beside": float(np.mean(beside))}


def load(folder: Path, split: str) -> dict[str, np.ndarray]:
    """Landmarks, targets and people of a split's shards, without the pictures."""
    paths = sorted(folder.glob(f"{split}-{'[0-9]' * 6}.npz"))
    if not paths:
        raise FileNotFoundError(f"no shards of split '{split}' in {folder}: make them with python -m personalize.synth.dataset")
    parts = []
    for path in paths:
        with np.load(path, allow_pickle=False) as data:
            parts.append({k: data[k] for k in ("landmarks", "target", "person", "neutral")})
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def several(values: Sequence[float]) -> str:
    """Mean and half the range over seeds."""
    return f"{np.mean(values):.3f} +-{np.ptp(values) / 2:.3f}"


def main(words: Sequence[str] | None = None) -> int:
    """Train, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--people", type=int, default=192, help="in a batch")
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--md", type=Path)
    args = parser.parse_args(words)
    try:
        data, validation = load(args.data, "train"), load(args.data, "validation")
        model = load_recipe("base", [])["model"]
    except (PersonalizeError, FileNotFoundError) as e:
        ui.error(e)
        return 2
    seeds = [int(s) for s in args.seeds.split(",")]
    metrics = ("auc", "icc", "mae", "theirs", "beside")
    found: dict[str, Any] = {}
    rows = []
    with ui.progress(None, len(VARIANTS) * len(seeds), "Training without one ingredient each") as bar:
        for v in VARIANTS:
            runs = []
            for seed in seeds:
                net = train(v, data, model, args.steps, args.people, args.lr, seed)
                runs.append({n: judge(net, validation, n == "with") for n in (("without", "with") if v.neutral else ("without",))})
                bar.advance()
            n = len(usable(data, v.rows, 0))
            found[v.name] = {"pictures": n, "runs": runs}
            cells = [several([r[w][m] for r in runs]) if w in runs[0] else None for w in ("without", "with") for m in metrics]
            rows.append([v.name, n, *cells])
    names = ("AUC", "ICC", "MAE", "ICC*", "AUC**")
    columns = ["trained with", "pictures", *names, *(f"{n} +neutral" for n in names)]
    note = (
        "* Over the AUs that emotional prototypes have. ** Of an AU where another is on: "
        + ", ".join(f"{a} beside {b}" for a, b in CONDITIONS)
        + f". {len(seeds)} seeds, {args.steps} steps of {args.people} pictures."
    )
    table = Table("What each ingredient gives the landmark branch", columns, rows, note)
    for title, cut in ((table.title, slice(2, 7)), ("The same, read with the person's neutral", slice(7, 12))):
        ui.table(title, [*columns[:2], *columns[cut]], [[shown(c) for c in [*r[:2], *r[cut]]] for r in rows])
    print(note)
    if args.md:
        args.md.write_text(table.markdown() + "\n")
    if args.json:
        args.json.write_text(json.dumps({"steps": args.steps, "seeds": seeds, "variants": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
