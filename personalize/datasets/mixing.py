"""Several data sets as one: who trains, who is tested, arrays in memory, batches over sources and ranks, and a loss for mixed labels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .. import ui
from ..aus import AUS
from ..errors import ConfigError, InputError
from ..faces import Tracker
from . import SYNTHETIC, AUDataset, Source, make_dataset
from .tracked import SHAPES, cache_folder, track_dataset

NO_NEUTRAL = "nobody in the training data has a neutral frame: bring recordings with a calm face, or add --data synthetic."

_PLAIN = ("crop", "landmarks", "pose", "neutral")


class AUDataModule(L.LightningDataModule):
    """Training, validation and test people of several sources, tracked into ``cache``.

    fold: its official test people are held out of training in every source (a person of two data sets in both); None: nobody is. A
    source with one official split uses that one whatever the fold. Thresholds and model are chosen on other people, a share
    ``validation`` of those that are left. per_person: at most so many training frames of each, half of them with something on.
    steps: batches an epoch and rank (default: each frame once). tracker: None makes MediaPipe's where something is not tracked yet.
    """

    def __init__(
        self,
        sources: Sequence[Source | tuple[str, Path | None]],
        cache: Path,
        fold: int | None = None,
        people: int = 8,
        each: int = 7,
        seed: int = 0,
        per_person: int = 400,
        validation: float = 0.15,
        steps: int | None = None,
        tracker: Tracker | None = None,
    ) -> None:
        super().__init__()
        self.sources = [Source(*s) for s in sources]
        if not self.sources:
            raise ConfigError("no data: give --data NAME=PATH or --data synthetic.")
        self.cache, self.fold, self.people, self.each, self.seed = Path(cache), fold, people, each, seed
        self.per_person, self.steps, self.tracker = per_person, steps, tracker
        self.datasets: list[AUDataset | None] = [
            None if s.name == SYNTHETIC else make_dataset(s.name, s.path or ".", **s.options) for s in self.sources
        ]
        if {"fera2017", "bp4d+"} <= {d.name for d in self._real()}:
            ui.warn(
                "fera2017's validation people may be some of bp4d+'s, under other numbers: the same person may be learned from and tested"
            )
        self.held_out = {p for d in self._real() for p in fold_people(d, fold)} if fold is not None else set()
        self.validation_people = self._choose(validation)
        self._train: dict[str, np.ndarray] | None = None

    def _real(self) -> list[AUDataset]:
        return [d for d in self.datasets if d is not None]

    def _choose(self, share: float) -> set[str]:
        chosen: set[str] = set()
        for d in self._real():
            left = sorted({d.person(s) for s in d.subjects} - self.held_out)
            if not left:
                raise InputError(f"{d.name}: every person in {d.path} is held out by fold {self.fold}; nobody is left to learn from.")
            n = round(share * len(left)) or int(share > 0 and len(left) > 2)
            rest = [p for p in left if p not in chosen]
            chosen |= set(np.random.default_rng([self.seed, 8101]).permutation(rest)[: max(n - (len(left) - len(rest)), 0)].tolist())
        return chosen

    def split(self, dataset: AUDataset) -> dict[str, list[str]]:
        """'train', 'validation', 'test' -> its subjects."""
        parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
        for s in dataset.subjects:
            who = dataset.person(s)
            parts["test" if who in self.held_out else "validation" if who in self.validation_people else "train"].append(s)
        return parts

    def prepare_data(self) -> None:
        """Track what is not tracked yet; the test people too, so that everything of the tracker is said at once."""
        for d in self._real():
            track_dataset(d, self.cache, self.tracker)

    def train_arrays(self) -> dict[str, np.ndarray]:
        """Training frames of all sources, N rows.

        crop (N, 112, 112, 3) uint8; landmarks (N, 478, 3) float16; pose (N, 3); target (N, K) float16, 0 where unknown; mask (N, K) bool;
        occurrence (N, K) int8, see :func:`personalize.model.ordinal_loss`; person (N,) int32, of no two sources alike; neutral (N,) bool:
        all that is coded is 0 and the landmarks are among the half of such frames nearest to their median (labels say nothing of an
        open mouth where AU25 is not coded); source (N,) int32, the place in ``sources``.
        """
        return self._arrays("train")

    def validation_arrays(self) -> dict[str, np.ndarray]:
        """The same of people who neither train nor are tested."""
        return self._arrays("validation")

    def _arrays(self, part: str) -> dict[str, np.ndarray]:
        parts = []
        for i, (source, d) in enumerate(zip(self.sources, self.datasets, strict=True)):
            if d is None:
                data = _synthetic(source.path or self.cache / SYNTHETIC, part)
            else:
                subjects = self.split(d)[part]
                if not subjects:
                    continue
                data = read_shards(track_dataset(d, self.cache, self.tracker, subjects).paths.values(), self.per_person)
                without = len(np.unique(data["person"])) - len(np.unique(data["person"][data["neutral"]]))
                if without:
                    ui.warn(
                        f"{d.name}: {without} of {len(subjects)} people have no frame with every AU at 0, and so no neutral to learn with"
                    )
            ui.info(f"{source.name}: {len(data['crop'])} {part} frames of {len(np.unique(data['person']))} people")
            data["source"] = np.full(len(data["crop"]), i, np.int32)
            parts.append(data)
        if not parts or not sum(len(p["crop"]) for p in parts):
            raise InputError(f"no frames of {part} people: bring more people, or add --data synthetic.")
        first = 0
        for data in parts:
            people, own = np.unique(data["person"], return_inverse=True)
            data["person"] = (own + first).astype(np.int32)
            first += len(people)
        return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

    def card(self) -> dict[str, Any]:
        """For the model card: the sources, the fold, who trained and validated ('people', as :meth:`AUDataset.person` names them), and who
        of them trained ('trained')."""
        names = [s.name + (f" ({', '.join(f'{k}={v}' for k, v in s.options.items())})" if s.options else "") for s in self.sources]
        trained, chose = ({d.person(s) for d in self._real() for s in self.split(d)[p]} for p in ("train", "validation"))
        return {"sources": names, "fold": self.fold, "people": sorted(trained | chose), "trained": sorted(trained)}

    def validation_among(self, people: Collection[str]) -> list[str]:
        """Those of the validation people whom a card names."""
        return sorted({d.person(s) for d in self._real() for s in self.split(d)["validation"] if d.is_among(s, people)})

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Batches of :class:`MixedBatches`, this rank's."""
        if self._train is None:
            self._train = self.train_arrays()
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        batches = MixedBatches(self._train, self.people, self.each, self.seed, self.steps, rank, world)
        return DataLoader(MixedRows(self._train), batch_sampler=batches, collate_fn=_as_is)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Validation frames in order."""
        rows = MixedRows(self.validation_arrays())
        return DataLoader(rows, batch_size=self.people * (self.each + 1), collate_fn=_as_is)


def fold_people(dataset: AUDataset, fold: int | None) -> set[str]:
    """Persons of a fold's test part; None: of all folds. Raises ConfigError where there is no such fold."""
    folds = dataset.folds()
    if fold is None:
        return {dataset.person(s) for part in folds.values() for s in part}
    if len(folds) == 1:
        fold = next(iter(folds))
    if fold not in folds:
        raise ConfigError(f"{dataset.name} has the folds {min(folds)} to {max(folds)}, not {fold}.")
    return {dataset.person(s) for s in folds[fold]}


def _synthetic(folder: Path, part: str) -> dict[str, np.ndarray]:
    from ..synth import dataset

    try:
        data = dataset.load(folder, part)
    except FileNotFoundError:
        raise InputError(f"no synthetic shards '{part}-*.npz' in {folder}. Give their folder: --data synthetic=DIR") from None
    n = len(data["crop"])
    mask = np.isfinite(data["target"])
    return {
        **{k: data[k] for k in (*_PLAIN, "person")},
        "target": np.where(mask, data["target"], 0).astype(np.float16),
        "mask": mask,
        "occurrence": np.zeros((n, len(AUS)), np.int8),
    }


def read_shards(paths: Iterable[Path], per_person: int | None = None, one_neutral: bool = False) -> dict[str, np.ndarray]:
    """Shards of tracked sequences joined, rows thinned to ``per_person``; see :meth:`AUDataModule.train_arrays` for the fields.

    'person' counts the shards' subjects. Also 'frame' and 'shard' (the place of each row's shard in ``paths``). one_neutral: of each
    person only the most typical neutral frame is marked.
    """
    paths = list(paths)
    light: list[dict[str, np.ndarray]] = []
    people: dict[str, int] = {}
    for i, path in enumerate(paths):  # labels first: pictures only of the rows that are kept
        with np.load(path, allow_pickle=False) as file:
            part = {k: file[k] for k in ("target", "neutral", "frame", "occurrence")}
            person = people.setdefault(str(file["subject"]), len(people))
        n = len(part["frame"])
        light.append({**part, "person": np.full(n, person, np.int32), "shard": np.full(n, i, np.int32), "row": np.arange(n)})
    rows = {k: np.concatenate([p[k] for p in light]) for k in light[0]}
    mask = np.isfinite(rows["target"])
    rows["mask"], rows["target"] = mask, np.where(mask, rows["target"], 0).astype(np.float16)
    keep = np.flatnonzero(mask.any(1))
    if per_person is not None:
        active: np.ndarray = np.any(rows["target"] > 0, axis=1)
        chosen = [thin(keep[rows["person"][keep] == p], active, per_person) for p in np.unique(rows["person"][keep])]
        keep = np.sort(np.concatenate(chosen)) if chosen else keep
    rows = {k: v[keep] for k, v in rows.items()}
    heavy: dict[str, np.ndarray] = {k: np.empty((len(keep), *SHAPES[k][1]), SHAPES[k][0]) for k in ("crop", "landmarks", "pose")}
    for i in np.unique(rows["shard"]):
        at = rows["shard"] == i
        with np.load(paths[i], allow_pickle=False) as file:
            for k in heavy:
                heavy[k][at] = file[k][rows["row"][at]]
    del rows["row"]
    out = {**heavy, **rows}
    out["neutral"] = typical(out["landmarks"], out["neutral"], out["person"], one_neutral)
    if not one_neutral:
        del out["frame"], out["shard"]
    return out


def thin(rows: np.ndarray, active: np.ndarray, n: int) -> np.ndarray:
    """At most n of one person's rows, evenly over time, half of them active where there are as many. active: of all rows, bool."""
    on, off = rows[active[rows]], rows[~active[rows]]
    take = min(len(on), max(n // 2, n - len(off)))

    def spread(of: np.ndarray, k: int) -> np.ndarray:
        return of[np.linspace(0, len(of) - 1, k).round().astype(int)] if len(of) > k else of

    return np.sort(np.concatenate([spread(on, take), spread(off, n - take)]))


def typical(landmarks: np.ndarray, neutral: np.ndarray, person: np.ndarray, only_one: bool = False) -> np.ndarray:
    """Of each person's frames labelled neutral, the half (or the one) nearest to the median of their landmarks: (N,) bool."""
    out = np.zeros(len(neutral), bool)
    for p in np.unique(person[neutral]):
        rows = np.flatnonzero(neutral & (person == p))
        shape = landmarks[rows].astype(np.float32)
        away = np.abs(shape - np.median(shape, 0)).mean((1, 2))
        out[rows[[int(away.argmin())]] if only_one else rows[away <= np.median(away)]] = True
    return out


class MixedRows(Dataset[dict[str, Tensor]]):
    """Arrays of :meth:`AUDataModule.train_arrays` as batches of tensors: crop (B, 3, 112, 112) uint8, unless without, and the rest."""

    def __init__(self, data: dict[str, np.ndarray], pictures: bool = True) -> None:
        self.data, self.pictures = data, pictures

    def __len__(self) -> int:
        return len(self.data["crop"])

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        d = self.data
        return {
            **({"crop": torch.from_numpy(d["crop"][rows]).permute(0, 3, 1, 2).contiguous()} if self.pictures else {}),
            "landmarks": torch.from_numpy(d["landmarks"][rows].astype(np.float32)),
            "target": torch.from_numpy(d["target"][rows].astype(np.float32)),
            **{k: torch.from_numpy(d[k][rows]) for k in ("pose", "mask", "occurrence", "person")},
            "index": torch.tensor(rows),
        }


def _as_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch


class _Deck:
    """Deals items in shuffled passes: nothing twice before everything once."""

    def __init__(self, items: np.ndarray, rng: np.random.Generator) -> None:
        self.items, self.rng, self.left = items, rng, []  # type: np.ndarray, np.random.Generator, list[int]

    def draw(self) -> int:
        if not self.left:
            self.left = self.rng.permutation(self.items).tolist()
        return self.left.pop()


class MixedBatches(Sampler[list[int]]):
    """Batches of ``people`` x (1 reference + ``each``), first all references (a neutral picture of each person), then their pictures.

    A batch's references are read once for all pictures of their person. A user's neutral is never quite neutral: one in six is a calm
    picture instead (intensities that sum to less than 4), where there is one. Sources take turns, so that a small one counts as much as a
    large one; people of a source, and frames of a person, are dealt in shuffled passes. Every rank deals the same cards and keeps its own
    hand: no picture goes to two ranks before all have gone to one.
    People without a neutral or with a single frame are left out.
    """

    def __init__(
        self,
        data: dict[str, np.ndarray],
        people: int,
        each: int,
        seed: int,
        steps: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.people, self.each, self.seed, self.rank, self.world, self.epoch = people, each, seed, rank, world, 0
        person, neutral = data["person"], data["neutral"]
        order = np.argsort(person, kind="stable")
        cuts = np.flatnonzero(np.diff(person[order])) + 1
        self.members = {int(person[rows[0]]): rows for rows in np.split(order, cuts)}
        self.neutrals = {p: rows[neutral[rows]] for p, rows in self.members.items()}
        still = (data["mask"] & (data["occurrence"] == 0)).any(1) & (np.where(data["mask"], data["target"], 0).sum(1, dtype=np.float32) < 4)
        self.calm = {p: rows[still[rows]] for p, rows in self.members.items()}
        self.sources: dict[int, list[int]] = {}
        for p, rows in self.members.items():
            if len(rows) > 1 and len(self.neutrals[p]):
                self.sources.setdefault(int(data["source"][rows[0]]), []).append(p)
        if not self.sources:
            raise InputError(NO_NEUTRAL)
        self.steps = steps or max(1, len(person) // (people * each * world))
        self.sampler = self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        """Another epoch, another order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        turns = sorted(self.sources)
        queue = {s: _Deck(np.array(self.sources[s]), rng) for s in turns}
        frames: dict[int, _Deck] = {}
        turn = 0
        for _ in range(self.steps):
            for rank in range(self.world):
                references: list[int] = []
                pictures: list[int] = []
                for _ in range(self.people):
                    p = queue[turns[turn % len(turns)]].draw()
                    turn += 1
                    deck = frames.setdefault(p, _Deck(self.members[p], rng))
                    pool = self.calm[p] if len(self.calm[p]) and rng.random() < 0.16 else self.neutrals[p]
                    reference = int(rng.choice(pool))
                    references.append(reference)
                    for _ in range(self.each):
                        row = deck.draw()
                        while row == reference:
                            row = deck.draw()
                        pictures.append(row)
                if rank == self.rank:
                    yield references + pictures


__all__ = ["AUDataModule", "MixedBatches", "MixedRows", "cache_folder", "read_shards", "fold_people", "track_dataset"]
