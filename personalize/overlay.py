"""Draws what the model reads onto a frame: the face's box, the name, a bar for each AU with its value, the base model's as a tick."""

from __future__ import annotations

import cv2
import numpy as np

from personalize.aus import MAX_INTENSITY

_BOX = (64, 200, 255)
_BAR = (64, 200, 255)
_TRACK = (70, 74, 80)
_TICK = (255, 170, 60)
_TEXT = (240, 240, 240)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw(
    frame: np.ndarray,
    box: np.ndarray | None,
    name: str,
    values: dict[str, float],
    base: dict[str, float] | None = None,
) -> np.ndarray:
    """A copy of the frame with box, name and bars.

    frame: (H, W, 3) uint8 RGB, any size. box: (4,) x0, y0, x1, y1 pixels, or None where there is no face. values: AU name to intensity
    (0-5; NaN shows an empty bar). base: the base model's intensities, drawn as ticks. The panel stands on the side of the picture with more
    room beside the face, and is made smaller before it covers the face.
    """
    out = frame.copy()
    height, width = out.shape[:2]
    unit = max(min(height / 360, width / 480), 0.6)
    if box is not None and np.isfinite(box).all():
        _box(out, box, name, unit)
    if values:
        _panel(out, box, values, base or {}, unit)
    return out


def _put(out: np.ndarray, text: str, x: float, y: float, size: float, colour: tuple[int, int, int], limit: float) -> None:
    """Text with its baseline at (x, y), ``size`` pixels high, no wider than ``limit``."""
    scale = size / 21.0  # the font's capitals are 21 pixels high at scale 1
    thick = max(round(size / 9), 1)
    wide = cv2.getTextSize(text, _FONT, scale, thick)[0][0]
    if wide > limit > 0:
        scale *= limit / wide
    at = (round(x), round(y))
    cv2.putText(out, text, at, _FONT, scale, (0, 0, 0), thick + max(round(size / 6), 1), cv2.LINE_AA)
    cv2.putText(out, text, at, _FONT, scale, colour, thick, cv2.LINE_AA)


def _box(out: np.ndarray, box: np.ndarray, name: str, unit: float) -> None:
    height, width = out.shape[:2]
    thick = max(round(1.6 * unit), 1)
    x0, x1 = np.clip(np.asarray(box)[[0, 2]], 0, width - 1)
    y0, y1 = np.clip(np.asarray(box)[[1, 3]], 0, height - 1)
    cv2.rectangle(out, (round(x0), round(y0)), (round(x1), round(y1)), _BOX, thick, cv2.LINE_AA)
    if name:
        size = max(10 * unit, 7)
        above = y0 - 4 * unit
        text = name.encode("ascii", "replace").decode()  # OpenCV's fonts have no other letters
        _put(out, text, x0, above if above - size > 0 else min(y1 + size + 4 * unit, height - 2), size, _BOX, width - x0 - 2)


def panel_area(shape: tuple[int, ...], box: np.ndarray | None, rows: int, unit: float) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the panel: beside the face if that leaves it at least half its wished width, else at the wider side's edge."""
    height, width = shape[:2]
    margin = max(round(4 * unit), 2)
    wished = min(round(150 * unit), width - 2 * margin)
    row = min((height - 2 * margin) / max(rows, 1), 15 * unit)
    tall = round(row * rows)
    left, right = (width - margin, width - margin) if box is None or not np.isfinite(box).all() else (float(box[0]), width - float(box[2]))
    room = max(left, right) - 2 * margin
    wide = round(room) if wished * 0.5 <= room < wished else wished
    x0 = margin if box is not None and left > right else width - margin - wide
    return x0, margin, x0 + wide, margin + tall


def _panel(out: np.ndarray, box: np.ndarray | None, values: dict[str, float], base: dict[str, float], unit: float) -> None:
    x0, y0, x1, y1 = panel_area(out.shape, box, len(values), unit)
    region = out[y0:y1, x0:x1]
    region[:] = (region * 0.4 + np.array([10, 10, 12])).astype(np.uint8)
    row = (y1 - y0) / len(values)
    label, number = 0.3 * (x1 - x0), 0.17 * (x1 - x0)
    start, end = x0 + label, x1 - number
    size = max(row * 0.55, 4.0)
    for i, (au, value) in enumerate(values.items()):
        top, bottom = y0 + row * (i + 0.22), y0 + row * (i + 0.8)
        _put(out, au, x0 + 0.03 * (x1 - x0), bottom, size, _TEXT, 0.9 * label)
        cv2.rectangle(out, (round(start), round(top)), (round(end), round(bottom)), _TRACK, -1)
        if np.isfinite(value):
            level = start + (end - start) * float(np.clip(value / MAX_INTENSITY, 0, 1))
            if round(level) > round(start):
                cv2.rectangle(out, (round(start), round(top)), (round(level), round(bottom)), _BAR, -1)
            _put(out, f"{value:.1f}", end + 0.2 * number, bottom, size, _TEXT, 0.75 * number)
        if np.isfinite(base.get(au, np.nan)):
            tick = round(start + (end - start) * float(np.clip(base[au] / MAX_INTENSITY, 0, 1)))
            half = max(round(unit), 1)
            cv2.rectangle(out, (tick - half // 2, round(top - 1)), (tick + half // 2, round(bottom + 1)), _TICK, -1)
