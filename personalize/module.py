"""The Lightning module that adapts the base to one person: task loss on their samples, replay, regularizers, an adapter."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from . import ranks
from .adapters import Adapter
from .augment import augment
from .buffers import ReplayBuffer
from .errors import ConfigError
from .model import AUNet, ordinal_loss
from .regularizers import FunctionRegularizer, ParameterRegularizer, Regularizer

Batch = dict[str, Tensor]


def predict(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Like :func:`personalize.regularizers.au_predict`; where the batch brings the frozen backbone's maps ('middle', 'last', and
    'neutral_middle', 'neutral_last'), they are not computed again."""
    net: AUNet = model  # type: ignore[assignment]
    look = net.project((batch["middle"], batch["last"])) if "middle" in batch else net.crop_features(batch["crop"])
    neutral = None
    if "neutral_landmarks" in batch:
        rest = (
            net.project((batch["neutral_middle"], batch["neutral_last"]))
            if "neutral_middle" in batch
            else net.crop_features(batch["neutral_crop"])
        )
        neutral = {"crop": rest, "landmarks": batch["neutral_landmarks"]}
    return net.answer(look, batch["landmarks"], batch["has_landmarks"], neutral, batch.get("has_neutral"))


class PersonalModule(L.LightningModule):
    """Adapts ``net`` with what the adapter lets move.

    Every step is seeded by its number and rank, so that a resumed fit repeats nothing and skips nothing. neutral: the person's, 'crop'
    (M, 3, 112, 112) uint8, one of which a step sees, and 'landmarks' (1, 478, 3), or None. replay: samples drawn from the buffer a step,
    on each rank.
    """

    def __init__(
        self,
        net: AUNet,
        adapter: Adapter,
        regularizers: dict[str, Regularizer],
        buffer: ReplayBuffer | None,
        neutral: dict[str, Tensor] | None,
        optim: dict[str, Any],
        replay: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.net, self.adapter, self.regularizers, self.buffer = net, adapter, regularizers, buffer
        self.neutral, self.optim, self.replay, self.seed = neutral, optim, replay, seed
        self.frozen = not any(p.requires_grad for p in net.backbone.parameters())
        self.trained = [n for n, p in net.named_parameters() if p.requires_grad]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        ranks.seed_step(self, self.seed, batch_idx)
        self.adapter.train_mode(self.net)

    def _with_maps(self, batch: Batch) -> Batch:
        """Where the backbone is frozen, its maps of all pictures of a batch, without gradients, in one pass."""
        if not self.frozen:
            return batch
        crops = [batch["crop"]] + ([batch["neutral_crop"]] if "neutral_crop" in batch else [])
        with torch.no_grad():
            middle, last = self.net.maps(torch.cat([c.float() for c in crops]))
        n = len(batch["crop"])
        out = {**batch, "middle": middle[:n], "last": last[:n]}
        if len(crops) > 1:
            out |= {"neutral_middle": middle[n:], "neutral_last": last[n:]}
        return out

    def _finite(self, what: str, term: Tensor) -> None:
        """What is not a number now is none ever after: stop at once, and say whose it is."""
        if not bool(torch.isfinite(term).all()):
            remedy = "check the plug-in" if what.startswith("regularizer") else "fit again with a smaller optim.lr"
            raise ConfigError(f"{what} is {float(term.detach().float().mean())} at step {self.global_step}: {remedy}.")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        own = augment(batch)
        if self.neutral is not None:
            n = len(own["crop"])
            crops = self.neutral["crop"].to(self.device)
            own["neutral_crop"] = crops[torch.randint(len(crops), (1,))]
            own["neutral_landmarks"] = self.neutral["landmarks"].to(self.device).expand(n, -1, -1)
            own["has_neutral"] = torch.ones(n, dtype=torch.bool, device=self.device)
        own = self._with_maps(own)
        out = predict(self.net, own)
        loss = ordinal_loss(out["logits"], own["target"], own["mask"], own["weight"][:, None], own["occurrence"])
        self._finite("the loss of the person's samples", loss)
        self.log("train/own", loss, prog_bar=True)
        if self.buffer is not None and self.replay:
            old = {k: v.to(self.device) for k, v in self.buffer.sample(self.replay, self.global_rank, self.trainer.world_size).items()}
            old = self._with_maps(old)
            said = predict(self.net, old)
            rehearsal = ordinal_loss(said["logits"], old["target"], old["mask"], old["weight"][:, None])
            self._finite("the loss of the replayed samples", rehearsal)
            self.log("train/replay", rehearsal)
            loss = loss + rehearsal
            for name, regularizer in self.regularizers.items():
                if isinstance(regularizer, FunctionRegularizer):
                    term = regularizer.loss(self.net, old, said)
                    self._finite(f"regularizer {name}", term)
                    self.log(f"train/{name}", term)
                    loss = loss + term
        self.log("train/loss", loss)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for name, regularizer in self.regularizers.items():
            if isinstance(regularizer, ParameterRegularizer):
                regularizer.gradients(self.net.named_parameters())
                penalty = regularizer.penalty(self.net.named_parameters())
                self._finite(f"regularizer {name}", penalty)
                self.log(f"train/{name}", penalty)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        moving = [p for p in self.net.parameters() if p.requires_grad]
        return torch.optim.AdamW(moving, lr=self.optim["lr"], weight_decay=self.optim["weight_decay"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The base is on disk already: a checkpoint holds what moved, and the memories of regularizers and buffer.
        kept = set(self.trained) | {n for n, _ in self.net.named_buffers()}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k.removeprefix("net.") in kept}
        checkpoint["regularizers"] = {n: r.state_dict() for n, r in self.regularizers.items() if isinstance(r, ParameterRegularizer)}
        if self.buffer is not None:
            checkpoint["buffer"] = self.buffer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}
        for name, state in checkpoint["regularizers"].items():
            self.regularizers[name].load_state_dict(state)
        if self.buffer is not None:
            self.buffer.load_state_dict(checkpoint["buffer"])
