"""What generators are asked for: balance over AUs, intensities and poses, and what the clip lacks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from personalize import geometry
from personalize.aus import AUS
from personalize.faces import Observation
from personalize.generators import Request
from personalize.identity import Identity
from personalize.requests import ENOUGH, LEVELS, TURN, balanced, lacking_poses, needs, spread_poses

K = len(AUS)


def poses(angles: list[tuple[float, ...]]) -> Identity:
    """An identity of which nothing but the head poses, as an upright picture shows them, is known."""
    nothing, size = np.zeros((1, 1, 3), np.uint8), np.zeros(4)
    tilted = [np.array(geometry.tilted(*angle)) for angle in angles]
    found = [Observation(0, 0.0, 0, nothing, None, pose, np.eye(2, 3), None, size, 1.0, 1.0) for pose in tilted]
    return Identity("p", found, np.zeros((len(found), K)), None, (1, 1))


def test_requests_are_balanced() -> None:
    requests = balanced(4000, 0)
    asked = Counter(a for r in requests for a in r.aus)
    assert set(asked) == set(AUS)
    # No AU is rarer than a third of the usual, none more than three times as frequent.
    usual = float(np.median(list(asked.values())))
    assert min(asked.values()) > usual / 3 and max(asked.values()) < 3 * usual
    assert sum(not r.aus for r in requests) == len(requests) // 8
    alone = Counter(next(iter(r.aus)) for r in requests if len(r.aus) == 1)
    assert set(alone) == set(AUS)
    levels = np.array([v for r in requests for v in r.aus.values()])
    assert levels.min() >= 0.3 and levels.max() <= 5
    share = np.histogram(levels, [0.3, 1, 2, 3, 4, 5])[0] / len(levels)
    assert share.min() > 0.08, "all intensities occur"
    assert all(r.pose is None for r in requests)


@pytest.mark.parametrize(("one", "without"), [(6, 12), (12, 6), (17, 15), (15, 17), (25, 26), (4, 7)])
def test_what_goes_together_is_asked_for_apart(one: int, without: int) -> None:
    requests = balanced(400, 3)
    assert sum(one in r.aus and without not in r.aus for r in requests) >= 8


def test_requests_are_drawn_by_seed() -> None:
    assert balanced(100, 5) == balanced(100, 5)
    assert balanced(100, 5) != balanced(100, 6)
    assert balanced(60, 5) == balanced(100, 5)[:60]


def test_what_occurs_together_is_broken_up() -> None:
    value = np.array([[r.aus.get(au, 0.0) for au in AUS] for r in balanced(4000, 1)])

    def share(au: int, other: int) -> float:
        return float((value[value[:, AUS.index(au)] >= 1, AUS.index(other)] >= 1).mean())

    for au, other in ((6, 12), (12, 6), (17, 15), (15, 17)):
        assert share(au, other) < 0.35, f"AU{other} comes with AU{au}"
        assert share(au, other) > 0.02, f"AU{other} never comes with AU{au}"
    counts = (value >= 1).sum(0)
    assert counts.min() > 60 and counts.max() < 8 * counts.min()
    for k in range(K):  # each AU at all intensities
        assert (np.histogram(value[value[:, k] > 0, k], [0, 1.5, 3, 5])[0] > 15).all()
    assert (value.max(1) == 0).mean() == pytest.approx(1 / 8, abs=0.01)


# What is needed


def test_aus_in_need_are_asked_for_more() -> None:
    need = np.zeros((K, 4))
    need[AUS.index(9)] = 2.0
    asked, usual = (Counter(a for r in balanced(2000, 1, w) for a in r.aus) for w in (need, None))
    assert asked[9] > 1.7 * usual[9]
    assert set(asked) == set(AUS), "none is forgotten"


def test_intensities_in_need_are_asked_for_more() -> None:
    need = np.zeros((K, 4))
    need[AUS.index(12), 2] = 4.0
    counts = [
        np.histogram([r.aus[12] for r in balanced(6000, 1, w) if list(r.aus) == [12]], LEVELS)[0] for w in (need, np.zeros_like(need))
    ]
    assert counts[0][2] > 0.5 * counts[0].sum(), "most smiles are of the level that lacks, combinations notwithstanding"
    assert counts[1][2] < 0.35 * counts[1].sum()
    assert counts[0].min() > 0


def test_need_is_what_the_clip_lacks_and_the_base_is_weak_and_unsure_in() -> None:
    intensity = np.zeros((100, K), np.float32)
    intensity[:8, AUS.index(12)] = 1.6  # more than enough of B
    intensity[8:10, AUS.index(4)] = 9.9  # two fifths of what is enough, of the highest
    identity = Identity("", [], intensity, None, (1, 1))
    needed = needs(identity, np.full(K, 0.4))
    assert needed.shape == (K, 4)
    assert needed[AUS.index(12)] == pytest.approx([1.8, 0.8, 1.8, 1.8])
    assert needed[AUS.index(4)] == pytest.approx([1.8, 1.8, 1.8, 1.8 - 0.02 / ENOUGH])
    assert needs(identity, np.full(K, np.nan))[AUS.index(12), 1] == pytest.approx(1.2)
    identity.unsure[AUS.index(9)] = 0.7
    assert needs(identity, np.full(K, 0.4))[AUS.index(9)] == pytest.approx([2.5] * 4)


# Poses


def test_spread_poses_do_not_depend_on_aus_and_stay_near_the_clips() -> None:
    shown = np.random.default_rng(0).normal(0, (0.1, 0.3), (300, 2))
    requests = spread_poses(balanced(2000, 1), poses(shown.tolist()), 1)
    angles = np.array([r.pose for r in requests])
    away = np.abs(angles[:, None, :2] - shown[None]).max(2).min(1)
    assert away.max() <= TURN + 1e-9
    value = np.array([[r.aus.get(au, 0.0) for au in AUS] for r in requests])
    together = np.corrcoef(np.hstack([angles[:, :2], value]).T)[:2, 2:]
    assert np.abs(together).max() < 0.1
    even = np.histogram(angles[:, 1], 6)[0]
    assert even.min() > 0.4 * even.max()  # a clip that looks ahead most of the time does not make a set that does
    assert [r.aus for r in requests] == [r.aus for r in balanced(2000, 1)]


def test_poses_that_the_clip_lacks_are_asked_for() -> None:
    ahead_and_left = [(0.0, 0.0)] * 60 + [(0.0, -0.26)] * 39 + [(0.0, 0.2)]
    asked = balanced(2000, 1)
    requests = lacking_poses(asked, poses(ahead_and_left), 0.3, 1)
    turned = [r for r in requests if r.pose is not None]
    assert len(turned) == pytest.approx(0.3 * len(requests), abs=60)
    assert [r.aus for r in requests] == [r.aus for r in asked]
    angles = np.array([r.pose for r in turned])
    assert (angles[:, 2] == 0).all()
    level = np.abs(angles[:, 0]) < np.radians(7)
    # Of the row that the clip is in, the cell with a single frame and the next to the left; those above and below are lacking altogether.
    yaw = np.degrees(angles[level, 1])
    assert ((yaw > 7) | (yaw < -22)).all() and min((yaw > 7).sum(), (yaw < -22).sum()) > 10
    assert (~level).sum() > 200
    away = np.abs(angles[:, None, :2] - np.array(ahead_and_left)[None]).max(2).min(1)
    assert away.max() <= TURN + 1e-9


def test_where_no_pose_lacks_requests_stay_as_they_are() -> None:
    everywhere = [(np.radians(p), np.radians(y)) for p in (-15, 0, 15) for y in (-30, -15, 0, 15, 30)]
    asked = balanced(50, 1)
    assert lacking_poses(asked, poses(everywhere), 1.0, 1) == asked
    assert lacking_poses(asked, poses([(1.2, 1.2)]), 1.0, 1) == asked, "nothing that could be reached"
    assert lacking_poses([Request({})], poses([(0.0, 0.0)]), 0.0, 1) == [Request({})]
