"""Elastic weight consolidation: what mattered to earlier data is held the harder (Kirkpatrick et al., 2017)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from personalize.errors import ConfigError, unknown
from personalize.regularizers import (
    Batch,
    Loss,
    ParameterRegularizer,
    Predict,
    check_likelihood,
    eval_mode,
    log_probabilities,
    negative_log_likelihood,
    trainable,
)

FISHERS = ("empirical", "exact")


class EWC(ParameterRegularizer):
    """Elastic weight consolidation: holds a parameter the harder, the more it mattered to earlier data.

    The penalty is weight/2 * sum_i F_i (w_i - w_start_i)^2 (Kirkpatrick et al., 2017, eq. 3), F the diagonal of the Fisher information.

    F is the mean over samples of the squared gradient of *one sample's* log-likelihood, summed over its AUs; squaring the gradient of a
    batch's mean instead would make it depend on the batch size. Where one object is started again, for the next task,
    F <- decay * F + F_new and the anchor moves (online EWC; Schwarz et al., 2018, section 2.3); ``personalize fit`` starts a new one for
    each person, from the base.

    Args:
        weight: the strength.
        fisher: 'empirical' takes the gradient at the labels of the batches, 'exact' at labels drawn from the model itself, which is the
            Fisher information proper (Monte Carlo, unbiased), and needs no labels.
        draws: labels drawn for each sample by 'exact'.
        decay: of the importances of earlier starts, 0-1.
        normalise: divide each new F by its largest value, so that weight means the same for every model.
        samples: at most this many samples are read.
        chunk: samples at a time; memory is chunk x trainable parameters.
        likelihood: 'ordinal' for AUs, 'categorical' for softmax classes.
        seed: of the drawn labels.
    """

    def __init__(
        self,
        weight: float = 1.0,
        fisher: str = "empirical",
        draws: int = 1,
        decay: float = 1.0,
        normalise: bool = False,
        samples: int = 512,
        chunk: int = 8,
        likelihood: str = "ordinal",
        seed: int = 0,
    ) -> None:
        super().__init__(weight)
        if fisher not in FISHERS:
            raise ConfigError(unknown("fisher", fisher, FISHERS))
        if not 0 <= decay <= 1:
            raise ConfigError(f"decay of ewc is {decay:g}; it must be within 0-1.")
        if min(draws, samples, chunk) < 1:
            raise ConfigError("draws, samples and chunk of ewc must be at least 1.")
        self.fisher, self.draws, self.decay, self.normalise = fisher, draws, decay, normalise
        self.samples, self.chunk, self.likelihood = samples, chunk, check_likelihood(likelihood)
        self._generator = torch.Generator().manual_seed(seed)

    def importance(self, model: nn.Module, batches: Iterable[Batch], loss: Loss | None, predict: Predict) -> dict[str, Tensor]:
        """The diagonal Fisher information, with that of earlier starts. A sample's ``weight``, if the batch has it, weighs."""
        if loss is not None and self.fisher == "exact":
            raise ConfigError("fisher 'exact' of ewc draws labels from its likelihood and cannot use another loss; use 'empirical'.")
        totals = {name: torch.zeros_like(p.detach()) for name, p in trainable(model)}
        mass, count = 0.0, 0
        # Teachers, Fisher passes: never in training mode, or BatchNorm mixes samples and drifts.
        with eval_mode(model):
            for batch in batches:
                size = min(len(next(iter(batch.values()))), self.samples - count)
                for i in range(0, size, self.chunk):
                    part = {name: value[i : min(i + self.chunk, size)] for name, value in batch.items()}
                    mass += self._accumulate(totals, model, part, loss, predict)
                count += size
                if count >= self.samples:
                    break
        mass = self._over_ranks(totals, mass)
        if not mass > 0:
            raise ConfigError("ewc got no samples to weigh parameters with; give it replay or base-domain batches, or use l2sp.")
        new = {name: total / mass for name, total in totals.items()}
        if not all(bool(torch.isfinite(value).all()) for value in new.values()):
            raise ConfigError("ewc's Fisher information is not finite; look for NaN in the batches or the model.")
        if self.normalise:
            top = max(float(value.max()) for value in new.values())
            new = {name: value / top for name, value in new.items()} if top > 0 else new
        for name, old in self.importances.items():
            if name in new and old.shape == new[name].shape:
                new[name] += self.decay * old.to(new[name].device)
        return new

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Regularizer.state_dict`."""
        return {**super().state_dict(), "rng": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Regularizer.load_state_dict`."""
        super().load_state_dict(state)
        self._generator.set_state(state["rng"])

    def _accumulate(self, totals: dict[str, Tensor], model: nn.Module, batch: Batch, loss: Loss | None, predict: Predict) -> float:
        """Add the chunk's squared per-sample gradients to ``totals``; returns its mass, the sum of sample weights."""
        first = next(iter(batch.values()))
        weight = batch["weight"].detach().float() if "weight" in batch else torch.ones(len(first), device=first.device)
        repeats = self.draws if self.fisher == "exact" else 1
        for _ in range(repeats):
            labelled = self._draw(model, batch, predict) if self.fisher == "exact" else batch
            for name, g in _per_sample(model, labelled, loss or self._loss, predict).items():
                w = weight.to(g.device).view(-1, *[1] * (g.ndim - 1))
                totals[name] += (w * g**2).sum(0) / repeats
        return float(weight.sum())

    def _loss(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        return negative_log_likelihood(outputs, batch, self.likelihood)

    def _draw(self, model: nn.Module, batch: Batch, predict: Predict) -> Batch:
        """The batch with targets that the model itself thinks likely, all of them known."""
        with torch.no_grad():
            p = log_probabilities(predict(model, batch)["logits"].float(), self.likelihood).exp()
        drawn = torch.multinomial(p.reshape(-1, p.shape[-1]).cpu(), 1, generator=self._generator).view(p.shape[:-1]).to(p.device)
        if self.likelihood == "categorical":
            return {**batch, "target": drawn}
        return {**batch, "target": drawn.to(p.dtype), "mask": torch.ones_like(drawn, dtype=torch.bool)}

    @staticmethod
    def _over_ranks(totals: dict[str, Tensor], mass: float) -> float:
        """Sum over the ranks of a distributed run, so that all hold the same importances."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return mass
        # NCCL reduces on GPUs only, and a later round's model starts on the CPU.
        device = torch.device("cuda", torch.cuda.current_device()) if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
        for total in totals.values():
            there = total.to(device)
            torch.distributed.all_reduce(there)
            total.copy_(there)
        shared = torch.tensor(mass, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(shared)
        return float(shared)


class _Called(nn.Module):
    """Lets ``functional_call`` exchange the parameters of a model that is called through a function."""

    def __init__(self, model: nn.Module, predict: Predict) -> None:
        super().__init__()
        self.model = model
        self.predict = predict

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.predict(self.model, batch)


def _per_sample(model: nn.Module, batch: Batch, loss: Loss, predict: Predict) -> dict[str, Tensor]:
    """The gradient of each sample's loss: name -> (B, *shape of the parameter)."""
    called = _Called(model, predict)
    parameters = {f"model.{name}": p.detach() for name, p in trainable(model)}

    def one(values: dict[str, Tensor], sample: Batch) -> Tensor:
        single = {name: value[None] for name, value in sample.items()}
        return loss(functional_call(called, values, (single,)), single)

    gradients = vmap(grad(one), in_dims=(None, 0))(parameters, batch)
    return {name.removeprefix("model."): value for name, value in gradients.items()}
