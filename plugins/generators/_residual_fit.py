"""Pre-training of au_residual's network on the synthetic world: pairs of pictures of one person in one light with other AUs.

The network is given what it will be given of users' clips: a tracked frame, warped by mesh_warp for the AUs in which the two pictures
differ. The other picture is what it should have made of it.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from personalize import __version__, geometry, ranks, tracking, ui
from personalize.aus import AUS, column
from personalize.circumstances import circumstances
from personalize.config import changes
from personalize.errors import ConfigError
from personalize.faces import Observation
from personalize.identity import Identity
from personalize.profile import strip_paths
from personalize_plugins.generators._residual import GLOBAL, HALF, MAPS, SIDE, K, ResidualNet, about, conditions, correct

FIELDS: dict[str, tuple[type, tuple[int, ...]]] = {
    "guide": (np.uint8, (SIDE, SIDE, 3)),
    "ratio": (np.int8, (SIDE, SIDE)),  # log ratio x 100
    "changes": (np.int8, (K, HALF, HALF)),  # x 100
    "maps": (np.float16, (MAPS, HALF, HALF)),
    "said": (np.float32, (GLOBAL,)),
    "target": (np.uint8, (SIDE, SIDE, 3)),
    "delta": (np.float32, (K,)),
    "aus": (np.float32, (K,)),  # of the target
    "person": (np.int32, ()),
}
"""What a shard keeps of each pair."""


def person_pairs(world: Any, tracker: Any, split: str, index: int, each: int) -> list[dict[str, np.ndarray]]:
    """Pairs of one person: a tracked source, mostly at rest, and ``each`` other pictures in its light; none where no face is found."""
    from personalize.synth import expression
    from personalize.synth.clips import Camera
    from personalize.synth.person import person_seed
    from personalize.synth.scene import Scene
    from personalize_plugins.generators.mesh_warp import MeshWarp

    rng = np.random.default_rng([person_seed(split, index), 7021])
    person = world.person(split, index)
    drawn = [expression.sample_still(rng) for _ in range(1 + each)]
    aus, extra = (np.stack([d[i] for d in drawn]) for i in (0, 1))
    extra[0] = 0
    aus[0] *= 0.0 if rng.random() < 0.75 else 0.3
    for i in np.flatnonzero(rng.random(each) < 0.3) + 1:  # AUs alone are asked for most, and hide nothing of each other
        alone = int(rng.integers(K))
        aus[i], extra[i] = 0, (extra[i] if AUS[alone] in (25, 26) else 0)
        aus[i, alone] = rng.uniform(1, 5)
    pose = np.tile((rng.normal(0, 1, 3) * [0.12, 0.2, 0.08]).clip(-0.5, 0.5), (1 + each, 1)).astype(np.float32)
    gaze = np.tile(rng.normal(0, [0.12, 0.05]).clip(-0.3, 0.3), (1 + each, 1)).astype(np.float32)
    shot = next(world.render(person, aus, extra, pose, gaze, [Scene.sample(rng)], batch=1 + each))
    camera = Camera.sample(rng)
    camera = replace(camera, luma=0.4 * camera.luma, chroma=0.4 * camera.chroma, quality=max(camera.quality, 70))
    images = [camera.apply(image, rng) for image in shot.images]
    faces = tracker.detect(images[0], 0.0, True)
    if not faces:
        return []
    face = faces[0]
    fitted = geometry.fit_pose(face.landmarks, tracker.scheme)
    crop, to_frame = geometry.crop(images[0], fitted, tracker.scheme)
    view, view_to_frame = geometry.view(images[0], fitted, tracker.scheme)
    seen = Observation(
        0, 0.0, 0, crop, geometry.normalise(face.landmarks, fitted), np.array(fitted.angles, np.float32), to_frame, face.landmarks,
        face.box, 1.0, 1.0, view=view, view_to_frame=view_to_frame,
    )  # fmt: skip
    generator = MeshWarp(gain_spread=0.0)
    generator.prepare(Identity("", [seen], shot.target[:1], None, (world.size, world.size)), index)
    if not generator._sources:
        return []
    source, pairs = generator._sources[0], []
    for image, target in zip(images[1:], shot.target[1:], strict=True):
        delta = target - shot.target[0]
        jaw, part, _, _ = generator._mouth(delta.astype(np.float64), np.ones(K, bool))
        strength = np.stack([delta, delta])
        made = generator.draw(source, strength, jaw, part, (0.0, 0.0))
        changes, maps = conditions(made, strength)
        wanted = geometry.warp(image, view_to_frame, SIDE).astype(np.float32)
        # The synthetic camera exposes each picture anew; the change that was asked for is not of exposure.
        calm = (np.abs(changes).sum(0) < 0.05).repeat(2, 0).repeat(2, 1)
        gain = float(np.median((source.image[calm].mean(-1) + 8) / (wanted[calm].mean(-1) + 8))) if calm.any() else 1.0
        wanted = np.clip(wanted * np.clip(gain, 0.85, 1.18), 0, 255)
        pairs.append(
            {
                "guide": made.image,
                "ratio": np.round(100 * np.log(made.ratio)).clip(-127, 127),
                "changes": np.round(100 * changes).clip(-127, 127),
                "maps": maps,
                "said": about(strength, source.light, (0.0, 0.0), jaw, part),
                "target": np.round(wanted),
                "delta": delta,
                "aus": target,
                "person": np.array(index),
            }
        )
    return pairs


def make_shard(path: Path, split: str, people: range, each: int, size: int) -> None:
    """Render and write the pairs of some people."""
    from personalize.synth.world import World
    from personalize_plugins.trackers.mediapipe import MediaPipeTracker

    torch.set_num_threads(1)
    world, tracker = World(size=size), MediaPipeTracker(num_faces=1)
    pairs = [pair for index in people for pair in person_pairs(world, tracker, split, index, each)]
    temporary = path.with_name(f".{path.name}")  # which nothing takes for a shard
    arrays: dict[str, Any] = {}
    for name, (kind, shape) in FIELDS.items():
        arrays[name] = np.array([p[name] for p in pairs]).reshape(len(pairs), *shape).astype(kind)  # it may be that no face was found
    np.savez(temporary, **arrays, made=np.array([len(people), each, size]))
    temporary.rename(path)
    tracker.close()


def _work(job: tuple[Any, ...]) -> None:
    from personalize.synth.dataset import holds

    path, _, people, each, size = job
    if not holds(path, len(people), each, size):
        make_shard(*job)


def make(folder: Path, split: str, people: int, each: int, size: int, workers: int, per_shard: int = 20) -> list[Path]:
    """Write the shards of a split and return them; those that are there and hold what is asked for are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, people, per_shard)
    jobs = [(folder / f"pairs-{split}-{s:06d}.npz", split, range(s, min(s + per_shard, people)), each, size) for s in starts]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in ui.progress(pool.imap_unordered(_work, jobs), len(jobs), f"Rendering pairs of {people} people"):
            pass
    return [job[0] for job in jobs]


class Pairs(Dataset[dict[str, Tensor]]):
    """All pairs of some shards, in memory; batches by a list of rows. Raises ConfigError where there are none."""

    def __init__(self, paths: list[Path], fields: tuple[str, ...] = tuple(FIELDS)) -> None:
        counts = []
        for path in paths:
            with np.load(path) as data:
                counts.append(len(data["delta"]))
        if not sum(counts):
            where = f"{paths[0].parent} ({paths[0].name} ...)"
            raise ConfigError(f"no face was found in any picture of {where}: raise world.size, or render more people.")
        self.data: dict[str, np.ndarray] = {f: np.empty((sum(counts), *FIELDS[f][1]), FIELDS[f][0]) for f in fields}
        start = 0
        for path, n in zip(paths, counts, strict=True):
            with np.load(path) as data:
                for field in fields:
                    self.data[field][start : start + n] = data[field]
            start += n

    def __len__(self) -> int:
        return len(self.data["delta"])

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        d = {f: torch.from_numpy(v[rows]) for f, v in self.data.items()}
        return {
            "guide": d["guide"].permute(0, 3, 1, 2).float() / 255,
            "ratio": d["ratio"].float()[:, None] / 100,
            "changes": d["changes"].float() / 100,
            "maps": d["maps"].float(),
            "said": d["said"],
            "target": d["target"].permute(0, 3, 1, 2).float() / 255,
            "delta": d["delta"],
        }


def _as_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch


def mirrored(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch seen in a mirror: what points right points left."""
    out = {k: v.flip(-1) if v.ndim == 4 else v.clone() for k, v in batch.items()}
    for channel in (0, 3, 10):  # place, normal and flow along x
        out["maps"][:, channel] *= -1
    for value in (K + 1, K + 5):  # the light's and the turn's
        out["said"][:, value] *= -1
    return out


def part_of(batch: dict[str, Tensor], side: int = 96) -> dict[str, Tensor]:
    """A random part, where faces are, of all pictures of a batch: three times as many pictures a second."""
    top, left = int(torch.randint(8, (SIDE - side) // 2, ())), int(torch.randint(4, (SIDE - side) // 2 - 4, ()))
    half = (..., slice(top, top + side // 2), slice(left, left + side // 2))
    full = (..., slice(2 * top, 2 * top + side), slice(2 * left, 2 * left + side))
    return {k: v[half] if k in ("changes", "maps") else v[full] if v.ndim == 4 else v for k, v in batch.items()}


def texture(x: Tensor) -> Tensor:
    """(B, 3, H, W) to (B, 2, H', W'): how much that is finer than 5 pixels is brighter, and darker, than around it, in windows of 9."""
    grey = x.mean(1, keepdim=True)
    fine = grey - F.avg_pool2d(F.pad(grey, (2, 2, 2, 2), mode="replicate"), 5, 1)
    return F.avg_pool2d(torch.cat([fine.clamp_min(0), (-fine).clamp_min(0)], 1), 9, 3)


def picture_loss(made: Tensor, batch: dict[str, Tensor], fine: float = 4.0) -> Tensor:
    """(B,) L1, and ``fine`` times the L1 of :func:`texture`, five-fold where AUs change something, in units of how far the guide is off.

    L1 alone is least where a fold that lies a pixel beside its place is wiped out: a face without folds. Texture asks that it is there.
    """
    wanted, guide = batch["target"], batch["guide"]
    change = F.interpolate(batch["changes"].abs().sum(1, keepdim=True).clamp(0, 1), made.shape[-2:], mode="bilinear", align_corners=False)
    weight = 1 + 4 * change
    folds, around = texture(wanted), F.avg_pool2d(weight, 9, 3)

    def error(x: Tensor) -> Tensor:
        return (weight * (x - wanted).abs()).mean((1, 2, 3)) + fine * (around * (texture(x) - folds).abs()).mean((1, 2, 3))

    with torch.no_grad():
        scale = error(guide).clamp_min(0.01).sqrt()
    return error(made) / scale


class ResidualModule(L.LightningModule):
    """Trains a :class:`ResidualNet`; keeps an average of its weights."""

    def __init__(self, net: ResidualNet, lr: float, weight_decay: float, validation: Pairs) -> None:
        super().__init__()
        self.net, self.lr, self.weight_decay, self.validation = net, lr, weight_decay, validation
        self.average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
        self.average.requires_grad_(False)  # no gradient reaches it, which ranks would wait for
        self.started = time.time()

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        batch = part_of(mirrored(batch) if float(torch.rand(())) < 0.5 else batch)
        # Users' cameras expose, balance and compress otherwise.
        n, device = len(batch["guide"]), batch["guide"].device
        gain = torch.exp(0.2 * torch.randn(n, 1, 1, 1, device=device) + 0.08 * torch.randn(n, 3, 1, 1, device=device))
        gamma = torch.exp(0.15 * torch.randn(n, 1, 1, 1, device=device))
        batch |= {k: (batch[k].clamp_min(1e-4) ** gamma * gain).clamp(0, 1) for k in ("guide", "target")}
        parts = self.net(*(batch[k] for k in ("guide", "ratio", "changes", "maps", "said")))
        loss = picture_loss(correct(batch["guide"], parts), batch).mean()
        rough = parts["flow"].diff(dim=-1).abs().mean() + parts["flow"].diff(dim=-2).abs().mean()
        return loss + 0.002 * rough

    def on_train_batch_end(self, *_: Any) -> None:
        self.average.update_parameters(self.net)

    def on_train_epoch_end(self) -> None:
        if self.trainer.global_rank == 0:
            found = judge(self.average.module, self.validation, 400)  # type: ignore[arg-type]
            done, of = self.trainer.current_epoch + 1, self.trainer.max_epochs or 1
            left = (time.time() - self.started) / done * (of - done) / 60
            said = ", ".join(f"{name} {value:.4f}" for name, value in found["mean"].items())
            ui.info(f"epoch {done}/{of}: {said}; {left:.0f} min left")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        steps = max(int(self.trainer.estimated_stepping_batches), 2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.no_grad()
def judge(net: ResidualNet, pairs: Pairs, limit: int | None = None) -> dict[str, dict[str, float]]:
    """By the AU that changes most, and 'mean': mean absolute 'error' (0-1) where AUs change something, and how much 'texture' there is of
    what there should be; both of the guides too."""
    rows: dict[str, list[tuple[float, ...]]] = {}
    device = next(net.parameters()).device
    for start in range(0, min(len(pairs), limit or len(pairs)), 16):
        batch = {k: v.to(device) for k, v in pairs.__getitems__(list(range(start, min(start + 16, len(pairs))))).items()}
        made = correct(batch["guide"], net(*(batch[k] for k in ("guide", "ratio", "changes", "maps", "said"))))
        weight = F.interpolate(batch["changes"].abs().sum(1, keepdim=True).clamp(0, 1), (SIDE, SIDE), mode="bilinear", align_corners=False)
        off = [(weight * (x - batch["target"]).abs().mean(1, keepdim=True)).sum((1, 2, 3)) for x in (made, batch["guide"])]
        around = F.avg_pool2d(weight, 9, 3)
        fine = [(around * texture(x)).sum((1, 2, 3)) for x in (made, batch["guide"], batch["target"])]
        size = weight.sum((1, 2, 3)).clamp_min(1)
        figures = torch.stack([off[0] / size, off[1] / size, fine[0] / fine[2].clamp_min(1e-6), fine[1] / fine[2].clamp_min(1e-6)], 1)
        for delta, row in zip(batch["delta"], figures.tolist(), strict=True):
            rows.setdefault(column(AUS[int(delta.abs().argmax())]), []).append(tuple(row))
    table = {**dict(sorted(rows.items())), "mean": [row for found in rows.values() for row in found]}
    names = ("error", "guide_error", "texture", "guide_texture")
    return {au: {n: round(float(np.mean([row[i] for row in v])), 4) for i, n in enumerate(names)} for au, v in table.items()}


def pretrain(recipe: dict[str, Any], folder: Path, data_folder: Path | None = None) -> Path:
    """Train by a recipe of kind 'generator'; writes NAME.safetensors and its card into ``folder`` and returns the weights' path."""
    started = time.time()
    tracking.quiet_lightning()
    ranks.refuse_own(recipe["trainer"], ranks.BY_EPOCHS, "generator fit")
    L.seed_everything(recipe["seed"], verbose=False)
    world, optim = recipe["world"], recipe["optim"]
    data_folder = data_folder or folder / "pairs"
    with ranks.first_goes_ahead():
        validation, train = (
            Pairs(make(data_folder, split, world[f"{split}_people"], world["pictures"], world["size"], world["workers"]))
            for split in ("validation", "train")
        )
    module = ResidualModule(ResidualNet(**recipe["model"]), optim["lr"], optim["weight_decay"], validation)
    trainer = L.Trainer(
        max_epochs=optim["epochs"], logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        gradient_clip_val=1.0, **ranks.trainer_flags(recipe["trainer"], all_reached=True),
    )  # fmt: skip
    loader = DataLoader(train, batch_size=optim["batch_size"], shuffle=True, drop_last=True, collate_fn=_as_is, num_workers=1)
    trainer.fit(module, loader)
    net: ResidualNet = module.average.module.eval()  # type: ignore[assignment]
    if trainer.global_rank:  # the first one measures and writes
        return folder / f"{recipe['generator']['name']}.safetensors"
    figures = judge(net, validation)
    refuse_idle(figures["mean"], optim["lr"])
    data = f"{len(train)} pairs of rendered pictures of {len(np.unique(train.data['person']))} people"
    return write(folder, net, net.config, data, recipe, started, figures)


def refuse_idle(mean: dict[str, float], lr: float) -> None:
    """Raise ConfigError for a network that leaves every picture as it is, or makes none: too long a step can end there, and nothing leads
    back. mean: as :func:`judge` gives it."""
    same = mean["error"] == mean["guide_error"] and mean["texture"] == mean["guide_texture"]
    if same or not np.isfinite(mean["error"]):
        raise ConfigError(f"the training went wrong, the network corrects nothing: train it again with a smaller optim.lr than {lr:g}.")


def write(
    folder: Path, net: nn.Module, model: dict[str, Any], data: str, recipe: dict[str, Any], started: float, validation: dict[str, Any]
) -> Path:
    """Write a generator's NAME.safetensors, in half precision, and its card NAME.json; returns the weights' path.

    model: what the network has to be made with. data: what it learned from, no photographs. started: of the training, seconds since 1970.
    """
    path = folder / f"{recipe['generator']['name']}.safetensors"
    card = {
        "name": path.stem,
        "personalize": __version__,
        "aus": list(AUS),
        "model": model,
        "data": f"{data}; no photograph of anybody",
        "recipe": recipe,
        "made": circumstances(["personalize", "generator", "fit", *strip_paths(changes(recipe))])
        | {"hours": round((time.time() - started) / 3600, 4)},
        "validation": validation,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, path)
    path.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    return path
