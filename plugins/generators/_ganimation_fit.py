"""Pre-training of GANimation on the synthetic world, unpaired, as its paper trains on photographs: pictures of many people and their AUs.

The renders of au_residual's pre-training serve; that they are pairs, one person in one pose and light with other AUs, is used for the
figures in the card alone.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from personalize import ranks, tracking, ui
from personalize.aus import MAX_INTENSITY
from personalize.config import changes, one_device
from personalize.errors import ConfigError
from personalize_plugins.generators import _gan
from personalize_plugins.generators._residual_fit import Pairs, make, write
from personalize_plugins.generators.ganimation import CRITIC_STEPS, NOISE, GANimation, critic_loss, generator_loss
from personalize_plugins.generators.pix2pix import adams, at_rest, to_tensor


class GANimationModule(L.LightningModule):
    """Trains ``net`` against ``critic`` by the losses of Pumarola et al. (2018), section 4.2; the critic in every step."""

    def __init__(self, given: GANimation, lr: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net, self.critic = given.networks()
        self.weights, self.lr = (given.au_weight, given.cycle_weight, given.attention_weight), lr
        self.bfloat16, self.critic_steps = given.bfloat16, 0

    def training_step(self, batch: list[Tensor], _: int) -> None:
        real, aus = to_tensor(batch[0]), batch[1]
        wanted = (aus.roll(1, 0) + NOISE * (2 * torch.rand_like(aus) - 1)).clamp(0, 1)
        ours, theirs = self.optimizers()  # type: ignore[misc]
        draw, look = _gan.Mixed(self.net, self.bfloat16), _gan.Mixed(self.critic, self.bfloat16)
        self.critic_steps += 1
        turn = self.critic_steps % CRITIC_STEPS == 0
        with torch.set_grad_enabled(turn):
            there = draw(real, wanted)
        theirs.zero_grad()
        self.manual_backward(critic_loss(look, real, there[0], aus, torch.rand(len(real), device=self.device), self.weights[0]))
        theirs.step()
        if turn:
            with at_rest(self.critic):
                ours.zero_grad()
                self.manual_backward(generator_loss(draw, look, there, real, aus, wanted, *self.weights))
                ours.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return list(adams(self.lr, self.net, self.critic))


class _Watch(L.Callback):
    """Says after each epoch how far the pictures are off, and how long it will take."""

    def __init__(self, pairs: tuple[Tensor, Tensor, Tensor]) -> None:
        self.pairs, self.started = pairs, time.time()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        done, of = trainer.current_epoch + 1, trainer.max_epochs or 1
        left = (time.time() - self.started) / done * (of - done) / 60
        said = ", ".join(f"{name} {value:.4f}" for name, value in judge(module.net, *self.pairs).items())  # type: ignore[arg-type]
        ui.info(f"epoch {done}/{of}: {said}; {left:.0f} min left")


def pictures(paths: list[Path], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of all pairs in the shards: the pictures (N, size, size, 3) uint8, their AUs (N, K) 0-1, and the person of each (N,)."""
    data = Pairs(paths, ("target", "aus", "person")).data
    images = np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in data["target"]])
    aus = np.clip(data["aus"] / MAX_INTENSITY, 0, 1).astype(np.float32)
    return torch.from_numpy(images), torch.from_numpy(aus), torch.from_numpy(data["person"])


@torch.no_grad()
def judge(net: _gan.MaskedGenerator, images: Tensor, aus: Tensor, person: Tensor) -> dict[str, float]:
    """Mean absolute 'error' (0-1) of a picture that is to become the person's next one, which stands beside it in pose and light, and the
    'still_error' of leaving it as it is. Arguments as :func:`pictures` gives them."""
    device = next(net.parameters()).device
    rows = torch.nonzero(person[:-1] == person[1:])[:, 0]
    made, still = [], []
    for part in rows.split(16):
        before, after = (to_tensor(images[part + i]).to(device) for i in (0, 1))
        made.append((net(before, aus[part + 1].to(device))[0] - after).abs().mean((1, 2, 3)) / 2)
        still.append((before - after).abs().mean((1, 2, 3)) / 2)
    return {name: round(float(torch.cat(x).mean()), 4) for name, x in (("error", made), ("still_error", still))}


def pretrain(recipe: dict[str, Any], folder: Path, data_folder: Path | None = None) -> Path:
    """Train by a recipe of kind 'generator'; writes ganimation.safetensors and its card into ``folder`` and returns the weights' path."""
    started = time.time()
    tracking.quiet_lightning()
    ranks.refuse_own(recipe["trainer"], ranks.BY_EPOCHS, "generator fit")
    one_device(recipe, "generator fit of ganimation")
    foreign = [line for line in changes(recipe) if line.startswith("model.")]
    if foreign:
        raise ConfigError(f"{foreign[0].split('=')[0]} is of au_residual's network: ganimation's is set by generator.options.")
    if recipe["optim"]["weight_decay"]:
        raise ConfigError(f"optim.weight_decay={recipe['optim']['weight_decay']:g}: the optimizer of ganimation has none, leave it 0.")
    given = GANimation(**recipe["generator"]["options"])
    L.seed_everything(recipe["seed"], verbose=False)
    world, optim = recipe["world"], recipe["optim"]
    data_folder = data_folder or folder / "pairs"
    held, seen = (
        pictures(make(data_folder, s, world[f"{s}_people"], world["pictures"], world["size"], world["workers"]), given.size)
        for s in ("validation", "train")
    )
    module = GANimationModule(given, optim["lr"])
    trainer = L.Trainer(
        max_epochs=optim["epochs"], logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        callbacks=[_Watch(held)], **ranks.trainer_flags(recipe["trainer"], all_reached=True),
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(*seen[:2]), batch_size=optim["batch_size"], shuffle=True, drop_last=True))
    data = f"{len(seen[0])} rendered pictures of {len(seen[2].unique())} people"
    return write(folder, module, given.network, data, recipe, started, judge(module.net.eval(), *held))
