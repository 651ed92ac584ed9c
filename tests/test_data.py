"""What becomes of the answers of generators, and which samples a step and rank see."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from personalize import geometry
from personalize.aus import AUS
from personalize.collect import Truth
from personalize.data import (
    PersonData,
    Samples,
    StepBatches,
    base_domain,
    frame_samples,
    generate,
    join,
    write_base_domain,
)
from personalize.faces import Face, Observation, Tracker
from personalize.generators import Generator, Request, Sample
from personalize.identity import Identity

K = len(AUS)


# Which samples a step sees


def steps(n: int = 37, size: int = 4, count: int = 30, done: int = 0, **more: int) -> list[list[int]]:
    return list(StepBatches(n, size, count, seed=3, done=lambda: done, **more))


def test_two_ranks_see_what_one_process_with_twice_the_batch_sees() -> None:
    left, right, one = steps(rank=0, world=2), steps(rank=1, world=2), steps(size=8)
    assert [a + b for a, b in zip(left, right, strict=True)] == one


def test_ranks_are_disjoint_within_a_lap_and_every_sample_comes_once() -> None:
    n, size, world = 36, 3, 3
    ranks = [steps(n, size, 12, rank=r, world=world) for r in range(world)]
    for lap in range(3):
        drawn = [[i for step in rank[lap * 4 : lap * 4 + 4] for i in step] for rank in ranks]
        assert sorted(sum(drawn, [])) == list(range(n))
        assert not set(drawn[0]) & set(drawn[1]) and not set(drawn[1]) & set(drawn[2])
    assert ranks[0][:4] != ranks[0][4:8], "each lap is shuffled anew"


def test_every_sample_once_a_lap_where_batches_do_not_divide() -> None:
    flat = [i for step in steps() for i in step]
    for lap in range(len(flat) // 37):
        assert sorted(flat[lap * 37 : (lap + 1) * 37]) == list(range(37))


@pytest.mark.parametrize("start", [1, 9, 10, 29])
def test_a_later_start_gives_the_same_tail(start: int) -> None:
    assert steps(done=start, rank=1, world=2) == steps(rank=1, world=2)[start:]


def test_iterating_again_gives_the_same() -> None:
    batches = StepBatches(10, 4, 9, seed=0)
    assert list(batches) == list(batches)
    assert list(StepBatches(10, 4, 9, seed=1)) != list(batches)


def test_more_in_a_batch_than_there_are() -> None:
    assert [sorted(b) for b in StepBatches(2, 4, 3, seed=0)] == [[0, 0, 1, 1]] * 3


def test_the_loader_serves_rows() -> None:
    samples = some(10)
    batches = list(PersonData(samples, 4, 5, 7).train_dataloader())
    asked = list(StepBatches(10, 4, 5, 7))
    assert [b["source"].tolist() for b in batches] == asked
    for batch, index in zip(batches, asked, strict=True):
        assert torch.equal(batch["crop"], samples.tensors["crop"][index])


# Samples


def some(n: int, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    tensors = {
        "crop": torch.from_numpy(rng.integers(0, 256, (n, 3, 112, 112), dtype=np.uint8)),
        "landmarks": torch.from_numpy(rng.normal(size=(n, 478, 3)).astype(np.float32)),
        "has_landmarks": torch.ones(n, dtype=torch.bool),
        "target": torch.from_numpy(rng.uniform(0, 5, (n, K)).astype(np.float32)),
        "mask": torch.from_numpy(rng.random((n, K)) < 0.5),
        "weight": torch.ones(n),
        "source": torch.arange(n),
    }
    return Samples(tensors, {"lost": {"AU06 up to 3": seed + 1}})


def test_samples_survive_the_file(tmp_path: Path) -> None:
    samples = some(5)
    samples.save(tmp_path / "s.safetensors")
    again = Samples.load(tmp_path / "s.safetensors")
    assert len(again) == 5 and again.rejected == {"lost": {"AU06 up to 3": 1}}
    assert again.tensors.keys() == samples.tensors.keys()
    for name, value in samples.tensors.items():
        assert again.tensors[name].dtype == value.dtype and torch.equal(again.tensors[name], value)
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


def test_joined_samples() -> None:
    both = join([some(3), some(2, 1)])
    assert len(both) == 5 and both.rejected == {"lost": {"AU06 up to 3": 3}}
    assert torch.equal(both.tensors["crop"][3:], some(2, 1).tensors["crop"])


def observation(frame: int, yaw: float = 0.0) -> Observation:
    points = np.full((478, 3), frame, np.float32)
    return Observation(
        frame=frame,
        timestamp=frame / 10,
        face_id=0,
        crop=np.full((112, 112, 3), frame, np.uint8),
        landmarks=points,
        pose=np.array([0, yaw, 0], np.float32),
        to_frame=np.eye(2, 3, dtype=np.float32),
        image_landmarks=points,
        box=np.zeros(4, np.float32),
        confidence=1.0,
        quality=1.0,
    )


def test_frames_with_labels() -> None:
    truth = Truth(np.full((2, K), 2.0, np.float32), np.zeros((2, K), bool), np.arange(K) == 5)
    truth.known[1, 4:6] = True
    truth.target[0, 5] = 0
    t = frame_samples([observation(7), observation(9)], truth, 0.5, [70, 90]).tensors
    assert t["target"].sum() == 4.0 and t["target"][1, 4:6].tolist() == [2.0, 2.0]
    assert torch.nonzero(t["occurrence"]).tolist() == [[1, 5]] and t["occurrence"][1, 5] == 2
    assert t["mask"].tolist() == truth.known.tolist() and t["weight"].tolist() == [0.5, 0.5] and t["source"].tolist() == [70, 90]
    assert t["crop"][:, 0, 0, 0].tolist() == [7, 9] and bool(t["has_landmarks"].all())


def test_the_rehearsal_set_that_ships() -> None:
    batch = base_domain()
    n = len(batch["crop"])
    assert n >= 200
    shapes = {k: (v.dtype, tuple(v.shape[1:])) for k, v in batch.items()}
    assert shapes == {
        "crop": (torch.uint8, (3, 112, 112)),
        "landmarks": (torch.float32, (478, 3)),
        "has_landmarks": (torch.bool, ()),
        "target": (torch.float32, (K,)),
        "mask": (torch.bool, (K,)),
        "weight": (torch.float32, ()),
        "neutral_crop": (torch.uint8, (3, 112, 112)),
        "neutral_landmarks": (torch.float32, (478, 3)),
        "has_neutral": (torch.bool, ()),
    }
    assert all(len(v) == n for v in batch.values())
    assert float(batch["target"].min()) >= 0 and float(batch["target"].max()) <= 5
    assert bool(((batch["target"] >= 1).sum(0) >= 5).all()), "every AU occurs"
    # The neutral is of the same person: mostly nearer to the mean of their pictures, over which expressions level out, than another's.
    first, own = torch.unique(batch["neutral_landmarks"].flatten(1), dim=0, return_inverse=True)
    rest = first.view(-1, 478, 3)
    mean = torch.stack([batch["landmarks"][own == i].mean(0) for i in range(len(rest))])
    apart = (mean[:, None] - rest).norm(dim=-1).mean(-1)
    stranger = ~torch.eye(len(rest), dtype=torch.bool)
    assert float((apart.diagonal()[:, None] < apart)[stranger].float().mean()) > 0.65
    assert apart.diagonal().mean() < 0.85 * apart[stranger].mean()


def test_a_rehearsal_set_is_written_and_read(tmp_path: Path) -> None:
    """It lies beside the base that ``base fit`` wrote; without it, the shipped base's is rehearsed."""
    people = np.repeat([4, 8, 9], 5)
    neutral = np.tile([True, False, False, False, False], 3)
    neutral[10] = False  # person 9 has no neutral: left out
    renders = {
        "person": people,
        "neutral": neutral,
        "crop": np.broadcast_to(np.arange(15, dtype=np.uint8)[:, None, None, None] * 10, (15, 112, 112, 3)),
        "landmarks": np.broadcast_to(np.arange(15, dtype=np.float16)[:, None, None], (15, 478, 3)),
        "target": np.broadcast_to(np.arange(15, dtype=np.float16)[:, None] / 3, (15, K)),
    }
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.safetensors").touch()
    shipped = base_domain(str(tmp_path / "mine"))
    assert torch.equal(shipped["crop"], base_domain()["crop"])
    write_base_domain(renders, tmp_path / "mine" / "replay.npz", each=3)
    batch = base_domain(str(tmp_path / "mine"))
    assert batch["landmarks"][:, 0, 0].tolist() == [1, 2, 3, 6, 7, 8]
    assert batch["neutral_landmarks"][:, 0, 0].tolist() == [0, 0, 0, 5, 5, 5]
    assert batch["crop"][:, 0, 50, 50].tolist() == pytest.approx([10, 20, 30, 60, 70, 80], abs=2)
    assert batch["neutral_crop"][:, 0, 50, 50].tolist() == pytest.approx([0, 0, 0, 50, 50, 50], abs=2)


# Through the tracker


class ByColour(Tracker):
    """Finds a canonical face, turned by the red of the picture's corner in degrees; nothing in a black picture."""

    def detect(self, frame: np.ndarray, timestamp: float, still: bool) -> list[Face]:
        assert still
        if not frame.any():
            return []
        turn = np.radians(float(frame[0, 0, 0]))
        rotation = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
        points = (geometry.canonical() @ rotation.T * 60 + [80, 80, 0]).astype(np.float32)
        return [Face(points, np.array([40, 40, 120, 120], np.float32), 1.0)]


class Scripted(Generator):
    """Answers AU6 with nothing, AU12 with no face, AU4 with a face turned 45 degrees, others well."""

    def prepare(self, identity: Identity, seed: int) -> None:
        pass

    def generate(self, requests: list[Request]) -> list[Sample | None]:
        return [self._one(r) for r in requests]

    def _one(self, request: Request) -> Sample | None:
        if 6 in request.aus:
            return None
        image = np.full((160, 160, 3), 90, np.uint8)
        image[0, 0] = 45 if 4 in request.aus else 1
        target = np.full(K, 4.5, np.float32)
        known = np.zeros(K, bool)
        for a, v in request.aus.items():
            target[AUS.index(a)], known[AUS.index(a)] = v, True
        return Sample(image * (12 not in request.aus), target, known, request, source=1)


def test_what_the_tracker_cannot_find_is_dropped_and_counted() -> None:
    identity = Identity("her", [observation(0), observation(1)], np.zeros((2, K)), None, (160, 160))
    asked = [{1: 2.0}, {6: 1.0}, {12: 3.0}, {12: 1.0}, {4: 3.0}, {6: 2.0, 12: 1.0}, {9: 3.5, 17: 1.5}, {}]
    samples, pictures = generate(Scripted(), [Request(a) for a in asked], identity, ByColour(), "Testing")
    assert samples is not None and len(samples) == 3
    lost = {"AU12 up to 3": 1, "AU12 up to 1": 1, "AU04 up to 3": 1}
    assert samples.rejected == {"refused": {"AU06 up to 1": 1, "AU06+AU12 up to 2": 1}, "lost": lost}
    t: dict[str, Tensor] = samples.tensors
    expected = torch.zeros(3, K)
    expected[0, AUS.index(1)], expected[1, AUS.index(9)], expected[1, AUS.index(17)] = 2.0, 3.5, 1.5
    assert torch.equal(t["target"], expected), "nothing is claimed where nothing is known"
    assert torch.equal(t["mask"], expected > 0) and t["source"].tolist() == [1, 1, 1]
    assert t["crop"].shape == (3, 3, 112, 112) and bool((t["crop"][:, :, 56, 56] == 90).all())
    # The points come back without the turn of one degree.
    np.testing.assert_allclose(t["landmarks"][0].numpy(), geometry.canonical(), atol=2e-3)
    assert [caption for _, caption in pictures] == ["AU09 3.5 AU17 1.5"]


def test_a_request_for_a_pose_is_held_to_it() -> None:
    identity = Identity("her", [observation(0), observation(1, yaw=0.7)], np.zeros((2, K)), None, (160, 160))
    turned = float(geometry.fit_pose(ByColour().detect(np.full((160, 160, 3), 45, np.uint8), 0, True)[0].landmarks, "mesh478").angles[1])
    requests = [Request({1: 2.0}, pose=p) for p in ((0.0, 0.0, 0.0), (0.0, turned, 0.0))]
    samples, _ = generate(Scripted(), requests, identity, ByColour(), "Testing")
    assert samples is not None and len(samples) == 1 and samples.rejected == {"refused": {}, "lost": {"AU01 up to 2, pitch +0 yaw +45": 1}}


@pytest.mark.parametrize("roll", [0, 60, 90, 180])
def test_a_head_on_its_side_is_answered_too(roll: float) -> None:
    """Pictures are upright: a frame's tilt takes none of them away, nor does it let one through that is turned elsewhere."""

    def lying(yaw: float) -> Observation:
        up = geometry.rotation_matrix(*geometry.tilted(0.0, np.radians(yaw), np.radians(roll)))
        return dataclasses.replace(observation(0), pose=np.array(geometry.angles(up)))

    for yaw, kept in ((45.0, True), (5.0, False)):
        identity = Identity("her", [lying(yaw)] * 2, np.zeros((2, K)), None, (160, 160))
        samples, _ = generate(Scripted(), [Request({4: 2.0})], identity, ByColour(), "Testing")  # a face turned by 45 degrees
        assert (samples is not None) == kept


def test_a_mesh_without_extent_is_no_face(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ByColour.detect
    monkeypatch.setattr(ByColour, "detect", lambda *a: [dataclasses.replace(f, landmarks=0 * f.landmarks) for f in found(*a)])
    identity = Identity("her", [observation(0), observation(1)], np.zeros((2, K)), None, (160, 160))
    samples, _ = generate(Scripted(), [Request({1: 2.0})], identity, ByColour(), "Testing")
    assert samples is None


def test_nothing_usable() -> None:
    identity = Identity("her", [observation(0), observation(1)], np.zeros((2, K)), None, (160, 160))
    samples, pictures = generate(Scripted(), [Request({6: 1.0}), Request({12: 1.0})], identity, ByColour(), "Testing")
    assert samples is None and pictures == []
