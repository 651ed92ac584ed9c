"""The person in the clip: their frames, their neutral, and what the clip covers.

A neutral that is none does harm: the median frame of a clip in which somebody frowns half of the time is a frown. So the neutral is taken
from the frames which the base model finds calmest, seen from the front, agreeing with each other; and it carries a confidence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .aus import AUS, COLUMNS
from .errors import InputError
from .faces import Observation

_BLINK = [AUS.index(43), AUS.index(5)]
_SPEECH = [AUS.index(25), AUS.index(26)]
_UNKNOWN_IN = {12: (6,), 25: (17, 23, 24, 28)}
"""In a face that smiles the cheeks are up, however faintly the base reads it; and how chin and closed lips rest, an open mouth does not
show."""
NEAR_S = 0.25
"""Seconds around the moment that the user calls neutral in which frames are."""
CLEAR = 0.5
"""Share of the face that must be seen, by the tracker's 'occlusion', for a frame to be at rest: behind a hand every face looks calm."""
GRIMACE, LIVELY = (12.0, 24.0), (4.0, 8.0)
"""Summed intensity of the neutral's frames from which on, and up to which: it is trusted less as a whole (none was tried that showed more);
what an AU shows in it is an expression rather than a habit of the face. Chosen on validation people (docs/choices.md)."""
EXCESS, SHOWN = (0.2, 0.5), (0.5, 1.0)
"""How much more of an AU the base reads in the neutral than in the calmest tenth of the clip's frames, and, where the neutral is lively,
how much at all: up to the first it rests there, from the second on it does not. Chosen on validation people (docs/choices.md)."""
LASTS_S = 0.3
"""Seconds before and after a frame over which it must be calm: an instant between two expressions, or before one, is no rest. Chosen on
validation people (docs/choices.md)."""
CALM = 2.5
"""Summed intensity that a calm frame may have above the neutral's. Chosen on validation people (docs/choices.md)."""


@dataclass
class Neutral:
    """The resting face of a person.

    indices: observations it was taken from, calmest first. crops: (M, 112, 112, 3) uint8, the best of them, at most 6. landmarks:
    (478, 3) float32, their robust mean, NaN where the tracker gives no point, or None without landmarks. confidence: 0-1, how well the face
    was seen, in how many frames, and that it was not grimacing. resting: (K,) 0-1, whether an AU rests in it: a face may hold up its brows
    for a whole clip and rest otherwise. plenty: 0-1, what of the confidence the number of frames decides.
    """

    indices: np.ndarray
    crops: np.ndarray
    landmarks: np.ndarray | None
    confidence: float
    resting: np.ndarray = field(default_factory=lambda: np.ones(len(AUS), np.float32))
    plenty: float = 1.0

    @property
    def trusted(self) -> np.ndarray:
        """(K,) 0-1, how far it tells what each AU looks like at rest."""
        return np.asarray(self.confidence * self.resting, np.float32)

    @property
    def calm(self) -> np.ndarray:
        """(K,) 0-1, the same but for how few frames it was seen in: one calm photograph is calm."""
        return self.trusted / self.plenty


@dataclass
class Identity:
    """One person of a clip, as generators and the fit see them.

    observations: at most a few hundred, spread over the clip, in order of time. intensity: (N, K) what the base model expects in them.
    neutral: None where no frame is usable. size: (width, height) of the frames. scheme: of the tracker's landmarks. unsure: (K,) 0-1, how
    unsure the base model is of each AU in these frames; .5: as of the average AU.
    """

    name: str
    observations: list[Observation]
    intensity: np.ndarray
    neutral: Neutral | None
    size: tuple[int, int]
    scheme: str = "mesh478"
    unsure: np.ndarray = field(default_factory=lambda: np.zeros(len(AUS), np.float32))

    def coverage(self) -> dict[str, object]:
        """What the clip shows: range of poses in degrees, share of frames with each AU at B level or more, mean brightness and quality."""
        poses = np.degrees(np.array([o.pose for o in self.observations]))
        light = np.array([o.crop.mean() for o in self.observations]) / 255
        return {
            "frames": len(self.observations),
            "pitch": [float(x) for x in np.percentile(poses[:, 0], [2, 98])],
            "yaw": [float(x) for x in np.percentile(poses[:, 1], [2, 98])],
            "aus": dict(zip(COLUMNS, (self.intensity >= 2).mean(0).round(3).tolist(), strict=True)),
            "brightness": float(light.mean()),
            "quality": float(np.mean([o.quality for o in self.observations])),
        }


def activity(intensity: np.ndarray) -> np.ndarray:
    """(N,) summed intensity of (N, K); speech and blinks count more: an open mouth is not at rest."""
    weight = np.ones(len(AUS))
    weight[_BLINK], weight[_SPEECH] = 1.5, 1.2
    return np.asarray(intensity @ weight)


def calm_frames(intensity: np.ndarray, at_rest: np.ndarray) -> np.ndarray:
    """(N,) bool, which frames the neutral vouches for: those that hardly show more than its own, by :data:`CALM`.

    intensity: (N, K) that the base expects in all frames. at_rest: (M, K) that it expects in the neutral's.
    """
    return np.asarray(activity(intensity) <= np.median(activity(at_rest)) + CALM)


def is_named(observation: Observation, at: float | str) -> bool:
    """Whether the user calls this frame neutral. at: seconds into a clip, :data:`NEAR_S` before and after, or a picture."""
    return observation.file == Path(at).name if isinstance(at, str) else abs(observation.timestamp - at) <= NEAR_S + 1e-6


def find_neutral(observations: list[Observation], intensity: np.ndarray, at: float | str | None = None) -> Neutral | None:
    """The person's neutral, or None where there is no usable frame.

    intensity: (N, K) that the base model expects without a neutral. at: the user's own choice, as in :func:`is_named` (InputError where no
    such frame can be used). Otherwise: frames are ranked by :func:`activity` for as long as it lasts, plus a penalty for turning away and
    for bad quality; the calmest twentieth (3 to 25 frames) are kept, those whose landmarks disagree with their median are dropped. Frames
    in which something covers the face (:data:`CLEAR`) are passed over; where hardly any other is left, they count as far as it is seen.
    However lively the calmest are, on people with known truth an AU of theirs was as good a neutral as another as long as it rested itself:
    so that is asked for each AU (:data:`EXCESS`, :data:`SHOWN`, :data:`LIVELY`).
    """
    usable = np.array([i for i, o in enumerate(observations) if o.quality > 0.05 and o.crop is not None])
    if len(usable) == 0:
        return None
    times = np.array([o.timestamp for o in observations])
    if at is not None:
        chosen = np.array([i for i in usable if is_named(observations[i], at)], dtype=np.int64)
        if not len(chosen):
            if isinstance(at, str):
                raise InputError(f"no face that can be used is seen in {at}: name another picture with --neutral.")
            nearest = times[usable][np.abs(times[usable] - at).argmin()]
            raise InputError(f"no face that can be used is seen around --neutral {at:g}: the nearest is at {nearest:.1f} s.")
        if not isinstance(at, str):
            chosen = chosen[np.argsort(np.abs(times[chosen] - at), kind="stable")]
        return _merge(observations, chosen, 1.0)
    seen = np.array([o.parts.get("occlusion", 1.0) for o in observations])
    clear = usable[seen[usable] >= CLEAR]
    if len(clear) >= max(3, len(usable) // 20):
        usable = clear
    active = activity(intensity)
    turned = np.array([np.hypot(o.pose[0], o.pose[1]) for o in observations])
    quality = np.array([o.quality for o in observations])
    score = _around(active, times, [o.file for o in observations]) + 3.0 * np.clip(turned - 0.12, 0, None) / 0.35 + 1.5 * (1 - quality)
    order = usable[np.argsort(score[usable], kind="stable")]
    keep = order[: int(np.clip(len(usable) // 20, min(3, len(usable)), 25))]
    plenty = 0.4 + 0.6 * min(1.0, len(usable) / 25)
    lively = np.median(active[keep])
    calm = float(_below(lively, *GRIMACE))
    neutral = _merge(observations, keep, calm * plenty * min(float(np.median(seen[keep])) / CLEAR, 1.0))
    neutral.plenty = plenty
    shown, lowest = np.median(intensity[neutral.indices], axis=0), np.quantile(intensity[usable], 0.1, axis=0)
    habit = np.maximum(_below(shown, *SHOWN), _below(lively, *LIVELY))
    neutral.resting = (_below(shown - lowest, *EXCESS) * habit).astype(np.float32)
    for au, others in _UNKNOWN_IN.items():
        rows = [AUS.index(other) for other in others]
        neutral.resting[rows] = np.minimum(neutral.resting[rows], neutral.resting[AUS.index(au)])
    return neutral


def _around(active: np.ndarray, times: np.ndarray, files: list[str]) -> np.ndarray:
    """(N,) what each frame shows, or the frames within :data:`LASTS_S` of it in the mean, where that is more. times: (N,) seconds; files:
    names of photographs, which stand for themselves, or ''."""
    near = (np.abs(times[:, None] - times) <= LASTS_S + 1e-6) & (np.array(files)[:, None] == np.array(files))
    return np.asarray(np.maximum(active, near @ active / near.sum(1)))


def _below(x: np.ndarray, one: float, zero: float) -> np.ndarray:
    return np.asarray(np.clip((zero - x) / (zero - one), 0, 1))


def _merge(observations: list[Observation], chosen: np.ndarray, confidence: float) -> Neutral:
    known = np.array([i for i in chosen if observations[i].landmarks is not None], dtype=np.int64)
    if len(known) == 0:
        return Neutral(chosen, _crops(observations, chosen), None, confidence)
    chosen, points = known, np.stack([observations[i].landmarks for i in known])
    given = np.isfinite(points).all(0)  # a tracker of 68 points leaves the rest of the mesh unknown
    stack = np.where(given, points, 0)
    median = np.median(stack, axis=0)
    apart = np.sqrt(((stack - median) ** 2).sum(-1).mean(-1))
    agree = apart <= max(2.0 * float(np.median(apart)), 1e-6)
    mean = np.where(given, stack[agree].mean(0), np.nan)
    return Neutral(chosen[agree], _crops(observations, chosen[agree]), mean.astype(np.float32), confidence)


def _crops(observations: list[Observation], chosen: np.ndarray) -> np.ndarray:
    return np.stack([observations[int(i)].crop for i in chosen[:6]])
