"""Small clips of synthetic people, made once a session, and a session that touches neither the network nor the user's home."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before anything imports a library that reads them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_CONSOLE="off", HF_HUB_OFFLINE="1", NO_COLOR="1", MPLBACKEND="Agg")

import numpy as np
import pytest
import torch

from personalize.video import VideoWriter

torch.set_num_threads(1)

FPS = 15.0
SIZE = (320, 240)


@pytest.fixture(scope="session", autouse=True)
def _clean_session(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[None]:
    """Caches and logs go to folders of the tests; nothing but this machine is reached."""
    folder = tmp_path_factory.mktemp("home")
    reach = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests have no network, and something asks for {address}")
        reach(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, str(folder))
        # Compiled kernels are kept between sessions, but in pytest's own cache.
        cache = getattr(request.config, "cache", None)
        if cache is not None and "WARP_CACHE_PATH" not in os.environ:
            patch.setenv("WARP_CACHE_PATH", str(cache.mkdir("warp")))
        patch.setattr(socket.socket, "connect", connect)
        yield


def script(name: str) -> Any:
    """A module of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Clip:
    """A clip with its truth. images: (T, H, W, 3) uint8 as written; target: (T, K) intensities 0-5; fps: frames a second."""

    path: Path
    images: np.ndarray
    target: np.ndarray
    fps: float = FPS


def on_canvas(images: np.ndarray, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(T, S, S, 3) pictures in the middle of a (width, height) canvas, their own edges continued."""
    width, height = size
    left = (width - images.shape[2]) // 2
    return np.pad(images, ((0, 0), (0, height - images.shape[1]), (left, width - images.shape[2] - left), (0, 0)), mode="edge")


def write_clip(path: Path, images: np.ndarray, fps: float = FPS) -> Path:
    """Write (T, H, W, 3) uint8 frames as a video."""
    with VideoWriter(path, fps, (images.shape[2], images.shape[1])) as writer:
        for image in images:
            writer.write(image)
    return path


def expected_of(base: Any, reported: np.ndarray) -> np.ndarray:
    """(N, K) expected intensities of which (N, K) are reported: what is reported of their whole range, read backwards."""
    fine = np.linspace(0, 5, 20001)
    grid = base.report(np.repeat(fine[:, None], reported.shape[1], 1))
    return np.stack([np.interp(reported[:, k], grid[:, k], fine) for k in range(reported.shape[1])], 1)


@pytest.fixture(scope="session")
def world(_clean_session: None) -> Any:
    """The renderer of the synthetic faces, 240 pixels."""
    from personalize.synth.world import World

    return World(size=240)


@pytest.fixture(scope="session")
def film(world: Any) -> Callable[[int, float], tuple[np.ndarray, np.ndarray]]:
    """(index of a validation person, seconds) -> frames (T, 240, 240, 3) and targets (T, K); lively, so that AUs occur."""

    def make(index: int, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        shots = list(world.clip(world.person("validation", index), 1, seconds, fps=FPS, liveliness=3.0))
        return np.concatenate([s.images for s in shots]), np.concatenate([s.target for s in shots])

    return make


@pytest.fixture(scope="session")
def face_clip(film: Callable[[int, float], tuple[np.ndarray, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """3 s, 320x240, of validation person 56, who moves a good deal and rests between."""
    images, target = film(56, 3.0)
    images = on_canvas(images)
    return Clip(write_clip(tmp_path_factory.mktemp("face") / "face.mp4", images), images, target)


@pytest.fixture(scope="session")
def other_face(film: Callable[[int, float], tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """(T, 240, 240, 3): 1.6 s of validation person 5."""
    return film(5, 1.6)[0]


@pytest.fixture(scope="session")
def face_photo(face_clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One frame of ``face_clip`` as a PNG."""
    from PIL import Image

    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(face_clip.images[10]).save(path)
    return path


@dataclass(frozen=True)
class Said:
    """What a command answered: its exit code, stdout, and the lines of stderr."""

    code: int
    out: str
    err: list[str]

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.err if line.startswith("warning: ")]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs ``personalize`` with these words in this process; what native libraries print counts as well."""
    from personalize.cli import main

    def run(*words: str | Path) -> Said:
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Said(code, out, err.splitlines())

    return run
