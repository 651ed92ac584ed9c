"""What a face does: single expressions for training and time courses for clips, as AU intensities 0-5.

Emotional prototypes alone would teach a model that AU6 means AU12; so AUs are sampled independently, in plausible pairs that are no
emotion, and in speech, as well as in prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..aus import AUS
from .person import Person, controls

COMBINATIONS: tuple[tuple[int, ...], ...] = (
    (6, 12), (6, 12, 7), (12,), (6,), (6, 4), (6, 9), (6, 7), (6, 10), (6, 17), (6, 15), (12, 1, 2), (12, 17), (12, 24), (12, 9),
    (12, 15), (1,), (2,), (1, 2), (1, 2, 5), (1, 4), (1, 4, 15), (1, 15, 17), (1, 2, 4), (4,), (4, 7), (4, 17), (4, 24),
    (4, 5, 7, 23), (4, 9), (4, 43), (2, 14), (9,), (9, 17), (9, 10), (9, 10, 17), (9, 4, 17), (10,), (10, 17), (10, 12), (10, 6),
    (10, 16), (14,), (14,), (14, 17), (15,), (15, 17), (15, 24), (15, 4), (16,), (16, 20), (17,), (17, 24), (17, 23), (17, 18), (17, 7),
    (17, 1, 2), (18,), (18, 22), (20,), (20, 1, 2, 4), (20, 5), (20, 12), (22,), (22, 5), (23,), (23, 7), (24,), (24, 4), (28,),
    (28, 1), (43,), (43, 12), (43, 7), (5,), (5, 2), (7,), (7, 2), (18, 1, 2), (18, 4), (18, 6), (22, 4), (22, 1, 2), (22, 6),
    (20, 4), (20, 6), (20, 17), (20, 9), (24, 6), (24, 9), (24, 1, 2), (24, 43), (28, 4), (28, 6), (28, 7), (28, 9), (28, 5), (28, 43),
    (16, 6), (16, 4), (16, 1), (23, 6), (23, 9), (23, 4), (23, 24), (22, 43), (6, 43), (15, 9), (9, 6, 17),
)  # fmt: skip
"""Plausible sets of AUs that go together, prototypes and many that are none."""
USUAL: tuple[tuple[int, ...], ...] = (
    (6, 12), (6, 12), (6, 12), (6, 7, 12), (1, 2), (1, 2, 5), (4, 7), (4, 7), (4, 5, 7, 24), (1, 4, 15), (1, 4, 15, 17), (15, 17), (17, 24),
    (17, 24), (9, 10), (4, 7, 9), (9, 10, 17), (4, 9), (4, 9, 17), (4, 7, 17), (23, 24), (2, 5, 20), (7, 43),
    (4, 6, 7, 43), (4, 6, 10, 43), (4, 7, 9, 43), (1, 4, 6, 43), (1, 4, 17, 43), (4, 6, 15, 17), (4, 6, 12, 43),
    (4, 6, 12, 17, 43), (12, 17, 24), (1, 4, 17, 20),
)  # fmt: skip
"""What people's faces do most: smiles, worry, anger, disgust, pain (brows, cheeks or lids, nose or lip, eyes closed: Prkachin and Solomon,
Pain 139, 2008), tears, smiles held back. A model that never meets it takes a grin's raised cheeks for chance. So often that no pair
correlates above .3 in the training set, far less than in life, lest one AU stand for another."""
_EXCLUSIVE = (
    (5, 43), (18, 20), (22, 20), (12, 15), (24, 22), (28, 18), (28, 22), (24, 18), (28, 24), (16, 28), (16, 24), (20, 24), (23, 28),
    (23, 20), (18, 23), (10, 28),
)  # fmt: skip
_SELDOM = ((12, 14),)
"""What gives way in half of all cases: else dimpler, whose corners of the mouth a smile pulls away, would be read into every smile."""
_CHANCE = {
    1: 0.20, 2: 0.20, 4: 0.22, 5: 0.36, 6: 0.26, 7: 0.25, 9: 0.29, 10: 0.28, 12: 0.44, 14: 0.27, 15: 0.43, 16: 0.06, 17: 0.28,
    18: 0.30, 20: 0.16, 22: 0.14, 23: 0.16, 24: 0.36, 28: 0.54, 43: 0.33,
}  # fmt: skip
"""How often each AU is part of an independent set, fitted to even out what the combinations and the exclusions leave; for :data:`_SHAPES`
the weights of a draw among them."""
_SHAPES = (16, 18, 20, 22, 23, 24, 28)
"""What the lips do: some of these at a time, most exclude each other."""
_CLOSED_LIPS = (17, 18, 23, 24, 28, 14)
_LIPS = [AUS.index(a) for a in _CLOSED_LIPS]
_PRESSED = [AUS.index(a) for a in (24, 28)]
_PARTED = [AUS.index(a) for a in (10, 16, 22)]


@dataclass
class Motion:
    """A time course. T frames. aus: (T, K) intensities 0-5 as driven (AU25, AU26 still 0: they are measured); extra: (T, C) further control
    values (jaw, lips, gaze lids, speech); pose: (T, 3) radians pitch, yaw, roll; gaze: (T, 2) radians right, down."""

    aus: np.ndarray
    extra: np.ndarray
    pose: np.ndarray
    gaze: np.ndarray


def _control(name: str) -> list[int]:
    names = controls()[0]
    return [i for i, n in enumerate(names) if n in (name, name + "Left", name + "Right")]


def _settle(aus: np.ndarray, rng: np.random.Generator) -> None:
    """Antagonists do not show at full strength together: of such a pair one gives way, of what is seldom together half the time."""
    for a, b in _EXCLUSIVE + _SELDOM:
        i, j = AUS.index(a), AUS.index(b)
        if min(aus[i], aus[j]) > 0.5 and ((a, b) not in _SELDOM or rng.random() < 0.5):
            aus[i if rng.random() < 0.5 else j] *= rng.uniform(0, 0.25)


def _intensity(rng: np.random.Generator) -> float:
    """Skewed towards the faint: half of all below C level."""
    return float(np.clip(rng.beta(1.3, 1.5) * 5.2 + 0.15, 0.2, 5.0))


def sample_still(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One expression: (K,) intensities and (C,) further control values."""
    aus = np.zeros(len(AUS), np.float32)
    kind = rng.choice(["neutral", "single", "usual", "combination", "independent", "speech"], p=[0.05, 0.09, 0.30, 0.20, 0.28, 0.08])
    if kind == "single":
        aus[AUS.index(int(rng.choice(list(_CHANCE))))] = _intensity(rng)
    elif kind == "usual":
        level = _intensity(rng)
        for au in USUAL[rng.integers(len(USUAL))]:
            if rng.random() < 0.9:
                aus[AUS.index(au)] = np.clip(level + rng.normal(0, 0.8), 0.2, 5)
    elif kind == "combination":
        for _ in range(1 + (rng.random() < 0.45)):
            level = _intensity(rng)
            for au in COMBINATIONS[rng.integers(len(COMBINATIONS))]:
                aus[AUS.index(au)] = np.clip(level + rng.normal(0, 1.0), 0.2, 5)
    elif kind == "independent":
        chosen = [au for au, chance in _CHANCE.items() if au not in _SHAPES and rng.random() < chance]
        weights = np.array([_CHANCE[au] for au in _SHAPES])
        shapes: list[int] = []
        for au in rng.choice(_SHAPES, len(_SHAPES), replace=False, p=weights / weights.sum()).tolist():
            if not any({au, other} in map(set, _EXCLUSIVE) for other in shapes) and rng.random() < (0.4 if shapes else 0.95):
                shapes.append(au)
        for au in (*chosen, *shapes):
            aus[AUS.index(au)] = _intensity(rng)
    elif kind == "speech":
        for au in rng.choice([18, 22, 20, 16, 10, 12, 14, 17, 23, 24], 2, replace=False):
            aus[AUS.index(int(au))] = rng.uniform(0.2, 4)
        for au in rng.choice([1, 2, 4, 6, 7, 9], int(rng.integers(0, 3)), replace=False):
            aus[AUS.index(int(au))] = _intensity(rng)
    _settle(aus, rng)
    extra = np.zeros(len(controls()[0]), np.float32)
    pressed, closed, parted = (aus[rows].max() > 1.0 for rows in (_PRESSED, _LIPS, _PARTED))
    # So that AU25 tells little of what else the lips do.
    if rng.random() < (0.25 if pressed else 0.1 if parted else 1.0 if kind == "speech" else 0.6 if closed else 0.95):
        _part_or_drop(extra, rng, pressed, float(aus[AUS.index(12)]) / 5)
    for name in ("jawLeft", "jawRight", "jawForward", "mouthLeft", "mouthRight", "cheekPuff"):
        if rng.random() < 0.04:
            extra[_control(name)] = rng.uniform(0, 0.6)
    return aus, extra


def _part_or_drop(extra: np.ndarray, rng: np.random.Generator, closed: bool, smile: float) -> None:
    """Hardly more than part the lips, drop the jaw behind closed lips, or both: else AU25 and AU26 would be one to a model. smile: 0-1."""
    jaw, part = float(rng.beta(1.1, 2.0)), float(rng.uniform(0, 1))
    kind = rng.choice(["part", "drop", "both"], p=[0.2, 0.6, 0.2] if closed else [0.5, 0.15, 0.35])
    if kind == "part":
        _open(extra, 0.3 * float(rng.uniform(0, 1)), part, smile)
    elif kind == "drop":
        _open(extra, jaw * 0.8, 0)
        extra[_control("mouthClose")] += jaw * 0.8 * 0.75  # raises the lower lip by as much as the jaw takes it down
    else:
        _open(extra, jaw, part, smile)


def _open(extra: np.ndarray, jaw: float, part: float, smile: float = 0.0) -> None:
    """Drop the jaw (0-1) and part the lips (0-1) beyond what the jaw does: as far as they smile (0-1), up and down from the teeth."""
    extra[_control("jawOpen")] += jaw * 0.75
    extra[_control("mouthLowerDown")] += part * 0.35
    extra[_control("mouthUpperUp")] += part * (0.2 + 0.6 * smile)
    extra[_control("mouthClose")] -= part * 0.35 * smile


def _bell(t: np.ndarray, start: float, rise: float, hold: float, fall: float) -> np.ndarray:
    """Onset, apex, offset: 0 to 1 and back with smooth (cosine) flanks; seconds."""
    up = np.clip((t - start) / rise, 0, 1)
    down = np.clip((t - start - rise - hold) / fall, 0, 1)
    smooth = 0.5 - 0.5 * np.cos(np.pi * up)
    return np.asarray(smooth * (0.5 + 0.5 * np.cos(np.pi * down)))


def sample_motion(person: Person, rng: np.random.Generator, seconds: float, fps: float, liveliness: float = 1.0) -> Motion:
    """A natural clip of a person: mostly neutral, expressions in their own habits, speech, blinks, a moving head.

    liveliness: expressions per three seconds; 0.6 is a calm interview, 1.5 an animated one.
    """
    n = max(int(round(seconds * fps)), 1)
    t = np.arange(n) / fps
    aus = np.zeros((n, len(AUS)), np.float32)
    extra = np.zeros((n, len(controls()[0])), np.float32)
    for _ in range(rng.poisson(seconds / 3 * liveliness)):
        if rng.random() < 0.5:
            first = int(rng.choice([a for a in AUS if a not in (25, 26, 43)]))
            chosen = {first: 1.0, **person.habits.get(first, {})}
        else:
            pool = USUAL if rng.random() < 0.5 else COMBINATIONS
            chosen = {au: float(rng.uniform(0.5, 1)) for au in pool[rng.integers(len(pool))]}
        chosen = {a: r for a, r in chosen.items() if a not in (25, 26)}
        level = _intensity(rng)
        start, rise, hold, fall = (
            rng.uniform(0, max(seconds - 1, 0.1)),
            rng.uniform(0.15, 0.8),
            rng.uniform(0.2, 1.8),
            rng.uniform(0.25, 1.2),
        )
        for au, ratio in chosen.items():
            lag = float(rng.uniform(0, 0.2))
            k = AUS.index(au)
            aus[:, k] = np.maximum(aus[:, k], np.clip(level * ratio, 0, 5) * _bell(t, start + lag, rise, hold, fall))
        smile = min(level * chosen.get(12, 0.0) / 5, 1.0)
        if rng.random() < (0.6 if smile else 0.3) and not set(chosen) & set(_CLOSED_LIPS):
            course = _bell(t, start, rise, hold, fall)
            jaw, part = float(rng.beta(1.1, 2.5)), float(rng.uniform(0, 1))
            for i in range(n):
                if course[i] > 0:
                    _open(extra[i], jaw * course[i], part * course[i], smile)
    if rng.random() < 0.75:
        _speak(aus, extra, t, rng, rng.uniform(0, seconds * 0.7), rng.uniform(1.5, max(seconds * 0.35, 2)))
    blink = 0.0
    while True:
        blink += float(rng.exponential(3.5)) + 0.4
        if blink > seconds:
            break
        aus[:, AUS.index(43)] = np.maximum(aus[:, AUS.index(43)], 5 * _bell(t, blink, 0.09, rng.uniform(0.02, 0.08), 0.14))
    aus[:, AUS.index(5)] *= 1 - aus[:, AUS.index(43)] / 5

    def wander(scale: float, time_scale: float) -> np.ndarray:
        steps = rng.normal(0, 1, n + 1)
        out = np.zeros(n)
        keep = float(np.exp(-1 / (fps * time_scale)))
        value = steps[0]
        for i in range(n):
            value = keep * value + np.sqrt(1 - keep**2) * steps[i + 1]
            out[i] = value
        kernel = np.hanning(max(int(fps * 0.5) | 1, 3))
        pad = len(kernel) // 2
        return np.asarray(np.convolve(np.pad(out, pad, mode="edge"), kernel / kernel.sum(), "valid")[:n] * scale)

    centre = rng.normal(0, 1, 3) * [0.08, 0.14, 0.04]
    pose = np.stack([wander(0.10, 1.5), wander(0.22, 2.0), wander(0.06, 2.0)], 1) + centre
    gaze = np.stack([wander(0.15, 0.6), wander(0.08, 0.6)], 1)
    extra[:, _control("eyeLookDown")] += np.clip(gaze[:, 1:2] * 1.6, 0, 0.8)
    extra[:, _control("eyeLookUp")] += np.clip(-gaze[:, 1:2] * 1.6, 0, 0.8)
    return Motion(aus, extra, pose.astype(np.float32), gaze.astype(np.float32))


def _speak(aus: np.ndarray, extra: np.ndarray, t: np.ndarray, rng: np.random.Generator, start: float, length: float) -> None:
    """Syllables at 3-5 Hz: jaw, rounding, spreading, closing."""
    at = start
    while at < start + length:
        span = float(rng.uniform(0.16, 0.34))
        course = _bell(t, at, span * 0.4, span * 0.2, span * 0.4)
        kind = rng.choice(["open", "round", "spread", "closed"], p=[0.45, 0.2, 0.2, 0.15])
        active = course > 0
        if kind in ("open", "spread"):
            jaw, part = float(rng.beta(1.5, 4)), float(rng.uniform(0.1, 0.8))
            for i in np.flatnonzero(active):
                _open(extra[i], jaw * float(course[i]), part * float(course[i]))
        au, top = {"round": ((18, 22)[rng.integers(2)], 2.5), "spread": (20, 1.2), "closed": (24, 1.5), "open": (16, 1.0)}[str(kind)]
        k = AUS.index(int(au))
        aus[:, k] = np.maximum(aus[:, k], float(rng.uniform(0.2, top)) * course)
        at += span * 0.85
