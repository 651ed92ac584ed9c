"""Generators side by side, judged on synthetic people whom nothing has seen: `personalize generate --judge` for each, with the truth known.

    python benchmarks/generators.py --people 4 --generators mesh_warp,pix2pix,pix2pix_au --output runs/generators [key=value ...]

Each person of the split 'benchmark' has a calm support clip, which the generator sees, and a lively query clip of another day, light and
camera, whose exact truth judges the model that was adapted on generated pictures alone. Other people's support clips give the impostor
range. The row 'renders' is no generator but the renderer itself, asked for the same pictures of the same person: what the verifier and the
adaptation make of pictures without any fault.

Writes generators.json, generators.md and, for each person and generator, judge.json, sheet.png and leakage.png.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from personalize import bench, geometry, likeness, registry, ui
from personalize.aus import AUS, COLUMNS
from personalize.collect import collect, identify
from personalize.config import load_recipe
from personalize.drive import landmarks_in
from personalize.errors import InputError
from personalize.faces import Observation, Tracker
from personalize.generate import create_generator, fit_views, provenance
from personalize.generators import Generator, Request, Sample
from personalize.identity import Identity
from personalize.judge import FACES, Case, Held, judge, write
from personalize.metrics import bootstrap, paired
from personalize.synth.clips import Camera, Clip, camera_stream
from personalize.synth.person import controls
from personalize.synth.scene import Scene
from personalize.synth.world import World
from personalize.video import open_media
from personalize.weights import load_base

RENDERS = "renders"
LEVELS = np.linspace(0, 1, 41)


class Renders(Generator):
    """The renderer as a generator: the person of a clip, in its light and through its camera, with the AUs and the pose asked for."""

    def __init__(self, clip: Clip, tracker: Tracker) -> None:
        self.clip, self.tracker, self.world = clip, tracker, World(size=clip.size)
        self.person = self.world.person(clip.split, clip.person)

    def prepare(self, identity: Identity, seed: int) -> None:
        self.identity, self.grain = identity, np.random.default_rng([seed, 4401])
        self.scene = Scene.of_clip(self.person.seed, self.clip.seed)
        self.camera = Camera.sample(camera_stream(self.clip))
        # How far the lips part and the jaw drops for each strength of their controls.
        names = controls()[0]
        self.open = {25: _controls(names, {"mouthLowerDown": 0.7, "mouthUpperUp": 0.4}), 26: _controls(names, {"jawOpen": 1.0})}
        self.reach = {}
        for i, au in enumerate(self.open):
            values = self.person.activate(np.zeros((len(LEVELS), len(AUS))), LEVELS[:, None] * self.open[au])
            self.reach[au] = np.maximum.accumulate(self.person.measure(self.person.mesh(values))[i])

    def generate(self, requests: list[Request]) -> list[Sample | None]:
        return [self._answer(r) for r in requests]

    def _answer(self, request: Request) -> Sample | None:
        calm = [0] if self.identity.neutral is None else self.identity.neutral.indices
        source = int(calm[0]) if request.source is None else request.source
        pitch, yaw, _ = self.identity.observations[source].upright if request.pose is None else request.pose
        pose = geometry.tilted(pitch, yaw).astype(np.float32)
        aus = np.array([request.aus.get(au, 0.0) for au in AUS], np.float32)
        extra = np.zeros(len(controls()[0]), np.float32)
        for au, strength in self.open.items():
            if request.aus.get(au, 0) > 0:
                extra += float(np.interp(request.aus[au], self.reach[au], LEVELS)) * strength
        shot = next(self.world.render(self.person, aus[None], extra[None], pose[None], np.zeros((1, 2), np.float32), [self.scene]))
        image = self.camera.apply(shot.images[0], self.grain)
        points = landmarks_in(self.tracker, image)
        if points is None:
            return None
        image, _ = geometry.view(image, geometry.fit_pose(points, self.tracker.scheme), self.tracker.scheme)
        return Sample(image, shot.target[0], np.ones(len(AUS), bool), request, source)


def _controls(names: tuple[str, ...], shares: dict[str, float]) -> np.ndarray:
    return np.array([next((v for k, v in shares.items() if n in (k, k + "Left", k + "Right")), 0.0) for n in names], np.float32)


def clips_of(person: int, seed: int, seconds: float) -> tuple[Clip, Clip]:
    """The support and the query clip of a person, those of `personalize bench`."""
    return (
        Clip("benchmark", person, 2 * seed, seconds, liveliness=0.6),
        Clip("benchmark", person, 2 * seed + 1, seconds, liveliness=1.5),
    )


def summary(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over people of one generator's judge.json, of what was measured; intervals of the held-out ICC."""

    def mean(*path: str) -> float:
        found = []
        for f in figures:
            value: Any = f
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, (int, float)) and np.isfinite(value):
                found.append(float(value))
        return float(np.mean(found)) if found else float("nan")

    aus = ("mean", "AU06", "AU17")
    ways = [(m, way) for m in ("icc", "f1") for way in ("neutral", "generated")]
    held = {au: {f"{m}_{way}": mean("held_out", "aus", au, way, m) for m, way in ways} for au in aus}
    return {
        "people": len(figures),
        "held_out": held,
        "icc_gain": {au: _gain(figures, au) for au in aus},
        "pcc": {au: mean("control", au, "pcc") for au in (*aus, *COLUMNS)},
        "off_target": mean("control", "mean", "off_target"),
        "similarity": {k: mean("similarity", k, "mean") for k in ("generated", "same_person", "impostors")},
        "realism": {f"{m}_{k}": mean("realism", k, m) for m in ("fd_lite0", "kid_lite0") for k in ("generated", "own_halves")},
        "psnr": mean("unchanged", "psnr_least"),
        "pictures_per_s": mean("cost", "pictures_per_s"),
        "cpu_ms_per_picture": mean("cost", "cpu_ms_per_picture"),
        "prepare_s": mean("cost", "prepare_s"),
    }


def _icc(figures: list[dict[str, Any]], au: str, way: str) -> list[float]:
    return [float(f["held_out"].get("aus", {}).get(au, {}).get(way, {}).get("icc", np.nan)) for f in figures]


def _gain(figures: list[dict[str, Any]], au: str) -> dict[str, float]:
    """Adapted on generated pictures minus the base with the neutral, paired per person, with its interval."""
    return paired(_icc(figures, au, "neutral"), _icc(figures, au, "generated")).as_dict()


def differences(figures: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Held-out ICC of the first generator minus each other's, paired per person: 'mean', AU06, AU17."""
    first, *others = figures
    out: dict[str, Any] = {}
    for other in others:
        out[f"{first} - {other}"] = {}
        for au in ("mean", "AU06", "AU17"):
            mine = {f["person"]: v for f, v in zip(figures[first], _icc(figures[first], au, "generated"), strict=True)}
            theirs = {f["person"]: v for f, v in zip(figures[other], _icc(figures[other], au, "generated"), strict=True)}
            both = [p for p in mine if p in theirs]
            out[f"{first} - {other}"][au] = bootstrap([mine[p] - theirs[p] for p in both]).as_dict()
    return out


HEAD = ["generator", "people", "ICC held-out", "AU6", "AU17", "F1", "control PCC", "AU6", "AU17", "off target", "cosine", "same person"]
HEAD += ["impostors", "FD-lite0", "halves", "KID-lite0", "halves", "PSNR", "pictures/s", "CPU ms"]


def rows(found: dict[str, dict[str, Any]]) -> list[list[Any]]:
    """The table's rows; first what the untrained model reads."""
    out: list[list[Any]] = []
    if found:
        held = next(iter(found.values()))["held_out"]
        untrained = [held[au]["icc_neutral"] for au in ("mean", "AU06", "AU17")] + [held["mean"]["f1_neutral"]]
        out.append(["(neutral as input, untrained)", None, *untrained, *[None] * 14])
    for name, s in found.items():
        cells = [s["held_out"][au]["icc_generated"] for au in ("mean", "AU06", "AU17")] + [s["held_out"]["mean"]["f1_generated"]]
        cells += [s["pcc"][au] for au in ("mean", "AU06", "AU17")] + [s["off_target"], *s["similarity"].values()]
        cells += [*s["realism"].values(), s["psnr"], s["pictures_per_s"], s["cpu_ms_per_picture"]]
        out.append([name, s["people"], *cells])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--generators", default="au_residual", help="the first is compared with the others")
    parser.add_argument("--renders", action=argparse.BooleanOptionalAction, default=True, help="the renderer as a last row")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--verifier", default=None, help="base model that reads the pictures (default: the recipe's)")
    parser.add_argument("--output", type=Path, default=Path("runs/generators"))
    parser.add_argument("--plugins", action="append", default=[])
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    for file in args.plugins:
        registry.load_file(file)
    names = [g.strip() for g in args.generators.split(",") if g.strip()]
    recipes = {n: load_recipe(args.recipe, ["tracking.wandb='off'", *args.overrides, f"generator.name={n}"]) for n in names}
    recipe = next(iter(recipes.values()))
    pairs = [clips_of(1000 * args.seed + i, args.seed, args.seconds) for i in range(args.people)]
    args.output.mkdir(parents=True, exist_ok=True)
    bench.film([clip for pair in pairs for clip in pair], args.output / "clips", args)
    base = load_base(recipe["base"])
    verifier = load_base(args.verifier) if args.verifier else base
    tracker = registry.create("trackers", recipe["tracker"]["name"], recipe["tracker"]["options"])
    if likeness.missing():
        ui.warn(likeness.missing())
    people = [_seen(pair[0], args.output, base, tracker) for pair in pairs]
    figures: dict[str, list[dict[str, Any]]] = {n: [] for n in [*names, *([RENDERS] if args.renders else [])]}
    for i, (support, query) in enumerate(pairs):
        observations, truth, _ = bench.track(query, args.output, recipe)
        held = Held(observations, truth, np.ones_like(truth, bool), np.zeros(len(AUS), bool))
        rivals = [o for j, p in enumerate(people) if j != i for o in _views(p, max(FACES // max(len(people) - 1, 1), 1))]
        for name in figures:
            chosen = recipes.get(name, recipe)
            generator = Renders(support, tracker) if name == RENDERS else create_generator(chosen)
            # at the generator's size, as generate makes them; the others' stay as they are
            identity = replace(people[i], observations=[replace(o) for o in people[i].observations])
            clip = open_media(support.path(args.output / "clips"))
            fit_views(clip, identity, generator)
            case = Case(identity, tracker, base, verifier, chosen, held, rivals, f"{len(people) - 1} other synthetic people")
            place = args.output / f"person{support.person:04d}" / name
            place.mkdir(parents=True, exist_ok=True)
            try:
                verdict = judge(name, generator, case)
            except InputError as problem:
                ui.warn(str(problem))
                continue
            write(place, verdict, provenance(name, clip, chosen["seed"]))
            figures[name].append(verdict.figures)
            done = {n: summary(f) for n, f in figures.items() if f}
            (args.output / "generators.md").write_text(ui.markdown(None, HEAD, rows(done)))
    tracker.close()
    done = {n: summary(f) for n, f in figures.items() if f}
    compared = differences({n: f for n, f in figures.items() if f}) if done else {}
    result = {"generators": done, "differences": compared, "verifier": {"name": verifier.name, "sha256": verifier.sha256}}
    result |= {"people": [s.person for s, _ in pairs], "seed": args.seed, "overrides": args.overrides}
    (args.output / "generators.json").write_text(json.dumps(bench._plain(result), indent=1) + "\n")
    ui.table(f"Generators, {len(pairs)} unseen synthetic people", HEAD, rows(done))


def _seen(clip: Clip, folder: Path, base: Any, tracker: Tracker) -> Identity:
    media = open_media(clip.path(folder / "clips"))
    return identify(collect(media, tracker), base, media, f"person{clip.person:04d}", None, [])


def _views(identity: Identity, n: int) -> list[Observation]:
    seen = [o for o in identity.observations if o.view is not None]
    return [seen[int(i)] for i in np.linspace(0, len(seen) - 1, min(n, len(seen)))]


if __name__ == "__main__":
    main()
