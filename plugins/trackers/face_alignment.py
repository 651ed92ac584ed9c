"""The face-alignment package (Bulat & Tzimiropoulos, 2017): 68 points in two or three dimensions; slow on a CPU, downloads its weights."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
import warnings
from typing import Any
from urllib.error import URLError

import numpy as np

from personalize.errors import ConfigError
from personalize.faces import Face, Tracker

DETECTORS = ("sfd", "blazeface", "retinaface", "scrfd", "yunet", "dlib")


class FaceAlignmentTracker(Tracker):
    """68 landmarks (ibug's scheme) with face-alignment's networks.

    points: '2d' (visible contour) or '3d' (with depth). device: 'auto', 'cpu', 'cuda', ... detector: which of the package's face detectors.
    min_score: faces that the detector scores lower are dropped, 0-1. check_hash: compare each file with the hash in its name before it is
    unpickled by the package; switch it off only for weights of your own.

    The weights come from the author's site by torch.hub on first use and stay in its cache; offline it fails in one line.
    """

    scheme = "ibug68"

    def __init__(
        self, points: str = "3d", device: str = "auto", detector: str = "sfd", min_score: float = 0.5, check_hash: bool = True
    ) -> None:
        if points not in ("2d", "3d"):
            raise ConfigError(f"tracker option points must be '2d' or '3d', got '{points}'")
        if detector not in DETECTORS:
            raise ConfigError(f"tracker option detector must be one of {', '.join(DETECTORS)}, got '{detector}'")
        self.points = points
        self.device = device
        self.detector = detector
        self.min_score = min_score
        self.check_hash = check_hash
        self._net: Any = None
        self._lock = threading.Lock()

    def detect(self, frame: np.ndarray, timestamp: float, still: bool) -> list[Face]:
        """Faces in one frame; see :class:`personalize.faces.Tracker`. Every frame is searched anew."""
        with self._lock:
            if self._net is None:
                self._net = self._create()
            boxes = [np.asarray(b, dtype=np.float32) for b in self._net.face_detector.detect_from_image(np.ascontiguousarray(frame))]
            boxes = [b for b in boxes if len(b) < 5 or b[4] >= self.min_score]
            if not boxes:
                return []
            # plain floats: the package assigns them to tensors, which take no NumPy scalars
            found = self._net.get_landmarks_from_image(frame, detected_faces=[b.tolist() for b in boxes])
        faces = []
        for box, points in zip(boxes, found, strict=True):
            array = np.full((68, 3), np.nan, dtype=np.float32)
            array[:, : points.shape[1]] = points
            array[:, 2] *= -1  # the package's depth grows towards the camera
            faces.append(Face(array, box[:4].copy(), float(np.clip(box[4], 0, 1)) if len(box) > 4 else 1.0))
        return faces

    def _create(self) -> Any:
        import torch

        try:
            import face_alignment
            from face_alignment import api
        except ImportError as error:
            raise ConfigError("tracker face_alignment needs its package: pip install face-alignment") from error
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        urls = [api.models_urls["2DFAN-4" if self.points == "2d" else "3DFAN-4"]]
        if self.points == "3d":
            urls.append(api.models_urls["depth"])
        if self.detector == "sfd":
            from face_alignment.detection.sfd import sfd_detector

            urls.append(sfd_detector.models_urls["s3fd"])
        for url in urls:
            self._fetch(url)
        kind = face_alignment.LandmarksType.TWO_D if self.points == "2d" else face_alignment.LandmarksType.THREE_D
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return face_alignment.FaceAlignment(kind, device=device, flip_input=False, face_detector=self.detector, compile=False)
        except (URLError, OSError) as error:
            raise ConfigError(_offline(f"the weights of its detector {self.detector}")) from error
        except ImportError as error:
            raise ConfigError(f"tracker face_alignment: detector {self.detector} needs a package that is missing: {error.name}") from error

    def _fetch(self, url: str) -> None:
        """Downloads one file of weights unless the hub cache has it, and checks it."""
        from face_alignment.utils import load_file_from_url

        name = url.rsplit("/", 1)[-1]
        stderr = sys.stderr
        try:
            with open(os.devnull, "w") as nowhere:
                sys.stderr = nowhere  # the package announces each download there
                path = load_file_from_url(url)
        except (URLError, OSError) as error:
            raise ConfigError(_offline(name)) from error
        finally:
            sys.stderr = stderr
        prefix = re.search(r"-([0-9a-f]{8,})\.", name)
        if self.check_hash and prefix:
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                for part in iter(lambda: file.read(1 << 20), b""):
                    digest.update(part)
            if not digest.hexdigest().startswith(prefix[1]):
                raise ConfigError(f"{name} in torch.hub's cache is broken (wrong SHA-256): delete it and run again online")


def _offline(what: str) -> str:
    return (
        f"tracker face_alignment cannot download {what}: go online once, or put it into torch.hub's checkpoints folder, "
        "or use --tracker mediapipe"
    )
