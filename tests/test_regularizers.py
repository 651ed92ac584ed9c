"""Regularizers against closed forms, autograd, finite differences and enumeration."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from personalize.errors import ConfigError
from personalize.model import OrdinalHead
from personalize.regularizers import ParameterRegularizer, eval_mode, log_probabilities, negative_log_likelihood
from personalize_plugins.regularizers.ewc import EWC
from personalize_plugins.regularizers.l2sp import L2SP
from personalize_plugins.regularizers.lwf import LwF, bernoulli_kl


class Small(nn.Module):
    """Three AUs, with BatchNorm and dropout, whose modes matter."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.body = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5))
        self.head = OrdinalHead(5, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.body(self.frozen(x)))}


def predict(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return model(batch["x"])


def linear(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"logits": model(batch["x"])}


@pytest.fixture
def small() -> Small:
    torch.manual_seed(0)
    model = Small().double()
    model(torch.randn(50, 6).double() * 2 + 1)  # BatchNorm statistics that are not those of a batch
    return model


def batch(n: int = 20, seed: int = 1) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(n, 6, generator=g).double(),
        "target": torch.randint(0, 6, (n, 3), generator=g).double(),
        "mask": torch.rand(n, 3, generator=g) > 0.3,
    }


def trainable(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


def shift(model: nn.Module, seed: int = 2) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=g, dtype=p.dtype)


REGULARIZERS: list[Any] = [
    lambda: L2SP(weight=0.7),
    lambda: EWC(weight=3.0),
    lambda: EWC(weight=3.0, fisher="exact"),
    lambda: L2SP(0.5, 0.2, ["head.*"]),
]


# The base class


@pytest.mark.parametrize("make", REGULARIZERS)
def test_gradients_are_the_finite_differences_of_the_penalty_and_add_to_what_is_there(make: Any, small: Small) -> None:
    regularizer: ParameterRegularizer = make()
    regularizer.start(small, [batch()], predict=predict)
    shift(small)
    for p in small.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    small.body[0].bias.grad = None  # a gradient that backward did not make
    regularizer.gradients(small.named_parameters())
    for name, p in small.named_parameters():
        if not p.requires_grad:
            assert p.grad is None
            continue
        flat = p.data.view(-1)
        for i in (0, flat.numel() - 1):
            old, values = float(flat[i]), []
            for step in (1e-4, -1e-4):
                flat[i] = old + step
                values.append(float(regularizer.penalty(small.named_parameters())))
            flat[i] = old
            there = 0.0 if name == "body.0.bias" else 1.0
            assert p.grad is not None
            assert float(p.grad.view(-1)[i]) - there == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("make", REGULARIZERS)
def test_start_leaves_model_modes_gradients_and_random_numbers_as_they_were(make: Any, small: Small) -> None:
    small.train()
    small.body[1].eval()
    modes = [m.training for m in small.modules()]
    state, rng = copy.deepcopy(small.state_dict()), torch.get_rng_state()
    make().start(small, [batch()], predict=predict)
    assert [m.training for m in small.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(state.values(), small.state_dict().values(), strict=True))
    assert all(p.grad is None for p in small.parameters())
    assert torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize("make", REGULARIZERS)
def test_anchors_never_alias_the_parameters_and_only_trainable_ones_are_held(make: Any, small: Small) -> None:
    regularizer = make()
    regularizer.start(small, [batch()], predict=predict)
    assert list(regularizer.anchors) == trainable(small) == list(regularizer.importances)
    at_start = float(regularizer.penalty(small.named_parameters()))
    shift(small)
    assert float(regularizer.penalty(small.named_parameters())) > at_start


@pytest.mark.parametrize("make", REGULARIZERS)
def test_state_restores_the_same_gradients(make: Any, small: Small) -> None:
    one, two = make(), make()
    one.start(small, [batch()], predict=predict)
    state = one.state_dict()
    shift(small)
    two.load_state_dict(state)
    grads = []
    for regularizer in (one, two):
        small.zero_grad()
        regularizer.gradients(small.named_parameters())
        grads.append([p.grad.clone() for p in small.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    # The state is a copy: going on does not change it.
    one.anchors["head.latent.weight"].add_(1)
    assert torch.equal(state["anchors"]["head.latent.weight"], two.anchors["head.latent.weight"])


def test_stiffness_is_where_descent_diverges() -> None:
    for factor, diverges in ((0.95, False), (1.05, True)):
        model = nn.Linear(1, 1, bias=False)
        regularizer = L2SP(weight=factor * 2 / 0.1)
        regularizer.start(model)
        model.weight.data += 1
        for _ in range(200):
            model.zero_grad()
            regularizer.gradients(model.named_parameters())
            model.weight.data -= 0.1 * model.weight.grad
        assert (float(regularizer.penalty(model.named_parameters())) > 10) is diverges
        if diverges:
            with pytest.raises(ConfigError) as error:
                regularizer.check_stiffness(0.1)
            assert str(error.value) == (
                "l2sp is too stiff and would diverge: lr x weight x largest importance is 2.1, above 2; "
                "set its weight below 20 or lower lr."
            )
        else:
            regularizer.check_stiffness(0.1)


def test_stiffness_under_adam_is_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    regularizer = L2SP(weight=100.0)
    regularizer.start(nn.Linear(1, 1))
    regularizer.check_stiffness(0.1, adaptive=True)
    assert (
        "l2sp is stiff: lr x weight x largest importance is 10, above 2; expect swings, or set its weight below 20."
        in capfd.readouterr().err
    )


def test_errors_are_one_line(small: Small) -> None:
    with pytest.raises(ConfigError, match=r"^L2SP has no anchors; call start\(model, \.\.\.\) before the first step\.$"):
        L2SP().gradients(small.named_parameters())
    regularizer = L2SP()
    regularizer.start(small)
    with pytest.raises(ConfigError, match=r"^L2SP found 0 of its 8 parameters; start it again"):
        regularizer.penalty([(f"module.{n}", p) for n, p in small.named_parameters()])
    with pytest.raises(ConfigError, match=r"^L2SP holds 'head.first_cut' of shape \(3,\), the model \(4,\)"):
        regularizer.penalty(nn.ParameterDict({"head": nn.ParameterDict({"first_cut": nn.Parameter(torch.zeros(4))})}).named_parameters())
    with pytest.raises(ConfigError, match=r"^no parameter of the model is trainable; apply an adapter first\.$"):
        L2SP().start(small.frozen)
    with pytest.raises(ConfigError, match=r"^the weight of EWC is -1; it must be 0 or more\.$"):
        EWC(weight=-1)
    with pytest.raises(ConfigError, match=r"^unknown fisher 'exakt'\. Did you mean 'exact'\?"):
        EWC(fisher="exakt")
    with pytest.raises(ConfigError, match=r"^ewc got no samples to weigh parameters with"):
        EWC().start(small, [], predict=predict)
    with pytest.raises(ConfigError, match=r"^lwf has no teacher; call start\(model\) before the first step\.$"):
        LwF().loss(small, batch(), predict(small, batch()))


# L2-SP


def test_l2sp_is_the_formula_of_the_paper(small: Small) -> None:
    regularizer = L2SP(weight=0.3, new_weight=0.8, new=["head.*"])
    start = {name: p.detach().clone() for name, p in small.named_parameters()}
    regularizer.start(small)
    shift(small)
    expected = 0.0
    for name, p in small.named_parameters():
        if name.startswith("head."):
            expected += 0.8 / 2 * float((p.detach() ** 2).sum())
        elif p.requires_grad:
            expected += 0.3 / 2 * float(((p.detach() - start[name]) ** 2).sum())
    assert float(regularizer.penalty(small.named_parameters())) == pytest.approx(expected)


# EWC


def test_fisher_is_the_mean_of_squared_per_sample_gradients_by_plain_autograd(small: Small) -> None:
    data = batch()
    expected = {name: torch.zeros_like(p) for name, p in small.named_parameters() if p.requires_grad}
    small.eval()
    for i in range(20):
        small.zero_grad()
        one = {name: value[i : i + 1] for name, value in data.items()}
        logits = predict(small, one)["logits"]
        # Written out: P(y = j) from neighbouring sigmoids.
        above = torch.cat([torch.ones(1, 3, 1), torch.sigmoid(logits), torch.zeros(1, 3, 1)], -1)
        p = (above[..., :-1] - above[..., 1:]).gather(-1, one["target"].long()[..., None])[..., 0]
        (-(torch.log(p) * one["mask"]).sum()).backward()
        for name, parameter in small.named_parameters():
            if parameter.grad is not None:
                expected[name] += parameter.grad**2 / 20
    small.zero_grad()
    small.train()
    fishers = []
    for chunk, cut in ((1, 1), (8, 3), (64, 20)):  # neither the chunk nor the caller's batch size matters
        ewc = EWC(chunk=chunk)
        ewc.start(small, [{name: value[i : i + cut] for name, value in data.items()} for i in range(0, 20, cut)], predict=predict)
        fishers.append(ewc.importances)
    for fisher in fishers:
        for name, value in expected.items():
            torch.testing.assert_close(fisher[name], value, rtol=1e-9, atol=1e-12)


def test_exact_fisher_of_logistic_regression_is_the_closed_form() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    x = torch.randn(400, 3)
    ewc = EWC(fisher="exact", likelihood="categorical", draws=60, chunk=400, samples=400)
    ewc.start(model, [{"x": x, "target": torch.zeros(400, dtype=torch.int64)}], predict=linear)
    p = torch.softmax(model(x), 1).detach()
    expected = torch.einsum("nc,nd->cd", p * (1 - p), x**2) / 400
    torch.testing.assert_close(ewc.importances["weight"], expected, rtol=0.03, atol=0)
    torch.testing.assert_close(ewc.importances["bias"], (p * (1 - p)).mean(0), rtol=0.03, atol=0)


def test_exact_fisher_of_the_ordinal_head_agrees_with_the_sum_over_all_labels() -> None:
    torch.manual_seed(0)
    model = OrdinalHead(2, 2).double()
    x = torch.randn(30, 2).double()

    def call(m: nn.Module, b: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": m(b["x"])}

    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in x:
        for au in range(2):
            p_now = log_probabilities(model(row[None])[0, au], "ordinal").exp().detach()
            for level in range(6):
                model.zero_grad()
                log_probabilities(model(row[None])[0, au], "ordinal")[level].backward()
                for name, p in model.named_parameters():
                    if p.grad is not None:
                        expected[name] += p_now[level] * p.grad**2 / 30  # scores of different AUs are uncorrelated
    model.zero_grad()
    ewc = EWC(fisher="exact", draws=400, chunk=30)
    ewc.start(model, [{"x": x, "target": torch.zeros(30, 2).double(), "mask": torch.zeros(30, 2, dtype=torch.bool)}], predict=call)
    for name, value in expected.items():
        torch.testing.assert_close(ewc.importances[name], value, rtol=0.15, atol=2e-3)


def test_fisher_of_a_linear_gaussian_is_the_closed_form_and_ewc_finds_the_joint_optimum() -> None:
    """One weight, squared loss: with the penalty's minimum known in closed form, descent must land there."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False).double()
    x, noise = torch.randn(50, 1).double(), torch.randn(50, 1).double()
    model.weight.data.fill_(2.0)
    ewc = EWC(weight=1.5)
    data = {"x": x, "target": 2 * x + noise}
    ewc.start(model, [data], loss=lambda out, b: 0.5 * ((out["logits"] - b["target"]) ** 2).mean(), predict=linear)
    fisher = float((noise**2 * x**2).mean())
    assert float(ewc.importances["weight"]) == pytest.approx(fisher)
    a = float((x**2).mean())  # the second task wants -1: loss a/2 (w + 1)^2
    for _ in range(500):
        model.zero_grad()
        (a / 2 * (model.weight + 1) ** 2).sum().backward()
        ewc.gradients(model.named_parameters())
        model.weight.data -= 0.2 * model.weight.grad
    assert float(model.weight.detach()) == pytest.approx((a * -1 + 1.5 * fisher * 2) / (a + 1.5 * fisher), abs=1e-6)


def test_sample_weights_samples_decay_and_normalise(small: Small) -> None:
    data = batch()
    weighed = {**data, "weight": torch.tensor([1.0] * 10 + [0.0] * 10)}

    def importances(ewc: EWC, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        ewc.start(small, [given], predict=predict)
        return {name: value.clone() for name, value in ewc.importances.items()}

    first = importances(EWC(), {name: value[:10] for name, value in data.items()})
    for other in (importances(EWC(), weighed), importances(EWC(samples=10), data)):
        assert all(torch.allclose(other[name], first[name]) for name in first)
    online = EWC(decay=0.25)
    one, two = importances(online, batch(seed=1)), importances(online, batch(seed=2))
    alone = importances(EWC(), batch(seed=2))
    assert all(torch.allclose(two[name], 0.25 * one[name] + alone[name]) for name in one)
    assert max(float(v.max()) for v in importances(EWC(normalise=True), data).values()) == pytest.approx(1)
    assert EWC(weight=5).stiffness(1) == 0


def test_nll_splits_fractional_targets_and_probabilities_survive_saturation() -> None:
    logits = torch.tensor([[[2.0, 1.0, 0.0, -1.0, -2.0]]])
    log_p = log_probabilities(logits, "ordinal")
    assert float(log_p.exp().sum()) == pytest.approx(1)
    nll = negative_log_likelihood({"logits": logits}, {"target": torch.tensor([[2.25]]), "mask": torch.tensor([[True]])}, "ordinal")
    assert float(nll) == pytest.approx(float(-(0.75 * log_p[0, 0, 2] + 0.25 * log_p[0, 0, 3])))
    far = (logits + 80).requires_grad_()
    log_probabilities(far, "ordinal").sum().backward()
    assert far.grad is not None and bool(torch.isfinite(far.grad).all()) and bool(torch.isfinite(log_probabilities(far, "ordinal")).all())


# LwF


def test_lwf_is_the_bernoulli_kl_of_torch_distributions(small: Small) -> None:
    from torch.distributions import Bernoulli, kl_divergence

    lwf, data = LwF(weight=0.6, temperature=2.0), batch()
    small.eval()
    said = predict(small, data)["logits"].detach()
    small.train()
    lwf.start(small, predict)
    shift(small)
    outputs = predict(small, data)
    expected = kl_divergence(Bernoulli(logits=said / 2), Bernoulli(logits=outputs["logits"] / 2)).sum(-1).mean() * 0.6
    torch.testing.assert_close(lwf.loss(small, data, outputs), expected)
    assert small.training and lwf.teacher is not None and not any(m.training for m in lwf.teacher.modules())


def test_lwf_categorical_is_the_softmax_kl() -> None:
    torch.manual_seed(0)
    model, data = nn.Linear(6, 4), {"x": torch.randn(9, 6)}
    said = torch.softmax(model(data["x"]) / 2, 1).detach()
    lwf = LwF(likelihood="categorical")
    lwf.start(model, linear)
    shift(model)
    outputs = linear(model, data)
    expected = (said * (said.log() - torch.log_softmax(outputs["logits"] / 2, 1))).sum(1).mean()
    torch.testing.assert_close(lwf.loss(model, data, outputs), expected)


def test_lwf_is_zero_with_no_gradient_at_the_start_and_moves_only_the_student(small: Small) -> None:
    small.eval()
    small.head.latent.weight.grad = torch.ones_like(small.head.latent.weight)
    lwf = LwF()
    lwf.start(small, predict)
    assert lwf.teacher is not None and all(p.grad is None and not p.requires_grad for p in lwf.teacher.parameters())
    small.zero_grad()
    loss = lwf.loss(small, batch(), predict(small, batch()))
    loss.backward()
    assert float(loss) == pytest.approx(0, abs=1e-12)
    assert all(float(p.grad.abs().max()) < 1e-12 for p in small.parameters() if p.grad is not None)
    shift(small)
    assert float(lwf.loss(small, batch(), predict(small, batch()))) > 1e-4


def test_lwf_state_restores_the_teacher(small: Small) -> None:
    lwf, other = LwF(), LwF()
    lwf.start(small.eval(), predict)
    state = lwf.state_dict()
    shift(small)
    other.start(small, predict)
    other.load_state_dict(state)
    outputs = predict(small, batch())
    assert float(other.loss(small, batch(), outputs)) == float(lwf.loss(small, batch(), outputs)) > 0
    assert LwF().state_dict() == {}


def test_bernoulli_kl_is_finite_and_has_the_right_gradient_where_units_saturate() -> None:
    p = torch.tensor([60.0, -60.0, 0.0], dtype=torch.float64)
    q = torch.tensor([-60.0, 60.0, 200.0], dtype=torch.float64, requires_grad=True)
    kl = bernoulli_kl(p, q)
    assert bool(torch.isfinite(kl).all())
    kl.sum().backward()
    torch.testing.assert_close(q.grad, (torch.sigmoid(q) - torch.sigmoid(p)).detach())


def test_eval_mode_puts_modes_back_after_an_error(small: Small) -> None:
    small.body[3].eval()
    modes = [m.training for m in small.modules()]
    with pytest.raises(RuntimeError), eval_mode(small):
        assert not any(m.training for m in small.modules())
        raise RuntimeError
    assert [m.training for m in small.modules()] == modes
