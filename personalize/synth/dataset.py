"""Training data from the synthetic world: renders that went through the same tracker as users' clips.

``python -m personalize.synth.dataset DIR --people 4000`` writes shards of tracked, aligned samples; the base model learns from them.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import geometry
from ..aus import COLUMNS
from .person import person_seed
from .scene import degrade, occlude
from .world import World

FIELDS = ("crop", "landmarks", "pose", "target", "person", "neutral")


def tracked_sample(image: np.ndarray, tracker: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Crop (112, 112, 3), normalised landmarks (478, 3) and pose (3,) of the largest face in a picture, or None where none is found."""
    faces = tracker.detect(image, 0.0, True)
    if not faces:
        return None
    face = max(faces, key=lambda f: float(np.prod(f.box[2:] - f.box[:2])))
    pose = geometry.fit_pose(face.landmarks, tracker.scheme)
    crop, _ = geometry.crop(image, pose, tracker.scheme)
    return crop, geometry.normalise(face.landmarks, pose), np.array(pose.angles, np.float32)


def make_shard(path: Path, split: str, first: int, people: int, each: int, size: int) -> int:
    """Render and track ``each`` pictures (two of them neutral) of ``people`` people; returns how many the tracker found."""
    from personalize_plugins.trackers.mediapipe import MediaPipeTracker

    torch.set_num_threads(1)
    world, tracker = World(size=size), MediaPipeTracker(num_faces=1)
    rows: dict[str, list[np.ndarray]] = {f: [] for f in FIELDS}
    for index in range(first, first + people):
        person = world.person(split, index)
        shot = world.stills(person, each, seed=1, neutral=2)
        rng = np.random.default_rng([person_seed(split, index), 7004])
        centre = shot.project(np.tile(np.array([[0, 30.0, -10]]), (each, 1, 1)))[:, 0]
        for i, image in enumerate(shot.images):
            image = image.copy()
            if rng.random() < 0.15:
                occlude(image, rng, (centre[i, 0], centre[i, 1]), 75 * shot.focal[i] / centre[i, 2])
            image = degrade(image, rng)
            found = tracked_sample(image, tracker)
            if found is None:
                continue
            for field, value in zip(FIELDS, (*found, shot.target[i], np.int32(index), np.bool_(i < 2)), strict=True):
                rows[field].append(np.asarray(value, np.float16 if field in ("landmarks", "target") else None))
    temporary = path.with_suffix(".tmp.npz")
    arrays: dict[str, Any] = {f: np.stack(v) for f, v in rows.items()}
    np.savez(temporary, **arrays)
    temporary.rename(path)
    tracker.close()
    return len(rows["crop"])


def _work(job: tuple[Any, ...]) -> int:
    path = job[0]
    return 0 if path.exists() else make_shard(*job)


def make(
    folder: Path, split: str, people: int, each: int = 8, size: int = 160, workers: int = 2, per_shard: int = 40, first: int = 0
) -> None:
    """Write shards for ``people`` people of a split; shards that are there already are kept, so a run can be continued."""
    from ..ui import progress

    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (folder / f"{split}-{start:06d}.npz", split, start, min(per_shard, first + people - start), each, size)
        for start in range(first, first + people, per_shard)
    ]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in progress(pool.imap_unordered(_work, jobs), len(jobs), f"Rendering {people} people"):
            pass


def load(folder: Path, split: str, limit: int | None = None) -> dict[str, np.ndarray]:
    """All shards of a split, joined. crop (N, 112, 112, 3) uint8; landmarks, target float16; person int32; neutral bool; pose float32."""
    paths = sorted(folder.glob(f"{split}-*.npz"))[:limit]
    if not paths:
        raise FileNotFoundError(f"no shards of split '{split}' in {folder}")
    parts = []
    for path in paths:
        with np.load(path, allow_pickle=False) as data:
            parts.append({f: data[f] for f in FIELDS})
    return {f: np.concatenate([p[f] for p in parts]) for f in FIELDS}


def describe(target: np.ndarray) -> str:
    """Prevalence (intensity at least 1) of each AU and the largest correlations between AUs, as text."""
    shown = [f"{c} {p:.2f}" for c, p in zip(COLUMNS, (target >= 1).mean(0), strict=True)]
    r = np.corrcoef(target.astype(np.float32).T) - np.eye(target.shape[1])
    worst = np.argsort(-np.abs(np.triu(r)).ravel())[:5]
    pairs = [f"{COLUMNS[i // len(COLUMNS)]}-{COLUMNS[i % len(COLUMNS)]} {r.ravel()[i]:+.2f}" for i in worst]
    return "prevalence: " + ", ".join(shown) + "\nlargest correlations: " + ", ".join(pairs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--people", type=int, default=4000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--each", type=int, default=8)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    make(a.folder, a.split, a.people, a.each, a.size, a.workers, first=a.first)
