"""``personalize generate --judge``: how good one generator is for one person.

What is measured, and why it can be believed:

held-out     the model is adapted on generated pictures only, gates open, and reads frames of the person that nothing here has seen.
control      each AU asked alone at 1-5 from calm frames; a verifier that took no part in training reads the answers through the tracker.
leakage      what else the verifier sees change, per unit that was asked.
similarity   a face network's cosine to the person's frames, beside the person's own and other people's.
realism      FD-lite0 and KID-lite0 to the person's frames, beside those of two halves of the clip.
unchanged    PSNR of the picture in which nothing is asked for, against its frame.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from . import data, geometry, likeness, metrics, ui
from .aus import AUS, COLUMNS, MAX_INTENSITY, column
from .collect import Truth, collect, extent, identify
from .data import Samples
from .engine import Session
from .errors import InputError
from .evaluate import write_json
from .faces import Observation, Tracker
from .generate import Cell, Sheet, answers, create_generator, fit_views, png_info, provenance, sheet_cells
from .generators import Generator, Request, Sample
from .identity import Identity, find_neutral, is_named
from .labels import Extent, LabelTable, read_labels
from .profile import Profile
from .reader import Reader, batch_of, neutral_features
from .requests import needs, of_round
from .tracks import face_of
from .video import Media, open_media
from .weights import Base, load_base

SOURCES = 3
"""Calm frames from which each AU is asked for."""
FACES = 40
"""Pictures of each kind that the face network sees, at most."""
MOVED = 0.05
"""A target that differs by more from that of the unchanged picture is meant to change with what was asked for."""
ALIKE_DB = 100.0
"""PSNR of two pictures that are the same, and the most that is reported."""
NAMED = ("AU06", "AU17")


@dataclass
class Held:
    """Frames of the person with truth, that neither generator nor training sees. target, known: (N, K); occurrence: (K,), labels of which
    are 0 or 1, as in :func:`personalize.metrics.table`."""

    observations: list[Observation]
    target: np.ndarray
    known: np.ndarray
    occurrence: np.ndarray


@dataclass
class Case:
    """One person to judge generators on. verifier: reads the answers of the control. others: frames of other people, ``others_are`` whose
    they are; none: no impostor range."""

    identity: Identity
    tracker: Tracker
    base: Base
    verifier: Base
    recipe: dict[str, Any]
    held: Held | None = None
    others: list[Observation] = field(default_factory=list)
    others_are: str = ""


@dataclass
class Verdict:
    """figures: what stands in judge.json. cells: the sheet's answers. matrix: (K, K) leakage, asked by detected."""

    figures: dict[str, Any]
    cells: list[tuple[Cell, Sample]]
    matrix: np.ndarray


def judge(name: str, generator: Generator, case: Case) -> Verdict:
    """Judge a generator that has not been prepared yet. Raises InputError where it makes no picture of this person."""
    identity, seed = case.identity, case.recipe["seed"]
    timed = _Timed(generator)
    began = time.perf_counter()
    timed.prepare(identity, seed)
    prepared = time.perf_counter() - began
    cells = [cell for i, source in enumerate(_calm(identity)) for cell in _asked(identity, source, whole=i == 0)]
    answers = _in_parts(timed, [c.request for c in cells], f"Asking {name}")
    if not any(s is not None for s in answers):
        raise InputError(f"{name} makes no pictures of {identity.name}: there is nothing to judge.")
    answered = [(cell, sample) for cell, sample in zip(cells, answers, strict=True) if sample is not None]
    figures, matrix = _control(cells, answers, case)
    timed.reset()
    # those of a fit's first round
    first = of_round(identity, needs(identity, case.base.reliability()), case.recipe, 0)
    timed.restart(0)
    learned, _ = data.generate(timed, first, identity, case.tracker, "Generating")
    pictures = timed.made
    alone = independent(generator, case)
    if not alone:
        ui.warn(f"{name} learned from what {case.base.name} reads in the clip, and {case.verifier.name} judges it: name another --verifier")
    verdict: dict[str, Any] = {
        "generator": name,
        "person": identity.name,
        "seed": seed,
        "verifier": {"name": case.verifier.name, "sha256": case.verifier.sha256, "independent": alone},
        "held_out": _held_out(learned, case),
        **figures,
        "similarity": _similarity(pictures, case),
        "realism": _realism(pictures, case),
        "unchanged": _unchanged([s for c, s in answered if c.block == 0 and not c.request.aus], identity),
        "cost": {
            "prepare_s": prepared,
            "pictures_per_s": len(first) / max(timed.seconds, 1e-9),
            "cpu_ms_per_picture": 1000 * timed.cpu / max(len(first), 1),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
        },
        "pictures": {
            "asked": len(first),
            "refused": len(first) - len(pictures),
            "lost_by_tracker": len(pictures) - (0 if learned is None else len(learned)),
        },
    }
    verdict["bars"] = bars(verdict)
    return Verdict(verdict, [(c, s) for c, s in answered if s.request.source == cells[0].request.source], matrix)


def independent(generator: Generator, case: Case) -> bool:
    """Whether the verifier had no part in what the generator learned."""
    return not (generator.learns_from_base and case.verifier.sha256 == case.base.sha256)


class _Timed(Generator):
    """A generator whose answers are kept and whose time is taken."""

    def __init__(self, inner: Generator) -> None:
        self.inner, self.name = inner, getattr(inner, "name", type(inner).__name__)
        self.reset()

    def reset(self) -> None:
        self.made: list[Sample] = []
        self.seconds = self.cpu = 0.0

    def prepare(self, identity: Identity, seed: int) -> None:
        self.inner.prepare(identity, seed)

    def restart(self, number: int) -> None:
        self.inner.restart(number)

    def generate(self, requests: list[Request]) -> list[Sample | None]:
        wall, cpu = time.perf_counter(), time.process_time()
        out = self.inner.generate(requests)
        self.seconds += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu
        self.made += [s for s in out if s is not None]
        return out


def _in_parts(generator: Generator, requests: Sequence[Request], title: str) -> list[Sample | None]:
    out: list[Sample | None] = []
    with ui.progress(None, len(requests), title) as bar:
        for _, sample in answers(generator, requests, False):
            out.append(sample)
            bar.advance(1)
    return out


# --- AU control -----------------------------------------------------------------------------------------------------------------------


def _calm(identity: Identity) -> list[int]:
    """Up to ``SOURCES`` frames of the neutral that have a view, the calmest first, the others spread over time."""
    usable = [i for i, o in enumerate(identity.observations) if o.view is not None]
    rest = [] if identity.neutral is None else [int(i) for i in identity.neutral.indices]
    calm = [i for i in rest if identity.observations[i].view is not None] or usable[:1]
    if not calm:
        raise InputError(f"no usable face in {identity.name}'s clip: there is nothing to start from.")
    later = sorted(calm[1:], key=lambda i: identity.observations[i].timestamp)
    return [calm[0], *_some(later, SOURCES - 1)]


def _asked(identity: Identity, source: int, whole: bool) -> list[Cell]:
    """What is asked for from one frame: the whole sheet, or each AU at 1-5 and once nothing."""
    cells = sheet_cells(identity.observations[source].upright, source)
    return cells if whole else [c for c in cells if c.block == 0 and (c.request.aus or c.row == 0)]


def observed(sample: Sample, case: Case) -> Observation | None:
    """A picture as the tracker sees it; its view is itself, its time that of the frame it was made from. None without a face."""
    found = face_of(sample.image, case.tracker)
    if found is None:
        return None
    face, pose = found
    crop, to_frame = geometry.crop(sample.image, pose, case.tracker.scheme)
    made_from = case.identity.observations[sample.source]
    return Observation(
        frame=made_from.frame,
        timestamp=made_from.timestamp,
        face_id=0,
        crop=crop,
        landmarks=geometry.as_mesh(face.landmarks, pose, case.tracker.scheme),
        pose=np.array(pose.angles, np.float32),
        to_frame=to_frame,
        image_landmarks=face.landmarks,
        box=face.box,
        confidence=face.confidence,
        quality=1.0,
        view=sample.image,
        view_to_frame=np.eye(2, 3, dtype=np.float32),
    )


def untrained(base: Base, identity: Identity) -> Profile:
    """The base with the person's neutral as its input, nothing adapted, gates open."""
    neutral = {} if identity.neutral is None else neutral_features(base.net, identity.neutral)
    wide = np.full(len(AUS), MAX_INTENSITY, np.float32)
    profile = Profile("untrained", base.name, base.sha256, neutral=neutral, gate=np.ones(len(AUS), np.float32), trust=wide)
    profile.thresholds = base.thresholds_with(1.0 if neutral else 0.0)
    return profile


def _control(cells: Sequence[Cell], answers: Sequence[Sample | None], case: Case) -> tuple[dict[str, Any], np.ndarray]:
    """The figures of control and leakage, and the leakage matrix, of the cells in block 0."""
    reader = Reader(case.verifier, untrained(case.verifier, case.identity))
    rows = [(c, s) for c, s in zip(cells, answers, strict=True) if c.block == 0 and s is not None]
    refused, lost = dict.fromkeys(COLUMNS, 0), dict.fromkeys(COLUMNS, 0)
    for cell, sample in zip(cells, answers, strict=True):
        for au in cell.request.aus if cell.block == 0 and sample is None else ():
            refused[column(au)] += 1
    kept: list[tuple[Cell, Sample, Observation]] = []
    for cell, sample in ui.progress(rows, len(rows), "Tracking the answers"):
        seen = observed(sample, case)
        if seen is not None:
            kept.append((cell, sample, seen))
        for au in cell.request.aus if seen is None else ():
            lost[column(au)] += 1
    read = reader.read([o for _, _, o in kept]).best.astype(np.float64)
    asked = np.array([[c.request.aus.get(au, 0.0) for au in AUS] for c, _, _ in kept]).reshape(-1, len(AUS))
    target = np.array([np.where(s.known, s.target, np.nan) for _, s, _ in kept]).reshape(-1, len(AUS))
    source = np.array([s.source for _, s, _ in kept])
    found, matrix = control(asked, read, target, source)
    for c in COLUMNS:
        found[c] |= {"refused": refused[c], "lost_by_tracker": lost[c]}
    leakage = {a: {b: float(matrix[i, j]) for j, b in _axis()} for i, a in _axis()}
    return {"control": found, "leakage": leakage}, matrix


def _axis() -> list[tuple[int, str]]:
    return list(enumerate(COLUMNS))


def control(asked: np.ndarray, read: np.ndarray, target: np.ndarray, source: np.ndarray) -> tuple[dict[str, dict[str, Any]], np.ndarray]:
    """How far what is read follows what was asked.

    asked, read: (N, K) intensities 0-5, at most one AU asked in a row, rows without any are the unchanged pictures. target: (N, K) of the
    samples, NaN where they do not tell. source: (N,) the frame of each. Rows of a source without an unchanged picture are left out.

    Returns, for each AU column and 'mean': 'n' pictures, 'pcc' of asked and read over them and the unchanged ones (0 where nothing moves),
    'mae', 'gain' and 'off_target' per unit asked; 'worst', the AU that changes most of those which should not, and its 'worst_share'. And
    the (K, K) matrix, asked AU by read AU: sum of the change read over the sum asked. Off target are AUs that were not asked and whose
    target is not known to change: AU25 in a picture that asks for AU26 is not, where the sample says that the lips part.
    """
    rest = ~(asked > 0).any(1)
    k = len(AUS)
    change, moves = np.full_like(read, np.nan), np.zeros(read.shape, bool)
    for s in np.unique(source[rest]):
        mine = source == s
        change[mine] = read[mine] - read[mine & rest].mean(0)
        known = np.isfinite(target[mine & rest])
        still = np.where(known, target[mine & rest], 0).sum(0) / np.maximum(known.sum(0), 1)
        moves[mine] = np.abs(np.nan_to_num(target[mine] - still)) > MOVED
    usable = np.isfinite(change).all(1)
    matrix = np.full((k, k), np.nan)
    found: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(COLUMNS):
        rows = (asked[:, i] > 0) & usable
        total = asked[rows, i].sum()
        if not rows.any():
            found[name] = {
                "n": 0,
                **dict.fromkeys(("pcc", "mae", "gain", "off_target"), float("nan")),
                "worst": None,
                "worst_share": float("nan"),
            }
            continue
        matrix[i] = change[rows].sum(0) / total
        off = ~moves[rows]
        off[:, i] = False
        weight = (asked[rows, i][:, None] * off).sum(0)
        share = np.where(weight > 0, (np.abs(change[rows]) * off).sum(0) / np.maximum(weight, 1e-12), np.nan)
        both = rows | (rest & usable)
        pcc = metrics.pcc(read[both, i], asked[both, i])
        worst = int(np.nanargmax(share)) if np.isfinite(share).any() else None
        found[name] = {
            "n": int(rows.sum()),
            "pcc": 0.0 if np.isnan(pcc) else pcc,
            "mae": metrics.mae(read[rows, i], asked[rows, i]),
            "gain": float(matrix[i, i]),
            "off_target": float(np.nanmean(share)) if worst is not None else float("nan"),
            "worst": None if worst is None else COLUMNS[worst],
            "worst_share": float("nan") if worst is None else float(share[worst]),
        }
    numbers = ("pcc", "mae", "gain", "off_target")
    found["mean"] = {m: _mean([found[c][m] for c in COLUMNS]) for m in numbers} | {"n": int(sum(found[c]["n"] for c in COLUMNS))}
    return found, matrix


def _mean(values: Sequence[float] | np.ndarray) -> float:
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if len(finite) else float("nan")


# --- train on generated, test on held-out ---------------------------------------------------------------------------------------------


class _Generated(Session):
    """The training of a fit on generated pictures only: no frame of the person, no label; rehearsal and regularizers as in the recipe."""

    def samples(self, number: int) -> tuple[Samples, Samples | None]:
        return Samples.load(self.work / f"samples-{number}.safetensors"), None

    def read(self, observations: Sequence[Observation], adapted: bool, neutral: bool) -> np.ndarray:
        """(N, K) ungated."""
        return self._read(self.net if adapted else self.base.net, batch_of(observations), neutral)


def _held_out(learned: Samples | None, case: Case) -> dict[str, Any]:
    """ICC, PCC, MAE and F1 on the held-out frames of the base, of the base with the neutral, and of the base adapted on the pictures."""
    held = case.held
    if held is None:
        return {"left_out": "needs labels of this person's frames: --labels CSV"}
    if learned is None:
        return {"left_out": "no picture came through the tracker"}
    off: dict[str, dict[str, Any]] = {"tracking": {"wandb": "off"}, "buffer": {"shared": False}, "trainer": {"devices": 1}}
    recipe = {**case.recipe, **{key: {**case.recipe[key], **value} for key, value in off.items()}}
    with tempfile.TemporaryDirectory(prefix="personalize-judge-") as folder:
        run = Path(folder) / "person" / "v1"
        (run / "work").mkdir(parents=True)
        session = _Generated(case.base, case.identity, recipe, run, Truth.unknown(len(case.identity.observations)))
        learned.save(session.work / "samples-0.safetensors")
        session.train(0)
        session.net.eval()
        ways = {"base": (False, False), "neutral": (False, True), "generated": (True, True)}
        read = {way: session.read(held.observations, *flags) for way, flags in ways.items()}
    people = np.zeros(len(held.observations), int).astype(str)
    scores = {w: metrics.table(r, held.target, held.known, people, case.base.expected_thresholds, held.occurrence) for w, r in read.items()}
    names = list(scores["base"])
    table = {au: {w: {m: float(scores[w][au]["pooled"][m]) for m in ("icc", "pcc", "mae", "f1")} for w in ways} for au in names}
    return {"frames": len(held.observations), "trained_on": len(learned), "base": case.base.name, "aus": table}


# --- identity and realism -------------------------------------------------------------------------------------------------------------


def _chip(o: Observation, scheme: str) -> np.ndarray:
    assert o.view is not None and o.view_to_frame is not None
    inverse = cv2.invertAffineTransform(o.view_to_frame.astype(np.float64))
    return likeness.chip(o.view, o.image_landmarks[:, :2] @ inverse[:, :2].T + inverse[:, 2], scheme)


def _some(items: Sequence[Any], n: int) -> list[Any]:
    """At most n of them, evenly spread."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(n, len(items))).round().astype(int))] if len(items) else []


def _range(values: np.ndarray) -> dict[str, float]:
    """Mean, and the 5th and 95th percentile, of what is finite."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [5, 95]) if len(finite) else (np.nan, np.nan)
    return {"mean": _mean(finite), "low": float(low), "high": float(high)}


def _similarity(pictures: Sequence[Sample], case: Case) -> dict[str, Any]:
    """Cosines to the person's frames: of the generated pictures, of the person's other frames, of other people's."""
    net = likeness.face_network()
    if net is None:
        return {"left_out": f"needs a face network: {likeness.INSTALL}"}
    scheme = case.identity.scheme
    found = [o for s in _some(pictures, FACES) if (o := observed(s, case)) is not None]
    groups = {"own": [o for o in case.identity.observations if o.view is not None], "generated": found, "others": case.others}
    some = {key: _some(group, FACES) for key, group in groups.items()}
    # Of photographs no two are near in time: only the very same one is left out.
    still = not np.ptp([o.timestamp for o in case.identity.observations])
    at = {key: np.array([2.0 * o.frame if still else o.timestamp for o in group]) for key, group in some.items()}
    if np.ptp(at["own"]) < 1:
        return {"left_out": "needs frames of the person that are a second apart, or several photographs"}
    chips = [_chip(o, scheme) for group in some.values() for o in group]
    rows = net(chips, "Comparing faces")
    own, generated, others = np.split(rows, np.cumsum([len(g) for g in some.values()])[:-1])
    return {
        "network": {"name": net.name, "sha256": net.sha256},
        "generated": _range(likeness.similarity(generated, own, at["generated"], at["own"])),
        "same_person": _range(likeness.similarity(own, own, at["own"], at["own"])),
        "impostors": _range(likeness.similarity(others, own)),
        "impostors_are": case.others_are,
        "faces": {key: len(group) for key, group in some.items()},
    }


def _realism(pictures: Sequence[Sample], case: Case) -> dict[str, Any]:
    """FD-lite0 and KID-lite0 of the pictures to the first half of the clip, beside those of its second half; equal numbers throughout."""
    net = likeness.picture_network()
    if net is None:
        return {"left_out": f"needs a network for pictures: {likeness.INSTALL}"}
    views = [o.view for o in case.identity.observations if o.view is not None]
    n = min(len(views) // 2, len(pictures), 200)
    if n < 10:
        return {"left_out": f"needs 20 frames and 10 pictures, there are {len(views)} and {len(pictures)}"}
    first, second = _some(views[: len(views) // 2], n), _some(views[len(views) // 2 :], n)
    real, other, made = (net(p, "Comparing pictures") for p in (first, second, [s.image for s in _some(pictures, n)]))
    return {
        "network": {"name": net.name, "sha256": net.sha256},
        "n": n,
        "generated": {"fd_lite0": likeness.frechet(made, real), "kid_lite0": likeness.kid(made, real)},
        "own_halves": {"fd_lite0": likeness.frechet(other, real), "kid_lite0": likeness.kid(other, real)},
    }


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal to noise ratio of two uint8 pictures in dB, at most ``ALIKE_DB``.

    >>> psnr(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))
    0.0
    """
    error = float(np.square(a.astype(np.float64) - b.astype(np.float64)).mean())
    return ALIKE_DB if error == 0 else min(ALIKE_DB, float(10 * np.log10(255.0**2 / error)))


def _unchanged(samples: Sequence[Sample], identity: Identity) -> dict[str, Any]:
    """PSNR of pictures in which nothing was asked for against their frames, at the pictures' size; face: inside the middle half."""
    whole, face = [], []
    for s in samples:
        view = identity.observations[s.source].view
        if view is None or s.request.pose is None or s.request.source != s.source:
            continue  # of another frame: then it is another picture
        side = s.image.shape[0]
        if view.shape != s.image.shape:
            view = cv2.resize(view, (s.image.shape[1], side), interpolation=cv2.INTER_AREA if view.shape[0] > side else cv2.INTER_CUBIC)
        middle = slice(side // 4, side - side // 4)
        whole.append(psnr(s.image, view))
        face.append(psnr(s.image[middle, middle], view[middle, middle]))
    return {"n": len(whole), "psnr_mean": _mean(whole), "psnr_least": min(whole, default=float("nan")), "psnr_face_mean": _mean(face)}


# --- bars, what is shown and written --------------------------------------------------------------------------------------------------


def bars(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """What is asked of a generator: each with its figure and whether it is met; None where it could not be measured."""
    means, same = figures["control"], figures["similarity"]
    drop = same["generated"]["mean"] - same["same_person"]["mean"] if "generated" in same else float("nan")
    asked = [
        ("PCC of asked and detected, mean", means["mean"]["pcc"], 0.8, 1),
        *((f"PCC of asked and detected, {au}", means[au]["pcc"], 0.7, 1) for au in NAMED),
        ("off-target change per unit asked, mean", means["mean"]["off_target"], 0.15, -1),
        ("cosine to the person, minus their own", drop, -0.05, 1),
        ("PSNR where nothing is asked, dB", figures["unchanged"]["psnr_least"], 40.0, 1),
        ("pictures a second", figures["cost"]["pictures_per_s"], 30.0, 1),
    ]
    return [
        {"what": what, "figure": None, "bar": bar, "met": None}
        if np.isnan(value)
        else {"what": what, "figure": float(value), "bar": bar, "met": bool((value - bar) * sign >= 0)}
        for what, value, bar, sign in asked
    ]


def show(figures: dict[str, Any]) -> None:
    """The tables on stdout."""
    shown = [[b["what"], b["figure"], b["bar"], {True: "yes", False: "no", None: "-"}[b["met"]]] for b in figures["bars"]]
    ui.table(f"{figures['generator']} for {figures['person']}", ["", "figure", "bar", "met"], shown)
    held, rows = figures["held_out"].get("aus", {}), []
    for au in (*COLUMNS, "mean"):
        c = figures["control"][au]
        leak = f"{c['worst']} {c['worst_share']:.2f}" if c.get("worst") else None
        cells = [held[au][way][m] for m in ("icc", "f1") for way in ("neutral", "generated")] if au in held else [None] * 4
        rows.append([au, c["n"], c["pcc"], c["mae"], c["gain"], c["off_target"], leak, *cells])
    head = [
        "AU",
        "pictures",
        "PCC",
        "MAE",
        "gain",
        "off target",
        "most off target",
        "ICC untrained",
        "ICC adapted",
        "F1 untrained",
        "F1 adapted",
    ]
    ui.table(f"AU control, read by {figures['verifier']['name']}; held-out frames", head, rows)
    rows = []
    for what, key in (("cosine to the person", "similarity"), ("FD-lite0", "fd_lite0"), ("KID-lite0", "kid_lite0")):
        part = figures["similarity" if key == "similarity" else "realism"]
        if "left_out" in part:
            continue
        same, kinds = key == "similarity", ("generated", "same_person", "impostors")
        values = [part[k]["mean"] for k in kinds] if same else [part["generated"][key], part["own_halves"][key], None]
        rows.append([what, *values])
    if rows:
        ui.table("Likeness", ["", "generated", "the clip itself", "other people"], rows)
    for key in ("held_out", "similarity", "realism"):
        if "left_out" in figures[key]:
            print(f"{key.replace('_', '-')} not measured: {figures[key]['left_out']}")


def plot(path: Path, matrix: np.ndarray, title: str, record: dict[str, Any]) -> None:
    """The leakage matrix as a picture: asked AU by detected AU, change per unit asked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    drawn = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
    names = [c.replace("AU0", "AU") for c in COLUMNS]
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("detected")
    axes.set_ylabel("asked")
    axes.set_title(title)
    for i, j in zip(*np.nonzero(np.abs(np.nan_to_num(matrix)) >= 0.15), strict=True):
        axes.text(j, i, f"{matrix[i, j]:.1f}".replace("0.", ".", 1), ha="center", va="center", fontsize=6)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="change detected per unit asked")
    figure.savefig(path, dpi=110, metadata={"personalize": json.dumps(record)})


def write(folder: Path, verdict: Verdict, record: dict[str, Any]) -> None:
    """judge.json, sheet.png and leakage.png into a folder that exists."""
    write_json(folder / "judge.json", verdict.figures | {"provenance": record})
    height, width = verdict.cells[0][1].image.shape[:2] if verdict.cells else (1, 1)
    sheet = Sheet((width, height))
    for cell, sample in verdict.cells:
        sheet.place(cell, sample.image)
    sheet.canvas.save(folder / "sheet.png", pnginfo=png_info(record))
    plot(folder / "leakage.png", verdict.matrix, f"{verdict.figures['generator']}, read by {verdict.figures['verifier']['name']}", record)


# --- the command ----------------------------------------------------------------------------------------------------------------------


def _is_held(times: np.ndarray) -> np.ndarray:
    """(N,) bool: two of every five seconds, as a fit holds them out; of shorter clips and photographs two of every five."""
    held = (times % 5.0) >= 3.0
    return held if held.sum() >= 4 and (~held).sum() >= 4 else np.arange(len(times)) % 5 >= 3


def split(
    identity: Identity, labels: LabelTable, neutral_at: float | str | None = None, clip: Extent | None = None
) -> tuple[Identity, Held]:
    """The part of a person's frames that the generator may see, those called neutral among them, and the labelled rest.
    clip: where these are not all of its frames. Raises InputError where a part is empty."""
    observations = identity.observations
    times = np.array([o.timestamp for o in observations])
    held = _is_held(times)
    if neutral_at is not None:
        held &= ~np.array([is_named(o, neutral_at) for o in observations])
    target, known = labels.align(np.array([o.frame for o in observations]), times, [o.file for o in observations], clip)
    if held.all() or not known[held].any():
        raise InputError(f"no label falls on the held-out frames of {identity.name} (two of every five seconds): label more of the clip.")
    given, kept = ([o for o, h in zip(observations, held, strict=True) if h == wanted] for wanted in (False, True))
    part = identity.intensity[~held]
    return (
        replace(identity, observations=given, intensity=part, neutral=find_neutral(given, part, neutral_at)),
        Held(kept, target[held], known[held], labels.occurrence),
    )


def judge_clip(args: argparse.Namespace, recipe: dict[str, Any], media: Media, tracker: Tracker, partial: Path) -> str:
    """What ``personalize generate --judge`` does between its checks and the folder's name."""
    labels = read_labels(args.labels, clip=media.name) if args.labels else None
    rivals = [open_media(path) for path in args.others or ()]
    base = load_base(recipe["base"])
    verifier = load_base(args.verifier) if args.verifier else base
    found = collect(media, tracker, args.face, labels, args.neutral)
    identity = identify(found, base, media, media.path.stem, args.neutral, [])
    held = None
    if labels is not None:
        identity, held = split(identity, labels, args.neutral, extent(found, media))
    others = [o for rival in rivals for o in _some(collect(rival, tracker, quiet=True).observations, FACES // max(len(rivals), 1))]
    case = Case(identity, tracker, base, verifier, recipe, held, others, ", ".join(r.name for r in rivals))
    name = recipe["generator"]["name"]
    lacks = likeness.missing()
    if lacks:
        ui.warn(lacks)
    generator = create_generator(recipe)
    fit_views(media, identity, generator)
    verdict = judge(name, generator, case)
    record = provenance(name, media, recipe["seed"])
    partial.mkdir(parents=True)
    write(partial, verdict, record)
    show(verdict.figures)
    return "judge.json, sheet.png and leakage.png"
