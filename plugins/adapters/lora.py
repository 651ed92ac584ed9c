"""Low-rank changes of linear layers (Hu et al., 2022): much of a full fit's plasticity in a few dozen kilobytes."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from personalize.adapters import Adapter
from personalize.errors import ConfigError, ProfileError

TARGETS = ("landmark_project.*", "shift_project.*", "crop_project.*", "fuse.*", "head.*")
_KEY = "lora/"


class LoRA(Adapter):
    """Low-rank changes of the projections, fuse and head: plastic, and a profile of less than a hundred kilobytes.

    A weight W becomes W + alpha/rank * B A; W is frozen, B starts at zero (Hu et al., 2022, eq. 3).

    The low-rank path is added by a forward hook, so the base keeps its names. A delta holds A and scaled B; on a fresh base ``restore``
    merges them into the weights, and prediction costs nothing extra.

    Args:
        rank: of the change, at least 1.
        alpha: scale; None: the rank, that is a factor of 1.
        targets: name patterns of modules; None: the landmark, shift and crop projections, fuse and head.
        backbone: the 1x1 convolutions of the backbone too.
        also: name patterns of further parameters of the base that move in full (``head.first_cut``, ``*.bias``); None: none.
        half: store as fp16.
        seed: of A's starting values, the same on every rank.
    """

    def __init__(
        self,
        rank: int = 4,
        alpha: float | None = None,
        targets: list[str] | None = None,
        backbone: bool = False,
        also: list[str] | None = None,
        half: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(half)
        if rank < 1:
            raise ConfigError(f"rank of lora is {rank}; it must be at least 1.")
        self.rank = rank
        self.scale = (rank if alpha is None else alpha) / rank
        if not self.scale > 0:
            raise ConfigError(f"alpha of lora is {alpha:g}; it must be above 0.")
        self.targets = list(TARGETS if targets is None else targets)
        if backbone:
            self.targets.append("backbone.*")
        self.also = list(also or [])
        self.seed = seed

    def moving(self, model: nn.Module) -> list[str]:
        """See :meth:`Adapter.moving`."""
        names = [name for name, _ in model.named_parameters()]
        for pattern in self.also:
            if not any(fnmatch(name, pattern) for name in names):
                raise ConfigError(f"'{pattern}' in also of lora matches no parameter of the model; its last are: {', '.join(names[-4:])}.")
        return [name for name in names if any(fnmatch(name, pattern) for pattern in self.also)]

    def insert(self, model: nn.Module) -> list[nn.Parameter]:
        """See :meth:`Adapter.insert`."""
        candidates = {name: module for name, module in model.named_modules() if _fits(module)}
        chosen = {name: module for name, module in candidates.items() if any(fnmatch(name, pattern) for pattern in self.targets)}
        if not chosen:
            raise ConfigError(
                f"targets of lora match no linear layer or 1x1 convolution; there is: {', '.join(list(candidates)[:12]) or 'none'}."
            )
        generator = torch.Generator().manual_seed(self.seed)
        parameters: list[nn.Parameter] = []
        for module in chosen.values():
            path = LowRank(module, self.rank, self.scale, generator)
            module.add_module("lora", path)
            module.register_forward_hook(_add_low_rank)
            parameters += [path.a, path.b]
        return parameters

    def own_delta(self, model: nn.Module) -> dict[str, Tensor]:
        """See :meth:`Adapter.own_delta`."""
        delta: dict[str, Tensor] = {}
        for name, path in _paths(model).items():
            a, b = path.a.detach().cpu().clone(), (path.b.detach() * path.scale).cpu().clone()
            if not b.any():
                continue
            halves = (a.half(), b.half())
            if self.half and all(bool(torch.isfinite(h).all()) for h in halves):
                a, b = halves
            delta[f"{_KEY}{name}.a"], delta[f"{_KEY}{name}.b"] = a, b
        return delta

    def own_restore(self, model: nn.Module, delta: Mapping[str, Tensor], applied: bool) -> None:
        """See :meth:`Adapter.own_restore`."""
        modules = dict(model.named_modules())
        changes: dict[str, tuple[Tensor, Tensor]] = {}
        for name in dict.fromkeys(key.removeprefix(_KEY)[:-2] for key in delta):
            a, b, module = delta.get(f"{_KEY}{name}.a"), delta.get(f"{_KEY}{name}.b"), modules.get(name)
            if a is None or b is None:
                raise ProfileError(f"the profile holds half of a low-rank change, of '{name}', or keys of another adapter than lora.")
            if module is None or not _fits(module) or (b.shape[0], a.shape[-1]) != _sides(module) or a.shape[0] != b.shape[-1]:
                raise ProfileError(
                    f"the profile changes '{name}', which this base model does not have in that shape; it belongs to another base."
                )
            changes[name] = (a.float(), b.float())
        with torch.no_grad():
            if not applied:
                for name, (a, b) in changes.items():
                    weight: Tensor = modules[name].weight  # type: ignore[assignment]
                    weight += (b @ a).to(weight.device, weight.dtype).view_as(weight)
                return
            paths = _paths(model)
            for name, (a, _) in changes.items():
                if name not in paths or paths[name].a.shape != a.shape:
                    raise ProfileError(
                        f"the profile changes '{name}' with rank {a.shape[0]}, this adapter does not; "
                        "use the options that it was written with."
                    )
            for name, path in paths.items():
                if name in changes:
                    path.a.copy_(changes[name][0])
                    path.b.copy_(changes[name][1] / path.scale)
                else:
                    path.b.zero_()


class LowRank(nn.Module):
    """scale * B A x for the last axis of a linear layer's input, or the channels of a 1x1 convolution's."""

    def __init__(self, module: nn.Module, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = _sides(module)
        weight: Tensor = module.weight  # type: ignore[assignment]
        self.scale = scale
        self.stride = module.stride if isinstance(module, nn.Conv2d) else None
        start = (torch.rand(rank, columns, generator=generator) * 2 - 1) * columns**-0.5
        self.a = nn.Parameter(start.to(weight.device, weight.dtype))
        self.b = nn.Parameter(torch.zeros(rows, rank, device=weight.device, dtype=weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), or (B, in, H, W) to (B, out, H', W')."""
        if self.stride is None:
            return F.linear(F.linear(x, self.a), self.b) * self.scale
        return F.conv2d(F.conv2d(x, self.a[:, :, None, None], stride=self.stride), self.b[:, :, None, None]) * self.scale


def _add_low_rank(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + module.lora(inputs[0])  # type: ignore[operator]


def _fits(module: nn.Module) -> bool:
    """Linear, or a 1x1 convolution without groups and padding; subclasses may pad by themselves, so the kernel is asked, not the name."""
    if isinstance(module, nn.Conv2d):
        return tuple(module.kernel_size) == (1, 1) and module.groups == 1 and module.padding in (0, (0, 0), "valid")
    return isinstance(module, nn.Linear)


def _sides(module: nn.Module) -> tuple[int, int]:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return int(weight.shape[0]), int(weight.shape[1])


def _paths(model: nn.Module) -> dict[str, LowRank]:
    return {name: path for name, m in model.named_modules() if isinstance(path := getattr(m, "lora", None), LowRank)}
