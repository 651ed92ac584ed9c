"""L2-SP: decay towards the starting point instead of towards zero (Li, Grandvalet & Davoine, 2018)."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from personalize.errors import ConfigError
from personalize.regularizers import Batch, Loss, ParameterRegularizer, Predict, trainable


class L2SP(ParameterRegularizer):
    """Decay of every parameter towards where it started.

    The penalty is weight/2 * ||w - w_start||^2 + new_weight/2 * ||w_new||^2 (Li et al., 2018, eq. 2, their alpha and beta).

    Args:
        weight: alpha, of parameters that the base model trained.
        new_weight: beta, of parameters that are new with this adapter; they are drawn to zero. 0: they are free.
        new: name patterns of new parameters (``*.lora.*``); None: there are none.
    """

    def __init__(self, weight: float = 0.01, new_weight: float = 0.0, new: list[str] | None = None) -> None:
        super().__init__(weight)
        if not new_weight >= 0:
            raise ConfigError(f"new_weight of l2sp is {new_weight:g}; it must be 0 or more.")
        if new_weight and not weight:
            raise ConfigError("l2sp has new_weight but weight 0; use the optimizer's weight_decay for that, or set weight above 0.")
        self.new_weight = new_weight
        self.new = list(new or [])

    def anchor(self, name: str, parameter: nn.Parameter) -> Tensor:
        """Zero for new parameters, the present value for others."""
        return torch.zeros_like(parameter.detach()) if self._is_new(name) else super().anchor(name, parameter)

    def importance(self, model: nn.Module, batches: Iterable[Batch], loss: Loss | None, predict: Predict) -> dict[str, Tensor]:
        """Ones; new_weight / weight for new parameters."""
        ratio = self.new_weight / self.weight if self.weight else 0.0
        return {name: torch.full_like(p.detach(), ratio if self._is_new(name) else 1.0) for name, p in trainable(model)}

    def _is_new(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.new)
