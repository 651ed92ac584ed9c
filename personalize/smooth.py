"""A causal filter that takes the flicker out of a clip's intensities: each frame's reading is mixed with what came before, never after.

Large moves pass at once, trembling is damped; how large is large is learnt for each AU, as the last stage of ``personalize base fit``, from
rendered clips of people that the base was not trained on, tracked and read as users' clips are. It stands in the base's card under
'smoothing'.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError

if TYPE_CHECKING:
    from .weights import Base

PARAMETERS = ("bias", "distance", "change", "interval")
"""Rows of the filter's parameters, in this order, as they are named in the card."""
FLOOR = 0.25
"""Least share a of a new reading. It bounds the filter's delay, (1 - a) / a frames, to 3, whatever moves and however it was fitted."""
HALF_AT, LEAST_SLOPE = 1.0, 2.0
"""Bounds of a fit: the sigmoid is half open at this distance at most, and at least so steep. With them a step of 3 is followed to 80 % by
its second frame, up to 60 frames a second, however badly a base reads an AU."""
MAX_GAP_S = 0.5
"""A face unseen for longer starts anew."""
FIRST_PERSON = 900_000
"""Training people from this index on are none of a base's."""
RATES = (60.0, 30.0, 30.0, 24.0)
"""Frames a second of the rendered clips, in turn; fitting thins them out down to ``SLOWEST``."""
SLOWEST = 9.5
WINDOW = 64
"""Frames that the fit follows at a time."""


class Smoother:
    """The filter s += a * (x - s) of each face, s the last reported and x the new intensities (K,), with

        a = FLOOR + (1 - FLOOR) * sigmoid(bias + distance * |x - s| + change * |x - x_before| + interval * log(25 * dt)),

    dt the seconds since the face's last reading. params: (4, K), rows as in ``PARAMETERS``.

    >>> smoother = Smoother(np.array([[-3.0], [2.0], [0.0], [0.0]]))
    >>> [round(float(smoother(0, i / 25, np.array([x]))[0]), 2) for i, x in enumerate([1.0, 1.2, 1.0, 4.0, 4.0])]
    [1.0, 1.06, 1.05, 3.86, 3.9]
    """

    def __init__(self, params: np.ndarray) -> None:
        self.params = np.asarray(params, np.float64)
        self._faces: dict[int, tuple[float, np.ndarray, np.ndarray]] = {}

    def __call__(self, face_id: int, timestamp: float, intensities: np.ndarray) -> np.ndarray:
        """(K,) float32: the face's next intensities, smoothed. timestamp: seconds, rising for each face."""
        x = np.asarray(intensities, np.float64)
        state = x
        if face_id in self._faces:
            time, before, state = self._faces[face_id]
            if timestamp - time > MAX_GAP_S:
                state = x
            else:
                dt = np.log(25 * max(timestamp - time, 1e-3))
                rows = np.stack([np.ones_like(x), np.abs(x - state), np.abs(x - before), np.full_like(x, dt)])
                state = state + (FLOOR + (1 - FLOOR) / (1 + np.exp(-(self.params * rows).sum(0)))) * (x - state)
        self._faces[face_id] = (timestamp, x, state)
        return state.astype(np.float32)


@dataclass(frozen=True)
class Course:
    """One face over time. times: (T,) seconds; readings, truth: (T, K) intensities 0-5."""

    times: np.ndarray
    readings: np.ndarray
    truth: np.ndarray

    def thinned(self, step: int) -> Course:
        """Every ``step``-th frame."""
        return Course(self.times[::step], self.readings[::step], self.truth[::step])

    def smoothed(self, params: np.ndarray) -> np.ndarray:
        """(T, K): the readings after the filter."""
        smoother = Smoother(params)
        return np.stack([smoother(0, float(t), x) for t, x in zip(self.times, self.readings, strict=True)])


def sequences_from_clips(
    base: Base,
    people: int,
    seconds: float,
    split: str = "train",
    first: int = FIRST_PERSON,
    rates: Sequence[float] = RATES,
    folder: Path | None = None,
) -> list[Course]:
    """Clips of ``people`` people of a split from index ``first`` on, filmed, tracked and read as users' clips are; without those in whom
    no face is found. rates: frames a second, in turn. folder: where the clips are kept; by default nowhere."""
    from .bench import track
    from .reader import Reader
    from .synth.clips import Clip, render
    from .ui import progress

    reader, found = Reader(base), []
    with tempfile.TemporaryDirectory() as nowhere:
        store = folder or Path(nowhere)
        for i in progress(range(people), people, f"Filming and reading {people} people"):
            clip = Clip(split, first + i, 0, seconds, fps=rates[i % len(rates)], liveliness=1.2)
            render(clip, store / "clips")
            try:
                seen, truth, _ = track(clip, store, {"tracker": {"name": "mediapipe", "options": {}}})
            except InputError:
                continue
            found.append(Course(np.array([o.timestamp for o in seen]), reader.read(seen).base, truth))
    return found


def windows(sequences: Sequence[Course]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stretches of ``WINDOW`` frames at every frame rate that thinning gives: times (W, N), readings and truth (W, N, K).

    What is short of a window is filled with its last frame, at the same time: its weight is 0.
    """
    parts = []
    for course in sequences:
        step = 1
        while len(thin := course.thinned(step).times) > 3 and (step == 1 or np.median(np.diff(thin)) <= 1 / SLOWEST):
            rows = np.arange(0, len(course.times), step)
            for start in range(0, len(rows) - 3, WINDOW - 8):
                taken = rows[start : start + WINDOW]
                parts.append((course, np.pad(taken, (0, WINDOW - len(taken)), mode="edge")))
            step += 1
    if not parts:
        raise InputError("no face was seen for long enough to learn from: film more people, or for longer.")
    times, readings, truth = (
        np.stack([getattr(course, field)[rows] for course, rows in parts], 1) for field in ("times", "readings", "truth")
    )
    return times, readings, truth


def fit_smoother(sequences: Sequence[Course], steadiness: float = 0.35, steps: int = 150) -> np.ndarray:
    """(4, K) parameters, see :class:`Smoother`, by gradient descent through time at every frame rate from 10 up to the clips' own.

    The loss, over time: the error against the truth, and ``steadiness`` times the change from frame to frame beyond the truth's. Where a
    base reads an AU badly, that alone would settle for the slowest filter; so what is far from the last reported must be followed, at once
    or, where change is negative, as soon as a second frame says the same. interval is 0-1: at 1 a small share grows with the time passed.
    """
    import torch
    from torch.nn.functional import softplus

    times, x, truth = (torch.from_numpy(np.asarray(a, np.float32)) for a in windows(sequences))
    dt = times.diff(dim=0)
    logs, keep = (25 * dt.clamp(min=1e-3)).log()[..., None], (dt <= MAX_GAP_S)[..., None]
    weight = dt.clamp(0, MAX_GAP_S)[..., None] * keep
    weight = weight / weight.sum() / x.shape[2]
    moved, jump = truth.diff(dim=0).abs(), x.diff(dim=0).abs()
    raw = torch.tensor([0.0, 1.0, 1.0, -1.0])[:, None].repeat(1, x.shape[2]).requires_grad_()

    def shaped() -> torch.Tensor:
        distance = LEAST_SLOPE + softplus(raw[1])
        half = HALF_AT * torch.sigmoid(raw[0])
        return torch.stack([-distance * half, distance, softplus(raw[2]) - distance, torch.sigmoid(raw[3])])

    optimiser = torch.optim.Adam([raw], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        p = shaped()
        fixed = p[0] + p[2] * jump + p[3] * logs
        state, states = x[0], [x[0]]
        for t in range(len(dt)):
            share = FLOOR + (1 - FLOOR) * torch.sigmoid(fixed[t] + p[1] * (x[t + 1] - state).abs())
            state = torch.where(keep[t], state + share * (x[t + 1] - state), x[t + 1])
            states.append(state)
        s = torch.stack(states)
        excess = (s.diff(dim=0).abs() - moved).clamp(min=0)
        loss = (weight * ((s[1:] - truth[1:]).abs() + steadiness * excess)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return shaped().detach().numpy().astype(np.float64)


def to_card(params: np.ndarray) -> dict[str, list[float]]:
    """The parameters (4, K) as they stand in a card."""
    return {name: [round(float(v), 4) for v in row] for name, row in zip(PARAMETERS, params, strict=True)}


def from_card(card: dict[str, Any], aus: int) -> np.ndarray | None:
    """(4, K) parameters of a base's card, None where it has none. Raises ValueError or KeyError where they cannot be used."""
    if card.get("smoothing") is None:
        return None
    params = np.array([card["smoothing"][name] for name in PARAMETERS], np.float64)
    if params.shape != (len(PARAMETERS), aus) or not np.isfinite(params).all():
        raise ValueError(f"smoothing parameters of shape {params.shape}")
    return params
