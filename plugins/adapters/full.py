"""Everything moves: the most plastic, the most forgetful, and the largest profile."""

from __future__ import annotations

from torch import nn

from personalize.adapters import Adapter
from personalize.errors import ConfigError, unknown

_CHOICES = ("keep", "adapt")


class Full(Adapter):
    """Moves every parameter.

    Args:
        batchnorm: 'keep' leaves BatchNorm statistics as they are; 'adapt' lets them follow the person, and stores them.
        half: store differences as fp16.
    """

    def __init__(self, batchnorm: str = "keep", half: bool = True) -> None:
        super().__init__(half)
        if batchnorm not in _CHOICES:
            raise ConfigError(unknown("batchnorm of full", batchnorm, _CHOICES))
        self.adapts_batchnorm = batchnorm == "adapt"

    def moving(self, model: nn.Module) -> list[str]:
        """See :meth:`Adapter.moving`."""
        return [name for name, _ in model.named_parameters()]
