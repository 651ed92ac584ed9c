"""Reading faces: observations in, AU intensities out, by the base model or by a person's.

A personal reading never replaces the base's blindly: ``base + gate * clip(personal - base, -trust, trust)`` for each AU, the gate as far
open as the evidence of the person's clip allowed (see :mod:`personalize.gate`). All of it with expected intensities; what is reported of
them is decided last (:meth:`personalize.weights.Base.report`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from .aus import AUS, MAX_INTENSITY
from .errors import ProfileError
from .faces import Observation
from .identity import Neutral
from .model import CROP, POINTS, AUNet
from .profile import Profile
from .weights import Base

REST_SHARE, REST_FLOOR, REST_MOST, REST_PROMISE = 0.9, 0.2, 1.2, 0.04
"""An AU is taken to rest, or to be misread, in this share of a clip's calm frames; readings up to what it stays below there, and so much of
the AU's threshold of presence besides, as far as the base misreads it, are halved, but none above such a multiple of that threshold.
Less is taken out of an AU of which a known neutral takes less than the last share of the base's error. Chosen on validation people
(docs/choices.md)."""
REST_KEPT = 0.02
"""Share of a reading that stays however far it is below what the person shows at rest."""
LASTING_S, GAP_S = 0.4, 0.5
"""Seconds over which a reading is averaged, and within which the highest average counts, before it is compared with the rest: what shows
for longer is more than what a frame trembles by. Frames further apart than the last have nothing to do with each other. Chosen on
validation people (docs/choices.md)."""
DAY_SPAN_S = 5.0
"""Seconds that a clip must last before it is asked what another day adds. Chosen on validation people (docs/choices.md)."""
_AT_ONCE = 64
"""Faces in a pass of the network."""


@dataclass
class Reading:
    """Intensities of N faces. base: (N, K) by the base model; personal: (N, K) by the person's model, gated, or None without a profile.

    expected: (N, K) of the base, what ``base`` reports of it. own: (N, K) of the person's model, gated, before rest is taken out, or None.

    certainty: (N,) 0-1, one minus the mean absolute error over the AUs, in intensity units, that the base expects of itself. spread: (N, K)
    standard deviation of the intensities that the base holds possible, in intensity units.
    """

    base: np.ndarray
    personal: np.ndarray | None
    certainty: np.ndarray
    expected: np.ndarray
    spread: np.ndarray
    own: np.ndarray | None = None

    def __getitem__(self, rows: slice) -> Reading:
        """Some of the faces."""
        personal, own = (None if x is None else x[rows] for x in (self.personal, self.own))
        return Reading(self.base[rows], personal, self.certainty[rows], self.expected[rows], self.spread[rows], own)

    @classmethod
    def join(cls, parts: Sequence[Reading]) -> Reading:
        """Several readings by one reader, at least one, as one."""

        def joined(key: str) -> np.ndarray | None:
            given = [getattr(p, key) for p in parts]
            return None if given[0] is None else np.concatenate(given)

        return cls(*(joined(f.name) for f in fields(cls)))  # type: ignore[arg-type]

    @property
    def best(self) -> np.ndarray:
        """(N, K): the person's where there is one, else the base's."""
        return self.base if self.personal is None else self.personal


def batch_of(observations: Sequence[Observation]) -> dict[str, Tensor]:
    """Observations as a batch of the model, of none too: crop uint8 (B, 3, 112, 112), landmarks (B, 478, 3), has_landmarks (B,)."""
    if not observations:
        crop = torch.zeros(0, 3, CROP, CROP, dtype=torch.uint8)
        return {"crop": crop, "landmarks": torch.zeros(0, POINTS, 3), "has_landmarks": torch.zeros(0, dtype=torch.bool)}
    crop = torch.from_numpy(np.stack([o.crop for o in observations])).permute(0, 3, 1, 2).contiguous()
    blank = np.zeros((POINTS, 3), np.float32)
    landmarks = torch.from_numpy(np.stack([blank if o.landmarks is None else o.landmarks for o in observations]).astype(np.float32))
    return {"crop": crop, "landmarks": landmarks, "has_landmarks": torch.tensor([o.landmarks is not None for o in observations])}


def neutral_tensors(neutral: Neutral) -> dict[str, Tensor]:
    """A person's neutral as :meth:`AUNet.rest_of` takes it: 'crop' uint8 (M, 3, 112, 112), 'landmarks' (1, 478, 3), zeros where unknown."""
    crop = torch.from_numpy(neutral.crops).permute(0, 3, 1, 2).contiguous()
    points = torch.zeros(POINTS, 3) if neutral.landmarks is None else torch.from_numpy(neutral.landmarks)
    return {"crop": crop, "landmarks": points[None]}


@torch.no_grad()
def neutral_features(net: AUNet, neutral: Neutral) -> dict[str, Tensor]:
    """What a profile keeps of a neutral, see :class:`Profile`; without 'landmarks' where they are unknown."""
    tensors = neutral_tensors(neutral)
    features = net.rest_of(tensors["crop"], tensors["landmarks"])
    if neutral.landmarks is None:
        features.pop("landmarks")
    return features


class Reader:
    """Reads batches of observations. With a profile, the adapter's change and the person's neutral are applied to a copy of the base."""

    def __init__(self, base: Base, profile: Profile | None = None, device: str = "cpu") -> None:
        self.base, self.profile, self.device = base, profile, device
        self.net = base.net.to(device)
        self.thresholds = base.thresholds if profile is None else np.asarray(profile.thresholds, np.float32)
        self.own: AUNet | None = None
        self.neutral: dict[str, Tensor] | None = None
        if profile is not None:
            from . import registry

            self.own = base.fresh().to(device)
            if profile.delta:
                file = profile.plugins.get(f"adapters/{profile.adapter}", "")
                if file.endswith(".py") and profile.adapter not in registry.available("adapters"):
                    raise ProfileError(f"the profile needs the adapter '{profile.adapter}' of {file}: give that file with --plugins.")
                registry.create("adapters", profile.adapter, profile.adapter_options).restore(self.own, profile.delta)
            self.own.eval()
            self.neutral = {k: v.float().to(device) for k, v in profile.neutral.items()} or None
            # The backbone is by far the most work; where the person's is the base's, its maps are computed once for both.
            self.shared = not any("backbone" in key for key in profile.delta)

    def read(self, observations: Sequence[Observation], branch: str = "fused") -> Reading:
        """Intensities of some faces, any number. branch: 'fused', or 'crop' or 'landmarks' alone."""
        return Reading.join([self._pass(observations[i : i + _AT_ONCE], branch) for i in range(0, max(len(observations), 1), _AT_ONCE)])

    @torch.inference_mode()
    def _pass(self, observations: Sequence[Observation], branch: str) -> Reading:
        batch = {k: v.to(self.device) for k, v in batch_of(observations).items()}
        maps = self.net.maps(batch["crop"])
        said = _read(self.net, self.net.project(maps), batch, branch)
        expected, spread = said["intensity"].cpu().numpy(), _spread(said).cpu().numpy()
        certainty = np.clip(1 - said["expected_error"].cpu().numpy(), 0, 1)
        base = self.base.report(expected)
        if self.own is None or self.profile is None:
            return Reading(base, None, certainty, expected, spread)
        look = self.own.project(maps if self.shared else self.own.maps(batch["crop"]))
        personal = _read(self.own, look, batch, branch, self.neutral)["intensity"].cpu().numpy()
        own = blend(expected, personal, self.profile.gate, self.profile.trust)
        return Reading(base, self.personal(own), certainty, expected, spread, own)

    def read_clip(self, observations: Sequence[Observation]) -> Reading:
        """As :meth:`read`, all faces of one person in one clip, in order of time: reported as :meth:`in_clip` does."""
        found = self.read(observations)
        if found.own is not None:
            found.personal = self.in_clip(found.own, found.expected, [o.timestamp for o in observations])
        return found

    def in_clip(self, own: np.ndarray, expected: np.ndarray, times: Sequence[float]) -> np.ndarray:
        """(N, K) what is reported of the person's readings of one clip, arguments as :meth:`another_day`: without what another day adds and
        what is no more than rest, which decides what is :func:`lasting`."""
        return self.personal(own, self.another_day(own, expected, times), times)

    def personal(self, own: np.ndarray, day: np.ndarray | float = 0.0, times: Sequence[float] = ()) -> np.ndarray:
        """(N, K) what is reported of ``own`` (N, K), expected intensities of the person's model, gated. day: (K,) what another day adds.
        times: (N,) seconds, rising; none: each frame for itself."""
        assert self.profile is not None
        known = 0.0 if self.neutral is None else self.profile.gate
        shown = np.clip(own - day, 0, MAX_INTENSITY)
        return self.base.report(without_rest(shown, self.profile.offsets, lasting(shown, times) if len(times) else None), known)

    def another_day(self, own: np.ndarray, expected: np.ndarray, times: Sequence[float]) -> np.ndarray:
        """(K,) how much of the person's readings of a clip comes of another day: another light, camera, beard.

        Then the neutral is not quite this clip's, and some AU reads above zero in all of it. The base, which knows no neutral, does not:
        so by what ``own`` leads ``expected`` (N, K) in half of the frames, beyond what it did in the person's clip. An
        expression that lasts raises both. 0 for clips shorter than ``DAY_SPAN_S``, and for stills. times: (N,) seconds.
        """
        if self.profile is None or len(times) == 0 or max(times) - min(times) < DAY_SPAN_S:
            return np.zeros(len(AUS), np.float32)
        return np.asarray(np.clip(lead_of(own, expected) - self.profile.lead, 0, None), np.float32)


def _read(net: AUNet, look: Tensor, batch: dict[str, Tensor], branch: str, neutral: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    if neutral is not None and "landmarks" not in neutral:
        neutral = {**neutral, "landmarks": batch["landmarks"]}
    off = torch.zeros_like(batch["has_landmarks"])
    has_landmarks, has_crop = off if branch == "crop" else batch["has_landmarks"], off if branch == "landmarks" else None
    return net.answer(look, batch["landmarks"], has_landmarks, neutral, None, has_crop)


def _spread(said: dict[str, Tensor]) -> Tensor:
    """(N, K) standard deviation: of y in 0-5, E[y] is the sum of P(y >= j), E[y^2] that of (2 j - 1) P(y >= j)."""
    at_least = said["logits"].sigmoid()
    squared = (at_least * torch.arange(1, 2 * at_least.shape[-1], 2, device=at_least.device)).sum(-1)
    return (squared - said["intensity"].square()).clamp_min(0).sqrt()


def blend(base: np.ndarray, personal: np.ndarray, gate: np.ndarray, trust: np.ndarray) -> np.ndarray:
    """(N, K) expected intensities: the base's, moved towards the person's by ``gate`` (K,), at most by ``trust`` (K,) before it."""
    moved = np.clip(personal - base, -np.asarray(trust), np.asarray(trust))
    return np.asarray(np.clip(base + np.asarray(gate) * moved, 0.0, MAX_INTENSITY), np.float32)


def lead_of(own: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(K,) by how much the person's readings (N, K) lie above the base's in half of the frames."""
    return np.asarray(np.median(own - expected, axis=0), np.float32)


def lasting(intensity: np.ndarray, times: Sequence[float]) -> np.ndarray:
    """(N, K) the highest mean over :data:`LASTING_S` around a moment within as long around it, of intensities (N, K) of one face at rising
    ``times`` (N,), seconds. Pieces of a clip that are :data:`GAP_S` apart are taken for themselves; between frames that come unevenly, as a
    telephone films them or as some of a clip are kept, intensities are taken to go straight."""
    out = np.array(intensity, np.float64)
    stamps = np.asarray(times, np.float64)
    steps = np.diff(stamps)
    ends = [0, *(np.flatnonzero((steps > GAP_S) | (steps <= 0)) + 1).tolist(), len(out)]
    for start, end in zip(ends[:-1], ends[1:], strict=True):
        if end - start > 1:
            at, own = stamps[start:end], steps[start : end - 1]
            step = float(np.median(own))
            half = int(LASTING_S / 2 / step + 0.05)  # times are rounded to milliseconds
            even = np.linspace(at[0], at[-1], round((at[-1] - at[0]) / step) + 1) if np.ptp(own) > 0.1 * step + 0.002 else at
            values = out[start:end] if even is at else _straight(even, at, out[start:end])
            values = _around(_around(values, half).mean(-1), half).max(-1)
            out[start:end] = values if even is at else _straight(at, even, values)
    return out


def _straight(at: np.ndarray, times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(N, K) values at ``times`` (N,) to (M, K) at ``at`` (M,), straight between them."""
    return np.stack([np.interp(at, times, column) for column in values.T], 1)


def _around(values: np.ndarray, half: int) -> np.ndarray:
    """(N, K) to (N, K, 2 half + 1): each value with those around it; the ends go on as they are."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(values, ((half, half), (0, 0)), mode="edge"), 2 * half + 1, axis=0)


def without_rest(intensity: np.ndarray, offsets: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
    """(N, K) intensities y as y (f + (1 - f) s^6 / (s^6 + o^6)), ``offsets`` o (K,): readings of o shrink to half and lower ones faster,
    high ones stay. s is ``seen`` (N, K), what was :func:`lasting` there; without it y itself.

    Unlike subtracting and cutting at zero it throws nothing away that is below the offset: of what is equally lasting the higher stays the
    higher; f, :data:`REST_KEPT`, keeps faint ones apart within the decimals of a table.
    """
    y = np.asarray(intensity, np.float64)
    s = y if seen is None else np.asarray(seen, np.float64)
    shown = s**6 / np.maximum(s**6 + np.asarray(offsets, np.float64) ** 6, 1e-12)
    return np.asarray(y * (REST_KEPT + (1 - REST_KEPT) * shown), np.float32)


def offsets_at(readings: np.ndarray, trusted: np.ndarray | float, base: Base) -> np.ndarray:
    """(K,) offsets for :func:`without_rest` from what is read in the calm frames of a person's clip (N, K), as far as the clip is known to
    show the AU at rest (``trusted`` (K,) or for all, 0-1). Of an AU that the base reads well, less is misread, and less is taken out; of
    one that the base reads no better for a known neutral (its ``promise``), the rest tells as little, and less is taken out too.

    Calm ones (:func:`personalize.identity.calm_frames`): in a clip that somebody laughs through, the laugh is not their rest."""
    below = np.quantile(readings, REST_SHARE, axis=0)
    present, doubted = base.expected_thresholds, 1 - np.clip(base.reliability(), 0, 1)
    told = trusted * np.clip(np.nan_to_num(base.promise(), nan=1.0) / REST_PROMISE, 0, 1)
    return np.asarray(told * np.minimum(below + REST_FLOOR * doubted * present, REST_MOST * present), np.float32)
