"""The base model: training it on the synthetic world, measuring it, loading the one that ships.

``personalize base fit`` renders people who never meet those of validation and benchmark, tracks them as users' clips are tracked, and
trains :class:`~personalize.model.AUNet` with and without the person's neutral.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from kornia.geometry.transform import get_affine_matrix2d, warp_affine
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from . import __version__, tracking, ui
from .aus import AUS, COLUMNS
from .metrics import auc, icc31, mae
from .model import AUNet, ordinal_loss
from .weights import SHIPPED, Base, load_base, save_base

__all__ = ["SHIPPED", "Base", "load_base", "save_base"]


class Renders(Dataset[dict[str, Tensor]]):
    """Tracked renders in memory. ``__getitems__`` answers a whole batch at once: crops of 112 pixels need no worker processes."""

    def __init__(self, data: dict[str, np.ndarray], pictures: bool = True) -> None:
        self.data, self.pictures = data, pictures

    def __len__(self) -> int:
        return len(self.data["crop"])

    def __getitems__(self, index: list[int]) -> dict[str, Tensor]:
        d = self.data
        return {
            **({"crop": torch.from_numpy(d["crop"][index]).permute(0, 3, 1, 2).contiguous()} if self.pictures else {}),
            "landmarks": torch.from_numpy(d["landmarks"][index].astype(np.float32)),
            "target": torch.from_numpy(d["target"][index].astype(np.float32)),
            "index": torch.tensor(index),
        }


class PersonBatches(Sampler[list[int]]):
    """Batches of ``people`` x (1 reference + ``each``): first all references (a neutral picture of each person), then their pictures.

    A batch's references are read once for all pictures of their person. Each rank takes every world-th batch of the same shuffle.
    """

    def __init__(
        self, person: np.ndarray, neutral: np.ndarray, total: np.ndarray, people: int, each: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.people, self.each, self.seed, self.rank, self.world, self.epoch = people, each, seed, rank, world, 0
        self.members = {int(p): np.flatnonzero(person == p) for p in np.unique(person)}
        self.neutrals = {p: m[neutral[m]] for p, m in self.members.items()}
        # A user's neutral is never quite neutral: one in six references is a calm picture instead.
        self.calm = {p: m[total[m] < 4.0] for p, m in self.members.items()}
        self.usable = [p for p, m in self.members.items() if len(m) > each and len(self.neutrals[p]) > 0]

    def __len__(self) -> int:
        return len(self.usable) // self.people // self.world

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        order = rng.permutation(self.usable)
        for b in range(len(self) * self.world):
            chosen = order[b * self.people : (b + 1) * self.people]
            references, pictures = [], []
            for p in chosen:
                pool = self.calm[p] if rng.random() < 0.16 else self.neutrals[p]
                reference = int(rng.choice(pool))
                references.append(reference)
                others = self.members[p][self.members[p] != reference]
                pictures += rng.choice(others, self.each, replace=False).tolist()
            if b % self.world == self.rank:
                yield references + pictures


def augment(batch: dict[str, Tensor], people: int = 0, each: int = 0) -> dict[str, Tensor]:
    """What users' clips do to crops and landmarks, drawn anew each time; see :func:`augment_crops` and :func:`augment_landmarks`."""
    return {**batch, "crop": augment_crops(batch["crop"]), "landmarks": augment_landmarks(batch["landmarks"], people, each)}


def augment_crops(crop: Tensor) -> Tensor:
    """(B, 3, 112, 112), 0-255: misaligned, in another light, now and then grey or with something in front."""
    crop = crop.float()
    n, device = len(crop), crop.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    centre = torch.full((n, 2), crop.shape[-1] / 2, device=device)
    scale = (1 + 0.05 * normal(n, 1)).clamp(0.85, 1.15).expand(n, 2)
    matrix = get_affine_matrix2d(3.0 * normal(n, 2), centre, scale, 4.0 * normal(n))[:, :2]
    crop = warp_affine(crop, matrix, crop.shape[-2:], padding_mode="border")
    gain, bias, tint = torch.exp(0.18 * normal(n, 1, 1, 1)), 14 * normal(n, 1, 1, 1), torch.exp(0.06 * normal(n, 3, 1, 1))
    crop = (crop - 110) * gain * tint + 110 + bias
    grey = (torch.rand(n, 1, 1, 1, device=device) < 0.15).float()
    crop = crop * (1 - grey) + crop.mean(1, keepdim=True) * grey
    for i in torch.nonzero(torch.rand(n) < 0.12).flatten().tolist():
        h, w = int(torch.randint(14, 48, ())), int(torch.randint(14, 48, ()))
        y, x = int(torch.randint(0, 112 - h, ())), int(torch.randint(0, 112 - w, ()))
        crop[i, :, y : y + h, x : x + w] = 255 * torch.rand(3, 1, 1, device=device)
    return crop.clamp(0, 255)


def augment_landmarks(landmarks: Tensor, people: int = 0, each: int = 0) -> Tensor:
    """(B, 478, 3): stretched, turned, shifted, and noisy.

    people, each: the batch is of so many people (references first, then ``each`` pictures of each) whose faces are stretched besides, every
    person in a way of their own; 0: one known person, who is not to be stretched.
    """
    n, device = len(landmarks), landmarks.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    if people:
        stretch = 1 + 0.05 * normal(people, 1, 3)
        landmarks = landmarks * torch.cat([stretch, stretch.repeat_interleave(each, 0)])
    # The pose fit is never exact: a little rotation, scale and shift remain, and every point trembles, most in depth.
    turn, zero = 0.035 * normal(n, 3), torch.zeros(n, device=device)
    skew = torch.stack([zero, -turn[:, 2], turn[:, 1], turn[:, 2], zero, -turn[:, 0], -turn[:, 1], turn[:, 0], zero], 1).view(n, 3, 3)
    landmarks = landmarks + torch.einsum("bij,bnj->bni", skew, landmarks)
    tremble = 0.003 * torch.randn_like(landmarks) * torch.tensor([1, 1, 2.0], device=device)
    return landmarks * (1 + 0.01 * normal(n, 1, 1)) + 0.006 * normal(n, 1, 3) + tremble


class BaseModule(L.LightningModule):
    """Trains the base: every picture with its person's neutral or without, with both branches or one. Keeps an average of the weights."""

    def __init__(self, net: AUNet, lr: float, weight_decay: float, people: int, each: int, ema: float = 0.998) -> None:
        super().__init__()
        self.net, self.lr, self.weight_decay, self.people, self.each = net, lr, weight_decay, people, each
        self.average = torch.optim.swa_utils.AveragedModel(
            net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(ema), use_buffers=True
        )

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        look = self.look(batch)
        batch["landmarks"] = augment_landmarks(batch["landmarks"], self.people, self.each)
        n, people = len(look), self.people
        own = torch.cat([torch.arange(people), torch.arange(people).repeat_interleave(self.each)]).to(look.device)
        has_neutral = torch.rand(n, device=look.device) < 0.55
        has_neutral[:people] = False
        draw = torch.rand(n, device=look.device)
        has_crop, has_landmarks = draw > 0.12, draw < 0.88
        neutral = {"crop": look[own], "landmarks": batch["landmarks"][own]}
        fused = self.net.combine(look, batch["landmarks"], has_landmarks, neutral, has_neutral, has_crop)
        loss = ordinal_loss(self.net.read(fused)["logits"], batch["target"], torch.ones_like(batch["target"], dtype=torch.bool))
        self.log("loss", loss, prog_bar=True)
        return loss

    def look(self, batch: dict[str, Tensor]) -> Tensor:
        """The crop branch's features of a batch."""
        return self.net.crop_features(augment_crops(batch["crop"]))

    def on_train_batch_end(self, *_: Any) -> None:
        self.average.update_parameters(self.net)

    def configure_optimizers(self) -> Any:
        moving = [p for p in self.net.parameters() if p.requires_grad]
        decay = [p for p in moving if p.ndim > 1]
        rest = [p for p in moving if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": self.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=max(steps, 2), pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class TopModule(BaseModule):
    """Second stage: the backbone rests, its maps of a few augmented views are computed once, and all else trains on for many passes.

    The landmark branch and the fusion want far more passes over the data than the backbone can have on a CPU. maps: the two maps of each
    view, (views, N, ...) float16.
    """

    def __init__(self, net: AUNet, maps: tuple[Tensor, Tensor], lr: float, weight_decay: float, people: int, each: int) -> None:
        super().__init__(net, lr, weight_decay, people, each, ema=0.999)
        net.backbone.requires_grad_(False)
        self.maps = maps

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.net.backbone.eval()

    def look(self, batch: dict[str, Tensor]) -> Tensor:
        """The crop branch's features of a batch, from a random one of the views."""
        view = torch.randint(len(self.maps[0]), (len(batch["index"]),))
        middle, last = (m[view, batch["index"]].float().to(self.device) for m in self.maps)
        return self.net.project((middle, last))


@torch.no_grad()
def views_of(net: AUNet, data: dict[str, np.ndarray], views: int, batch: int = 32) -> tuple[Tensor, Tensor]:
    """The backbone's maps of ``views`` augmented views of each crop, float16: (views, N, C, 7, 7), and (views, N, C', 1, 1) averaged."""
    net.eval()
    middles, lasts = [], []
    n = len(data["crop"])
    with ui.progress(None, views * n, "Views for the second stage") as bar:
        for _ in range(views):
            for start in range(0, n, batch):
                crop = torch.from_numpy(data["crop"][start : start + batch]).permute(0, 3, 1, 2)
                middle, last = net.maps(augment_crops(crop))
                middles.append(middle.half())
                lasts.append(last.mean((2, 3), keepdim=True).half())
                bar.advance(len(crop))
    middle, last = torch.cat(middles), torch.cat(lasts)
    return middle.view(views, n, *middle.shape[1:]), last.view(views, n, *last.shape[1:])


@torch.no_grad()
def read_renders(net: AUNet, data: dict[str, np.ndarray], mode: str = "fused", with_neutral: bool = False, batch: int = 32) -> np.ndarray:
    """(N, K) intensities of tracked renders. mode: 'fused', 'crop' or 'landmarks' (the other branch switched off); with_neutral: each
    person's first neutral picture is given."""
    net.eval()
    crop = torch.from_numpy(data["crop"]).permute(0, 3, 1, 2)
    looks = torch.cat([net.crop_features(crop[i : i + batch]) for i in range(0, len(crop), batch)])
    points = torch.from_numpy(data["landmarks"].astype(np.float32))
    n = len(points)
    neutral = None
    has_neutral = None
    if with_neutral:
        first = {int(p): int(i) for i, p in reversed(list(enumerate(data["person"]))) if data["neutral"][i]}
        has_neutral = torch.tensor([int(p) in first for p in data["person"]])
        own = torch.tensor([first.get(int(p), 0) for p in data["person"]])
        neutral = {"crop": looks[own], "landmarks": points[own]}
    flags = torch.full((n,), mode != "crop"), torch.full((n,), mode != "landmarks")
    return net.read(net.combine(looks, points, flags[0], neutral, has_neutral, flags[1]))["intensity"].numpy()


def scores(prediction: np.ndarray, target: np.ndarray) -> dict[str, dict[str, float]]:
    """Per AU: AUC (present from intensity 1), pooled ICC(3,1) and MAE."""
    out = {}
    for k, name in enumerate(COLUMNS):
        y = target[:, k].astype(np.float64)
        out[name] = {"auc": auc(prediction[:, k], y >= 1), "icc": icc31(prediction[:, k], y), "mae": mae(prediction[:, k], y)}
    return out


def best_thresholds(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(K,) intensity from which an AU counts as present (B level, 2, in the labels): the best F1 on validation people, within 0.5-3."""
    grid = np.arange(0.5, 3.01, 0.1)
    best = []
    for k in range(prediction.shape[1]):
        truth = target[:, k] >= 2
        f1 = [2 * (truth & (prediction[:, k] >= g)).sum() / max(truth.sum() + (prediction[:, k] >= g).sum(), 1) for g in grid]
        best.append(grid[int(np.argmax(f1))])
    return np.array(best, np.float32)


class _Progress(L.Callback):
    def __init__(self, validation: dict[str, np.ndarray], folder: Path) -> None:
        # A part of them is enough to watch by; the card reports all.
        self.validation, self.folder, self.start = {k: v[:400] for k, v in validation.items()}, folder, time.time()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_rank:
            return
        net = module.average.module  # type: ignore[union-attr]
        if trainer.current_epoch % max(trainer.max_epochs // 6, 1):  # type: ignore[operator]
            return
        parts = []
        for mode, neutral in (("fused", False), ("fused", True)):
            s = scores(read_renders(net, self.validation, mode, neutral), self.validation["target"])
            parts.append(f"{mode}{'+neutral' if neutral else ''} icc {np.nanmean([v['icc'] for v in s.values()]):.3f}")
        left = (time.time() - self.start) / (trainer.current_epoch + 1) * (trainer.max_epochs - trainer.current_epoch - 1)  # type: ignore[operator]
        ui.info(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: {', '.join(parts)}; {left / 60:.0f} min left")
        torch.save(net.state_dict(), self.folder / "average.pt")


def second_stage(
    net: AUNet, train: dict[str, np.ndarray], recipe: dict[str, Any], run: Callable[[BaseModule, int, int, bool], AUNet]
) -> AUNet:
    """Train all but the backbone on; see :class:`TopModule`."""
    optim, top = recipe["optim"], recipe["top"]
    if top["epochs"] == 0:
        return net
    maps = views_of(net, train, top["views"])
    fresh = AUNet(**net.config)  # type: ignore[arg-type]
    fresh.load_state_dict(net.state_dict())
    return run(TopModule(fresh, maps, top["lr"], optim["weight_decay"], top["people"], optim["each"]), top["people"], top["epochs"], False)


def fit(recipe: dict[str, Any], folder: Path, data_folder: Path | None = None) -> Path:
    """Train a base model by a recipe of kind 'base' and write it, with its card, into ``folder``; returns its path."""
    from .synth import dataset

    started = time.time()
    tracking.quiet_lightning()
    L.seed_everything(recipe["seed"], verbose=False)
    folder.mkdir(parents=True, exist_ok=True)
    renders = data_folder or folder / "renders"
    world = recipe["world"]
    for split in ("validation", "train"):
        dataset.make(renders, split, world[f"{split}_people"], world["pictures"], world["size"], world["workers"])
    train, validation = dataset.load(renders, "train"), dataset.load(renders, "validation")
    for line in dataset.describe(train["target"]).splitlines():
        ui.info(line)
    net = AUNet(**recipe["model"])
    points = train["landmarks"].astype(np.float32)
    net.landmark_mean.copy_(torch.from_numpy(points.mean(0)))
    net.landmark_std.copy_(torch.from_numpy(points.std(0).clip(0.004) + 0.004))
    own_mean = {int(p): points[(train["person"] == p) & train["neutral"]].mean(0) for p in np.unique(train["person"][train["neutral"]])}
    rows = np.array([i for i, p in enumerate(train["person"]) if int(p) in own_mean])[:8000]
    shift = points[rows] - np.stack([own_mean[int(p)] for p in train["person"][rows]])
    net.shift_std.copy_(torch.from_numpy(shift.std(0).clip(0.004) + 0.004))
    optim = recipe["optim"]

    def run(module: BaseModule, people: int, epochs: int, pictures: bool) -> AUNet:
        total = train["target"].astype(np.float32).sum(1)
        batches = PersonBatches(train["person"], train["neutral"], total, people, optim["each"], recipe["seed"])
        loader = DataLoader(Renders(train, pictures), batch_sampler=batches, collate_fn=lambda b: b)
        trainer = L.Trainer(
            max_epochs=epochs, logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
            gradient_clip_val=2.0, use_distributed_sampler=False, callbacks=[_Progress(validation, folder)], **recipe["trainer"],
        )  # fmt: skip
        trainer.fit(module, loader)
        averaged: AUNet = module.average.module  # type: ignore[assignment]
        return averaged.eval()

    best = run(BaseModule(net, optim["lr"], optim["weight_decay"], optim["people"], optim["each"]), optim["people"], optim["epochs"], True)
    best = second_stage(best, train, recipe, run)
    path = folder / "base"
    thresholds = best_thresholds(read_renders(best, validation), validation["target"].astype(np.float32))
    card: dict[str, Any] = {
        "name": folder.name,
        "personalize": __version__,
        "aus": list(AUS),
        "model": best.config,
        "thresholds": [round(float(t), 2) for t in thresholds],
        "data": f"{len(train['crop'])} tracked renders of {len(np.unique(train['person']))} synthetic people; no photograph of anybody",
        "recipe": recipe,
        "command": "personalize base fit --recipe base",
        "hours": round((time.time() - started) / 3600, 2),
        "validation": {
            f"{mode}{'+neutral' if neutral else ''}": scores(read_renders(best, validation, mode, neutral), validation["target"])
            for mode, neutral in (("fused", False), ("fused", True), ("crop", False), ("landmarks", False))
        },
    }
    save_base(path, best, card)
    return path


def fit_command(args: argparse.Namespace) -> int:
    """``personalize base fit``."""
    from .config import load_recipe

    recipe = load_recipe(args.recipe or "base", args.overrides)
    path = fit(recipe, Path(args.output or "base-run"), Path(args.data) if getattr(args, "data", None) else None)
    ui.info(f"wrote {path}.safetensors; use it with --base {path}")
    return 0


def evaluate_command(args: argparse.Namespace) -> int:
    """``personalize base evaluate``: the model's table on validation people."""
    from .synth import dataset

    base = load_base(args.base or SHIPPED)
    folder = Path(args.data or "base-run/renders")
    if not sorted(folder.glob("validation-*.npz")):
        dataset.make(folder, "validation", 160, 9, 160, 2)
    data = dataset.load(folder, "validation")
    rows = []
    tables = {n: scores(read_renders(base.net, data, "fused", n), data["target"]) for n in (False, True)}
    for name in COLUMNS:
        a, b = tables[False][name], tables[True][name]
        rows.append([name, *(f"{t[m]:.3f}" for t in (a, b) for m in ("auc", "icc", "mae"))])
    for t in tables.values():
        t["mean"] = {m: float(np.nanmean([v[m] for v in t.values()])) for m in ("auc", "icc", "mae")}
    rows.append(["mean", *(f"{t['mean'][m]:.3f}" for t in tables.values() for m in ("auc", "icc", "mae"))])
    ui.table("Base model on unseen synthetic people", ["AU", "AUC", "ICC", "MAE", "AUC +neutral", "ICC +neutral", "MAE +neutral"], rows)
    return 0
