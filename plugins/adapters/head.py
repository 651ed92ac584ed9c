"""The last layers only: the fewest parameters that can move each AU by itself."""

from __future__ import annotations

from torch import nn

from personalize.adapters import Adapter, child
from personalize.errors import ConfigError


class Head(Adapter):
    """Moves the head only and, where asked, the last layers before it.

    Args:
        fuse_layers: how many of the last layers of ``fuse`` (those with parameters) move too.
        half: store differences as fp16.
    """

    def __init__(self, fuse_layers: int = 0, half: bool = True) -> None:
        super().__init__(half)
        if fuse_layers < 0:
            raise ConfigError(f"fuse_layers of head is {fuse_layers}; it must be 0 or more.")
        self.fuse_layers = fuse_layers

    def moving(self, model: nn.Module) -> list[str]:
        """See :meth:`Adapter.moving`."""
        names = [f"head.{name}" for name, _ in child(model, "head", "head").named_parameters()]
        if self.fuse_layers:
            layers = [
                (name, layer) for name, layer in child(model, "fuse", "head").named_children() if any(True for _ in layer.parameters())
            ]
            if self.fuse_layers > len(layers):
                raise ConfigError(f"fuse_layers of head is {self.fuse_layers}; fuse has {len(layers)} layers with parameters.")
            names += [f"fuse.{name}.{leaf}" for name, layer in layers[-self.fuse_layers :] for leaf, _ in layer.named_parameters()]
        return names
