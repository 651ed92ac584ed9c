"""pix2pixHD on landmark maps, trained on the clip's own frames. What it shares with pix2pix is in ``pix2pix``, the networks in ``_gan``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from personalize import ui
from personalize.errors import ConfigError
from personalize_plugins.generators import _gan
from personalize_plugins.generators.pix2pix import Frames, LandmarkGAN, adams, at_rest, both, check_positive, descend, device

Judges = Callable[[Tensor], list[_gan.Features]]
"""Discriminators on several scales, as they are trained."""


class Pix2PixHD(LandmarkGAN):
    """pix2pixHD on landmark maps, trained on the clip's own frames (Wang et al., CVPR 2018): coarse to fine.

    The global generator G1 learns at half the size first (half of the steps), then the local enhancer G2 is put around it and both learn
    together. Discriminators of 70x70 patches on several scales, feature matching with weight 10 (all section 3.2), least-squares GAN loss,
    Adam 2e-4 with beta1 0.5, batch size 1 (section 4).

    Unlike the paper: no perceptual loss of VGG (optional there too; nothing is downloaded here), no instance maps or feature encoder (a
    landmark map has one instance), G1 halves its input three times instead of four (pictures of 128 pixels, not 1024x512), two scales
    instead of three. ``steps`` bounds the time.

    Args:
        size: side of the pictures in pixels: 64, 128, 256 or 512; others are rounded down to these.
        steps: pictures to train with; the first half trains G1 alone.
        lr: learning rate of all networks.
        feature_weight: weight of feature matching beside the GAN loss of 1.
        ngf: width of G2, half of G1's and of the discriminators'; the paper has 32.
        blocks: residual blocks of G1.
        scales: discriminators, each at half the size of the one before.
        au_maps: put AU maps beside the landmark map, as pix2pix_au does.
        max_yaw_change: degrees that a frame may be turned, pitch and yaw alike; requests further from every frame are refused.
        bfloat16: train the networks in bfloat16, faster on processors that know it (AVX512-BF16, AMX; GPUs) and slower on others.
    """

    name = "pix2pixhd"

    def __init__(
        self,
        size: int = 128,
        steps: int = 3000,
        lr: float = 2e-4,
        feature_weight: float = 10.0,
        ngf: int = 32,
        blocks: int = 9,
        scales: int = 2,
        au_maps: bool = False,
        max_yaw_change: float = 15.0,
        bfloat16: bool = False,
    ) -> None:
        super().__init__(size, max_yaw_change)
        check_positive(lr=lr, ngf=ngf, blocks=blocks)
        if steps < 2:
            raise ConfigError(f"generator option steps must be at least 2, got {steps}")
        if feature_weight < 0:
            raise ConfigError(f"generator option feature_weight must not be negative, got {feature_weight:g}")
        if not 2 <= scales <= 3:
            raise ConfigError(f"generator option scales must be 2 or 3, got {scales}")
        self.steps, self.lr, self.feature_weight, self.ngf = steps, lr, feature_weight, ngf
        self.blocks, self.scales, self.au_maps, self.bfloat16 = blocks, scales, au_maps, bfloat16

    def _fit(self, frames: Frames, rng: np.random.Generator) -> None:
        coarse = _gan.GlobalGenerator(self.channels, 3, 2 * self.ngf, 3, self.blocks).to(device())
        first = self.steps // 2
        with ui.progress(None, self.steps, f"Training {self.name}") as bar:
            self._learn(coarse, frames, first, rng, bar, half=True)
            whole = _gan.CoarseToFine(coarse, self.channels, 3, self.ngf).to(device())
            self._learn(whole, frames, self.steps - first, rng, bar)
        self._net = whole.requires_grad_(False)

    def _learn(self, net: nn.Module, frames: Frames, steps: int, rng: np.random.Generator, bar: ui.Progress, half: bool = False) -> None:
        """Train ``net`` for some steps against discriminators of its own, at half the size or at the whole."""
        judge = _gan.MultiscalePatchGAN(self.channels + 3, 2 * self.ngf, self.scales).to(device())
        ours, theirs = adams(self.lr, net, judge)
        draw, look = _gan.Mixed(net, self.bfloat16), _gan.Mixed(judge, self.bfloat16)
        for given, real in self._pairs(frames, steps, rng):
            if half:
                given, real = _gan.halve(given), _gan.halve(real)
            made = draw(given)
            descend(theirs, discriminator_loss(look, given, real, made))
            with at_rest(judge):
                descend(ours, generator_loss(look, given, real, made, self.feature_weight))
            bar.advance()


def discriminator_loss(judge: Judges, given: Tensor, real: Tensor, made: Tensor) -> Tensor:
    """Least squares, half for real and half for made, summed over scales (Wang et al., 2018, section 3.2). All (B, C, H, W)."""
    logits = [found[-1].chunk(2) for found in judge(both(given, real, made))]
    terms = [_gan.gan_loss(part, wanted, squares=True) for pair in logits for part, wanted in zip(pair, (True, False), strict=True)]
    return 0.5 * torch.stack(terms).sum()


def generator_loss(judge: Judges, given: Tensor, real: Tensor, made: Tensor, feature_weight: float = 10.0) -> Tensor:
    """Wang et al. (2018), section 3.2, for the generator: to pass for real on every scale, and feature matching times its weight."""
    fooled = judge(torch.cat([given, made], 1))
    with torch.no_grad():
        right = judge(torch.cat([given, real], 1))
    adversarial = torch.stack([_gan.gan_loss(f[-1], True, squares=True) for f in fooled]).sum()
    return adversarial + feature_weight * _gan.feature_matching(fooled, right)
