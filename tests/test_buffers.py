"""Replay buffers: inclusion probabilities, balance, exact resume, ranks, forgetting, and what a batch may not be."""

from __future__ import annotations

import threading
import time
from collections import Counter
from itertools import combinations

import pytest
import torch

from personalize.aus import AUS, index
from personalize.buffers import AU_SCHEMA, Field, ReplayBuffer
from personalize.errors import ConfigError, InputError
from personalize_plugins.buffers.balanced import Balanced
from personalize_plugins.buffers.reservoir import Reservoir

K = len(AUS)


class SmallReservoir(Reservoir):
    schema = {"x": Field((), torch.int64)}


class SmallBalanced(Balanced):
    schema = {"x": Field((), torch.int64), "target": AU_SCHEMA["target"], "mask": AU_SCHEMA["mask"]}


def faces(n: int, seed: int = 0, neutral: bool = False) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    batch = {
        "crop": torch.randint(0, 256, (n, 3, 112, 112), generator=g, dtype=torch.uint8),
        "landmarks": torch.randn(n, 478, 3, generator=g),
        "has_landmarks": torch.ones(n, dtype=torch.bool),
        "target": torch.rand(n, K, generator=g) * 5,
        "mask": torch.rand(n, K, generator=g) > 0.2,
        "weight": torch.ones(n),
    }
    if neutral:
        batch |= {
            "neutral_crop": batch["crop"].flip(3),
            "neutral_landmarks": batch["landmarks"] / 2,
            "has_neutral": torch.ones(n, dtype=torch.bool),
        }
    return batch


def held(buffer: ReplayBuffer) -> list[int]:
    return sorted(int(slot["x"]) for slot in buffer._slots if slot is not None)


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((c - expected) ** 2 / expected for c in counts)


# Reservoir


@pytest.mark.parametrize(("capacity", "n"), [(1, 5), (1, 2), (3, 8)])
def test_reservoir_keeps_each_item_with_probability_capacity_over_n(capacity: int, n: int) -> None:
    trials, counts = 3000, Counter()
    for seed in range(trials):
        buffer = SmallReservoir(capacity=capacity, seed=seed)
        buffer.add({"x": torch.arange(n)}, "a")
        counts.update(held(buffer))
    # 99.99 % quantiles of chi-square with 1, 4, 7 degrees; the sum over n items of a without-replacement draw spreads less.
    assert chi_square([counts[i] for i in range(n)]) < {2: 15.1, 5: 23.5, 8: 29.9}[n]
    assert all(abs(counts[i] / trials - capacity / n) < 0.045 for i in range(n))


def test_reservoir_keeps_every_subset_equally_often() -> None:
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(4000):
        buffer = SmallReservoir(capacity=2, seed=seed)
        for i in range(5):  # one at a time or all at once is the same stream
            buffer.add({"x": torch.tensor([i])}, "a")
        counts[tuple(held(buffer))] += 1
    assert chi_square([counts[pair] for pair in combinations(range(5), 2)]) < 33.7  # 9 degrees, 99.99 %


def test_reservoir_stays_uniform_after_forgetting() -> None:
    counts: Counter[int] = Counter()
    for seed in range(4000):
        buffer = SmallReservoir(capacity=3, seed=seed)
        buffer.add({"x": torch.arange(0, 4)}, "stays")
        buffer.add({"x": torch.arange(10, 14)}, "goes")
        buffer.forget("goes")
        buffer.add({"x": torch.arange(4, 10)}, "comes")
        assert len(buffer) == 3  # 6 newcomers pair with 4 forgotten
        counts.update(held(buffer))
    assert set(counts) == set(range(10))
    assert chi_square([counts[i] for i in range(10)]) < 33.7


def test_reservoir_refills_what_never_overflowed() -> None:
    buffer = SmallReservoir(capacity=10)
    buffer.add({"x": torch.arange(3)}, "a")
    buffer.add({"x": torch.arange(3, 6)}, "b")
    assert buffer.forget("a") == 3
    buffer.add({"x": torch.arange(6, 13)}, "c")
    assert held(buffer) == list(range(3, 13))


# Balanced


def labelled(rows: list[dict[int, float]], start: int = 0, known: bool = True) -> dict[str, torch.Tensor]:
    target = torch.zeros(len(rows), K)
    for row, aus in zip(target, rows, strict=True):
        for au, value in aus.items():
            row[index(au)] = value
    return {"x": torch.arange(start, start + len(rows)), "target": target, "mask": torch.full((len(rows), K), known)}


@pytest.mark.parametrize("seed", range(5))
def test_balanced_keeps_rare_aus_that_a_reservoir_loses(seed: int) -> None:
    rows: list[dict[int, float]] = [{} for _ in range(600)]
    rare = [37, 210, 388, 555]
    for i in rare:
        rows[i] = {17: 3.0}
    for i in range(0, 600, 3):
        rows[i] = {**rows[i], 12: 2.0}
    buffer = SmallBalanced(capacity=24, seed=seed)
    buffer.add(labelled(rows), "a")
    assert set(rare) <= set(held(buffer))
    smiles = int((buffer.targets[:, index(12)] >= 1).sum())
    assert 9 <= smiles <= 15  # a third of the stream, half of the buffer


def test_balanced_is_even_over_people_and_states() -> None:
    buffer = SmallBalanced(capacity=32)
    for person, n in (("many", 800), ("few", 60), ("some", 200), ("last", 30)):
        buffer.add(labelled([{6: 3.0} if i % 10 == 0 else {} for i in range(n)]), person)
    assert all(7 <= count <= 9 for count in buffer.people().values())
    for person in buffer.people():
        mine = torch.tensor([owner == person for owner in buffer.owners])
        present = int((buffer.targets[mine, index(6)] >= 1).sum())
        assert 3 <= present <= 5  # "last" showed it three times in all


def test_balanced_keeps_people_without_labels_and_lets_no_label_win() -> None:
    buffer = SmallBalanced(capacity=20)
    buffer.add(labelled([{12: 2.0} if i % 2 else {} for i in range(100)]), "labelled")
    buffer.add(labelled([{} for _ in range(100)], known=False), "unlabelled")
    assert 4 <= buffer.people()["unlabelled"] <= 12


def test_balanced_is_a_reservoir_among_equals() -> None:
    counts: Counter[int] = Counter()
    for seed in range(1500):
        buffer = SmallBalanced(capacity=2, seed=seed)
        buffer.add(labelled([{}] * 6), "a")
        counts.update(held(buffer))
    assert chi_square([counts[i] for i in range(6)]) < 25.7  # 5 degrees, 99.99 %


def test_balanced_swap_is_the_best_by_brute_force() -> None:
    """Oracle: the buffer's worth, written out over all swaps, never falls, and rises by the most that one swap can give."""
    g = torch.Generator().manual_seed(3)

    def worth(items: list[tuple[str, torch.Tensor, torch.Tensor]]) -> float:
        cells: Counter[tuple[object, ...]] = Counter()
        for person, target, mask in items:
            cells[(person,)] += 1
            cells.update((person, k, bool(target[k] >= 1)) for k in range(K) if mask[k])
        return sum(
            (K if len(cell) == 1 else 1) * float(torch.log1p(torch.tensor(float(c), dtype=torch.float64))) for cell, c in cells.items()
        )

    buffer = SmallBalanced(capacity=6)
    now: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    for step in range(80):
        person = "abc"[int(torch.randint(3, (), generator=g))]
        item = (person, (torch.rand(K, generator=g) < 0.2).float() * 3, torch.rand(K, generator=g) < 0.7)
        before = list(now)
        buffer.add({"x": torch.tensor([step]), "target": item[1][None], "mask": item[2][None]}, person)
        now = [(o, t, m) for o, t, m in zip(buffer.owners, buffer.targets, buffer.known, strict=True) if o is not None]
        now = [(o, t.clone(), m.clone()) for o, t, m in now]
        if len(before) == 6:
            best = max([worth(before)] + [worth(before[:i] + before[i + 1 :] + [item]) for i in range(6)])
            assert worth(now) == pytest.approx(best, abs=1e-5)


# The base class


@pytest.mark.parametrize("kind", [Reservoir, Balanced])
def test_copies_survive_changes_of_the_batch_and_hold_no_reference(kind: type[ReplayBuffer]) -> None:
    buffer = kind(capacity=4)
    batch = faces(3, neutral=True)
    expected = {name: value.clone() for name, value in batch.items()}
    buffer.add(batch, "a")
    for value in batch.values():
        value.zero_()
    got = buffer.sample(3)
    order = [int((expected["landmarks"][:, 0, 0] == v).nonzero()) for v in got["landmarks"][:, 0, 0]]
    assert sorted(order) == [0, 1, 2]
    assert all(torch.equal(got[name], expected[name][order]) for name in expected)
    stored = buffer._slots[0]
    assert stored is not None and all(v.untyped_storage().nbytes() == v.numel() * v.element_size() for v in stored.values())


def test_optional_fields_are_zero_where_an_item_lacks_them() -> None:
    buffer = Reservoir(capacity=8)
    buffer.add(faces(2), "a")
    assert "neutral_crop" not in buffer.sample(1)
    buffer.add(faces(2, neutral=True), "b")
    got = buffer.sample(4)
    assert int(got["has_neutral"].sum()) == 2
    assert not got["neutral_crop"][~got["has_neutral"]].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop("mask"), "a replay batch lacks 'mask'; it must be bool (B, 22)."),
        (lambda b: b.update(target=b["target"][:, :20]), "'target' of a replay batch is float32 (3, 20); it must be float32 (B, 22)."),
        (
            lambda b: b.update(crop=b["crop"].float()),
            "'crop' of a replay batch is float32 (3, 3, 112, 112); it must be uint8 (B, 3, 112, 112).",
        ),
        (lambda b: b.update(weight=b["weight"][:2]), "'weight' of a replay batch has 2 items, the fields before it 3."),
        (
            lambda b: b["target"].__setitem__((0, 0), float("nan")),
            "'target' of a replay batch holds NaN or infinite values; leave such items out, or mask them and set them to 0.",
        ),
        (lambda b: b["target"].fill_(7), "'target' of a replay batch spans 7 to 7; it must be within 0-5."),
        (lambda b: b["weight"].fill_(-1), "'weight' of a replay batch spans -1 to -1; it must be at least 0."),
        (lambda b: b.update(has_neutral=b["has_landmarks"]), "a replay batch lacks 'neutral_crop'; it must be uint8 (B, 3, 112, 112)."),
        (lambda b: b.update(weight=[1, 1, 1]), "'weight' of a replay batch is a list; it must be float32 (B,)."),
    ],
)
def test_a_bad_batch_is_one_line_and_stores_nothing(change, message: str) -> None:  # type: ignore[no-untyped-def]
    buffer, batch = Reservoir(capacity=4), faces(3)
    change(batch)
    with pytest.raises(InputError) as error:
        buffer.add(batch, "a")
    assert str(error.value) == message
    assert len(buffer) == 0 and buffer.n_seen == 0


def test_other_errors_are_one_line() -> None:
    buffer = SmallReservoir(capacity=2)
    with pytest.raises(InputError, match=r"^unknown field of a replay batch 'y'\. There is: x\.$"):
        buffer.add({"y": torch.zeros(1)}, "a")
    with pytest.raises(InputError, match=r"^a replay item needs the name of its person"):
        buffer.add({"x": torch.zeros(1, dtype=torch.int64)}, "")
    with pytest.raises(InputError, match=r"^the replay buffer is empty; add items before drawing from it\.$"):
        buffer.sample(1)
    with pytest.raises(InputError, match=r"^the replay buffer knows nobody\.$"):
        buffer.forget("a")
    with pytest.raises(ConfigError, match=r"^buffer capacity is 0; it must be at least 1\.$"):
        Reservoir(capacity=0)
    with pytest.raises(ConfigError, match=r"^cannot draw n=1 for rank 2 of 2"):
        buffer.sample(1, rank=2, world=2)


@pytest.mark.parametrize("kind", [SmallReservoir, SmallBalanced])
def test_resume_is_exact_in_memory_and_on_disk(kind: type[ReplayBuffer], tmp_path) -> None:  # type: ignore[no-untyped-def]
    def batch(n: int, seed: int) -> dict[str, torch.Tensor]:
        g = torch.Generator().manual_seed(seed)
        full = labelled([{12: float(v)} for v in torch.randint(0, 4, (n,), generator=g)], start=seed * 100)
        return {name: full[name] for name in kind.schema}

    def go_on(buffer: ReplayBuffer) -> tuple[list[int], list[int], int, dict[str, int]]:
        drawn = buffer.sample(5)["x"].tolist()
        buffer.add(batch(60, 3), "c")
        return held(buffer), drawn + buffer.sample(7)["x"].tolist(), buffer.n_seen, buffer.people()

    one = kind(capacity=12, seed=5)
    one.add(batch(50, 1), "a")
    one.add(batch(20, 2), "b")
    one.forget("a")
    one.add(batch(9, 4), "d")
    one.sample(3)
    state = one.state_dict()
    one.save(tmp_path / "buffer.safetensors")
    two, three = kind(capacity=12), kind(capacity=12, seed=99)
    two.load_state_dict(state)
    three.load(tmp_path / "buffer.safetensors")
    expected = go_on(one)
    assert expected[2] == 89
    assert go_on(two) == expected and go_on(three) == expected
    assert [p.name for p in tmp_path.iterdir()] == ["buffer.safetensors"]


def test_who_changes_a_saved_buffer_at_the_same_time_loses_nothing(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "buffer.safetensors"
    SmallReservoir(capacity=16).save(path)
    together = threading.Barrier(4)

    def change(person: str) -> None:
        together.wait()
        with ReplayBuffer.alone(path):
            buffer = SmallReservoir(capacity=16)
            buffer.load(path)
            time.sleep(0.02)
            buffer.add({"x": torch.arange(2)}, person)
            buffer.save(path)

    people = [threading.Thread(target=change, args=(person,)) for person in "abcd"]
    for each in people:
        each.start()
    for each in people:
        each.join()
    after = SmallReservoir(capacity=16)
    after.load(path)
    assert after.people() == dict.fromkeys(sorted(after.people()), 2) and sorted(after.people()) == list("abcd")
    with (
        pytest.raises(InputError, match=r"^cannot write the replay buffer .*/no/b: No such file or directory\.$"),
        ReplayBuffer.alone(tmp_path / "no" / "b"),
    ):
        pass


def test_a_saved_buffer_that_cannot_be_used_is_one_line_and_changes_nothing(tmp_path) -> None:  # type: ignore[no-untyped-def]
    buffer = SmallReservoir(capacity=2)
    buffer.add({"x": torch.arange(2)}, "a")
    path = tmp_path / "b.safetensors"
    buffer.save(path)
    with pytest.raises(
        ConfigError, match=r"^the saved replay buffer holds 2 items, this one 3; set buffer\.options\.capacity=2 or start a new buffer\.$"
    ):
        SmallReservoir(capacity=3).load(path)
    with pytest.raises(InputError, match=r"was written by the buffer SmallReservoir, not SmallBalanced"):
        SmallBalanced(capacity=2).load(path)
    with pytest.raises(InputError, match=r"^no replay buffer at .*nothing; check the path\.$"):
        buffer.load(tmp_path / "nothing")
    whole = path.read_bytes()
    for broken in (b"", b"junk" * 50, whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"is broken or no replay buffer"):
            buffer.load(path)
    assert held(buffer) == [0, 1]
    with pytest.raises(InputError, match=r"^cannot write the replay buffer "):
        buffer.save(tmp_path / "missing" / "b.safetensors")


def test_forget_drops_one_person_and_keeps_the_rest_bit_for_bit() -> None:
    buffer = Reservoir(capacity=6)
    buffer.add(faces(3, 1), "a")
    buffer.add(faces(3, 2), "b")
    before = {i: slot for i, slot in enumerate(buffer._slots) if buffer.owners[i] == "b"}
    assert buffer.forget("a") == 3
    assert buffer.people() == {"b": 3} and buffer.n_seen == 3
    assert all(buffer._slots[i] is slot for i, slot in before.items())
    state = buffer.state_dict()
    assert "a" not in state["seen"] and "a" not in state["owners"] and len(state["fields"]["crop"]) == 3
    with pytest.raises(InputError, match=r"^unknown person in the replay buffer 'a'\. There is: b\.$"):
        buffer.forget("a")


# Ranks


@pytest.mark.parametrize("n_items", [40, 9, 4])
def test_ranks_draw_disjoint_parts(n_items: int) -> None:
    world, n = 4, 5
    ranks = [SmallReservoir(capacity=40, seed=1) for _ in range(world)]
    for buffer in ranks:
        buffer.add({"x": torch.arange(n_items)}, "a")
    for _ in range(3):  # still in step after the first draw
        parts = [buffer.sample(n, rank, world)["x"].tolist() for rank, buffer in enumerate(ranks)]
        assert all(len(part) == n for part in parts)
        assert all(not set(a) & set(b) for a, b in combinations(parts, 2))
        if n_items < n * world:
            assert set().union(*parts) == set(range(n_items))


def test_parts_of_the_ranks_join_to_the_draw_of_one_process() -> None:
    one, *ranks = [SmallReservoir(capacity=30, seed=2) for _ in range(4)]
    for buffer in (one, *ranks):
        buffer.add({"x": torch.arange(100)}, "a")
    for _ in range(3):
        whole = one.sample(12)["x"].tolist()
        assert sum((buffer.sample(4, r, 3)["x"].tolist() for r, buffer in enumerate(ranks)), []) == whole
        assert len(set(whole)) == 12


def test_drawing_does_not_change_what_is_kept() -> None:
    quiet, busy = SmallReservoir(capacity=5), SmallReservoir(capacity=5)
    for i in range(50):
        quiet.add({"x": torch.tensor([i])}, "a")
        busy.add({"x": torch.tensor([i])}, "a")
        busy.sample(2)
    assert held(quiet) == held(busy)
    state = torch.get_rng_state()
    quiet.sample(3)
    assert torch.equal(state, torch.get_rng_state())  # nor the global stream
