"""The network and its loss against closed forms; what is masked has no influence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from personalize.aus import AUS
from personalize.model import CROP, POINTS, AUNet, OrdinalHead, ordinal_loss
from personalize.weights import load_base, save_base

K = len(AUS)


def make_net(seed: int = 0) -> AUNet:
    torch.manual_seed(seed)
    return AUNet(backbone="mobilenetv4_conv_small_050", width=32, hidden=48).eval()


@pytest.fixture(scope="module")
def net() -> AUNet:
    return make_net()


@pytest.fixture
def faces() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    crop = torch.randint(0, 256, (3, 3, CROP, CROP), generator=draw, dtype=torch.uint8)
    return {"crop": crop, "landmarks": torch.randn(3, POINTS, 3, generator=draw), "has_landmarks": torch.ones(3, dtype=torch.bool)}


def other(faces: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other pictures and points, the same flags."""
    return {**faces, "crop": 255 - faces["crop"], "landmarks": faces["landmarks"].flip(0) + 1}


# The loss


def written_out(logits: np.ndarray, target: np.ndarray, mask: np.ndarray, weight: np.ndarray) -> float:
    """The loss as its formula says, one label at a time."""
    total = known = 0.0
    for b, k in zip(*np.nonzero(mask), strict=True):
        for j in range(1, 6):
            p = 1 / (1 + np.exp(-logits[b, k, j - 1]))
            y = min(max(target[b, k] - j + 1, 0.0), 1.0)
            total -= weight[b] * (y * np.log(p) + (1 - y) * np.log(1 - p))
        known += weight[b]
    return total / known


def test_loss_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(0, 2, (4, K, 5)), rng.uniform(0, 5, (4, K))
    mask, weight = rng.random((4, K)) < 0.6, rng.uniform(0.1, 2, 4)
    ours = ordinal_loss(*(torch.tensor(a) for a in (logits, target, mask)), torch.tensor(weight)[:, None])
    assert float(ours) == pytest.approx(written_out(logits, target, mask, weight), rel=1e-9)


@pytest.mark.parametrize("y", [0.4, 1.0, 2.4, 3.75, 4.9])
def test_the_best_latent_expects_the_target(y: float) -> None:
    """d loss / d z = expected intensity - y, whatever the cut points: the minimum lies where they are equal, and only there."""
    cuts = torch.tensor([-1.3, 0.2, 0.9, 2.0, 4.1], dtype=torch.float64)

    def slope(z: float) -> float:
        latent = torch.tensor(z, dtype=torch.float64, requires_grad=True)
        ordinal_loss((latent - cuts)[None, None], torch.tensor([[y]]), torch.ones(1, 1, dtype=torch.bool)).backward()
        assert latent.grad is not None
        assert float(latent.grad) == pytest.approx(float(torch.sigmoid(latent.detach() - cuts).sum()) - y, abs=1e-6)
        return float(latent.grad)

    best = brentq(slope, -30, 30)
    assert float(torch.sigmoid(best - cuts).sum()) == pytest.approx(y, abs=1e-5)
    assert slope(best - 0.1) < 0 < slope(best + 0.1)


def test_free_logits_reach_the_entropy_of_the_soft_label() -> None:
    """With all levels free the smallest loss is the label's own entropy: -0.4 ln 0.4 - 0.6 ln 0.6 for 2.4."""
    p = torch.tensor([1, 1, 0.4, 0, 0], dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    loss = ordinal_loss(torch.logit(p)[None, None], torch.tensor([[2.4]]), torch.ones(1, 1, dtype=torch.bool))
    assert float(loss) == pytest.approx(-0.4 * np.log(0.4) - 0.6 * np.log(0.6), abs=1e-6)


def test_unknown_labels_and_no_labels() -> None:
    logits = torch.randn(2, K, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask = torch.zeros(2, K, dtype=torch.bool)
    ordinal_loss(logits, torch.zeros(2, K), mask).backward()
    assert logits.grad is not None and not logits.grad.any()
    mask[0, 3] = True
    target = torch.zeros(2, K)
    a = ordinal_loss(logits, target, mask)
    target[~mask] = 4.0
    assert float(a) == float(ordinal_loss(logits, target, mask))


# The head


def test_thresholds_are_ordered_and_intensity_rises_with_the_latent() -> None:
    torch.manual_seed(0)
    head = OrdinalHead(1, K)
    torch.nn.init.normal_(head.gaps, std=20.0)  # far into softplus' flat part
    torch.nn.init.normal_(head.first_cut, std=3.0)
    assert bool((head.cuts().diff(dim=1) >= 0.049).all())
    torch.nn.init.ones_(head.latent.weight)
    logits = head(torch.linspace(-5, 5, 101)[:, None])
    assert bool((logits.diff(dim=2) < 0).all()), "P(y >= j) falls with j"
    intensity = torch.sigmoid(logits.double()).sum(-1)
    assert bool((intensity.diff(dim=0) > 0).all())
    assert float(intensity.detach().min()) >= 0 and float(intensity.detach().max()) <= 5


# Masks


def say(net: AUNet, faces: dict[str, Tensor], **more: object) -> Tensor:
    with torch.no_grad():
        return net(**faces, **more)["intensity"]


def test_without_a_mask_everything_counts(net: AUNet, faces: dict[str, Tensor]) -> None:
    with torch.no_grad():
        rest, strange = (net.neutral_features(f["crop"], f["landmarks"]) for f in (faces, other(faces)))
    said = say(net, faces, neutral=strange)
    for changed in (
        say(net, {**faces, "crop": other(faces)["crop"]}, neutral=strange),
        say(net, {**faces, "landmarks": other(faces)["landmarks"]}, neutral=strange),
        say(net, faces, neutral={**strange, "crop": rest["crop"]}),
        say(net, faces, neutral={**strange, "landmarks": rest["landmarks"]}),
        say(net, faces),
    ):
        assert bool((changed != said).any(dim=1).all())


@pytest.mark.parametrize(("flag", "field"), [("has_landmarks", "landmarks"), ("has_crop", "crop")])
def test_an_absent_branch_is_ignored(net: AUNet, faces: dict[str, Tensor], flag: str, field: str) -> None:
    off = torch.tensor([False, True, False])
    with torch.no_grad():
        rest, strange = (net.neutral_features(f["crop"], f["landmarks"]) for f in (faces, other(faces)))
    key = "crop" if field == "crop" else "landmarks"
    before = say(net, {**faces, **({flag: off} if flag in faces else {})}, neutral=rest, **({} if flag in faces else {flag: off}))
    changed = {**faces, field: other(faces)[field], **({flag: off} if flag in faces else {})}
    after = say(net, changed, neutral={**rest, key: strange[key]}, **({} if flag in faces else {flag: off}))
    torch.testing.assert_close(after[~off], before[~off], rtol=0, atol=0)
    assert bool((after[off] != before[off]).any())


def test_landmarks_alone_have_no_depth(net: AUNet, faces: dict[str, Tensor]) -> None:
    off = torch.tensor([True, False, True])
    deep = {**faces, "landmarks": faces["landmarks"] * torch.tensor([1.0, 1.0, -2.0])}
    unknown = {**faces, "landmarks": faces["landmarks"] * torch.tensor([1.0, 1.0, float("nan")])}
    with torch.no_grad():
        rest = net.neutral_features(other(faces)["crop"], other(faces)["landmarks"])
    for neutral in (None, rest, {**rest, "landmarks": rest["landmarks"] * torch.tensor([1.0, 1.0, 3.0])}):
        said, moved, flat = (say(net, f, neutral=neutral, has_crop=off) for f in (faces, deep, unknown))
        torch.testing.assert_close(moved[1], said[1], rtol=0, atol=0)
        torch.testing.assert_close(flat[1], said[1], rtol=0, atol=0)
        assert bool((moved[[0, 2]] != said[[0, 2]]).any(1).all())
    torch.testing.assert_close(
        say(net, faces, neutral=neutral, has_crop=off)[1], say(net, faces, neutral=rest, has_crop=off)[1], rtol=0, atol=0
    )


def test_an_absent_neutral_is_ignored(net: AUNet, faces: dict[str, Tensor]) -> None:
    has = torch.tensor([True, False, False])
    with torch.no_grad():
        rest, strange = (net.neutral_features(f["crop"], f["landmarks"]) for f in (faces, other(faces)))
    a, b, none = say(net, faces, neutral=rest, has_neutral=has), say(net, faces, neutral=strange, has_neutral=has), say(net, faces)
    torch.testing.assert_close(a[1:], b[1:], rtol=0, atol=0)
    torch.testing.assert_close(a[1:], none[1:], rtol=0, atol=1e-6)
    assert bool((a[0] != b[0]).any())


def test_a_frame_that_is_the_neutral_has_no_shift(net: AUNet, faces: dict[str, Tensor]) -> None:
    seen: dict[str, Tensor] = {}
    hooks = [
        net.fuse.register_forward_pre_hook(lambda _, given: seen.update(fused=given[0])),
        net.shift_project.register_forward_pre_hook(lambda _, given: seen.update(shift=given[0])),
    ]
    with torch.no_grad():
        rest = net.neutral_features(faces["crop"], faces["landmarks"])
        net(**faces, neutral=rest)
    for hook in hooks:
        hook.remove()
    width = net.config["width"]
    assert not seen["shift"].any()
    assert not seen["fused"][:, 2 * width : 3 * width].any()
    assert bool((seen["fused"][:, -4:] == 1).all()), "the flags say that everything is known"


def test_one_neutral_serves_a_batch(net: AUNet, faces: dict[str, Tensor]) -> None:
    with torch.no_grad():
        one = net.neutral_features(faces["crop"][:1], faces["landmarks"][:1])
    many = {k: v.expand(3, *v.shape[1:]) for k, v in one.items()}
    torch.testing.assert_close(say(net, faces, neutral=one), say(net, faces, neutral=many), rtol=0, atol=0)


def test_bytes_and_floats_agree(net: AUNet, faces: dict[str, Tensor]) -> None:
    torch.testing.assert_close(say(net, {**faces, "crop": faces["crop"].float()}), say(net, faces), rtol=0, atol=0)


# Weights


def test_state_dict_round_trip(net: AUNet, faces: dict[str, Tensor]) -> None:
    again = make_net(seed=7)
    assert not torch.equal(say(again, faces), say(net, faces))
    again.load_state_dict(net.state_dict())
    assert torch.equal(say(again, faces), say(net, faces))


def test_half_precision_file(net: AUNet, faces: dict[str, Tensor], tmp_path: Path) -> None:
    """A base is written as float16 and read as float32: every weight is the half nearest to it, and the reading hardly moves."""
    card = {"name": "small", "aus": list(AUS), "model": net.config, "thresholds": [1.0] * K}
    save_base(tmp_path / "small", net, card)
    base = load_base(str(tmp_path / "small"))
    ours, theirs = net.state_dict(), base.net.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert theirs[name].dtype == value.dtype
        expected = torch.from_numpy(value.numpy().astype(np.float16).astype(np.float32)) if value.is_floating_point() else value
        assert torch.equal(theirs[name], expected), name
    assert (say(base.net, faces) - say(net, faces)).abs().max() < 0.02
    assert (tmp_path / "small.safetensors").stat().st_size < 2.1 * sum(v.numel() for v in ours.values()) + 100_000
    copy = base.fresh()
    assert torch.equal(say(copy, faces), say(base.net, faces)) and copy.head.first_cut is not base.net.head.first_cut


def test_landmarks_have_their_share_of_the_latent() -> None:
    """Where both branches see, logits are mixed AU by AU; where one is missing, the other speaks alone."""
    torch.manual_seed(2)
    share = [0.0, 1.0, 0.25] + [0.5] * (K - 3)
    net = AUNet(backbone="mobilenetv4_conv_small_050", width=32, hidden=48, landmark_share=share).eval()
    plain = AUNet(backbone="mobilenetv4_conv_small_050", width=32, hidden=48).eval()
    plain.load_state_dict({**net.state_dict(), "landmark_share": torch.zeros(K)})
    draw = torch.Generator().manual_seed(1)
    crop, points = torch.randint(0, 256, (3, 3, CROP, CROP), generator=draw, dtype=torch.uint8), torch.randn(3, POINTS, 3, generator=draw)
    has, off = torch.tensor([True, True, False]), torch.zeros(3, dtype=torch.bool)
    with torch.no_grad():
        mixed, fused = net(crop, points, has), plain(crop, points, has)
        alone = plain(crop, points, has, has_crop=off)
        weight = torch.tensor(share)[None, :, None] * has[:, None, None]
        torch.testing.assert_close(mixed["logits"], (1 - weight) * fused["logits"] + weight * alone["logits"])
        torch.testing.assert_close(mixed["intensity"], torch.sigmoid(mixed["logits"]).sum(-1))
        torch.testing.assert_close(net(crop, points, has, has_crop=off)["logits"], alone["logits"])
        torch.testing.assert_close(net(crop, points, off)["logits"], plain(crop, points, off)["logits"])
        # Beside a known neutral landmarks say a quarter as much.
        rest, known = net.neutral_features(crop.flip(0), points.flip(0)), torch.tensor([True, False, True])
        given = {"neutral": rest, "has_neutral": known}
        fused, alone = plain(crop, points, has, **given), plain(crop, points, has, has_crop=off, **given)
        weight = weight * torch.tensor([0.25, 1.0, 1.0])[:, None, None]
        expected = (1 - weight) * fused["logits"] + weight * alone["logits"]
        torch.testing.assert_close(net(crop, points, has, **given)["logits"], expected)
        torch.testing.assert_close(net(crop, points, has, rest)["logits"][0], expected[0])
