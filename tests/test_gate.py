"""The gates against closed forms: how far each opens on which evidence, and how far a reading may move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr

from personalize.aus import AUS, COLUMNS
from personalize.collect import Truth
from personalize.gate import Evidence, hear, opening
from personalize.profile import Profile
from personalize.reader import Reader, blend, lasting, offsets_at, without_rest
from personalize.weights import Base, load_base

K = len(AUS)


@pytest.fixture
def evidence() -> Callable[..., Evidence]:
    """Evidence that is the same for all AUs: best of all, unless told otherwise."""

    def make(**given: float) -> Evidence:
        values = {"gain": 0.3, "agreement": 0.99, "moves": 0.8, "labelled": np.nan} | given
        return Evidence(**{k: np.full(K, v) for k, v in values.items()})

    return make


@pytest.mark.parametrize(
    ("given", "confidence", "expected"),
    [
        ({}, 1.0, 1.0),
        ({}, 0.6, 0.7),
        ({}, 0.0, 0.0),
        # Evidence is decided on: up to a quarter changes nothing, from three quarters on all.
        ({}, 0.75, 1.0),
        ({}, 0.25, 0.0),
        ({}, 0.3, 0.1),
        # Nobody has anything against it: as far as the neutral is sure.
        ({"gain": np.nan, "agreement": np.nan, "moves": 0.0}, 1.0, 1.0),
        ({"gain": np.nan, "agreement": np.nan, "moves": 0.0}, 0.4, 0.3),
        # Held-out samples shut a gate where the training went wrong: three times the base's error. Twice is no evidence.
        ({"gain": -2.0}, 1.0, 0.0),
        ({"gain": -30.0}, 1.0, 0.0),
        ({"gain": -1.5}, 1.0, 0.5),
        ({"gain": -1.6}, 1.0, 0.3),
        ({"gain": -1.0}, 1.0, 1.0),
        ({"gain": 0.5}, 1.0, 1.0),
        # Nothing of a clear movement that the base sees, or its opposite: shut; where the base sees none, it does not matter.
        ({"agreement": 0.0}, 1.0, 0.0),
        ({"agreement": -1.0}, 1.0, 0.0),
        ({"agreement": 0.25}, 1.0, 0.5),
        ({"agreement": 0.5}, 1.0, 1.0),
        ({"agreement": -1.0, "moves": 0.15}, 1.0, 1.0),
        ({"agreement": -1.0, "moves": 0.325}, 1.0, 0.5),
        # Labels outweigh all others, both ways.
        ({"labelled": 0.05, "gain": -3.0, "agreement": -1.0}, 0.0, 1.0),
        ({"labelled": 0.0}, 1.0, 0.0),
        ({"labelled": 0.02}, 1.0, 0.4),
        ({"labelled": -0.3}, 1.0, 0.0),
    ],
)
def test_opening(evidence: Callable[..., Evidence], given: dict[str, float], confidence: float, expected: float) -> None:
    opened = opening(evidence(**given), confidence, np.ones(K))
    assert opened.shape == (K,) and opened.dtype == np.float32
    np.testing.assert_allclose(opened, expected, atol=1e-6)


def test_every_gate_is_its_own(evidence: Callable[..., Evidence]) -> None:
    seen = evidence()
    seen.gain[3], seen.labelled[5] = -2.0, -1.0
    shut = opening(seen, 1.0, np.ones(K)) == 0
    assert np.flatnonzero(shut).tolist() == [3, 5]


def test_what_a_neutral_does_not_tell_nor_does_a_clip(evidence: Callable[..., Evidence]) -> None:
    promise = np.full(K, 0.2)
    promise[:6] = [-0.1, 0.0, 0.02, 0.04, 0.06, np.nan]  # NaN: a base whose card does not say
    opened = opening(evidence(), 1.0, promise)
    np.testing.assert_allclose(opened[:6], [0, 0, 0, 0.5, 1, 1], atol=1e-6)
    assert (opened[6:] == 1).all()


def test_the_shipped_card_tells_what_a_neutral_gains() -> None:
    base = load_base()
    table = base.card["validation"]
    for k, name in enumerate(COLUMNS):
        plain, given = table["fused"][name]["icc"], table["fused+neutral"][name]["icc"]
        assert base.promise()[k] == pytest.approx((given - plain) / (1 - plain), abs=1e-5)
        assert base.reliability()[k] == pytest.approx(plain)
    silent = Base("mine", "", base.net, base.thresholds, {})
    assert np.isnan(silent.promise()).all() and not silent.reliability().any()


def test_never_beyond_its_range() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        draw = {k: np.where(rng.random(K) < 0.2, np.nan, rng.normal(0, 2, K)) for k in ("gain", "agreement", "labelled")}
        opened = opening(Evidence(**draw, moves=rng.uniform(0, 2, K)), float(rng.random()), rng.normal(0, 0.1, K))
        assert np.isfinite(opened).all() and opened.min() >= 0 and opened.max() <= 1


def readings(rng: np.random.Generator, n: int = 40) -> dict[str, np.ndarray]:
    return {name: rng.uniform(0, 5, (n, K)) for name in ("base", "personal")}


def test_witnesses_against_scipy() -> None:
    rng = np.random.default_rng(1)
    frames = readings(rng)
    frames["base"][:, 2] = 1.0  # stands still: nothing to agree with
    frames["personal"][:, 3] = 1.0  # misses all that the base sees: no agreement
    base, own, target = (rng.uniform(0, 5, (60, K)) for _ in range(3))
    known = rng.random((60, K)) < 0.5
    known[7:, 4] = False  # seven labels are too few
    said = hear((base, own, target, known), frames, None)

    def r(a: str, b: str, k: int) -> float:
        return float(pearsonr(frames[a][:, k], frames[b][:, k])[0])

    for k in range(K):
        if k not in (2, 3):
            assert said.agreement[k] == pytest.approx(r("personal", "base", k), abs=1e-9)
        if k != 4:
            rows = known[:, k]
            before, after = np.abs(base[rows, k] - target[rows, k]).mean(), np.abs(own[rows, k] - target[rows, k]).mean()
            assert said.gain[k] == pytest.approx((before - after) / before, abs=1e-9)
        assert said.moves[k] == pytest.approx(np.sqrt(np.mean((frames["base"][:, k] - frames["base"][:, k].mean()) ** 2)), abs=1e-9)
    assert said.agreement[3] == 0 and np.isnan(said.agreement[2]) and np.isnan(said.gain[4]) and np.isnan(said.labelled).all()
    assert list(said.rows()) == list(COLUMNS)
    assert said.rows()[COLUMNS[1]]["gain"] == pytest.approx(said.gain[1])


def test_a_handful_of_frames_says_nothing() -> None:
    said = hear(None, readings(np.random.default_rng(2), 11), None)
    assert all(np.isnan(v).all() for v in (said.gain, said.agreement, said.labelled))
    assert not np.isnan(hear(None, readings(np.random.default_rng(2), 12), None).agreement).any()


def test_labels_are_heard() -> None:
    base = np.full((20, K), 2.0)
    own = np.full((20, K), 1.0)
    truth, known = np.zeros((20, K)), np.ones((20, K), bool)
    truth[:3] = 1
    said = hear(None, readings(np.random.default_rng(3)), (base, own, truth, known))
    np.testing.assert_allclose(said.labelled, (17 * 2 + 3 - 17) / (17 * 2 + 3))
    # Of an AU that they show in one state only they say nothing: who never reports it is right wherever it is absent.
    for state in (0, 1):
        one = truth.copy()
        one[:, 4] = state
        one[:2, 4] = 1 - state
        heard = hear(None, readings(np.random.default_rng(3)), (base, own, one, known)).labelled
        assert np.isnan(heard[4]) and not np.isnan(np.delete(heard, 4)).any()


@pytest.mark.parametrize("closed", [0.9, 0.95, 0.99, 1.0])
def test_a_gate_that_asks_for_most_is_never_opened_by_disagreement(closed: float) -> None:
    opened = [
        opening(Evidence(*(np.full(K, x) for x in (0.3, agreement, 2.0, np.nan))), 1.0, np.ones(K), closed, 0.9)
        for agreement in (-0.5, 0.2, 0.8, 1.0)
    ]
    assert not opened[0].any() and not opened[1].any() and (np.diff(opened, axis=0) >= 0).all()


def test_presence_is_judged_as_at_least() -> None:
    target = np.tile(np.array([[0.0], [3.0], [3.0]]), (1, K))
    truth = Truth(target, np.ones((3, K), bool), np.arange(K) < 2)
    read = np.tile(np.array([[1.0], [4.5], [2.0]]), (1, K))
    said = truth.judge(read)
    assert (said[:, :2] == [[1.0], [3.0], [2.0]]).all() and np.array_equal(said[:, 2:], read[:, 2:])
    assert truth.rows(np.array([1])).judge(read[1:2])[0, 0] == 3 and not Truth.unknown(4).known.any()


# What the gates do to a reading


def draw(seed: int, n: int = 50) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "base": rng.uniform(0, 5, (n, K)).astype(np.float32),
        "personal": rng.uniform(0, 5, (n, K)).astype(np.float32),
        "gate": rng.uniform(0, 1, K),
        "trust": rng.uniform(0, 3, K),
    }


@pytest.mark.parametrize("seed", range(5))
def test_no_reading_moves_further_than_gate_times_trust(seed: int) -> None:
    given = draw(seed)
    out = blend(**given)
    assert out.dtype == np.float32 and out.min() >= 0 and out.max() <= 5
    assert (np.abs(out - given["base"]) <= given["gate"] * given["trust"] + 1e-6).all()
    towards = given["personal"] - given["base"]
    assert (np.sign(out - given["base"]) * np.sign(towards) >= 0).all(), "never away from the person's reading"


def test_blend_is_its_formula() -> None:
    given = draw(9, 20)
    out = blend(**given)
    for i in range(20):
        for k in range(K):
            b = float(given["base"][i, k])
            move = float(given["personal"][i, k]) - b
            move = max(-given["trust"][k], min(given["trust"][k], move))
            y = min(max(b + given["gate"][k] * move, 0), 5)
            assert out[i, k] == pytest.approx(y, abs=1e-5)


def test_taking_out_rest_keeps_the_order_and_the_range() -> None:
    y = np.linspace(0, 5, 400)[:, None]
    offsets = np.array([0.0, 0.3, 1.0, 2.5])
    out = without_rest(np.repeat(y, 4, 1), offsets).astype(np.float64)
    assert (np.diff(out[4:], axis=0) > 0).all() and (out >= 0).all() and (out <= y + 1e-6).all()
    assert np.allclose(out[:, 0], y[:, 0], atol=1e-6), "no offset, no change"
    assert np.allclose(without_rest(offsets[None, 1:], offsets[1:]), 0.51 * offsets[1:]), "at the offset: half"
    rng = np.random.default_rng(3)
    y, rest = rng.uniform(0, 5, (20, K)), rng.uniform(0, 2, K)
    assert without_rest(y, rest) == pytest.approx(0.02 * y + 0.98 * y**7 / (y**6 + rest**6), abs=1e-5)


def test_what_is_read_in_nine_tenths_of_the_calm_frames_is_rest() -> None:
    readings = np.zeros((101, K))
    readings[:, 0] = np.linspace(0, 0.5, 101)  # 0.45 is what 90 % of the frames stay below
    readings[:, 1] = 5.0 * (np.arange(101) > 80)  # a frown of a fifth of the clip
    readings[:, 2] = 5.0 * (np.arange(101) > 92)
    thresholds = np.linspace(1.5, 0.5, K)
    card = {"validation": {"fused": {c: {"icc": icc} for c, icc in zip(COLUMNS, [0.5, 0.9, 0.2, *[0.1] * (K - 3)], strict=True)}}}
    base = Base("mine", "", load_base().net, thresholds, card)
    for confidence in (1.0, 0.4):
        found = offsets_at(readings, confidence, base)
        expected = [0.45 + 0.2 * 0.5 * 1.5, 1.2 * thresholds[1], 0.2 * 0.8 * thresholds[2]]
        assert found[:3] == pytest.approx([confidence * e for e in expected], abs=1e-6)
    # Of an AU that the base reads hardly better for a known neutral, that neutral's rest tells as little.
    alone = card["validation"]["fused"]
    gained = dict(zip(COLUMNS, [-0.01, 0.0, 0.01, 0.02, 0.04, 0.1], strict=False))
    card["validation"]["fused+neutral"] = {c: {"icc": v["icc"] + gained.get(c, 0.1) * (1 - v["icc"])} for c, v in alone.items()}
    told = offsets_at(readings, 1.0, base) / offsets_at(
        readings, 1.0, Base("mine", "", base.net, thresholds, {"validation": {"fused": alone}})
    )
    assert told == pytest.approx([0, 0, 0.25, 0.5, *[1.0] * (K - 4)], abs=1e-4)
    assert without_rest(np.array([[5.0]]), np.array([1.2]))[0, 0] > 4.98, "an expression that lasts stays one"


def test_what_lasts_against_scipy() -> None:
    from scipy.ndimage import maximum_filter1d, uniform_filter1d

    y = np.random.default_rng(7).uniform(0, 5, (90, K))
    for step, span in ((0.04, 11), (0.08, 5), (0.1, 5), (1 / 30, 13), (1 / 60, 25)):
        expected = maximum_filter1d(uniform_filter1d(y, span, axis=0, mode="nearest"), span, axis=0, mode="nearest")
        np.testing.assert_allclose(lasting(y, [i * step for i in range(90)]), expected, atol=1e-9)
    # What is far apart in time has nothing to do with each other, nor have stills, which have no time.
    apart = [i * 0.04 + 2.0 * (i >= 40) for i in range(90)]
    halves = [lasting(y[rows], apart[rows]) for rows in (slice(0, 40), slice(40, 90))]
    np.testing.assert_allclose(lasting(y, apart), np.concatenate(halves), atol=1e-9)
    assert np.array_equal(lasting(y, [0.0] * 90), y) and lasting(y[:0], []).shape == (0, K)
    assert np.array_equal(lasting(y[:1], [3.0]), y[:1])


def test_what_lasts_is_the_same_where_frames_come_unevenly() -> None:
    """A telephone that drops frames sees the same: straight courses, so that nothing is lost between two frames."""
    t = np.arange(200) * 0.04
    course = np.interp(t, [0, 2, 2.6, 3.4, 4, 8], [0, 0, 3, 3, 0, 0.5])[:, None] * np.linspace(0.5, 1, K)
    whole = lasting(course, t.tolist())
    rng = np.random.default_rng(0)
    kept = np.sort(np.r_[0, 199, rng.choice(np.arange(1, 199), 120, replace=False)])
    seen = lasting(course[kept], t[kept].tolist())
    assert np.abs(seen - whole[kept]).max() < 0.16
    bunched = np.r_[0:100, 100:200:5]  # by the frame, not by the second, .4 s would be 2 s in the second half
    assert np.abs(lasting(course[bunched], t[bunched].tolist()) - whole[bunched]).max() < 0.16


def test_what_shows_for_a_moment_is_rest_and_what_lasts_is_not() -> None:
    y = np.full((100, 1), 0.5)
    y[20], y[60:80] = 1.5, 1.5  # a frame's tremble, and 0.8 s
    times, rest = [i * 0.04 for i in range(100)], np.array([1.0])
    alone, together = without_rest(y, rest)[:, 0], without_rest(y, rest, lasting(y, times))[:, 0]
    assert alone[20] == alone[70] == pytest.approx(1.5 * (0.02 + 0.98 * 1.5**6 / (1.5**6 + 1)), abs=1e-4)
    assert together[70] == pytest.approx(alone[70], abs=1e-4)
    mean = 0.5 + 1.0 / 11
    assert together[20] == pytest.approx(1.5 * (0.02 + 0.98 * mean**6 / (mean**6 + 1)), abs=1e-4)
    assert together[20] < 0.1 < together[61] and together[10] < 0.05


def clip_of(rng: np.random.Generator, n: int = 200) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """What the person's model and the base expect in a clip of 20 s, and when: one AU moves, the rest trembles."""
    expected = rng.uniform(0, 0.3, (n, K))
    expected[n // 4 : n // 2, 8] += 3.0
    return expected + rng.normal(0, 0.02, (n, K)), expected, [i / 10 for i in range(n)]


def test_another_day_is_what_a_reading_leads_by_in_half_of_the_clip() -> None:
    base, rng = load_base(), np.random.default_rng(5)
    lead = rng.uniform(-0.2, 0.3, K).astype(np.float32)
    reader = Reader(base, Profile("her", base.name, base.sha256, lead=lead, offsets=np.full(K, 0.4, np.float32)))
    own, expected, times = clip_of(rng)
    own += rng.uniform(-0.3, 0.9, K)
    day = reader.another_day(own, expected, times)
    for k in range(K):
        ahead = sorted(float(a - b) for a, b in zip(own[:, k], expected[:, k], strict=True))
        assert day[k] == pytest.approx(max(0.0, (ahead[99] + ahead[100]) / 2 - float(lead[k])), abs=1e-5)
    assert (day > 0.1).any() and (day == 0).any()
    y = np.clip(own - day, 0, 5)
    said = base.report((0.02 * y + 0.98 * y**7 / np.maximum(y**6 + 0.4**6, 1e-12)).astype(np.float32), 0.0)
    np.testing.assert_allclose(reader.personal(own, day), said, atol=1e-4)
    seen = lasting(y, times)
    said = base.report((y * (0.02 + 0.98 * seen**6 / np.maximum(seen**6 + 0.4**6, 1e-12))).astype(np.float32), 0.0)
    np.testing.assert_allclose(reader.in_clip(own, expected, times), said, atol=1e-4)


def test_what_lasts_is_no_other_day_where_the_base_sees_it_too() -> None:
    """A smile through the whole clip, read higher by the person's model; and a clip too short to tell, and stills."""
    base, rng = load_base(), np.random.default_rng(6)
    reader = Reader(base, Profile("her", base.name, base.sha256, lead=np.full(K, 0.05, np.float32)))
    own, expected, times = clip_of(rng)
    smile = own.copy(), expected.copy()
    for readings in smile:
        readings[:, 8] += 2.0
    assert not reader.another_day(own, expected, times).any() and not reader.another_day(*smile, times).any()
    higher = smile[0] + 1.0
    assert reader.another_day(higher, smile[1], times).min() > 0.7
    assert not reader.another_day(higher, smile[1], [t / 5 for t in times]).any()
    assert not reader.another_day(higher, smile[1], [0.0] * len(times)).any()
    assert not reader.another_day(higher[:0], smile[1][:0], []).any()
    unknown = Reader(base, Profile("her", base.name, base.sha256))
    assert not unknown.another_day(higher + 3.0, smile[1], times).any(), "a profile from before there was a lead"


def test_a_shut_gate_gives_exactly_the_base() -> None:
    given = draw(4)
    given["gate"][::2] = 0.0
    assert np.array_equal(blend(**given)[:, ::2], given["base"][:, ::2])
