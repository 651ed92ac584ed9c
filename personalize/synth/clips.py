"""Clips of synthetic people as real video files, with their ground truth beside them: what the benchmark and the demo run on.

A clip goes through one camera: one sharpness, one noise strength, one colour for all its frames, as a real camera has, and then through the
H.264 encoder, so that codec effects are in. ``CLIP.mp4`` is the video, ``CLIP.npz`` the truth: row t of ``target`` belongs to frame t.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..config import digest
from ..errors import InputError
from ..video import VideoWriter


@dataclass(frozen=True)
class Clip:
    """Which clip.

    seed: the day (light, camera, background, what the face does). liveliness: expressions in three seconds; 0.6 is calm and mostly
    neutral, 1.5 animated. size: side in pixels, even.
    """

    split: str
    person: int
    seed: int
    seconds: float
    fps: float = 12.5
    liveliness: float = 1.0
    size: int = 192

    @property
    def key(self) -> str:
        """Hash of the clip and of the code that renders it: another renderer, another key."""
        return digest([asdict(self), world_hash()])

    def path(self, folder: Path) -> Path:
        """The video's file in a folder; the truth is beside it."""
        return folder / f"{self.split}{self.person:04d}_{self.seed}_{self.key}.mp4"


@functools.lru_cache(maxsize=1)
def world_hash() -> str:
    """SHA-256 of what decides a rendered clip: the world's code and the head's data."""
    package = resources.files("personalize")
    code = hashlib.sha256()
    for name in ("clips", "expression", "head", "person", "render", "scene", "world"):
        code.update(package.joinpath("synth", f"{name}.py").read_bytes())
    for name in ("video.py", "aus.py", "geometry.py", "assets/head.npz"):
        code.update(package.joinpath(*name.split("/")).read_bytes())
    return code.hexdigest()


@dataclass(frozen=True)
class Camera:
    """What one camera does to all frames of a clip; the kinds and ranges of :func:`personalize.synth.scene.degrade`.

    blur: sigma in pixels. small: share of the resolution that is left. gamma, contrast, lift, tint (3,), saturation: colour. luma,
    chroma: sigma of the noise in grey levels; its strength is the clip's, its grain each frame's. quality: of the camera's own JPEG.
    """

    blur: float
    small: float
    gamma: float
    contrast: float
    lift: float
    tint: tuple[float, float, float]
    saturation: float
    luma: float
    chroma: float
    quality: int

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Camera:
        """A random camera: mostly fair, some soft, noisy, coarse or grey."""
        draw = rng.random(6)
        return cls(
            blur=float(rng.uniform(0.3, 1.1)) if draw[0] < 0.35 else 0.0,
            small=float(rng.uniform(0.5, 0.95)) if draw[1] < 0.3 else 1.0,
            gamma=float(np.exp(rng.normal(0, 0.15))),
            contrast=float(rng.uniform(0.85, 1.15)),
            lift=float(rng.normal(0, 6)),
            tint=(float(np.exp(rng.normal(0, 0.05))), float(np.exp(rng.normal(0, 0.03))), float(np.exp(rng.normal(0, 0.05)))),
            saturation=0.0 if draw[2] < 0.06 else float(rng.uniform(0.6, 1.3)),
            luma=float(rng.uniform(0, 6)) if draw[3] < 0.7 else 0.0,
            chroma=float(rng.uniform(0, 4)) if draw[4] < 0.5 else 0.0,
            quality=int(rng.uniform(40, 95)) if draw[5] < 0.6 else 100,
        )

    def apply(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One frame through the camera. image: (H, W, 3) uint8 RGB; rng: of the noise's grain only."""
        out: np.ndarray = image.astype(np.float32)
        height, width = image.shape[:2]
        if self.blur:
            out = cv2.GaussianBlur(out, (0, 0), self.blur)
        if self.small < 1:
            coarse = cv2.resize(out, (round(width * self.small), round(height * self.small)), interpolation=cv2.INTER_AREA)
            out = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        out = 255 * np.clip(out / 255, 0, 1) ** self.gamma
        out = ((out - 128) * self.contrast + 128 + self.lift) * np.array(self.tint, np.float32)
        grey = out.mean(-1, keepdims=True)
        out = grey + (out - grey) * self.saturation
        out = out + rng.normal(0, 1, (height, width, 1)) * self.luma + rng.normal(0, 1, out.shape) * self.chroma
        frame = np.clip(out, 0, 255).astype(np.uint8)
        if self.quality < 100:
            buffer = io.BytesIO()
            Image.fromarray(frame).save(buffer, "JPEG", quality=self.quality)
            frame = np.array(Image.open(buffer))
        return frame


def camera_stream(clip: Clip) -> np.random.Generator:
    """What draws the clip's camera, and then its noise; not what draws the scene: any camera in any light."""
    from .person import person_seed

    return np.random.default_rng([person_seed(clip.split, clip.person), clip.seed, 7011])


def render(clip: Clip, folder: Path) -> Path:
    """Render a clip into a folder, unless it is there already, and return its file; both files whole or not at all."""
    from .world import World

    path = clip.path(folder)
    truth = path.with_suffix(".npz")
    if path.is_file() and truth.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    world = World(size=clip.size)
    rng = camera_stream(clip)
    camera = Camera.sample(rng)
    targets = []
    with VideoWriter(path, clip.fps, (clip.size, clip.size)) as writer:
        for shot in world.clip(world.person(clip.split, clip.person), clip.seed, clip.seconds, clip.fps, clip.liveliness):
            targets.append(shot.target)
            for image in shot.images:
                writer.write(camera.apply(image, rng))
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    np.savez(temporary, target=np.concatenate(targets).astype(np.float32))
    temporary.replace(truth)
    return path


def read_truth(path: Path) -> np.ndarray:
    """(T, K) intensities 0-5 of a rendered clip, row t for frame t. path: the video's file."""
    try:
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as data:
            return np.asarray(data["target"], np.float32)
    except (OSError, KeyError, ValueError):
        raise InputError(f"{path.with_suffix('.npz')} cannot be read: delete the folder and run the command again.") from None
