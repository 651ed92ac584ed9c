"""The base model: training it on the synthetic world, measuring it, loading the one that ships.

``personalize base fit`` renders people who never meet those of validation and benchmark, tracks them as users' clips are tracked, and
trains :class:`~personalize.model.AUNet` with and without the person's neutral.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from . import __version__, ranks, smooth, tracking, ui
from .augment import augment_landmarks, redraw, thin_out
from .aus import AUS, COLUMNS
from .circumstances import circumstances
from .config import changes, digest
from .data import write_base_domain
from .datasets import SYNTHETIC, Source
from .datasets.mixing import NO_NEUTRAL, AUDataModule, MixedBatches, MixedRows
from .errors import ConfigError, InputError
from .metrics import auc, icc31, mae
from .model import POINTS, AUNet, ordinal_loss
from .profile import strip_paths
from .weights import KNOTS, SHIPPED, Base, load_base, save_base

__all__ = ["SHIPPED", "Base", "load_base", "save_base"]


class BaseModule(L.LightningModule):
    """Trains the base: every picture with its person's neutral or without, with both branches or one. Keeps an average of the weights.

    Every step is seeded by its number and rank: ranks draw different augmentations, and a resumed training those it would have drawn.
    """

    def __init__(
        self,
        net: AUNet,
        lr: float,
        weight_decay: float,
        people: int,
        each: int,
        ema: float = 0.998,
        bfloat16: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.seed = seed
        self.net, self.lr, self.weight_decay, self.people, self.each, self.bfloat16 = net, lr, weight_decay, people, each, bfloat16
        # Where everything is in a picture is known exactly and says far more than 22 labels: learning it speeds up the crop branch.
        self.locate = nn.Linear(net.crop_project[0].out_features, 2 * POINTS)
        self.average = torch.optim.swa_utils.AveragedModel(
            net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(ema), use_buffers=True
        )
        self.average.requires_grad_(False)  # no gradient reaches it, which ranks would wait for

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        ranks.seed_step(self, self.seed, batch_idx)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        look = self.look(batch)
        where = ((batch["landmarks"] - self.net.landmark_mean) / self.net.landmark_std)[..., :2].flatten(1)
        located = F.smooth_l1_loss(self.locate(look), where)
        landmarks = augment_landmarks(batch["landmarks"], self.people, self.each)
        n, people, device = len(look), self.people, look.device
        own = torch.cat([torch.arange(people), torch.arange(people).repeat_interleave(self.each)]).to(device)
        landmarks = thin_out(landmarks, own)
        neutral = {"crop": look[own], "landmarks": landmarks[own]}
        on = torch.ones(n, dtype=torch.bool, device=device)
        draw = torch.rand(n, device=device)
        exact = batch["mask"] & (batch["occurrence"] == 0)
        # Each branch must work alone, and would not learn to beside the other: whichever explains more takes the gradient.
        losses = {}
        for branch, has_crop, has_landmarks in (("fused", draw > 0.2, draw < 0.9), ("crop", on, ~on), ("landmarks", ~on, on)):
            has_neutral = torch.rand(n, device=device) < 0.55
            has_neutral[:people] = False
            read = self.net.read(self.net.combine(look, landmarks, has_landmarks, neutral, has_neutral, has_crop))
            wrong = ((read["intensity"] - batch["target"]).abs() * exact).sum(1).detach() / exact.sum(1).clamp_min(1)
            doubt = ((read["expected_error"] - wrong).abs() * exact.any(1)).mean()
            losses[branch] = ordinal_loss(read["logits"], batch["target"], batch["mask"], occurrence=batch["occurrence"]) + 0.1 * doubt
        self.log_dict({**losses, "located": located})
        return losses["fused"] + losses["crop"] + 0.5 * losses["landmarks"] + located

    def look(self, batch: dict[str, Tensor]) -> Tensor:
        """The crop branch's features of a batch."""
        crop = redraw(batch, int(torch.randint(2**31, ())))
        # All but the backbone, which is most of the work, stays in float32: landmarks move by hundredths of what they are.
        with torch.autocast(crop.device.type, torch.bfloat16, enabled=self.bfloat16):
            middle, last = self.net.maps(crop)
        return self.net.project((middle.float(), last.float()))

    def on_train_batch_end(self, *_: Any) -> None:
        self.average.update_parameters(self.net)

    def configure_optimizers(self) -> Any:
        moving = [p for p in [*self.net.parameters(), *self.locate.parameters()] if p.requires_grad]
        decay = [p for p in moving if p.ndim > 1]
        rest = [p for p in moving if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": self.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        # A tenth of ten steps is one, and the schedule divides by one less.
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=max(steps, 11), pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class TopModule(BaseModule):
    """Second stage: the backbone rests, its maps of a few augmented views are computed once, and all else trains on for many passes.

    The landmark branch and the fusion want far more passes over the data than the backbone can have on a CPU. maps: the two maps of each
    view, (views, N, ...) float16.
    """

    def __init__(
        self, net: AUNet, maps: tuple[Tensor, Tensor], lr: float, weight_decay: float, people: int, each: int, seed: int = 0
    ) -> None:
        super().__init__(net, lr, weight_decay, people, each, ema=0.999, seed=seed)
        net.backbone.requires_grad_(False)
        self.maps = maps

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.net.backbone.eval()

    def look(self, batch: dict[str, Tensor]) -> Tensor:
        """The crop branch's features of a batch, from a random one of the views."""
        view = torch.randint(len(self.maps[0]), (len(batch["index"]),))
        middle, last = (m[view, batch["index"].cpu()].float().to(self.device) for m in self.maps)
        return self.net.project((middle, last))


@torch.no_grad()
def views_of(net: AUNet, data: dict[str, np.ndarray], views: int, batch: int = 32) -> tuple[Tensor, Tensor]:
    """The backbone's maps of ``views`` augmented views of each crop, float16: (views, N, C, 7, 7), and (views, N, C', 1, 1) averaged."""
    net.eval()
    middles, lasts = [], []
    n = len(data["crop"])
    rows = MixedRows(data)
    with ui.progress(None, views * n, "Views for the second stage") as bar:
        for view in range(views):
            for start in range(0, n, batch):
                crop = redraw(rows.__getitems__(list(range(start, min(start + batch, n)))), view)
                middle, last = net.maps(crop)
                middles.append(middle.half())
                lasts.append(last.mean((2, 3), keepdim=True).half())
                bar.advance(len(crop))
    middle, last = torch.cat(middles), torch.cat(lasts)
    return middle.view(views, n, *middle.shape[1:]), last.view(views, n, *last.shape[1:])


def references(data: dict[str, np.ndarray]) -> dict[int, int]:
    """Person -> row of their first neutral picture."""
    return {int(p): int(i) for i, p in reversed(list(enumerate(data["person"]))) if data["neutral"][i]}


@torch.no_grad()
def read_renders(net: AUNet, data: dict[str, np.ndarray], mode: str = "fused", with_neutral: bool = False, batch: int = 32) -> np.ndarray:
    """(N, K) expected intensities of tracked renders. mode: 'fused', 'crop' or 'landmarks' (the other branch switched off); with_neutral:
    each person's first neutral picture is given."""
    net.eval()
    device = net.landmark_mean.device
    crop = torch.from_numpy(data["crop"]).permute(0, 3, 1, 2)
    looks = torch.cat([net.crop_features(crop[i : i + batch].to(device)) for i in range(0, len(crop), batch)])
    points = torch.from_numpy(data["landmarks"].astype(np.float32)).to(device)
    n = len(points)
    neutral = None
    has_neutral = None
    if with_neutral:
        first = references(data)
        has_neutral = torch.tensor([int(p) in first for p in data["person"]], device=device)
        own = torch.tensor([first.get(int(p), 0) for p in data["person"]])
        neutral = {"crop": looks[own], "landmarks": points[own]}
    has_landmarks, has_crop = (torch.full((n,), mode != other, device=device) for other in ("crop", "landmarks"))
    return net.answer(looks, points, has_landmarks, neutral, has_neutral, has_crop)["intensity"].cpu().numpy()


def scores(prediction: np.ndarray, target: np.ndarray) -> dict[str, dict[str, float]]:
    """Per AU: AUC (present from intensity 1), pooled ICC(3,1) and MAE. NaN in ``target`` is unknown."""
    out = {}
    for k, name in enumerate(COLUMNS):
        known = ~np.isnan(target[:, k])
        y, read = target[known, k].astype(np.float64), prediction[known, k]
        out[name] = {"auc": auc(read, y >= 1), "icc": icc31(read, y), "mae": mae(read, y)}
    return out


def fit_readout(expected: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(K, 18) what to report at :data:`~personalize.weights.KNOTS`: halfway from the (N, K) expected intensities to those that stand in the
    same place among the true ones (quantile mapping). Half: all the way adds noise where the model knows little (docs/choices.md).

    target: (N, K), NaN where unknown; an AU with fewer than 200 known intensities is reported as it is.
    """
    knots = np.array(KNOTS)
    out = np.repeat(knots[None], expected.shape[1], 0)
    for k in range(expected.shape[1]):
        known = ~np.isnan(target[:, k])
        if known.sum() >= 200:
            a, b = np.sort(expected[known, k]), np.sort(target[known, k])
            same = np.interp(knots, [0, *a.clip(1e-3, 4.999), 5], [0, *b, 5])
            out[k] = (knots + np.maximum.accumulate(same)) / 2
    return out


def best_thresholds(
    prediction: np.ndarray,
    target: np.ndarray,
    mask: np.ndarray,
    occurrence: np.ndarray,
    person: np.ndarray,
    present_at: np.ndarray | float = 2.0,
    draws: int = 200,
) -> np.ndarray:
    """(K,) expected intensity from which an AU counts as present, in 0.5-3; the middle of the other AUs' where nobody shows it.

    The mean, over ``draws`` of as many validation people with replacement, of that with the best F1: F1 is flat around its top, where that
    lies is chance, and the mean moves half as far from one training to the next (bagging: Breiman, Machine Learning 24, 1996).

    person: (N,) whose each row is. present_at: labelled intensity that counts as present (B level, 2, or that of the data set, (N, 1)).
    """
    grid = np.arange(0.5, 3.01, 0.1)
    present = (target >= np.where(occurrence > 0, 1, present_at)) & mask
    called = (prediction[..., None] >= grid) & mask[..., None]
    people, own = np.unique(person, return_inverse=True)
    drawn = np.random.default_rng(0).multinomial(len(people), np.full(len(people), 1 / len(people)), draws)

    def in_draws(rows: np.ndarray) -> np.ndarray:
        total = np.zeros((len(people), *rows.shape[1:]))
        np.add.at(total, own, rows)
        return np.tensordot(drawn, total, 1)

    shown, said, both = in_draws(present), in_draws(called), in_draws(called & present[..., None])
    best = np.where(shown > 0, grid[np.argmax(2 * both / np.maximum(shown[..., None] + said, 1), axis=-1)], 0)
    seen = (shown > 0).sum(0)
    mean = best.sum(0) / np.maximum(seen, 1)
    return np.where(seen, mean, np.median(mean[seen > 0]) if seen.any() else 2.0).astype(np.float32)


def save_checkpoint(trainer: L.Trainer, path: Path) -> None:
    """Write a training's checkpoint whole or not at all; called on every rank, as Lightning wants it."""
    temporary = path.with_suffix(".part")
    trainer.save_checkpoint(temporary)
    if trainer.is_global_zero:
        temporary.replace(path)


class _Epochs(L.Callback):
    """After each epoch: a checkpoint, whole or not at all, and now and then a line on how the average of the weights reads."""

    def __init__(self, validation: dict[str, np.ndarray], checkpoint: Path) -> None:
        # A part of them is enough to watch by; the card reports all.
        self.validation, self.checkpoint = {k: v[:400] for k, v in validation.items()}, checkpoint
        self.before = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Seconds that this stage took so far."""
        return {"seconds": self.before + time.time() - self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.start, self.first = time.time(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        save_checkpoint(trainer, self.checkpoint)
        if trainer.global_rank:
            return
        done, last = trainer.current_epoch + 1, int(trainer.max_epochs or 1)
        if trainer.current_epoch % max(last // 6, 1):
            return
        parts = []
        truth = intensities(self.validation)
        metric = "icc" if np.isfinite(truth).any() else "auc"  # of presence alone
        for mode, neutral in (("fused", False), ("fused", True)):
            read = read_renders(module.average.module, self.validation, mode, neutral)  # type: ignore[union-attr, arg-type]
            s = scores(read, truth if metric == "icc" else labels(self.validation))
            defined = [v[metric] for v in s.values() if np.isfinite(v[metric])]
            parts.append(f"{mode}{'+neutral' if neutral else ''} {metric} {np.mean(defined) if defined else np.nan:.3f}")
        left = (time.time() - self.start) / (done - self.first) * (last - done)
        ui.info(f"epoch {done}/{last}: {', '.join(parts)}; {left / 60:.0f} min left")


def second_stage(
    net: AUNet, train: dict[str, np.ndarray], recipe: dict[str, Any], run: Callable[[str, BaseModule, int, int], AUNet]
) -> AUNet:
    """Train all but the backbone on; see :class:`TopModule`."""
    optim, top = recipe["optim"], recipe["top"]
    if top["epochs"] == 0:
        return net
    torch.manual_seed(recipe["seed"])  # whether or not the first stage was trained in this process
    maps = views_of(net, train, top["views"])
    fresh = AUNet(**net.config)  # type: ignore[arg-type]
    fresh.load_state_dict(net.state_dict())
    module = TopModule(fresh, maps, top["lr"], optim["weight_decay"], top["people"], optim["each"], recipe["seed"])
    return run("top", module, top["people"], top["epochs"])


def intensities(data: dict[str, np.ndarray]) -> np.ndarray:
    """(N, K) float32 targets with NaN where no intensity is known."""
    return np.where(data["mask"] & (data["occurrence"] == 0), data["target"], np.nan).astype(np.float32)


def labels(data: dict[str, np.ndarray]) -> np.ndarray:
    """(N, K) float32 what is known of each AU: its intensity or, of one of which none is known anywhere, its presence 0/1; else NaN."""
    out = intensities(data)
    bare = ~np.isfinite(out).any(0)
    out[:, bare] = np.where(data["mask"], data["target"], np.nan)[:, bare]
    return out


def standardise(net: AUNet, train: dict[str, np.ndarray]) -> None:
    """Give the model the mean and spread of landmarks, and the spread of their shifts from the person's mean neutral."""
    points = train["landmarks"].astype(np.float32)
    net.landmark_mean.copy_(torch.from_numpy(points.mean(0)))
    net.landmark_std.copy_(torch.from_numpy(points.std(0).clip(0.004) + 0.004))
    with_neutral = np.unique(train["person"][train["neutral"]])[:1000]
    if not len(with_neutral):
        raise InputError(NO_NEUTRAL)
    rest = {int(p): points[(train["person"] == p) & train["neutral"]].mean(0) for p in with_neutral}
    rows = np.flatnonzero(np.isin(train["person"], with_neutral))
    shift = points[rows] - np.stack([rest[int(p)] for p in train["person"][rows]])
    net.shift_std.copy_(torch.from_numpy(shift.std(0).clip(0.004) + 0.004))


def new_net(recipe: dict[str, Any]) -> AUNet:
    """The recipe's network with random weights. Raises ConfigError where there is no such one."""
    share = recipe["model"]["landmark_share"]
    if isinstance(share, list) and len(share) != len(AUS):
        raise ConfigError(f"model.landmark_share is one number for each of the {len(AUS)} AUs, not {len(share)}.")
    try:
        return AUNet(**recipe["model"])
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as problem:  # timm's, of names and options it does not know
        raise ConfigError(f"model of the recipe: {ui.one_line(problem)}") from problem


def trainer_of(recipe: dict[str, Any], **own: Any) -> L.Trainer:
    """The trainer of a stage, with the recipe's flags. Raises ConfigError for flags that go together with nothing here."""
    whole = recipe["trainer"].get("precision") in (None, 32, "32", "32-true")
    ranks.refuse_own(recipe["trainer"], ranks.BY_EPOCHS | ({} if whole else {"precision": "optim.bfloat16"}), "base fit")
    try:
        return L.Trainer(
            logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False, gradient_clip_val=2.0,
            use_distributed_sampler=False, **own, **ranks.trainer_flags(recipe["trainer"], all_reached=True),
        )  # fmt: skip
    except (MisconfigurationException, ValueError, TypeError) as problem:
        raise ConfigError(f"flags of the trainer: {ui.one_line(problem)}") from problem


def started_from(recipe: dict[str, Any]) -> Base | None:
    """The base that the recipe's ``start`` names; None for random weights. Raises ConfigError where it is another network."""
    if not recipe["start"]:
        return None
    base = load_base(recipe["start"])
    asked = new_net(recipe).config
    other = [key for key in asked if key != "landmark_share" and asked[key] != base.net.config[key]]
    if other:
        raise ConfigError(
            f"start: base model '{base.name}' has another network than model.{other[0]} of the recipe asks for: set it as in its card, "
            f"or leave start empty."
        )
    return base


def first_weights(recipe: dict[str, Any], train: dict[str, np.ndarray], begun: Base | None) -> AUNet:
    """The network that training starts from: random weights, or those of :func:`started_from`, as they were standardised."""
    net = new_net(recipe)
    if begun is None:
        standardise(net, train)
    else:
        net.load_state_dict({**begun.net.state_dict(), "landmark_share": net.landmark_share})
    return net


def fit(
    recipe: dict[str, Any],
    folder: Path,
    sources: Sequence[Source] = (),
    fold: int | None = None,
    cache: Path = Path("runs/tracked"),
    data_folder: Path | None = None,
) -> Path:
    """Train a base model by a recipe of kind 'base' and write it, with its card, into ``folder``; returns its path.

    sources: data sets to learn from (default: the synthetic world, rendered into ``data_folder`` as far as it is not there yet); fold:
    whose people are held out; cache: where their tracked frames are kept. Interrupted and called again with the same arguments, it goes on
    after the last whole epoch. Raises ConfigError where ``folder`` holds what is left of another training.
    """
    from .synth import dataset

    started = time.time()
    tracking.quiet_lightning()
    world, optim = recipe["world"], recipe["optim"]
    sources = [Source(SYNTHETIC, s.path or data_folder or folder / "renders") if s.name == SYNTHETIC else s for s in sources] or [
        Source(SYNTHETIC, data_folder or folder / "renders")
    ]
    # What is wrong is told before anything is rendered.
    new_net(recipe)
    trainer_of(recipe)
    begun = started_from(recipe)
    data = AUDataModule(sources, cache, fold, optim["people"], optim["each"], recipe["seed"])
    _refuse_known(data, begun)
    L.seed_everything(recipe["seed"], verbose=False)
    folder.mkdir(parents=True, exist_ok=True)
    with ranks.first_goes_ahead():
        for source in sources:
            if source.name == SYNTHETIC and source.path is not None:
                for split in ("validation", "train"):
                    dataset.make(source.path, split, world[f"{split}_people"], world["pictures"], world["size"], world["workers"])
        train, validation = data.train_arrays(), data.validation_arrays()
    for line in dataset.describe(labels(train)).splitlines():
        ui.info(line)
    earlier = COLUMNS if begun is None else begun.card.get("untaught", [])
    taught: np.ndarray = np.any(train["mask"], axis=0)
    untaught = [name for k, name in enumerate(COLUMNS) if not taught[k] and name in earlier]
    if untaught:
        ui.warn(f"no source codes {', '.join(untaught)}: the model learns nothing of them. Add --data synthetic, or another source.")
    # Smoothing is learnt when all else is done: films can be asked for anew without training again.
    asked = {key: value for key, value in recipe.items() if key != "smoothing"}
    work = _working_folder(folder, digest({"recipe": asked, "fold": fold, "data": data.card(), "pictures": len(train["crop"])}))
    net = first_weights(recipe, train, begun)

    rank = 0

    def run(stage: str, module: BaseModule, people: int, epochs: int) -> AUNet:
        nonlocal started, rank
        checkpoint = work / f"{stage}.ckpt"
        watch = _Epochs(validation, checkpoint)
        trainer = trainer_of(recipe, max_epochs=epochs, callbacks=[watch])
        batches = MixedBatches(train, people, optim["each"], recipe["seed"], rank=trainer.global_rank, world=trainer.world_size)
        # The generator: else a loader draws from the one whose state a checkpoint keeps, at times that an interruption moves.
        rows = MixedRows(train, pictures=stage == "whole")
        loader = DataLoader(rows, batch_sampler=batches, collate_fn=lambda b: b, generator=torch.Generator())
        trainer.fit(module, loader, ckpt_path=str(checkpoint) if checkpoint.exists() else None, weights_only=False)
        started, rank = started - watch.before, trainer.global_rank
        averaged: AUNet = module.average.module  # type: ignore[assignment]
        return averaged.eval()

    whole = BaseModule(
        net, optim["lr"], optim["weight_decay"], optim["people"], optim["each"], bfloat16=optim["bfloat16"], seed=recipe["seed"]
    )
    best = run("whole", whole, optim["people"], optim["epochs"])
    best = second_stage(best, train, recipe, run)
    path = folder / folder.name
    if rank:  # the first one measures and writes
        return path
    readings = {known: read_renders(best, validation, "fused", known) for known in (False, True)}
    present_at = np.array([2.0 if d is None else d.present_at for d in data.datasets])[validation["source"], None]
    thresholds = best_thresholds(
        readings[False], validation["target"], validation["mask"], validation["occurrence"], validation["person"], present_at
    )
    truth = intensities(validation)
    # The picture that serves as the neutral is judged in none of the tables.
    judged = ~np.isin(np.arange(len(truth)), list(references(validation).values()))
    named = _learned_from(data.card(), begun)
    only_synthetic = named["sources"] == [SYNTHETIC]
    held = "no photograph of anybody" if only_synthetic else f"recordings of {len(named['people'])} people of data sets among them"
    held += "" if begun is None else f"; started from {begun.name} ({begun.sha256[:12]})"
    card: dict[str, Any] = {
        "name": folder.name,
        "personalize": __version__,
        "aus": list(AUS),
        "model": best.config,
        "thresholds": [round(float(t), 2) for t in thresholds],
        "untaught": untaught,
        "data": f"{len(train['crop'])} tracked pictures of {len(np.unique(train['person']))} people; {held}",
        "data_sources": named,
        "recipe": strip_paths(recipe),
        "readout": {
            name: fit_readout(readings[known][judged], truth[judged]).round(3).tolist()
            for name, known in (("alone", False), ("neutral", True))
        },
        # Of expected intensities, by which gates go.
        "validation": {
            **{f"fused{'+neutral' if known else ''}": scores(read[judged], truth[judged]) for known, read in readings.items()},
            **{mode: scores(read_renders(best, validation, mode)[judged], truth[judged]) for mode in ("crop", "landmarks")},
        },
    }
    filmed = recipe["smoothing"]
    if filmed["people"]:
        save_base(work / folder.name, best, card)
        courses = smooth.sequences_from_clips(load_base(str(work / folder.name)), filmed["people"], filmed["seconds"])
        card["smoothing"] = smooth.to_card(smooth.fit_smoother(courses))
    words = ["personalize", "base", "fit", *(w for s in sources for w in ("--data", s.name)), *(() if fold is None else ("--fold", fold))]
    card["made"] = circumstances([*words, *strip_paths(changes(recipe))]) | {"hours": round((time.time() - started) / 3600, 4)}
    save_base(path, best, card)
    if only_synthetic:
        write_base_domain(train, folder / "replay.npz")
    shutil.rmtree(work, ignore_errors=True)
    return path


def _learned_from(named: dict[str, Any], begun: Base | None) -> dict[str, Any]:
    """``named`` (:meth:`AUDataModule.card`), with what the base that training started from had learned from, and whom."""
    earlier = {} if begun is None else begun.card.get("data_sources", {})
    together = {key: list(dict.fromkeys([*named[key], *earlier.get(key, ())])) for key in ("sources", "people")}
    # Whoever trained once is not new to what is trained on from it.
    trained = sorted({*named["trained"], *earlier.get("trained", ())})
    return {**named, **together, "people": sorted(together["people"]), "trained": trained}


def _refuse_known(data: AUDataModule, begun: Base | None) -> None:
    """Raise ConfigError where thresholds would be chosen on people whom the base that training starts from was trained on; warn where its
    card, an older one, does not say who of its people trained and who chose."""
    earlier = {} if begun is None else begun.card.get("data_sources", {})
    split = "trained" in earlier
    known = data.validation_among(set(earlier.get("trained" if split else "people", ())))
    if not known:
        return
    some = ", ".join(known[:4]) + (" ..." if len(known) > 4 else "")
    if split:
        raise ConfigError(
            f"start: the base was trained on {len(known)} of the people who are to choose the thresholds ({some}). "
            "Give the fold and the seed that it was trained with, or leave start empty."
        )
    ui.warn(f"start: the base's card does not say whom it was trained on: {some} may be among them, and choose the thresholds")


def _working_folder(folder: Path, training: str) -> Path:
    """Where the checkpoints of a training lie until it is done. training: a digest of all that it depends on."""
    work = folder / "work"
    note = work / "training"
    if note.exists() and note.read_text() != training:
        raise ConfigError(
            f"{work} is left of a training by another recipe or on other data: give that one again to go on, or delete it to start anew."
        )
    work.mkdir(exist_ok=True)
    note.write_text(training)
    return work


def fit_command(args: argparse.Namespace) -> int:
    """``personalize base fit``."""
    from .config import load_recipe

    recipe = load_recipe(args.recipe or "base", args.overrides, "base")
    folder = Path(args.data) if isinstance(args.data, str) else None
    if Path(args.output).resolve().name == "base":
        raise ConfigError("--output: a model called 'base' would be taken for the shipped one; give its folder another name.")
    path = fit(recipe, Path(args.output), args.sources if folder is None else (), args.fold, Path(args.cache), folder)
    ui.info(f"wrote {path}.safetensors; use it with --base {path}")
    return 0


def evaluate_command(args: argparse.Namespace) -> int:
    """``personalize base evaluate``: the model's table on validation people, or the field's tables on recorded data sets."""
    from .config import load_recipe
    from .datasets.tables import ended
    from .predict import check_target
    from .synth import dataset

    base = load_base(args.base or SHIPPED)
    if args.output:  # what is wrong with it is said before all the reading
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        for target in (ended(Path(args.output), ending) for ending in ((".json", ".csv") if isinstance(args.data, list) else (".json",))):
            check_target(target)
            for source in args.sources:
                if source.name != SYNTHETIC and source.path and target.resolve().is_relative_to(source.path.resolve()):
                    raise InputError(f"--output: {target} would be taken for a part of {source.name}: give another folder.")
    if isinstance(args.data, list):
        from .datasets.tables import evaluate_sources, print_tables, write_tables

        known = base.card.get("data_sources", {}).get("people", ())
        tables = evaluate_sources(
            lambda d, neutral: base.report(read_renders(base.net, d, "fused", neutral), float(neutral)),
            args.sources,
            Path(args.cache),
            np.stack([base.thresholds, base.thresholds_with(1.0)]),
            args.fold,
            known,
        )
        for name, table in tables.items():
            print_tables(name, table)
        if args.output:
            write_tables(tables, Path(args.output))
        return 0
    folder = Path(args.data) if args.data else Path(args.cache) / SYNTHETIC
    if not sorted(folder.glob("validation-[0-9]*.npz")):
        world = load_recipe("base", [])["world"]
        dataset.make(folder, "validation", world["validation_people"], world["pictures"], world["size"], world["workers"])
    data = dataset.load(folder, "validation")
    judged = ~np.isin(np.arange(len(data["target"])), list(references(data).values()))
    found = {
        n: scores(base.report(read_renders(base.net, data, "fused", n)[judged], float(n)), data["target"][judged]) for n in (False, True)
    }
    rows = []
    for name in COLUMNS:
        a, b = found[False][name], found[True][name]
        rows.append([name, *(f"{t[m]:.3f}" for t in (a, b) for m in ("auc", "icc", "mae"))])
    for t in found.values():
        t["mean"] = {m: float(np.nanmean([v[m] for v in t.values()])) for m in ("auc", "icc", "mae")}
    rows.append(["mean", *(f"{t['mean'][m]:.3f}" for t in found.values() for m in ("auc", "icc", "mae"))])
    ui.table("Base model on unseen synthetic people", ["AU", "AUC", "ICC", "MAE", "AUC +neutral", "ICC +neutral", "MAE +neutral"], rows)
    if args.output:
        ended(Path(args.output), ".json").write_text(json.dumps({"plain": found[False], "neutral": found[True]}, indent=1) + "\n")
    return 0
