"""The neutral of a clip: calm frames, not usual ones; the user's choice; and how sure of it one may be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from personalize.aus import AUS, COLUMNS
from personalize.errors import InputError
from personalize.faces import Observation
from personalize.identity import Identity, calm_frames, find_neutral

K = len(AUS)
AU4, AU12 = AUS.index(4), AUS.index(12)
REST = np.random.default_rng(0).normal(0, 0.4, (478, 3)).astype(np.float32)
FROWN = np.zeros((478, 3), np.float32)
FROWN[:60, 1] = 0.08


def seen(frame: int, frown: float = 0.0, quality: float = 0.9, yaw: float = 0.0, mesh: bool = True, noise: float = 0.001) -> Observation:
    """A face at 10 frames a second; its points tremble by ``noise``, its brows are lowered by ``frown``; crop value = frame number."""
    trembling = np.random.default_rng(frame).normal(0, noise, (478, 3))
    return Observation(
        frame=frame,
        timestamp=frame / 10,
        face_id=0,
        crop=np.full((112, 112, 3), frame % 256, np.uint8),
        landmarks=(REST + frown * FROWN + trembling).astype(np.float32) if mesh else None,
        pose=np.array([0, yaw, 0], np.float32),
        to_frame=np.eye(2, 3, dtype=np.float32),
        image_landmarks=np.zeros((478, 3), np.float32),
        box=np.array([0, 0, 100, 100], np.float32),
        confidence=1.0,
        quality=quality,
    )


def still(n: int, level: float = 0.05) -> np.ndarray:
    return np.full((n, K), level, np.float32)


def test_who_frowns_most_of_the_time_rests_in_the_other_frames() -> None:
    """60% frown: the median face frowns, the neutral must not."""
    frowns = np.random.default_rng(1).permutation(np.arange(200) % 10 < 6)
    observations = [seen(i, float(f)) for i, f in enumerate(frowns)]
    intensity = still(200)
    intensity[frowns, AU4] = 3.5
    median = np.median([o.landmarks for o in observations], axis=0)
    assert np.abs(median - REST - FROWN).max() < 0.01
    neutral = find_neutral(observations, intensity)
    assert neutral is not None and neutral.landmarks is not None
    assert not frowns[neutral.indices].any()
    assert np.abs(neutral.landmarks - REST).max() < 0.005
    assert not frowns[int(neutral.crops[0, 0, 0, 0])], "the picture is one of the calm frames"
    assert neutral.confidence == pytest.approx(1.0)


def test_an_instant_between_two_expressions_is_no_rest() -> None:
    """Three frames on the way from brows to smile read least; two seconds at the end, which read hardly more, last."""
    observations = [seen(i) for i in range(200)]
    intensity = still(200, 0.0)
    intensity[:100, AU4], intensity[103:180, AU12], intensity[180:, AU12] = 3.0, 3.0, 0.2
    calmest = np.argsort(intensity.sum(1), kind="stable")
    assert set(calmest[:3]) == {100, 101, 102}
    neutral = find_neutral(observations, intensity)
    assert neutral is not None and set(neutral.indices) <= set(range(183, 200))
    pictures = find_neutral([replace(o, file=f"{o.frame}.png") for o in observations], intensity)
    assert pictures is not None and {100, 101, 102} <= set(pictures.indices)


@pytest.mark.parametrize(("photographs", "trust"), [(1, 0.424), (4, 0.496), (25, 1.0)])
def test_few_frames_at_rest_are_at_rest(photographs: int, trust: float) -> None:
    """A photograph is trusted less than a clip, which says nothing of whether its face is calm."""
    neutral = find_neutral([seen(i) for i in range(photographs)], still(photographs, 0.0))
    assert neutral is not None and neutral.trusted == pytest.approx(np.full(K, trust), abs=1e-3)
    assert neutral.trusted / neutral.plenty == pytest.approx(np.ones(K), abs=1e-3)


def test_calmest_first_a_twentieth_of_the_pictures() -> None:
    """Photographs stand for themselves, whatever moment they carry."""
    observations = [replace(seen(i), file=f"{i}.png") for i in range(200)]
    intensity = still(200)
    intensity[:, AU12] = np.random.default_rng(2).permutation(200) / 60
    neutral = find_neutral(observations, intensity)
    assert neutral is not None
    order = np.argsort(intensity[:, AU12])
    assert 3 <= len(neutral.indices) <= 10 and set(neutral.indices) <= set(order[:10])
    assert (np.diff(intensity[neutral.indices, AU12]) > 0).all()


def test_the_neutral_vouches_for_frames_that_hardly_show_more() -> None:
    """By hand: AU25 and AU26 count 1.2, AU5 and AU43 1.5; 2.5 above the middle one of the neutral's frames is calm, more is not."""
    at_rest = still(3, 0.0)
    at_rest[:, AU12] = 0.1, 0.4, 2.0
    cases = {(12, 2.89): True, (12, 2.91): False, (25, 2.41): True, (25, 2.43): False, (43, 1.93): True, (43, 1.94): False}
    intensity = still(len(cases), 0.0)
    for i, (au, level) in enumerate(cases):
        intensity[i, AUS.index(au)] = level
    assert calm_frames(intensity, at_rest).tolist() == list(cases.values())
    together = still(1, 2.89 / (K - 4 + 2 * 1.2 + 2 * 1.5))
    assert calm_frames(together, at_rest).all() and not calm_frames(together * 1.01, at_rest).any()


@pytest.mark.parametrize("worse", [{"yaw": 0.6}, {"quality": 0.2}])
def test_turned_or_bad_frames_are_no_neutral(worse: dict[str, float]) -> None:
    observations = [seen(i, **(worse if i % 4 else {})) for i in range(80)]
    intensity = still(80)
    intensity[::4] += 0.02  # the good frames are a little less calm
    neutral = find_neutral(observations, intensity)
    assert neutral is not None and (neutral.indices % 4 == 0).all()


def test_behind_a_hand_nobody_rests() -> None:
    observations = [seen(i) for i in range(80)]
    intensity = still(80, 0.3)
    for i in range(40):  # behind a hand the face reads calmer
        observations[i].parts["occlusion"] = 0.2
        intensity[i] = 0.05
    neutral = find_neutral(observations, intensity)
    assert neutral is not None and (neutral.indices >= 40).all()
    open_face = find_neutral(observations[40:], intensity[40:])
    assert open_face is not None and neutral.confidence == open_face.confidence
    # With hardly another frame they are taken, and trusted as far as the face is seen.
    covered = find_neutral(observations[:40] + observations[40:42], intensity[:42])
    plain = find_neutral([seen(i) for i in range(42)], intensity[:42])
    assert covered is not None and plain is not None and (covered.indices < 40).all()
    assert covered.confidence == pytest.approx(0.4 * plain.confidence)


def test_the_users_moment_is_taken_whatever_the_model_reads() -> None:
    observations = [seen(i, frown=float(20 <= i < 30)) for i in range(60)]
    intensity = still(60)
    intensity[20:30, AU4] = 4.0
    neutral = find_neutral(observations, intensity, at=2.5)
    assert neutral is not None and neutral.landmarks is not None
    assert set(neutral.indices) <= {23, 24, 25, 26, 27} and neutral.indices[0] == 25
    assert neutral.crops[0, 0, 0, 0] == 25 and neutral.confidence == 1.0
    assert np.abs(neutral.landmarks - REST - FROWN).max() < 0.01


def test_the_users_moment_must_show_the_face() -> None:
    observations = [seen(i) for i in (0, 1, 2, 50, 51)]
    with pytest.raises(InputError) as error:
        find_neutral(observations, still(5), at=2.0)
    assert str(error.value) == "no face that can be used is seen around --neutral 2: the nearest is at 0.2 s."
    near = find_neutral(observations, still(5), at=4.8)
    assert near is not None and near.indices.tolist() == [3]
    dark = [seen(i, quality=0.01 if i == 50 else 1.0) for i in (0, 50, 51)]
    passed = find_neutral(dark, still(3), at=5.0)
    assert passed is not None and passed.indices.tolist() == [2], "a frame that cannot be used is none"


def test_no_usable_frame_no_neutral() -> None:
    assert find_neutral([seen(i, quality=0.04) for i in range(20)], still(20)) is None
    assert find_neutral([], still(0)) is None


def test_confidence_falls_where_nobody_is_ever_calm() -> None:
    observations = [seen(i) for i in range(100)]
    summed = K - 4 + 2 * 1.2 + 2 * 1.5
    found = [find_neutral(observations, still(100, level / summed)) for level in (1.0, 12.0, 15.0, 21.0, 30.0)]
    assert [n.confidence for n in found if n is not None] == pytest.approx([1.0, 1.0, 0.75, 0.25, 0.0], abs=1e-5)


def test_each_au_rests_for_itself() -> None:
    """Who smiles whenever they are else at rest gives a neutral of all but the smile; what else is always read may be no rest."""
    observations, intensity = [seen(i) for i in range(200)], still(200, 0.05)
    intensity[:, AUS.index(9)] = 3.0  # a busy clip ...
    calm = np.arange(200) % 10 == 0
    intensity[calm, AUS.index(9)] = 0.0
    for au, at_rest, elsewhere in ((12, 1.5, 0.1), (6, 0.7, 0.1), (17, 0.4, 0.1), (4, 0.9, 0.9), (15, 1.5, 1.5), (10, 3.0, 3.0)):
        intensity[:, AUS.index(au)] = np.where(calm, at_rest, elsewhere)
    neutral = find_neutral(observations, intensity)
    assert neutral is not None and calm[neutral.indices].all() and neutral.confidence == 1.0
    expected = {12: 0.0, 6: 0.0, 17: 2 / 3, 4: 0.2, 15: 0.0, 10: 0.0}
    for k, au in enumerate(AUS):
        assert neutral.resting[k] == pytest.approx(expected.get(au, 1.0), abs=1e-5), au
    np.testing.assert_allclose(neutral.trusted, neutral.resting, atol=1e-6)
    intensity[:, AUS.index(6)] = 0.1
    smiling = find_neutral(observations, intensity)
    assert smiling is not None and smiling.resting[AUS.index(6)] == 0 and smiling.resting[AUS.index(7)] == 1, "a smile's cheeks are up"
    intensity[:, AUS.index(25)] = np.where(calm, 1.0, 0.1)
    talking = find_neutral(observations, intensity)
    assert talking is not None and [au for k, au in enumerate(AUS) if talking.resting[k] == 0] == [6, 10, 12, 15, 17, 23, 24, 25, 28]
    chosen = find_neutral(observations, intensity, at=1.0)
    assert chosen is not None and (chosen.trusted == 1).all(), "the user's own moment"
    # In a calm face what is always read is the face's habit, which is what a neutral is for.
    intensity = still(200, 0.02)
    intensity[:, AUS.index(4)] = 1.8
    frowning = find_neutral(observations, intensity)
    assert frowning is not None and (frowning.trusted == 1).all()


def test_confidence_falls_with_few_frames() -> None:
    few, many = find_neutral([seen(0)], still(1)), find_neutral([seen(i) for i in range(25)], still(25))
    assert few is not None and many is not None
    assert few.indices.tolist() == [0]
    assert few.confidence < 0.5 < many.confidence


def test_frames_that_disagree_are_dropped() -> None:
    """A tracker that slips gives a calm reading and wrong points: they must not move the mean."""
    observations = [seen(i) for i in range(200)]
    slipped = (3, 6)
    for i in slipped:
        observations[i] = seen(i, frown=5.0)
    intensity = still(200)
    intensity[:10] = 0.0  # the ten calmest, the slipped ones among them
    neutral = find_neutral(observations, intensity)
    assert neutral is not None and neutral.landmarks is not None
    assert not set(slipped) & set(neutral.indices.tolist()) and len(neutral.indices) >= 5
    assert np.abs(neutral.landmarks - REST).max() < 0.005


def test_without_a_mesh_the_picture_remains() -> None:
    neutral = find_neutral([seen(i, mesh=False) for i in range(40)], still(40))
    assert neutral is not None and neutral.landmarks is None and neutral.crops.shape[1:] == (112, 112, 3)


def test_a_person_half_with_a_mesh() -> None:
    """Frames without points beside frames with: the mean is of those with, and the picture of a frame that agrees."""
    observations = [seen(i, mesh=i % 3 > 0) for i in range(120)]
    neutral = find_neutral(observations, still(120))
    assert neutral is not None and neutral.landmarks is not None
    assert np.abs(neutral.landmarks - REST).max() < 0.005


def test_coverage() -> None:
    observations = [seen(i, yaw=np.radians(i - 10)) for i in range(21)]
    intensity = still(21)
    intensity[:7, AU12] = 2.0
    covered = Identity("her", observations, intensity, None, (320, 240)).coverage()
    assert covered["frames"] == 21 and covered["quality"] == pytest.approx(0.9)
    assert covered["yaw"] == pytest.approx([-9.6, 9.6], abs=1e-4) and covered["pitch"] == [0, 0]
    assert isinstance(covered["aus"], dict) and covered["aus"][COLUMNS[AU12]] == pytest.approx(1 / 3, abs=1e-3)
    assert covered["brightness"] == pytest.approx(10 / 255)
