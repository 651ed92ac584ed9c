"""Learning without forgetting: the model goes on saying what it said (Li & Hoiem, 2017), for AUs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from personalize.errors import ConfigError
from personalize.regularizers import Batch, FunctionRegularizer, Outputs, Predict, au_predict, check_likelihood


class LwF(FunctionRegularizer):
    """Learning without forgetting: on replayed faces the model goes on saying what it said before.

    The term is weight * mean KL(teacher || student) at a temperature T; the teacher is the model as it was at ``start``,
    frozen, in eval mode.

    AUs are not classes of one softmax: each of the (B, K, 5) ordinal logits is a Bernoulli unit, KL is summed over the five levels and
    averaged over samples and AUs. It is taken at every AU, labelled or not. There is no factor T^2, so the gradient falls with T.

    Args:
        weight: the strength.
        temperature: T, above 0; logits are divided by it (Li & Hoiem use 2).
        likelihood: 'ordinal' for AUs, 'categorical' for (B, C) softmax classes, as in the paper.
    """

    def __init__(self, weight: float = 1.0, temperature: float = 2.0, likelihood: str = "ordinal") -> None:
        super().__init__(weight)
        if not temperature > 0:
            raise ConfigError(f"temperature of lwf is {temperature:g}; it must be above 0.")
        self.temperature = temperature
        self.likelihood = check_likelihood(likelihood)
        self.teacher: nn.Module | None = None
        self._predict: Predict = au_predict

    def start(self, model: nn.Module, predict: Predict = au_predict) -> None:
        """See :meth:`FunctionRegularizer.start`."""
        # Gradients of the model are not the teacher's: copying them would hold memory for nothing.
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval()
        self.teacher.zero_grad(set_to_none=True)
        self._predict = predict

    def loss(self, model: nn.Module, batch: Batch, outputs: Outputs) -> Tensor:
        """See :meth:`FunctionRegularizer.loss`."""
        teacher, student = self._started(), outputs["logits"]
        if any(p.device != student.device for p in teacher.parameters()):
            teacher.to(student.device)
        with torch.no_grad():
            said = self._predict(teacher, batch)["logits"].to(student.dtype) / self.temperature
        student = student / self.temperature
        if self.likelihood == "categorical":
            return self.weight * F.kl_div(F.log_softmax(student, -1), F.log_softmax(said, -1), reduction="batchmean", log_target=True)
        return self.weight * bernoulli_kl(said, student).sum(-1).mean()

    def state_dict(self) -> dict[str, Any]:
        """The teacher's parameters and buffers; empty before ``start``."""
        if self.teacher is None:
            return {}
        return {"teacher": {name: value.detach().to("cpu", copy=True) for name, value in self.teacher.state_dict().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the teacher; ``start`` with a model of the same structure comes first."""
        if state:
            self._started().load_state_dict(state["teacher"])

    def _started(self) -> nn.Module:
        if self.teacher is None:
            raise ConfigError("lwf has no teacher; call start(model) before the first step.")
        return self.teacher


def bernoulli_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) of Bernoulli units given by logits, elementwise; stable where they saturate."""
    p = torch.sigmoid(p_logits)
    return p * (F.logsigmoid(p_logits) - F.logsigmoid(q_logits)) + (1 - p) * (F.logsigmoid(-p_logits) - F.logsigmoid(-q_logits))
