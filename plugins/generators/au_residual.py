"""mesh_warp's pictures, corrected by a network that was trained on the synthetic world.

Skin that bulges, folds and shines is more than a formula: the network (``_residual``) adds what pixels do beside moving, AU by AU, inside
each AU's support and in proportion to its change. It needs no training for a person, so that one photograph is enough, and can be tuned to
one where a clip shows them moving.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

import personalize
from personalize import ui
from personalize.ahead import Prefetch, torch_threads
from personalize.aus import AUS
from personalize.errors import ConfigError
from personalize.generators import Request, Sample
from personalize.identity import Identity
from personalize_plugins.generators import _residual
from personalize_plugins.generators.mesh_warp import SHOWN, MeshWarp, _Draft, _Source

WEIGHTS = Path(personalize.__file__).parent / "assets" / "au_residual.safetensors"


@cache
def load_net(weights: Path) -> _residual.ResidualNet:
    """The network at a path (NAME.safetensors with its card NAME.json beside it), in eval mode. Raises ConfigError in one line."""
    try:
        card = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
        net = _residual.ResidualNet(**card["model"])
        net.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as problem:
        reason = ui.one_line(problem)[:120]
        raise ConfigError(f"the weights of au_residual at {weights} cannot be read ({reason}): train them anew.") from problem
    if card["aus"] != list(AUS):
        raise ConfigError(f"the weights of au_residual at {weights} know other AUs than this version of personalize: train them anew.")
    return net.eval().requires_grad_(False)


class AuResidual(MeshWarp):
    """Warped frames of the person, corrected by a pre-trained network of AU-conditioned shading and flow.

    Args:
        size: side of the pictures in pixels; the network works at 160 and its corrections are enlarged.
        max_yaw_change, shading, max_intensity, gain_spread, sources: as mesh_warp's.
        tune_steps: steps of tuning the network's last layers to the person on pairs of the clip's own frames; 0: none.
        weights: another network than the one that ships, as ``personalize generator fit`` writes it.
    """

    def __init__(
        self,
        size: int = 160,
        max_yaw_change: float = 15.0,
        shading: bool = True,
        max_intensity: float = 5.0,
        gain_spread: float = 0.12,
        sources: int = 24,
        tune_steps: int = 0,
        weights: str = "",
    ) -> None:
        super().__init__(size, max_yaw_change, shading, max_intensity, gain_spread, sources)
        if tune_steps < 0:
            raise ConfigError(f"generator option tune_steps must not be negative, got {tune_steps}")
        self.tune_steps = tune_steps
        self.weights = Path(weights) if weights else WEIGHTS
        if not self.weights.is_file():
            raise ConfigError(f"no weights of au_residual at {self.weights}: name the .safetensors that 'personalize generator fit' wrote.")
        self._small: MeshWarp | None = None

    @property
    def learns_from_base(self) -> bool:
        """Where it is tuned to the person: what their frames show is what the base reads in them."""
        return self.tune_steps > 0

    @staticmethod
    def pretrain(recipe: dict[str, Any], folder: Path, data_folder: Path | None = None) -> Path:
        """Train the network on the synthetic world; see :mod:`._residual_fit`."""
        from personalize_plugins.generators import _residual_fit

        return _residual_fit.pretrain(recipe, folder, data_folder)

    def content(self) -> str:
        """Source and weights."""
        return super().content() + hashlib.sha256(self.weights.read_bytes() if self.weights.is_file() else b"").hexdigest()

    def prepare(self, identity: Identity, seed: int) -> None:
        """As mesh_warp, then tuning where it is asked for."""
        super().prepare(identity, seed)
        self._net = load_net(self.weights)
        self._small_sources: dict[int, _Source] = {}
        if not self._sources:  # nothing to warp
            return
        if self.size != _residual.SIDE:
            # The network's view of the same frames.
            self._small = MeshWarp(_residual.SIDE, shading=self.shading)
            self._small.prepare(identity, seed)
            self._small._crease, self._small._relief, self._small._aperture = self._crease, self._relief, self._aperture
            self._small_sources = {s.index: self._small._source(identity, s.index, s.shown) for s in self._sources}
        if self.tune_steps:
            self._tune(identity, seed)

    def _inputs(
        self, source: _Source, strength: np.ndarray, jaw: float, part: float, turn: tuple[float, float]
    ) -> tuple[np.ndarray, dict[str, Tensor]]:
        """The guide, (S, S, 3) uint8, and the network's inputs as a batch of one."""
        drawn = self.draw(source, strength, jaw, part, turn)
        small = drawn
        if self._small is not None:
            small = self._small.draw(self._small_sources[source.index], strength, jaw, part, turn)
        changes, maps = _residual.conditions(small, strength)
        batch: dict[str, Any] = {
            "guide": small.image.transpose(2, 0, 1).astype(np.float32) / 255,
            "ratio": np.log(small.ratio)[None],
            "changes": changes,
            "maps": maps,
            "said": _residual.about(strength, source.light, turn, jaw, part),
        }
        return drawn.image, {k: torch.from_numpy(v)[None] for k, v in batch.items()}

    def generate(self, requests: list[Request]) -> list[Sample | None]:
        """As mesh_warp's; the next pictures are warped while the network corrects one."""
        samples: list[Sample | None] = []
        # Small pictures are convolved faster by one thread beside the one that warps than by several.
        with Prefetch(map(self._guided, requests), depth=4) as ahead, torch_threads(1), torch.inference_mode():
            for guided in ahead:
                if guided is not None:
                    draft, guide, batch = guided
                    samples.append(draft.finished(guide if batch is None else _residual.correct_picture(self._net, guide, batch)))
                else:
                    samples.append(None)
        return samples

    def _guided(self, request: Request) -> tuple[_Draft, np.ndarray, dict[str, Tensor] | None] | None:
        """What answers a request, its guide and the network's inputs, None where it has nothing to correct."""
        d = self._draft(request)
        if d is None:
            return None
        if not d.strength.any() and d.jaw == 0 and d.part == 0:
            return d, self.render(d.source, d.strength, d.jaw, d.part, d.turn, d.rng), None
        return d, *self._inputs(d.source, d.strength, d.jaw, d.part, d.turn)

    def _tune(self, identity: Identity, seed: int, batch_size: int = 4, lr: float = 3e-4, hold: float = 0.02) -> None:
        """Tune FiLM, the last block and the heads on pairs of the clip's frames: a calm one, and one in nearly its pose that shows more.

        What the frame shows is what the base reads in it above the person's rest, so the tuned network is held to the shipped one
        (L2-SP, weight ``hold``).
        """
        shown = np.clip(identity.intensity - self._resting(identity), 0, None)
        pairs = []
        for i in self._usable(identity):
            o = identity.observations[i]
            if o.quality < 0.2:
                continue
            turned = o.upright[:2]
            near = [s for s in self._sources if np.abs(s.angles - turned).max() < np.radians(4)]
            delta = np.where(shown[i] >= SHOWN, shown[i], 0)
            if near and delta.any():
                pairs.append((near[int(np.argmin([s.activity for s in near]))], i, delta))
        if len(pairs) < 8:
            return
        rng = np.random.default_rng([seed, 163])
        inputs, targets = [], []
        for source, i, delta in [pairs[j] for j in rng.permutation(len(pairs))[:64]]:
            change = delta - np.where(source.shown >= SHOWN, source.shown, 0.0)
            jaw, part, _, _ = self._mouth(change, np.ones(len(AUS), bool))
            guide, batch = self._inputs(source, np.stack([change, change]), jaw, part, (0.0, 0.0))
            view = identity.observations[i].view
            assert view is not None
            inputs.append(batch)
            seen = cv2.resize(view, (_residual.SIDE, _residual.SIDE), interpolation=cv2.INTER_AREA)
            targets.append(torch.from_numpy(seen.transpose(2, 0, 1).astype(np.float32) / 255))
        net = _residual.ResidualNet(**self._net.config)  # type: ignore[arg-type]
        net.load_state_dict(self._net.state_dict())
        moving = {n: p for n, p in net.named_parameters() if "film" in n or n.startswith(("up1", "heads", "detail"))}
        for name, p in net.named_parameters():
            p.requires_grad_(name in moving)
        start = {n: p.detach().clone() for n, p in moving.items()}
        optimizer = torch.optim.Adam(moving.values(), lr)
        for _ in ui.progress(range(self.tune_steps), self.tune_steps, "Tuning the generator"):
            rows = rng.integers(0, len(inputs), batch_size)
            batch = {k: torch.cat([inputs[j][k] for j in rows]) for k in inputs[0]}
            batch["target"] = torch.stack([targets[j] for j in rows])
            made = _residual.correct(batch["guide"], net(*(batch[k] for k in ("guide", "ratio", "changes", "maps", "said"))))
            change = F.interpolate(batch["changes"].abs().sum(1, keepdim=True).clamp(0, 1), made.shape[-2:], mode="bilinear")
            loss = (change * (made - batch["target"]).abs()).sum() / change.sum().clamp_min(1)
            loss = loss + hold * sum((p - start[n]).square().sum() for n, p in moving.items())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self._net = net.eval().requires_grad_(False)
