"""The person's own frames, warped in 3D by the fields of the asked AUs and shaded anew. No training.

A frame's landmarks are a mesh of 478 points. Each AU moves the mesh by its displacement field (made on the synthetic head by
benchmarks/make_mesh478.py); the frame's pixels follow. What moving pixels cannot show comes as a ratio image (Liu, Shan & Zhang, 2001):
how much brighter or darker the skin gets because its normals turn and furrows open, which carries over between skins. A closed mouth that
opens is filled with a dark cavity and the clip's own tone of teeth.

AU25 and AU26 are what the lips' gap and the chin's drop measure (AU10, AU16 and others part the lips too), as in the synthetic world.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np

import personalize
from personalize import geometry
from personalize.aus import AUS, MAX_INTENSITY
from personalize.errors import ConfigError, InputError
from personalize.generators import Generator, Request, Sample
from personalize.identity import Identity

ASSET = Path(personalize.__file__).parent / "assets" / "mesh478.npz"
SHOWN = 0.8
"""What the base model reads below this counts as absent."""
SURE, ONSET_S = 2.0, 0.25
"""Where an AU is read so high within so many seconds of a frame, it is coming: a smile shows before the base sees it. What is read lower
may be misread, and then it is well that pictures say so (docs/choices.md)."""
SKIN, MOUTH, EYE, AROUND = 0, 1, 2, 3
_UPPER_INNER = np.array([191, 80, 81, 82, 13, 312, 311, 310, 415])
_LOWER_INNER = np.array([95, 88, 178, 87, 14, 317, 402, 318, 324])
_CORNERS = (78, 308)
_LIDS = {  # upper margin, lower margin, the corners, side of the fields (0 = subject's left)
    0: (np.array([466, 388, 387, 386, 385, 384, 398]), np.array([249, 390, 373, 374, 380, 381, 382]), (263, 362)),
    1: (np.array([246, 161, 160, 159, 158, 157, 173]), np.array([7, 163, 144, 145, 153, 154, 155]), (33, 133)),
}
_OVAL = np.array(
    [10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377]
    + [152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109]
)  # fmt: skip
_RINGS = ((1.12, 0.75, 0.4), (1.28, 0.4, 0.08), (1.5, 0.12, 0.0), (1.75, 0.0, 0.0))
"""Rings around the face's contour: size relative to it, share of the contour's displacement that they follow, and the same above the eyes,
where the scalp ends what a brow pulls at (a jaw takes the neck along)."""
_UPPER_OVAL = np.isin(_OVAL, (10, 338, 297, 332, 284, 251, 389, 356, 127, 162, 21, 54, 103, 67, 109))[:, None]
_PIVOT = np.array([0.0, 0.45, 0.75])
"""What the head turns about when its pose is changed, canonical units: deep inside, so that hair and ears stay where they are."""
_NO_SKIN = frozenset([61, 0, 13, 14, 17, 37, 39, 40, 84, 87, 91, 146, 178, 181, 185, 267, 269, 270, 291, 314, 321, 375, 405, 409])
_BROWS = (46, 52, 53, 55, 63, 65, 66, 70, 105, 107, 276, 282, 283, 285, 293, 295, 296, 300, 334, 336)
_CHART_ANGLE, _CHART_HEIGHT, _CHART_RADIUS = 2.0, 260.0, 85.0  # of the relief maps: radians to each side, mm, mm
_LIP_FROM, _LIP_SPAN, _LIP_POWER = 0.6, 13.4, 0.7  # AU25 and AU26 in mm, as personalize.synth.person.Person.measure
_JAW_FROM, _JAW_SPAN, _JAW_POWER = 1.5, 22.5, 0.8
_GREY = 2  # levels between the channels of a picture without colours, at most
_ROWS = 16384  # that cv2.remap takes at once: it refuses 32767
CROWDED, FINE = 0.6, 3
"""By how much more or less than a pixel's step the source may go on from one pixel to the next where one place of it is enough; else places
to a pixel's side."""
_AU25, _AU26, _AU43 = AUS.index(25), AUS.index(26), AUS.index(43)


_TEETH_MM = np.array([0.0, 8.6, 15.2, 22.4, 27.5, 31.5, 60.0])
"""From the middle outwards, where one upper tooth ends and the next begins, as seen from the front (crowns of incisors and canines are
8.6, 6.6 and 7.6 mm wide: Wheeler's Dental Anatomy, table 1-1; those behind are seen from the side)."""
_SHORTER_MM = np.array([0.0, 0.9, 0.2, 1.2, 1.8, 2.4])
"""By how much each ends above the middle ones."""


@dataclass(frozen=True)
class Mesh:
    """The shipped asset. N = 478 points, K AUs. Canonical units (geometry.canonical) unless said otherwise.

    mean: (N, 3) the mean synthetic head's points. fields: (2, K, N, 3) displacement at intensity 5 by the subject's left and right half of
    the face. jaw, part, shut: (N, 3) of the jaw's and the lips' opening, and of the lips' closing before a dropped jaw, at full control.
    opening: (K + 3, 2) mm of lip gap and chin drop of each AU at intensity 5, of jaw, part and shut. unit: mm. tracked: (K, N, 3) mean
    displacement that the tracker reports for one unit of intensity. chart: (N, 2) 0-1. relief: (W, S, S) mm of AUs ``relief_aus``; pebbled:
    (S, S). faces: (M, 3); groups: (M,).
    """

    mean: np.ndarray
    fields: np.ndarray
    jaw: np.ndarray
    part: np.ndarray
    shut: np.ndarray
    opening: np.ndarray
    unit: float
    tracked: np.ndarray
    chart: np.ndarray
    relief: np.ndarray
    relief_aus: tuple[int, ...]
    pebbled: np.ndarray
    faces: np.ndarray
    groups: np.ndarray


@cache
def load_mesh() -> Mesh:
    """The shipped mesh478.npz, read once; do not write to its arrays."""
    with np.load(ASSET, allow_pickle=False) as data:
        return Mesh(
            mean=data["mean"],
            fields=data["au_fields"].astype(np.float32),
            jaw=data["jaw_open"][0].astype(np.float32),
            part=data["lips_part"][0].astype(np.float32),
            shut=data["lips_shut"][0].astype(np.float32),
            opening=data["opening_mm"],
            unit=float(data["unit_mm"]),
            tracked=data["tracked_fields"].astype(np.float32),
            chart=data["chart"],
            relief=data["wrinkles"].astype(np.float32),
            relief_aus=tuple(int(a) for a in data["wrinkle_aus"]),
            pebbled=data["pebbled"].astype(np.float32),
            faces=data["faces"].astype(np.int32),
            groups=data["groups"],
        )


def around(intensity: np.ndarray, times: Sequence[float], seconds: float) -> np.ndarray:
    """(N, K) the most of intensities (N, K) within so many seconds of each. times: (N,) seconds, rising; where all are alike, they are
    photographs, which have nothing to do with each other."""
    at = np.asarray(times, np.float64)
    if len(at) == 0 or at[0] == at[-1]:
        return np.asarray(intensity)
    first, last = np.searchsorted(at, at - seconds - 1e-6), np.searchsorted(at, at + seconds + 1e-6)
    return np.stack([intensity[a:b].max(0) for a, b in zip(first, last, strict=True)])


def lips_part(gap: float) -> float:
    """AU25 (0-5) of a lip gap in mm beyond rest."""
    return float(5 * np.clip((gap - _LIP_FROM) / _LIP_SPAN, 0, 1) ** _LIP_POWER)


def jaw_drop(drop: float) -> float:
    """AU26 (0-5) of a chin drop in mm beyond rest."""
    return float(5 * np.clip((drop - _JAW_FROM) / _JAW_SPAN, 0, 1) ** _JAW_POWER)


def _millimetres(intensity: float, start: float, span: float, power: float) -> float:
    if intensity <= 0:
        return 0.0
    # below 0.3 the start is reached gradually: in a video, lips that tremble about 0 must not jump
    return start * min(intensity / 0.3, 1.0) + span * (min(intensity, 5.0) / 5) ** (1 / power)


def displacement(strength: np.ndarray, jaw: float = 0.0, part: float = 0.0, aperture: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """(478, 3) displacement in canonical units.

    strength: (2, K) intensities 0-5 of the subject's left and right half. jaw, part: 0-1, part below 0: lips shut before a jaw that drops.
    aperture: this person's lid opening relative to the mean head's, left and right; the closing of the eyes scales with it.
    """
    mesh = load_mesh()
    scaled = strength / MAX_INTENSITY
    scaled = scaled.astype(np.float32)
    asked = scaled.any(0)
    move = np.einsum("sk,sknx->nx", scaled[:, asked], mesh.fields[:, asked])
    for side in (0, 1):
        move += (aperture[side] - 1.0) * scaled[side, _AU43] * mesh.fields[side, _AU43]
    return np.asarray(move + jaw * mesh.jaw + (part * mesh.part if part > 0 else -part * mesh.shut), np.float32)


def aperture(points: np.ndarray, side: int) -> float:
    """Mean opening of the lids of one eye (0 = subject's left), canonical units. points: (478, 3) normalised."""
    upper, lower, _ = _LIDS[side]
    return float((points[lower, 1] - points[upper, 1]).mean())


def _settle(points: np.ndarray, rest: np.ndarray) -> None:
    """Lips and lids cannot pass through each other: pairs that would, meet. points: (478, 3) canonical, changed in place.

    rest: the points before; a pair that crossed already there (noise of the tracker) keeps its gap.
    """
    for upper, lower, share in ((_UPPER_INNER, _LOWER_INNER, 0.5), (*_LIDS[0][:2], 0.9), (*_LIDS[1][:2], 0.9)):
        overlap = points[upper, 1] - points[lower, 1] - np.maximum(rest[upper, 1] - rest[lower, 1], 0)
        overlap = np.maximum(overlap, 0)
        points[upper, 1] -= share * overlap
        points[lower, 1] += (1 - share) * overlap


def _close(points: np.ndarray, rest: np.ndarray, strength: np.ndarray) -> None:
    """Eyes that are asked to close do, whatever their shape: at intensity f of 5 at most 1 - f/5 of each pair's gap is left. In place."""
    for side in (0, 1):
        share = float(np.clip(strength[side] / MAX_INTENSITY, 0, 1))
        if share > 0:
            upper, lower, _ = _LIDS[side]
            left = (1 - share) * np.maximum(rest[lower, 1] - rest[upper, 1], 0)
            points[upper, 1] += np.maximum(points[lower, 1] - points[upper, 1] - left, 0)


def vertex_normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(N, 3) unit normals towards the outside of the face. points: (N, 3), z away from the camera."""
    a, b, c = points[faces[:, 0]], points[faces[:, 1]], points[faces[:, 2]]
    flat = np.cross(c - a, b - a)
    out = np.zeros_like(points)
    for corner in range(3):
        np.add.at(out, faces[:, corner], flat)
    return np.asarray(out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9), np.float32)


@dataclass
class _Source:
    """One frame to make pictures from, everything in pixels of its view."""

    index: int
    image: np.ndarray  # (S, S, 3) uint8
    points: np.ndarray  # (478, 3) view pixels
    normal: np.ndarray  # (478, 3) canonical
    rotation: np.ndarray  # canonical to view axes
    scale: float  # view pixels a canonical unit
    angles: np.ndarray  # pitch and yaw in the view, which is upright, radians
    shown: np.ndarray  # (K,) intensities above the neutral
    hinted: np.ndarray  # (K,) the same, and where an AU is about to be SURE or was, the most that it is
    activity: float
    quality: float
    light: np.ndarray  # (4,): constant and direction, relative
    lip_gap: float  # px
    grey: bool  # a black-and-white picture, as far as a codec keeps it one


class MeshWarp(Generator):
    """The person's own frames, warped in 3D for the asked AUs and pose, with ratio shading; no training.

    Args:
        size: side of the pictures in pixels, at the frames' own views of 160 pixels or scaled.
        max_yaw_change: degrees that a frame may be turned, pitch and yaw alike; requests further from every frame are refused.
        shading: furrows and bulges as ratio images; without it, pixels only move.
        max_intensity: the strongest intensity that is answered.
        gain_spread: standard deviation of the log of each AU's random gain: how far 3 of one person may be 3 of another. The label stays
            what was asked for; the gain is in ``Sample.info``.
        sources: the most frames that are used.
    """

    def __init__(
        self,
        size: int = 160,
        max_yaw_change: float = 15.0,
        shading: bool = True,
        max_intensity: float = 5.0,
        gain_spread: float = 0.12,
        sources: int = 24,
    ) -> None:
        if size < 64:
            raise ConfigError(f"generator option size must be at least 64, got {size}")
        if not 0 <= max_yaw_change <= 45:
            raise ConfigError(f"generator option max_yaw_change must lie in 0-45 degrees, got {max_yaw_change:g}")
        if not 0 < max_intensity <= MAX_INTENSITY:
            raise ConfigError(f"generator option max_intensity must lie above 0 and at most 5, got {max_intensity:g}")
        if gain_spread < 0:
            raise ConfigError(f"generator option gain_spread must not be negative, got {gain_spread:g}")
        if sources < 1:
            raise ConfigError(f"generator option sources must be at least 1, got {sources}")
        self.size, self.max_turn, self.shading = size, float(np.radians(max_yaw_change)), shading
        self.max_intensity, self.gain_spread, self.max_sources = max_intensity, gain_spread, sources
        self._sources: list[_Source] = []
        self._seed, self._count = 0, 0

    # --- the person -------------------------------------------------------------------------------------------------------------

    def prepare(self, identity: Identity, seed: int) -> None:
        """Chooses calm frames in several poses and fits the light. Frames need ``view`` and mesh landmarks with depth; without any, all is
        refused."""
        mesh = load_mesh()
        self._seed, self._count = seed, 0
        rng = np.random.default_rng([seed, 160])
        self._crease = 0.8 * np.exp(rng.normal(0, 0.25, len(mesh.relief)))
        noise = cv2.GaussianBlur(rng.normal(0, 1, mesh.pebbled.shape).astype(np.float32), (0, 0), 1.15)
        self._relief = mesh.relief.copy()
        self._relief[mesh.relief_aus.index(17)] += noise / noise.std() * mesh.pebbled
        resting = self._resting(identity)
        shown = np.clip(identity.intensity - resting, 0, None)
        usable = self._usable(identity)
        if not usable:
            self._sources = []
            return
        most = around(shown, [o.timestamp for o in identity.observations], ONSET_S)
        hinted = np.where(most >= SURE, most, shown)
        strongest, own = (np.where(x >= SHOWN, x, 0).sum(1) for x in (hinted, shown))
        order = sorted(usable, key=lambda i: (strongest[i] + 0.3 * shown[i].sum() + 2 * (1 - identity.observations[i].quality), i))
        chosen: list[int] = []
        turned = {i: identity.observations[i].upright[:2] for i in usable}
        for nearness in (0.08, 0.03, 0.0):  # radians between chosen poses: first a spread, then more of the calmest
            for i in order:
                calm = strongest[i] <= strongest[order[0]] + 2.0 and own[i] <= own[order[0]] + 2.0
                far = all(np.hypot(*(turned[i] - turned[j])) >= nearness for j in chosen)
                if len(chosen) < self.max_sources and i not in chosen and calm and far:
                    chosen.append(i)
        self._teeth = self._tone_of_teeth(identity)
        self._sources = [replace(self._source(identity, i, shown[i]), hinted=hinted[i]) for i in chosen]
        rest = identity.neutral.landmarks if identity.neutral is not None else None
        rest = self._rest_points(identity, chosen) if rest is None else rest
        self._aperture = tuple(float(np.clip(aperture(rest, side) / aperture(mesh.mean, side), 0.4, 2.0)) for side in (0, 1))

    @staticmethod
    def _usable(identity: Identity) -> list[int]:
        """The frames that pictures can be made of: with a view, mesh landmarks with depth, and enough quality."""
        return [
            i
            for i, o in enumerate(identity.observations)
            if o.view is not None
            and o.view_to_frame is not None
            and len(o.image_landmarks) == 478
            and o.landmarks is not None
            and np.isfinite(o.landmarks).all()
            and o.quality > 0.05
        ]

    @staticmethod
    def _resting(identity: Identity) -> np.ndarray:
        """(K,) what the base model reads in this person's neutral face: a habit of the face, not an expression."""
        neutral = identity.neutral
        if neutral is None:
            return np.zeros(len(AUS))
        return np.asarray(neutral.trusted * np.median(identity.intensity[neutral.indices], axis=0))

    @staticmethod
    def _rest_points(identity: Identity, chosen: list[int]) -> np.ndarray:
        points = [p for p in (identity.observations[i].landmarks for i in chosen[:5]) if p is not None]
        return np.asarray(np.median(np.stack(points), axis=0))

    @staticmethod
    def _in_view(landmarks: np.ndarray, to_frame: np.ndarray) -> np.ndarray:
        """(478, 3) frame pixels to view pixels."""
        inverse = cv2.invertAffineTransform(to_frame.astype(np.float64))
        factor = float(np.hypot(inverse[0, 0], inverse[1, 0]))
        z = np.nan_to_num(landmarks[:, 2:]) * factor
        return np.hstack([landmarks[:, :2] @ inverse[:, :2].T + inverse[:, 2], z]).astype(np.float32)

    def _source(self, identity: Identity, index: int, shown: np.ndarray) -> _Source:
        mesh, o = load_mesh(), identity.observations[index]
        assert o.view is not None and o.view_to_frame is not None and o.landmarks is not None
        image, to_frame = o.view, o.view_to_frame.astype(np.float64)
        if image.shape[0] != self.size:
            factor = image.shape[0] / self.size
            image = cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_AREA if factor > 1 else cv2.INTER_CUBIC)
            to_frame = np.hstack([to_frame[:, :2] * factor, (to_frame[:, 2] + to_frame[:, :2] @ np.full(2, (factor - 1) / 2))[:, None]])
        points = self._in_view(o.image_landmarks, to_frame)
        pose = geometry.fit_pose(points)
        normal = vertex_normals(o.landmarks, mesh.faces[mesh.groups == SKIN])
        turned = normal @ pose.rotation.T
        gap = float((points[_LOWER_INNER, 1] - points[_UPPER_INNER, 1]).max())
        light = self._fit_light(image, points, turned)
        return _Source(
            index,
            image,
            points,
            normal,
            pose.rotation,
            pose.scale,
            o.upright[:2],
            shown,
            shown,
            float(shown.sum()),
            o.quality,
            light,
            gap,
            grey=int(np.ptp(o.view, axis=-1).max()) <= _GREY,
        )

    @staticmethod
    def _fit_light(image: np.ndarray, points: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """(4,) c, dx, dy, dz of luminance = c + d . n (spherical harmonics of order 1), 1 on a surface that faces the camera.

        Robust least squares over the skin's points. image: (S, S, 3) uint8; points: (478, 3) pixels; normal: (478, 3) in the view's axes.
        """
        left_out = _NO_SKIN | set(_BROWS) | set(_UPPER_INNER) | set(_LOWER_INNER)
        keep = np.array([i not in left_out for i in range(468)])
        keep &= normal[:468, 2] < -0.2
        grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 1.5).astype(np.float32)
        x, y = np.round(points[:468, 0]).astype(int), np.round(points[:468, 1]).astype(int)
        keep &= (x >= 0) & (y >= 0) & (x < image.shape[1]) & (y < image.shape[0])
        value = (grey[y[keep], x[keep]] / 255.0) ** 2.2
        basis = np.hstack([np.ones((keep.sum(), 1)), normal[:468][keep]])
        weight = np.ones(len(basis))
        prior = np.diag([0.0, 1.0, 1.0, 1.0]) * 0.02 * len(basis)
        fitted = np.zeros(4)
        for _ in range(4):
            left = (basis * weight[:, None]).T
            fitted = np.linalg.solve(left @ basis + prior + 1e-9 * np.eye(4), left @ value)
            residual = np.abs(value - basis @ fitted)
            weight = 1 / np.maximum(1.0, residual / max(1.5 * float(np.median(residual)), 1e-6))
        front = max(float(fitted[0] - fitted[3]), 0.05 * float(value.mean()), 1e-4)  # light on a surface that faces the camera
        direction = fitted[1:] / front
        # Soft light hides furrows, but never all: a little light from above where the fit finds none.
        direction += np.array([0.0, -0.15, 0.0])
        length = float(np.linalg.norm(direction))
        direction *= min(1.0, 0.9 / max(length, 1e-6))
        return np.array([1.0 + direction[2], *direction])

    @staticmethod
    def _tone_of_teeth(identity: Identity) -> np.ndarray | None:
        """(3,) RGB of the bright part of open mouths in the clip, or None where none shows teeth."""
        found = []
        for i in np.argsort(-identity.intensity[:, _AU25])[:12]:
            o = identity.observations[i]
            if o.view is None or o.view_to_frame is None or len(o.image_landmarks) != 478 or identity.intensity[i, _AU25] < 1.5:
                continue
            points = MeshWarp._in_view(o.image_landmarks, o.view_to_frame)[:, :2]
            ring = points[[_CORNERS[0], *_UPPER_INNER, _CORNERS[1], *_LOWER_INNER[::-1]]]
            mask = np.zeros(o.view.shape[:2], np.uint8)
            cv2.fillPoly(mask, [np.round(ring).astype(np.int32)], 255)
            inside = o.view[cv2.erode(mask, np.ones((3, 3), np.uint8)) > 0].astype(np.float32)
            if len(inside) < 25:
                continue
            bright = inside[inside.sum(1) >= np.percentile(inside.sum(1), 80)].mean(0)
            if bright.max() - bright.min() < 0.45 * bright.max():  # lips and tongue are red, teeth are not
                found.append(bright)
        return np.median(np.stack(found), axis=0) if found else None

    # --- pictures ---------------------------------------------------------------------------------------------------------------

    def content(self) -> str:
        """Source, and the mesh that it moves."""
        return super().content() + hashlib.sha256(ASSET.read_bytes()).hexdigest()

    def restart(self, number: int) -> None:
        """The pictures of a set are numbered by the set."""
        self._count = number << 32

    def generate(self, requests: list[Request]) -> list[Sample | None]:
        """One picture a request; None where no frame is near enough in pose, or what is asked for is out of range.

        Raises InputError for an AU that the base model does not read.
        """
        drafts = map(self._draft, requests)
        return [None if d is None else d.finished(self.render(d.source, d.strength, d.jaw, d.part, d.turn, d.rng)) for d in drafts]

    def _draft(self, request: Request) -> _Draft | None:
        """What the picture that answers a request is drawn from; None where there is none."""
        for au in request.aus:
            if au not in AUS:
                raise InputError(f"AU{au} is none that the base model reads: {', '.join(map(str, AUS))}")
        # what is asked for exactly does not depend on what was asked for before
        rng = np.random.default_rng([self._seed, 161] if request.exact else [self._seed, 161, self._count])
        self._count += 1
        values = list(request.aus.values())
        if not self._sources or any(not 0 <= v <= self.max_intensity for v in values):
            return None
        source, turn = self._choose(request, rng)
        if source is None:
            return None
        wanted = np.zeros(len(AUS))
        for au, value in request.aus.items():
            wanted[AUS.index(au)] = value
        asked = np.array([au in request.aus for au in AUS])
        shown = np.where(source.shown >= SHOWN, source.shown, 0.0)
        delta = np.where(asked | (shown == 0), wanted - shown, 0.0)  # what is not asked for stays as the frame shows it
        spread = 0.0 if request.exact else self.gain_spread
        gain = np.exp(rng.normal(0, spread, (1, len(AUS))) + rng.normal(0, 0.4 * spread, (2, len(AUS))))
        gain[:, _AU43] = 1.0  # closed is closed
        jaw, part, gap, drop = self._mouth(delta, asked)
        target = np.where(asked, wanted, 0.0).astype(np.float32)
        calm = source.activity < 4.0
        absent = source.hinted < SHOWN
        known = (asked & (delta > -0.5)) | (~asked & absent & calm)  # an expression that is warped away leaves traces
        if absent[_AU25] and absent[_AU26]:
            target[_AU25], target[_AU26] = lips_part(gap), jaw_drop(drop)
            known[_AU25] = known[_AU26] = True
        info = {"pitch_change": float(np.degrees(turn[0])), "yaw_change": float(np.degrees(turn[1])), "jaw": jaw, "part": part}
        info |= {f"gain{au}": float(gain[:, k].mean()) for k, au in enumerate(AUS) if wanted[k] > 0}
        sample = Sample(source.image, target, known, request, source.index, info)
        return _Draft(source, delta * gain, jaw, part, turn, rng, sample)

    def _choose(self, request: Request, rng: np.random.Generator) -> tuple[_Source | None, tuple[float, float]]:
        """The calm frame nearest in pose, and how far it has to be turned (pitch, yaw)."""
        asked = np.array([au in request.aus for au in AUS])
        best: tuple[float, _Source | None, tuple[float, float]] = (np.inf, None, (0.0, 0.0))
        for source in self._sources:
            turn = (0.0, 0.0)
            if request.pose is not None:
                turn = (float(request.pose[0] - source.angles[0]), float(request.pose[1] - source.angles[1]))
                if max(abs(turn[0]), abs(turn[1])) > self.max_turn + 1e-9:
                    continue
            shown = np.where(source.hinted >= SHOWN, source.hinted, 0.0)
            cost = 4.0 * float(np.hypot(*turn)) + shown[~asked].sum() * 1.0 + shown[asked].sum() * 0.7 + 0.5 * (1 - source.quality)
            if request.pose is None:
                cost += float(rng.uniform(0, 0.8))  # any pose will do: vary it
            if source.index == request.source:
                cost -= 1e3  # the frame wished for, wherever it can serve
            if cost < best[0]:
                best = (cost, source, turn)
        return best[1], best[2]

    @staticmethod
    def _mouth(delta: np.ndarray, asked: np.ndarray) -> tuple[float, float, float, float]:
        """Controls of jaw and lips that bring AU25 and AU26 to what is asked, and the gap and drop in mm that come out."""
        *of_aus, of_jaw, of_part, of_shut = load_mesh().opening
        share = delta / MAX_INTENSITY
        share[[_AU25, _AU26]] = 0
        gap, drop = (float(v) for v in share @ np.stack(of_aus))
        jaw = part = 0.0
        if asked[_AU26] and delta[_AU26] > 0:
            jaw = max(0.0, (_millimetres(delta[_AU26], _JAW_FROM, _JAW_SPAN, _JAW_POWER) - max(drop, 0.0)) / of_jaw[1])
        gap, drop = gap + jaw * of_jaw[0], drop + jaw * of_jaw[1]
        missing = _millimetres(delta[_AU25], _LIP_FROM, _LIP_SPAN, _LIP_POWER) - max(gap, 0.0) if asked[_AU25] else 0.0
        if missing < 0:  # lips that are to part less than that, or to stay shut, close again
            part = max(missing / -of_shut[0], -1.0)
            gap, drop = gap - part * of_shut[0], drop - part * of_shut[1]
        elif missing > 0:
            part = min(missing / of_part[0], 1.6)
            rest = missing - part * of_part[0]  # lips alone part only so far: the jaw gives the rest
            more = rest / of_jaw[0] if not asked[_AU26] else 0.0
            jaw += more
            gap, drop = gap + part * of_part[0] + more * of_jaw[0], drop + part * of_part[1] + more * of_jaw[1]
        return float(jaw), float(part), gap, drop

    def render(
        self, source: _Source, strength: np.ndarray, jaw: float, part: float, turn: tuple[float, float], rng: np.random.Generator
    ) -> np.ndarray:
        """(S, S, 3) uint8. strength: (2, K) change of intensity by half of the face; turn: radians of pitch and yaw."""
        if not strength.any() and jaw == 0 and part == 0 and turn == (0.0, 0.0):
            return source.image.copy()
        return self.draw(source, strength, jaw, part, turn).image

    def _motion(
        self, source: _Source, strength: np.ndarray, jaw: float, part: float, turn: tuple[float, float]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """How the source's points move. Arguments as :meth:`render`.

        Returns the canonical points before and after without the head's turn; the rotation to view axes after the turn, (3, 3); the view
        pixels that the turn alone moves the points by, and those that they come to. All but the rotation are (478, 3).
        """
        before = ((source.points - source.points[168]) @ source.rotation / source.scale).astype(np.float32)
        after = before + displacement(strength, jaw, part, self._aperture)  # type: ignore[arg-type]
        _settle(after, before)
        _close(after, before, strength[:, _AU43])
        turned = self._turn(source, turn)
        there = (after - before) @ turned.T * source.scale
        pivot = before - before[[33, 263]].mean(0) - _PIVOT
        rigid = pivot @ (turned - source.rotation).T * source.scale
        return before, after, turned, rigid, source.points + there + rigid

    def draw(self, source: _Source, strength: np.ndarray, jaw: float, part: float, turn: tuple[float, float]) -> _Drawn:
        """The picture with what it was made of. Arguments as :meth:`render`."""
        before, after, turned, rigid, target = self._motion(source, strength, jaw, part, turn)
        closing = [aperture(after, s) < aperture(before, s) for s in (0, 1)]
        shut = np.clip(strength[:, _AU43] / MAX_INTENSITY, 0, 1)
        flow = _Flow(source.points, target, source.points + rigid, closing, self.size, shut)
        image = self._lash_line(flow.warp(source.image), target, shut)
        image = self._fill_mouth(image, source, flow, target, rigid)
        ratio = np.ones((self.size, self.size), np.float32)
        if self.shading:
            ratio = self._ratio(source, flow, strength, before, after, turned)
            # skin scatters red furthest: shading is weakest there
            power = np.array([0.85, 1.0, 1.05], np.float32) / 2.2
            image = np.clip(np.round(image * np.exp(np.log(ratio)[..., None] * power)), 0, 255).astype(np.uint8)
        return _Drawn(image, ratio, flow, after, turned)

    @staticmethod
    def _lash_line(image: np.ndarray, target: np.ndarray, shut: np.ndarray) -> np.ndarray:
        """Where lids meet the lashes make a soft dark line."""
        fine, mask = 4, None
        for side in (0, 1):
            if shut[side] > 0.5:
                upper = _LIDS[side][0]  # not to the corners, which lie a little lower: a line with hooks
                mask = np.zeros((image.shape[0] * fine, image.shape[1] * fine), np.uint8) if mask is None else mask
                line = np.round((target[upper, :2] * fine + (fine - 1) / 2) * 16).astype(np.int32)
                cv2.polylines(mask, [line], False, int(255 * (2 * shut[side] - 1)), 2 * fine - 2, cv2.LINE_AA, 4)
        if mask is None:
            return image
        soft = cv2.GaussianBlur(cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_AREA), (0, 0), 0.5)
        return np.asarray(np.round(image * (1 - 0.45 * (soft.astype(np.float32) / 255))[..., None]), np.uint8)

    @staticmethod
    def _turn(source: _Source, turn: tuple[float, float]) -> np.ndarray:
        """The rotation in the view's axes after a change of pitch and yaw."""
        if turn == (0.0, 0.0):
            return source.rotation
        old, new = (geometry.rotation_matrix(*geometry.tilted(*angles)) for angles in (source.angles, source.angles + turn))
        return np.asarray(source.rotation @ old.T @ new)

    def _fill_mouth(self, image: np.ndarray, source: _Source, flow: _Flow, target: np.ndarray, rigid: np.ndarray) -> np.ndarray:
        """Cavity and upper teeth between lips that the source shows closed."""
        gap = float((target[_LOWER_INNER, 1] - target[_UPPER_INNER, 1]).max())
        new = gap - max(source.lip_gap, 0.0)
        if new < 0.6:
            return image
        ring = target[[_CORNERS[0], *_UPPER_INNER, _CORNERS[1], *_LOWER_INNER[::-1]], :2]
        fine = 4
        mask = np.zeros((self.size * fine, self.size * fine), np.uint8)
        cv2.fillPoly(mask, [np.round((ring * fine + (fine - 1) / 2) * 16).astype(np.int32)], 255, shift=4)
        alpha = cv2.resize(mask, (self.size, self.size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        # a mouth that is open already keeps its own inside; the more it has to be stretched, the more is filled
        alpha = cv2.GaussianBlur(alpha, (0, 0), 0.6) * float(np.clip(new / (0.5 * max(source.lip_gap, 0) + 1.5), 0, 1))
        box = np.concatenate([np.floor(ring.min(0) - 3), np.ceil(ring.max(0) + 4)]).astype(int).clip(0, self.size)
        rows, columns = slice(box[1], box[3]), slice(box[0], box[2])
        lip = np.median(self._at(source.image, source.points[[17, 84, 314, 0, 37, 267], :2]), axis=0)
        y, x = np.mgrid[rows, columns].astype(np.float32)
        # The upper teeth hang from the skull: they stay while the lips move.
        line = source.points[[13, 14], 1].mean() + rigid[[13, 14], 1].mean()
        middle = source.points[[13, 14], 0].mean() + rigid[[13, 14], 0].mean()
        width = 0.5 * abs(float(source.points[_CORNERS[1], 0] - source.points[_CORNERS[0], 0]))
        pixels = source.scale / load_mesh().unit  # to a millimetre
        away = np.abs(x - middle) / pixels
        tooth = np.searchsorted(_TEETH_MM[1:-1], away)
        across = np.abs(2 * (away - _TEETH_MM[tooth]) / (_TEETH_MM[tooth + 1] - _TEETH_MM[tooth]) - 1).clip(0, 1)
        edge = line + 0.035 * source.scale - 0.5 * np.square((x - middle) / max(width, 1.0)) * 0.05 * source.scale
        edge = edge - pixels * (_SHORTER_MM[tooth] + 0.8 * across**4)
        # Between two teeth and under the lip it is darker; of what is narrower than a pixel, only its share is seen.
        between = np.abs(away[..., None] - _TEETH_MM[:-1]).min(-1)
        gap_mm = max(0.35, 0.5 / pixels)
        lit = 1 - 0.28 * (0.35 / gap_mm) * np.exp(-0.5 * np.square(between / gap_mm)) - 0.06 * across**2
        lit *= 1 - 0.35 * np.exp(-np.clip(y - ring[:, 1].min(), 0, None) / (1.5 * pixels))
        teeth = 1 / (1 + np.exp(np.clip((y - edge) / 0.55, -30, 30)))
        fade = np.clip(1.25 - np.abs(x - middle) / max(width, 1.0), 0, 1)
        tone = self._teeth if self._teeth is not None else self._guess_teeth(source)
        depth = np.clip((y - ring[:, 1].min()) / max(gap, 1.0), 0, 1)[..., None]
        cavity = lip * np.array([0.42, 0.26, 0.25]) * (0.55 + 0.7 * depth**2)
        inside = cavity + (teeth * np.minimum(fade * 1.3, 1))[..., None] * (np.minimum(tone * 0.9, 245) * lit[..., None] - cavity)
        out = image.astype(np.float32)
        a = alpha[rows, columns][..., None]
        out[rows, columns] = out[rows, columns] * (1 - a) + a * inside
        return np.clip(np.round(out), 0, 255).astype(np.uint8)

    @staticmethod
    def _guess_teeth(source: _Source) -> np.ndarray:
        """(3,) RGB where the clip shows no teeth: between the white of the eyes and the hue of the lit skin, a little warm."""
        mask = np.zeros(source.image.shape[:2], np.uint8)
        for upper, lower, (outer, inner) in _LIDS.values():
            ring = source.points[[outer, *upper, inner, *lower[::-1]], :2]
            cv2.fillPoly(mask, [np.round(ring).astype(np.int32)], 255)
        skin = MeshWarp._at(source.image, source.points[[50, 280, 205, 425], :2]).mean(0)
        eyes = source.image[mask > 0].astype(np.float32)
        white = eyes[eyes.sum(1) >= np.percentile(eyes.sum(1), 85)].mean(0) if len(eyes) > 20 else skin
        hue = 0.5 * skin / max(float(skin.mean()), 1.0) + 0.5 * white / max(float(white.mean()), 1.0)
        return np.asarray(hue * max(float(white.mean()), float(skin.mean())) * np.array([1.02, 0.97, 0.88]))

    @staticmethod
    def _at(image: np.ndarray, points: np.ndarray) -> np.ndarray:
        x, y = np.round(points).astype(int).clip(0, image.shape[0] - 1).T
        return image[y, x].astype(np.float32)

    def _ratio(
        self,
        source: _Source,
        flow: _Flow,
        strength: np.ndarray,
        before: np.ndarray,
        after: np.ndarray,
        rotation: np.ndarray,
    ) -> np.ndarray:
        """(S, S) the light on the changed surface over that on the source's, linear; 1 off the skin."""
        mesh = load_mesh()
        share = np.clip(np.abs(strength).mean(0) / MAX_INTENSITY, 0, 1) * np.sign(strength.mean(0))
        depth = np.array([np.sign(share[AUS.index(a)]) * abs(share[AUS.index(a)]) ** 1.15 for a in mesh.relief_aus]) * self._crease
        creased = depth != 0
        relief = np.einsum("w,wij->ij", depth[creased].astype(np.float32), self._relief[creased])
        rows, columns, weights, corners = flow.skin()
        field = np.ones((self.size, self.size), np.float32)
        if len(rows) == 0:
            return field
        skin = mesh.faces[mesh.groups == SKIN]
        moved = vertex_normals(after, skin)
        weights = weights.astype(np.float32)  # half the time of double, thousands of pixels long
        normal_before = np.einsum("nkx,nk->nx", source.normal.astype(np.float32)[corners], weights)
        # the change of the mesh's normals, on top of the source's smoother ones
        bent = (moved - vertex_normals(before, skin)).astype(np.float32)
        normal_after = normal_before + np.einsum("nkx,nk->nx", bent[corners], weights)
        uv = np.einsum("nkx,nk->nx", mesh.chart[corners], weights).astype(np.float32)
        side = relief.shape[1]
        x, y = (uv * side - 0.5).T
        step = 1.0 / side
        slope_u = cv2.Sobel(relief, cv2.CV_32F, 1, 0, ksize=3) / 8 / (2 * _CHART_ANGLE * _CHART_RADIUS * step)
        slope_v = cv2.Sobel(relief, cv2.CV_32F, 0, 1, ksize=3) / 8 / (_CHART_HEIGHT * step)
        stacked = np.dstack([relief, slope_u, slope_v])
        parts = [
            cv2.remap(stacked, x[i : i + _ROWS, None], y[i : i + _ROWS, None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
            for i in range(0, len(x), _ROWS)
        ]
        value = np.concatenate(parts)[:, 0]
        angle = (uv[:, 0] * 2 - 1) * _CHART_ANGLE
        normal_after[:, 0] -= value[:, 1] * np.cos(angle)
        normal_after[:, 2] -= value[:, 1] * np.sin(angle)
        normal_after[:, 1] -= value[:, 2]
        light = source.light

        def brightness(normal: np.ndarray, turn: np.ndarray) -> np.ndarray:
            towards = normal @ (turn.T @ light[1:]).astype(np.float32)
            length = np.sqrt(np.einsum("nx,nx->n", normal, normal))
            return np.asarray(np.maximum(light[0].astype(np.float32) + towards / np.maximum(length, 1e-6), 0.15))

        ratio = brightness(normal_after, rotation) / brightness(normal_before, rotation)
        ratio *= np.clip(1.0 + 0.35 * np.minimum(value[:, 0], 0.0), 0.4, 1.0)  # furrows see less of the sky
        field[rows, columns] = np.clip(ratio, 0.45, 1.6)
        return np.asarray(cv2.GaussianBlur(field, (0, 0), 0.7))


@dataclass
class _Draft:
    """A picture to be drawn: the arguments of :meth:`MeshWarp.render`, and the sample that it is for, as yet with the source's picture."""

    source: _Source
    strength: np.ndarray
    jaw: float
    part: float
    turn: tuple[float, float]
    rng: np.random.Generator
    sample: Sample

    def finished(self, image: np.ndarray) -> Sample:
        """The sample with its picture; what is drawn into one without colours, as lips and teeth are, has none."""
        if self.source.grey and not np.array_equal(image, self.source.image):
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        return replace(self.sample, image=image)


@dataclass
class _Drawn:
    """A warped frame. image: (S, S, 3) uint8; ratio: (S, S) of the light, linear; after: (478, 3) canonical; rotation: to the view."""

    image: np.ndarray
    ratio: np.ndarray
    flow: _Flow
    after: np.ndarray
    rotation: np.ndarray


class _Flow:
    """Where each pixel of the target comes from: the mesh in its new place, rasterised back to front, and rings around it that fade out.

    source, target: (478, 3) view pixels before and after. still: the source's points with the head's turn alone. closing: whether the left,
    right eye closes. size: side of the picture. shut: (2,) 0-1, how far each eye is asked to close.
    """

    def __init__(self, source: np.ndarray, target: np.ndarray, still: np.ndarray, closing: list[bool], size: int, shut: np.ndarray) -> None:
        self.size = size
        centre = source[_OVAL, :2].mean(0)
        pieces_source, pieces_target = [source[:468, :2]], [target[:468, :2]]
        rigid, own = (still - source)[_OVAL, :2], (target - still)[_OVAL, :2]
        for factor, follow, follow_above in _RINGS:
            place = centre + (source[_OVAL, :2] - centre) * factor
            pieces_source.append(place)
            pieces_target.append(place + follow * rigid + np.where(_UPPER_OVAL, follow_above, follow) * own)
        self.target = np.concatenate(pieces_target).astype(np.float32)
        origin = np.concatenate(pieces_source).astype(np.float32)
        for side in (0, 1):
            # The tracker's margins lie a little inside the opening: skin that closes an eye must not drag its white along.
            upper, lower, (outer, inner) = _LIDS[side]
            inset = 0.045 * float(np.linalg.norm(source[outer, :2] - source[inner, :2])) * min(2 * float(shut[side]), 1.0)
            across = source[lower, :2] - source[upper, :2]
            across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1.0)
            origin[upper] -= inset * across
            origin[lower] += inset * across
        faces, groups, over = _all_faces()
        depth = np.concatenate([target[:468, 2], np.full(len(self.target) - 468, 1e6)])[faces].mean(1)
        depth[groups == EYE] += 1e3  # a lid lies over the ball
        depth[groups == MOUTH] += 1e3
        depth[over] -= 2.0  # where they meet, the upper lid and the upper lip end over the lower: one line, not dots
        a, b, c = (self.target[faces[:, i]] for i in range(3))
        area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
        order = np.argsort(-depth, kind="stable")
        self.order = order[np.abs(area[order]) > 1e-3]
        self.faces, self.groups, self.area = faces, groups, area
        self.shift, self.ball = origin - self.target, (source - still)[:, :2].astype(np.float32)
        self.closing = closing
        canvas = self._drawn(1)
        self.rows, self.columns = np.nonzero(canvas >= 0)
        self.face = canvas[self.rows, self.columns]
        moved, self.index, self.weights = self._moved(self.columns.astype(np.float32), self.rows.astype(np.float32), self.face)
        flow = np.zeros((size, size, 2), np.float32)
        flow[self.rows, self.columns] = moved
        # Where a turned face covers its surroundings the flow jumps: softened, the edge does not look cut out.
        outside = np.ones((size, size), np.float32)
        outside[self.rows, self.columns] = groups[self.face] == AROUND
        soft = cv2.GaussianBlur(cv2.dilate(outside, np.ones((3, 3), np.uint8)), (0, 0), 1.0)[..., None]
        flow += soft * (cv2.GaussianBlur(flow, (0, 0), 1.2) - flow)
        x_axis = np.arange(size, dtype=np.float32)
        self.map_x, self.map_y = flow[..., 0] + x_axis, flow[..., 1] + x_axis[:, None]
        self._refine(flow, soft[..., 0])

    def _drawn(self, fine: int) -> np.ndarray:
        """(size * fine, size * fine) which face is in front at so many places to a pixel's side, -1 where none is."""
        canvas = np.full((self.size * fine, self.size * fine), -1, np.int32)
        corners = np.round((self.target[self.faces] * fine + (fine - 1) / 2) * 16).astype(np.int32)
        for f, corner in zip(self.order.tolist(), corners[self.order], strict=True):
            cv2.fillConvexPoly(canvas, corner, f, cv2.LINE_8, 4)
        return canvas

    def _moved(self, x: np.ndarray, y: np.ndarray, face: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(n, 2) from where, relative to it, a place (n,) in a face (n,) comes; the face's corners and their weights, (n, 3) each."""
        index = self.faces[face]
        pa, pb, pc = (self.target[index[:, i]] for i in range(3))
        inverse = 1.0 / self.area[face]
        wb = ((x - pa[:, 0]) * (pc[:, 1] - pa[:, 1]) - (y - pa[:, 1]) * (pc[:, 0] - pa[:, 0])) * inverse
        wc = ((pb[:, 0] - pa[:, 0]) * (y - pa[:, 1]) - (pb[:, 1] - pa[:, 1]) * (x - pa[:, 0])) * inverse
        # places on a border may lie a little outside their triangle: no extrapolation, which slivers would carry far
        weights = np.stack([1 - wb - wc, wb, wc], 1).clip(0, 1)
        weights /= weights.sum(1, keepdims=True)
        shift = self.shift[index]
        eye = self.groups[face] == EYE
        if eye.any():
            # lids that close slide over the ball, which stays
            right = np.isin(index, np.concatenate([_LIDS[1][0], _LIDS[1][1]])).any(1)
            for side in (0, 1):
                if self.closing[side]:
                    these = eye & (right == bool(side))
                    shift[these] = self.ball[index[these]]
        return np.einsum("nkx,nk->nx", shift, weights), index, weights

    def _refine(self, flow: np.ndarray, soft: np.ndarray) -> None:
        """Where more than a pixel of the source falls on one (a lid over the ball, the corners of a mouth), a pixel is the mean of several
        places: one place alone gives dots and jags. flow: (S, S, 2); soft: (S, S) where its edge has been softened."""
        steps = np.zeros(flow.shape[:2], np.float32)
        for axis in (0, 1):
            step = np.linalg.norm(np.diff(flow, axis=axis), axis=-1)
            steps = np.maximum(steps, np.maximum(*(np.pad(step, [w if a == axis else (0, 0) for a in (0, 1)]) for w in ((0, 1), (1, 0)))))
        crowded = (steps > CROWDED) & (soft < 0.01)
        crowded[self.rows, self.columns] &= self.groups[self.face] != AROUND
        self.crowded = np.nonzero(crowded)
        rows, columns = self.crowded
        places = (np.arange(FINE) - (FINE - 1) / 2) / FINE
        y, x = (v.ravel() for v in np.meshgrid(np.arange(FINE), np.arange(FINE), indexing="ij"))
        at_y, at_x = (rows[:, None] + places[y]).astype(np.float32), (columns[:, None] + places[x]).astype(np.float32)
        if len(rows):
            face = self._drawn(FINE)[rows[:, None] * FINE + y, columns[:, None] * FINE + x]
            moved = np.zeros((*face.shape, 2), np.float32)
            moved[face >= 0] = self._moved(at_x[face >= 0], at_y[face >= 0], face[face >= 0])[0]
            at_x, at_y = at_x + moved[..., 0], at_y + moved[..., 1]
        self.places_x, self.places_y = at_x, at_y

    def warp(self, image: np.ndarray) -> np.ndarray:
        """The source's pixels in their new places, uint8."""
        out = cv2.remap(image, self.map_x, self.map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        if len(self.crowded[0]):
            found = cv2.remap(image, self.places_x, self.places_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
            out[self.crowded] = np.round(found.astype(np.float32).mean(1)).astype(np.uint8)
        return np.asarray(out)

    def skin(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """rows, columns, (n, 3) weights and (n, 3) corners of the pixels of the face's skin."""
        keep = self.groups[self.face] == SKIN
        return self.rows[keep], self.columns[keep], self.weights[keep], self.index[keep]


@cache
def _all_faces() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triangles (M, 3) of the mesh and of the rings around it, their groups (M,), and which are skin along the margins of upper lids and
    upper lip (M,)."""
    mesh = load_mesh()
    faces = np.concatenate([mesh.faces, _ring_faces()])
    groups = np.concatenate([mesh.groups, np.full(len(_ring_faces()), AROUND, np.uint8)])
    return faces, groups, (groups == SKIN) & np.isin(faces, _upper_edges()).any(1)


@cache
def _upper_edges() -> np.ndarray:
    return np.concatenate([_UPPER_INNER, _LIDS[0][0], _LIDS[1][0]])


@cache
def _ring_faces() -> np.ndarray:
    """(M, 3) triangles between the face's contour and the rings around it; ring points count from 468."""
    n = len(_OVAL)
    inner, faces = _OVAL, []
    for ring in range(len(_RINGS)):
        outer = 468 + ring * n + np.arange(n)
        for i in range(n):
            j = (i + 1) % n
            faces += [(inner[i], outer[i], inner[j]), (inner[j], outer[i], outer[j])]
        inner = outer
    return np.array(faces, np.int32)
