"""Head pose and alignment: where a face is, how it is turned, and what it looks like with that taken away.

The canonical face fixes the frame of reference: x right in the image, y down, z away from the camera (right-handed), origin midway between
the eyes' centres, unit = distance of the outer eye corners. A pose maps it to the frame, ``p = scale * R @ c + translation`` (weak
perspective), in pixels. Pixels are counted as OpenCV does: the middle of the first pixel is (0, 0).

Angles follow OpenFace: R = Rx(pitch) @ Ry(yaw) @ Rz(roll) in these axes (Baltrusaitis et al., 2018). Positive pitch turns the nose down,
positive yaw turns it to the image's left, positive roll turns the head clockwise as seen in the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

CROP_SIZE = 112
WINDOW = 2.05
"""Side of the crop in canonical units: from the forehead (y = -0.525) to below the chin (y = 1.525)."""
CENTRE = np.array([0.0, 0.5, 0.0])
"""Canonical point in the middle of the crop: half-way down the nose, at the depth of the eyes."""
VIEW_SIZE = 160
VIEW_WINDOW = 2.6
"""Side of the view in canonical units: the face with enough around it for a tracker to find it again."""

IBUG_TO_MESH: tuple[int, ...] = (
    # jaw 0-16 (contour points slide when the head turns), brows 17-26, nose 27-35
    *(162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),
    *(71, 63, 105, 66, 107, 336, 296, 334, 293, 301),
    *(168, 197, 5, 4, 75, 97, 2, 326, 305),
    # eyes 36-47, outer lip 48-59, inner lip 60-67
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),
    *(78, 82, 13, 312, 308, 317, 14, 87),
)
"""The mesh478 vertex nearest to each of the 68 points of ibug's scheme (Sagonas et al., 2013), subject's right side first."""

# Weights of the points that expressions hardly move. Left out: brows and the forehead above them (AU1, 2, 4), lids, cheeks (AU6), the sides
# of the nose (AU9, 10), everything from the upper lip down (jaw and mouth), and the irises (gaze).
_MESH_WEIGHTS: dict[float, tuple[int, ...]] = {
    1.0: (33, 133, 263, 362, 168, 6, 197, 195, 5, 122, 351, 196, 419, 193, 417, 3, 248),
    0.7: (4, 1, 127, 356, 34, 264, 162, 389, 139, 368, 130, 359, 243, 463, 236, 456),
    0.5: (234, 454, 227, 447, 21, 251, 71, 301, 156, 383, 143, 372, 35, 265),
    0.3: (10, 338, 109, 297, 67, 332, 103, 284, 54, 68, 298, 93, 323, 2, 94),
}
_IBUG_WEIGHTS: dict[float, tuple[int, ...]] = {
    1.0: (36, 39, 42, 45, 27, 28, 29),
    0.7: (30, 33),
    0.3: (31, 32, 34, 35),
    0.15: (0, 1, 15, 16),
}


@dataclass(frozen=True)
class Pose:
    """Canonical face to frame: ``p = scale * rotation @ c + translation``.

    rotation: (3, 3) float64, det +1. scale: pixels per canonical unit (the outer-corner distance seen from the front).
    translation: (3,) pixels, the point between the eyes; z is NaN where the landmarks had none. angles: (Rx, Ry, Rz) radians, OpenFace's.
    """

    rotation: np.ndarray
    scale: float
    translation: np.ndarray
    angles: tuple[float, float, float]

    @property
    def off_axis(self) -> float:
        """Angle between the face's forward axis and the camera's, radians, 0 = frontal whatever the roll."""
        return float(np.arccos(np.clip(self.rotation[2, 2], -1.0, 1.0)))


@cache
def canonical() -> np.ndarray:
    """(478, 3) float32, read-only: the canonical face in MediaPipe's topology; made by benchmarks/make_canonical.py."""
    points = np.load(Path(__file__).parent / "assets" / "canonical478.npy")
    points.setflags(write=False)
    return points


@cache
def _reference(scheme: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(indices, canonical points (n, 3) float64, weights summing to 1, number of points in the scheme)."""
    if scheme == "mesh478":
        table, names = _MESH_WEIGHTS, np.arange(478)
    elif scheme == "ibug68":
        table, names = _IBUG_WEIGHTS, np.array(IBUG_TO_MESH)
    else:
        raise ValueError(f"unknown landmark scheme '{scheme}': mesh478 or ibug68")
    index = np.array([i for group in table.values() for i in group])
    weight = np.array([w for w, group in table.items() for _ in group])
    return index, canonical()[names[index]].astype(np.float64), weight / weight.sum(), len(names)


def angles(rotation: np.ndarray) -> tuple[float, float, float]:
    """(Rx, Ry, Rz) radians with rotation = Rx @ Ry @ Rz; Ry within +-pi/2."""
    r = rotation
    return (
        float(np.arctan2(-r[1, 2], r[2, 2])),
        float(np.arcsin(np.clip(r[0, 2], -1.0, 1.0))),
        float(np.arctan2(-r[0, 1], r[0, 0])),
    )


def rotation_matrix(rx: float, ry: float, rz: float) -> np.ndarray:
    """(3, 3) float64, Rx @ Ry @ Rz: the inverse of :func:`angles`."""
    (cx, cy, cz), (sx, sy, sz) = np.cos([rx, ry, rz]), np.sin([rx, ry, rz])
    return np.array(
        [
            [cy * cz, -cy * sz, sy],
            [cx * sz + sx * sy * cz, cx * cz - sx * sy * sz, -sx * cy],
            [sx * sz - cx * sy * cz, sx * cz + cx * sy * sz, cx * cy],
        ]
    )


def _tilt(rotation: np.ndarray) -> float:
    r = rotation
    return float(np.arctan2(r[1, 0] - r[0, 1], r[0, 0] + r[1, 1]))  # the nearest in-plane rotation: steady where yaw nears 90 degrees


def upright(pose: Sequence[float] | np.ndarray) -> np.ndarray:
    """(3,) radians of (Rx, Ry, Rz) as a frame shows them: pitch and yaw as the upright picture of that face shows them, and how far it has
    to be tilted (in its plane, clockwise) to get back. Of a face that is tilted they are not the first two angles."""
    rotation = rotation_matrix(*pose)
    tilt = _tilt(rotation)
    pitch, yaw, _ = angles(rotation_matrix(0.0, 0.0, -tilt) @ rotation)
    return np.array([pitch, yaw, tilt])


def tilted(pitch: float, yaw: float, tilt: float = 0.0) -> np.ndarray:
    """(3,) radians: (Rx, Ry, Rz) as a frame shows them, the inverse of :func:`upright`."""
    roll = np.arctan2(-np.sin(pitch) * np.sin(yaw), np.cos(pitch) + np.cos(yaw))  # with which the picture is upright
    return np.array(angles(rotation_matrix(0.0, 0.0, tilt) @ rotation_matrix(pitch, yaw, float(roll))))


def fit_pose(landmarks: np.ndarray, scheme: str = "mesh478") -> Pose:
    """The pose of a face, from its points that expressions hardly move.

    landmarks: (N, 3) pixels, N by the scheme; with NaN z (or (N, 2)) the pose is fitted to x and y alone. Closed form for 3D points
    (weighted Procrustes with scale, Umeyama 1991), Gauss-Newton from the affine solution for 2D points. Raises ValueError for a wrong
    number of points or points without extent.
    """
    index, model, weight, count = _reference(scheme)
    if landmarks.shape[0] != count:
        raise ValueError(f"{scheme} has {count} landmarks, got {landmarks.shape[0]}")
    points = landmarks[index].astype(np.float64)
    if points.shape[1] == 2 or np.isnan(points[:, 2]).any():
        return _fit_2d(points[:, :2], model, weight)
    model_mean, mean = weight @ model, weight @ points
    x, y = model - model_mean, points - mean
    u, d, vt = np.linalg.svd(y.T @ (x * weight[:, None]))
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * sign) @ vt
    scale = float((d * sign).sum() / (weight @ (x * x).sum(1)))
    _require_extent(scale)
    return Pose(rotation, scale, mean - scale * rotation @ model_mean, angles(rotation))


def _require_extent(scale: float) -> None:
    if not np.isfinite(scale) or scale < 1e-6:
        raise ValueError("the landmarks have no extent: no pose can be fitted")


def _fit_2d(points: np.ndarray, model: np.ndarray, weight: np.ndarray) -> Pose:
    """Scaled-orthographic pose from 2D points: affine camera, nearest scaled rotation, then Gauss-Newton on the six parameters."""
    model_mean, mean = weight @ model, weight @ points
    x, y = model - model_mean, points - mean
    xw = x * weight[:, None]
    rows = np.linalg.solve(x.T @ xw, xw.T @ y).T  # (2, 3)
    u, d, vt = np.linalg.svd(rows, full_matrices=False)
    scale = float(d.mean())
    _require_extent(scale)
    top = u @ vt
    rotation = np.vstack([top, np.cross(top[0], top[1])])
    shift = np.zeros(2)
    root = np.sqrt(weight)[:, None]
    jacobian = np.zeros((len(x), 2, 6))
    ridge = np.diag([1e-9 * scale**2] * 3 + [1e-12] * 3)  # keeps the step finite where all points lie in one plane
    for _ in range(8):
        turned = x @ rotation.T
        a, b, c = (scale * turned).T
        jacobian[:, 0, 1], jacobian[:, 0, 2] = c, -b  # d(x)/d(rotation about x, y, z of the camera)
        jacobian[:, 1, 0], jacobian[:, 1, 2] = -c, a
        jacobian[:, :, 3] = turned[:, :2]
        jacobian[:, 0, 4] = jacobian[:, 1, 5] = 1.0
        residual = y - scale * turned[:, :2] - shift
        weighted = (jacobian * root[:, :, None]).reshape(-1, 6)
        step = np.linalg.solve(weighted.T @ weighted + ridge, weighted.T @ (residual * root).ravel())
        rotation = cv2.Rodrigues(step[:3])[0] @ rotation
        scale, shift = max(scale + float(step[3]), 1e-3 * scale), shift + step[4:]
        if max(map(abs, (*step[:3], step[3] / scale))) < 5e-4:  # converges quadratically: what is left is below 1e-6
            break
    origin = mean + shift - scale * (rotation @ model_mean)[:2]
    return Pose(rotation, scale, np.array([*origin, np.nan]), angles(rotation))


def normalise(landmarks: np.ndarray, pose: Pose) -> np.ndarray:
    """The landmarks with head pose, size and place taken away: (N, 3) float32 in canonical units. Needs landmarks with z."""
    return ((landmarks - pose.translation) @ pose.rotation / pose.scale).astype(np.float32)


def as_mesh(landmarks: np.ndarray, pose: Pose, scheme: str = "mesh478") -> np.ndarray:
    """Pose-normalised landmarks of any scheme in the mesh's places: (478, 3) float32, NaN for points and depths that the scheme lacks.

    Where a tracker gives no depth, the points are turned back with that of the canonical face.
    """
    flat = bool(np.isnan(pose.translation[2]))
    if scheme == "mesh478" and not flat:
        return normalise(landmarks, pose)
    index = np.array(IBUG_TO_MESH) if scheme == "ibug68" else np.arange(len(canonical()))
    points = landmarks.astype(np.float64)
    origin = np.nan_to_num(pose.translation)
    if flat:
        depth = pose.scale * (canonical()[index] @ pose.rotation.T)[:, 2:]
        points = np.hstack([points[:, :2], depth])
    out = np.full((len(canonical()), 3), np.nan, np.float32)
    out[index] = (points - origin) @ pose.rotation / pose.scale
    if flat:
        out[:, 2] = np.nan
    return out


def project(points: np.ndarray, pose: Pose) -> np.ndarray:
    """Canonical points to frame pixels, (N, 3) float32: the inverse of :func:`normalise`."""
    return (pose.scale * points @ pose.rotation.T + pose.translation).astype(np.float32)


def window(pose: Pose, size: int = CROP_SIZE, extent: float = WINDOW) -> np.ndarray:
    """(2, 3) float32 similarity from crop pixels to frame pixels, from the pose's in-plane rotation, scale and centre.

    extent: side of the window in canonical units.
    """
    r, roll = pose.rotation, _tilt(pose.rotation)
    factor = pose.scale * extent / size
    cos, sin = factor * np.cos(roll), factor * np.sin(roll)
    linear = np.array([[cos, -sin], [sin, cos]])
    middle = (size - 1) / 2
    offset = pose.scale * (r @ CENTRE)[:2] + pose.translation[:2] - linear @ (middle, middle)
    return np.hstack([linear, offset[:, None]]).astype(np.float32)


def crop(image: np.ndarray, pose: Pose, scheme: str = "mesh478", size: int = CROP_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """The aligned face: upright, centred, of one size.

    image: (H, W, 3) uint8. Returns crop (size, size, 3) uint8 and to_frame (2, 3) float32, which maps crop pixels to frame pixels. What
    lies outside the frame repeats its edge. The scheme does not matter to the window: the pose already speaks of the canonical face.
    """
    to_frame = window(pose, size)
    return warp(image, to_frame, size), to_frame


def view(image: np.ndarray, pose: Pose, scheme: str = "mesh478", size: int = VIEW_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """The aligned face with its surroundings, as :func:`crop` with the same centre and a window of ``VIEW_WINDOW`` units.

    Returns view (size, size, 3) uint8 and view_to_frame (2, 3) float32.
    """
    to_frame = window(pose, size, VIEW_WINDOW)
    return warp(image, to_frame, size), to_frame


def warp(image: np.ndarray, to_frame: np.ndarray, size: int = CROP_SIZE) -> np.ndarray:
    """Samples a square of ``size`` pixels; averages over the source area when it makes the picture smaller, so nothing aliases."""
    matrix = to_frame.astype(np.float64)
    factor = float(np.hypot(matrix[0, 0], matrix[1, 0]))  # frame pixels per crop pixel
    if factor > 4:
        # a big face: shrink its neighbourhood by a whole factor first, which costs less than supersampling it all
        corners = np.array([[-1, -1, 1], [size, -1, 1], [-1, size, 1], [size, size, 1]]) @ matrix.T
        reduce = int(factor // 2)
        height, width = image.shape[:2]
        x0, y0 = np.clip(np.floor(corners.min(0)).astype(int) - reduce, 0, (width - 1, height - 1))
        x1, y1 = np.clip(np.ceil(corners.max(0)).astype(int) + reduce, (x0 + 1, y0 + 1), (width, height))
        part = image[y0:y1, x0:x1]
        small = (max(part.shape[1] // reduce, 1), max(part.shape[0] // reduce, 1))
        ratio = np.array([part.shape[1] / small[0], part.shape[0] / small[1]])
        image = cv2.resize(part, small, interpolation=cv2.INTER_AREA)
        matrix[:, 2] = (matrix[:, 2] - (x0, y0) + 0.5) / ratio - 0.5
        matrix[:, :2] /= ratio[:, None]
        factor /= reduce
    fine = max(int(np.ceil(factor - 1e-3)), 1)
    # the middle of crop pixel 0 is the middle of `fine` fine pixels
    step = np.array([[1 / fine, 0, (1 / fine - 1) / 2], [0, 1 / fine, (1 / fine - 1) / 2], [0, 0, 1]])
    sampled = cv2.warpAffine(
        image,
        matrix @ step,
        (size * fine, size * fine),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return sampled if fine == 1 else cv2.resize(sampled, (size, size), interpolation=cv2.INTER_AREA)
