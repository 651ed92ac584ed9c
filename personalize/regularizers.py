"""The base classes of regularizers: what must stay while the adapter moves what must move.

A *parameter* regularizer (L2-SP, EWC) remembers where the parameters were and adds the gradient of its penalty itself, after the gradients
of all ranks are reduced and unscaled and before they are clipped, so that one process and many get the same numbers. A *function*
regularizer (LwF) is a term of the loss.

The order of a fit::

    regularizer.start(model, batches)                   # the adapter is applied; before the first step
    loss = task_loss + function.loss(model, replay, outputs)
    loss.backward()                                     # reduce, unscale
    parameter.gradients(model.named_parameters())       # in place
    # clip, step

Both see a model only through ``predict(model, batch)``, so that any module will do; the default is :func:`au_predict`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import ConfigError, unknown

Batch = dict[str, Tensor]
Outputs = dict[str, Tensor]
Predict = Callable[[nn.Module, Batch], Outputs]
Loss = Callable[[Outputs, Batch], Tensor]
NamedParameters = Iterable[tuple[str, nn.Parameter]]

LIKELIHOODS = ("ordinal", "categorical")


def au_predict(model: nn.Module, batch: Batch) -> Outputs:
    """An :class:`~personalize.model.AUNet` on a batch of the package: its neutral is encoded by the model itself, where there is one."""
    neutral = None
    if "neutral_crop" in batch:
        neutral = model.neutral_features(batch["neutral_crop"], batch["neutral_landmarks"])  # type: ignore[operator]
    return model(batch["crop"], batch["landmarks"], batch["has_landmarks"], neutral=neutral, has_neutral=batch.get("has_neutral"))


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode; afterwards every module is in the mode that it was in, not all in one."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


class Regularizer(ABC):
    """What both kinds share. The signature of ``__init__`` is the plug-in's configuration; ``weight`` is one of its options.

    Args:
        weight: the strength, at least 0; each plug-in states the formula that it multiplies.
    """

    def __init__(self, weight: float = 1.0) -> None:
        if not weight >= 0:
            raise ConfigError(f"the weight of {type(self).__name__} is {weight:g}; it must be 0 or more.")
        self.weight = weight

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that ``start`` computed, as copies on the CPU, so that a resumed fit goes on with the same numbers."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""


class ParameterRegularizer(Regularizer):
    """The penalty weight/2 * sum_i importance_i * (p_i - anchor_i)^2 over the parameters that were trainable at ``start``.

    A plug-in says what the importances and anchors are. Names are those of ``model.named_parameters()``; a caller whose model is wrapped
    (``module.`` under DDP) gives the names of the inner model.

    Attributes: ``anchors`` and ``importances``, name -> tensor shaped as the parameter. Both are clones: they never alias it.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.anchors: dict[str, Tensor] = {}
        self.importances: dict[str, Tensor] = {}

    @abstractmethod
    def importance(self, model: nn.Module, batches: Iterable[Batch], loss: Loss | None, predict: Predict) -> dict[str, Tensor]:
        """The importance of each trainable parameter, name -> tensor shaped as the parameter, at least 0."""

    def anchor(self, name: str, parameter: nn.Parameter) -> Tensor:
        """Where a parameter is held: where it is now."""
        return parameter.detach().clone(memory_format=torch.contiguous_format)

    def start(self, model: nn.Module, batches: Iterable[Batch] = (), loss: Loss | None = None, predict: Predict = au_predict) -> None:
        """Take anchors and importances; the model is as it was afterwards, its modes and gradients included.

        Args:
            model: with the adapter applied, so that what requires a gradient is what will move.
            batches: of what must stay known (replay, base domain); L2-SP needs none.
            loss: ``loss(outputs, batch) -> scalar`` negative log-likelihood; None: that of the plug-in.
            predict: how the model is called, ``{'logits': ...}`` at least; see the module's text.
        """
        self.importances = self.importance(model, batches, loss, predict)
        self.anchors = {name: self.anchor(name, p) for name, p in trainable(model)}

    def gradients(self, named_parameters: NamedParameters) -> None:
        """Add weight * importance * (p - anchor) to each parameter's ``grad``, in place. Call after unscaling, before clipping."""
        with torch.no_grad():
            for p, anchor, importance in self._pairs(named_parameters):
                pull = self.weight * importance * (p - anchor)
                if p.grad is None:
                    p.grad = pull
                else:
                    p.grad += pull

    def penalty(self, named_parameters: NamedParameters) -> Tensor:
        """The value of the penalty, a detached scalar for the log; do not add it to the loss as well."""
        with torch.no_grad():
            terms = [(importance * (p - anchor) ** 2).sum() for p, anchor, importance in self._pairs(named_parameters)]
            return self.weight / 2 * torch.stack(terms).sum() if terms else torch.zeros(())

    def stiffness(self, lr: float) -> float:
        """Lr * weight * largest importance. Plain gradient descent on the penalty alone diverges above 2."""
        return lr * self.weight * max((float(v.max()) for v in self.importances.values() if v.numel()), default=0.0)

    def check_stiffness(self, lr: float, adaptive: bool = False) -> None:
        """Raise ConfigError where the penalty would make descent diverge. With ``adaptive`` (Adam and its kin bound the step, so that it
        swings instead) only warn.
        """
        stiffness = self.stiffness(lr)
        if stiffness <= 2:
            return
        name = type(self).__name__.lower()
        most = self.weight * 2 / stiffness
        if adaptive:
            from .ui import warn

            warn(
                f"{name} is stiff: lr x weight x largest importance is {stiffness:.3g}, above 2; "
                f"expect swings, or set its weight below {most:.3g}."
            )
        else:
            raise ConfigError(
                f"{name} is too stiff and would diverge: lr x weight x largest importance is {stiffness:.3g}, above 2; "
                f"set its weight below {most:.3g} or lower lr."
            )

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Regularizer.state_dict`."""
        return {
            "anchors": {name: value.detach().to("cpu", copy=True) for name, value in self.anchors.items()},
            "importances": {name: value.detach().to("cpu", copy=True) for name, value in self.importances.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Regularizer.load_state_dict`."""
        self.anchors = {name: value.clone() for name, value in state["anchors"].items()}
        self.importances = {name: value.clone() for name, value in state["importances"].items()}

    def _pairs(self, named_parameters: NamedParameters) -> Iterator[tuple[nn.Parameter, Tensor, Tensor]]:
        if not self.anchors:
            raise ConfigError(f"{type(self).__name__} has no anchors; call start(model, ...) before the first step.")
        found = 0
        for name, p in named_parameters:
            if name not in self.anchors:
                continue
            if self.anchors[name].shape != p.shape:
                raise ConfigError(
                    f"{type(self).__name__} holds '{name}' of shape {tuple(self.anchors[name].shape)}, the model {tuple(p.shape)}; "
                    "start it again after changing the adapter."
                )
            if self.anchors[name].device != p.device:
                self.anchors[name], self.importances[name] = self.anchors[name].to(p.device), self.importances[name].to(p.device)
            found += 1
            yield p, self.anchors[name], self.importances[name]
        if found < len(self.anchors):
            raise ConfigError(
                f"{type(self).__name__} found {found} of its {len(self.anchors)} parameters; "
                "start it again after changing the adapter, and give it the names of the unwrapped model."
            )


class FunctionRegularizer(Regularizer):
    """A term of the loss that compares what the model says with what it said at ``start``."""

    @abstractmethod
    def start(self, model: nn.Module, predict: Predict = au_predict) -> None:
        """Remember the model as it is."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, outputs: Outputs) -> Tensor:
        """The term, a scalar, weight included. ``outputs`` is what the model in training says on this very batch, augmented views and all;
        the batch is of what must stay known (replay, base domain).
        """


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that require a gradient. Raises ConfigError where none does."""
    found = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not found:
        raise ConfigError("no parameter of the model is trainable; apply an adapter first.")
    return found


def check_likelihood(name: str) -> str:
    """The name of a likelihood. Raises ConfigError for any but 'ordinal' and 'categorical'."""
    if name not in LIKELIHOODS:
        raise ConfigError(unknown("likelihood", name, LIKELIHOODS))
    return name


def log_probabilities(logits: Tensor, likelihood: str) -> Tensor:
    """Log-probabilities of the states of each unit.

    'ordinal': (..., 5) logits of P(y >= 1..5) that do not rise along the last axis, to (..., 6) log P(y = 0..5), the proportional-odds
    model (McCullagh, 1980). 'categorical': (..., C) class logits to (..., C), softmax.
    """
    if likelihood == "categorical":
        return F.log_softmax(logits, dim=-1)
    # log(s(a) - s(b)) = log s(a) + log s(-b) + log(1 - exp(b - a)) for a > b, exact where both ends saturate.
    upper, lower = logits[..., :-1], logits[..., 1:]
    between = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1((lower - upper).clamp(max=-1e-6)))
    return torch.cat([F.logsigmoid(-logits[..., :1]), between, F.logsigmoid(logits[..., -1:])], dim=-1)


def negative_log_likelihood(outputs: Outputs, batch: Batch, likelihood: str) -> Tensor:
    """The mean over samples of the summed negative log-likelihood of known units, a scalar.

    'ordinal': ``logits`` (B, K, 5), ``target`` (B, K) in 0-5, ``mask`` (B, K); a fractional target is split between its two neighbours.
    'categorical': ``logits`` (B, C), ``target`` (B,) int64.
    """
    log_p = log_probabilities(outputs["logits"], likelihood)
    if likelihood == "categorical":
        return F.nll_loss(log_p, batch["target"])
    states = torch.arange(log_p.shape[-1], device=log_p.device, dtype=log_p.dtype)
    share = (1 - (batch["target"][..., None] - states).abs()).clamp_min(0)
    return -((share * log_p).sum(-1) * batch["mask"]).sum(-1).mean()
