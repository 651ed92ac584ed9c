"""The overlay: what moves with the values, what stays untouched."""

from __future__ import annotations

import numpy as np
import pytest

from personalize import overlay
from personalize.aus import COLUMNS


@pytest.mark.parametrize("size", [(320, 240), (641, 361), (3840, 2160)])
def test_draws_at_any_size_and_leaves_the_input(size: tuple[int, int]) -> None:
    frame = np.full((size[1], size[0], 3), 120, np.uint8)
    box = np.array([size[0] * 0.1, size[1] * 0.2, size[0] * 0.4, size[1] * 0.8])
    out = overlay.draw(frame, box, "Zoë", dict.fromkeys(COLUMNS, 2.5), dict.fromkeys(COLUMNS, 1.0))
    assert out.shape == frame.shape and out.dtype == np.uint8
    assert (frame == 120).all() and (out != 120).any()
    face = out[int(size[1] * 0.3) : int(size[1] * 0.7), int(size[0] * 0.13) : int(size[0] * 0.37)]
    assert (face == 120).all()  # the panel stands on the side with room


def test_bars_grow_with_the_value() -> None:
    frame = np.zeros((360, 640, 3), np.uint8)

    def blue(value: float) -> int:
        out = overlay.draw(frame, None, "", {"AU12": value})
        return int((out == overlay._BAR).all(-1).sum())

    none, half, full, over = blue(0.0), blue(2.5), blue(5.0), blue(9.0)
    assert none == 0 and half == pytest.approx(full / 2, rel=0.05) and over == full
    assert blue(float("nan")) == 0


def test_base_is_a_tick_at_its_value() -> None:
    frame = np.zeros((360, 640, 3), np.uint8)

    def middle(value: float) -> float:
        out = overlay.draw(frame, None, "", {"AU12": 0.0}, {"AU12": value})
        return float(np.nonzero((out == overlay._TICK).all(-1))[1].mean())

    assert middle(2.5) == pytest.approx((middle(0.0) + middle(5.0)) / 2, abs=1.0)
    assert middle(5.0) - middle(0.0) > 40


def test_panel_goes_to_the_wider_side() -> None:
    left = overlay.panel_area((360, 640), np.array([10, 50, 200, 300]), 22, 1.0)
    right = overlay.panel_area((360, 640), np.array([400, 50, 600, 300]), 22, 1.0)
    assert left[0] > 200 and right[2] < 400


def test_face_outside_the_frame_and_no_values() -> None:
    frame = np.zeros((240, 320, 3), np.uint8)
    assert overlay.draw(frame, np.array([-50.0, -50, 900, 900]), "x", {}).shape == frame.shape
    assert (overlay.draw(frame, None, "x", {}) == 0).all()
