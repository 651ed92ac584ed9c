"""``personalize evaluate``: how well the readings of a clip agree with labels, the base model beside the person's.

The readings are those that ``predict`` writes, to the last digit: whoever computes the figures again from its CSV gets the same.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__, ui
from .aus import AUS, COLUMNS, MAX_INTENSITY
from .errors import ConfigError, InputError
from .labels import LabelTable, read_labels
from .metrics import scores
from .predict import Row, Table, check_target, open_reader, predict
from .video import Media, open_media

SHOWN = {"f1": "F1", "auc": "AUC", "icc": "ICC(3,1)", "pcc": "PCC", "mae": "MAE"}
"""The metrics, in the order of the table, and what they are called there."""


def person_rows(table: Table, person: int) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray, np.ndarray | None]:
    """What was read of one person, a row a frame: frames (T,), timestamps (T,), files, base (T, K) and personal (T, K) or None.

    Frames in which the person is not seen are NaN; other people's rows are left out. Values are rounded as in predict's CSV.
    """
    chosen: dict[int, Row] = {}
    for row in table.rows:
        frame, mine = int(row.meta[0]), row.is_of(person)
        if mine or frame not in chosen:
            chosen[frame] = row if mine else Row(row.file, row.meta)
    rows = [chosen[frame] for frame in sorted(chosen)]
    blank = np.full(len(AUS), np.nan, np.float32)
    base = _as_written(np.stack([blank if r.base is None else r.base for r in rows]))
    known = any(r.personal is not None for r in rows)
    personal = _as_written(np.stack([blank if r.personal is None else r.personal for r in rows])) if known else None
    return np.array([r.meta[0] for r in rows], int), np.array([r.meta[2] for r in rows]), [r.file for r in rows], base, personal


def _as_written(values: np.ndarray) -> np.ndarray:
    """Float32 readings as the decimals that the CSV holds: rounded as there, then once more, as float32 has no 0.1."""
    return np.asarray(np.round(np.round(values, 3).astype(np.float64), 3))


def compare(
    base: np.ndarray,
    personal: np.ndarray | None,
    target: np.ndarray,
    known: np.ndarray,
    occurrence: np.ndarray,
    base_thresholds: np.ndarray,
    thresholds: np.ndarray,
    present_at: float = 2.0,
) -> dict[str, Any]:
    """Figures per AU, and their mean over the AUs where both models have them.

    base, personal, target: (T, K) intensities 0-5, NaN where the person is not seen; known: (T, K) bool; occurrence: (K,) bool, see
    :class:`personalize.labels.LabelTable`; thresholds: (K,) intensity from which a reading counts as present.

    Returns 'aus': column -> 'frames', 'present', 'labels' ('intensity' or 'occurrence'), 'base', and with a personal model 'personal' and
    'difference' (personal - base), each metric -> value; 'mean': the same three; 'unmeasured': column or 'column metric' -> why.
    """
    out: dict[str, Any] = {"aus": {}, "mean": {}, "unmeasured": {}}
    seen = np.isfinite(base).all(1)
    models = {"base": (base, base_thresholds)} | ({"personal": (personal, thresholds)} if personal is not None else {})
    for k, name in enumerate(COLUMNS):
        if not known[:, k].any():
            out["unmeasured"][name] = "no labels"
            continue
        on = known[:, k] & seen
        if not on.any():
            out["unmeasured"][name] = "no face in any of its labelled frames"
            continue
        entry: dict[str, Any] = {"labels": "occurrence" if occurrence[k] else "intensity"}
        for model, (values, limit) in models.items():
            found = scores(values[on, k], target[on, k], float(_as_written(limit[k : k + 1])[0]), bool(occurrence[k]), present_at)
            entry |= {"frames": int(found["n"]), "present": int(found["present"]), model: {m: found[m] for m in SHOWN}}
        if personal is not None:
            entry["difference"] = {m: entry["personal"][m] - entry["base"][m] for m in SHOWN}
        out["aus"][name] = entry
        out["unmeasured"] |= {f"{name} {SHOWN[m]}": why for m, why in _reasons(entry, target[on, k]).items()}
    for model in (*models, *(["difference"] if personal is not None else [])):
        out["mean"][model] = {}
        for metric in SHOWN:
            shared = [e for e in out["aus"].values() if all(math.isfinite(e[m][metric]) for m in models)]
            out["mean"][model][metric] = float(np.mean([e[model][metric] for e in shared])) if shared else math.nan
    return out


def _reasons(entry: dict[str, Any], target: np.ndarray) -> dict[str, str]:
    """Why metrics of an AU are not defined."""
    models = [entry[m] for m in ("base", "personal") if m in entry]
    present, frames = entry["present"], entry["frames"]
    why = {}
    for metric in SHOWN:
        if all(math.isfinite(m[metric]) for m in models):
            continue
        if metric in ("f1", "auc"):
            why[metric] = "always present in its labels" if present == frames else "never present in its labels"
        elif entry["labels"] == "occurrence":
            why[metric] = "its labels say only whether, not how much"
        else:
            why[metric] = "its labels never change" if np.ptp(target) == 0 else "its readings never change"
    return why


def evaluate(
    media: Media, labels: LabelTable, reader: Any, tracker: Any, face: int | None = None, present_at: float = 2.0
) -> dict[str, Any]:
    """Read a clip or stills once and compare with labels; :func:`compare`'s result with the counts and what was compared.

    Raises InputError where no labelled frame shows the person.
    """
    table, person = predict(media, reader, tracker, face)
    frames, timestamps, files, base, personal = person_rows(table, person)
    target, known = labels.align(frames, timestamps, files)
    seen, labelled = np.isfinite(base).all(1), known.any(1)
    if not (seen & labelled).any():
        raise InputError(
            f"none of the {int(labelled.sum())} labelled frames of {media.name} shows face {person}: label frames where it is seen."
        )
    found = compare(base, personal, target, known, labels.occurrence, reader.base.thresholds, reader.thresholds, present_at)
    return {
        "personalize": __version__,
        "input": media.name,
        "labels": labels.path.name,
        "base": {"name": reader.base.name, "sha256": reader.base.sha256},
        "profile": None if reader.profile is None else reader.profile.name,
        "present_at": present_at,
        "face": person,
        "frames": {
            "read": len(frames),
            "with_face": int(seen.sum()),
            "labelled": int(labelled.sum()),
            "compared": int((seen & labelled).sum()),
        },
    } | found


def _print(found: dict[str, Any]) -> None:
    count = found["frames"]
    graded = any(entry["labels"] == "intensity" for entry in found["aus"].values())
    limit = f"; labels from {found['present_at']:g} count as present" if graded else ""
    print(
        f"{found['input']}: {count['read']} frames, {count['with_face']} with the face, {count['labelled']} labelled, "
        f"{count['compared']} compared{limit}."
    )
    personal = found["profile"] is not None
    models = {"base": "base", "personal": found["profile"], "difference": "difference"} if personal else {"base": "base"}
    rows: list[list[object]] = []
    for name, entry in [*found["aus"].items(), ("mean", found["mean"])]:
        for i, (model, title) in enumerate(models.items()):
            values = entry[model]
            cells = [_signed(values[m]) if model == "difference" else values[m] for m in SHOWN]
            counts = (None, None) if model == "difference" or name == "mean" else (entry["frames"], entry["present"])
            rows.append([name if i == 0 else "", *([title] if personal else []), *counts, *cells])
    ui.table(None, ["AU", *(["model"] if personal else []), "frames", "present", *SHOWN.values()], rows)
    reasons: dict[str, list[str]] = {}
    for what, why in found["unmeasured"].items():
        reasons.setdefault(why, []).append(what)
    for why, what in reasons.items():
        print(f"not measured, {why}: {', '.join(_grouped(what))}")


def _signed(value: float) -> str:
    return f"{value:+.3f}" if math.isfinite(value) else "-"


def _grouped(what: list[str]) -> list[str]:
    """'AU04 F1', 'AU04 AUC', 'AU06 F1', 'AU06 AUC' as 'AU04 AU06 (F1, AUC)'."""
    by_au: dict[str, list[str]] = {}
    for item in what:
        name, _, metric = item.partition(" ")
        by_au.setdefault(name, []).append(metric)
    by_metrics: dict[str, list[str]] = {}
    for name, metrics in by_au.items():
        by_metrics.setdefault(", ".join(metrics), []).append(name)
    return [f"{' '.join(names)} ({metrics})" if metrics else " ".join(names) for metrics, names in by_metrics.items()]


def _json(value: Any) -> Any:
    """NaN as null, as JSON has none."""
    if isinstance(value, dict):
        return {k: _json(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, found: dict[str, Any]) -> None:
    """Write the figures whole or not at all; NaN becomes null."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(_json(found), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def evaluate_command(args: argparse.Namespace) -> int:
    """``personalize evaluate``."""
    from . import registry

    if not 0 < args.threshold <= MAX_INTENSITY:
        raise ConfigError(f"--threshold is an intensity above 0 and up to 5, not {args.threshold:g}.")
    media = open_media(args.input)
    labels = read_labels(args.labels, media.name)
    output = Path(args.output) if args.output else None
    if output is not None:
        check_target(output, media.path, Path(args.labels))
    reader = open_reader(args.profile, args.base)
    # The tracker as predict has it: with one face only, MediaPipe smooths its points and the figures would be those of other readings.
    name = args.tracker or "mediapipe"
    found = evaluate(media, labels, reader, (name, registry.check_options("trackers", name, {})), args.face, args.threshold)
    if output is not None:
        write_json(output, found)
    _print(found)
    if output is not None:
        ui.info(f"wrote {output}")
    return 0
