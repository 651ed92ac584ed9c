"""Training data from the synthetic world: renders that went through the same tracker as users' clips.

``python -m personalize.synth.dataset DIR --people 4000`` writes shards of tracked, aligned samples; the base model learns from them.
With ``--setting second`` they are filmed in a way that training never sees, to measure the step from one world to another.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..aus import COLUMNS
from ..errors import InputError
from ..tracks import tracked_sample
from .person import person_seed
from .scene import FACE_HEIGHT, SETTINGS, degrade, draw_shrink, known_setting, occlude
from .world import World

FIELDS = (
    "crop", "landmarks", "pose", "target", "person", "neutral", "face_px", "tone", "sex", "age", "hard", "below", "occluded",
)  # fmt: skip
"""face_px: height of the face in pixels as filmed. tone: 0-9 on the Monk scale. sex: 0 male, 1 female. age: years. hard: how dark the key
light's shadows are, 0-0.97. below: whether the key light shines from below. occluded: whether something is in front of the face."""


def make_shard(path: Path, split: str, first: int, people: int, each: int, size: int, setting: str = "first") -> int:
    """Render and track ``each`` pictures (two of them neutral) of ``people`` people; returns how many the tracker found."""
    from personalize_plugins.trackers.mediapipe import MediaPipeTracker

    torch.set_num_threads(1)
    world, tracker = World(size=size, setting=setting), MediaPipeTracker(num_faces=1)
    rows: dict[str, list[np.ndarray]] = {f: [] for f in FIELDS}
    for index in range(first, first + people):
        person = world.person(split, index)
        shot = world.stills(person, each, seed=1, neutral=2)
        rng = np.random.default_rng([person_seed(split, index), 7004])
        centre = shot.project(np.tile(np.array([[0, 30.0, -10]]), (each, 1, 1)))[:, 0]
        heights = FACE_HEIGHT * shot.focal / shot.translation[:, 2]
        about = (np.float32(person.tone), np.int8(person.sex), np.float32(person.age))
        for i, image in enumerate(shot.images):
            image = image.copy()
            occluded = rng.random() < 0.15
            if occluded:
                occlude(image, rng, (centre[i, 0], centre[i, 1]), 75 * shot.focal[i] / centre[i, 2])
            shrink = draw_shrink(rng, heights[i])
            found = tracked_sample(degrade(image, rng, shrink=shrink), tracker)
            if found is None:
                continue
            scene = shot.scenes[i]
            light = (np.float32(scene.shadow), np.bool_(scene.from_below))
            truth = (shot.target[i], np.int32(index), np.bool_(i < 2), np.float32(heights[i] * shrink))
            for field, value in zip(FIELDS, (*found, *truth, *about, *light, np.bool_(occluded)), strict=True):
                rows[field].append(np.asarray(value, np.float16 if field in ("landmarks", "target") else None))
    temporary = path.with_suffix(".tmp.npz")
    if not rows["crop"]:
        raise InputError(
            f"no face was found in any picture of people {first} to {first + people - 1}: render them larger than {size} pixels."
        )
    arrays: dict[str, Any] = {f: np.stack(v) for f, v in rows.items()}
    np.savez(temporary, **arrays, made=np.array([people, each, size]))
    temporary.rename(path)
    tracker.close()
    return len(rows["crop"])


def _work(job: tuple[Any, ...]) -> int:
    return 0 if holds(job[0], *job[3:6]) else make_shard(*job)


def holds(path: Path, people: int, each: int, size: int) -> bool:
    """Whether a shard is there and holds what is asked for, not what a smaller trial left."""
    if not path.exists():
        return False
    with np.load(path, allow_pickle=False) as data:
        return "made" not in data.files or data["made"].tolist() == [people, each, size]


def _name(split: str, setting: str) -> str:
    """How the shards of a split begin."""
    return split if known_setting(setting) == "first" else f"{split}-{setting}"


def make(
    folder: Path,
    split: str,
    people: int,
    each: int = 8,
    size: int = 160,
    workers: int = 2,
    per_shard: int = 40,
    first: int = 0,
    setting: str = "first",
) -> None:
    """Write shards for ``people`` people of a split; shards that are there and hold as much are kept, so a run can be continued."""
    from ..ui import progress

    name = _name(split, setting)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (folder / f"{name}-{start:06d}.npz", split, start, min(per_shard, first + people - start), each, size, setting)
        for start in range(first, first + people, per_shard)
    ]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in progress(pool.imap_unordered(_work, jobs), len(jobs), f"Rendering {people} people"):
            pass


def load(folder: Path, split: str, limit: int | None = None, setting: str = "first") -> dict[str, np.ndarray]:
    """All shards of a split in a setting, joined.

    crop (N, 112, 112, 3) uint8; landmarks, target float16; pose, face_px, tone, age, hard float32; person int32; sex int8; the rest bool.
    """
    paths = sorted(folder.glob(f"{_name(split, setting)}-{'[0-9]' * 6}.npz"))[:limit]
    if not paths:
        where = "" if setting == "first" else f" in the {setting} setting"
        raise FileNotFoundError(f"no shards of split '{split}'{where} in {folder}")
    parts = []
    for path in paths:
        with np.load(path, allow_pickle=False) as data:
            parts.append({f: data[f] for f in FIELDS})
    return {f: np.concatenate([p[f] for p in parts]) for f in FIELDS}


def describe(target: np.ndarray) -> str:
    """Prevalence (intensity at least 1) of each AU and the largest correlations between AUs, as text.

    target: (N, K), NaN where unknown; such rows count neither for the AU nor for its pairs. An AU that is nowhere known reads nan.
    """
    known, values = ~np.isnan(target), target.astype(np.float64)
    r = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        present = (target >= 1).sum(0) / known.sum(0)
        for i, j in itertools.combinations(range(len(COLUMNS)), 2):
            both = known[:, i] & known[:, j]
            if both.sum() > 1:
                r[f"{COLUMNS[i]}-{COLUMNS[j]}"] = np.corrcoef(values[both, i], values[both, j])[0, 1]
    shown = [f"{c} {p:.2f}" for c, p in zip(COLUMNS, present, strict=True)]
    worst = sorted((pair for pair in r if not np.isnan(r[pair])), key=lambda pair: -abs(r[pair]))[:5]
    return "prevalence: " + ", ".join(shown) + "\nlargest correlations: " + ", ".join(f"{pair} {r[pair]:+.2f}" for pair in worst)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--people", type=int, default=4000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--each", type=int, default=8)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--setting", default="first", choices=SETTINGS)
    a = parser.parse_args()
    make(a.folder, a.split, a.people, a.each, a.size, a.workers, first=a.first, setting=a.setting)
