"""Do no harm: how far each AU of the personal model may replace the base's, on the evidence of this clip and of people with known truth.

Three witnesses are heard for each AU:

``gain``       on held-out samples of the person, of the same frames as those trained on: the share of the base's error that is gone,
               (MAE_base - MAE_personal) / MAE_base. On people with known truth it says nothing of their own frames short of a disaster:
               AUs with a loss there gained more than others. So it only shuts gates of a training that went wrong, with two to three
               times the base's error.
``agreement``  on the clip's own frames: correlation of the personal with the base reading. Where the base sees a clear movement and the
               personal model none of it, or the opposite, the clip does not say who is right. Short of that it says little: on people with
               known truth AUs with a correlation of up to .8 gained more than others: there the base misreads the person.
``promise``    of the base: how much better it reads this AU of validation people whose neutral it knows. Where that tells it hardly
               anything, nor does a clip.

With labels a fourth is heard and outweighs the others: the error on labelled held-out frames, of which training sees nothing. That the
crop and the landmark branch agree more than before says nothing: on people with known truth the AUs in which they came to agree less gained
more than the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .aus import AUS, COLUMNS


@dataclass
class Evidence:
    """What was seen of each AU, (K,) each, NaN where a witness has nothing to say. moves: standard deviation of the base's reading."""

    gain: np.ndarray
    agreement: np.ndarray
    moves: np.ndarray
    labelled: np.ndarray

    def rows(self) -> dict[str, dict[str, float]]:
        """By AU column, for the report."""
        names = ("gain", "agreement", "moves", "labelled")
        return {c: {n: float(getattr(self, n)[k]) for n in names} for k, c in enumerate(COLUMNS)}


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, K), (N, K) to (K,) Pearson correlations; NaN where ``b`` stands still, 0 where only ``a`` does."""
    a, b = a - a.mean(0), b - b.mean(0)
    norm = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    still = (b**2).mean(0) <= 1e-6
    return np.where(still, np.nan, np.where(norm > 1e-6 * len(a), (a * b).sum(0) / np.maximum(norm, 1e-12), 0.0))


def _relative_gain(base: np.ndarray, personal: np.ndarray, target: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(K,) share of the base's absolute error that is gone, over known labels; NaN below 8 of them."""
    n = known.sum(0)
    before = (np.abs(base - target) * known).sum(0) / np.maximum(n, 1)
    after = (np.abs(personal - target) * known).sum(0) / np.maximum(n, 1)
    return np.where(n >= 8, (before - after) / np.maximum(before, 0.05), np.nan)


def hear(
    held_out: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None,
    frames: dict[str, np.ndarray],
    labelled: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None,
) -> Evidence:
    """Collect the evidence.

    held_out, labelled: (base, personal, target, known), (N, K) each, or None. frames: (N, K) readings of the clip's own frames, 'base' and
    'personal'. Labels decide alone where they are heard, so they are heard of an AU that they show in both states: who never reports it is
    right wherever it is absent.
    """
    nothing = np.full(len(AUS), np.nan)
    few = len(frames["base"]) < 12
    told = nothing
    if labelled is not None:
        *_, target, known = labelled
        both = np.minimum((known & (target >= 1)).sum(0), (known & (target < 1)).sum(0)) >= 3
        told = np.where(both, _relative_gain(*labelled), np.nan)
    return Evidence(
        gain=nothing if held_out is None else _relative_gain(*held_out),
        agreement=nothing if few else _correlation(frames["personal"], frames["base"]),
        moves=frames["base"].std(0) if len(frames["base"]) else np.zeros(len(AUS)),
        labelled=told,
    )


def _ramp(x: np.ndarray, zero: float, one: float, missing: float) -> np.ndarray:
    return np.where(np.isnan(x), missing, np.clip((x - zero) / (one - zero), 0, 1))


def opening(
    evidence: Evidence,
    trusted: np.ndarray | float,
    promise: np.ndarray,
    closed_agreement: float = 0.0,
    open_agreement: float = 0.5,
) -> np.ndarray:
    """(K,) 0-1, how far each gate opens.

    trusted: of the neutral, 0-1, (K,) or for all: a doubtful neutral moves an AU the same wrong way in all frames, and no witness would
    notice. Agreement counts as far as the base sees the AU move; from ``closed_agreement`` to ``open_agreement`` the gate goes from shut to
    open. promise: (K,) share of the base's error on validation people (1 - ICC) that a known neutral takes away. Where there are no labels,
    all are multiplied and decided on: a product of 0.25 leaves a gate shut, one of 0.75 opens it.
    """
    clear = np.clip((evidence.moves - 0.15) / 0.35, 0, 1)
    wide = max(open_agreement, closed_agreement + 1e-3)
    agree = 1 - clear * (1 - _ramp(evidence.agreement, closed_agreement, wide, 1.0))
    gain = _ramp(evidence.gain, -2.0, -1.0, 1.0)
    judged = ~np.isnan(evidence.labelled)
    # A mixture of two readings was worse on validation people than either: weak evidence changes nothing, good evidence everything.
    decided = _ramp(trusted * gain * agree * _ramp(promise, 0.0, 0.08, 1.0), 0.25, 0.75, 0.0)
    return np.where(judged, np.clip(evidence.labelled / 0.05, 0, 1), decided).astype(np.float32)
