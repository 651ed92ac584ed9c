"""Pose, normalisation and crop against SciPy's rotations and closed forms."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from personalize import geometry

ANGLES = [(0.0, 0.0, 0.0), (0.3, -0.5, 0.2), (-0.4, 0.7, -0.6), (0.1, 1.1, 0.0), (0.0, 0.0, 1.4)]


def posed(angles: tuple[float, float, float], scale: float = 83.0, shift: tuple[float, float, float] = (310.0, 190.0, 12.0)) -> np.ndarray:
    """Canonical points turned by SciPy: intrinsic XYZ is R = Rx Ry Rz."""
    return scale * Rotation.from_euler("XYZ", angles).apply(geometry.canonical()) + shift


def test_canonical_axes_and_unit() -> None:
    face = geometry.canonical()
    assert face.shape == (478, 3) and face.dtype == np.float32
    assert np.linalg.norm(face[33] - face[263]) == pytest.approx(1, abs=1e-6)
    assert face[[33, 133, 263, 362]].mean(0) == pytest.approx([0, 0, 0], abs=1e-6)
    nose, chin, brow, ear = face[1], face[152], face[105], face[127]
    assert chin[1] > nose[1] > 0 > brow[1]  # y down
    assert nose[2] < 0 < ear[2]  # z away from the camera
    assert face[33, 0] < 0 < face[263, 0]  # the subject's right eye is at the image's left
    assert np.linalg.norm(face[469:473] - face[468], axis=1) == pytest.approx(0.065, abs=0.004)


@pytest.mark.parametrize("angles", ANGLES)
def test_pose_from_3d_points(angles: tuple[float, float, float]) -> None:
    pose = geometry.fit_pose(posed(angles))
    assert pose.angles == pytest.approx(angles, abs=1e-5)
    assert pose.scale == pytest.approx(83.0, rel=1e-5)
    assert pose.translation == pytest.approx([310, 190, 12], abs=1e-3)
    assert np.abs(geometry.normalise(posed(angles), pose) - geometry.canonical()).max() < 1e-4
    assert geometry.project(geometry.canonical(), pose) == pytest.approx(posed(angles), abs=1e-2)


@pytest.mark.parametrize("angles", ANGLES)
@pytest.mark.parametrize("scheme", ["mesh478", "ibug68"])
def test_pose_from_2d_points(angles: tuple[float, float, float], scheme: str) -> None:
    points = posed(angles)
    if scheme == "ibug68":
        points = points[list(geometry.IBUG_TO_MESH)]
    points[:, 2] = np.nan
    pose = geometry.fit_pose(points, scheme)
    assert pose.angles == pytest.approx(angles, abs=2e-4)
    assert pose.scale == pytest.approx(83.0, rel=1e-4)
    assert pose.translation[:2] == pytest.approx([310, 190], abs=0.05)
    assert np.isnan(pose.translation[2])


def test_angles_are_openface_signs() -> None:
    """Nose down: positive Rx; nose to the image's left: positive Ry; clockwise in the image: positive Rz."""
    nose = geometry.canonical()[1] - geometry.canonical()[168]

    def nose_moves(angles: tuple[float, float, float]) -> np.ndarray:
        return Rotation.from_euler("XYZ", angles).apply(nose) - nose

    assert nose_moves((0.3, 0, 0))[1] > 0 and geometry.fit_pose(posed((0.3, 0, 0))).angles[0] > 0
    assert nose_moves((0, 0.3, 0))[0] < 0 and geometry.fit_pose(posed((0, 0.3, 0))).angles[1] > 0
    right = posed((0, 0, 0.3))[263] - posed((0, 0, 0.3))[33]
    assert right[1] > 0 and geometry.fit_pose(posed((0, 0, 0.3))).angles[2] > 0


def test_matrix_and_angles_agree_with_scipy(rng: np.random.Generator | None = None) -> None:
    rng = np.random.default_rng(3)
    for angles in rng.uniform(-1.5, 1.5, (20, 3)):
        matrix = Rotation.from_euler("XYZ", angles).as_matrix()
        assert geometry.rotation_matrix(*angles) == pytest.approx(matrix)
        assert geometry.angles(matrix) == pytest.approx(angles)


def test_upright_angles_are_those_of_the_crop() -> None:
    """What a pose fitted to the points of the aligned crop has, whatever the tilt; and back."""
    rng = np.random.default_rng(2)
    for pitch, yaw, roll in np.radians(np.column_stack([rng.uniform(-40, 40, (60, 2)), rng.uniform(-179, 179, 60)])):
        rotation = geometry.rotation_matrix(pitch, yaw, roll)
        pose = geometry.fit_pose((geometry.canonical() @ rotation.T * 80 + [200, 150, 0]).astype(np.float32))
        found = geometry.upright(pose.angles)
        linear = geometry.window(pose)[:, :2]
        back = np.eye(3)
        back[:2, :2] = (linear / np.hypot(*linear[:, 0])).T
        assert Rotation.from_matrix(back @ rotation).as_euler("XYZ")[:2] == pytest.approx(found[:2], abs=1e-4)
        assert geometry.rotation_matrix(*geometry.tilted(*found)) == pytest.approx(rotation, abs=1e-4)
    assert geometry.upright((0.1, 0.0, 0.0)) == pytest.approx((0.1, 0, 0)) and geometry.upright((0, 0, 1.2)) == pytest.approx((0, 0, 1.2))


@pytest.mark.parametrize("dims", [2, 3])
def test_mouth_jaw_and_brows_do_not_move_the_pose(dims: int) -> None:
    points = posed((0.1, 0.2, 0.1))
    canonical = geometry.canonical()
    points[canonical[:, 1] > 0.62] += (0, 15, 0)  # jaw drop
    points[[105, 66, 107, 334, 296, 336, 55, 285, 65, 295]] -= (0, 8, 0)
    pose = geometry.fit_pose(points[:, :dims] if dims == 2 else points)
    assert np.degrees(pose.angles) == pytest.approx(np.degrees([0.1, 0.2, 0.1]), abs=1.0)


def test_noise_moves_the_angles_little() -> None:
    rng = np.random.default_rng(0)
    found = [geometry.fit_pose(posed((0.2, -0.3, 0.1)) + rng.normal(0, 1.0, (478, 3))).angles for _ in range(50)]
    assert np.degrees(np.std(found, axis=0)).max() < 0.6
    assert np.degrees(np.mean(found, axis=0)) == pytest.approx(np.degrees([0.2, -0.3, 0.1]), abs=0.3)


def test_wrong_points_raise() -> None:
    with pytest.raises(ValueError, match="mesh478 has 478 landmarks, got 68"):
        geometry.fit_pose(np.zeros((68, 3)))
    with pytest.raises(ValueError, match="unknown landmark scheme 'dlib'"):
        geometry.fit_pose(np.zeros((68, 3)), "dlib")
    with pytest.raises(ValueError, match="no extent"):
        geometry.fit_pose(np.zeros((478, 3)))


@pytest.mark.parametrize("scale", [30.0, 51.0, 140.0, 700.0])
def test_crop_and_to_frame_agree(scale: float) -> None:
    """A picture whose colours are its coordinates: each crop pixel must show the frame place that to_frame names."""
    side = int(scale * 4)
    ys, xs = np.mgrid[:side, :side].astype(np.float64)
    image = np.stack([xs * 255 / side, ys * 255 / side, np.zeros_like(xs)], -1).round().astype(np.uint8)
    pose = geometry.fit_pose(posed((0.1, 0.2, 0.4), scale, (side * 0.5, side * 0.38, 0)))
    crop, to_frame = geometry.crop(image, pose)
    assert crop.shape == (112, 112, 3) and crop.dtype == np.uint8 and to_frame.shape == (2, 3)
    v, u = np.mgrid[5:107:17, 5:107:17]
    where = np.stack([u.ravel(), v.ravel(), np.ones(u.size)]).T @ to_frame.T
    shown = crop[v.ravel(), u.ravel(), :2] * (side / 255)
    inside = ((where > 2) & (where < side - 3)).all(1)
    assert inside.sum() > 20
    assert np.abs(shown - where)[inside].max() < 0.9 * side / 255 + 0.1


def test_crop_is_upright_and_holds_the_face() -> None:
    pose = geometry.fit_pose(posed((0, 0, 0.8)))
    to_frame = geometry.window(pose)
    inverse = np.linalg.inv(np.vstack([to_frame, [0, 0, 1]]))
    points = np.hstack([posed((0, 0, 0.8))[:, :2], np.ones((478, 1))]) @ inverse[:2].T
    assert points[33, 1] == pytest.approx(points[263, 1], abs=0.2)
    assert points[263, 0] - points[33, 0] == pytest.approx(112 / geometry.WINDOW, abs=0.1)
    assert (points[[105, 334, 152, 61, 291]] > 5).all() and (points[[105, 334, 152, 61, 291]] < 111).all()


def test_minified_crops_do_not_alias() -> None:
    image = np.zeros((1200, 1200, 3), np.uint8)
    image[::2] = 255  # one-pixel lines: their mean is grey
    crop, _ = geometry.crop(image, geometry.fit_pose(posed((0, 0, 0), 400, (600, 500, 0))))
    assert np.abs(crop[8:-8].astype(int) - 127).max() <= 30 and crop.std() < 12


def test_fit_is_quick() -> None:
    points = posed((0.1, 0.2, 0.3))
    for given in (points, points[:, :2]):
        best = 1e9
        for _ in range(20):
            start = time.perf_counter()
            geometry.fit_pose(given)
            best = min(best, time.perf_counter() - start)
        assert best < 1.5e-3  # 0.1 and 0.3 ms on an idle core
