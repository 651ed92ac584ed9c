"""au_residual: what the corrections are in closed form, where they may reach, and the training from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import Said
from PIL import Image
from safetensors.torch import save_file
from test_generators import filmed, identity, polygon, view, view_points

from personalize.aus import AUS
from personalize.errors import ConfigError
from personalize.generators import Request
from personalize.identity import Identity
from personalize.synth.dataset import holds
from personalize_plugins.generators import _residual_fit
from personalize_plugins.generators._residual import GLOBAL, HALF, MAPS, SIDE, K, ResidualNet, correct, correct_picture, support
from personalize_plugins.generators.au_residual import WEIGHTS, AuResidual, load_net
from personalize_plugins.generators.mesh_warp import MeshWarp, load_mesh

SMALL = (8, 8, 8)
AU6, AU17 = AUS.index(6), AUS.index(17)


def plain(**biases: float) -> ResidualNet:
    """A network whose heads say the same everywhere: all AUs' shading ('shading', a bias before tanh) or shift along x ('shift')."""
    torch.manual_seed(0)
    net = ResidualNet(SMALL, 8).eval().requires_grad_(False)
    each = net.heads.bias.view(K, 6)
    each[:, :3], each[:, 3], each[:, 4] = biases.get("shading", 0.0), 30.0, biases.get("shift", 0.0)
    return net


def inputs(n: int = 1, side: int = SIDE, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    half = side // 2
    return {
        "guide": torch.rand(n, 3, side, side, generator=g),
        "ratio": torch.zeros(n, 1, side, side),
        "changes": torch.zeros(n, K, half, half),
        "maps": torch.cat([torch.rand(n, MAPS - 1, half, half, generator=g), torch.zeros(n, 1, half, half)], 1),  # all is skin
        "said": torch.randn(n, GLOBAL, generator=g),
    }


def run(net: ResidualNet, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return correct(batch["guide"], net(*(batch[k] for k in ("guide", "ratio", "changes", "maps", "said"))))


def test_nothing_asked_nothing_changed() -> None:
    """Whatever the weights: all terms grow from zero with the change."""
    torch.manual_seed(1)
    net = ResidualNet(SMALL, 8)
    for p in net.parameters():
        torch.nn.init.normal_(p, 0, 0.5)
    batch = inputs()
    assert torch.equal(run(net, batch), batch["guide"])


def test_shading_is_the_exponential_of_change_times_field() -> None:
    batch = inputs()
    batch["guide"] = 0.2 + 0.2 * batch["guide"]
    batch["changes"][:, AU6], batch["changes"][:, AU17] = 0.5, -0.2
    made = run(plain(shading=-0.3), batch)
    wanted = batch["guide"] * np.exp((0.5 - 0.2) * 2 * np.tanh(-0.3))
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)


def test_residual_flow_fetches_pixels_from_beside() -> None:
    batch = inputs()
    batch["changes"][:, AU6] = 0.5
    pixels = 3.0
    made = run(plain(shift=float(np.arctanh(pixels / 8 / 0.5))), batch)
    torch.testing.assert_close(made[..., 4:-8], batch["guide"][..., 7:-5], rtol=0, atol=2e-3)


def test_brightens_by_a_fifth_at_most() -> None:
    """Dark lashes, of which a network would make the skin that it saw there, do not glow."""
    batch = inputs()
    batch["guide"] = 0.5 * batch["guide"]
    batch["changes"][:, AU6] = 1.0
    torch.testing.assert_close(run(plain(shading=2.0), batch), batch["guide"] * np.exp(0.2), rtol=1e-4, atol=1e-5)


def test_the_inside_of_mouth_and_eyes_is_left_as_it_is() -> None:
    batch = inputs()
    batch["changes"][:, AU6] = 0.5
    batch["maps"][:, 12, 20:40, 30:60] = 1
    made = run(plain(shading=-0.5, shift=1.0), batch)
    assert torch.equal(made[0, :, 42:78, 62:118], batch["guide"][0, :, 42:78, 62:118])
    assert (made[..., 84:, :] - batch["guide"][..., 84:, :]).abs().mean() > 0.1


def test_one_look_at_the_changed_part_is_as_good_as_at_the_whole() -> None:
    torch.manual_seed(2)
    net = ResidualNet(SMALL, 8).eval().requires_grad_(False)
    torch.nn.init.normal_(net.heads.weight, 0, 0.3)
    batch = inputs()
    batch["changes"][:, AU17, 30:50, 30:54] = 0.8
    guide = (batch["guide"][0] * 255).byte().permute(1, 2, 0).numpy()
    batch["guide"] = torch.from_numpy(guide).permute(2, 0, 1)[None].float() / 255
    made = correct_picture(net, guide, batch)
    whole = (run(net, batch)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    changed = np.abs(whole.astype(int) - guide).max(-1) > 0
    assert changed[62:98, 62:106].mean() > 0.5
    assert not (made != guide).any(-1)[:50].any()
    # Only the borders of the part differ, where the network sees padding instead of the rest.
    assert np.abs(made.astype(int) - whole)[66:94, 66:100].mean() < 6
    assert np.array_equal(correct_picture(net, guide, {**batch, "changes": torch.zeros_like(batch["changes"])}), guide)


def test_aus_that_do_not_change_add_nothing_and_need_not_be_computed() -> None:
    """A picture beside one in which every AU changes, for which all is computed, comes out as it does alone."""
    torch.manual_seed(3)
    net = ResidualNet(SMALL, 8).eval().requires_grad_(False)
    for p in net.parameters():
        torch.nn.init.normal_(p, 0, 0.2)
    batch = inputs(2)
    batch["changes"][0, [AU6, AU17], 10:50, 10:50] = 0.7
    batch["changes"][1] = 0.5
    together = net(*(batch[k] for k in ("guide", "ratio", "changes", "maps", "said")))
    alone = net(*(batch[k][:1] for k in ("guide", "ratio", "changes", "maps", "said")))
    for name, part in alone.items():
        torch.testing.assert_close(part[0], together[name][0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(part[0], together[name][1], atol=1e-2), "the other picture is another"


def test_larger_pictures_get_the_same_corrections_enlarged() -> None:
    net = plain(shading=-0.3)
    batch = inputs()
    batch["changes"][:, AU6, 20:60, 20:60] = 0.4
    flat = np.full((320, 320, 3), 100, np.uint8)
    batch["guide"] = torch.full_like(batch["guide"], 100 / 255)
    large = correct_picture(net, flat, batch)
    small = correct_picture(net, flat[::2, ::2].copy(), {k: v for k, v in batch.items() if k != "guide"})
    assert large.shape == (320, 320, 3)
    assert abs(int(large[160, 160, 0]) - 100 * np.exp(0.4 * 2 * np.tanh(-0.3))) <= 1
    assert np.abs(large[1::2, 1::2].astype(int) - small)[10:150, 10:150].max() <= 6


def test_support_lies_where_the_muscles_are() -> None:
    mesh, s = load_mesh(), support()
    weight = s.sum(0)[:, :468]
    centre = (weight[..., None] * mesh.mean[:468]).sum(1) / weight.sum(1, keepdims=True)
    height = dict(zip(AUS, centre[:, 1], strict=True))
    assert height[1] < height[6] < height[12] < height[17]
    assert abs(centre[AU17, 0]) < 0.05
    assert mesh.mean[:468][s[0, AU6, :468] > 0.9, 0].min() > 0 > mesh.mean[:468][s[1, AU6, :468] > 0.9, 0].max()
    assert s.min() >= 0 and s.max() <= 1 and not s[:, :, 468:].any()


def test_a_mirror_twice_is_none_and_turns_what_points_sideways() -> None:
    batch = inputs(2)
    twice = _residual_fit.mirrored(_residual_fit.mirrored(batch))
    assert all(torch.equal(twice[k], batch[k]) for k in batch)
    once = _residual_fit.mirrored(batch)
    assert torch.equal(once["maps"][:, 10], -batch["maps"][:, 10].flip(-1))
    assert torch.equal(once["maps"][:, 11], batch["maps"][:, 11].flip(-1))
    assert torch.equal(once["said"][:, K], batch["said"][:, K]) and torch.equal(once["said"][:, K + 1], -batch["said"][:, K + 1])


def test_loss_counts_in_units_of_the_guides_error() -> None:
    batch = inputs(2)
    batch["target"] = batch["guide"] * 0.5
    own = _residual_fit.picture_loss(batch["guide"], batch)
    off = batch["guide"] - batch["target"]
    fine = _residual_fit.texture(batch["guide"]) - _residual_fit.texture(batch["target"])
    error = off.abs().mean((1, 2, 3)) + 4 * fine.abs().mean((1, 2, 3))
    torch.testing.assert_close(own, error.sqrt())
    assert float(_residual_fit.picture_loss(batch["target"], batch).max()) == 0
    batch["changes"][:, AU6] = 1
    torch.testing.assert_close(_residual_fit.picture_loss(batch["guide"], batch), (5 * error).sqrt())


def test_a_fold_beside_its_place_is_better_than_none() -> None:
    """Which plain L1 denies: wiped out it costs half of what it costs in the wrong place."""
    flat = torch.full((1, 3, 96, 96), 0.5)
    folds = [flat.clone(), flat.clone()]
    for picture, row in zip(folds, (48, 51), strict=True):
        picture[..., row, 20:76] = 0.3
    batch = {"guide": flat, "target": folds[0], "changes": torch.zeros(1, K, 48, 48)}
    beside, none = (float(_residual_fit.picture_loss(x, batch)) for x in (folds[1], flat))
    assert beside < none
    beside, none = (float(_residual_fit.picture_loss(x, batch, fine=0.0)) for x in (folds[1], flat))
    assert beside > 1.9 * none


def test_texture_is_signed_and_local() -> None:
    picture = torch.full((1, 3, 90, 90), 0.5)
    assert float(_residual_fit.texture(picture).abs().max()) < 1e-6
    picture[..., 30, 30] = 0.0
    dark = _residual_fit.texture(picture)[0, 1]
    assert float(dark.max()) == pytest.approx(0.5 * 24 / 25 / 81, rel=1e-4)
    rows, columns = torch.nonzero(dark > 1e-6, as_tuple=True)
    assert int(rows.min()) * 3 >= 20 and int(rows.max()) * 3 <= 32 and int(columns.max()) * 3 <= 32


def written(folder: Path, net: ResidualNet) -> Path:
    path = folder / "au_residual.safetensors"
    save_file(dict(net.state_dict()), path)
    path.with_suffix(".json").write_text(json.dumps({"aus": list(AUS), "model": net.config}))
    return path


def test_generated_pictures_are_the_warped_ones_corrected(tmp_path: Path) -> None:
    path = written(tmp_path, plain(shading=0.4))
    request = [Request({6: 4.0}, tuple(identity().observations[0].upright.tolist()), 0)]  # type: ignore[arg-type]
    pictures = []
    for generator in (MeshWarp(gain_spread=0.0), AuResidual(gain_spread=0.0, weights=str(path))):
        generator.prepare(identity(), 0)
        sample = generator.generate(request)[0]
        assert sample is not None
        pictures.append(sample.image.astype(float))
    cheeks = polygon(view_points()[[116, 123, 147, 187, 205, 101, 118]])
    brighter = (pictures[1][cheeks].mean() + 1) / (pictures[0][cheeks].mean() + 1)
    assert 1.15 < brighter < np.exp(0.8 * 2 * np.tanh(0.4))
    away = ~polygon(view_points()[:468], 12)
    assert np.array_equal(pictures[0][away], pictures[1][away])
    rest = generator.generate([Request({}, request[0].pose, 0)])[0]
    assert rest is not None and np.array_equal(rest.image, view())


def test_tuning_brings_pictures_nearer_to_the_person_in_motion() -> None:
    """A clip in which the chin is raised teaches how this chin is raised; one without movement teaches nothing."""
    calm = identity()
    aus = np.zeros((10, K), np.float32)
    aus[:, AU17] = np.linspace(3, 5, 10)
    moved = filmed(aus)
    both = Identity(calm.name, [*calm.observations, *moved], np.concatenate([calm.intensity, aus]), calm.neutral, calm.size)
    pose = tuple(calm.observations[0].upright.tolist())
    wanted = moved[-1].view
    assert wanted is not None

    def error(person: Identity, steps: int) -> float:
        generator = AuResidual(gain_spread=0.0, tune_steps=steps)
        generator.prepare(person, 0)
        sample = generator.generate([Request({17: 5.0}, pose, 0)])[0]  # type: ignore[arg-type]
        assert sample is not None
        chin = polygon(view_points()[[57, 186, 164, 410, 287, 365, 152, 136]])
        return float(np.abs(sample.image.astype(float) - wanted)[chin].mean())

    before = error(both, 0)
    assert error(both, 20) < 0.99 * before
    assert error(calm, 20) == pytest.approx(error(calm, 0), abs=1e-9)


def test_larger_pictures_are_tuned_at_the_networks_own_size() -> None:
    """Views of 240 pixels, as a composite has them, beside those of 160: the same weights, nearly."""
    aus = np.zeros((10, K), np.float32)
    aus[:, AU17] = np.linspace(3, 5, 10)
    tuned = []
    for size in (SIDE, 240):
        calm, moved = identity(), filmed(aus)
        seen = [replace(o) for o in (*calm.observations, *moved)]
        person = Identity(calm.name, seen, np.concatenate([calm.intensity, aus]), calm.neutral, calm.size)
        for o in seen:
            assert o.view is not None and o.view_to_frame is not None
            o.view = cv2.resize(o.view, (size, size), interpolation=cv2.INTER_LINEAR)
            step = SIDE / size  # of the smaller view's pixels, whose middles are whole numbers
            o.view_to_frame = o.view_to_frame @ np.array([[step, 0, (step - 1) / 2], [0, step, (step - 1) / 2], [0, 0, 1]])
        generator = AuResidual(size, gain_spread=0.0, tune_steps=8)
        generator.prepare(person, 0)
        tuned.append(torch.cat([p.flatten() for p in generator._net.parameters()]))
    start = torch.cat([p.flatten() for p in load_net(WEIGHTS).parameters()])
    assert (tuned[0] - tuned[1]).norm() < 0.7 * (tuned[0] - start).norm()


def test_where_nothing_can_be_warped_there_is_no_picture() -> None:
    """68 points are no mesh: every request is answered with None, at any size."""
    person = identity()
    person = replace(person, observations=[replace(o, image_landmarks=o.image_landmarks[:68]) for o in person.observations])
    for size in (SIDE, 240):
        generator = AuResidual(size)
        generator.prepare(person, 0)
        assert generator.generate([Request({6: 4.0}, (0.0, 0.0, 0.0), 0)]) == [None]


def test_unreadable_weights_are_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "none.safetensors"
    with pytest.raises(ConfigError, match=f"^the weights of au_residual at {missing} cannot be read .*: train them anew.$"):
        load_net(missing)
    path = written(tmp_path, plain())
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**card, "aus": [1, 2]}))
    with pytest.raises(ConfigError, match="know other AUs than this version"):
        load_net(path)
    with pytest.raises(ConfigError) as error:  # before a clip is tracked
        AuResidual(weights=str(missing))
    why = f"no weights of au_residual at {missing}: name the .safetensors that 'personalize generator fit' wrote."
    assert str(error.value) == why
    with pytest.raises(ConfigError, match="^generator option tune_steps must not be negative, got -1$"):
        AuResidual(tune_steps=-1)


def test_generator_fit_from_end_to_end(command: Callable[..., Said], tmp_path: Path) -> None:
    small = ["world.train_people=2", "world.validation_people=2", "world.pictures=3", "world.size=160", "world.workers=1"]
    # Three steps only, the first of which the average of the weights remembers best: long ones, so that something is corrected at all.
    small += ["optim.epochs=1", "optim.batch_size=2", "optim.lr=0.05", "model.widths=[8, 8, 8]"]
    said = command("generator", "fit", "--output", tmp_path, *small)
    assert said.code == 0 and said.err[-1].startswith(f"wrote {tmp_path}/au_residual.safetensors")
    card = json.loads((tmp_path / "au_residual.json").read_text())
    assert card["data"].startswith("6 pairs of rendered pictures of 2 people")
    assert set(card["validation"]["mean"]) == {"error", "guide_error", "texture", "guide_texture"}
    assert load_net(tmp_path / "au_residual.safetensors").config == {"widths": [8, 8, 8], "said": 64}
    shards = [tmp_path / "pairs" / f"pairs-{split}-000000.npz" for split in ("train", "validation")]
    assert sorted((tmp_path / "pairs").iterdir()) == shards
    assert all(holds(shard, 2, 3, 160) and not holds(shard, 2, 3, 192) for shard in shards), "others than these are rendered anew"
    pairs = _residual_fit.Pairs(shards[:1])
    batch = pairs.__getitems__([0, 1, 2])
    assert batch["maps"].shape == (3, MAPS, HALF, HALF) and float(batch["guide"].max()) <= 1
    # The network that ships is nearer to pictures of a person whom it has not seen than the warp, and leaves them their folds.
    shipped = _residual_fit.judge(load_net(WEIGHTS), _residual_fit.Pairs(shards[1:]))["mean"]
    assert shipped["error"] < shipped["guide_error"] and shipped["texture"] > 0.8
    # The warp brings the picture nearer to what it should become than the wish alone: these pictures are of one person and pose.
    assert float((batch["guide"] - batch["target"]).abs().mean()) < 0.06


def test_a_network_that_corrects_nothing_is_not_written() -> None:
    same = {"error": 0.0142, "guide_error": 0.0142, "texture": 1.0009, "guide_texture": 1.0009}
    _residual_fit.refuse_idle(same | {"error": 0.0143}, 0.002)  # worse, but alive: the card says so
    _residual_fit.refuse_idle(same | {"texture": 0.982}, 0.002)
    why = "the training went wrong, the network corrects nothing: train it again with a smaller optim.lr than 0.002."
    for dead in (same, same | {"error": float("nan")}):
        with pytest.raises(ConfigError) as error:
            _residual_fit.refuse_idle(dead, 0.002)
        assert str(error.value) == why


def test_people_whom_the_tracker_does_not_find_make_no_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of a shard's, or all of one; a split needs some. What a killed run left is none."""
    found = [{f: np.zeros(shape, kind) for f, (kind, shape) in _residual_fit.FIELDS.items()}]
    monkeypatch.setattr(_residual_fit, "person_pairs", lambda world, tracker, split, index, each: found if index == 1 else [])
    blank, some = tmp_path / "pairs-train-000020.npz", tmp_path / "pairs-train-000000.npz"
    (tmp_path / ".pairs-train-000040.npz").write_bytes(b"half")
    _residual_fit.make_shard(blank, "train", range(20, 22), 3, 160)
    _residual_fit.make_shard(some, "train", range(0, 2), 3, 160)
    assert sorted(p.name for p in tmp_path.glob("pairs-*")) == [some.name, blank.name]
    assert len(_residual_fit.Pairs([some, blank])) == 1
    with pytest.raises(ConfigError) as error:
        _residual_fit.Pairs([blank])
    where = f"{tmp_path} ({blank.name} ...)"
    assert str(error.value) == f"no face was found in any picture of {where}: raise world.size, or render more people."


def test_shards_of_other_settings_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(_residual_fit, "make_shard", lambda path, split, people, each, size: made.append((each, size)))
    path = tmp_path / "pairs-train-000000.npz"
    np.savez(path, made=np.array([2, 3, 160]))
    for each, size in ((3, 160), (3, 192), (6, 160)):
        _residual_fit._work((path, "train", range(2), each, size))
    assert made == [(3, 192), (6, 160)]


def test_generators_without_anything_to_train_say_so(command: Callable[..., Said], tmp_path: Path) -> None:
    said = command("generator", "fit", "--output", tmp_path, "generator.name=mesh_warp")
    assert said.code == 2
    assert said.err[-1].endswith("generator 'mesh_warp' has nothing to train before it meets a person: au_residual has.")
    assert not list(tmp_path.iterdir())


def test_one_photograph_is_enough(command: Callable[..., Said], face_photo: Path, tmp_path: Path) -> None:
    """Without tuning, through the command: cheek and chin change, and nothing outside the face."""
    words = ["--identity", face_photo, "--generator", "au_residual", "--aus", "AU06=4,AU17=4", "--output", tmp_path / "out"]
    assert command("generate", *words).code == 0
    with Image.open(tmp_path / "out" / "images" / "00000.png") as picture:
        made, record = np.array(picture).astype(int), json.loads(picture.info["personalize"])
    assert record["generator"] == "au_residual" and record["aus"] == {"AU06": 4.0, "AU17": 4.0}
    assert command("generate", *words[:-4], "--aus", "AU06=0", "--output", tmp_path / "rest").code == 0
    with Image.open(tmp_path / "rest" / "images" / "00000.png") as picture:
        rest = np.array(picture).astype(int)
    changed = np.abs(made - rest).max(-1)
    points = np.load(tmp_path / "rest" / "landmarks.npz")["landmarks"][0]
    where = np.round(points[[50, 280, 152, 151], :2]).astype(int)
    *moved, forehead = (changed[y - 8 : y + 5, x - 8 : x + 9].max() for x, y in where)
    assert min(moved) > 8 > 2 * forehead, "both cheeks and the chin"
    assert not changed[:12].any() and not changed[:, :6].any()
