"""``personalize generate``: labelled pictures of the person in a clip, from a dictionary of AUs or a balanced grid."""

from __future__ import annotations

import argparse
import csv
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from . import __version__, registry, tracking, ui
from .aus import AUS, COLUMNS, MAX_INTENSITY, column, parse_au
from .config import load_recipe
from .data import balanced_requests
from .engine import collect, identify
from .errors import ConfigError, InputError, unknown
from .generators import Request
from .video import open_media
from .weights import load_base

_ANGLES = ("pitch", "yaw", "roll")


def parse_aus(text: str) -> dict[int, float]:
    """``AU06=3,AU12=2`` to {6: 3.0, 12: 2.0}. Raises ConfigError for an unknown AU or an intensity outside 0-5."""
    aus = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        au = parse_au(name)
        if au not in AUS:
            raise ConfigError(unknown("AU", name.strip(), COLUMNS))
        aus[au] = _number(value, f"the intensity of {column(au)}", 0, MAX_INTENSITY)
    return aus


def parse_pose(text: str, neutral: np.ndarray) -> tuple[float, float, float]:
    """``yaw=20,pitch=5`` in degrees to radians (pitch, yaw, roll); angles not named are those of the neutral."""
    pose = neutral.astype(float).tolist()
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name.strip() not in _ANGLES:
            raise ConfigError(unknown("angle", name.strip(), _ANGLES))
        pose[_ANGLES.index(name.strip())] = float(np.radians(_number(value, name.strip(), -90, 90)))
    return (pose[0], pose[1], pose[2])


def _number(text: str, what: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not least <= value <= most:
        raise ConfigError(f"{what} must be a number from {least:g} to {most:g}, not '{text}'.")
    return value


def generate_command(args: argparse.Namespace) -> int:
    """``personalize generate``."""
    tracking.quiet_lightning()
    recipe = load_recipe("default", args.overrides)
    folder = Path(args.output)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: name another folder with --output.")
    if args.grid not in (None, "balanced"):
        raise ConfigError(unknown("grid", args.grid, ["balanced"]))
    asked = parse_aus(args.aus) if args.aus else {}
    media = open_media(args.identity)
    tracker = registry.create("trackers", recipe["tracker"]["name"], recipe["tracker"]["options"])
    try:
        identity = identify(
            collect(media, tracker, getattr(args, "face", None)), load_base(recipe["base"]), media, media.path.stem, None, []
        )
    finally:
        tracker.close()
    rest = identity.observations[int(identity.neutral.indices[0])].pose if identity.neutral is not None else np.zeros(3)
    requests = balanced_requests(args.n or 100, recipe["seed"]) if args.grid else [Request(asked)] * (args.n or 1)
    if args.pose:
        pose = parse_pose(args.pose, rest)
        requests = [Request(r.aus, pose) for r in requests]
    generator = registry.create("generators", recipe["generator"]["name"], recipe["generator"]["options"])
    generator.prepare(identity, recipe["seed"])
    made = []
    with ui.progress(None, len(requests), "Generating") as bar:
        for start in range(0, len(requests), 16):
            part = requests[start : start + 16]
            made += [s for s in generator.generate(part) if s is not None]
            bar.advance(len(part))
    if not made:
        raise InputError(
            f"{recipe['generator']['name']} could make none of the pictures asked for from {media.name}: "
            "ask for smaller changes or another generator."
        )
    if len(made) < len(requests):
        ui.warn(
            f"{len(requests) - len(made)} of {len(requests)} pictures could not be made honestly (pose or AU out of range) and are left out"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        (partial / "images").mkdir(parents=True)
        with (partial / "labels.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["file", *COLUMNS])
            for i, sample in enumerate(made):
                name = f"{i:05d}.png"
                info = PngInfo()
                info.add_text(
                    "personalize", f"synthetic, made by personalize {__version__} {recipe['generator']['name']} from {media.name}"
                )
                Image.fromarray(sample.image).save(partial / "images" / name, pnginfo=info)
                writer.writerow([name, *(f"{v:.2f}" if k else "" for v, k in zip(sample.target, sample.known, strict=True))])
        contact_sheet([(s.image, " ".join(f"AU{a:02d} {v:.1f}" for a, v in s.request.aus.items()) or "rest") for s in made[:48]]).save(
            partial / "sheet.png"
        )
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    ui.info(f"wrote {len(made)} pictures, labels.csv and sheet.png to {folder}")
    return 0


def contact_sheet(pictures: list[tuple[np.ndarray, str]], columns: int = 8, side: int = 160) -> Image.Image:
    """Pictures with captions on one sheet."""
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * side, rows * (side + 16)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(pictures):
        x, y = i % columns * side, i // columns * (side + 16)
        sheet.paste(Image.fromarray(image).resize((side, side)), (x, y))
        draw.text((x + 2, y + side + 2), caption[:27], fill="black")
    return sheet
