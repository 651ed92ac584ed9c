"""pix2pix as published, trained on the clip's own frames: landmark lines in, the face out; and the same with AU maps beside the lines.

The anchors that a later generator has to beat. Everything but the picture itself is :class:`MeshWarp`'s: which frame a request starts from,
how far the landmarks move for the asked AUs, what the label says and which AUs it speaks of. The networks are in ``_gan``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import Module, functional
from torch.optim import Adam

from personalize import ui
from personalize.aus import AUS, MAX_INTENSITY
from personalize.errors import ConfigError, InputError
from personalize.geometry import IBUG_TO_MESH
from personalize.identity import Identity
from personalize_plugins.generators import _gan
from personalize_plugins.generators.mesh_warp import _OVAL, SHOWN, MeshWarp, _Source

LEAST_FRAMES = 8
"""With fewer usable frames of the clip there is nothing to train on."""
JITTER = 30 / 256
"""Room for the random crops, as a share of the size: 286 pixels cut to 256 (Isola et al., 2017, section 6.2)."""
Judge = Callable[[Tensor], _gan.Features]
"""A discriminator, as it is trained."""
_NOSE = (IBUG_TO_MESH[27:31], IBUG_TO_MESH[31:36])
_FRACTION = 4  # bits of sub-pixel places in OpenCV's drawing


@dataclass
class Frames:
    """The clip's frames as a network learns from them, N of them, in the person's view at the plug-in's size.

    images: (N, S, S, 3) uint8. points: (N, 478, 3) view pixels. aus: (N, K) float32 0-1, intensity above the neutral over 5.
    """

    images: np.ndarray
    points: np.ndarray
    aus: np.ndarray


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The same random numbers of torch, and the same CUDA kernels, inside; the state outside is left as it was."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        torch.manual_seed(seed)
        yield


def device() -> torch.device:
    """Where the networks run: the first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def _lines() -> tuple[np.ndarray, np.ndarray]:
    """(E, 2) pairs of mesh points to join, and (E,) the channel that each is drawn in."""
    # The tracker's own tables; imported late, as it takes a second.
    from mediapipe.tasks.python.vision.face_landmarker import FaceLandmarksConnections as Table

    lips = [(c.start, c.end) for c in Table.FACE_LANDMARKS_LIPS]
    eyes = [(c.start, c.end) for c in (*Table.FACE_LANDMARKS_LEFT_EYE, *Table.FACE_LANDMARKS_RIGHT_EYE)]
    brows = [(c.start, c.end) for c in (*Table.FACE_LANDMARKS_LEFT_EYEBROW, *Table.FACE_LANDMARKS_RIGHT_EYEBROW)]
    rest = [(c.start, c.end) for c in Table.FACE_LANDMARKS_FACE_OVAL]
    rest += [pair for chain in _NOSE for pair in zip(chain, chain[1:], strict=False)]
    groups = (rest, eyes + brows, lips)
    return np.array([pair for group in groups for pair in group]), np.repeat(np.arange(3), [len(g) for g in groups])


def landmark_map(points: np.ndarray, size: int, margin: int = 0) -> np.ndarray:
    """The contour lines of the mesh on black, drawn to a sixteenth of a pixel.

    Face and nose are in the first channel, eyes and brows in the second, lips in the third. points: (478, 2 or 3) pixels of a picture of
    ``size``; margin: pixels to add around it. Returns (size + 2 margin, size + 2 margin, 3) uint8.
    """
    pairs, channel = _lines()
    places = np.round((points[:, :2] + margin) * 2**_FRACTION).astype(np.int32)
    side = size + 2 * margin
    drawn = []
    for group in range(3):
        canvas = np.zeros((side, side), np.uint8)
        cv2.polylines(canvas, list(places[pairs[channel == group]]), False, 255, 1, cv2.LINE_AA, _FRACTION)
        drawn.append(canvas)
    return np.dstack(drawn)


def region(size: int, *points: np.ndarray) -> np.ndarray:
    """(size, size, 1) float32: 1 inside the outline of the face in all of these (478, 2 or 3) points, fading to 0 just outside."""
    outline = np.concatenate([p[_OVAL, :2] for p in points])
    mask = np.zeros((size, size), np.uint8)
    hull = cv2.convexHull(np.round(outline * 2**_FRACTION).astype(np.int32))
    cv2.fillConvexPoly(mask, hull, 255, cv2.LINE_AA, _FRACTION)
    reach = max(size // 32, 1)
    grown = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1)))
    soft = cv2.GaussianBlur(grown, (0, 0), reach / 2).astype(np.float32) / 255
    return np.asarray(soft[..., None])


def to_tensor(images: np.ndarray | Tensor) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float in -1..1."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_image(picture: Tensor) -> np.ndarray:
    """(3, H, W) in -1..1 to (H, W, 3) float32 in 0..255."""
    return np.asarray(((picture.detach().float().cpu() + 1) * 127.5).permute(1, 2, 0).numpy())


def network_size(size: int) -> int:
    """The side that the networks can take: the largest of 64, 128, 256, 512 that is not above ``size``. Raises ConfigError below 64."""
    if size < 64:
        raise ConfigError(f"generator option size must be at least 64, got {size}")
    return min(1 << (size.bit_length() - 1), 512)


def check_positive(**options: float) -> None:
    """Raises ConfigError for the first option that is not above 0."""
    for name, value in options.items():
        if not value > 0:
            raise ConfigError(f"generator option {name} must be above 0, got {value:g}")


class ClipGAN(MeshWarp):
    """What the anchors share: a network trained on the clip's own frames draws the face, :class:`MeshWarp` does the rest.

    A plug-in gives ``_fit`` and ``_draw``. Strengths are answered as they are asked, without mesh_warp's random gains.
    """

    name = "gan"
    trains_on_clip = True

    def __init__(self, size: int, max_yaw_change: float) -> None:
        super().__init__(size=network_size(size), max_yaw_change=max_yaw_change, shading=False, gain_spread=0.0)

    def prepare(self, identity: Identity, seed: int) -> None:
        """Train on the frames that mesh_warp can use: those with a view, mesh landmarks with depth and enough quality.

        Raises InputError where there are fewer than 8.
        """
        super().prepare(identity, seed)
        frames = self._frames(identity)
        with seeded(seed):
            self._fit(frames, np.random.default_rng([seed, 170]))

    @abstractmethod
    def _fit(self, frames: Frames, rng: np.random.Generator) -> None:
        """Train the network. Torch is seeded; every other random number comes from rng."""

    @abstractmethod
    def _draw(self, source: _Source, points: np.ndarray, aus: np.ndarray) -> np.ndarray:
        """(S, S, 3) float32 in 0..255. points: (478, 3) view pixels where the face is to be; aus: (K,) 0-1. Torch is seeded."""

    def _frames(self, identity: Identity) -> Frames:
        shown = np.clip(identity.intensity - self._resting(identity), 0, None).astype(np.float32)
        usable = self._usable(identity)
        if len(usable) < LEAST_FRAMES:
            raise InputError(
                f"{self.name} learns from the clip's own frames: it needs at least {LEAST_FRAMES} with a face and a mesh of landmarks, and "
                f"{identity.name} has {len(usable)}. Film longer, or use --generator mesh_warp."
            )
        found = [self._source(identity, i, shown[i]) for i in usable]
        aus = np.clip(shown[usable] / MAX_INTENSITY, 0, 1)
        return Frames(np.stack([f.image for f in found]), np.stack([f.points for f in found]), aus)

    def _moved(self, source: _Source, strength: np.ndarray, jaw: float, part: float, turn: tuple[float, float]) -> np.ndarray:
        """(478, 3) view pixels: the source's landmarks with the AUs' displacement added and the head turned, as mesh_warp moves them."""
        return np.asarray(self._motion(source, strength, jaw, part, turn)[-1], np.float32)

    def render(
        self, source: _Source, strength: np.ndarray, jaw: float, part: float, turn: tuple[float, float], rng: np.random.Generator
    ) -> np.ndarray:
        """(S, S, 3) uint8: the source's view with the face drawn anew. Arguments as :meth:`MeshWarp.render`."""
        points = self._moved(source, strength, jaw, part, turn)
        shown = np.where(source.shown >= SHOWN, source.shown, 0.0)
        aus = np.clip((shown + strength.mean(0)) / MAX_INTENSITY, 0, 1).astype(np.float32)
        with seeded(int(rng.integers(2**31))), torch.no_grad():
            made = self._draw(source, points, aus)
        mask = region(self.size, source.points, points)
        mixed = mask * made + (1 - mask) * source.image
        return np.asarray(np.clip(np.round(mixed), 0, 255), np.uint8)


class LandmarkGAN(ClipGAN):
    """What pix2pix and pix2pixHD share: the condition is a landmark map, with AU maps beside it where ``au_maps`` says so."""

    au_maps = False

    @property
    def learns_from_base(self) -> bool:
        """Where AU maps are given, which hold what the base reads."""
        return self.au_maps

    def _conditions(self, points: np.ndarray, aus: np.ndarray, margin: int = 0) -> Tensor:
        """(1, 3, S, S), with AU maps (1, 3 + K, S, S): what the generator is given. aus: (K,) 0-1."""
        lines = to_tensor(landmark_map(points, self.size, margin)[None])
        return self._beside(lines, torch.from_numpy(np.asarray(aus, np.float32))[None])

    def _beside(self, lines: Tensor, aus: Tensor) -> Tensor:
        return torch.cat([lines, _gan.planes(aus, lines.shape[-2:])], 1) if self.au_maps else lines

    @property
    def channels(self) -> int:
        """Of the condition."""
        return 3 + len(AUS) * self.au_maps

    def _pairs(self, frames: Frames, steps: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """``steps`` pairs of condition (1, C, S, S) and picture (1, 3, S, S), in shuffled passes over the frames.

        Every pair is cut at a random place from picture and map with their edges continued. The paper enlarges instead: here the face must
        keep the scale of the views. Nothing is mirrored, as nobody's face is the same on both sides.
        """
        margin = round(self.size * JITTER / 2)
        around = ((0, 0), (margin, margin), (margin, margin), (0, 0))
        # bytes: as floats the frames of a long clip would not fit into memory
        images = torch.from_numpy(np.pad(frames.images, around, mode="edge")).to(device())
        maps = torch.from_numpy(np.stack([landmark_map(p, self.size, margin) for p in frames.points])).to(device())
        aus = torch.from_numpy(frames.aus).to(device())
        order: list[int] = []
        for _ in range(steps):
            order = order or rng.permutation(len(images)).tolist()
            i = [order.pop()]
            y, x = (int(v) for v in rng.integers(0, 2 * margin + 1, 2))
            cut = (slice(None), slice(y, y + self.size), slice(x, x + self.size))
            yield self._beside(to_tensor(maps[i][cut]), aus[i]), to_tensor(images[i][cut])

    def _draw(self, source: _Source, points: np.ndarray, aus: np.ndarray) -> np.ndarray:
        return to_image(self._net(self._conditions(points, aus).to(device()))[0])

    _net: Module


class Pix2Pix(LandmarkGAN):
    """pix2pix on landmark maps, trained on the clip's own frames (Isola et al., CVPR 2017): the anchor as published.

    U-Net with skips, 70x70 PatchGAN, cross entropy + 100 L1 (equation 4; half of the discriminator's loss), Adam 2e-4 with beta1 0.5, batch
    size 1, dropout as noise in training and in pictures alike, a random crop of each frame (section 3 and 6.2). It is conditioned on
    landmarks alone; those of a request are the source frame's, moved as mesh_warp moves them. AU6 and AU17 hardly move any, and no pose can
    be drawn that the clip lacks: this is what it is here to show.

    The paper takes 200 passes over 400 pictures; ``steps`` bounds the time instead (docs/anchors.md says how long they take).

    Args:
        size: side of the pictures in pixels: 64, 128, 256 or 512; others are rounded down to these.
        steps: pictures to train with.
        lr: learning rate of both networks.
        l1_weight: weight of L1 beside the GAN loss of 1.
        ngf: width of both networks; the paper has 64.
        max_yaw_change: degrees that a frame may be turned, pitch and yaw alike; requests further from every frame are refused.
        bfloat16: train the networks in bfloat16, faster on processors that know it (AVX512-BF16, AMX; GPUs) and slower on others.
    """

    name = "pix2pix"

    def __init__(
        self,
        size: int = 128,
        steps: int = 3000,
        lr: float = 2e-4,
        l1_weight: float = 100.0,
        ngf: int = 64,
        max_yaw_change: float = 15.0,
        bfloat16: bool = False,
    ) -> None:
        super().__init__(size, max_yaw_change)
        check_positive(steps=steps, lr=lr, ngf=ngf)
        if l1_weight < 0:
            raise ConfigError(f"generator option l1_weight must not be negative, got {l1_weight:g}")
        self.steps, self.lr, self.l1_weight, self.ngf, self.bfloat16 = steps, lr, l1_weight, ngf, bfloat16

    def _fit(self, frames: Frames, rng: np.random.Generator) -> None:
        net = _gan.UNet(self.channels, 3, self.size, self.ngf).to(device())
        judge = _gan.PatchGAN(self.channels + 3, self.ngf).to(device())
        ours, theirs = adams(self.lr, net, judge)
        draw, look = _gan.Mixed(net, self.bfloat16), _gan.Mixed(judge, self.bfloat16)
        for given, real in ui.progress(self._pairs(frames, self.steps, rng), self.steps, f"Training {self.name}"):
            made = draw(given)
            descend(theirs, discriminator_loss(look, given, real, made))
            with at_rest(judge):
                descend(ours, generator_loss(look, given, real, made, self.l1_weight))
        self._net = net.requires_grad_(False)


def adams(lr: float, *nets: Module) -> list[Adam]:
    """The papers' optimizer for each network: Adam with beta1 0.5. Fused: at batch size 1 the weights are most of the work."""
    return [Adam(net.parameters(), lr, (0.5, 0.999), fused=True) for net in nets]


def descend(optimizer: Adam, loss: Tensor) -> None:
    """One step down the loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@contextmanager
def at_rest(judge: Module) -> Iterator[None]:
    """A network whose gradients nobody wants inside: those of the picture go through it, its weights' are not computed."""
    judge.requires_grad_(False)
    try:
        yield
    finally:
        judge.requires_grad_(True)


def both(given: Tensor, real: Tensor, made: Tensor) -> Tensor:
    """What the discriminator learns from, in one batch: its weights are read once. First the real pairs, then those made, held fast."""
    return torch.cat([torch.cat([given, real], 1), torch.cat([given, made.detach()], 1)])


def discriminator_loss(judge: Judge, given: Tensor, real: Tensor, made: Tensor) -> Tensor:
    """Half of Isola et al. (2017), equation 1, for the discriminator (section 3.3). All (B, C, H, W)."""
    right, wrong = judge(both(given, real, made))[-1].chunk(2)
    return 0.5 * (_gan.gan_loss(right, True) + _gan.gan_loss(wrong, False))


def generator_loss(judge: Judge, given: Tensor, real: Tensor, made: Tensor, l1_weight: float = 100.0) -> Tensor:
    """Isola et al. (2017), equation 4, for the generator: ``-log D(x, G(x)) + l1_weight |y - G(x)|``."""
    fooled = _gan.gan_loss(judge(torch.cat([given, made], 1))[-1], True)
    return fooled + l1_weight * functional.l1_loss(made, real)


class Pix2PixAU(Pix2Pix):
    """pix2pix on landmark and AU maps: beside the lines one constant plane for each AU.

    The planes hold intensity / 5: in training what the base model reads in the frame above the person's resting face, in a picture what was
    asked for (AUs not named: 0, or what the source frame shows of them).
    """

    name = "pix2pix_au"
    au_maps = True
