"""A generated face put back into the frame it belongs to, and what marks a picture as synthetic.

What is replaced is the convex hull of the face's mesh, with a soft edge. Colour and grain follow the frame: a generated picture may come
from another frame of the clip, under other light. Everything outside of the soft edge stays the frame's, bit by bit.
"""

from __future__ import annotations

import cv2
import numpy as np

FEATHER = 0.16
"""Width of the soft edge, in distances of the outer eye corners; half of it lies outside of the face."""
MOST_GAIN = 1.3
"""How far colours may be stretched, and its inverse: a band with other things in it than the face's must not ruin the face."""
LABEL = "synthetic"
_STEADY = {
    "mesh478": np.array([33, 133, 362, 263, 168, 6, 197, 195, 5, 127, 356, 234, 454]),
    "ibug68": np.array([0, 16, 27, 28, 29, 36, 39, 42, 45]),
}
"""Points that expressions hardly move."""


def face_mask(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) uint8, 255 inside the convex hull of points (N, 2 or more) in pixels; NaN points are left out, without any all is 0."""
    mask = np.zeros(shape[:2], np.uint8)
    known = points[np.isfinite(points[:, :2]).all(1), :2].astype(np.float32)
    if len(known) > 2:
        cv2.fillConvexPoly(mask, np.round(cv2.convexHull(known) * 16).astype(np.int32), 255, cv2.LINE_8, 4)
    return mask


def depth_inside(mask: np.ndarray) -> np.ndarray:
    """(H, W) float32: how many pixels each pixel lies inside the mask's edge, negative outside."""
    inside = (mask > 0).astype(np.uint8)
    if inside.all() or not inside.any():
        return np.full(mask.shape, 1e6 if inside.any() else -1e6, np.float32)
    within, without = cv2.distanceTransform(inside, cv2.DIST_L2, 5), cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
    return np.asarray(np.where(inside > 0, within - 0.5, 0.5 - without), np.float32)


def match_colour(image: np.ndarray, like: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 RGB 0-255: the image with each channel in Lab given the mean and the spread that ``like`` has at ``where``.

    image, like: (H, W, 3) RGB 0-255. where: (H, W) bool. Of these pixels, the fifth whose lightness differs most from the rest's difference
    is left out: hair or a hand. Spreads change at most by ``MOST_GAIN`` (Reinhard et al., 2001, made robust).
    """
    source, target = (cv2.cvtColor(np.asarray(x, np.float32) / 255, cv2.COLOR_RGB2LAB) for x in (image, like))
    a, b = source[where], target[where]
    if len(a) < 50:
        return np.asarray(image, np.float32)
    apart = b[:, 0] - a[:, 0]
    apart = np.abs(apart - np.median(apart))
    keep = apart <= np.percentile(apart, 80)
    a, b = a[keep], b[keep]
    gain = np.clip(b.std(0) / np.maximum(a.std(0), 1e-3), 1 / MOST_GAIN, MOST_GAIN)
    gain = np.where(a.std(0) < 1e-3, 1.0, gain)
    out = ((source - a.mean(0)) * gain + b.mean(0)).astype(np.float32)
    return np.asarray(cv2.cvtColor(out, cv2.COLOR_LAB2RGB) * 255, np.float32)


_BLUR = cv2.getGaussianKernel(7, 1.0) @ cv2.getGaussianKernel(7, 1.0).T
_LEFT = float(np.sqrt(1 - 2 * _BLUR[3, 3] + np.square(_BLUR).sum()))
"""Share of white noise's standard deviation that is left when its blurred self is taken away."""


def grain(image: np.ndarray, where: np.ndarray) -> float:
    """Standard deviation of the fine noise in an image's brightness, 0-255, robust against edges. where: (H, W) bool."""
    if where.sum() < 50:
        return 0.0
    grey = np.asarray(image, np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    fine = np.abs(grey - cv2.GaussianBlur(grey, (7, 7), 1.0))[where]
    return float(1.4826 * np.median(fine) / _LEFT)


def scaled_to_frame(to_frame: np.ndarray, size: int, side: int) -> np.ndarray:
    """(2, 3) float64: a map from a view of ``size`` pixels to the frame, for the same view at ``side`` pixels."""
    factor = size / side
    linear = np.asarray(to_frame[:, :2], np.float64)
    return np.hstack([linear * factor, (to_frame[:, 2] + linear @ np.full(2, (factor - 1) / 2))[:, None]])


def align(points: np.ndarray, target: np.ndarray, scheme: str) -> np.ndarray:
    """(2, 3) similarity that brings a face's steady points (N, 2+) to where they are in ``target`` (N, 2+), by least squares."""
    index = _STEADY[scheme]
    a, b = (p[index, 0] + 1j * p[index, 1] for p in (points.astype(np.float64), target.astype(np.float64)))
    x, y = a - a.mean(), b - b.mean()
    turn = (np.conj(x) @ y) / max(float((np.conj(x) @ x).real), 1e-9)
    move = b.mean() - turn * a.mean()
    return np.array([[turn.real, -turn.imag, move.real], [turn.imag, turn.real, move.imag]])


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(N, 2) points (N, 2+) under a (2, 3) map."""
    return np.asarray(points[:, :2] @ matrix[:, :2].T + matrix[:, 2])


def put_back(
    frame: np.ndarray, picture: np.ndarray, to_frame: np.ndarray, points: np.ndarray, unit: float, rng: np.random.Generator
) -> np.ndarray:
    """A copy of the frame with the picture's face in it.

    frame: (H, W, 3) uint8. picture: (S, S, 3) uint8. to_frame: (2, 3) maps the picture's pixels to the frame's. points: (N, 2) frame pixels
    whose convex hull is replaced: the face as it was and as it is to be. unit: distance of the outer eye corners in frame pixels. rng: of
    the grain.
    """
    height, width = frame.shape[:2]
    feather = max(FEATHER * unit, 2.0)
    margin = feather + 2
    x0, y0 = np.floor(points.min(0) - margin).astype(int).clip(0, (width, height))
    x1, y1 = np.ceil(points.max(0) + margin + 1).astype(int).clip(0, (width, height))
    out = frame.copy()
    if x1 <= x0 or y1 <= y0:
        return out
    part = frame[y0:y1, x0:x1]
    depth = depth_inside(face_mask(points - (x0, y0), part.shape))
    matrix, image = np.asarray(to_frame, np.float64).copy(), picture
    factor = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if factor < 0.75:  # a smaller face than the picture's: average, nothing may alias
        side = max(round(picture.shape[0] * factor), 8)
        image = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        matrix = scaled_to_frame(matrix, picture.shape[0], side)
    matrix[:, 2] -= (x0, y0)
    warped = cv2.warpAffine(image, matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    # the picture may end within the face, where the face left the clip's frame
    covered = cv2.warpAffine(np.full(image.shape[:2], 255, np.uint8), matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_NEAREST)
    depth = np.minimum(depth, depth_inside(covered) - feather / 2)
    share = np.clip(0.5 + depth / feather, 0, 1)
    alpha = share * share * (3 - 2 * share)
    band = (depth > 0) & (depth < 2 * feather)
    matched = match_colour(warped, part, band)
    missing = np.sqrt(max(grain(part, band) ** 2 - grain(matched, band) ** 2, 0.0))
    if missing > 0.3:
        matched = matched + rng.normal(0, missing, (*part.shape[:2], 1)).astype(np.float32)
    mixed = part + alpha[..., None] * (matched - part)
    out[y0:y1, x0:x1] = np.where(alpha[..., None] > 0, np.clip(np.round(mixed), 0, 255), part).astype(np.uint8)
    return out


def tilted(image: np.ndarray, angle: float) -> np.ndarray:
    """The picture turned about its middle by an angle in radians, clockwise as seen; what comes in from outside repeats its edge."""
    if abs(angle) < 1e-4:
        return image
    height, width = image.shape[:2]
    middle = ((width - 1) / 2, (height - 1) / 2)
    matrix = cv2.getRotationMatrix2D(middle, -float(np.degrees(angle)), 1.0)
    return np.asarray(cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE))


def label_box(shape: tuple[int, ...], corner: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the label in a picture. corner: 0 bottom right, 1 bottom left, 2 top right, 3 top left."""
    height, width = shape[:2]
    scale, thick = _label_size(shape)
    (wide, tall), under = cv2.getTextSize(LABEL, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    pad = max(round(tall * 0.4), 2)
    wide, tall = min(wide + 2 * pad, width), min(tall + under + 2 * pad, height)
    x0 = width - wide if corner in (0, 2) else 0
    y0 = height - tall if corner in (0, 1) else 0
    return x0, y0, x0 + wide, y0 + tall


def _label_size(shape: tuple[int, ...]) -> tuple[float, int]:
    tall = float(np.clip(0.04 * min(shape[:2]), 6, 40))
    scale = tall / 21  # the font's capitals are 21 pixels high at scale 1
    return scale, max(round(tall / 9), 1)


def free_corner(shape: tuple[int, ...], mask: np.ndarray | None) -> int:
    """The corner in which the label covers least of the face; see :func:`label_box`. mask: (H, W) of the face, or None."""
    if mask is None:
        return 0
    covered = []
    for corner in range(4):
        x0, y0, x1, y1 = label_box(shape, corner)
        covered.append(int((mask[y0:y1, x0:x1] > 0).sum()))
    return int(np.argmin(covered))


def watermark(image: np.ndarray, corner: int = 0) -> np.ndarray:
    """A copy of the picture with the word 'synthetic' in a corner; nothing else changes."""
    out = image.copy()
    x0, y0, x1, y1 = label_box(image.shape, corner)
    scale, thick = _label_size(image.shape)
    box = np.ascontiguousarray((out[y0:y1, x0:x1] * 0.35).astype(np.uint8))
    under = cv2.getTextSize(LABEL, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)[1]
    pad = max(round((y1 - y0 - under) * 0.22), 2)
    cv2.putText(box, LABEL, (pad, y1 - y0 - under - pad + 1), cv2.FONT_HERSHEY_SIMPLEX, scale, (245, 245, 245), thick, cv2.LINE_AA)
    out[y0:y1, x0:x1] = box
    return out
