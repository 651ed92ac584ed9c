"""How people are filmed: the two settings, things in front of faces, cameras, and the shards that come of it."""

from __future__ import annotations

import numpy as np
import pytest

from personalize.synth import dataset
from personalize.synth.scene import SMALLEST_FACE, Scene, degrade, draw_shrink, expose, film, occlude, other_skin
from personalize.synth.world import World

UNKNOWN = r"^unknown setting 'third': one of first, second$"
SIZE = 96


@pytest.fixture(scope="module")
def person():
    return World.person("validation", 5)


@pytest.fixture(scope="module")
def worlds():
    return {s: World(size=SIZE, supersample=1, setting=s) for s in ("first", "second")}


@pytest.fixture(scope="module")
def shots(worlds, person):
    return {s: w.stills(person, 3, seed=1) for s, w in worlds.items()}


def _picture() -> np.ndarray:
    """A smooth picture without black or white."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    return (40 + 150 * np.stack([x, y, (x + y) / 2], -1)).astype(np.uint8)


# ---------------------------------------------------------------- settings


def test_an_unknown_setting_is_refused(tmp_path):
    for call in (
        lambda: World(size=32, setting="third"),
        lambda: Scene.sample(np.random.default_rng(0), "third"),
        lambda: dataset.load(tmp_path, "train", setting="third"),
        lambda: dataset.make(tmp_path / "new", "train", 1, setting="third"),
    ):
        with pytest.raises(ValueError, match=UNKNOWN):
            call()
    assert not (tmp_path / "new").exists()


def test_the_settings_share_the_truth_and_not_the_picture(shots):
    first, second = shots["first"], shots["second"]
    for name in ("target", "pose", "local", "rotation"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    assert (np.abs(first.images.astype(int) - second.images).mean((1, 2, 3)) > 8).all()


def test_clips_of_both_settings_move_alike(worlds, person):
    first, second = (next(w.clip(person, 2, seconds=0.08)) for w in worlds.values())
    assert np.array_equal(first.target, second.target) and np.array_equal(first.local, second.local)
    assert not np.array_equal(first.images, second.images)


def test_the_second_setting_is_the_same_from_a_seed_in_batches_of_any_size(worlds, shots, person):
    world, shot = worlds["second"], shots["second"]
    assert np.array_equal(world.stills(person, 3, seed=1).images, shot.images)
    nothing = np.zeros((3, 2), np.float32)
    aus, extra = np.zeros_like(shot.target), np.zeros((3, len(person.rest)), np.float32)
    whole, parts = (
        np.concatenate([s.images for s in world.render(person, aus, extra, shot.pose, nothing, shot.scenes, batch=b)]) for b in (3, 2)
    )
    assert np.array_equal(whole, parts)


def test_light_and_camera_of_the_second_setting_are_none_of_the_first():
    first, second = ([Scene.sample(np.random.default_rng(i), s) for i in range(300)] for s in ("first", "second"))
    assert all(380 <= s.distance <= 1400 for s in first) and not any(380 <= s.distance <= 1400 for s in second)
    assert all(s.below.min() > 0 for s in first) and all((s.below == 0).all() for s in second)
    assert min(s.shadow for s in second) >= 0.8 and min(s.polish for s in second) > 1 == max(s.polish for s in first)


def test_the_first_setting_has_light_from_everywhere():
    scenes = [Scene.sample(np.random.default_rng(i)) for i in range(2000)]
    assert 0.05 < np.mean([s.from_below for s in scenes]) < 0.11
    assert np.mean([abs(s.key[0]) > 0.75 for s in scenes]) > 0.15  # from the side
    spread = np.array([np.ptp(s.key_colour) / s.key_colour.mean() for s in scenes])
    assert 0.03 < (spread > 0.9).mean() < 0.08  # through a gel
    assert np.ptp([s.exposure for s in scenes]) > 0.55


def test_the_second_skin_is_the_persons_own(person):
    skin = other_skin(person.albedo, person.seed)
    assert np.array_equal(skin, other_skin(person.albedo, person.seed)) and not np.array_equal(skin, other_skin(person.albedo, 1))
    assert skin.dtype == person.albedo.dtype and np.array_equal(skin[..., 3], person.albedo[..., 3])
    ratio = skin[..., :3].mean() / person.albedo[..., :3].mean()
    assert 0.9 < ratio < 1.1 and 0.05 < np.abs(skin - person.albedo)[..., :3].mean() / person.albedo[..., :3].mean() < 0.3


def test_film_has_a_shoulder_and_noise_that_grows_with_light():
    def shot(level: float, seed: int) -> np.ndarray:
        return film(np.full((64, 64, 3), level, np.float32), np.random.default_rng(0), np.random.default_rng(seed))[24:40, 24:40]

    levels = [float(shot(x, 1).mean()) for x in (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)]
    gains = np.diff(levels)[1:] / [0.1, 0.2, 0.4, 0.8]
    assert (np.diff(levels) > 0).all() and (np.diff(gains) < 0).all() and levels[-1] < 1
    dark, mid = shot(0.02, 1) - shot(0.02, 2), shot(0.3, 1) - shot(0.3, 2)
    assert mid.std() > 2 * dark.std()
    assert np.corrcoef(mid[:, 1:].ravel(), mid[:, :-1].ravel())[0, 1] > 0.15


def test_exposure_follows_the_face():
    linear, alpha = np.full((4, 4, 3), 0.1, np.float32), np.ones((4, 4), np.float32)
    assert expose(linear, alpha, 0.7).mean() > expose(linear, alpha, 0.4).mean() > 0


# ---------------------------------------------------------------- in front of the face, and cameras


def test_what_is_in_front_covers_a_part_and_the_same_from_a_seed():
    image, shares = _picture(), []
    for seed in range(60):
        a, b = (occlude(image.copy(), np.random.default_rng(seed), (SIZE / 2, SIZE / 2), 0.3 * SIZE) for _ in range(2))
        assert np.array_equal(a, b) and a.dtype == np.uint8 and a.shape == image.shape
        shares.append((np.abs(a.astype(int) - image).max(-1) > 12).mean())
    assert min(shares) > 0 and max(shares) < 0.8 and 0.03 < np.median(shares) < 0.4


def test_what_is_in_front_may_leave_the_picture():
    for seed in range(12):
        image = occlude(_picture(), np.random.default_rng(seed), (2.0, SIZE - 3.0), 0.2 * SIZE)
        assert image.shape == (SIZE, SIZE, 3)


def test_cameras_keep_what_is_asked_of_their_resolution():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8)
    for seed in range(8):
        a, b = (degrade(image, np.random.default_rng(seed), shrink=0.5) for _ in range(2))
        assert np.array_equal(a, b) and a.shape == image.shape and a.dtype == np.uint8
    detail = [np.median([np.abs(np.diff(degrade(image, np.random.default_rng(s), 0, k).astype(int), axis=1)).mean() for s in range(8)])
              for k in (1.0, 0.4)]  # fmt: skip
    assert detail[1] < 0.6 * detail[0]


def test_faces_are_filmed_down_to_the_smallest():
    rng = np.random.default_rng(0)
    heights = np.array([120 * draw_shrink(rng, 120) for _ in range(2000)])
    assert heights.min() == pytest.approx(SMALLEST_FACE, abs=1) and heights.min() >= SMALLEST_FACE
    assert 0.25 < (heights < 120).mean() < 0.35
    assert all(draw_shrink(rng, 30) == 1 for _ in range(20))  # smaller than that anyway


# ---------------------------------------------------------------- shards


def test_shards_know_their_covariates_and_settings_never_mix(tmp_path, person):
    for setting, name in (("first", "validation"), ("second", "validation-second")):
        dataset.make_shard(tmp_path / f"{name}-000005.npz", "validation", 5, 1, 4, 160, setting)
    first, second = (dataset.load(tmp_path, "validation", setting=s) for s in ("first", "second"))
    for data in (first, second):
        assert tuple(data) == dataset.FIELDS and len({len(v) for v in data.values()}) == 1 and 1 <= len(data["crop"]) <= 4
        assert np.allclose(data["tone"], person.tone) and np.allclose(data["age"], person.age) and (data["sex"] == person.sex).all()
        assert data["face_px"].min() >= SMALLEST_FACE and data["face_px"].max() <= 0.82 * 160 + 1e-3
        assert data["below"].dtype == data["occluded"].dtype == bool and data["hard"].dtype == np.float32
    assert first["hard"].max() < 0.9 and second["hard"].min() >= 0.8 and not second["below"].any()
    (tmp_path / "validation-000005.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"^no shards of split 'validation' in "):
        dataset.load(tmp_path, "validation")
    (tmp_path / "validation-second-000005.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"^no shards of split 'validation' in the second setting in "):
        dataset.load(tmp_path, "validation", setting="second")
