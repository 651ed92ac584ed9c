"""Where a synthetic person is filmed: light, camera, background, things in front, and what cameras and codecs do to a picture."""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import warp as wp
from PIL import Image

from .person import MONK, Person
from .render import Look

SETTINGS = ("first", "second")
"""The two ways in which the world is filmed; training sees only the first, so that the second can measure a step away from it."""

FACE_HEIGHT = 185.0
"""Millimetres from chin to hairline of an average face."""

SMALLEST_FACE = 48.0
"""Height in pixels of the smallest face that :func:`draw_shrink` films."""


def known_setting(setting: str) -> str:
    """The same name; ValueError for one that is no setting."""
    if setting not in SETTINGS:
        raise ValueError(f"unknown setting '{setting}': one of {', '.join(SETTINGS)}")
    return setting


def _direction(azimuth: float, height: float) -> np.ndarray:
    return np.array([np.sin(azimuth) * np.cos(height), -np.sin(height), -np.cos(azimuth) * np.cos(height)])


def _tint(rng: np.random.Generator, spread: float) -> np.ndarray:
    warm = rng.normal(0, spread)
    return np.array([1 + warm, 1 + rng.normal(0, spread * 0.25), 1 - warm]).clip(0.4, 1.7)


def _gel(rng: np.random.Generator) -> np.ndarray:
    """Light through a coloured filter of any hue, as bright as white light."""
    hue = rng.random()
    pure = (np.cos(2 * np.pi * (hue - np.arange(3) / 3)) * 0.5 + 0.5) ** 1.5
    colour = 1 + rng.uniform(0.5, 0.95) * (pure / pure.mean() - 1)
    return np.asarray(colour.clip(0.02))


@dataclass
class Scene:
    """Light and camera of one clip. Directions point towards the light in camera axes; colours are linear.

    distance: mm. face_share: height of the face over the height of the picture. offset: (2,) of the picture's size. exposure: the lightness
    (sRGB, 0-1) that the camera aims at. background_seed: also chooses the colour of the clothes. polish: factor on the skin's gloss.
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
    polish: float = 1.0

    @classmethod
    def of_clip(cls, person: int, clip: int, setting: str = "first") -> Scene:
        """The scene of a clip, by the seeds of its person and of its day; of its own generator: the motion is the same in every setting."""
        return cls.sample(np.random.default_rng([person, clip, 7005]), setting)

    @classmethod
    def sample(cls, rng: np.random.Generator, setting: str = "first") -> Scene:
        """A random scene. 'first': any light, soft to hard, from all sides; 'second': a studio, see :meth:`studio`."""
        if known_setting(setting) == "second":
            return cls.studio(rng)
        hard = rng.random()
        height = rng.uniform(-0.1, 1.1) if rng.random() < 0.92 else rng.uniform(-0.9, -0.1)
        azimuth = rng.normal(0, 0.8) if rng.random() < 0.85 else rng.choice([-1, 1]) * rng.uniform(1.0, 1.6)
        strength = rng.uniform(0.2, 1.1)
        ambient = rng.uniform(0.15, 0.75)
        exposure = rng.normal(0.52, 0.11)
        odd = rng.random()
        if odd < 0.15:
            exposure = rng.uniform(0.2, 0.35) if odd < 0.09 else rng.uniform(0.7, 0.85)
        return cls(
            key=_direction(azimuth, height),
            key_colour=strength * (_gel(rng) if rng.random() < 0.05 else _tint(rng, 0.12)),
            fill=_direction(rng.uniform(-1.6, 1.6), rng.uniform(-0.3, 0.8)),
            fill_colour=rng.uniform(0.0, 0.35) * _tint(rng, 0.18),
            above=ambient * rng.uniform(0.7, 1.2) * _tint(rng, 0.1),
            below=ambient * rng.uniform(0.3, 0.9) * _tint(rng, 0.1),
            shadow=float(hard * 0.9),
            softness=float((1 - hard) * 0.35),
            distance=float(rng.uniform(380, 1400)),
            face_share=float(rng.uniform(0.55, 0.82)),
            offset=rng.normal(0, 0.03, 2),
            exposure=float(np.clip(exposure, 0.2, 0.85)),
            background_seed=int(rng.integers(1 << 31)),
        )

    @classmethod
    def studio(cls, rng: np.random.Generator) -> Scene:
        """The second setting: hard key, weaker fill from the other side, a little light from the top and none from below; glossy skin;
        long lenses, or an arm's length away."""
        side = rng.choice([-1, 1])
        strength = rng.uniform(0.9, 1.3)
        far = rng.random() < 0.65
        return cls(
            key=_direction(side * rng.uniform(0.35, 1.0), rng.uniform(0.35, 0.85)),
            key_colour=strength * _tint(rng, 0.04),
            fill=_direction(-side * rng.uniform(0.5, 1.2), rng.uniform(0.0, 0.4)),
            fill_colour=strength * rng.uniform(0.15, 0.5) * _tint(rng, 0.04),
            above=rng.uniform(0.04, 0.15) * _tint(rng, 0.04),
            below=np.zeros(3),
            shadow=float(rng.uniform(0.8, 0.97)),
            softness=0.0,
            distance=float(rng.uniform(1500, 3500) if far else rng.uniform(270, 370)),
            face_share=float(rng.uniform(0.55, 0.82)),
            offset=rng.normal(0, 0.03, 2),
            exposure=float(np.clip(rng.normal(0.5, 0.06), 0.35, 0.65)),
            background_seed=int(rng.integers(1 << 31)),
            polish=float(rng.uniform(1.6, 2.8)),
        )

    @property
    def from_below(self) -> bool:
        """Whether the key light shines upwards, more than the six degrees that count as level."""
        return bool(self.key[1] > np.sin(0.1))

    def camera(self, size: int) -> tuple[np.ndarray, float]:
        """Translation of the head (3,) in mm and focal length in pixels of a picture of ``size`` pixels."""
        focal = self.face_share * size * self.distance / FACE_HEIGHT
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
        look.gloss, look.shine = person.gloss * self.polish, person.shine * self.polish
        look.iris = vec(person.iris)
        direction = vec(np.array([np.sin(gaze[0]), np.sin(gaze[1]), -np.cos(gaze[0]) * np.cos(gaze[1])]))
        look.gaze_left = look.gaze_right = direction
        look.eye_left, look.eye_right = vec(person.eyes[0]), vec(person.eyes[1])
        look.pupil, look.iris_edge = float(np.cos(0.11)), float(np.cos(0.37))
        rng = np.random.default_rng(self.background_seed + 5)
        look.cloth, look.neckline = vec(rng.uniform(0.01, 0.6, 3)), person.neckline
        look.lash_edge, look.lashes = person.lashes
        look.teeth, look.frame, look.hair = vec(person.teeth), vec(person.frame), vec(person.hair)
        look.relief, look.cavity = 1.0, person.cavity
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


def other_skin(albedo: np.ndarray, seed: int) -> np.ndarray:
    """The second setting's skin: a person's (T, T, 4) albedo with blotches, fine pores and another saturation; the same for a seed."""
    rng = np.random.default_rng([seed, 7008])
    side = albedo.shape[0]
    small = rng.standard_normal((side // 10, side // 10, 2), np.float32)
    blotches = cv2.resize(cv2.GaussianBlur(small, (0, 0), 1.2), (side, side), interpolation=cv2.INTER_CUBIC)
    blotches /= blotches.std()
    pores = rng.standard_normal((side, side), np.float32)
    pores -= cv2.GaussianBlur(pores, (0, 0), 1.0)
    out = albedo.copy()
    rgb = out[..., :3]
    grey = rgb.mean(-1, keepdims=True)
    rgb[:] = grey + (rgb - grey) * rng.choice([rng.uniform(0.55, 0.75), rng.uniform(1.1, 1.25)])
    light = 1 + rng.uniform(0.05, 0.10) * blotches[..., :1] + rng.uniform(0.04, 0.09) * pores[..., None]
    # Blotches are blood: they take green and blue from the skin.
    red = rng.uniform(0.04, 0.09) * blotches[..., 1:] * np.array([0.4, -1.0, -0.8], np.float32)
    rgb[:] = (rgb * (light + red)).clip(0.002, 0.95)
    return out


def film(linear: np.ndarray, rng: np.random.Generator, grain: np.random.Generator) -> np.ndarray:
    """The second setting's camera: vignette, noise that grows with the light and is blotchy, and a filmic tone curve with a shoulder.

    linear: (S, S, 3). rng: of the camera, one for a clip; grain: one for each frame.
    """
    size = linear.shape[0]
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    out = linear * (1 - rng.uniform(0.1, 0.3) * (axis[:, None, None] ** 2 + axis[None, :, None] ** 2))
    shot, read, spread = rng.uniform(0.008, 0.028), rng.uniform(0.001, 0.004), rng.uniform(0.6, 1.0)
    noise = cv2.GaussianBlur(grain.standard_normal(out.shape, np.float32), (0, 0), float(spread))
    noise = noise / max(float(noise.std()), 1e-6) + 0.5 * grain.standard_normal(out.shape[:2] + (1,), np.float32)
    out = (out + noise * (shot * np.sqrt(out.clip(0)) + read)).clip(0)
    # Narkowicz's fit (2016) to the film curve of the Academy Color Encoding System; 0.8 keeps middle grey where it was.
    x = 0.8 * out
    return np.asarray(x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14), np.float32)


def _turned(window: tuple[np.ndarray, np.ndarray], x: float, y: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates of a window in the axes of an object at x, y, turned by an angle."""
    dx, dy = window[0] - np.float32(x), window[1] - np.float32(y)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * dx + s * dy, c * dy - s * dx


def _capsules(u: np.ndarray, v: np.ndarray, parts: list[tuple[float, ...]], blend: float) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance to, and height of, a smooth union of capsules (x0, y0, x1, y1, radius)."""
    distance, height = np.full_like(u, 1e4), np.zeros_like(u)
    for part in parts:
        x0, y0, x1, y1, radius = map(float, part)  # NumPy's own doubles would make every array one of doubles
        ex, ey = x1 - x0, y1 - y0
        t = (((u - x0) * ex + (v - y0) * ey) / max(ex * ex + ey * ey, 1e-6)).clip(0, 1)
        d = cv2.magnitude(u - x0 - t * ex, v - y0 - t * ey) - radius
        k = (0.5 + 0.5 * (distance - d) / blend).clip(0, 1)
        distance = distance + k * (d - distance) - blend * k * (1 - k)
        height = np.maximum(height, np.sqrt((-d * (2 * radius + d)).clip(0)))
    return distance, height


def _lit(height: np.ndarray, rng: np.random.Generator, soft: float) -> np.ndarray:
    """Shading of a height map, smoothed over ``soft`` pixels, by a random light; about 1."""
    dy, dx = np.gradient(cv2.GaussianBlur(height, (0, 0), soft))
    angle, up = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.0)
    flat = (1 - 0.75 * up**2) ** 0.5
    cosine = (flat * float(np.cos(angle)) * dx + flat * float(np.sin(angle)) * dy + up) / np.sqrt(1 + dx * dx + dy * dy)
    return np.asarray((0.4 + 0.75 * cosine.clip(0))[..., None], np.float32)


def _cloth(rng: np.random.Generator) -> np.ndarray:
    """A colour (3,) 0-255: any, or white, black or grey."""
    colour = rng.uniform(10, 245, 3)
    return np.asarray(colour if rng.random() < 0.6 else colour.mean().repeat(3) + rng.normal(0, 4, 3))


def _hand(window: tuple[np.ndarray, np.ndarray], rng: np.random.Generator, x: float, y: float, w: float) -> tuple[np.ndarray, np.ndarray]:
    """A hand with a palm of ``w`` pixels, fingers apart or folded, and its forearm."""
    u, v = _turned(window, x, y, rng.uniform(-2.2, 2.2))
    u = u if rng.random() < 0.5 else -u
    parts: list[tuple[float, ...]] = [(0.0, 0.5 * w, 0.0, 3.0 * w, 0.3 * w)]
    spread, folded = rng.uniform(0.0, 0.25), rng.random() < 0.3
    for i, length in enumerate((0.72, 0.9, 0.85, 0.62)):
        base = (-0.36 + 0.24 * i) * w
        parts.append((base * 0.7, 0.45 * w, base, -0.35 * w, 0.19 * w))
        length *= rng.uniform(0.1, 0.4) if folded and i != 0 else rng.uniform(0.85, 1.05)
        lean = spread * (i - 1.5) + rng.normal(0, 0.05)
        tip = (base + length * w * np.sin(lean), -0.38 * w - length * w * np.cos(lean))
        parts.append((base, -0.38 * w, tip[0], tip[1], 0.125 * w))
    reach = rng.uniform(0.3, 0.55) * w
    parts.append((-0.35 * w, 0.3 * w, -0.42 * w - reach, 0.15 * w - reach * rng.uniform(0.3, 1.0), 0.13 * w))
    distance, height = _capsules(u, v, parts, 0.05 * w)
    at = rng.uniform(0, len(MONK) - 1)
    tones = np.array([[int(m[i : i + 2], 16) for i in (0, 2, 4)] for m in MONK], np.float64)
    # The scale's swatches are paler than skin in a picture, which blood makes redder.
    tone = np.array([np.interp(at, np.arange(len(MONK)), tones[:, c]) for c in range(3)]) * [1.0, 0.88, 0.79] * rng.uniform(0.65, 1.05)
    return distance, tone.astype(np.float32) * _lit(height, rng, 0.04 * w + 0.5)


def _thing(window: tuple[np.ndarray, np.ndarray], rng: np.random.Generator, x: float, y: float, w: float) -> tuple[np.ndarray, np.ndarray]:
    """A cup, a telephone or a microphone of ``w`` pixels across."""
    u, v = _turned(window, x, y, rng.normal(0, 0.4))
    kind, colour = rng.choice(["cup", "phone", "microphone"]), _cloth(rng)
    if kind == "microphone":
        distance, height = _capsules(u, v, [(0, 0, 0, 0.15 * w, 0.5 * w), (0, 0.5 * w, 0.1 * w, 6 * w, 0.28 * w)], 0.03 * w)
        mesh = 1 + 0.15 * (np.sin(u * 1.9) * np.sin(v * 1.9) * (v < 0.6 * w))[..., None]
        return distance, colour * rng.uniform(0.2, 0.7) * mesh * _lit(height, rng, 1.0)
    tall = w * (rng.uniform(0.55, 0.75) if kind == "cup" else 1.0)
    corner = w * (0.05 if kind == "cup" else 0.09)
    taper = 1 - (rng.uniform(0.0, 0.2) * v / max(tall, 1) if kind == "cup" else 0 * v)
    a, b = np.abs(u) / taper - w / 2 + corner, np.abs(v) - tall + corner
    distance = np.hypot(a.clip(0), b.clip(0)) + np.minimum(np.maximum(a, b), 0) - corner
    across = u / (w / 2)
    if kind == "cup":
        shade = 0.55 + 0.5 * np.sqrt((1 - (across - rng.uniform(-0.4, 0.4)) ** 2).clip(0.05))
    else:
        shade = 1 + rng.normal(0, 0.15) * across + rng.normal(0, 0.2) * v / tall
    out = colour * np.asarray(shade, np.float32)[..., None]
    style = rng.random()
    if style < 0.35:
        stripes = np.sin(v * (2 * np.pi / (w * rng.uniform(0.3, 0.9))) + rng.uniform(0, 6)) > rng.uniform(-0.5, 0.8)
        out = np.where(stripes[..., None], out, _cloth(rng) * np.asarray(shade)[..., None])
    elif style < 0.6:
        pattern = cv2.resize(rng.uniform(0.6, 1.3, (6, 6, 3)).astype(np.float32), out.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        out = out * pattern
    if kind == "phone":
        lens = np.hypot(u + 0.28 * w, v + 0.78 * tall) < 0.12 * w
        out = np.where(lens[..., None], 15.0, out)
    return distance, out


def _covering(
    window: tuple[np.ndarray, np.ndarray], rng: np.random.Generator, x: float, y: float, extent: float
) -> tuple[np.ndarray, np.ndarray]:
    """A medical mask or a scarf over nose and mouth."""
    u, v = _turned(window, x, y + 0.55 * extent, rng.normal(0, 0.1))
    half = extent * rng.uniform(0.75, 0.9)
    if rng.random() < 0.6:
        a, b = u / half, (v + 0.1 * extent * (1 - (u / half) ** 2)) / (0.62 * extent)
        distance = ((a**4 + b**4) ** 0.25 - 1) * half
        folds = 0.06 * np.sin(b * rng.uniform(7, 11))
        colour = rng.choice([rng.uniform(200, 245) * np.ones(3), np.array([150.0, 190, 215]), rng.uniform(15, 40) * np.ones(3)])
    else:
        distance = np.abs(v - 0.2 * extent + 0.04 * extent * np.sin(u / extent * 5)) - 0.75 * extent
        distance = np.maximum(distance, np.abs(u) - 1.15 * extent)
        folds = 0.16 * np.sin(v / extent * rng.uniform(9, 14) + 1.2 * np.sin(u / extent * 3 + rng.uniform(0, 6)))
        colour = _cloth(rng)
    shade = 1.0 + folds - 0.25 * (u / (1.3 * extent)) ** 2
    return distance, np.asarray(colour * np.asarray(shade)[..., None])


def _strands(shape: tuple[int, int], rng: np.random.Generator, x: float, y: float, extent: float) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and colour of hair that hangs over forehead and cheeks."""
    dark, light = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    lock = float(rng.uniform(-0.8, 0.8))
    bend, long = float(rng.normal(0, 0.4)), float(rng.uniform(0.7, 2.2))
    t = np.linspace(0, 1, 8)
    for i in range(int(rng.integers(4, 28))):
        start = lock + rng.normal(0, 0.12)
        px = x + extent * (start + (bend + rng.normal(0, 0.08)) * t**1.5 + 0.05 * np.sin(t * 5 + rng.uniform(0, 6)))
        py = y + extent * (-1.35 + long * rng.uniform(0.7, 1.1) * t)
        path = np.round(np.stack([px, py], -1) * 16).astype(np.int32)
        cv2.polylines(light if i % 3 == 0 else dark, [path], False, int(rng.uniform(130, 255)), 1, cv2.LINE_AA, 4)
    palette = np.array([[22, 19, 17], [45, 32, 26], [85, 64, 44], [150, 122, 84], [112, 60, 36], [140, 138, 136]], np.float64)
    colour = palette[rng.choice(6, p=[0.4, 0.25, 0.15, 0.08, 0.04, 0.08])] * rng.uniform(0.7, 1.3)
    coverage = np.maximum(dark, light).astype(np.float32) / 255
    return coverage, colour * (1 + 0.35 * (light > dark)[..., None])


def occlude(image: np.ndarray, rng: np.random.Generator, centre: tuple[float, float], extent: float) -> np.ndarray:
    """Something in front of the face: a hand, a held thing, hair, rarely a mask or scarf. image: uint8, changed in place.

    centre: pixels, the middle of the face; extent: half its height in pixels.
    """
    height, width = image.shape[:2]
    kind = rng.choice(["hand", "thing", "hair", "covering"], p=[0.4, 0.3, 0.28, 0.02])  # what is covered stays in the labels
    x, y = centre[0] + rng.uniform(-0.8, 0.8) * extent, centre[1] + rng.uniform(-1.0, 1.0) * extent
    if kind == "hair":
        alpha, colour = _strands((height, width), rng, *centre, extent)
    else:
        rows, columns = np.mgrid[:height, :width].astype(np.float32) + np.float32(0.5)
        window = (columns, rows)
        share = 2 * extent
        if kind == "hand":
            distance, colour = _hand(window, rng, x, y, share * rng.uniform(0.2, 0.45))
        elif kind == "thing":
            distance, colour = _thing(window, rng, x, y, share * rng.uniform(0.1, 0.6))
        else:
            distance, colour = _covering(window, rng, *centre, extent)
        alpha = (0.5 - distance / rng.uniform(1.0, 3.0)).clip(0, 1)
        # Its shadow on the face.
        shade = cv2.GaussianBlur(alpha, (0, 0), 0.06 * extent + 0.5)[..., None]
        image[:] = image * (1 - rng.uniform(0.1, 0.45) * shade)
    alpha = cv2.GaussianBlur(alpha.astype(np.float32), (0, 0), float(rng.uniform(0.4, 0.9)))[..., None]
    colour = np.clip(colour * rng.uniform(0.7, 1.05), 0, 255).astype(np.float32)
    image[:] = (image * (1 - alpha) + colour * alpha).astype(np.uint8)
    return image


def _jpeg(image: np.ndarray, quality: float, subsampling: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(quality), subsampling=subsampling)
    return np.array(Image.open(buffer))


def draw_shrink(rng: np.random.Generator, face_px: float, strength: float = 1.0) -> float:
    """How much smaller than the picture a camera films: mostly 1, else down to a face of SMALLEST_FACE pixels. face_px: in the picture."""
    if rng.random() >= 0.3 * strength or face_px <= SMALLEST_FACE:
        return 1.0
    return float(np.exp(rng.uniform(np.log(SMALLEST_FACE / face_px), 0)))


def degrade(image: np.ndarray, rng: np.random.Generator, strength: float = 1.0, shrink: float | None = None) -> np.ndarray:
    """What cameras, codecs and networks do: blur, motion, low resolution, rolling exposure, noise, colour, grey, video blocks, JPEG.

    image: uint8 RGB. shrink: the resolution that is left (:func:`draw_shrink`); None: drawn for a face of two thirds of the picture.
    """
    out: np.ndarray = image.astype(np.float32)
    size = image.shape[0]
    shrink = draw_shrink(rng, size * 0.67, strength) if shrink is None else shrink
    if rng.random() < 0.35 * strength:
        out = cv2.GaussianBlur(out, (0, 0), float(rng.uniform(0.3, 1.3)))
    if rng.random() < 0.12 * strength:
        length = int(rng.integers(3, 8))
        kernel = np.zeros((length, length), np.float32)
        cv2.line(kernel, (0, int(rng.integers(length))), (length - 1, int(rng.integers(length))), 1.0, 1)
        out = cv2.filter2D(out, -1, kernel / kernel.sum())
    blocks = rng.random() < 0.15 * strength
    small = round(size * shrink)
    if small < size:
        out = cv2.resize(out, (small, small), interpolation=cv2.INTER_AREA)
    if blocks:
        # A video codec: hard quantisation and halved chroma at the size as filmed; what comes later compresses it once more.
        out = _jpeg(out.clip(0, 255).astype(np.uint8), rng.uniform(18, 45), 2).astype(np.float32)
    if small < size:
        out = cv2.resize(out, (size, size), interpolation=int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC])))
    if rng.random() < 0.08 * strength:
        # A lamp flickers while the shutter rolls down the picture.
        phase = np.linspace(0, rng.uniform(0.4, 3) * 2 * np.pi, size, dtype=np.float32) + np.float32(rng.uniform(0, 6.3))
        out *= 1 + np.float32(rng.uniform(0.03, 0.2)) * np.sin(phase)[:, None, None]
    if rng.random() < 0.6:
        gamma, contrast, lift = np.exp(rng.normal(0, 0.18)), rng.uniform(0.8, 1.2), rng.normal(0, 8)
        out = cv2.pow(np.clip(out * np.float32(1 / 255), 0, 1), float(gamma))
        out = out * np.float32(255 * contrast) + np.float32(128 * (1 - contrast) + lift)
        out *= np.exp(rng.normal(0, 0.05, 3)).astype(np.float32)
    colourful = 0.0 if rng.random() < 0.12 else rng.uniform(0.5, 1.4) if rng.random() < 0.5 else 1.0
    if colourful != 1:
        out = cv2.transform(out, np.full((3, 3), (1 - colourful) / 3) + np.eye(3) * colourful)
    if rng.random() < 0.5 * strength:
        noise = rng.standard_normal(out.shape[:2] + (1,), np.float32) * np.float32(rng.uniform(0, 7))
        noise = noise + rng.standard_normal(out.shape, np.float32) * np.float32(rng.uniform(0, 5))
        if rng.random() < 0.3:
            noise = cv2.GaussianBlur(noise, (0, 0), 0.8) * np.float32(1.6)
        out = out + noise
    out = np.clip(out, 0, 255).astype(np.uint8)
    return _jpeg(out, rng.uniform(25, 95), int(rng.choice([0, 2]))) if rng.random() < 0.7 else out


def stack_views(values: list[np.ndarray]) -> torch.Tensor:
    """Arrays of equal shape to one float tensor."""
    return torch.from_numpy(np.stack(values).astype(np.float32))
