"""What a tracker sees: faces in frames. The types that flow from clip to profile, and the tracker base class.

All arrays are NumPy, all pixels count from the top left corner of the frame as decoded (after rotation).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from . import geometry


@dataclass
class Face:
    """One face in one frame, as a tracker found it.

    landmarks: (N, 3) float32 pixels; x right, y down, z away from the camera, in the same unit as x (weak perspective). NaN z where
        the tracker gives none.
    box: (4,) float32 x0, y0, x1, y1 in pixels.
    confidence: the tracker's own, 0-1.
    """

    landmarks: np.ndarray
    box: np.ndarray
    confidence: float


@dataclass
class Observation:
    """One face in one frame, ready for the model: aligned, measured, with its quality.

    frame: index of the frame in the clip, from 0. timestamp: seconds. file: name of a still, else ''.
    face_id: number of the person's track in the clip, from 0.
    crop: (112, 112, 3) uint8 RGB, aligned by :func:`personalize.geometry.crop`.
    landmarks: (478, 3) float32, pose-normalised by :func:`personalize.geometry.as_mesh`, in units of the canonical face; NaN for points
        and depths that the tracker does not give. None: no landmarks.
    pose: (3,) float32 radians, OpenFace's pose_Rx (pitch, nose down positive), pose_Ry (yaw), pose_Rz (roll).
    to_frame: (2, 3) float32, maps crop pixels to frame pixels.
    image_landmarks: (N, 3) float32, the tracker's points in frame pixels.
    box: (4,) float32 in frame pixels. confidence: 0-1.
    quality: 0-1, the product of ``parts``: 'blur', 'size', 'pose', 'occlusion', each 0-1.
    view: (160, 160, 3) uint8, the face with its surroundings, by :func:`personalize.geometry.view`; kept only where a generator may use the
        frame. view_to_frame: (2, 3) float32, maps view pixels to frame pixels.
    """

    frame: int
    timestamp: float
    face_id: int
    crop: np.ndarray
    landmarks: np.ndarray | None
    pose: np.ndarray
    to_frame: np.ndarray
    image_landmarks: np.ndarray
    box: np.ndarray
    confidence: float
    quality: float
    parts: dict[str, float] = field(default_factory=dict)
    file: str = ""
    view: np.ndarray | None = None
    view_to_frame: np.ndarray | None = None

    @property
    def upright(self) -> np.ndarray:
        """(3,) radians: pitch and yaw as ``view`` and ``crop`` show them, which are upright, and the tilt; see :func:`geometry.upright`."""
        return geometry.upright(self.pose)


class Tracker(ABC):
    """Base class of trackers: frames in, faces with landmarks out.

    A plug-in states its ``scheme``: 'mesh478' (MediaPipe's topology) or 'ibug68'. Faces of neighbouring frames are joined to tracks by
    :class:`personalize.tracks.TrackBuilder`, not by the tracker.
    """

    scheme: str = "mesh478"

    @abstractmethod
    def detect(self, frame: np.ndarray, timestamp: float, still: bool) -> list[Face]:
        """Faces in one frame. frame: (H, W, 3) uint8 RGB; timestamp: seconds, rising within a clip; still: no neighbours to use."""

    def reset(self) -> None:
        """Called before each new clip: forget the last one's frames."""

    def close(self) -> None:
        """Called once at the end."""
