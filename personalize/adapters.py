"""The base class of adapters: which parameters move for a person, and how what moved is kept.

    parameters = adapter.apply(model)      # freezes the base, makes what moves trainable
    adapter.train_mode(model)              # at the start of each training epoch, after model.train()
    delta = adapter.delta(model)           # small, on the CPU; goes into the profile
    Adapter(...).restore(fresh, delta)     # any later day, on a fresh base: the same outputs

A delta maps keys to tensors. ``difference/<name>`` is added to a parameter of the base, ``value/<name>`` replaces a parameter or buffer;
adapters may add kinds of their own. Reading a delta needs no options: its keys and shapes say all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .errors import ConfigError, ProfileError

DIFFERENCE = "difference/"
VALUE = "value/"


class Adapter(ABC):
    """Base class of adapters. The signature of ``__init__`` is the plug-in's configuration.

    A simple adapter only says in :meth:`moving` which parameters move. One that inserts modules overrides :meth:`insert`,
    :meth:`own_delta` and :meth:`own_restore` as well.

    Args:
        half: keep differences as fp16: half the size, each off by at most 2^-11 of itself or 3e-8. Otherwise what
            changed is kept exactly.
    """

    adapts_batchnorm = False
    """Whether the statistics that BatchNorm layers share between people may move."""

    def __init__(self, half: bool = True) -> None:
        self.half = half
        self._base: dict[str, Tensor] = {}
        self._model: nn.Module | None = None

    # What a plug-in writes

    @abstractmethod
    def moving(self, model: nn.Module) -> list[str]:
        """Names of the base's own parameters that move. Raises ConfigError, with what there is, where the model has none such."""

    def insert(self, model: nn.Module) -> list[nn.Parameter]:
        """Insert modules; returns their parameters. The outputs of the model must stay as they were."""
        return []

    def own_delta(self, model: nn.Module) -> dict[str, Tensor]:
        """What inserted modules learned, on the CPU, under a prefix of the plug-in."""
        return {}

    def own_restore(self, model: nn.Module, delta: Mapping[str, Tensor], applied: bool) -> None:
        """Put back :meth:`own_delta`: into the inserted modules where ``applied``, else into a fresh base.

        Given the keys that are of neither kind of the base class; a key or shape that does not fit is a ProfileError.
        """
        if delta:
            raise ProfileError(
                f"the profile holds '{next(iter(delta))}', which the adapter {type(self).__name__} does not know; "
                "use the adapter that wrote it."
            )

    # What the framework calls

    def apply(self, model: nn.Module) -> list[nn.Parameter]:
        """Freeze everything, make what moves trainable, insert what is to be inserted; returns the trainable parameters.

        Once for each model; the same adapter may be applied to another model afterwards and then speaks of that one.
        """
        if self._model is model:
            raise ConfigError(f"the adapter {type(self).__name__} was already applied to this model.")
        names = set(self.moving(model))
        own = dict(model.named_parameters())
        buffers = {name: b for name, b in model.named_buffers() if self.adapts_batchnorm and _is_statistic(model, name)}
        for name, p in own.items():
            p.requires_grad_(name in names)
        self._base = {
            name: value.detach().to("cpu", copy=True)
            for name, value in [*own.items(), *buffers.items()]
            if name in names or name in buffers
        }
        inserted = self.insert(model)
        self._model = model
        parameters = [p for name, p in own.items() if name in names] + inserted
        if not parameters:
            raise ConfigError(f"the adapter {type(self).__name__} moves nothing in this model.")
        return parameters

    def delta(self, model: nn.Module) -> dict[str, Tensor]:
        """What changed since :meth:`apply`, as contiguous CPU tensors; what did not change is left out."""
        self._check_applied(model)
        now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        delta: dict[str, Tensor] = {}
        for name, base in self._base.items():
            value = now[name].detach().to("cpu", copy=True).contiguous()
            if torch.equal(value, base):
                continue
            small = (value - base).half() if self.half and isinstance(now[name], nn.Parameter) else None
            if small is not None and bool(torch.isfinite(small).all()):
                delta[DIFFERENCE + name] = small
            else:
                delta[VALUE + name] = value
        return {**delta, **self.own_delta(model)}

    def restore(self, model: nn.Module, delta: Mapping[str, Tensor]) -> None:
        """Put a delta on a fresh base, in place; or, on the model that this adapter was applied to, go back to that delta.

        Raises ProfileError, before anything is changed, where a key or a shape does not fit the model.
        """
        applied = self._model is model
        now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        own = {key: value for key, value in delta.items() if not key.startswith((DIFFERENCE, VALUE))}
        writes: dict[str, Tensor] = dict(self._base) if applied else {}
        for key, value in delta.items():
            if key in own:
                continue
            kind, name = key.split("/", 1)
            if name not in now or now[name].shape != value.shape:
                has = f"has it as {tuple(now[name].shape)}" if name in now else "has no such part"
                raise ProfileError(
                    f"the profile changes '{name}' {tuple(value.shape)}, but this base model {has}; it belongs to another base."
                )
            start = self._base.get(name, now[name]) if applied else now[name]
            writes[name] = value if kind + "/" == VALUE else start.detach() + value.to(start.device, start.dtype)
        # What changes in full first: an adapter's own way of a change may be one to that very weight.
        before = {name: now[name].detach().clone() for name in writes}
        try:
            self._write(now, writes)
            self.own_restore(model, own, applied)
        except ProfileError:
            self._write(now, before)
            raise

    @staticmethod
    @torch.no_grad()
    def _write(there: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            there[name].copy_(value)

    def train_mode(self, model: nn.Module) -> None:
        """Training mode for what moves. BatchNorm keeps its statistics unless the adapter moves them, and a part none of whose parameters
        moves runs as in prediction. Call it after anything that called ``model.train()``.
        """
        model.train()
        for module in model.modules():
            if isinstance(module, _NormBase) and module.track_running_stats:
                module.train(self.adapts_batchnorm)
            elif not self.adapts_batchnorm:
                parameters = list(module.parameters())
                if parameters and not any(p.requires_grad for p in parameters):
                    module.eval()

    def _check_applied(self, model: nn.Module) -> None:
        if self._model is not model:
            raise ConfigError(f"the adapter {type(self).__name__} was not applied to this model; call apply(model) first.")


def size(delta: Mapping[str, Tensor]) -> int:
    """Bytes of a delta's tensors."""
    return sum(value.numel() * value.element_size() for value in delta.values())


def child(model: nn.Module, name: str, adapter: str) -> nn.Module:
    """A direct part of the model. Raises ConfigError where it has none of that name."""
    parts = dict(model.named_children())
    if name not in parts:
        raise ConfigError(f"the adapter {adapter} needs a part '{name}', the model has: {', '.join(parts) or 'none'}.")
    return parts[name]


def _is_statistic(model: nn.Module, name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    return isinstance(model.get_submodule(owner), _NormBase) and leaf in ("running_mean", "running_var")
