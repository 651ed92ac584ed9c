"""What ``predict --smooth`` takes from the flicker and what it costs, on clips of people whom neither base nor filter has seen.

    python benchmarks/smoothing.py --base PATH [--people 6] [--seconds 8] [--fps 25] [--json FILE]

Flicker: mean absolute second difference of the reading where the truth rests. Lag: the shift, at most 8 frames, at which a reading
correlates best with the unsmoothed one and with the truth; mean over the AUs that move in a clip. ICC, MAE: pooled over people. Beside it
two filters that anybody could write: an exponential one with a share that gives the same flicker, and the median of 5 frames, which looks
2 frames ahead.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import median_filter

from personalize import ui
from personalize.aus import COLUMNS
from personalize.metrics import icc31, mae
from personalize.smooth import MAX_GAP_S, Course, sequences_from_clips
from personalize.weights import load_base

RESTING = 0.02
"""Change of the truth from frame to frame below which an AU rests."""
MOVES = 1.0
"""Range of an AU's truth in a clip from which it moves."""
FARTHEST = 8


def exponential(course: Course, share: float) -> np.ndarray:
    """(T, K) readings after s += share * (x - s), which starts anew after a gap as the filter does."""
    out = course.readings.copy()
    for t, gap in enumerate(np.diff(course.times) > MAX_GAP_S, 1):
        out[t] = course.readings[t] if gap else out[t - 1] + share * (course.readings[t] - out[t - 1])
    return out


def flicker(courses: list[Course], values: list[np.ndarray]) -> np.ndarray:
    """(K,) mean absolute second difference in the frames in which, with both neighbours, the truth rests; NaN where it never does."""
    bends = np.concatenate([np.abs(np.diff(v, 2, axis=0)) for v in values])
    still = [np.abs(np.diff(c.truth, axis=0)) < RESTING for c in courses]
    return np.asarray(np.nanmean(np.where(np.concatenate([s[1:] & s[:-1] for s in still]), bends, np.nan), 0))


def shift(late: np.ndarray, early: np.ndarray) -> float:
    """Frames by which ``late`` (T,) follows ``early`` (T,): the best correlation; NaN where either stands still."""
    if min(np.ptp(late), np.ptp(early)) < 1e-6:
        return float("nan")
    found = {}
    for by in range(-FARTHEST, FARTHEST + 1):
        a, b = late[max(by, 0) : len(late) + min(by, 0)], early[max(-by, 0) : len(early) - max(by, 0)]
        if min(np.ptp(a), np.ptp(b)) > 1e-6:
            found[by] = float(np.corrcoef(a, b)[0, 1])
    # Of equals the smallest shift.
    return float(max(found, key=lambda by: (round(found[by], 6), -abs(by))))


def lag(courses: list[Course], values: list[np.ndarray], truth: bool) -> float:
    """Mean lag in frames behind the truth, or behind the unsmoothed reading, over the AUs that move."""
    shifts = [
        shift(v[:, k], (c.truth if truth else c.readings)[:, k])
        for c, v in zip(courses, values, strict=True)
        for k in np.flatnonzero(np.ptp(c.truth, axis=0) >= MOVES)
    ]
    return float(np.nanmean(shifts))


def figures(courses: list[Course], values: list[np.ndarray]) -> dict[str, Any]:
    """All figures of one way of filtering; flicker also per AU."""
    each = flicker(courses, values)
    got, truth = np.concatenate(values), np.concatenate([c.truth for c in courses])
    return {
        "flicker": float(np.nanmean(each)),
        "lag_reading": lag(courses, values, False),
        "lag_truth": lag(courses, values, True),
        "icc": float(np.nanmean([icc31(got[:, k], truth[:, k]) for k in range(len(COLUMNS))])),
        "mae": float(np.nanmean([mae(got[:, k], truth[:, k]) for k in range(len(COLUMNS))])),
        "flicker_per_au": dict(zip(COLUMNS, (None if np.isnan(v) else round(float(v), 5) for v in each), strict=True)),
    }


def compare(courses: list[Course], params: np.ndarray) -> dict[str, dict[str, Any]]:
    """Figures of the readings as they are, of the filter with these parameters, and of the simple ones."""
    smoothed = [c.smoothed(params) for c in courses]
    wanted, low, high = float(np.nanmean(flicker(courses, smoothed))), 0.0, 1.0
    for _ in range(20):
        share = (low + high) / 2
        less = float(np.nanmean(flicker(courses, [exponential(c, share) for c in courses]))) < wanted
        low, high = (share, high) if less else (low, share)
    return {
        "as read": figures(courses, [c.readings for c in courses]),
        "smoothed": figures(courses, smoothed),
        f"exponential, share {share:.2f}": figures(courses, [exponential(c, share) for c in courses]),
        "median of 5, looks ahead": figures(courses, [median_filter(c.readings, (5, 1), mode="nearest") for c in courses]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="base")
    parser.add_argument("--people", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--fps", type=float, default=25.0)
    parser.add_argument("--folder", type=Path, help="keep the clips here, and use those that are there")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    base = load_base(args.base)
    if base.smoothing is None:
        parser.error(f"the base '{base.name}' has no smoothing parameters: train it with smoothing.people above 0")
    courses = sequences_from_clips(base, args.people, args.seconds, "validation", 0, (args.fps,), args.folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an AU that never rests has no flicker
        result = compare(courses, base.smoothing)
    columns = ("flicker", "lag_reading", "lag_truth", "icc", "mae")
    rows = [[name, *(f"{table[c]:.4f}" if c == "flicker" else f"{table[c]:.3f}" for c in columns)] for name, table in result.items()]
    title = f"{len(courses)} people, {args.seconds:g} s at {args.fps:g} frames a second"
    ui.table(title, ["filter", "flicker", "lag behind reading", "lag behind truth", "ICC", "MAE"], rows)
    if args.json:
        about = {"people": len(courses), "seconds": args.seconds, "fps": args.fps}
        args.json.write_text(json.dumps(about | {"filters": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
