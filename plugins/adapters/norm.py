"""The scale and shift of every normalisation layer (as in TENT; Wang et al., 2021), none of its statistics."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from personalize.adapters import Adapter
from personalize.errors import ConfigError

_NORMS: tuple[type[nn.Module], ...] = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Norm(Adapter):
    """Moves the scale and shift of all BatchNorm, InstanceNorm, LayerNorm, GroupNorm and RMSNorm layers.

    Args:
        head: the head moves too.
        half: store differences as fp16.
    """

    def __init__(self, head: bool = False, half: bool = True) -> None:
        super().__init__(half)
        self.head = head

    def moving(self, model: nn.Module) -> list[str]:
        """See :meth:`Adapter.moving`."""
        names = [
            f"{prefix}.{name}" if prefix else name
            for prefix, module in model.named_modules()
            if isinstance(module, _NORMS)
            for name, _ in module.named_parameters(recurse=False)
        ]
        if not names:
            raise ConfigError("the adapter norm found no normalisation layer with a scale and shift in this model; use another adapter.")
        if self.head:
            names += [name for name, _ in model.named_parameters() if name.startswith("head.") and name not in names]
        return names
