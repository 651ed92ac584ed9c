"""``report.html``: what a run did and how far to trust it, in one file that opens offline (no script, no link out, print-friendly)."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .aus import NAMES, parse_au
from .errors import InputError, ProfileError

KEYS = (
    "title", "name", "created", "version", "summary", "warnings", "facts", "neutral", "coverage", "aus", "tables", "curves", "traces",
    "samples", "forgetting", "provenance", "consent", "use", "recipe",
)  # fmt: skip
"""What :func:`write_report` reads."""
MAX_SAMPLES = 48
_TRACE_POINTS = 240
_MOVES = 0.5


def write_report(path: str | Path, data: Mapping[str, Any]) -> Path:
    """Write a report and return its path; whole or not at all. Every text is escaped; None and NaN are shown as a dash.

    Every key of ``data`` may be left out, and its section is then too:

    * ``title``, ``name`` (identity), ``created``, ``version`` (of personalize): str.
    * ``summary``: str or list of str, what was done. ``warnings``: list of str. ``facts``: label -> value, the figures at the top.
    * ``neutral``: {'confidence': 0-1, 'frames': int, 'text': str, and any other label -> value}.
    * ``coverage``: {'yaw_deg': bin edges (Y+1), 'pitch_deg': bin edges (P+1), 'counts': (P, Y) frames, 'aus': {'AU06': {'frames': int where
      it shows, 'max': 0-5}}, 'lacks': list of str}.
    * ``aus``: list of {'au': 'AU06', 'gate': 0-1, 'evidence': {what was heard: float}, 'trust', 'threshold', 'offset': float, 'base':
      {metric: float}, 'personal': {metric: float}}; metrics in which less is better are 'mae', 'mse' and 'rmse'.
    * ``tables``: list of {'title': str, 'note': str, 'columns': list of str, 'rows': list of lists}, e.g. base against simple calibrations.
    * ``curves``: panel -> series -> list of (step, value), e.g. {'loss': {'train': [...], 'held-out': [...]}}.
    * ``traces``: {'time': (T,) s, 'base': {'AU06': (T,)}, 'personal': {...}, 'labels': {...},
      'occurrence': list of the AUs whose labels are only 0 or 1}, intensities 0-5, NaN for gaps.
    * ``samples``: list of {'image': PNG, JPEG or WebP bytes, a file, or (H, W, 3) uint8 RGB, 'label': str, 'synthetic': True}.
    * ``forgetting``: {'metric': 'ICC', 'rows': list of {'who': str, 'before': float, 'after': float}, 'note': str}.
    * ``provenance``: label -> value. ``consent``: str. ``recipe``: nested dict. ``use``: list of commands (made from ``name`` if missing).

    Raises:
        ValueError: an unknown key, or a sample without ``synthetic: True``: pictures of the person stay out of reports.
        InputError: it cannot be written.
    """
    strange = sorted(set(data) - set(KEYS))
    if strange:
        raise ValueError(f"write_report does not know {', '.join(strange)}; it reads: {', '.join(KEYS)}")
    path = Path(path)
    text = _page(data)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".report-", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise InputError(f"cannot write the report to '{path}': {error.strerror}.") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return path


def report_command(args: Any) -> int:
    """``personalize report RUN``: make ``report.html`` again. args: ``run``, a runs/N/vK folder or runs/N for its latest version.

    Read: ``metrics.json`` (its key 'report', or else those of its keys that :data:`KEYS` names), ``logs/metrics*.csv`` for the curves,
    ``samples/`` for generated pictures and the profile's manifest for gates, provenance and consent, where metrics.json has none.
    """
    run = find_run(args.run)
    path = write_report(run / "report.html", collect(run))
    print(path)
    return 0


def find_run(path: str | Path) -> Path:
    """The run folder with a ``metrics.json`` that runs/N or runs/N/vK means; InputError where there is none."""
    from .profile import versions

    path = Path(path)
    for candidate in (path, *reversed(versions(path))):
        if (candidate / "metrics.json").is_file():
            return candidate
    if not path.exists():
        raise InputError(f"no such run: '{path}'. Give runs/NAME or runs/NAME/vK.")
    raise InputError(f"no metrics.json in '{path}': it is no run, or its fit did not finish. Give runs/NAME or runs/NAME/vK.")


def collect(run: str | Path) -> dict[str, Any]:
    """The data of :func:`write_report` from a run folder; see :func:`report_command`."""
    from .profile import find_profile, read_manifest

    run = Path(run)
    file = run / "metrics.json"
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read '{file}': {error.strerror}.") from None
    except ValueError:
        metrics = None
    if not isinstance(metrics, dict):
        raise InputError(f"'{file}' is broken: no JSON object. Fit again.")
    source = metrics["report"] if isinstance(metrics.get("report"), dict) else metrics
    data = {key: source[key] for key in KEYS if key in source and key != "samples"}
    if not data.get("curves"):
        # metrics-1.csv, metrics-2.csv, ... and last metrics.csv
        logs = (run / "logs").glob("metrics*.csv")
        data["curves"] = read_curves(sorted(logs, key=lambda p: int(p.stem.partition("-")[2] or 10**9)))
    pictures = sorted(p for p in (run / "samples").rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    # samples/ holds what the generator made, never frames of the clip.
    data["samples"] = [{"image": p, "label": _caption(p), "synthetic": True} for p in pictures[:MAX_SAMPLES]]
    try:
        manifest = read_manifest(find_profile(run))
    except ProfileError:
        return data
    data.setdefault("name", manifest["name"])
    data.setdefault("created", manifest["created"])
    data.setdefault("version", manifest["personalize"])
    data.setdefault("provenance", manifest["provenance"])
    data.setdefault("consent", manifest["consent"])
    data.setdefault("recipe", manifest["recipe"])
    data.setdefault("neutral", {"confidence": manifest["neutral"]["confidence"]})
    data.setdefault("aus", [{"au": au, **values} for au, values in manifest["per_au"].items()])
    return data


def read_curves(files: Sequence[Path]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Panels of :func:`write_report`'s ``curves`` from Lightning's CSV logs: column 'train/loss' is series 'train' of panel 'loss'.

    files: in the order in which they were written, each of a round or of a part of one. A round counts its steps from 0: here they go on.
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    offset, last = 0.0, -1.0
    for file in files:
        with open(file, newline="", encoding="utf-8") as opened:
            rows = [row for row in csv.DictReader(opened) if (row.get("step") or "").isdigit()]
        if not rows:
            continue
        steps = [float(row["step"]) for row in rows]
        if last >= max(steps):  # another round
            offset += last + 1
        else:  # a round begins, or goes on after an interruption: what was trained twice counts once
            for points in (p for panel in found.values() for p in panel.values()):
                points[:] = [point for point in points if point[0] < offset + min(steps)]
        last = max(steps)
        for row in rows:
            for key, cell in row.items():
                if not key or key in ("step", "epoch") or not cell:
                    continue
                try:
                    point = (offset + float(row["step"]), float(cell))
                except ValueError:
                    continue
                series, _, panel = key.partition("/")
                panel, series = (panel, series) if panel else (key, "train")
                found.setdefault(panel, {}).setdefault(series, []).append(point)
    curves = {panel: {s: sorted(p) for s, p in series.items() if len(p) > 1} for panel, series in found.items()}
    return {panel: series for panel, series in curves.items() if series}


def _caption(picture: Path) -> str:
    """What a generated picture says it shows, else its name."""
    from PIL import Image

    with Image.open(picture) as opened:
        return str(opened.info.get("caption") or picture.stem.replace("_", " "))


# --- small pieces -------------------------------------------------------------------------------------------------------------------


def _e(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _number(value: Any, digits: int = 2, sign: bool = False) -> str:
    if value is None or isinstance(value, bool):
        return "–" if value is None else ("yes" if value else "no")
    if isinstance(value, (int, np.integer)):
        return f"{int(value):,}".replace(",", "\u202f") if not sign else f"{int(value):+d}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        return _e(value)
    if not math.isfinite(number):
        return "–"
    text = f"{number:+.{digits}f}" if sign else f"{number:.{digits}f}"
    return text.replace("-", "\u2212")


def _text(value: Any) -> str:
    """A cell: numbers as numbers, the rest escaped."""
    return _number(value) if isinstance(value, (int, float, np.integer, np.floating)) or value is None else _e(value)


def _floats(values: Iterable[Any]) -> np.ndarray:
    return np.array([math.nan if v is None else float(v) for v in values], dtype=float)


def _au_name(au: str) -> str:
    number = parse_au(au)
    return NAMES.get(number, "") if number is not None else ""


def _section(title: str, body: str, note: str = "") -> str:
    if not body:
        return ""
    lead = f'<p class="note">{_e(note)}</p>' if note else ""
    return f"<section><h2>{_e(title)}</h2>{lead}{body}</section>\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool], caption: str = "") -> str:
    """An HTML table; ``head`` and ``rows`` hold HTML already."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}{' class=n' if n else ''}>{c}</{tag}>" for c, n in zip(cells, numeric, strict=False)) + "</tr>"

    title = f"<caption>{_e(caption)}</caption>" if caption else ""
    body = "".join(row(cells, "td") for cells in rows)
    return f'<div class="scroll"><table>{title}<thead>{row(head, "th")}</thead><tbody>{body}</tbody></table></div>'


def _pairs(values: Mapping[str, Any]) -> str:
    return "<dl>" + "".join(f"<dt>{_e(str(k).replace('_', ' '))}</dt><dd>{_text(v)}</dd>" for k, v in values.items()) + "</dl>"


def _bar(share: Any, shown: str, label: str) -> str:
    """A bar of a share 0-1 with its value beside it."""
    try:
        width = min(max(float(share), 0.0), 1.0)
    except (TypeError, ValueError):
        return "–"
    if not math.isfinite(width):
        return "–"
    return f'<span class="bar" role="img" aria-label="{_e(label)}: {_e(shown)}"><i style="width:{width * 100:.0f}%"></i></span> {_e(shown)}'


# --- plots --------------------------------------------------------------------------------------------------------------------------


def _ticks(low: float, high: float, about: int = 4) -> list[float]:
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _line(x: np.ndarray, y: np.ndarray) -> str:
    """An SVG path through finite points, broken at gaps."""
    out, pen = [], False
    for a, b in zip(x, y, strict=True):
        if not (math.isfinite(a) and math.isfinite(b)):
            pen = False
            continue
        out.append(f"{'L' if pen else 'M'}{a:.1f} {b:.1f}")
        pen = True
    return "".join(out)


def _thin(x: np.ndarray, y: np.ndarray, points: int = _TRACE_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most about ``points`` of a long trace: the lowest and the highest of each slice, so that no peak is lost; gaps stay gaps."""
    if len(x) <= points:
        return x, y
    keep: list[int] = []
    for part in np.array_split(np.arange(len(x)), points // 2):
        values = y[part]
        if np.isfinite(values).all():
            keep += sorted({int(part[values.argmin()]), int(part[values.argmax()])})
        elif np.isfinite(values).any():
            gap = int(part[np.flatnonzero(~np.isfinite(values))[0]])
            keep += sorted({int(part[np.nanargmin(values)]), int(part[np.nanargmax(values)]), gap})
        else:
            keep.append(int(part[0]))
    return x[keep], y[keep]


def _panel(
    title: str,
    series: Mapping[str, tuple[np.ndarray, np.ndarray]],
    classes: Mapping[str, str],
    size: tuple[int, int],
    y_range: tuple[float, float] | None = None,
    x_label: str = "",
    shade: tuple[np.ndarray, np.ndarray] | None = None,
) -> str:
    """One small line plot with axes; ``shade`` draws an area under a curve (labels)."""
    width, height = size
    left, right, top, bottom = 36, 8, 8, 30 if x_label else 18
    xs = np.concatenate([x[np.isfinite(x)] for x, _ in series.values()] or [np.zeros(0)])
    ys = np.concatenate([y[np.isfinite(y)] for _, y in series.values()] or [np.zeros(0)])
    if not len(xs) or not len(ys):
        return ""
    x0, x1 = float(xs.min()), float(xs.max())
    x1 = x1 if x1 > x0 else x0 + 1
    if y_range is None:
        y0, y1 = float(ys.min()), float(ys.max())
        # A curve of positive values that comes near zero is read against zero.
        y0 = 0.0 if 0 <= y0 < 0.4 * y1 else y0
        pad = 0.06 * (y1 - y0) or abs(y1) * 0.1 or 1.0
        y0, y1 = (y0 if y0 == 0 else y0 - pad), y1 + pad
    else:
        y0, y1 = y_range

    def px(x: np.ndarray) -> np.ndarray:
        return left + (np.asarray(x, dtype=float) - x0) / (x1 - x0) * (width - left - right)

    def py(y: np.ndarray) -> np.ndarray:
        return height - bottom - (np.clip(np.asarray(y, dtype=float), y0, y1) - y0) / (y1 - y0) * (height - top - bottom)

    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{_e(title)}">']
    for tick in _ticks(y0, y1, 3 if height < 150 else 4):
        at = float(py(np.array(tick)))
        out.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(f'<text class="tick" x="{left - 5}" y="{at + 3.5:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(x0, x1, 5):
        at = float(px(np.array(tick)))
        out.append(f'<text class="tick" x="{at:.1f}" y="{height - bottom + 13}" text-anchor="middle">{tick:g}</text>')
    if x_label:
        out.append(f'<text class="tick" x="{(left + width - right) / 2}" y="{height - 3}" text-anchor="middle">{_e(x_label)}</text>')
    if shade is not None:
        t, value = shade
        step = float(np.median(np.diff(t))) if len(t) > 1 else 0.0
        for start, end, level in _runs(t, value, step):
            a, b = float(px(np.array(start))), min(float(px(np.array(end))), width - right)
            tall = height - bottom - float(py(np.array(level))) if level > 0 else 1.5  # a labelled absence is a thin line
            box = f'x="{a:.1f}" y="{height - bottom - tall:.1f}" width="{max(b - a, 0.6):.1f}" height="{tall:.1f}"'
            out.append(f'<rect class="shade" {box}/>')
    for name, (x, y) in series.items():
        out.append(f'<path class="line {classes[name]}" d="{_line(px(x), py(y))}"><title>{_e(name)}</title></path>')
        if np.isfinite(y).sum() <= 24:
            dots = zip(px(x), py(y), strict=True)
            out += [f'<circle class="dot {classes[name]}" cx="{cx:.1f}" cy="{cy:.1f}" r="2.2"/>' for cx, cy in dots if math.isfinite(cy)]
    out.append("</svg>")
    return "".join(out)


def _runs(t: np.ndarray, value: np.ndarray, step: float) -> list[tuple[float, float, float]]:
    """(start, end, level) of every stretch of one known level."""
    out: list[tuple[float, float, float]] = []
    for time, level in zip(t, value, strict=True):
        if not math.isfinite(level):
            continue
        if out and out[-1][2] == level and time - out[-1][1] < step * 0.5:
            out[-1] = (out[-1][0], time + step, level)
        else:
            out.append((float(time), float(time + step), float(level)))
    return out


def _legend(entries: Mapping[str, str]) -> str:
    return '<p class="legend">' + "".join(f'<span><i class="key {css}"></i>{_e(name)}</span>' for name, css in entries.items()) + "</p>"


# --- sections -----------------------------------------------------------------------------------------------------------------------


def _curves(curves: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(s for series in curves.values() for s in series))
    classes = {name: f"c{i % 6}" for i, name in enumerate(names)}
    figures = []
    for panel, series in curves.items():
        lines = {}
        for name, points in series.items():
            table = np.array([[math.nan if v is None else float(v) for v in p] for p in points], dtype=float).reshape(-1, 2)
            lines[name] = _thin(table[:, 0], table[:, 1])
        plot = _panel(panel, lines, classes, (330, 190), x_label="step")
        if plot:
            figures.append(f"<figure><figcaption>{_e(panel)}</figcaption>{plot}</figure>")
    return (_legend(classes) + f'<div class="grid wide">{"".join(figures)}</div>') if figures else ""


def _traces(traces: Mapping[str, Any], gates: Mapping[str, float]) -> str:
    time = _floats(traces.get("time", ()))
    readings = {"base": traces.get("base") or {}, "personal": traces.get("personal") or {}}
    labels = traces.get("labels") or {}
    names = list(dict.fromkeys([*readings["base"], *readings["personal"]]))
    classes = {"base": "base", "personal": "personal"}
    used = [kind for kind in classes if readings[kind]]
    figures, still = [], []
    for au in names:
        lines, peak = {}, 0.0
        for kind in used:
            if au not in readings[kind]:
                continue
            values = _floats(readings[kind][au])
            if len(values) != len(time):
                raise ValueError(f"traces: {au} of {kind} has {len(values)} values for {len(time)} times")
            peak = max(peak, float(np.nanmax(values)) if np.isfinite(values).any() else 0.0)
            lines[kind] = _thin(time, values)
        shade = None
        if au in labels and len(labels[au]) == len(time):
            level = _floats(labels[au])
            # 'present' says nothing about how strong: a band over the whole height, not a bar up to 1.
            shade = (time, np.where(level > 0, 5.0, level) if au in (traces.get("occurrence") or ()) else level)
        known = shade is not None and bool(np.isfinite(shade[1]).any())
        if peak < _MOVES and not known:
            still.append(au)
            continue
        gate = f' <span class="dim">gate {gates[au]:.2f}</span>' if au in gates and math.isfinite(gates[au]) else ""
        plot = _panel(f"{au} over time", lines, classes, (330, 112), (0.0, 5.0), shade=shade if known else None)
        figures.append(f"<figure><figcaption><b>{_e(au)}</b> {_e(_au_name(au))}{gate}</figcaption>{plot}</figure>")
    keys = {kind: classes[kind] for kind in used} | ({"labels": "labels"} if labels else {})
    rest = f'<p class="note">Below {_MOVES:g} throughout, not drawn: {_e(", ".join(still))}.</p>' if still else ""
    return (_legend(keys) + f'<div class="grid wide">{"".join(figures)}</div>' if figures else "") + rest


def _coverage(coverage: Mapping[str, Any]) -> str:
    parts = []
    if coverage.get("counts") is not None:
        counts = np.asarray(coverage["counts"], dtype=float)
        yaw, pitch = _floats(coverage["yaw_deg"]), _floats(coverage["pitch_deg"])
        if counts.shape != (len(pitch) - 1, len(yaw) - 1):
            raise ValueError(f"coverage: counts {counts.shape} for {len(pitch) - 1} pitch and {len(yaw) - 1} yaw bins")
        cell, left, top = 34, 52, 6
        width, height = left + cell * counts.shape[1] + 6, top + 26 * counts.shape[0] + 34
        svg = [f'<svg viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" aria-label="Frames by head pose">']
        most = counts.max() or 1.0
        for i in range(counts.shape[0]):
            y = top + 26 * i
            svg.append(f'<text class="tick" x="{left - 5}" y="{y + 17}" text-anchor="end">{pitch[i]:g}…{pitch[i + 1]:g}</text>')
            for j in range(counts.shape[1]):
                share = math.sqrt(counts[i, j] / most)  # the square root keeps rare poses visible
                x = left + cell * j
                svg.append(f'<rect class="empty" x="{x}" y="{y}" width="{cell - 2}" height="24" rx="3"/>')
                if counts[i, j]:
                    opacity = f"{0.15 + 0.85 * share:.2f}"
                    svg.append(f'<rect class="heat" x="{x}" y="{y}" width="{cell - 2}" height="24" rx="3" fill-opacity="{opacity}"/>')
                    css = "tick on" if share > 0.6 else "tick in"
                    svg.append(f'<text class="{css}" x="{x + cell / 2 - 1}" y="{y + 16}" text-anchor="middle">{int(counts[i, j])}</text>')
        below = top + 26 * counts.shape[0] + 12
        for j in range(len(yaw)):
            svg.append(f'<text class="tick" x="{left + cell * j - 1}" y="{below}" text-anchor="middle">{yaw[j]:g}</text>')
        middle = left + cell * counts.shape[1] / 2
        svg.append(f'<text class="tick" x="{middle}" y="{height - 4}" text-anchor="middle">yaw, degrees</text></svg>')
        caption = 'Frames by head pose <span class="dim">rows: pitch, degrees</span>'
        parts.append(f"<figure><figcaption>{caption}</figcaption>{''.join(svg)}</figure>")
    if coverage.get("lacks"):
        parts.append("<p>The clip lacks:</p><ul>" + "".join(f"<li>{_e(item)}</li>" for item in coverage["lacks"]) + "</ul>")
    aus = coverage.get("aus") or {}
    shown = ""
    if aus:
        rows = []
        for au, v in aus.items():
            strongest = _bar(_share(v.get("max")), _number(v.get("max"), 1), f"{au}, strongest of 5")
            rows.append([_e(au), _e(_au_name(au)), _number(v.get("frames")), strongest])
        shown = _table(["AU", "", "frames", "strongest (0–5)"], rows, [False, False, True, False])
    columns = [f"<div>{column}</div>" for column in ("".join(parts), shown) if column]
    return f'<div class="two">{"".join(columns)}</div>' if columns else ""


def _share(value: Any) -> float:
    try:
        return float(value) / 5
    except (TypeError, ValueError):
        return math.nan


_LESS = {"mae", "mse", "rmse"}


def _aus(rows: Sequence[Mapping[str, Any]]) -> str:
    metrics = list(dict.fromkeys(m for row in rows for kind in ("base", "personal") for m in (row.get(kind) or {})))
    heard = list(dict.fromkeys(name for row in rows for name in (row.get("evidence") or {})))
    extra = [key for key in ("trust", "threshold", "offset") if any(row.get(key) is not None for row in rows)]
    head = ["AU", "", "gate", *(_e(name) for name in heard), *extra]
    numeric = [False, False, False, *[True] * (len(heard) + len(extra))]
    for metric in metrics:
        head += [f"{_e(metric.upper())}<br>base", f"{_e(metric.upper())}<br>personal", "change"]
        numeric += [True, True, True]
    body = []
    for row in rows:
        au = str(row.get("au", ""))
        cells = [f"<b>{_e(au)}</b>", _e(_au_name(au)), _bar(row.get("gate"), _number(row.get("gate")), f"{au} gate")]
        cells += [_number((row.get("evidence") or {}).get(name)) for name in heard]
        for key in extra:
            value = row.get(key)
            cells.append(_number(value, sign=True) if key == "offset" and isinstance(value, (int, float)) else _text(value))
        for metric in metrics:
            before, after = ((row.get(kind) or {}).get(metric) for kind in ("base", "personal"))
            cells += [_number(before), _number(after), _change(before, after, metric.lower() in _LESS)]
        body.append(cells)
    return _table(head, body, numeric)


def _change(before: Any, after: Any, less_is_better: bool = False) -> str:
    try:
        delta = float(after) - float(before)
    except (TypeError, ValueError):
        return "–"
    if not math.isfinite(delta):
        return "–"
    better = -delta if less_is_better else delta
    css = "good" if better > 0.005 else "bad" if better < -0.005 else "same"
    return f'<span class="{css}">{_number(delta, sign=True)}</span>'


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for sample in samples[:MAX_SAMPLES]:
        if sample.get("synthetic") is not True:
            raise ValueError("a report holds generated pictures only: give 'synthetic': True for each sample that is one")
        label = str(sample.get("label", ""))
        img = f'<img src="{_image(sample["image"])}" alt="{_e(label or "generated sample")}">'
        cells.append(f"<figure>{img}<figcaption>{_e(label)}</figcaption></figure>")
    return f'<div class="sheet">{"".join(cells)}</div>' if cells else ""


def _image(value: Any) -> str:
    """A data address of a thumbnail, at most 160 pixels wide, so that a report stays a few megabytes."""
    from PIL import Image, UnidentifiedImageError

    try:
        source = io.BytesIO(value) if isinstance(value, bytes) else value
        picture: Image.Image = Image.fromarray(value) if isinstance(value, np.ndarray) else Image.open(source)
        picture = picture.convert("RGB")
    except (UnidentifiedImageError, OSError, TypeError, ValueError) as error:
        raise InputError(f"a sample for the report is no picture: {' '.join(str(error).split())}.") from None
    picture.thumbnail((160, 160))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)  # written anew: no metadata of the file travels along
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _forgetting(forgetting: Mapping[str, Any]) -> str:
    metric = str(forgetting.get("metric", "score"))
    less = metric.lower() in _LESS
    rows = []
    for row in forgetting.get("rows") or ():
        before, after = row.get("before"), row.get("after")
        rows.append([_e(row.get("who", "")), _number(before, 3), _number(after, 3), _change(before, after, less)])
    return _table(["who", f"{_e(metric)} before", f"{_e(metric)} after", "change"], rows, [False, True, True, True]) if rows else ""


def _recipe(value: Any, depth: int = 0) -> str:
    lines = []
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            lines += [f"{'  ' * depth}{key}:", _recipe(item, depth + 1)]
        else:
            lines.append(f"{'  ' * depth}{key}: {'{}' if isinstance(item, Mapping) else item}")
    return "\n".join(lines)


def _page(data: Mapping[str, Any]) -> str:
    name = str(data.get("name") or "")
    title = str(data.get("title") or (f"{name}: personal AU model" if name else "Personal AU model"))
    gates = {str(r.get("au")): float(r["gate"]) for r in data.get("aus") or () if r.get("gate") is not None}
    summary = data.get("summary") or ()
    summary = [summary] if isinstance(summary, str) else summary
    meta = " · ".join(_e(t) for t in (data.get("created"), f"personalize {data['version']}" if data.get("version") else None) if t)
    body = [f"<header><h1>{_e(title)}</h1>" + (f'<p class="dim">{meta}</p>' if meta else "") + "</header>"]
    if data.get("facts"):
        facts = "".join(f"<div><b>{_text(v)}</b><span>{_e(k)}</span></div>" for k, v in data["facts"].items())
        body.append(f'<div class="facts">{facts}</div>')
    if data.get("warnings"):
        warned = "".join(f"<li>{_e(w)}</li>" for w in data["warnings"])
        body.append(f'<div class="warn" role="note"><b>Warnings</b><ul>{warned}</ul></div>')
    body.append(_section("What was done", "".join(f"<p>{_e(line)}</p>" for line in summary)))
    body.append(
        _section(
            "Action Units",
            _aus(data["aus"]) if data.get("aus") else "",
            "Gate: the share of the personal reading in the result; 0 leaves the base as it is. It opens where the AU rests in the neutral "
            "and knowing a neutral is known to help the base (rests, helps), unless the personal reading shows nothing of a clear "
            "movement, or the opposite (agreement, moves), or training went wrong (a gain on held-out samples below -1). "
            "Labels, where there are enough, decide alone.",
        )
    )
    for table in data.get("tables") or ():
        rows = [[_text(cell) for cell in row] for row in table.get("rows") or ()]
        columns = list(table.get("columns") or ())
        numeric = [all(not isinstance(r[i], str) for r in table["rows"] if i < len(r)) for i in range(len(columns))] if rows else []
        shown = _table([_e(c) for c in columns], rows, numeric) if rows else ""
        body.append(_section(table.get("title", ""), shown, table.get("note", "")))
    if data.get("traces"):
        body.append(_section("Readings over time", _traces(data["traces"], gates), "Intensity 0–5 against seconds."))
    neutral = dict(data.get("neutral") or {})
    text = neutral.pop("text", "")
    neutral_body = (f"<p>{_e(text)}</p>" if text else "") + (_pairs(neutral) if neutral else "")
    body.append(_section("The neutral face", neutral_body))
    body.append(_section("What the clip covers", _coverage(data["coverage"]) if data.get("coverage") else ""))
    body.append(_section("Training", _curves(data["curves"]) if data.get("curves") else ""))
    samples = data.get("samples") or ()
    more = f" The first {MAX_SAMPLES} of {len(samples)}." if len(samples) > MAX_SAMPLES else ""
    note = f"Synthetic pictures made for training; none is a frame of the clip.{more}"
    body.append(_section("Generated samples", _samples(samples), note))
    if data.get("forgetting"):
        note = data["forgetting"].get("note") or "The same model on other people's clips, before and after."
        body.append(_section("Forgetting", _forgetting(data["forgetting"]), note))
    use = data.get("use") or ([f"personalize predict --input CLIP --profile runs/{name} --output out.csv"] if name else ())
    body.append(_section("How to use it", f"<pre>{_e(chr(10).join(use))}</pre>" if use else ""))
    origin = _pairs(data["provenance"]) if data.get("provenance") else ""
    if "consent" in data:
        origin += f"<p><b>Consent:</b> {_e(data['consent'] or 'not stated')}</p>"
    body.append(_section("Provenance and consent", origin))
    if data.get("recipe"):
        body.append(f"<details><summary>Recipe</summary><pre>{_e(_recipe(data['recipe']))}</pre></details>")
    filled = {"TITLE": _e(title), "CSS": _CSS, "BODY": "\n".join(part for part in body if part)}
    return re.sub("%(TITLE|CSS|BODY)%", lambda mark: filled[mark.group(1)], _SHELL)  # one pass: a user's text may hold such a mark


_CSS = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1c2127;--dim:#5d6671;--line:#dde1e6;--soft:#f4f6f8;--accent:#0b6bcb;
  --base:#8b939e;--good:#14713a;--bad:#b3261e;--warn-bg:#fff6e0;--warn-line:#d99b1c;--shade:#e3b341;--c2:#b4540a;
  --c3:#14713a;--c4:#7a3fb3;--c5:#b3261e}
@media(prefers-color-scheme:dark){:root{--bg:#14181d;--fg:#e4e8ec;--dim:#9aa4af;--line:#333b44;--soft:#1d232a;
  --accent:#6cb2ff;--base:#8a94a0;--good:#6bd08f;--bad:#ff8f86;--warn-bg:#2d2612;--warn-line:#c8951f;--shade:#a07c1c;
  --c2:#f0a35e;--c3:#6bd08f;--c4:#c79bf2;--c5:#ff8f86}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:36px 24px 64px}
h1{font-size:27px;line-height:1.25;margin:0}
h2{font-size:18px;margin:0 0 6px}
header p{margin:4px 0 0}
section{margin-top:38px}
p{margin:6px 0;max-width:75ch}
.dim,.note{color:var(--dim)}
.note{font-size:13.5px;margin:0 0 12px}
.facts{display:flex;flex-wrap:wrap;gap:1px;margin-top:22px;
  background:var(--line);border:1px solid var(--line);border-radius:8px;overflow:hidden}
.facts div{flex:1 1 130px;background:var(--bg);padding:12px 16px}
.facts b{display:block;font-size:21px;font-weight:600;font-variant-numeric:tabular-nums}
.facts span{color:var(--dim);font-size:13px}
.warn{margin-top:22px;padding:12px 16px;background:var(--warn-bg);border-left:4px solid var(--warn-line);border-radius:4px}
.warn ul{margin:4px 0 0}
ul{padding-left:20px}
li{margin:2px 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums;min-width:50%}
caption{text-align:left;font-weight:600;padding-bottom:4px}
th{font-weight:600;color:var(--dim);text-align:left;vertical-align:bottom;border-bottom:2px solid var(--line)}
th,td{padding:5px 12px 5px 0;white-space:nowrap}
td{border-bottom:1px solid var(--line)}
.n{text-align:right}
.bar{display:inline-block;width:56px;height:8px;border-radius:4px;background:var(--line);overflow:hidden;margin-right:4px}
.bar i{display:block;height:100%;background:var(--accent)}
.good{color:var(--good)}
.bad{color:var(--bad)}
.same{color:var(--dim)}
.grid.wide{display:grid;grid-template-columns:repeat(auto-fill,minmax(310px,1fr));gap:18px 22px}
.two{display:flex;flex-wrap:wrap;gap:20px 48px;align-items:flex-start}
.two>*{flex:1 1 340px;min-width:0}
figure{margin:0}
figcaption{font-size:13.5px;margin-bottom:2px}
svg{display:block;width:100%;height:auto}
svg .grid{stroke:var(--line);stroke-width:1}
.tick{fill:var(--dim);font-size:10.5px;font-variant-numeric:tabular-nums}
.tick.on{fill:var(--bg)}
.tick.in{fill:var(--fg)}
.line{fill:none;stroke-width:1.6;stroke-linejoin:round}
.base{stroke:var(--base)}
.personal,.c0{stroke:var(--accent)}
.c1{stroke:var(--base)}
.c2{stroke:var(--c2)}
.c3{stroke:var(--c3)}
.c4{stroke:var(--c4)}
.c5{stroke:var(--c5)}
.dot{fill:var(--bg);stroke-width:1.4}
.shade{fill:var(--shade);fill-opacity:.35}
.empty{fill:var(--soft)}
.heat{fill:var(--accent)}
.legend{font-size:13px;color:var(--dim)}
.legend span{margin-right:18px}
.key{display:inline-block;width:18px;height:3px;border-radius:2px;margin-right:6px;vertical-align:middle;background:var(--accent)}
.key.base,.key.c1{background:var(--base)}
.key.c2{background:var(--c2)}
.key.c3{background:var(--c3)}
.key.c4{background:var(--c4)}
.key.c5{background:var(--c5)}
.key.labels{height:10px;background:var(--shade);opacity:.5}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(118px,1fr));gap:12px}
.sheet img{display:block;width:100%;border-radius:6px;background:var(--soft)}
.sheet figcaption{font-size:12px;color:var(--dim);overflow-wrap:anywhere;margin-top:3px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 20px;margin:6px 0}
dt{color:var(--dim)}
dd{margin:0;overflow-wrap:anywhere}
pre{background:var(--soft);padding:12px 16px;border-radius:6px;overflow-x:auto;
  font:13px/1.5 ui-monospace,Menlo,Consolas,monospace;margin:6px 0}
details{margin-top:38px}
summary{cursor:pointer;font-weight:600;font-size:18px}
@media print{main{max-width:none;padding:0}section{break-inside:avoid}}
"""

_SHELL = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>%TITLE%</title>
<style>%CSS%</style>
</head>
<body>
<main>
%BODY%
</main>
</body>
</html>
"""
