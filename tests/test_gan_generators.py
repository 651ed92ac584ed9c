"""The published generators: networks and losses against known figures and closed forms, plug-ins on a made person."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import Said
from torch import Tensor, nn
from torch.nn import functional

from personalize import geometry, registry
from personalize.aus import AUS
from personalize.errors import ConfigError, InputError
from personalize.faces import Observation
from personalize.generators import Request, Sample
from personalize.identity import Identity, Neutral
from personalize_plugins.generators import _gan, _ganimation_fit, ganimation, mesh_warp, pix2pix, pix2pixhd
from personalize_plugins.generators.mesh_warp import MeshWarp, displacement, load_mesh

TINY: dict[str, dict[str, Any]] = {
    "pix2pix": {"size": 64, "steps": 3, "ngf": 4},
    "pix2pix_au": {"size": 64, "steps": 3, "ngf": 4},
    "pix2pixhd": {"size": 64, "steps": 4, "ngf": 2, "blocks": 1},
    "ganimation": {"size": 64, "steps": 5, "ngf": 4, "blocks": 1, "batch_size": 2},
}
NAMES = sorted(TINY)
AU12, AU25 = AUS.index(12), AUS.index(25)


def paint(points: np.ndarray, size: int) -> np.ndarray:
    """A face for people in a hurry: skin, eyes, lips. points: (478, 3) pixels."""
    image = np.full((size, size, 3), (70, 90, 110), np.uint8)

    def fill(index: Any, colour: tuple[int, int, int]) -> None:
        cv2.fillPoly(image, [np.round(points[index, :2] * 16).astype(np.int32)], colour, cv2.LINE_AA, 4)

    fill(mesh_warp._OVAL, (205, 160, 135))
    for upper, lower, (outer, inner) in mesh_warp._LIDS.values():
        fill([outer, *upper, inner, *lower[::-1]], (240, 240, 240))
    fill([61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91], (170, 70, 80))
    fill([mesh_warp._CORNERS[0], *mesh_warp._UPPER_INNER, mesh_warp._CORNERS[1], *mesh_warp._LOWER_INNER[::-1]], (40, 20, 20))
    return image


def observe(frame: int, aus: np.ndarray, yaw: float = 0.0) -> Observation:
    points = load_mesh().mean + displacement(np.tile(aus, (2, 1)))
    rotation = geometry.rotation_matrix(0.0, yaw, 0.0)
    landmarks = geometry.project(points, geometry.Pose(rotation, 110.0, np.array([160.0, 120.0, 0.0]), (0.0, yaw, 0.0)))
    pose = geometry.fit_pose(landmarks)
    image = paint(landmarks, 320)
    crop, to_frame = geometry.crop(image, pose)
    view, view_to_frame = geometry.view(image, pose)
    box = np.array([60, 40, 260, 280], np.float32)
    normal = geometry.normalise(landmarks, pose)
    angles = np.array(pose.angles, np.float32)
    return Observation(
        frame, frame / 25, 0, crop, normal, angles, to_frame, landmarks, box, 1.0, 0.9, view=view, view_to_frame=view_to_frame
    )


@cache
def identity() -> Identity:
    """Ten frames: at rest, and smiling more and more."""
    intensity = np.zeros((10, len(AUS)), np.float32)
    intensity[5:, AU12] = np.linspace(1, 5, 5)
    found = [observe(i, intensity[i], yaw=0.03 * i) for i in range(10)]
    neutral = Neutral(np.arange(3), found[0].crop[None], found[0].landmarks, 1.0)
    return Identity("someone", found, intensity, neutral, (320, 320))


@cache
def ready(name: str, seed: int = 0) -> Any:
    generator = registry.create("generators", name, TINY[name])
    generator.prepare(identity(), seed)
    return generator


def without_norm(net: nn.Module) -> nn.Module:
    """Norms look at the whole picture: taken out, what is left is what the convolutions see."""
    for module in net.modules():
        for key, child in module.named_children():
            if isinstance(child, nn.InstanceNorm2d):
                setattr(module, key, nn.Identity())
    return net.double()


def seen_by(logits: Callable[[Tensor], Tensor], channels: int, size: int) -> tuple[int, int]:
    """Height and width of the pixels that change the logit in the middle."""
    x = torch.randn(1, channels, size, size, dtype=torch.float64, requires_grad=True)
    out = logits(x)
    out[0, 0, out.shape[2] // 2, out.shape[3] // 2].backward()
    assert x.grad is not None
    touched = x.grad[0].abs().sum(0) > 0
    rows, columns = touched.any(1).nonzero().flatten(), touched.any(0).nonzero().flatten()
    return int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# --- networks ----------------------------------------------------------------------------------------------------------------------


def test_parameter_counts_are_the_known_ones() -> None:
    """Of the published pix2pix: 54.414 M and 2.769 M; of pix2pixHD's global generator: 182.5 M, of a critic by hand."""
    with torch.device("meta"):
        assert count(_gan.UNet(3, 3, 256, 64)) == 54_413_955
        assert count(_gan.PatchGAN(6, 64)) == 2_768_705
        assert round(count(_gan.GlobalGenerator(3, 3, 64, 4, 9)) / 1e6, 1) == 182.5
        # layers of 4x4 weights and biases, the score's 3x3, the AUs' 2x2
        layers = sum(16 * a * b + b for a, b in zip((3, 4, 8, 16, 32, 64), (4, 8, 16, 32, 64, 128), strict=True))
        assert count(_gan.Critic(22, 128, 4)) == layers + 9 * 128 + 4 * 128 * 22


def test_patchgan_judges_70_pixels() -> None:
    for padding in (1, 2):
        net = without_norm(_gan.PatchGAN(3, 2, padding=padding))
        assert seen_by(lambda x, net=net: net(x)[-1], 3, 128) == (70, 70)  # type: ignore[misc]


def test_scales_of_pix2pixhd_judge_70_141_and_283_pixels() -> None:
    net = without_norm(_gan.MultiscalePatchGAN(3, 2, scales=3))
    for scale, side in enumerate((70, 141, 283)):
        assert seen_by(lambda x, scale=scale: net(x)[scale][-1], 3, 384) == (side, side)  # type: ignore[misc]


@pytest.mark.parametrize("size", [16, 64])
def test_unet_shapes(size: int) -> None:
    net = _gan.UNet(5, 3, size, 2)
    out = net(torch.randn(2, 5, size, size))
    assert out.shape == (2, 3, size, size) and out.abs().max() <= 1
    assert len(net.encoder) == len(net.decoder) + 1 == size.bit_length() - 1
    with pytest.raises(ValueError, match=r"^size must be a power of two from 8 on, got 48$"):
        _gan.UNet(3, 3, 48)


def test_unet_layers_are_the_papers() -> None:
    with torch.device("meta"):
        net = _gan.UNet(3, 3, 256, 64)
    assert [block[-2 if i not in (0, 7) else -1].out_channels for i, block in enumerate(net.encoder)] == [64, 128, 256, *[512] * 5]
    assert [block[1].in_channels for block in net.decoder] == [512, 1024, 1024, 1024, 1024, 512, 256]
    assert [isinstance(block[-1], nn.Dropout) for block in net.decoder] == [True] * 3 + [False] * 4


def test_every_skip_of_the_unet_is_used() -> None:
    torch.manual_seed(0)
    net = _gan.UNet(3, 3, 32, 4).eval()
    x = torch.randn(1, 3, 32, 32)
    whole = net(x)
    for block in net.decoder[1:]:
        half = block[1].in_channels // 2  # the skip comes first
        kept = block[1].weight.data.clone()
        block[1].weight.data[:half] = 0
        assert (net(x) - whole).abs().max() > 1e-4
        block[1].weight.data = kept
    net.out[1].weight.data[:4] = 0
    assert (net(x) - whole).abs().max() > 1e-4


def test_unet_is_noisy_only_in_training_mode() -> None:
    net, x = _gan.UNet(3, 3, 32, 4), torch.randn(1, 3, 32, 32)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_pictures_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    net, x = _gan.UNet(3, 3, 32, 4).eval(), torch.randn(3, 3, 32, 32)
    assert torch.allclose(net(x)[1:2], net(x[1:2]), atol=1e-5)


def test_coarse_to_fine_shapes_and_gradients() -> None:
    coarse = _gan.GlobalGenerator(3, 3, 4, 2, 1)
    assert coarse(torch.randn(2, 3, 16, 16)).shape == (2, 3, 16, 16)
    net = _gan.CoarseToFine(coarse, 3, 3, 2, 1)
    out = net(torch.randn(2, 3, 32, 32))
    assert out.shape == (2, 3, 32, 32) and out.abs().max() <= 1
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in coarse.body[:1].parameters())
    assert net.front[0].weight.grad.abs().sum() > 0


def test_attention_of_zero_gives_the_picture_back() -> None:
    net, x, aus = _gan.MaskedGenerator(22, 4, 1), torch.rand(2, 3, 16, 16) * 2 - 1, torch.rand(2, 22)
    made, colour, attention = net(x, aus)
    assert made.shape == colour.shape == x.shape and attention.shape == (2, 1, 16, 16)
    assert torch.allclose(made, attention * colour + (1 - attention) * x)
    assert not torch.equal(made, net(x, 1 - aus)[0])
    net.attention[0].weight.data.zero_()
    net.attention[0].bias.data.fill_(-200.0)
    assert torch.equal(net(x, aus)[0], x)
    net.attention[0].bias.data.fill_(200.0)
    made, colour, _ = net(x, aus)
    assert torch.equal(made, colour)


@pytest.mark.parametrize("size", [32, 64])
def test_critic_shapes(size: int) -> None:
    score, read = _gan.Critic(22, size, 2)(torch.randn(3, 3, size, size))
    assert score.shape == (3, 1, 2, 2) and read.shape == (3, 22)
    with pytest.raises(ValueError, match=r"^size must be a power of two from 8 on, got 48$"):
        _gan.Critic(22, 48)


SMALL_LAYERS = [
    (lambda: _gan.Conv2d(3, 4, 4, 2, 1, bias=False), lambda x, w, b: functional.conv2d(x, w, b, 2, 1)),
    (lambda: _gan.Conv2d(3, 4, 3, padding=1), lambda x, w, b: functional.conv2d(x, w, b, 1, 1)),
    (
        lambda: _gan.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        lambda x, w, b: functional.conv2d(functional.pad(x, (1, 1, 1, 1), "reflect"), w, b),
    ),
    (lambda: _gan.ConvTranspose2d(3, 4, 4, 2, 1), lambda x, w, b: functional.conv_transpose2d(x, w, b, 2, 1)),
    (
        lambda: _gan.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1, bias=False),
        lambda x, w, b: functional.conv_transpose2d(x, w, b, 2, 1, 1),
    ),
]


@pytest.mark.parametrize(("make", "plain"), SMALL_LAYERS)
@pytest.mark.parametrize("side", [(4, 6), (16, 20)])
def test_convolutions_are_torchs_and_small_ones_matrix_products(
    make: Callable[[], Any], plain: Callable[..., Tensor], side: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, gradients and their gradients, which the penalty of GANimation takes; side by side on two pictures."""
    torch.manual_seed(0)
    layer = make().double()
    products = []
    for name in ("fold", "unfold"):
        as_was = getattr(functional, name)
        monkeypatch.setattr(functional, name, lambda *a, as_was=as_was, **k: products.append(1) or as_was(*a, **k))
    x = torch.randn(2, 3, *side, dtype=torch.float64, requires_grad=True)
    found = []
    for y in (layer(x), plain(x, layer.weight, layer.bias)):
        slopes = torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()], create_graph=True)
        found.append((y, *slopes, *torch.autograd.grad(slopes[0].square().sum(), [x, layer.weight])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    assert len(products) == (side == (4, 6))


# --- losses ------------------------------------------------------------------------------------------------------------------------


def test_gan_losses() -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0]])
    assert _gan.gan_loss(logits, True).item() == pytest.approx(np.log1p(np.exp(-logits.numpy())).mean(), rel=1e-6)
    assert _gan.gan_loss(logits, False).item() == pytest.approx(np.log1p(np.exp(logits.numpy())).mean(), rel=1e-6)
    assert _gan.gan_loss(logits, True, squares=True).item() == pytest.approx((1 + 1 + 4) / 3)
    assert _gan.gan_loss(logits, False, squares=True).item() == pytest.approx((0 + 4 + 1) / 3)


class Fixed(nn.Module):
    """A discriminator whose logits are the picture's (last three channels') mean, times a weight."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [2 * x[:, 3:], x[:, 3:].mean(1, keepdim=True)]


def test_pix2pix_losses() -> None:
    given, real, made = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5), torch.full((1, 3, 4, 4), -0.25)
    judge: Any = Fixed()
    expected = 0.5 * (np.log1p(np.exp(-0.5)) + np.log1p(np.exp(-0.25)))
    assert pix2pix.discriminator_loss(judge, given, real, made).item() == pytest.approx(expected, rel=1e-6)
    expected = np.log1p(np.exp(0.25)) + 100 * 0.75
    assert pix2pix.generator_loss(judge, given, real, made).item() == pytest.approx(expected, rel=1e-6)
    assert pix2pix.generator_loss(judge, given, real, real, 7.0).item() == pytest.approx(np.log1p(np.exp(-0.5)), rel=1e-6)


def test_pix2pixhd_losses() -> None:
    given, real, made = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5), torch.full((1, 3, 4, 4), -0.25)
    fixed = Fixed()
    judge: Any = lambda x: [fixed(x), fixed(0.5 * x)]  # noqa: E731
    expected = 0.5 * (0.5**2 + 0.25**2 + 0.75**2 + 0.125**2)
    assert pix2pixhd.discriminator_loss(judge, given, real, made).item() == pytest.approx(expected, rel=1e-6)
    # features differ by 2 x 0.75 and half of it; the logits do not count
    expected = 1.25**2 + 1.125**2 + 10 * (1.5 + 0.75)
    assert pix2pixhd.generator_loss(judge, given, real, made).item() == pytest.approx(expected, rel=1e-6)


def test_feature_matching_by_hand_and_no_gradient_into_the_real_one() -> None:
    made, real = torch.randn(2, 3, 2, 2, requires_grad=True), torch.randn(2, 3, 2, 2, requires_grad=True)
    loss = _gan.feature_matching([[made, 2 * made, made.mean()]], [[real, real, real.mean()]])
    expected = (made - real).abs().mean() + (2 * made - real).abs().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert made.grad is not None and real.grad is None


def test_gradient_penalty_of_a_linear_critic() -> None:
    weight = torch.randn(12, requires_grad=True)
    real, made = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    penalty = _gan.gradient_penalty(lambda x: x.flatten(1) @ weight, real, made, torch.rand(4))
    assert penalty.item() == pytest.approx((weight.norm().item() - 1) ** 2, rel=1e-5)
    penalty.backward()
    assert weight.grad is not None
    expected = 2 * (1 - 1 / weight.norm()) * weight
    assert torch.allclose(weight.grad, expected, atol=1e-5)


def test_gradient_penalty_is_taken_between_the_two() -> None:
    """A quadratic critic has the gradient x: the penalty says where it was taken."""
    real, made, share = torch.full((1, 1, 1, 1), 5.0), torch.full((1, 1, 1, 1), 2.0), torch.tensor([0.25])
    penalty = _gan.gradient_penalty(lambda x: 0.5 * x.square(), real, made, share)
    assert penalty.item() == pytest.approx((0.25 * 5 + 0.75 * 2 - 1) ** 2)


def test_attention_losses() -> None:
    mask = torch.zeros(1, 1, 3, 3)
    mask[..., 1, 1] = 1.0
    assert _gan.total_variation(mask).item() == 4.0
    assert _gan.total_variation(mask.repeat(2, 1, 1, 1)).item() == 4.0
    assert _gan.attention_loss(torch.zeros(2, 1, 4, 4)).item() == pytest.approx(1.0)  # the input passes: dear
    assert _gan.attention_loss(torch.ones(2, 1, 4, 4)).item() == pytest.approx(0.0, abs=1e-5)
    assert _gan.attention_loss(1 - mask, 0.5).item() == pytest.approx(0.5 * 4 + (1 / 9) ** 0.5, rel=1e-6)


class LinearCritic(nn.Module):
    """Score 3 x mean of the picture, every AU 0.5."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 3 * x.mean((1, 2, 3), keepdim=True), torch.full((len(x), 2), 0.5)


class Shift(nn.Module):
    """Moves the picture by the first AU."""

    def forward(self, x: Tensor, aus: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x + aus[:, 0, None, None, None], x, torch.full((len(x), 1, 2, 2), 0.75)


def test_ganimation_losses() -> None:
    real, made = torch.zeros(2, 3, 2, 2), torch.full((2, 3, 2, 2), 0.5)
    aus, wanted = torch.tensor([[0.25, 0.5]] * 2), torch.tensor([[1.0, 0.0]] * 2)
    critic: Any = LinearCritic()
    slope = 3 / 12**0.5  # of 12 pixels with 3/12 each
    expected = 1.5 - 0.0 + 10 * (slope - 1) ** 2 + 4000 * 0.25**2 / 2
    loss = ganimation.critic_loss(critic, real, made, aus, torch.rand(2))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    net: Any = Shift()
    expected = 4000 * 0.5**2 - 3.0 + 0.1 * 2 * 0.25 + 10 * 1.25
    loss = ganimation.generator_loss(net, critic, net(real, wanted), real, aus, wanted)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


# --- maps --------------------------------------------------------------------------------------------------------------------------


def test_landmark_map_draws_the_lines_it_is_given() -> None:
    o = identity().observations[0]
    assert o.view_to_frame is not None
    points = MeshWarp._in_view(o.image_landmarks, o.view_to_frame)
    drawn = pix2pix.landmark_map(points, 160)
    assert drawn.shape == (160, 160, 3) and drawn.dtype == np.uint8
    for channel, on, off in ((0, (152, 10, 4), (14, 33)), (1, (159, 386, 105), (0, 152)), (2, (0, 17, 61, 291), (33, 152))):
        for point in on:
            x, y = np.round(points[point, :2]).astype(int)
            assert drawn[y - 1 : y + 2, x - 1 : x + 2, channel].max() > 100, point
        for point in off:
            x, y = np.round(points[point, :2]).astype(int)
            assert drawn[y - 1 : y + 2, x - 1 : x + 2, channel].max() == 0, point
    assert 0.01 < (drawn > 60).any(-1).mean() < 0.15
    framed = pix2pix.landmark_map(points, 160, margin=9)
    assert framed.shape == (178, 178, 3) and np.array_equal(framed[9:-9, 9:-9], drawn)
    assert not np.array_equal(pix2pix.landmark_map(points + [0.25, 0, 0], 160), drawn)  # a quarter of a pixel shows


def test_pictures_to_tensors_and_back() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), np.uint8)
    tensor = pix2pix.to_tensor(image)
    assert tensor.shape == (2, 3, 5, 5) and tensor.min() >= -1 and tensor.max() <= 1
    assert np.array_equal(np.round(pix2pix.to_image(tensor[1])), image[1])


# --- training ----------------------------------------------------------------------------------------------------------------------


def frames(n: int = 2) -> tuple[Any, Any]:
    generator = registry.create("generators", "pix2pix_au", TINY["pix2pix_au"])
    MeshWarp.prepare(generator, identity(), 0)
    found = generator._frames(identity())
    keep = np.linspace(0, 9, n).astype(int)
    return generator, pix2pix.Frames(found.images[keep], found.points[keep], found.aus[keep])


def test_pairs_are_cut_together_and_carry_the_aus() -> None:
    generator, some = frames(10)
    for given, real in generator._pairs(some, 12, np.random.default_rng(0)):
        assert given.shape == (1, 3 + len(AUS), 64, 64) and real.shape == (1, 3, 64, 64)
        planes = given[0, 3:]
        assert torch.equal(planes, planes[:, :1, :1].expand(-1, 64, 64))
        assert planes[AU12, 0, 0].item() in [pytest.approx(v) for v in some.aus[:, AU12]]
        lips = (given[0, 2] > 0).numpy()  # red, darker than skin
        assert real[0, 0].numpy()[lips].mean() - real[0, 1].numpy()[lips].mean() > 0.3
    assert not any(plane.any() for plane in some.aus[:, np.arange(len(AUS)) != AU12].T)


def test_frames_are_kept_as_bytes_until_their_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """As floats those of a clip at 256 pixels take gigabytes; the numbers are the same."""
    generator, some = frames(10)
    at_once, convert = [], pix2pix.to_tensor
    monkeypatch.setattr(pix2pix, "to_tensor", lambda images: at_once.append(len(images)) or convert(images))
    (given, real), *_ = generator._pairs(some, 1, np.random.default_rng(0))
    assert max(at_once) == 1
    rng, margin = np.random.default_rng(0), round(64 * pix2pix.JITTER / 2)
    row = int(rng.permutation(10)[-1])
    y, x = rng.integers(0, 2 * margin + 1, 2)
    whole = np.pad(some.images[row], ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    lines = pix2pix.landmark_map(some.points[row], 64, margin)
    for made, picture in ((real, whole), (given[:, :3], lines)):
        wanted = picture[y : y + 64, x : x + 64].astype(np.float32) / np.float32(127.5) - 1
        assert np.array_equal(made[0].permute(1, 2, 0).numpy(), wanted)


def test_every_frame_comes_once_in_a_pass() -> None:
    generator, some = frames(10)
    some.aus[:, 0] = np.arange(10) / 10
    seen = [given[0, 3, 0, 0].item() for given, _ in generator._pairs(some, 20, np.random.default_rng(0))]
    assert sorted(seen[:10]) == sorted(seen[10:]) == pytest.approx(some.aus[:, 0].tolist())
    assert seen[:10] != seen[10:]


def test_a_step_is_adams_and_the_resting_network_gets_no_gradient() -> None:
    """Kingma & Ba (2015), algorithm 1, by hand: the first step goes lr * g / (|g| + eps) in each weight."""
    torch.manual_seed(0)
    net, judge = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3)
    x = torch.randn(1, 1, 8, 8)
    want = torch.autograd.grad(judge(net(x)).square().mean(), list(net.parameters()))
    before = [p.detach().clone() for p in net.parameters()]
    ours, _ = pix2pix.adams(0.01, net, judge)
    with pix2pix.at_rest(judge):
        pix2pix.descend(ours, judge(net(x)).square().mean())
    for was, now, g in zip(before, net.parameters(), want, strict=True):
        torch.testing.assert_close(now.detach(), was - 0.01 * g / (g.abs() + 1e-8))
    assert all(p.grad is None and p.requires_grad for p in judge.parameters())


def slopes(loss: Tensor, net: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad]))


def test_one_batch_gives_the_discriminators_gradients_of_two() -> None:
    """Real and made pictures do not mix, and nothing of the loss goes into what was made."""
    torch.manual_seed(0)
    given, real, made, aus = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64), torch.rand(1, 22)
    made.requires_grad_(True)
    pairs = [torch.cat([given, real], 1), torch.cat([given, made.detach()], 1)]
    flat = _gan.PatchGAN(6, 4)
    right, wrong = (flat(x)[-1] for x in pairs)
    apart = functional.softplus(-right).mean() + functional.softplus(wrong).mean()
    many = _gan.MultiscalePatchGAN(6, 4)
    squares = sum((found[-1] - y).square().mean() for x, y in ((pairs[0], 1), (pairs[1], 0)) for found in many(x))
    critic = _gan.Critic(22, 64, 4)
    share = torch.rand(1)
    penalty = _gan.gradient_penalty(lambda x: critic(x)[0], real, made, share)
    scores = critic(made.detach())[0].mean() - critic(real)[0].mean() + 10 * penalty
    for net, loss, wanted in (
        (flat, pix2pix.discriminator_loss(flat, given, real, made), 0.5 * apart),
        (many, pix2pixhd.discriminator_loss(many, given, real, made), 0.5 * squares),
        (critic, ganimation.critic_loss(critic, real, made, aus, share), scores + 4000 * functional.mse_loss(critic(real)[1], aus)),
    ):
        assert torch.autograd.grad(loss, made, retain_graph=True, allow_unused=True) == (None,)
        for a, b in zip(slopes(loss, net), slopes(wanted, net), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def test_ganimation_learns_from_what_it_made_for_the_critic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five steps of the critic and one of the generator take six passes, and the generator's gradient is that of a pass of its own."""
    generator, some = registry.create("generators", "ganimation", TINY["ganimation"]), frames(4)[1]
    passes, checked = [], []
    forward, step = _gan.MaskedGenerator.forward, ganimation.generator_loss

    def loss(net: Any, critic: Any, there: Any, real: Tensor, aus: Tensor, wanted: Tensor, *weights: float) -> Tensor:
        found = step(net, critic, there, real, aus, wanted, *weights)
        again = step(net, critic, forward(net.net, real, wanted), real, aus, wanted, *weights)
        parameters = list(net.net.parameters())
        for a, b in zip(torch.autograd.grad(found, parameters, retain_graph=True), torch.autograd.grad(again, parameters), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())
        checked.append(found.item())
        passes.pop()  # of the way back in what it is compared with
        return found

    monkeypatch.setattr(_gan.MaskedGenerator, "forward", lambda self, *x: passes.append(torch.is_grad_enabled()) or forward(self, *x))
    monkeypatch.setattr(ganimation, "generator_loss", loss)
    with pix2pix.seeded(0):
        generator._fit(some, np.random.default_rng(0))
    assert passes == [False] * 4 + [True] * 2 and len(checked) == 1


@pytest.mark.parametrize("name", NAMES)
def test_training_in_bfloat16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers run in it and nothing else: losses, weights and gradients are float32, the net after three steps is almost the same,
    the same again with the same seed, and pictures are drawn in float32."""
    some, nets, kinds, losses = frames(4)[1], [], [], []
    module = {"pix2pixhd": pix2pixhd, "ganimation": ganimation}.get(name, pix2pix)
    descend = pix2pix.descend

    def watched(optimizer: Any, loss: Tensor) -> None:
        descend(optimizer, loss)
        losses.append((loss.dtype, {p.grad.dtype for p in optimizer.param_groups[0]["params"] if p.grad is not None}))

    monkeypatch.setattr(module, "descend", watched)
    layers = (_gan.Conv2d, _gan.ConvTranspose2d)
    with torch.nn.modules.module.register_module_forward_hook(  # type: ignore[no-untyped-call]
        lambda layer, _, made: kinds[-1].add(made.dtype) if isinstance(layer, layers) else None
    ):
        for bfloat16 in (False, True, True):
            generator = registry.create("generators", name, {**TINY[name], "lr": 1e-5, "bfloat16": bfloat16})
            kinds.append(set())
            with pix2pix.seeded(0):
                generator._fit(some, np.random.default_rng(0))
            nets.append(generator._net)
        x = torch.rand(1, 3 + len(AUS) * (name == "pix2pix_au"), 64, 64)
        given = (x, torch.rand(1, len(AUS))) if name == "ganimation" else (x,)
        kinds.append(set())
        pictures = []
        for net in nets[:2]:
            with pix2pix.seeded(0), torch.no_grad():
                pictures.append(net(*given)[0])
    assert kinds == [{torch.float32}, {torch.bfloat16}, {torch.bfloat16}, {torch.float32}]
    assert losses and all(loss == torch.float32 and grads == {torch.float32} for loss, grads in losses)
    assert all(p.dtype == torch.float32 for net in nets for p in net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(nets[1].parameters(), nets[2].parameters(), strict=True))
    whole, half = pictures
    assert not torch.equal(whole, half) and (whole - half).abs().mean() < 0.02 * whole.abs().mean()


@pytest.mark.parametrize(
    ("name", "options", "share"),
    [("pix2pix", {"steps": 40, "ngf": 8, "lr": 2e-3}, 0.5), ("pix2pixhd", {"steps": 80, "ngf": 4, "blocks": 1, "lr": 2e-3}, 0.7)],
)
def test_two_frames_are_learned(name: str, options: dict[str, Any], share: float) -> None:
    _, some = frames(2)

    def error(steps: int) -> float:
        generator = registry.create("generators", name, TINY[name] | options | {"steps": steps})
        with pix2pix.seeded(0):
            generator._fit(some, np.random.default_rng(0))
        with torch.no_grad(), pix2pix.seeded(0):
            pairs = list(generator._pairs(some, 6, np.random.default_rng(5)))
            return float(np.mean([functional.l1_loss(generator._net(given), real).item() for given, real in pairs]))

    assert error(options["steps"]) < share * error(2)


def test_ganimation_learns_two_frames() -> None:
    """The critic reads the AUs of both, the generator makes each look like the other to it, and there and back is the input."""
    torch.manual_seed(0)
    _, some = frames(2)
    real, aus = _gan.halve(pix2pix.to_tensor(some.images)), torch.from_numpy(some.aus)
    net, critic = _gan.MaskedGenerator(len(AUS), 8, 1), _gan.Critic(len(AUS), 32, 16)
    ours, theirs = (torch.optim.Adam(n.parameters(), 5e-4, (0.5, 0.999)) for n in (net, critic))
    found = []
    for _ in range(45):
        with torch.no_grad():
            made = net(real, aus.flip(0))[0]
        loss = ganimation.critic_loss(critic, real, made, aus, torch.rand(2))
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        loss = ganimation.generator_loss(net, critic, net(real, aus.flip(0)), real, aus, aus.flip(0))
        ours.zero_grad()
        loss.backward()
        ours.step()
        with torch.no_grad():
            made = net(real, aus.flip(0))[0]
            read, asked = functional.mse_loss(critic(real)[1], aus), functional.mse_loss(critic(made)[1], aus.flip(0))
            found.append((read.item(), asked.item(), functional.l1_loss(net(made, aus)[0], real).item()))
    for first, last, share in zip(found[0], found[-1], (0.1, 0.1, 0.8), strict=True):
        assert last < share * first


# --- plug-ins ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_plugin_answers(name: str) -> None:
    generator = ready(name)
    o = identity()
    sample = generator.generate([Request({12: 3.0, 25: 2.0})])[0]
    assert isinstance(sample, Sample)
    assert sample.image.shape == (64, 64, 3) and sample.image.dtype == np.uint8
    assert sample.target.shape == sample.known.shape == (len(AUS),) and sample.target.dtype == np.float32 and sample.known.dtype == bool
    assert sample.target[AU12] == 3.0 and sample.known[AU12]
    view = o.observations[sample.source].view
    assert view is not None
    view = cv2.resize(view, (64, 64), interpolation=cv2.INTER_AREA)
    corners = np.r_[0:4, 60:64]
    assert np.array_equal(sample.image[np.ix_(corners, corners)], view[np.ix_(corners, corners)])
    assert np.abs(sample.image[20:44, 24:40].astype(int) - view[20:44, 24:40]).mean() > 1  # hardly trained: not the frame


@pytest.mark.parametrize("name", NAMES)
def test_plugin_refuses_what_it_cannot_draw(name: str) -> None:
    generator = ready(name)
    requests = [Request({12: 3.0}, (0.0, 1.2, 0.0)), Request({12: 5.5}), Request({12: float("nan")}), Request({12: 2.0}, (0.0, 0.05, 0.0))]
    assert [s is None for s in generator.generate(requests)] == [True, True, True, False]
    with pytest.raises(InputError, match=r"^AU99 is none that the base model reads: 1, 2, "):
        generator.generate([Request({99: 1.0})])


@pytest.mark.parametrize("name", NAMES)
def test_seed_decides(name: str) -> None:
    """Two generators of one seed agree in every bit, whatever torch's state; another seed draws another picture."""
    request = Request({12: 3.0}, (0.0, 0.0, 0.0))
    state = torch.random.get_rng_state()
    images = []
    for seed in (1, 1, 2):
        torch.rand(3)
        generator = registry.create("generators", name, TINY[name])
        before = torch.random.get_rng_state()
        generator.prepare(identity(), seed)
        sample = generator.generate([request])[0]
        assert torch.equal(torch.random.get_rng_state(), before)
        images.append(sample.image)
    torch.random.set_rng_state(state)
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


def test_what_is_asked_for_exactly_does_not_depend_on_what_came_before() -> None:
    """Dropout is drawn anew for each picture, but for those of a sheet or a video."""
    generator, pose = ready("pix2pix"), (0.0, 0.0, 0.0)
    one, another, two, third = (
        generator.generate([Request({12: 3.0}, pose, exact=exact)])[0].image for exact in (True, False, True, False)
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(another, third) and not np.array_equal(one, another)


def test_frames_without_depth_are_not_learned_from() -> None:
    o = identity()
    flat = [replace(x, landmarks=x.landmarks * (1, 1, np.nan)) if i < 3 else x for i, x in enumerate(o.observations)]  # type: ignore[operator]
    with pytest.raises(InputError, match=r", and someone has 7\. "):
        registry.create("generators", "pix2pix", TINY["pix2pix"]).prepare(replace(o, observations=flat), 0)


@pytest.mark.parametrize(
    ("name", "options", "learns"),
    [
        ("mesh_warp", {}, False),
        ("au_residual", {}, False),
        ("au_residual", {"tune_steps": 5}, True),
        ("pix2pix", {}, False),
        ("pix2pix_au", {}, True),
        ("pix2pixhd", {}, False),
        ("pix2pixhd", {"au_maps": True}, True),
        ("ganimation", {}, True),
    ],
)
def test_whom_the_base_teaches(name: str, options: dict[str, Any], learns: bool) -> None:
    assert registry.create("generators", name, options).learns_from_base is learns


@pytest.mark.parametrize("name", NAMES)
def test_too_few_frames(name: str) -> None:
    o = identity()
    few = replace(o, observations=[x if i < 7 else replace(x, view=None) for i, x in enumerate(o.observations)])
    generator = registry.create("generators", name, TINY[name])
    with pytest.raises(InputError) as error:
        generator.prepare(few, 0)
    assert str(error.value) == (
        f"{name} learns from the clip's own frames: it needs at least 8 with a face and a mesh of landmarks, and someone has 7. "
        "Film longer, or use --generator mesh_warp."
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pix2pix", {"size": 10}, "generator option size must be at least 64, got 10"),
        ("pix2pix", {"steps": 0}, "generator option steps must be above 0, got 0"),
        ("pix2pix_au", {"lr": 0.0}, "generator option lr must be above 0, got 0"),
        ("pix2pix_au", {"l1_weight": -1.0}, "generator option l1_weight must not be negative, got -1"),
        (
            "pix2pix",
            {"ngff": 3},
            "unknown pix2pix option 'ngff'. Did you mean 'ngf'? There is: bfloat16, l1_weight, lr, max_yaw_change, ngf, size, steps.",
        ),
        ("pix2pix", {"max_yaw_change": 60.0}, "generator option max_yaw_change must lie in 0-45 degrees, got 60"),
        ("pix2pixhd", {"steps": 1}, "generator option steps must be at least 2, got 1"),
        ("pix2pixhd", {"scales": 1}, "generator option scales must be 2 or 3, got 1"),
        ("pix2pixhd", {"feature_weight": -2.0}, "generator option feature_weight must not be negative, got -2"),
        ("ganimation", {"steps": 4}, "generator option steps must be at least 5, got 4: the generator learns in every fifth"),
        ("ganimation", {"batch_size": 0}, "generator option batch_size must be above 0, got 0"),
        ("ganimation", {"max_pose_error": 60.0}, "generator option max_pose_error must lie in 0-45 degrees, got 60"),
    ],
)
def test_wrong_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        registry.create("generators", name, options)
    assert str(error.value) == message


def test_sizes_are_rounded_down_to_what_the_networks_take() -> None:
    given = {64: 64, 127: 64, 160: 128, 384: 256, 2000: 512}
    assert {size: registry.create("generators", "pix2pix", {"size": size}).size for size in given} == given


def test_landmarks_of_a_request_are_mesh_warps() -> None:
    """What is drawn follows the same points that mesh_warp moves the pixels to."""
    generator = ready("pix2pix")
    source = generator._sources[0]
    strength = np.zeros((2, len(AUS)))
    assert np.allclose(generator._moved(source, strength, 0.0, 0.0, (0.0, 0.0)), source.points, atol=1e-3)
    strength[:, AU12] = 4.0
    moved = generator._moved(source, strength, 0.0, 0.0, (0.0, 0.0)) - source.points
    expected = displacement(strength, aperture=generator._aperture) @ source.rotation.T * source.scale
    skin = np.setdiff1d(np.arange(468), mesh_warp._upper_edges())
    close = np.linalg.norm(moved - expected, axis=1)[skin] < 0.05
    assert close.mean() > 0.95 and moved[[61, 291], 1].max() < -0.3
    turned = generator._moved(source, 0 * strength, 0.0, 0.0, (0.0, 0.1))
    pose = geometry.fit_pose(turned)
    assert pose.angles[1] - geometry.fit_pose(source.points).angles[1] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("name", ["pix2pix", "pix2pix_au"])
def test_only_the_au_maps_see_the_aus(name: str) -> None:
    """With the same landmarks, AUs change the picture where there are AU maps, and only there."""
    generator = ready(name)
    source, off, on = generator._sources[0], np.zeros(len(AUS), np.float32), np.ones(len(AUS), np.float32)
    with torch.no_grad():
        with pix2pix.seeded(0):
            a = generator._draw(source, source.points, off)
        with pix2pix.seeded(0):
            b = generator._draw(source, source.points, on)
    assert np.array_equal(a, b) == (name == "pix2pix")
    assert generator.channels == (3 if name == "pix2pix" else 3 + len(AUS))


def test_what_the_frame_shows_is_told_to_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planes hold what is asked for; of AUs not asked for what the frame shows; the neutral's own reading counts as rest."""
    o = identity()
    reading = np.zeros((10, len(AUS)), np.float32)
    reading[:, AUS.index(4)], reading[:, AUS.index(15)], reading[:3, AUS.index(15)] = 2.0, 3.0, 1.0
    reading[:3, AUS.index(4)] = 0.0
    person = replace(o, intensity=reading)
    generator = registry.create("generators", "pix2pix_au", TINY["pix2pix_au"])
    generator.prepare(person, 0)
    given = []
    monkeypatch.setattr(generator, "_draw", lambda source, points, aus: given.append(aus) or np.zeros((64, 64, 3), np.float32))
    assert all(s.index < 3 for s in generator._sources)  # the calm ones; this is about another
    resting = np.median(reading[:3], axis=0)
    monkeypatch.setattr(generator, "_sources", [generator._source(person, 5, np.clip(reading[5] - resting, 0, None))])
    sample = generator.generate([Request({12: 2.5, 15: 1.0})])[0]
    assert given[0][AU12] == pytest.approx(0.5) and given[0][AUS.index(15)] == pytest.approx(0.2)
    assert given[0][AUS.index(4)] == pytest.approx(0.4) and not sample.known[AUS.index(4)]


def test_ganimation_does_not_move_the_mouth_or_the_head() -> None:
    sample = ready("ganimation").generate([Request({10: 5.0, 26: 2.0}, (0.0, 0.06, 0.0))])[0]
    assert sample.target[AU25] == 0.0 and sample.target[AUS.index(26)] == 2.0
    assert sample.info["yaw_change"] == 0.0 and sample.info["jaw"] == 0.0
    assert ready("ganimation").generate([Request({}, (0.0, -0.1, 0.0))]) == [None]  # 5.7 degrees from the nearest frame


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Two people's three pictures each, in place of renders."""
    views = [cv2.resize(o.view, (160, 160)) for o in identity().observations[:6] if o.view is not None]
    arrays = {
        "target": np.stack(views),
        "aus": np.random.default_rng(0).uniform(0, 5, (6, len(AUS))).astype(np.float32),
        "delta": np.zeros((6, len(AUS)), np.float32),
        "person": np.repeat(np.array([0, 1], np.int32), 3),
    }
    np.savez(tmp_path / "pairs.npz", **arrays)
    monkeypatch.setattr(_ganimation_fit, "make", lambda *_: [tmp_path / "pairs.npz"])
    return arrays


SMALL_FIT = ["--recipe", "ganimation", *(f"generator.options.{k}={v}" for k, v in (("size", 64), ("ngf", 4), ("blocks", 1)))]


def test_ganimation_learns_from_renders(shard: dict[str, np.ndarray], tmp_path: Path, command: Callable[..., Said]) -> None:
    """Weights and card are written; the card's errors are what a loop gives; a fit starts from the weights, or takes them as they are."""
    said = command("generator", "fit", "--output", tmp_path / "out", *SMALL_FIT, "optim.epochs=6", "optim.batch_size=3", "optim.lr=1e-3")
    path = tmp_path / "out" / "ganimation.safetensors"
    assert said.code == 0 and said.err[-1].startswith(f"wrote {path}")
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["data"] == "6 rendered pictures of 2 people; no photograph of anybody" and set(card["made"]) >= {"command", "date", "hours"}
    given = {**TINY["ganimation"], "weights": str(path), "steps": 0}
    taken = ganimation.GANimation(**given)
    net, critic = taken.networks()
    assert net.attention[0].bias.item() != 0 and critic.body[0].bias.abs().min() > 0, "both learned: they begin at 0"
    small = np.stack([cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA) for image in shard["target"]]).astype(np.float64)
    made, still = [], []
    for a, b in ((0, 1), (1, 2), (3, 4), (4, 5)):
        with torch.no_grad():
            x = torch.from_numpy(small[a : a + 1].transpose(0, 3, 1, 2) / 127.5 - 1).float()
            y = net(x, torch.from_numpy(shard["aus"][b : b + 1] / 5))[0][0].numpy().transpose(1, 2, 0) * 127.5 + 127.5
        made.append(np.abs(y - small[b]).mean() / 255)
        still.append(np.abs(small[a] - small[b]).mean() / 255)
    assert card["validation"]["still_error"] == pytest.approx(np.mean(still), abs=1e-4)
    assert card["validation"]["error"] == pytest.approx(np.mean(made), abs=2e-3), "half precision apart"
    assert not taken.learns_from_base and taken.content() != ganimation.GANimation(**TINY["ganimation"]).content()
    taken.prepare(identity(), 0)
    assert all(torch.equal(a, b) for a, b in zip(taken._net.parameters(), net.parameters(), strict=True)), "no step on the clip"
    tuned = ganimation.GANimation(**{**given, "steps": 5})
    tuned.prepare(identity(), 0)
    moved = sum((a - b).abs().max().item() for a, b in zip(tuned._net.parameters(), net.parameters(), strict=True))
    assert moved > 0 and tuned.learns_from_base
    with pytest.raises(ConfigError) as error:
        ganimation.GANimation(size=128, ngf=4, blocks=2, weights=str(path))
    other = "generator.options.size=64 generator.options.blocks=1"
    assert str(error.value) == f"the weights of ganimation at {path} are of another network: give {other}."
    path.with_suffix(".json").write_text("[]")
    with pytest.raises(ConfigError) as error:
        ganimation.GANimation(**given)
    assert str(error.value) == f"the weights of ganimation at {path} have no card that can be read: train them anew."


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["model.said=32"], "model.said is of au_residual's network: ganimation's is set by generator.options."),
        (["optim.weight_decay=0.1"], "optim.weight_decay=0.1: the optimizer of ganimation has none, leave it 0."),
    ],
)
def test_what_ganimation_does_not_read_is_refused(words: list[str], line: str, tmp_path: Path, command: Callable[..., Said]) -> None:
    said = command("generator", "fit", "--output", tmp_path / "out", *SMALL_FIT, *words)
    assert said.code == 2 and said.err[-1] == f"error: {line}" and not (tmp_path / "out").exists()


def test_ganimation_with_closed_attention_is_the_view() -> None:
    generator = registry.create("generators", "ganimation", TINY["ganimation"])
    generator.prepare(identity(), 0)
    generator._net.attention[0].weight.data.zero_()
    generator._net.attention[0].bias.data.fill_(-200.0)
    sample = generator.generate([Request({12: 4.0})])[0]
    source = next(s for s in generator._sources if s.index == sample.source)
    assert np.array_equal(sample.image, source.image)


def test_plugins_are_listed_without_torch_and_the_shared_file_is_none() -> None:
    listed = registry.available("generators")
    assert {"pix2pix", "pix2pix_au", "pix2pixhd", "ganimation"} <= set(listed) and "_gan" not in listed
    assert listed["pix2pix"].summary == (
        "pix2pix on landmark maps, trained on the clip's own frames (Isola et al., CVPR 2017): the anchor as published."
    )
    assert "l1_weight: 100.0" in registry.describe(listed["pix2pix_au"])
