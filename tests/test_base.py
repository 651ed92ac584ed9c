"""Training the base: what augmentation keeps, what thresholds maximise, what the losses see, and the commands end to end."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Said
from safetensors.torch import load_file

from personalize.augment import augment_landmarks, thin_out
from personalize.aus import AUS, COLUMNS
from personalize.base import (
    BaseModule,
    TopModule,
    _learned_from,
    _refuse_known,
    best_thresholds,
    first_weights,
    fit,
    fit_readout,
    read_renders,
    scores,
    started_from,
    views_of,
)
from personalize.config import load_recipe
from personalize.datasets import Source
from personalize.datasets.mixing import AUDataModule
from personalize.errors import ConfigError, ProfileError
from personalize.geometry import IBUG_TO_MESH
from personalize.model import CROP, POINTS, AUNet
from personalize.weights import KNOTS, Base, load_base, save_base

K = len(AUS)
Run = Callable[..., Said]


def small() -> AUNet:
    torch.manual_seed(0)
    return AUNet("resnet10t", width=24, hidden=32, dropout=0.0, backbone_options={"channels": [8, 8, 16, 16], "stem_width": 8})


def made(n: int = 24, seed: int = 0) -> dict[str, np.ndarray]:
    """Tracked pictures of n / 6 people, the first of each neutral, the right half of whose crops is as bright as AU12 is strong."""
    rng = np.random.default_rng(seed)
    target = np.where(rng.random((n, K)) < 0.3, rng.uniform(0, 5, (n, K)), 0).astype(np.float16)
    neutral = np.arange(n) % 6 == 0
    target[neutral] = 0
    crop = rng.integers(0, 40, (n, CROP, CROP, 3)).astype(np.uint8)
    crop[:, :, CROP // 2 :] += (40 * target[:, COLUMNS.index("AU12")]).astype(np.uint8)[:, None, None, None]
    return {
        "crop": crop,
        "landmarks": rng.normal(0, 1, (n, POINTS, 3)).astype(np.float16),
        "pose": np.zeros((n, 3), np.float32),
        "target": target,
        "mask": np.ones((n, K), bool),
        "occurrence": np.zeros((n, K), np.int8),
        "person": np.arange(n).astype(np.int32) // 6,
        "neutral": neutral,
        "source": np.zeros(n, np.int32),
    }


def as_batch(data: dict[str, np.ndarray], rows: list[int]) -> dict[str, torch.Tensor]:
    out = {k: torch.from_numpy(data[k][rows]) for k in ("crop", "landmarks", "pose", "person", "target", "mask", "occurrence")}
    out |= {"crop": out["crop"].permute(0, 3, 1, 2), "index": torch.tensor(rows)}
    return {**out, "landmarks": out["landmarks"].float(), "target": out["target"].float()}


def test_unknown_points_stay_unknown_and_spoil_no_other() -> None:
    points = torch.randn(4, POINTS, 3)
    points[:, 5:] = torch.nan
    points[2:, :, 2] = torch.nan
    out = augment_landmarks(points, 1, 3)
    assert torch.equal(out.isnan(), points.isnan())
    assert (out - points)[:, :5, :2].abs().max() < 1.0


def test_without_tremble_all_points_of_a_picture_move_together() -> None:
    """An affine map explains the change of every picture; with tremble it does not."""
    torch.manual_seed(0)
    points = torch.randn(1, POINTS, 3).expand(400, -1, -1)
    one = torch.cat([points[0], torch.ones(POINTS, 1)], 1)
    for people in (0, 100):
        for tremble in (0.0, 0.003):
            moved = augment_landmarks(points, people, 3, tremble=tremble)
            left = float((moved[7] - one @ torch.linalg.lstsq(one, moved[7]).solution).abs().max())
            assert left < 1e-4 if tremble == 0 else left > 5e-3
    wide = [float(augment_landmarks(points, 100, 3, stretch=s, tremble=0).std(0).mean()) for s in (0.0, 0.05)]
    assert wide[1] > 1.3 * wide[0]


def test_pictures_are_bent_each_in_its_own_way_but_not_those_of_one_clip() -> None:
    """A turn is antisymmetric, a scale a multiple of one: what else is in the affine map of a picture is its bending."""
    torch.manual_seed(0)
    points = torch.randn(1, POINTS, 3).expand(400, -1, -1)
    one = torch.cat([points[0], torch.ones(POINTS, 1)], 1)

    def sheared(people: int, **options: float) -> torch.Tensor:
        moved = augment_landmarks(points, people, 3, stretch=0, tremble=0, **options)
        linear = torch.stack([torch.linalg.lstsq(one, m).solution[:3] for m in moved])
        return ((linear + linear.mT) / 2)[:, [0, 0, 1], [1, 2, 2]]

    assert sheared(0).abs().max() < 1e-5 and sheared(100, bend=0.0).abs().max() < 1e-5
    for bend in (0.012, 0.03):
        assert float(sheared(100, bend=bend).std(0).mean()) == pytest.approx(bend / 2**0.5, rel=0.1)


def test_thinned_people_keep_68_points() -> None:
    torch.manual_seed(3)
    own = torch.arange(40).repeat_interleave(5)
    points = torch.randn(200, POINTS, 3)
    out = thin_out(points, own, 0.5)
    given = out.isfinite()
    index = list(IBUG_TO_MESH)
    thin = ~given.all((1, 2))
    rest = np.setdiff1d(np.arange(POINTS), index)
    assert given[:, index, :2].all() and torch.equal(out[~thin], points[~thin])
    assert not given[thin][:, rest].any() and 10 <= len(own[thin].unique()) <= 30
    flat = ~given[thin][:, index, 2].any(1)
    assert 0.2 < flat.float().mean() < 0.8
    moved = (out - points)[thin][:, index, :2]
    assert 0.006 < moved.std() < 0.02
    for person in own[thin].unique():
        same = thin & (own == person)
        assert same.sum() == 5 and (out - points)[same][:, index, :2].std(0).mean() < 0.006, "another tracker errs alike in all pictures"


def test_thresholds_are_the_best_of_the_grid_on_what_is_known() -> None:
    rng = np.random.default_rng(0)
    prediction, target = rng.uniform(0, 5, (300, K)), rng.uniform(0, 5, (300, K))
    mask, occurrence = rng.random((300, K)) < 0.7, np.zeros((300, K), np.int8)
    occurrence[:, 3] = 1
    target[:, 3] = target[:, 3] > 2.5
    prediction[:, 3] = np.clip(target[:, 3] * 1.4 + rng.normal(0, 0.2, 300), 0, 5)
    found = best_thresholds(prediction, target, mask, occurrence, np.zeros(300))
    for k in (0, 3, 7):
        truth = target[mask[:, k], k] >= (1 if k == 3 else 2)
        f1 = {}
        for t in np.arange(0.5, 3.01, 0.1):
            said = prediction[mask[:, k], k] >= t
            f1[t] = 2 * (said & truth).sum() / (said.sum() + truth.sum())
        assert f1[min(f1, key=lambda t: abs(t - found[k]))] == pytest.approx(max(f1.values()))
    assert 0.5 <= found[3] <= 1.1


def test_thresholds_are_means_over_draws_of_people() -> None:
    """Against the same done one draw and one threshold after another, by another stream."""
    rng = np.random.default_rng(3)
    person = np.repeat(np.arange(25), 8)
    target = rng.uniform(0, 5, (200, 2)).round(1)
    prediction = np.clip(0.5 * target + rng.normal(0, 0.8, (200, 2)) + rng.normal(0, 0.3, (25, 2))[person], 0, 5)
    known = rng.random((200, 2)) < 0.8
    found = best_thresholds(prediction, target, known, np.zeros((200, 2), np.int8), person, draws=400)
    for k in range(2):
        best = []
        for _ in range(400):
            rows = np.concatenate([np.flatnonzero((person == p) & known[:, k]) for p in rng.integers(0, 25, 25)])
            truth = target[rows, k] >= 2
            f1 = {}
            for t in np.arange(0.5, 3.01, 0.1):
                said = prediction[rows, k] >= t
                f1[t] = 2 * (said & truth).sum() / (said.sum() + truth.sum())
            best.append(max(f1, key=lambda t: f1[t]))
        assert np.std(best) > 0.1 and found[k] == pytest.approx(np.mean(best), abs=0.2 * np.std(best))


def test_scores_leave_out_what_is_unknown() -> None:
    rng = np.random.default_rng(1)
    target = rng.uniform(0, 5, (50, K))
    prediction = target + rng.normal(0, 1, (50, K))
    whole = scores(prediction[:30], target[:30])
    target[30:] = np.nan
    holed = scores(prediction, target)
    for name in COLUMNS:
        assert holed[name] == pytest.approx(whole[name]), name


def test_every_branch_is_taught_and_absent_labels_are_not() -> None:
    """The step's loss is the sum of its parts; unknown labels, whatever stands there, change nothing."""
    data = made()
    data["mask"][:, 5:] = False
    rows = [0, 6, 1, 2, 3, 7, 8, 9]
    losses, logged = [], []
    for filled in (0.0, 4.0):
        data["target"][:, 5:] = filled
        torch.manual_seed(0)
        module = BaseModule(small().eval(), 1e-3, 0.0, people=2, each=3)
        said: dict[str, torch.Tensor] = {}
        module.log_dict = said.update  # type: ignore[assignment, method-assign]
        torch.manual_seed(1)
        losses.append(module.training_step(as_batch(data, rows), 0))
        logged.append(said)
    assert float(losses[0]) == pytest.approx(float(losses[1]))
    parts = logged[0]
    whole = parts["fused"] + parts["crop"] + 0.5 * parts["landmarks"] + parts["located"]
    assert float(losses[0]) == pytest.approx(float(whole))
    losses[0].backward()


def test_doubt_learns_the_error_without_touching_the_reading() -> None:
    net = small()
    x = torch.randn(6, 32)
    said = net.read(x)
    said["expected_error"].sum().backward()
    assert all(p.grad is None for p in net.head.parameters())
    assert all(p.grad is not None for p in net.doubt.parameters())
    assert bool((said["expected_error"] >= 0).all())


def test_second_stage_moves_all_but_the_backbone() -> None:
    data, net = made(), small()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    maps = views_of(net, data, 2, batch=7)
    assert maps[0].shape[:2] == (2, 24) and maps[0].dtype == torch.float16
    # the two views are other augmentations of the same crop, in the same order
    net.eval()
    assert (maps[0][0] - maps[0][1]).abs().mean() > 0
    module = TopModule(net, maps, 1e-2, 0.0, people=2, each=3)
    module.log_dict = lambda _: None  # type: ignore[assignment, method-assign]
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        module.training_step(as_batch(data, [0, 6, 1, 2, 3, 7, 8, 9]), 0).backward()
        optimizer.step()
    moved = {k.split(".")[0] for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert "backbone" not in moved
    assert {"head", "fuse", "landmark_project", "shift_project", "crop_project", "squeeze", "doubt"} <= moved


def test_reading_with_a_neutral_uses_the_persons_own() -> None:
    """Against the model called on one person at a time."""
    data, net = made(12), small().eval()
    together = read_renders(net, data, "fused", True, batch=5)
    for person in (0, 1):
        rows = [6 * person + i for i in range(6)]
        batch = as_batch(data, rows)
        with torch.no_grad():
            rest = net.neutral_features(batch["crop"][:1], batch["landmarks"][:1])
            alone = net(batch["crop"], batch["landmarks"], torch.ones(6, dtype=torch.bool), rest)["intensity"].numpy()
        np.testing.assert_allclose(together[rows], alone, atol=1e-4)
    assert np.abs(together - read_renders(net, data, "fused", False)).max() > 1e-3


SMALL_ONE = [
    "world.train_people=3", "world.validation_people=2", "world.pictures=4", "world.size=112", "world.workers=1", "optim.people=2",
    "optim.each=2", "optim.epochs=1", "top.epochs=1", "top.people=2", "top.views=1", "model.width=16", "model.hidden=16",
    "model.backbone_options.channels=[8,8,8,8]", "model.backbone_options.stem_width=8", "smoothing.people=0",
]  # fmt: skip


def test_fit_and_evaluate(tmp_path: Path, command: Run) -> None:
    """A base is rendered, trained, written, judged, and read again; the rehearsal set lies beside it."""
    folder = tmp_path / "mine"
    said = command("base", "fit", "--output", folder, *SMALL_ONE, "smoothing.people=1", "smoothing.seconds=1")
    assert said.code == 0
    assert sorted(p.name for p in folder.glob("mine.*")) == ["mine.json", "mine.safetensors"] and (folder / "replay.npz").is_file()
    base = load_base(str(folder / "mine"))
    assert base.name == "mine" and base.net.config["width"] == 16 and base.thresholds.shape == (K,)
    assert base.card["data_sources"] == {"sources": ["synthetic"], "fold": None, "people": [], "trained": []}
    assert base.smoothing is not None and base.smoothing.shape == (4, K)
    made = base.card["made"]
    assert set(made) == {"date", "command", "versions", "machine", "hours"} and 0 < made["hours"] < 1
    words = shlex.split(made["command"])
    assert words[:5] == ["personalize", "base", "fit", "--data", "synthetic"]
    assert load_recipe("base", words[5:]) == base.card["recipe"]  # given again, it trains the same
    said = command("base", "evaluate", "--base", folder / "mine", "--data", folder / "renders", "--output", tmp_path / "table.json")
    assert said.code == 0
    table = json.loads((tmp_path / "table.json").read_text())
    assert set(table) == {"plain", "neutral"} and set(table["plain"]) == {*COLUMNS, "mean"}
    card = base.card["validation"]["fused"]["AU12"]["mae"]  # of these few people nothing is led back
    assert table["plain"]["AU12"]["mae"] == pytest.approx(card, abs=2e-2), "half precision apart, the card's"
    assert np.abs(np.array(base.card["readout"]["neutral"]) - KNOTS).max() < 1e-6
    on = ["--data", folder / "renders", "--output", tmp_path / "more", f"start={folder / 'mine'}"]
    assert command("base", "fit", *on, *SMALL_ONE).code == 0
    card = load_base(str(tmp_path / "more" / "more")).card
    assert card["data"].endswith(f"; no photograph of anybody; started from mine ({base.sha256[:12]})")
    assert card["recipe"]["start"] == "mine" and str(tmp_path) not in json.dumps(card), "no paths"


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the second epoch of either stage, against a training that nobody disturbed."""
    longer = [*SMALL_ONE, "optim.epochs=3", "top.epochs=3"]
    assert command("base", "fit", "--output", tmp_path / "whole" / "b", *longer).code == 0
    broken = tmp_path / "broken" / "b"
    shutil.copytree(tmp_path / "whole" / "b" / "renders", broken / "renders")
    for module in (BaseModule, TopModule):
        look = module.look

        def stop(self: BaseModule, batch: dict[str, torch.Tensor], look: Callable[..., torch.Tensor] = look) -> torch.Tensor:
            if self.global_step == 4:  # in the middle of the second epoch
                raise KeyboardInterrupt
            return look(self, batch)

        monkeypatch.setattr(module, "look", stop)
        said = command("base", "fit", "--output", broken, *longer)
        assert said.code == 130 and said.err[-1] == "Interrupted. The same command goes on after the last whole epoch."
        assert not (broken / "b.safetensors").exists()
        monkeypatch.setattr(module, "look", look)
    said = command("base", "fit", "--output", broken, *longer, "optim.lr=0.1")
    left = f"error: {broken / 'work'} is left of a training by another recipe or on other data: "
    assert said.code == 2 and said.err[-1] == left + "give that one again to go on, or delete it to start anew."
    assert command("base", "fit", "--output", broken, *longer).code == 0
    whole, resumed = (load_file(tmp_path / f / "b" / "b.safetensors") for f in ("whole", "broken"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert not (broken / "work").exists()


def test_only_the_backbone_is_in_bfloat16() -> None:
    """Its features are those in float32 to two or three digits, all weights and their gradients stay float32."""
    torch.manual_seed(0)
    net = AUNet(width=16, hidden=16, backbone="resnet10t", backbone_options={"channels": [8, 8, 8, 8], "stem_width": 8}).eval()
    crop = torch.randint(0, 255, (3, 3, 112, 112)).float()
    looks = []
    for bfloat16 in (False, True):
        module = BaseModule(net, 0.01, 0.0, 1, 2, bfloat16=bfloat16)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("personalize.base.redraw", lambda batch, seed: batch["crop"])
            looks.append(module.look({"crop": crop}))
    whole, half = looks
    assert half.dtype == torch.float32 and not torch.equal(whole, half)
    assert torch.nn.functional.cosine_similarity(whole, half).min() > 0.99
    half.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.backbone.parameters())


TORCHRUN = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc_per_node=2", "--no-python"]


@pytest.mark.parametrize(("before", "more"), [([], ["trainer.devices=2"]), (TORCHRUN, [])])
def test_two_ranks_train_one_model(before: list[str], more: list[str], tmp_path: Path) -> None:
    """On two processes, which Lightning or torchrun starts: one rendering, one table, one card."""
    env = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT")}
    words = [*SMALL_ONE, "world.train_people=4", *more, "trainer.accelerator=cpu", "--output", "b"]
    call = [*before, str(Path(sys.executable).with_name("personalize")), "base", "fit", *words]
    done = subprocess.run(call, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Rendering 4 people: ") == 1 and "find_unused_parameters" not in done.stderr
    assert done.stderr.count("wrote b/b.safetensors") == 1 and not (tmp_path / "b" / "work").exists()
    assert load_base(str(tmp_path / "b")).name == "b", "the folder is enough"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--output", "x/base"], "--output: a model called 'base' would be taken for the shipped one; give its folder another name."),
        (["--recipe", "default"], "recipe default is of kind 'fit', and this command takes one of kind 'base', as base is."),
    ],
)
def test_refused_before_anything_is_made(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = command("base", "fit", *words)
    assert said.code == 2 and said.err == [f"error: {line}"] and not list(tmp_path.iterdir())


def test_readout_is_half_of_the_quantile_map() -> None:
    """Expected intensities that are half of the true ones, in another order for one AU, unknown for another."""
    truth = np.repeat(np.linspace(0, 5, 2001)[:, None], K, 1)
    expected = truth / 2
    expected[:, 1] = np.random.default_rng(0).permutation(expected[:, 1])  # the map sees distributions, not pairs
    truth[150:, 2] = np.nan
    table = fit_readout(expected, truth)
    knots = np.array(KNOTS)
    low = knots <= 2.5
    for k in (0, 1):
        np.testing.assert_allclose(table[k, low], 1.5 * knots[low], atol=2e-3)
        np.testing.assert_allclose(table[k, ~low], (knots[~low] + 5) / 2, atol=2e-3)
    np.testing.assert_array_equal(table[2], knots)
    assert (np.diff(fit_readout(np.random.default_rng(1).uniform(0, 3, (500, K)), truth[:500])) > 0).all()


def test_what_is_reported_is_read_off_the_tables_as_far_as_the_neutral_tells() -> None:
    rng = np.random.default_rng(3)
    rising = np.sort(rng.uniform(0, 5, (2, K, len(KNOTS))), -1)
    card = {"readout": {"alone": rising[0].tolist(), "neutral": rising[1].tolist()}}
    thresholds = rng.uniform(0.5, 2, K).astype(np.float32)
    base = Base("mine", "", load_base().net, thresholds, card)
    expected, told = rng.uniform(0, 5, (20, K)).astype(np.float32), rng.uniform(0, 1, K)
    alone, mixed = base.report(expected), base.report(expected, told)
    for i in range(20):
        for k in range(K):
            a, b = (np.interp(expected[i, k], KNOTS, rising[n, k]) for n in (0, 1))
            assert alone[i, k] == pytest.approx(a, abs=1e-5)
            assert mixed[i, k] == pytest.approx((1 - told[k]) * a + told[k] * b, abs=1e-5)
    assert np.array_equal(base.thresholds, base.report(thresholds[None])[0])
    above = expected > thresholds
    assert np.array_equal(base.report(expected, told) > base.thresholds_with(told), above), "present stays present"
    assert np.array_equal(Base("plain", "", base.net, thresholds, {}).report(expected, told), expected)


def test_training_starts_from_a_base_that_is_there() -> None:
    shipped = load_base().net
    recipe = load_recipe("base", ["start=base-s"])
    recipe["model"]["landmark_share"] = 0.1
    net = first_weights(recipe, {}, started_from(recipe))
    assert net.landmark_share.tolist() == pytest.approx([0.1] * K), "the recipe's own"
    for name, value in shipped.state_dict().items():
        assert name == "landmark_share" or torch.equal(net.state_dict()[name], value), name
    data = made()
    fresh = first_weights(recipe, data, started_from({**recipe, "start": ""}))
    assert torch.allclose(fresh.landmark_mean, torch.from_numpy(data["landmarks"].astype(np.float32)).mean(0), atol=1e-3)
    with pytest.raises(ConfigError) as error:
        started_from(load_recipe("base", ["start=base-s", "model.width=64"]))
    assert str(error.value) == (
        "start: base model 'base-s' has another network than model.width of the recipe asks for: "
        "set it as in its card, or leave start empty."
    )
    with pytest.raises(ProfileError, match="no base model at nowhere.safetensors"):
        started_from(load_recipe("base", ["start=nowhere"]))


def test_a_wrong_start_is_told_before_anything_is_rendered(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        fit(load_recipe("base", ["start=base-s", "model.width=64"]), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("trainer.max_epochs=2", "trainer.max_epochs is for personalize base fit to set: use optim.epochs."),
        ("trainer.logger=true", "trainer.logger is for personalize base fit to set."),
        ("trainer.precision=bf16-mixed", "trainer.precision is for personalize base fit to set: use optim.bfloat16."),
        ("trainer.strategy=nope", "flags of the trainer: You selected an invalid strategy name: "),
        ("model.backbone=resnet99", "model of the recipe: Unknown model (resnet99)"),
        ("model.landmark_share=[0.5]", "model.landmark_share is one number for each of the 22 AUs, not 1."),
    ],
)
def test_what_cannot_train_is_refused_before_anything_is_rendered(flag: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        fit(load_recipe("base", [flag]), tmp_path / "new")
    said = str(error.value)
    assert (said == line or (line.endswith(": ") and said.startswith(line))) and "\n" not in said and not (tmp_path / "new").exists()


def test_a_base_knows_whom_it_learned_from_before(tmp_path: Path) -> None:
    """Whom a base learned from that training started with, it learned from as well."""
    base = load_base()
    first = tmp_path / "first"
    earlier = {"sources": ["disfa"], "fold": None, "people": ["disfa/SN003", "disfa/SN001"], "trained": ["disfa/SN003"]}
    save_base(first, base.net, {**base.card, "data_sources": earlier})
    now = {"sources": ["synthetic", "disfa"], "fold": 1, "people": ["disfa/SN001", "disfa/SN002"], "trained": ["disfa/SN002"]}
    both = {"sources": ["synthetic", "disfa"], "fold": 1, "people": ["disfa/SN001", "disfa/SN002", "disfa/SN003"]}
    both["trained"] = ["disfa/SN002", "disfa/SN003"]
    assert _learned_from(now, load_base(str(first))) == both and _learned_from(now, None) == now
    alone = {"sources": ["synthetic"], "fold": None, "people": [], "trained": []}
    assert _learned_from(alone, load_base(str(first)))["sources"] == ["synthetic", "disfa"], "no longer of synthetic people alone"
    assert _learned_from(alone, load_base()) == alone


@pytest.mark.parametrize("broken", ["cut", "list", "key"])
def test_a_broken_base_is_one_line(broken: str, tmp_path: Path) -> None:
    base = load_base()
    save_base(tmp_path / "mine", base.net, base.card)
    weights, card = tmp_path / "mine.safetensors", tmp_path / "mine.json"
    if broken == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif broken == "list":
        card.write_text("[]")
    else:
        card.write_text(json.dumps({**base.card, "model": {**base.card["model"], "depth": 3}}))
    with pytest.raises(ProfileError) as error:
        load_base(str(tmp_path / "mine"))
    said = str(error.value)
    assert said.startswith(f"base model '{tmp_path / 'mine'}' cannot be read (") and "\n" not in said
    assert said.endswith("): reinstall personalize or train it anew.")


def test_each_rank_and_step_draws_its_own_and_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    net, maps = small(), (torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1))

    def drawn(module: BaseModule, rank: int, step: int) -> float:
        said = {"global_rank": rank, "global_step": step, "trainer": SimpleNamespace(accumulate_grad_batches=1)}
        with monkeypatch.context() as patch:
            for name, value in said.items():
                patch.setattr(type(module), name, value)
            module.on_train_batch_start({}, step)
        return float(torch.rand(()))

    for module in (BaseModule(net, 1e-3, 0.0, 2, 3, seed=5), TopModule(net, maps, 1e-3, 0.0, 2, 3, seed=5)):
        each = {(rank, step): drawn(module, rank, step) for rank in (0, 1) for step in (0, 1, 2)}
        assert len(set(each.values())) == 6 and each[1, 2] == drawn(module, 1, 2)
    assert drawn(BaseModule(net, 1e-3, 0.0, 2, 3, seed=6), 1, 2) != each[1, 2]


def test_nobody_whom_the_start_was_trained_on_chooses_thresholds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tmp_path / "study"
    study.mkdir()
    (study / "labels.csv").write_text("file,subject,AU12\n" + "".join(f"{i}.png,p{i},0\n" for i in range(8)))
    for i in range(8):
        (study / f"{i}.png").touch()

    def module(seed: int) -> AUDataModule:
        return AUDataModule([Source("folder", study)], tmp_path / "cache", seed=seed)

    def begun(named: dict[str, Any]) -> Base:
        base = load_base()
        return Base("first", "", base.net, base.expected_thresholds, {**base.card, "data_sources": named})

    lines: list[str] = []
    monkeypatch.setattr("personalize.ui.warn", lines.append)
    data = module(0)
    other = next(m for m in map(module, range(1, 20)) if m.validation_people != data.validation_people)
    card, (who,) = data.card(), other.validation_people
    assert set(card["trained"]) == set(card["people"]) - data.validation_people and who in card["trained"]
    _refuse_known(data, begun(card))
    _refuse_known(other, None)
    with pytest.raises(ConfigError) as error:
        _refuse_known(other, begun(card))
    assert str(error.value) == (
        f"start: the base was trained on 1 of the people who are to choose the thresholds ({who}). "
        "Give the fold and the seed that it was trained with, or leave start empty."
    )
    assert not lines
    del card["trained"]
    _refuse_known(other, begun(card))
    assert lines == [f"start: the base's card does not say whom it was trained on: {who} may be among them, and choose the thresholds"]
