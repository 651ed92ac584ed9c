"""Networks and losses of the published generators: pix2pix, pix2pixHD, GANimation. Plain torch; no plug-in and no data in here.

Pictures and maps are (B, C, H, W) float in -1..1. Every normalisation is that of one picture (``InstanceNorm2d``, affine). At batch size 1,
which pix2pix and pix2pixHD train with, batch normalisation on the batch's own statistics is the same (Isola et al., 2017, section 3.3), and
this way any number of pictures can be made at once.

- Isola, Zhu, Zhou & Efros (2017), Image-to-Image Translation with Conditional Adversarial Networks, CVPR. (pix2pix)
- Wang, Liu, Zhu, Tao, Kautz & Catanzaro (2018), High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs, CVPR.
- Pumarola, Agudo, Martinez, Sanfeliu & Moreno-Noguer (2018), GANimation: Anatomically-aware Facial Animation from a Single Image, ECCV.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Features = list[Tensor]
"""Outputs of the layers of a discriminator, first to last; the last are the logits."""


PLACES = 64
"""On the CPU a convolution whose kernel goes to no more places than this, over all pictures, is a matrix product.

With so few the weights are most of the work, and oneDNN reorders them anew in every call: it takes up to four times as long (forward and
back, 1024 to 512 channels, 4x4 kernels, 2x2 to 4x4 pixels: 105 ms, not 35). From 256 places on it is as fast or faster.
"""


class Conv2d(nn.Conv2d):
    """As torch's, for square kernels without dilation; a matrix product where there are few places: the same but for rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, outputs, h, w)."""
        kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        h, w = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[2:])
        if x.device.type != "cpu" or len(x) * h * w > PLACES:
            return super().forward(x)
        if self.padding_mode != "zeros":
            x, padding = functional.pad(x, [padding] * 4, self.padding_mode), 0
        columns = functional.unfold(x, kernel, padding=padding, stride=stride).transpose(1, 2)
        return functional.linear(columns, self.weight.flatten(1), self.bias).transpose(1, 2).unflatten(2, (h, w))


class ConvTranspose2d(nn.ConvTranspose2d):
    """As torch's, for square kernels without dilation; a matrix product as in :class:`Conv2d`."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, h, w) to (B, outputs, H, W)."""
        kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        if x.device.type != "cpu" or output_size is not None or x[:, 0].numel() > PLACES:
            return super().forward(x, output_size)
        shape = [(side - 1) * stride - 2 * padding + kernel + self.output_padding[0] for side in x.shape[2:]]
        columns = (x.flatten(2).transpose(1, 2) @ self.weight.flatten(1)).transpose(1, 2)
        made = functional.fold(columns, shape, kernel, padding=padding, stride=stride)
        return made if self.bias is None else made + self.bias[:, None, None]


class Mixed:
    """A network as it is trained: with ``bfloat16`` its layers run in bfloat16; weights, gradients and what it returns stay float32."""

    def __init__(self, net: nn.Module, bfloat16: bool) -> None:
        self.net, self.bfloat16 = net, bfloat16

    def __call__(self, *given: Tensor) -> Any:
        """What the network returns: a tensor, or lists and tuples of them."""
        if not self.bfloat16:
            return self.net(*given)
        # one context a call: within it the cast weights are kept, and the next step changes them
        with torch.autocast(given[0].device.type, torch.bfloat16):
            return _floats(self.net(*given))


def _floats(found: Any) -> Any:
    return found.float() if isinstance(found, Tensor) else type(found)(map(_floats, found))


def _norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)


def init_weights(net: nn.Module) -> None:
    """Convolutions from N(0, 0.02), scales of norms from N(1, 0.02), biases 0 (Isola et al., section 6.2; in place)."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.InstanceNorm2d) and layer.weight is not None:
            nn.init.normal_(layer.weight, 1.0, 0.02)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


# --- pix2pix -----------------------------------------------------------------------------------------------------------------------


class UNet(nn.Module):
    """The generator of pix2pix (Isola et al., 2017, section 3.2 and 6.1.1).

    Encoder C64-C128-C256-C512-C512-... down to 1x1, decoder CD512-CD512-CD512-C512-...-C64, each decoder layer beside its mirror image of
    the encoder, all 4x4 with stride 2. The first and the innermost encoder layer have no norm (the paper's errata: at 1x1 it would zero
    them). The noise z comes as dropout of a half in the first three decoder layers, in ``train()`` mode; the paper leaves it on when
    pictures are made. With ``size`` 256, ``width`` 64 and three channels in and out it has the well-known 54.41 million weights.

    Args:
        inputs: channels of the map. size: side of the pictures, a power of two of at least 8; it sets the depth. width: channels of the
            first layer, eight times which is the most.
    """

    def __init__(self, inputs: int = 3, outputs: int = 3, size: int = 256, width: int = 64) -> None:
        super().__init__()
        depth = size.bit_length() - 1
        if size != 2**depth or depth < 3:
            raise ValueError(f"size must be a power of two from 8 on, got {size}")
        channels = [width * min(2**i, 8) for i in range(depth)]
        self.encoder = nn.ModuleList()
        for i, (a, b) in enumerate(zip([inputs, *channels], channels, strict=False)):
            plain = i in (0, depth - 1)
            layers: list[nn.Module] = [] if i == 0 else [nn.LeakyReLU(0.2)]
            self.encoder.append(nn.Sequential(*layers, Conv2d(a, b, 4, 2, 1, bias=False), *([] if plain else [_norm(b)])))
        self.decoder = nn.ModuleList()
        for i in range(depth - 1):
            a = channels[-1] if i == 0 else 2 * channels[depth - 1 - i]
            b = channels[depth - 2 - i]
            up = [nn.ReLU(), ConvTranspose2d(a, b, 4, 2, 1, bias=False), _norm(b)]
            self.decoder.append(nn.Sequential(*up, *([nn.Dropout(0.5)] if i < 3 else [])))
        self.out = nn.Sequential(nn.ReLU(), ConvTranspose2d(2 * width, outputs, 4, 2, 1), nn.Tanh())
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, size, size) to (B, outputs, size, size), -1..1."""
        skips = []
        for layer in self.encoder:
            x = layer(x)
            skips.append(x)
        skips.pop()  # the innermost is what the decoder starts from
        for layer in self.decoder:
            x = torch.cat([skips.pop(), layer(x)], 1)
        return self.out(x)


class PatchGAN(nn.Module):
    """The 70x70 discriminator C64-C128-C256-C512 of pix2pix (Isola et al., 2017, section 6.1.2), used by pix2pixHD as well.

    Each logit judges a patch: 70x70 pixels with three layers of stride 2. The first layer has no norm.

    Args:
        inputs: channels of map and picture together. layers: those of stride 2. padding: 1 as in pix2pix, 2 as in pix2pixHD, which keeps
            small pictures large enough.
    """

    def __init__(self, inputs: int = 6, width: int = 64, layers: int = 3, padding: int = 1) -> None:
        super().__init__()
        channels = [width * min(2**i, 8) for i in range(layers + 1)]
        self.blocks = nn.ModuleList([nn.Sequential(Conv2d(inputs, width, 4, 2, padding), nn.LeakyReLU(0.2))])
        for i, (a, b) in enumerate(zip(channels, channels[1:], strict=False)):
            stride = 2 if i < layers - 1 else 1
            self.blocks.append(nn.Sequential(Conv2d(a, b, 4, stride, padding, bias=False), _norm(b), nn.LeakyReLU(0.2)))
        self.blocks.append(Conv2d(channels[-1], 1, 4, 1, padding))
        init_weights(self)

    def forward(self, x: Tensor) -> Features:
        """(B, inputs, H, W) to the outputs of all layers; the last are the logits, (B, 1, h, w)."""
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return found


# --- pix2pixHD ---------------------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Two 3x3 convolutions whose result is added to the input (Johnson et al., 2016), mirrored at the border."""

    def __init__(self, channels: int, reflect: bool = True) -> None:
        super().__init__()
        mode = "reflect" if reflect else "zeros"
        first = Conv2d(channels, channels, 3, padding=1, padding_mode=mode, bias=False)
        second = Conv2d(channels, channels, 3, padding=1, padding_mode=mode, bias=False)
        self.body = nn.Sequential(first, _norm(channels), nn.ReLU(), second, _norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + self.body(x)


def _wide(inputs: int, outputs: int) -> Conv2d:
    return Conv2d(inputs, outputs, 7, padding=3, padding_mode="reflect")


def _down(inputs: int, outputs: int) -> list[nn.Module]:
    return [Conv2d(inputs, outputs, 3, 2, 1, bias=False), _norm(outputs), nn.ReLU()]


def _up(inputs: int, outputs: int) -> list[nn.Module]:
    return [ConvTranspose2d(inputs, outputs, 3, 2, 1, output_padding=1, bias=False), _norm(outputs), nn.ReLU()]


class GlobalGenerator(nn.Module):
    """G1 of pix2pixHD: front end, residual blocks, back end (Wang et al., 2018, section 3.2 and appendix; after Johnson et al., 2016).

    ``c7s1-w, d2w, d4w, ..., R x blocks, ..., u2w, uw, c7s1-3``. The paper has width 64, four times down and nine blocks, for 1024x512.
    """

    def __init__(self, inputs: int = 3, outputs: int = 3, width: int = 64, downs: int = 4, blocks: int = 9) -> None:
        super().__init__()
        layers: list[nn.Module] = [_wide(inputs, width), _norm(width), nn.ReLU()]
        for i in range(downs):
            layers += _down(width * 2**i, width * 2 ** (i + 1))
        layers += [Residual(width * 2**downs) for _ in range(blocks)]
        for i in reversed(range(downs)):
            layers += _up(width * 2 ** (i + 1), width * 2**i)
        self.body = nn.Sequential(*layers)
        self.out = nn.Sequential(_wide(width, outputs), nn.Tanh())
        init_weights(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to the last feature map, (B, width, H, W), which G2 takes over. H, W: multiples of 2**downs."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W), -1..1."""
        return self.out(self.features(x))


class CoarseToFine(nn.Module):
    """G1 at half the size inside the local enhancer G2 (Wang et al., 2018, section 3.2, figure 3).

    What goes into G2's residual blocks is the sum of its front end's feature map and the last feature map of G1. ``c7s1-w, d2w, R x 3, uw,
    c7s1-3`` with half of G1's width.
    """

    def __init__(self, coarse: GlobalGenerator, inputs: int = 3, outputs: int = 3, width: int = 32, blocks: int = 3) -> None:
        super().__init__()
        self.front = nn.Sequential(_wide(inputs, width), _norm(width), nn.ReLU(), *_down(width, 2 * width))
        back = [*[Residual(2 * width) for _ in range(blocks)], *_up(2 * width, width), _wide(width, outputs), nn.Tanh()]
        self.back = nn.Sequential(*back)
        init_weights(self)
        self.coarse = coarse

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W), -1..1."""
        return self.back(self.front(x) + self.coarse.features(halve(x)))


def halve(x: Tensor) -> Tensor:
    """Half the size, 3x3 means without the padding (the pyramid of pix2pixHD). (B, C, H, W) to (B, C, H/2, W/2)."""
    return functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False)


class MultiscalePatchGAN(nn.Module):
    """The same discriminator, with weights of its own, on the picture at 1, 1/2, 1/4 ... of its size (Wang et al., 2018, section 3.2).

    A logit of scale k judges 70, 141, 283 ... pixels of the full picture. The paper has three scales.
    """

    def __init__(self, inputs: int = 6, width: int = 64, scales: int = 2, layers: int = 3) -> None:
        super().__init__()
        self.scales = nn.ModuleList([PatchGAN(inputs, width, layers, padding=2) for _ in range(scales)])

    def forward(self, x: Tensor) -> list[Features]:
        """(B, inputs, H, W) to the features of each scale, finest first."""
        found = []
        for i, net in enumerate(self.scales):
            x = halve(x) if i else x
            found.append(net(x))
        return found


# --- GANimation --------------------------------------------------------------------------------------------------------------------


class MaskedGenerator(nn.Module):
    """The generator of GANimation: a colour mask and an attention mask (Pumarola et al., 2018, section 4.1, equation 1).

    The result is ``a * C + (1 - a) * input``: a mask of 0 gives the input back. The paper writes the same with A = 1 - a. The AUs stand
    beside the picture as constant planes. c7s1-w, d2w, d4w, six residual blocks, u2w, uw, then a 7x7 convolution for each mask.
    """

    def __init__(self, aus: int, width: int = 64, blocks: int = 6) -> None:
        super().__init__()
        w = width
        layers: list[nn.Module] = [Conv2d(3 + aus, w, 7, padding=3, bias=False), _norm(w), nn.ReLU()]
        for i in (1, 2):
            layers += [Conv2d(w * i, w * 2 * i, 4, 2, 1, bias=False), _norm(w * 2 * i), nn.ReLU()]
        layers += [Residual(4 * w, reflect=False) for _ in range(blocks)]
        for i in (2, 1):
            layers += [ConvTranspose2d(w * 2 * i, w * i, 4, 2, 1, bias=False), _norm(w * i), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.colour = nn.Sequential(Conv2d(w, 3, 7, padding=3, bias=False), nn.Tanh())
        self.attention = nn.Sequential(Conv2d(w, 1, 7, padding=3), nn.Sigmoid())
        init_weights(self)

    def forward(self, x: Tensor, aus: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, 3, H, W) in -1..1, sides multiples of 4; aus: (B, K) in 0..1, the wanted ones.

        Returns the picture (B, 3, H, W), the colour mask (B, 3, H, W) in -1..1 and the attention mask (B, 1, H, W) in 0..1.
        """
        found = self.body(torch.cat([x, planes(aus, x.shape[-2:])], 1))
        # The two masks in one convolution: on a CPU it takes no longer than either alone. In float32: what is kept of the input is exact.
        masks = functional.conv2d(found, torch.cat([self.colour[0].weight, self.attention[0].weight]), padding=3).float()
        colour, attention = masks[:, :3].tanh(), (masks[:, 3:] + self.attention[0].bias[:, None, None]).sigmoid()
        return attend(x, colour, attention), colour, attention


def attend(x: Tensor, colour: Tensor, attention: Tensor) -> Tensor:
    """``attention * colour + (1 - attention) * x``: with attention 0 the picture itself (Pumarola et al., equation 1, with a = 1 - A)."""
    return attention * colour + (1 - attention) * x


def planes(aus: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, K) values as (B, K, H, W) constant planes."""
    return aus[:, :, None, None].expand(-1, -1, *shape)


class Critic(nn.Module):
    """The critic of GANimation with its AU regression head (Pumarola et al., 2018, section 4.1).

    4x4 convolutions of stride 2 that double the channels, without norm, until 2x2 pixels are left (six of them at 128 pixels); then a map
    of patch scores, and the AUs.
    """

    def __init__(self, aus: int, size: int = 128, width: int = 64) -> None:
        super().__init__()
        count = size.bit_length() - 2
        if size != 2 ** (count + 1) or count < 2:
            raise ValueError(f"size must be a power of two from 8 on, got {size}")
        layers: list[nn.Module] = []
        inputs = 3
        for i in range(count):
            outputs = width * 2 ** min(i, 5)
            layers += [Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.01)]
            inputs = outputs
        self.body = nn.Sequential(*layers)
        self.score = Conv2d(inputs, 1, 3, padding=1, bias=False)
        self.aus = Conv2d(inputs, aus, 2, bias=False)
        init_weights(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, size, size) to scores (B, 1, 2, 2) without bounds and AUs (B, K), meant to be 0..1."""
        found = self.body(x)
        return self.score(found), self.aus(found).flatten(1)


# --- losses ------------------------------------------------------------------------------------------------------------------------


def gan_loss(logits: Tensor, real: bool, squares: bool = False) -> Tensor:
    """How far the logits are from calling everything real, or everything made.

    Cross entropy (Isola et al., 2017, equation 1; for a generator with real=True, so that it maximises log D, section 3.3), or with
    ``squares`` the squared distance to 1 or 0 (least-squares GAN, Mao et al., 2017, which pix2pixHD uses). Mean over all logits.
    """
    wanted = torch.full_like(logits, float(real))
    return functional.mse_loss(logits, wanted) if squares else functional.binary_cross_entropy_with_logits(logits, wanted)


def feature_matching(made: Sequence[Features], real: Sequence[Features]) -> Tensor:
    """The feature matching loss of Wang et al. (2018), section 3.2: mean absolute difference, summed over layers and scales.

    The logits do not count; the real picture's features are constants.
    """
    terms = [functional.l1_loss(a, b.detach()) for m, r in zip(made, real, strict=True) for a, b in zip(m[:-1], r[:-1], strict=True)]
    return torch.stack(terms).sum()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, made: Tensor, share: Tensor) -> Tensor:
    """Mean of (|gradient of the critic| - 1)^2 between real and made pictures (Gulrajani et al., 2017, equation 3).

    share: (B,) 0..1, how far along the line from made to real each picture of the batch is taken. The critic's scores are averaged over a
    picture's patches, so that the gradient is that of one score a picture.
    """
    mix = share.view(-1, *[1] * (real.dim() - 1))
    between = (mix * real.detach() + (1 - mix) * made.detach()).requires_grad_(True)
    score = critic(between).reshape(len(real), -1).mean(1).sum()
    (slope,) = torch.autograd.grad(score, between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def total_variation(mask: Tensor) -> Tensor:
    """Squared differences of neighbours, down and across, summed over a picture, mean over the batch (Pumarola et al., section 4.2)."""
    down, across = mask.diff(dim=-2), mask.diff(dim=-1)
    return (down.square().sum() + across.square().sum()) / len(mask)


def attention_loss(attention: Tensor, smooth: float = 1e-4) -> Tensor:
    """The attention loss of Pumarola et al. (2018), section 4.2: ``smooth * TV(A) + |A|`` for A = 1 - attention, what is left of the input.

    It keeps the mask smooth, and from saturating at passing the input unchanged. |A|: root of the mean square, averaged over the batch, so
    that its weight does not depend on the picture's size.
    """
    kept = 1 - attention
    return smooth * total_variation(kept) + kept.square().flatten(1).mean(1).clamp_min(1e-12).sqrt().mean()
