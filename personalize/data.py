"""The samples of one person: generated requests and their answers, the clip's own frames, the replay set; and how they are served.

Samples are map-style and every batch is a pure function of (seed, round, step, rank): ranks see different samples, and a resumed fit sees
what an unbroken one would have seen.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from . import geometry, ui
from .aus import AUS
from .collect import Truth
from .faces import Observation, Tracker
from .generators import Generator, Request, ask
from .identity import Identity
from .reader import batch_of
from .tracks import face_of
from .weights import SHIPPED, weights_at

REFUSED, LOST = "refused", "lost"
"""Why a request has no sample: the generator does not answer it, or the tracker does not find what it asked for in the answer."""
Rejected = dict[str, dict[str, int]]


@dataclass
class Samples:
    """Labelled samples of one person as tensors, N each.

    crop, landmarks, has_landmarks, target, mask, weight as in every batch; occurrence: (N, K) int8, see
    :func:`personalize.model.ordinal_loss`; source: index of the clip's frame that a sample was made from. rejected: what was asked for and
    is not here, by reason and by :attr:`Request.cell`.
    """

    tensors: dict[str, Tensor]
    rejected: Rejected = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tensors["crop"])

    def rows(self, index: np.ndarray | Tensor) -> dict[str, Tensor]:
        """Some of them, as a batch."""
        index = torch.as_tensor(index)
        return {k: v[index] for k, v in self.tensors.items()}

    def save(self, path: Path) -> None:
        """Write whole or not at all."""
        temporary = path.with_suffix(".tmp")
        save_file({k: v.contiguous() for k, v in self.tensors.items()}, temporary, metadata={"rejected": json.dumps(self.rejected)})
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Samples:
        """Read what :meth:`save` wrote."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            rejected = json.loads((file.metadata() or {}).get("rejected", "{}"))
        return cls(load_file(path), rejected)


def join(parts: Sequence[Samples]) -> Samples:
    """Several sets of samples as one."""
    filled = [p for p in parts if len(p)]
    rejected: Rejected = {}
    for p in parts:
        for reason, cells in p.rejected.items():
            rejected[reason] = Counter(rejected.get(reason, {})) + Counter(cells)
    return Samples({k: torch.cat([p.tensors[k] for p in filled]) for k in filled[0].tensors}, rejected)


def frame_samples(observations: Sequence[Observation], truth: Truth, weight: float, source: Sequence[int]) -> Samples:
    """The clip's own frames with labels."""
    tensors = batch_of(observations)
    tensors["target"] = torch.from_numpy(np.where(truth.known, truth.target, 0).astype(np.float32))
    tensors["mask"] = torch.from_numpy(truth.known.astype(bool))
    tensors["occurrence"] = torch.from_numpy(truth.at_least)
    tensors["weight"] = torch.full((len(observations),), weight)
    tensors["source"] = torch.tensor(list(source), dtype=torch.int64)
    return Samples(tensors)


def generate(
    generator: Generator, requests: list[Request], identity: Identity, tracker: Tracker, title: str
) -> tuple[Samples | None, list[tuple[np.ndarray, str]]]:
    """Answers of a generator, through the tracker that reads users' clips: what it cannot find, or finds turned elsewhere, is dropped.

    Returns the samples (None where there are none) and up to 24 pictures with captions for the report. Rejections are counted by reason
    and cell.
    """
    rows: dict[str, list[Any]] = {k: [] for k in ("crop", "landmarks", "target", "mask", "source")}
    rejected: Rejected = {REFUSED: Counter(), LOST: Counter()}
    pictures: list[tuple[np.ndarray, str]] = []
    chunk = 32
    with ui.progress(None, len(requests), title) as bar:
        for start in range(0, len(requests), chunk):
            part = requests[start : start + chunk]
            for request, sample in zip(part, ask(generator, part), strict=True):
                if sample is None:
                    rejected[REFUSED][request.cell] += 1
                    continue
                found = face_of(sample.image, tracker)
                asked = identity.observations[sample.source].upright if request.pose is None else np.asarray(request.pose)
                if found is None or np.abs(geometry.upright(found[1].angles) - asked)[:2].max() > 0.35:
                    rejected[LOST][request.cell] += 1
                    continue
                face, pose = found
                crop, _ = geometry.crop(sample.image, pose, tracker.scheme)
                rows["crop"].append(crop)
                rows["landmarks"].append(geometry.as_mesh(face.landmarks, pose, tracker.scheme))
                rows["target"].append(np.where(sample.known, sample.target, 0))
                rows["mask"].append(sample.known)
                rows["source"].append(sample.source)
                if len(pictures) < 24 and request.aus and start // chunk % 2 == 0 and max(request.aus.values()) > 2.5:
                    pictures.append((sample.image, " ".join(f"AU{a:02d} {v:.1f}" for a, v in sorted(request.aus.items()))))
            bar.advance(len(part))
    if not rows["crop"]:
        return None, pictures
    n = len(rows["crop"])
    tensors = {
        "crop": torch.from_numpy(np.stack(rows["crop"])).permute(0, 3, 1, 2).contiguous(),
        "landmarks": torch.from_numpy(np.stack(rows["landmarks"]).astype(np.float32)),
        "has_landmarks": torch.ones(n, dtype=torch.bool),
        "target": torch.from_numpy(np.stack(rows["target"]).astype(np.float32)),
        "mask": torch.from_numpy(np.stack(rows["mask"]).astype(bool)),
        "occurrence": torch.zeros(n, len(AUS), dtype=torch.int8),
        "weight": torch.ones(n),
        "source": torch.tensor(rows["source"], dtype=torch.int64),
    }
    return Samples(tensors, rejected), pictures


def base_domain(base: str = SHIPPED) -> dict[str, Tensor]:
    """A base's rehearsal set as a batch: tracked renders of training people, each with its person's neutral.

    It lies beside the weights, where ``base fit`` wrote it; a base without one, as of recorded people, has that of the shipped one.
    """
    beside = None if base in (SHIPPED, "base") else weights_at(base).with_name("replay.npz")
    found = beside if beside is not None and beside.is_file() else resources.files("personalize").joinpath("assets/replay.npz")
    with found.open("rb") as file:
        data = dict(np.load(file, allow_pickle=False))

    def pictures(key: str) -> Tensor:
        ends = np.cumsum(data[f"{key}_size"])
        blobs = [bytes(data[key][e - s : e]) for s, e in zip(data[f"{key}_size"], ends, strict=True)]
        return torch.from_numpy(np.stack([np.array(Image.open(io.BytesIO(b))) for b in blobs])).permute(0, 3, 1, 2).contiguous()

    crop, neutral, own = pictures("crop"), pictures("neutral_crop"), torch.from_numpy(data["own"].astype(np.int64))
    n = len(crop)
    return {
        "crop": crop,
        "landmarks": torch.from_numpy(data["landmarks"].astype(np.float32)),
        "has_landmarks": torch.ones(n, dtype=torch.bool),
        "target": torch.from_numpy(data["target"].astype(np.float32)),
        "mask": torch.ones(n, len(AUS), dtype=torch.bool),
        "weight": torch.ones(n),
        "neutral_crop": neutral[own],
        "neutral_landmarks": torch.from_numpy(data["neutral_landmarks"].astype(np.float32))[own],
        "has_neutral": torch.arange(n) % 2 == 0,
    }


def write_base_domain(renders: dict[str, np.ndarray], path: Path, people: int = 60, each: int = 7) -> None:
    """Pick a balanced rehearsal set from tracked renders and write it, crops as JPEG."""
    picked: list[tuple[int, int]] = []
    neutrals: list[int] = []
    for person in np.unique(renders["person"])[:people]:
        rows = np.flatnonzero(renders["person"] == person)
        rest = rows[renders["neutral"][rows]]
        if len(rest) == 0:
            continue
        active = rows[~renders["neutral"][rows]][:each]
        picked += [(int(i), len(neutrals)) for i in active]
        neutrals.append(int(rest[0]))

    def packed(index: list[int]) -> tuple[np.ndarray, np.ndarray]:
        blobs = []
        for i in index:
            buffer = io.BytesIO()
            Image.fromarray(renders["crop"][i]).save(buffer, "JPEG", quality=92)
            blobs.append(buffer.getvalue())
        return np.frombuffer(b"".join(blobs), np.uint8), np.array([len(b) for b in blobs])

    index = [i for i, _ in picked]
    crop, crop_size = packed(index)
    neutral_crop, neutral_size = packed(neutrals)
    np.savez_compressed(
        path,
        crop=crop,
        crop_size=crop_size,
        neutral_crop=neutral_crop,
        neutral_crop_size=neutral_size,
        own=np.array([o for _, o in picked]),
        landmarks=renders["landmarks"][index],
        target=renders["target"][index],
        neutral_landmarks=renders["landmarks"][neutrals],
    )


class StepBatches(Sampler[list[int]]):
    """Batches by step number: which samples a step and rank see depends on nothing else, so ranks differ and a resumed fit continues.

    Samples are walked through in shuffled passes; ``done`` says how many steps there were, after a kill or an epoch that a flag cut short.
    The length is that of an unbroken fit: Lightning counts the batches before as done.
    """

    def __init__(
        self, n: int, batch_size: int, steps: int, seed: int, rank: int = 0, world: int = 1, done: Callable[[], int] = lambda: 0
    ) -> None:
        self.n, self.batch_size, self.steps, self.seed, self.rank, self.world, self.done = n, batch_size, steps, seed, rank, world, done

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.done(), self.steps):
            first = (step * self.world + self.rank) * self.batch_size
            yield [self._at(first + i) for i in range(self.batch_size)]

    def _at(self, position: int) -> int:
        lap, place = divmod(position, self.n)
        if getattr(self, "_lap", None) != lap:
            self._lap = lap
            self._order = np.random.default_rng([self.seed, lap]).permutation(self.n)
        return int(self._order[place])


class _Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, index: list[int]) -> dict[str, Tensor]:
        return self.samples.rows(torch.tensor(index))


class PersonData(L.LightningDataModule):
    """Serves one round's samples of a person; see :class:`StepBatches`."""

    def __init__(self, samples: Samples, batch_size: int, steps: int, seed: int) -> None:
        super().__init__()
        self.samples, self.batch_size, self.steps, self.seed = samples, batch_size, steps, seed

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)

        def done() -> int:
            return trainer.global_step * trainer.accumulate_grad_batches if trainer is not None else 0

        batches = StepBatches(len(self.samples), self.batch_size, self.steps, self.seed, rank, world, done)
        return DataLoader(_Rows(self.samples), batch_sampler=batches, collate_fn=_as_is)


def _as_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch
