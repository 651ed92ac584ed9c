"""What a generator is asked for: AUs, intensities and poses, balanced, more of what the clip lacks and the base is weak or unsure in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .aus import AUS
from .generators import Request
from .identity import Identity

_SINGLES = tuple(a for a in AUS if a not in (25, 26))
_BROKEN = (
    *((6,), (12,), (6, 4), (12, 17), (17,), (17, 4), (17, 9), (15,), (6, 9), (12, 4), (1, 2), (1, 4)),
    *((4, 7), (9, 10), (6, 12), (15, 17), (14,), (20,), (24, 17), (25,), (26,), (25, 12), (26, 1, 2), (43,)),
)
"""Combinations that break co-activations on purpose: AU6 without AU12, AU17 without AU15, and their companions."""
LEVELS = np.array([0.5, 1.5, 2.5, 3.5, 5.0])
"""Edges of the cells of intensity: about A, B, C, and D with E."""
ENOUGH = 0.05
"""Share of the frames from which on a clip shows something."""
TURN = float(np.radians(8.0))
"""How far beyond a pose that the clip shows a face is turned, radians."""
_POSES = np.radians([(pitch, yaw) for pitch in (-15.0, 0.0, 15.0) for yaw in (-30.0, -15.0, 0.0, 15.0, 30.0)])
"""Middles of the cells of head pose: (P, 2) pitch and yaw, radians."""
_HALF = float(np.radians(7.5))


def balanced(n: int, seed: int, need: np.ndarray | None = None) -> list[Request]:
    """n requests balanced over AUs and intensities: singles, broken and usual combinations, and one in eight at rest.

    need: (K, 4) weights of the cells of AU and intensity, as :func:`needs` gives them, or (K, 1) of AUs; None: all alike.
    """
    rng = np.random.default_rng([seed, 7101])
    weight = np.ones((len(AUS), 1)) if need is None else 0.3 + need
    of_au, of_cell = weight.mean(1), weight * np.diff(LEVELS)
    chance = _shares([of_au[AUS.index(a)] for a in _SINGLES])
    together = _shares([np.mean([of_au[AUS.index(a)] for a in combination]) for combination in _BROKEN])
    requests = []
    for i in range(n):
        kind = i % 8
        if kind == 0:
            aus: dict[int, float] = {}
        elif kind < 4:
            au = int(rng.choice(_SINGLES, p=chance))
            cell = rng.choice(len(LEVELS) - 1, p=_shares(of_cell[AUS.index(au)]))
            aus = {au: float(rng.uniform(LEVELS[cell], LEVELS[cell + 1]))}
        elif kind < 7:
            level = rng.uniform(1, 4.5)
            combination = _BROKEN[rng.choice(len(_BROKEN), p=together)]
            aus = {a: float(np.clip(level + rng.normal(0, 0.8), 0.5, 5)) for a in combination}
        else:
            chosen = rng.choice(AUS, int(rng.integers(2, 5)), replace=False)
            aus = {int(a): float(rng.uniform(0.3, 4)) for a in chosen}
        requests.append(Request(aus))
    return requests


def of_round(identity: Identity, need: np.ndarray, recipe: dict[str, Any], number: int) -> list[Request]:
    """What a round of a fit asks for. need: as of :func:`balanced`. number: of the round, from 0."""
    generator, seed = recipe["generator"], recipe["seed"] * 1000 + number
    return lacking_poses(balanced(generator["samples"], seed, need), identity, generator["turned"], seed)


def needs(identity: Identity, reliability: np.ndarray) -> np.ndarray:
    """(K, 4) 0.2-3.2, how much each cell of AU and intensity deserves to be asked for: more where the clip shows nothing of it
    (:data:`ENOUGH`), where the base is weak on everybody and where it is unsure of this very person.

    reliability: (K,) 0-1, :meth:`Base.reliability`.
    """
    cell = np.digitize(identity.intensity, LEVELS[:-1])  # 0: too faint for any
    shown = np.stack([(cell == number).mean(0) for number in range(1, len(LEVELS))], axis=1)
    weak = 1 - np.clip(np.nan_to_num(reliability), 0, 1)
    return np.asarray(0.2 + (1 - np.clip(shown / ENOUGH, 0, 1)) + (weak + identity.unsure)[:, None])


def _shares(weights: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.asarray(weights) / np.sum(weights)


def spread_poses(requests: Sequence[Request], identity: Identity, seed: int) -> list[Request]:
    """The requests with head poses drawn evenly over what the clip shows and up to :data:`TURN` beyond, whatever the AUs."""
    shown = _shown(identity)
    low, high = np.percentile(shown, [2, 98], axis=0)
    rng = np.random.default_rng([seed, 7102])
    return [_turned(request, rng.uniform(low - TURN, high + TURN), shown) for request in requests]


def lacking_poses(requests: Sequence[Request], identity: Identity, share: float, seed: int) -> list[Request]:
    """The requests, a share of them in head poses that the clip hardly shows, whatever the AUs; the others in any pose.

    A cell of 15 by 15 degrees is lacking as far as it holds less than :data:`ENOUGH` of the frames, and no further than :data:`TURN` from
    a frame. Where none is, the requests stay as they are.
    """
    shown = _shown(identity)
    apart = np.abs(shown[:, None] - _POSES).max(2)
    held = np.bincount(apart.argmin(1), minlength=len(_POSES)) / len(shown)
    lacking = np.where(apart.min(0) <= _HALF + TURN, 1 - np.clip(held / ENOUGH, 0, 1), 0.0)
    if not lacking.any():
        return list(requests)
    rng, chance = np.random.default_rng([seed, 7103]), _shares(lacking)
    out = []
    for request in requests:
        cell = _POSES[rng.choice(len(_POSES), p=chance)]
        wanted = rng.uniform(cell - _HALF, cell + _HALF)
        out.append(_turned(request, wanted, shown) if rng.random() < share else request)
    return out


def _shown(identity: Identity) -> np.ndarray:
    """(N, 2) pitch and yaw of the clip's frames as an upright picture shows them, radians."""
    return np.array([o.upright[:2] for o in identity.observations])


def _turned(request: Request, wanted: np.ndarray, shown: np.ndarray) -> Request:
    """The request in the pose nearest to the one wanted that is no further than :data:`TURN` from a frame."""
    near = shown[int(np.abs(shown - wanted).max(1).argmin())]
    pitch, yaw = near + np.clip(wanted - near, -TURN, TURN)
    return replace(request, pose=(float(pitch), float(yaw), 0.0))
