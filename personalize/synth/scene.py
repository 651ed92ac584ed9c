"""Where a synthetic person is filmed: light, camera, background, things in front, and what cameras and codecs do to a picture."""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import warp as wp
from PIL import Image

from .person import Person
from .render import Look


@dataclass
class Scene:
    """Light and camera of one clip. Directions point towards the light in camera axes; colours are linear.

    distance: mm. face_share: height of the face over the height of the picture. offset: (2,) of the picture's size. exposure: the lightness
    (sRGB, 0-1) that the camera aims at. background_seed: also chooses the colour of the clothes.
    """

    key: np.ndarray
    key_colour: np.ndarray
    fill: np.ndarray
    fill_colour: np.ndarray
    above: np.ndarray
    below: np.ndarray
    shadow: float
    softness: float
    distance: float
    face_share: float
    offset: np.ndarray
    exposure: float
    background_seed: int

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Scene:
        """A random scene: soft to hard light from all sides, warm to cold."""

        def direction(azimuth: float, height: float) -> np.ndarray:
            return np.array([np.sin(azimuth) * np.cos(height), -np.sin(height), -np.cos(azimuth) * np.cos(height)])

        def tint(spread: float) -> np.ndarray:
            warm = rng.normal(0, spread)
            return np.array([1 + warm, 1 + rng.normal(0, spread * 0.25), 1 - warm]).clip(0.4, 1.7)

        hard = rng.random()
        height = rng.uniform(-0.1, 1.1) if rng.random() < 0.9 else rng.uniform(-0.9, -0.1)
        strength = rng.uniform(0.2, 1.1)
        ambient = rng.uniform(0.25, 0.75)
        return cls(
            key=direction(rng.normal(0, 0.8), height),
            key_colour=strength * tint(0.12),
            fill=direction(rng.uniform(-1.6, 1.6), rng.uniform(-0.3, 0.8)),
            fill_colour=rng.uniform(0.0, 0.35) * tint(0.18),
            above=ambient * rng.uniform(0.7, 1.2) * tint(0.1),
            below=ambient * rng.uniform(0.3, 0.9) * tint(0.1),
            shadow=float(hard * 0.9),
            softness=float((1 - hard) * 0.35),
            distance=float(rng.uniform(380, 1400)),
            face_share=float(rng.uniform(0.55, 0.82)),
            offset=rng.normal(0, 0.03, 2),
            exposure=float(np.clip(rng.normal(0.52, 0.11), 0.25, 0.8)),
            background_seed=int(rng.integers(1 << 31)),
        )

    def camera(self, size: int) -> tuple[np.ndarray, float]:
        """Translation of the head (3,) in mm and focal length in pixels of a picture of ``size`` pixels."""
        focal = self.face_share * size * self.distance / 185.0
        shift = self.offset * size * self.distance / focal
        return np.array([shift[0], shift[1] - 22.0, self.distance], np.float32), float(focal)

    def look(self, person: Person, rotation: np.ndarray, gaze: np.ndarray) -> Look:
        """The shader's inputs for one frame. rotation: (3, 3) head to camera; gaze: (2,) radians right and down, in head axes."""
        look = Look()
        look.rotation = wp.mat33(*rotation.astype(float).ravel())

        def vec(values: np.ndarray) -> wp.vec3:
            return wp.vec3(*(float(x) for x in values))

        look.key, look.fill = vec(self.key), vec(self.fill)
        look.key_colour, look.fill_colour = vec(self.key_colour), vec(self.fill_colour)
        look.above, look.below = vec(self.above), vec(self.below)
        look.shadow, look.softness = self.shadow, self.softness
        look.gloss, look.shine = person.gloss, person.shine
        look.iris = vec(person.iris)
        direction = vec(np.array([np.sin(gaze[0]), np.sin(gaze[1]), -np.cos(gaze[0]) * np.cos(gaze[1])]))
        look.gaze_left = look.gaze_right = direction
        look.eye_left, look.eye_right = vec(person.eyes[0]), vec(person.eyes[1])
        look.pupil, look.iris_edge = float(np.cos(0.15)), float(np.cos(0.37))
        rng = np.random.default_rng(self.background_seed + 5)
        look.cloth, look.neckline = vec(rng.uniform(0.01, 0.6, 3)), person.neckline
        look.teeth, look.frame, look.hair = vec(person.teeth), vec(person.frame), vec(person.hair)
        look.relief = 1.0
        return look

    def background(self, size: int) -> np.ndarray:
        """(size, size, 3) linear: gradients, shapes and texture, out of focus."""
        rng = np.random.default_rng(self.background_seed)
        small = 48
        grey = float(rng.uniform(0, 1))
        y, x = np.mgrid[:small, :small].astype(np.float32) / small
        a, b, c = rng.uniform(0.02, 0.7, (3, 3))
        image = a + (b - a) * y[..., None] + (c - a) * x[..., None] * 0.5
        for _ in range(int(rng.integers(0, 7))):
            colour = rng.uniform(0.01, 0.9, 3)
            p, q = rng.uniform(0, small, (2, 2))
            if rng.random() < 0.5:
                cv2.rectangle(image, tuple(int(v) for v in p), tuple(int(v) for v in q), colour.tolist(), -1)
            else:
                cv2.circle(image, tuple(int(v) for v in p), int(rng.uniform(2, 16)), colour.tolist(), -1)
        image = image.mean(-1, keepdims=True) * grey + image * (1 - grey)
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 4)))
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
        image = image * (1 + rng.uniform(0, 0.08) * rng.normal(0, 1, (size, size, 1)))
        return np.asarray(image.clip(0.0, 1.2), np.float32)


def expose(linear: np.ndarray, alpha: np.ndarray, target: float) -> np.ndarray:
    """A camera's exposure: scale so that the face's mean lightness comes two thirds of the way to ``target`` (sRGB 0-1)."""
    face = linear[alpha > 0.5]
    mean = float(face.mean()) if len(face) else 0.3
    wanted = max(target, 0.05) ** 2.2
    return np.asarray(linear * (wanted / max(mean, 1e-3)) ** 0.67, np.float32)


def occlude(image: np.ndarray, rng: np.random.Generator, centre: tuple[float, float], extent: float) -> np.ndarray:
    """Something in front of the face: a hand-like blob, a cup, a microphone, a strand. image: uint8, changed in place."""
    size = image.shape[0]
    mask = np.zeros((size, size), np.uint8)
    x, y = centre[0] + rng.normal(0, 0.35) * extent, centre[1] + rng.uniform(-0.3, 0.8) * extent
    if rng.random() < 0.6:
        direction = rng.uniform(0, np.pi)
        for i in range(int(rng.integers(1, 5))):
            shift = (i - 1.5) * extent * 0.13
            p = (x + shift * np.cos(direction), y + shift * np.sin(direction))
            q = (p[0] + np.sin(direction) * extent * 0.8, p[1] + abs(np.cos(direction)) * extent * 0.9)
            cv2.line(mask, tuple(int(v) for v in p), tuple(int(v) for v in q), 255, max(int(extent * 0.13), 2), cv2.LINE_AA)
        colour = np.array([200, 150, 125]) * rng.uniform(0.25, 1.1)
    else:
        cv2.ellipse(
            mask,
            (int(x), int(y)),
            (int(extent * rng.uniform(0.1, 0.4)), int(extent * rng.uniform(0.1, 0.4))),
            float(rng.uniform(0, 180)),
            0,
            360,
            255,
            -1,
            cv2.LINE_AA,
        )
        colour = rng.uniform(5, 250, 3)
    soft = cv2.GaussianBlur(mask, (0, 0), 0.8)[..., None] / 255.0
    shade = np.clip(colour * (1 + 0.2 * np.linspace(-1, 1, size)[:, None, None]) + rng.normal(0, 4, image.shape), 0, 255)
    image[:] = (image * (1 - soft) + shade * soft).astype(np.uint8)
    return image


def degrade(image: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """What cameras, codecs and networks do: blur, motion, low resolution down to a third, noise, colour, grey, JPEG. image: uint8 RGB."""
    out: np.ndarray = image.astype(np.float32)
    size = image.shape[0]
    if rng.random() < 0.35 * strength:
        out = cv2.GaussianBlur(out, (0, 0), float(rng.uniform(0.3, 1.3)))
    if rng.random() < 0.12 * strength:
        length = int(rng.integers(3, 8))
        kernel = np.zeros((length, length), np.float32)
        cv2.line(kernel, (0, int(rng.integers(length))), (length - 1, int(rng.integers(length))), 1.0, 1)
        out = cv2.filter2D(out, -1, kernel / kernel.sum())
    if rng.random() < 0.25 * strength:
        small = int(size * rng.uniform(0.36, 0.9))
        out = cv2.resize(
            cv2.resize(out, (small, small), interpolation=cv2.INTER_AREA),
            (size, size),
            interpolation=int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC])),
        )
    if rng.random() < 0.6:
        gamma, contrast, lift = np.exp(rng.normal(0, 0.18)), rng.uniform(0.8, 1.2), rng.normal(0, 8)
        out = 255 * (np.clip(out / 255, 0, 1) ** gamma)
        out = (out - 128) * contrast + 128 + lift
        out *= np.exp(rng.normal(0, 0.05, 3))
    if rng.random() < 0.12:
        out = out.mean(-1, keepdims=True).repeat(3, -1)
    elif rng.random() < 0.5:
        grey = out.mean(-1, keepdims=True)
        out = grey + (out - grey) * rng.uniform(0.5, 1.4)
    if rng.random() < 0.5 * strength:
        noise = rng.normal(0, 1, out.shape[:2] + (1,)) * rng.uniform(0, 7) + rng.normal(0, 1, out.shape) * rng.uniform(0, 5)
        if rng.random() < 0.3:
            noise = cv2.GaussianBlur(noise.astype(np.float32), (0, 0), 0.8).reshape(out.shape) * 1.6
        out = out + noise
    out = np.clip(out, 0, 255).astype(np.uint8)
    if rng.random() < 0.7:
        buffer = io.BytesIO()
        Image.fromarray(out).save(buffer, "JPEG", quality=int(rng.uniform(25, 95)), subsampling=int(rng.choice([0, 2])))
        out = np.array(Image.open(buffer))
    return out


def stack_views(values: list[np.ndarray]) -> torch.Tensor:
    """Arrays of equal shape to one float tensor."""
    return torch.from_numpy(np.stack(values).astype(np.float32))
