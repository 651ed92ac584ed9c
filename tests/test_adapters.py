"""Adapters: what moves, what does not, how small the delta is, and that a fresh base with it gives the same outputs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from personalize.adapters import Adapter, size
from personalize.errors import ConfigError, ProfileError
from personalize.model import AUNet
from personalize_plugins.adapters.full import Full
from personalize_plugins.adapters.head import Head
from personalize_plugins.adapters.lora import LoRA
from personalize_plugins.adapters.norm import Norm


@pytest.fixture(scope="module")
def shipped() -> AUNet:
    torch.manual_seed(0)
    return AUNet(backbone="mobilenetv4_conv_small_050").eval()


@pytest.fixture
def base(shipped: AUNet) -> AUNet:
    return copy.deepcopy(shipped)


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    crop = torch.randint(0, 256, (4, 3, 112, 112), generator=g, dtype=torch.uint8)
    return crop, torch.randn(4, 478, 3, generator=g), torch.ones(4, dtype=torch.bool)


def outputs(model: nn.Module, inputs: tuple[torch.Tensor, ...], flip: bool = True) -> torch.Tensor:
    """Eval-mode logits, with a neutral, so that every branch takes part."""
    model.eval()
    with torch.no_grad():
        crop, landmarks, has = inputs
        neutral = model.neutral_features(crop.flip(0), landmarks.flip(0)) if flip else None
        return model(crop, landmarks, has, neutral=neutral)["logits"]


def learn(
    model: AUNet, adapter: Adapter, parameters: list[nn.Parameter], inputs: tuple[torch.Tensor, ...], steps: int = 3, lr: float = 0.01
) -> None:
    optimizer = torch.optim.Adam(parameters, lr=lr)
    adapter.train_mode(model)
    for _ in range(steps):
        crop, landmarks, has = inputs
        out = model(crop, landmarks, has, neutral=model.neutral_features(crop.flip(0), landmarks.flip(0)))
        optimizer.zero_grad()
        (out["intensity"] - 3).square().mean().backward()
        optimizer.step()


ADAPTERS: dict[str, Any] = {
    "head": Head,
    "head+fuse": lambda **o: Head(fuse_layers=2, **o),
    "norm": Norm,
    "norm+head": lambda **o: Norm(head=True, **o),
    "lora": LoRA,
    "lora+all": lambda **o: LoRA(rank=2, alpha=4.0, backbone=True, also=["head.first_cut", "fuse.*.bias"], **o),
    "lora+changed": lambda **o: LoRA(also=["head.*"], **o),
    "full": Full,
    "full+bn": lambda **o: Full(batchnorm="adapt", **o),
}


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("name", list(ADAPTERS))
def test_a_fresh_base_with_the_delta_gives_the_same_outputs(name: str, half: bool, base: AUNet, inputs: tuple[torch.Tensor, ...]) -> None:
    fresh, adapter = copy.deepcopy(base), ADAPTERS[name](half=half)
    before = outputs(base, inputs)
    parameters = adapter.apply(base)
    assert torch.equal(outputs(base, inputs), before)  # applying changes nothing yet
    assert adapter.delta(base) == {}
    learn(base, adapter, parameters, inputs)
    delta = adapter.delta(base)
    assert all(value.device.type == "cpu" and value.is_contiguous() for value in delta.values())
    adapted = outputs(base, inputs)
    moved = float((adapted - before).abs().max())
    assert moved > 0.05
    ADAPTERS[name]().restore(fresh, delta)  # default options: a delta explains itself
    exact = not half and not name.startswith("lora")
    restored = outputs(fresh, inputs)
    assert torch.equal(restored, adapted) if exact else float((restored - adapted).abs().max()) < (0.01 if half else 1e-4) * max(moved, 1)
    assert not any(".lora." in key for key in fresh.state_dict())  # merged: nothing extra to compute


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_only_what_is_said_to_move_moves(name: str, base: AUNet, inputs: tuple[torch.Tensor, ...]) -> None:
    adapter = ADAPTERS[name]()
    start = {key: value.clone() for key, value in base.state_dict().items()}
    parameters = adapter.apply(base)
    ids = {id(p) for p in parameters}
    assert len(ids) == len(parameters) and all((id(p) in ids) == p.requires_grad for p in base.parameters())
    learn(base, adapter, parameters, inputs)
    changed = {key for key, value in base.state_dict().items() if key in start and not torch.equal(value, start[key])}
    kinds = {key for key in changed if key.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert bool(kinds) is (name == "full+bn")  # the statistics that people share
    rest = changed - kinds
    norms = {f"{n}.{leaf}" for n, m in base.named_modules() if isinstance(m, (nn.BatchNorm2d, nn.LayerNorm)) for leaf in ("weight", "bias")}
    allowed = {
        "head": lambda k: k.startswith("head."),
        "head+fuse": lambda k: k.startswith(("head.", "fuse.1.", "fuse.4.")),
        "norm": lambda k: k in norms,
        "norm+head": lambda k: k in norms or k.startswith("head."),
        "lora": lambda k: False,
        "lora+all": lambda k: k == "head.first_cut" or (k.startswith("fuse.") and k.endswith(".bias")),
        "lora+changed": lambda k: k.startswith("head."),
        "full": lambda k: True,
        "full+bn": lambda k: True,
    }[name]
    assert all(allowed(key) for key in rest) and (rest or name == "lora")


def test_deltas_are_small() -> None:
    model = AUNet()  # the default size
    for adapter, limit in ((LoRA(), 150_000), (LoRA(rank=16, backbone=True), 1_000_000), (Head(), 20_000), (Norm(), 60_000)):
        net = copy.deepcopy(model)
        for p in adapter.apply(net):
            p.data += 0.01
        delta = adapter.delta(net)
        assert 0 < size(delta) < limit
        assert all(value.dtype == torch.float16 for value in delta.values())


def test_lora_is_the_closed_form_on_linear_and_strided_convolution() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1, stride=2, bias=False), nn.Flatten(), nn.Linear(8 * 9, 5))
    plain, x = copy.deepcopy(net), torch.randn(2, 3, 6, 6)
    adapter = LoRA(rank=2, alpha=6.0, targets=["*"])
    adapter.apply(net)
    for module, twin in ((net[0], plain[0]), (net[2], plain[2])):
        module.lora.b.data.normal_()
        twin.weight.data += 3 * (module.lora.b @ module.lora.a).detach().view_as(twin.weight)
    torch.testing.assert_close(net(x), plain(x), rtol=1e-4, atol=1e-5)
    assert all(int(torch.linalg.matrix_rank(m.lora.b @ m.lora.a)) == 2 for m in (net[0], net[2]))
    assert torch.equal(
        *(next(LoRA(targets=["*"], seed=1).insert(copy.deepcopy(plain)).__iter__()) for _ in range(2))
    )  # the same on every rank


def test_lora_leaves_the_names_of_the_base_and_copies_well(base: AUNet, inputs: tuple[torch.Tensor, ...]) -> None:
    names = set(base.state_dict())
    adapter = LoRA()
    parameters = adapter.apply(base)
    assert names < set(base.state_dict()) and all(".lora." in name for name in set(base.state_dict()) - names)
    learn(base, adapter, parameters, inputs)
    twin = copy.deepcopy(base)  # as a teacher is made
    assert torch.equal(outputs(twin, inputs), outputs(base, inputs))
    for p in parameters:
        p.data += 0.1
    assert not torch.equal(outputs(twin, inputs), outputs(base, inputs))


@pytest.mark.parametrize("name", ["head", "lora+all", "full+bn"])
def test_the_adapted_model_goes_back_to_an_earlier_delta(name: str, base: AUNet, inputs: tuple[torch.Tensor, ...]) -> None:
    adapter = ADAPTERS[name](half=False)
    before, parameters = outputs(base, inputs), adapter.apply(base)
    learn(base, adapter, parameters, inputs)
    good, delta = outputs(base, inputs), adapter.delta(base)
    learn(base, adapter, parameters, inputs, lr=0.1)
    assert not torch.allclose(outputs(base, inputs), good, atol=0.1)
    adapter.restore(base, delta)
    torch.testing.assert_close(outputs(base, inputs), good, rtol=1e-5, atol=1e-5)
    adapter.restore(base, {})
    torch.testing.assert_close(outputs(base, inputs), before, rtol=1e-5, atol=1e-5)


def test_train_mode_keeps_statistics_and_frozen_parts_still(base: AUNet) -> None:
    for adapter, dropout, backbone in ((Head(), False, False), (LoRA(), True, False), (Full(), True, True), (Full("adapt"), True, True)):
        net = copy.deepcopy(base)
        adapter.apply(net)
        net.train()
        adapter.train_mode(net)
        norms = [m for m in net.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {m.training for m in norms} == {adapter.adapts_batchnorm}
        assert net.fuse[3].training is dropout  # an nn.Dropout
        assert net.backbone.training is backbone
        assert net.head.training


def test_a_huge_difference_is_kept_whole_and_a_tiny_one_is_not_lost(base: AUNet) -> None:
    adapter, fresh = Head(), copy.deepcopy(base)
    adapter.apply(base)
    base.head.latent.weight.data[0, 0] += 1e6
    base.head.first_cut.data.add_(1e-6)
    adapter.restore(base, adapter.delta(base))
    Head().restore(fresh, adapter.delta(base))
    assert torch.equal(fresh.head.latent.weight, base.head.latent.weight)
    torch.testing.assert_close(fresh.head.first_cut, torch.full((22,), 1e-6), rtol=0.05, atol=0)


def test_errors_are_one_line_and_change_nothing(base: AUNet, inputs: tuple[torch.Tensor, ...]) -> None:
    start = outputs(base, inputs)
    with pytest.raises(ConfigError, match=r"^the adapter head needs a part 'head', the model has: 0\.$"):
        Head().apply(nn.Sequential(nn.Linear(1, 1)))
    with pytest.raises(ConfigError, match=r"^fuse_layers of head is 9; fuse has 3 layers with parameters\.$"):
        Head(fuse_layers=9).apply(base)
    with pytest.raises(ConfigError, match=r"^the adapter norm found no normalisation layer"):
        Norm().apply(nn.Linear(1, 1))
    with pytest.raises(ConfigError, match=r"^targets of lora match no linear layer or 1x1 convolution; there is: 0, 1\.$"):
        LoRA().apply(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)))
    with pytest.raises(ConfigError, match=r"^'bias' in also of lora matches no parameter"):
        LoRA(also=["bias"]).apply(base)
    with pytest.raises(ConfigError, match=r"^unknown batchnorm of full 'adpt'\. Did you mean 'adapt'\? There is: adapt, keep\.$"):
        Full(batchnorm="adpt")
    with pytest.raises(ConfigError, match=r"^the adapter Full was not applied to this model; call apply\(model\) first\.$"):
        Full().delta(base)
    assert all(p.requires_grad for p in base.parameters())
    good = {"difference/head.first_cut": torch.ones(22)}
    for bad, message in (
        (
            {"difference/head.first_cat": torch.ones(22)},
            r"^the profile changes 'head.first_cat' \(22,\), but this base model has no such part; it belongs",
        ),
        (
            {"value/head.gaps": torch.ones(3)},
            r"^the profile changes 'head.gaps' \(3,\), but this base model has it as \(22, 4\); it belongs to another",
        ),
        ({"lora/fuse.0.a": torch.ones(2, 772)}, r"^the profile holds '?lora|^the profile holds half of a low-rank change"),
        ({"lora/fuse.0.a": torch.ones(2, 5), "lora/fuse.0.b": torch.ones(256, 2)}, r"^the profile changes 'fuse.0', which this base"),
    ):
        with pytest.raises(ProfileError, match=message):
            LoRA().restore(base, {**good, **bad})
    with pytest.raises(
        ProfileError, match=r"^the profile holds 'lora/x.a', which the adapter Head does not know; use the adapter that wrote it\.$"
    ):
        Head().restore(base, {**good, "lora/x.a": torch.ones(1)})
    assert torch.equal(outputs(base, inputs), start)
    adapter = Full()
    adapter.apply(base)
    with pytest.raises(ConfigError, match=r"^the adapter Full was already applied to this model\.$"):
        adapter.apply(base)
