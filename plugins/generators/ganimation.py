"""GANimation; see ``pix2pix`` for what the anchors share, ``_gan`` for the networks, ``_ganimation_fit`` for the synthetic world."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from personalize import ui
from personalize.aus import AUS
from personalize.errors import ConfigError
from personalize.generators import Request
from personalize_plugins.generators import _gan
from personalize_plugins.generators.mesh_warp import _AU25, _AU26, _Draft, _Source
from personalize_plugins.generators.pix2pix import ClipGAN, Frames, adams, at_rest, check_positive, descend, device, to_image, to_tensor

CRITIC_STEPS = 5
"""Steps of the critic for one of the generator (Pumarola et al., 2018, implementation details)."""
Generator = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Critic = Callable[[Tensor], tuple[Tensor, Tensor]]
"""The networks, as they are trained."""
NOISE = 0.1
"""Wanted AUs are those of another frame plus up to this much either way, on 0..1 (the authors' own code)."""


class GANimation(ClipGAN):
    """GANimation (Pumarola et al., ECCV 2018): a colour and an attention mask from AUs, trained on the clip's own frames.

    WGAN-GP critic (weight 10) with an AU regression head (4000), attention smoothness and norm (0.1, total variation 1e-4), cycle (10);
    Adam 1e-4 with beta1 0.5, five steps of the critic for one of the generator (section 4.2 and implementation details). AUs are what the
    base model reads above the person's resting face, over 5; wanted AUs in training are those of another frame with a little noise. It has
    no landmarks: it cannot turn a head, AU25 and AU26 of a picture are what was asked for, and AUs that the clip does not show it has never
    seen, unless it starts from weights of many people. The paper trains on 200 000 pictures in batches of 25; so does, on the synthetic
    world, ``personalize generator fit --recipe ganimation``. ``steps`` bounds the time on the clip.

    Args:
        size: side of the pictures in pixels: 64, 128, 256 or 512; others are rounded down to these.
        steps: batches of the clip to train the critic with; the generator learns in every fifth. 0, with weights: none.
        batch_size: pictures in a batch.
        lr: learning rate of both networks.
        ngf: width of both networks; the paper has 64.
        blocks: residual blocks of the generator.
        au_weight: of the AU regression. cycle_weight: of the way back to the input. attention_weight: of the mask's norm and smoothness.
        weights: what ``personalize generator fit --recipe ganimation`` wrote, to start from; size, ngf and blocks must be those of it.
        max_pose_error: degrees by which a frame's pitch and yaw may differ from the pose asked for; requests further off are refused.
        bfloat16: train the networks in bfloat16, faster on processors that know it (AVX512-BF16, AMX; GPUs) and slower on others.
    """

    name = "ganimation"

    def __init__(
        self,
        size: int = 128,
        steps: int = 1500,
        batch_size: int = 4,
        lr: float = 1e-4,
        ngf: int = 32,
        blocks: int = 6,
        au_weight: float = 4000.0,
        cycle_weight: float = 10.0,
        attention_weight: float = 0.1,
        max_pose_error: float = 5.0,
        weights: str = "",
        bfloat16: bool = False,
    ) -> None:
        if not 0 <= max_pose_error <= 45:
            raise ConfigError(f"generator option max_pose_error must lie in 0-45 degrees, got {max_pose_error:g}")
        super().__init__(size, max_pose_error)
        check_positive(batch_size=batch_size, lr=lr, ngf=ngf, blocks=blocks)
        if steps < CRITIC_STEPS and not (weights and steps == 0):
            raise ConfigError(f"generator option steps must be at least {CRITIC_STEPS}, got {steps}: the generator learns in every fifth")
        self.steps, self.batch_size, self.lr, self.ngf, self.blocks = steps, batch_size, lr, ngf, blocks
        self.au_weight, self.cycle_weight, self.attention_weight, self.bfloat16 = au_weight, cycle_weight, attention_weight, bfloat16
        self.network = {"size": self.size, "ngf": ngf, "blocks": blocks}
        self.weights = Path(weights) if weights else None
        if self.weights is not None:
            self._check_weights(self.weights)

    @property
    def learns_from_base(self) -> bool:
        """Where it trains on the clip: the AUs of its frames are what the base reads in them."""
        return self.steps > 0

    @staticmethod
    def pretrain(recipe: dict[str, Any], folder: Path, data_folder: Path | None = None) -> Path:
        """Train on the synthetic world; see :mod:`._ganimation_fit`."""
        from personalize_plugins.generators import _ganimation_fit

        return _ganimation_fit.pretrain(recipe, folder, data_folder)

    def content(self) -> str:
        """Source and weights."""
        return super().content() + hashlib.sha256(self.weights.read_bytes() if self.weights else b"").hexdigest()

    def _check_weights(self, path: Path) -> None:
        try:
            card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            model, aus = dict(card["model"]), list(card["aus"])
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise ConfigError(f"the weights of ganimation at {path} have no card that can be read: train them anew.") from problem
        other = [f"generator.options.{key}={value}" for key, value in model.items() if self.network.get(key) != value]
        if other:
            raise ConfigError(f"the weights of ganimation at {path} are of another network: give {' '.join(other)}.")
        if aus != list(AUS) or not path.is_file():
            raise ConfigError(f"the weights of ganimation at {path} are missing or know other AUs: train them anew.")

    def networks(self) -> tuple[_gan.MaskedGenerator, _gan.Critic]:
        """Generator and critic, with random weights or those that were given."""
        net, critic = _gan.MaskedGenerator(len(AUS), self.ngf, self.blocks), _gan.Critic(len(AUS), self.size, self.ngf)
        if self.weights is not None:
            stored = {k: v.float() for k, v in load_file(self.weights).items()}
            for name, module in (("net.", net), ("critic.", critic)):
                module.load_state_dict({k.removeprefix(name): v for k, v in stored.items() if k.startswith(name)})
        return net, critic

    def _fit(self, frames: Frames, rng: np.random.Generator) -> None:
        place = device()
        net, critic = (network.to(place) for network in self.networks())
        ours, theirs = adams(self.lr, net, critic)
        draw, look = _gan.Mixed(net, self.bfloat16), _gan.Mixed(critic, self.bfloat16)
        for step in ui.progress(range(self.steps), self.steps, f"Training {self.name}"):
            index = rng.integers(0, len(frames.images), (2, self.batch_size))
            real, aus = to_tensor(frames.images[index[0]]).to(place), torch.from_numpy(frames.aus[index[0]]).to(place)
            noise = rng.uniform(-NOISE, NOISE, (self.batch_size, len(AUS)))
            wanted = torch.from_numpy(np.clip(frames.aus[index[1]] + noise, 0, 1).astype(np.float32)).to(place)
            share = torch.from_numpy(rng.uniform(0, 1, self.batch_size).astype(np.float32)).to(place)
            turn = (step + 1) % CRITIC_STEPS == 0  # the generator's: what it made for the critic is what it learns from
            with torch.set_grad_enabled(turn):
                there = draw(real, wanted)
            descend(theirs, critic_loss(look, real, there[0], aus, share, self.au_weight))
            if turn:
                with at_rest(critic):
                    weights = self.au_weight, self.cycle_weight, self.attention_weight
                    descend(ours, generator_loss(draw, look, there, real, aus, wanted, *weights))
        self._net = net.requires_grad_(False)

    def _moved(self, source: _Source, strength: np.ndarray, jaw: float, part: float, turn: tuple[float, float]) -> np.ndarray:
        """Nothing is moved: the network has no landmarks."""
        return source.points

    @staticmethod
    def _mouth(delta: np.ndarray, asked: np.ndarray) -> tuple[float, float, float, float]:
        """No jaw and no lips are moved: there is no mesh."""
        return 0.0, 0.0, 0.0, 0.0

    def _draw(self, source: _Source, points: np.ndarray, aus: np.ndarray) -> np.ndarray:
        x = to_tensor(source.image[None]).to(device())
        return to_image(self._net(x, torch.from_numpy(aus)[None].to(device()))[0][0])

    def _draft(self, request: Request) -> _Draft | None:
        draft = super()._draft(request)
        if draft is not None:
            draft.sample.info |= {"pitch_change": 0.0, "yaw_change": 0.0}  # the pose is the source frame's
            draft.sample.target[[_AU25, _AU26]] = request.aus.get(25, 0.0), request.aus.get(26, 0.0)  # nothing measures the mouth
        return draft


def critic_loss(
    critic: Critic, real: Tensor, made: Tensor, aus: Tensor, share: Tensor, au_weight: float = 4000.0, penalty_weight: float = 10.0
) -> Tensor:
    """Image adversarial and conditional expression loss of Pumarola et al. (2018), section 4.2, for the critic, to be made small.

    ``E[D(made)] - E[D(real)] + penalty_weight * penalty + au_weight * (mean squared error of the AUs read in the real pictures)``.
    real, made: (B, 3, S, S); aus: (B, K) 0..1; share: (B,) 0..1, see :func:`_gan.gradient_penalty`.
    """
    (score, other), (read, _) = (found.chunk(2) for found in critic(torch.cat([real, made.detach()])))
    distance = other.mean() - score.mean()
    penalty = _gan.gradient_penalty(lambda x: critic(x)[0], real, made, share)
    return distance + penalty_weight * penalty + au_weight * functional.mse_loss(read, aus)


def generator_loss(
    net: Generator,
    critic: Critic,
    there: tuple[Tensor, Tensor, Tensor],
    real: Tensor,
    aus: Tensor,
    wanted: Tensor,
    au_weight: float = 4000.0,
    cycle_weight: float = 10.0,
    attention_weight: float = 0.1,
) -> Tensor:
    """The full loss of Pumarola et al. (2018), section 4.2, for the generator: there with the wanted AUs and back with the true ones.

    ``-E[D(made)] + au_weight * AU error of made + attention_weight * (masks there and back) + cycle_weight * |back - real|``.
    there: what ``net`` gives for real and wanted, with its gradient.
    """
    made, _, mask = there
    back, _, again = net(made, aus)
    score, read = critic(made)
    masks = _gan.attention_loss(mask) + _gan.attention_loss(again)
    loss = au_weight * functional.mse_loss(read, wanted) - score.mean()
    return loss + attention_weight * masks + cycle_weight * functional.l1_loss(back, real)
