"""``personalize generate``: labelled pictures of the person in a clip, from a dictionary of AUs or a grid; or another clip's expressions.

Everything that is written says that it is synthetic, of whose clip and by what: in the PNG text chunk 'personalize', a video's comment,
provenance.json. Pictures are written as they are made, into a folder that gets its name when all is done.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import errno
import inspect
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from . import __version__, geometry, registry, tracking, ui
from .aus import AUS, COLUMNS, MAX_INTENSITY, NAMES, column, parse_au
from .collect import check_neutral, collect, identify
from .composite import face_mask, free_corner, tilted, watermark
from .config import given_options, load_recipe
from .drive import drive, inserted, landmarks_in, read_driver, thumbnail
from .errors import ConfigError, InputError, ProfileError, unknown
from .faces import Tracker
from .generators import Generator, Request, Sample, ask
from .identity import Identity
from .predict import open_reader
from .profile import find_profile, read_manifest
from .reader import Reader
from .requests import balanced, spread_poses
from .video import Media, open_media
from .weights import load_base

_ANGLES = ("pitch", "yaw", "roll")
GRIDS = ("balanced", "sheet")
LARGEST = 384
"""Side in pixels up to which faces for videos and composites keep the clip's own resolution."""
SHEET_POSES: tuple[tuple[str, tuple[int, ...]], ...] = (("yaw", (-30, -20, -10, 0, 10, 20, 30)), ("pitch", (-20, -10, 0, 10, 20)))
SHEET_FACES: tuple[tuple[str, dict[int, float]], ...] = (("rest", {}), ("AU06 4", {6: 4.0}), ("AU17 4", {17: 4.0}))


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
    """``yaw=20,pitch=5`` in degrees, as a reading has them, to a :class:`Request`'s pose. neutral: (3,) as :func:`geometry.upright` gives
    them, of which angles are that are not named; but without a roll the picture is upright."""
    pose, named = neutral.astype(float).tolist(), set()
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name.strip() not in _ANGLES:
            raise ConfigError(unknown("angle", name.strip(), _ANGLES))
        pose[_ANGLES.index(name.strip())] = float(np.radians(_number(value, name.strip(), -90, 90)))
        named.add(name.strip())
    pitch, yaw, tilt = geometry.upright(pose).tolist() if "roll" in named else (*pose[:2], 0.0)
    return (pitch, yaw, tilt)


def _number(text: str, what: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not least <= value <= most:
        raise ConfigError(f"{what} must be a number from {least:g} to {most:g}, not '{text}'.")
    return value


# --- what is asked for ----------------------------------------------------------------------------------------------------------------


def roll_of(request: Request) -> float:
    """Radians by which an upright picture is tilted afterwards."""
    return 0.0 if request.pose is None else float(request.pose[2])


@dataclass(frozen=True)
class Cell:
    """One place of the sheet: its block (0 AUs, 1 yaw, 2 pitch), row and column in it, and what is asked for there."""

    block: int
    row: int
    column: int
    request: Request


def sheet_cells(rest: np.ndarray, source: int) -> list[Cell]:
    """All of the sheet: AUs by intensity, then faces by yaw and by pitch. rest: (3,) radians, the person's neutral pose, upright."""
    still = (float(rest[0]), float(rest[1]), 0.0)
    cells = [
        Cell(0, r, value, Request({au: float(value)} if value else {}, still, source, exact=True))
        for r, au in enumerate(AUS)
        for value in range(6)
    ]
    for block, (angle, degrees) in enumerate(SHEET_POSES, 1):
        for r, (_, aus) in enumerate(SHEET_FACES):
            for c, value in enumerate(degrees):
                pose = [0.0, 0.0, 0.0]
                pose[_ANGLES.index(angle)] = float(np.radians(value))
                cells.append(Cell(block, r, c, Request(aus, (pose[0], pose[1], pose[2]), source, exact=True)))
    return cells


def _check_options(args: argparse.Namespace) -> None:
    """Raise ConfigError, before any work, for options that contradict each other."""
    judged = ("labels", "others", "verifier")
    asked = ("driver", "grid", "aus", "pose", "n", "composite", "watermark")
    for name in asked if args.judge else judged:
        if getattr(args, name):
            option = "-n" if name == "n" else f"--{name}"
            why = f"--judge asks for pictures of its own: leave {option} out." if args.judge else f"{option} goes with --judge."
            raise ConfigError(why)
    if args.grid not in (None, *GRIDS):
        raise ConfigError(unknown("grid", args.grid, GRIDS))
    if args.driver:
        for option, value in (("--grid", args.grid), ("--aus", args.aus), ("--pose", args.pose), ("-n", args.n)):
            if value is not None:
                raise ConfigError(f"--driver brings expressions and poses of its own: leave {option} out.")
    elif args.driver_profile:
        raise ConfigError("--driver-profile is the profile of a driver: name its clip with --driver.")
    if args.grid and args.aus:
        raise ConfigError("--grid brings expressions of its own: leave --aus out.")
    if args.grid == "sheet":
        for option, value in (("--pose", args.pose), ("-n", args.n)):
            if value is not None:
                raise ConfigError(f"--grid sheet is always the same pictures: leave {option} out.")


def _place(folder: Path) -> Path:
    """The folder, or the nearest above it that there is."""
    return next(place for place in (folder, *folder.parents) if os.path.exists(place))


def _filled(folder: Path) -> bool:
    """Whether anything lies in a folder, what runs are still making aside."""
    return any(not (p.name.startswith(".") and p.name.endswith(".partial")) for p in folder.iterdir())


def _check_output(output: str) -> Path:
    """The folder to write, absolute, links followed. Raises InputError where nothing can be written later."""
    folder = Path(os.path.realpath(output))
    place = _place(folder)
    if not place.is_dir():
        raise InputError(f"{output if place == folder else place} is a file: name a folder with --output.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {output}: permission denied")
    if place == folder and _filled(folder):
        raise InputError(f"{output} is not empty: name another folder with --output.")
    return folder


def _partial(folder: Path) -> Path:
    """Where a folder is made until all is done: beside it; inside where it is there already, as it may be a mount, or its parent closed."""
    name = f".{folder.name}.{os.getpid()}.partial"
    return folder / name if os.path.exists(folder) else folder.with_name(name)


def _check_disk(folder: Path, needed: float) -> None:
    free = shutil.disk_usage(_place(folder)).free
    if free < needed:
        raise InputError(
            f"not enough disk for {folder}: about {needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free. "
            "Free some or name another place with --output."
        )


# --- provenance -----------------------------------------------------------------------------------------------------------------------


def provenance(generator: str, media: Media, seed: int, driver: Media | None = None, composite: bool = False) -> dict[str, Any]:
    """What every file says of itself: that it is synthetic, by what, of whose clip (name and hash, no path), when."""
    record: dict[str, Any] = {
        "synthetic": True,
        "tool": f"personalize {__version__}",
        "generator": generator,
        "source": {"file": media.name, "sha256": media.sha256()},
        "seed": seed,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "composite": composite,
    }
    if driver is not None:
        record["driver"] = {"file": driver.name, "sha256": driver.sha256()}
    return record


def png_info(record: dict[str, Any]) -> PngInfo:
    """The record as a PNG text chunk 'personalize'."""
    info = PngInfo()
    info.add_text("personalize", json.dumps(record))
    return info


# --- what is written ------------------------------------------------------------------------------------------------------------------


class PictureFolder:
    """images/, masks/, labels.csv, landmarks.npz of pictures that come in any order; written as they come."""

    def __init__(self, place: Path, tracker: Tracker, identity: Identity, record: dict[str, Any], mark: bool) -> None:
        self.place, self.tracker, self.identity, self.record, self.mark = place, tracker, identity, record, mark
        self.rows: dict[int, list[str]] = {}
        self.landmarks: dict[int, np.ndarray] = {}
        for name in ("images", "masks"):
            (place / name).mkdir(parents=True)

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, index: int, image: np.ndarray, sample: Sample, near: np.ndarray | None = None) -> np.ndarray:
        """Write one picture; returns it as written. near: (2,) where its face is, pixels; the middle by default."""
        points = landmarks_in(self.tracker, image, near)
        mask = face_mask(np.zeros((0, 2)) if points is None else points, image.shape)
        if self.mark:
            image = watermark(image, free_corner(image.shape, mask))
        name = f"{index:05d}.png"
        origin = self.identity.observations[sample.source]
        pitch, yaw, _ = origin.upright if sample.request.pose is None else sample.request.pose
        pose = geometry.tilted(pitch, yaw, origin.upright[2] if self.record["composite"] else roll_of(sample.request))
        record = self.record | {
            "frame": origin.file or origin.frame,
            "aus": {column(a): round(float(v), 2) for a, v in sorted(sample.request.aus.items())},
            "pose": dict(zip(_ANGLES, np.degrees(pose).round(1).tolist(), strict=True)),
        }
        Image.fromarray(image).save(self.place / "images" / name, pnginfo=png_info(record))
        Image.fromarray(mask).save(self.place / "masks" / name, pnginfo=png_info(record))
        self.rows[index] = [name, *(f"{v:.2f}" if k else "" for v, k in zip(sample.target, sample.known, strict=True))]
        if points is not None:
            self.landmarks[index] = points.astype(np.float32)
        return image

    def finish(self) -> None:
        """Write labels.csv and landmarks.npz."""
        with (self.place / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["file", *(f"{c}_r" for c in COLUMNS)])
            writer.writerows(self.rows[i] for i in sorted(self.rows))
        blank = np.full_like(self.identity.observations[0].image_landmarks, np.nan, np.float32)
        order = sorted(self.rows)
        np.savez_compressed(
            self.place / "landmarks.npz",
            landmarks=np.stack([self.landmarks.get(i, blank) for i in order]),
            name=np.array([self.rows[i][0] for i in order]),
            provenance=np.array(json.dumps(self.record)),
        )


class Sheet:
    """The grid to look at: blocks of captioned cells at full size."""

    LEFT, HEAD = 150, 22

    def __init__(self, side: tuple[int, int]) -> None:
        self.side = side
        names = [f"AU{au:02d} {NAMES[au]}" for au in AUS]
        faces = [name for name, _ in SHEET_FACES]
        self.blocks = [("intensity", names, [str(v) for v in range(6)])]
        self.blocks += [(angle, faces, [f"{v:+d} degrees" for v in degrees]) for angle, degrees in SHEET_POSES]
        width, height = side
        tops, top = [], 0
        for _, rows, _ in self.blocks:
            tops.append(top)
            top += self.HEAD + len(rows) * (height + 2) + 8
        self.tops = tops
        self.canvas = Image.new("RGB", (self.LEFT + max(len(c) for _, _, c in self.blocks) * (width + 2), top), "white")
        draw = ImageDraw.Draw(self.canvas)
        for top, (title, rows, columns) in zip(tops, self.blocks, strict=True):
            draw.text((4, top + 5), title, fill="black")
            for c, text in enumerate(columns):
                draw.text((self.LEFT + c * (width + 2) + 4, top + 5), text, fill="black")
            for r, text in enumerate(rows):
                y = top + self.HEAD + r * (height + 2)
                draw.text((4, y + height // 2), text, fill="black")
                for c in range(len(columns)):
                    x = self.LEFT + c * (width + 2)
                    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=(225, 225, 225))
                    draw.text((x + 6, y + height // 2), "not made", fill=(120, 120, 120))

    def place(self, cell: Cell, image: np.ndarray) -> None:
        """Put a picture into its cell."""
        picture = Image.fromarray(image)
        if picture.size != self.side:
            picture = picture.resize(self.side, Image.Resampling.LANCZOS)
        x = self.LEFT + cell.column * (self.side[0] + 2)
        self.canvas.paste(picture, (x, self.tops[cell.block] + self.HEAD + cell.row * (self.side[1] + 2)))


def contact_sheet(pictures: list[tuple[np.ndarray, str]], columns: int = 8, side: int = 160) -> Image.Image:
    """Pictures with captions on one sheet, each as wide as ``side``, all of one shape."""
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    tall = round(side * pictures[0][0].shape[0] / pictures[0][0].shape[1])
    sheet = Image.new("RGB", (columns * side, rows * (tall + 16)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(pictures):
        x, y = i % columns * side, i // columns * (tall + 16)
        sheet.paste(Image.fromarray(image).resize((side, tall)), (x, y))
        draw.text((x + 2, y + tall + 2), caption[: side // 6], fill="black")
    return sheet


# --- making it ------------------------------------------------------------------------------------------------------------------------


def create_generator(recipe: dict[str, Any], **wanted: Any) -> Generator:
    """The recipe's generator, with those of the ``wanted`` options that it has, in the place of the recipe's."""
    name = recipe["generator"]["name"]
    has = inspect.signature(registry.load("generators", name)).parameters
    options = dict(recipe["generator"]["options"] or {}) | {k: v for k, v in wanted.items() if k in has}
    made: Generator = registry.create("generators", name, options)
    return made


def side_of(generator: Generator) -> int:
    """Side in pixels of a generator's pictures, as its option ``size`` says."""
    size = getattr(generator, "size", geometry.VIEW_SIZE)
    return size if isinstance(size, int) else geometry.VIEW_SIZE


def _chooses_size(recipe: dict[str, Any], args: argparse.Namespace) -> bool:
    """Whether the size of faces in a video or a composite is for the clip to say: the user names none, and the generator does not train on
    the clip, which would take longer by as much as its pictures have more pixels."""
    cls = registry.load("generators", recipe["generator"]["name"])
    return "size" not in given_options(args.recipe, args.overrides, "generator") and not getattr(cls, "trains_on_clip", False)


def own_size(identity: Identity) -> int:
    """Side in pixels at which a view of the person's face keeps the clip's resolution, 160 to ``LARGEST``."""
    seen = [float(np.hypot(*o.view_to_frame[:, 0])) for o in identity.observations if o.view is not None and o.view_to_frame is not None]
    if not seen:
        return geometry.VIEW_SIZE
    return int(np.clip(round(geometry.VIEW_SIZE * float(np.median(seen)) / 16) * 16, geometry.VIEW_SIZE, LARGEST))


def remake_views(media: Media, identity: Identity, size: int) -> None:
    """Take the views of the person's frames from the clip again, at another size; reads it once more, without tracking."""
    wanted = {o.frame: o for o in identity.observations if o.view is not None}
    with ui.progress(None, media.length, f"Reading {media.name} again") as bar:
        for frame in media.frames():
            o = wanted.get(frame.index)
            if o is not None:
                pose = geometry.fit_pose(o.image_landmarks, identity.scheme)
                o.view, o.view_to_frame = geometry.view(frame.image, pose, identity.scheme, size)
            bar.advance(1)


def fit_views(media: Media, identity: Identity, generator: Generator) -> None:
    """Take the views from the clip again where the generator's pictures are larger than they are."""
    if side_of(generator) > geometry.VIEW_SIZE:
        remake_views(media, identity, side_of(generator))


def answers(generator: Generator, requests: Sequence[Request], again: bool) -> Iterator[tuple[int, Sample | None]]:
    """Each request's number and answer, in order. again: what cannot be made in its pose is asked for in any."""
    for start in range(0, len(requests), 16):
        part = list(requests[start : start + 16])
        made = ask(generator, part)
        if again:
            missing = [i for i, s in enumerate(made) if s is None and part[i].pose is not None]
            for i, s in zip(missing, ask(generator, [replace(part[i], pose=None) for i in missing]), strict=True):
                made[i] = s
        yield from enumerate(made, start)


def generate_command(args: argparse.Namespace) -> int:
    """``personalize generate``."""
    tracking.quiet_lightning()
    _check_options(args)
    recipe = load_recipe(args.recipe, args.overrides, "fit")
    if args.seed is not None:
        recipe["seed"] = args.seed
    folder = _check_output(args.output)
    if args.aus:
        parse_aus(args.aus)
    if args.pose:
        parse_pose(args.pose, np.zeros(3))
    media = open_media(args.identity)
    check_neutral(args.neutral, media)
    driver = open_media(args.driver) if args.driver else None
    if driver is not None and driver.kind != "video":
        raise InputError(f"{driver.name} is no video: --driver takes a clip whose expressions are put onto the face.")
    create_generator(recipe)  # before anything is tracked for nothing
    tracker = registry.create("trackers", recipe["tracker"]["name"], recipe["tracker"]["options"])
    partial = _partial(folder)
    above = [p for p in folder.parents if not os.path.exists(p)]
    try:
        if args.judge:
            from .judge import judge_clip

            said = judge_clip(args, recipe, media, tracker, partial)
        elif driver is not None:
            said = _video(args, recipe, media, driver, tracker, folder, partial)
        else:
            said = _pictures(args, recipe, media, tracker, folder, partial)
        place = _put(partial, folder)
    finally:
        tracker.close()
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # of a run that failed nothing stays; where it did not, they are not empty
            for parent in above:
                parent.rmdir()
    ui.info(f"wrote {said} to {args.output if place == folder else place}")
    return 0


def _put(made: Path, folder: Path) -> Path:
    """Give a finished folder its name, or, where another run was faster, the next one that is free; returns it. What was made inside of a
    folder that was there moves up into it."""
    if made.parent == folder and not _filled(folder):
        for child in made.iterdir():
            child.rename(folder / child.name)
        made.rmdir()
        return folder
    place = folder if made.parent != folder else made.with_name(f"{folder.name}-2")
    for number in itertools.count(2):
        try:
            made.rename(place)  # an empty folder of that name gives way
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            place = place.with_name(f"{folder.name}-{number}")
    if place != folder:
        ui.warn(f"{folder.name} was filled meanwhile: this run is in {place.relative_to(folder.parent)}")
    return place


def _identify(args: argparse.Namespace, recipe: dict[str, Any], media: Media, tracker: Tracker) -> Identity:
    found = collect(media, tracker, args.face, neutral_at=args.neutral)
    return identify(found, load_base(recipe["base"]), media, media.path.stem, args.neutral, [])


def _ready(recipe: dict[str, Any], media: Media, identity: Identity, own: bool) -> Generator:
    """The generator, prepared. own: pictures in the clip's resolution."""
    generator = create_generator(recipe, **({"size": own_size(identity)} if own else {}))
    fit_views(media, identity, generator)
    generator.prepare(identity, recipe["seed"])
    return generator


def _driver_reader(profile: str | None, base: str) -> Reader:
    """What reads a driver: its profile, else the base. Raises ProfileError where the recipe's base is not the profile's."""
    if profile is None:
        return Reader(load_base(base))
    wanted, there = read_manifest(find_profile(profile))["base"], load_base(base)
    if wanted["sha256"] != there.sha256:
        raise ProfileError(
            f"the profile {profile} was fitted on base '{wanted['name']}' ({wanted['sha256'][:12]}), and the recipe's is '{there.name}' "
            f"({there.sha256[:12]}): give that one with base=PATH, or leave --driver-profile out."
        )
    return open_reader(profile, base)


def _rest(identity: Identity) -> tuple[int, np.ndarray]:
    """The calmest frame and its pose; without a neutral the first frame, facing the camera."""
    if identity.neutral is None:
        return 0, np.zeros(3)
    first = int(identity.neutral.indices[0])
    return first, identity.observations[first].upright


def _video(
    args: argparse.Namespace, recipe: dict[str, Any], media: Media, driver: Media, tracker: Tracker, folder: Path, partial: Path
) -> str:
    frames = driver.length or int((driver.duration or 60.0) * driver.fps)
    own = _chooses_size(recipe, args)
    side = LARGEST if own else side_of(create_generator(recipe))
    area = max(media.size[0] * media.size[1], 1) if args.composite else side * side
    _check_disk(folder, 2e6 + 0.15 * frames * area)
    reader = _driver_reader(args.driver_profile, recipe["base"])
    identity = _identify(args, recipe, media, tracker)
    acted = read_driver(driver, reader, tracker)
    generator = _ready(recipe, media, identity, own)
    record = provenance(recipe["generator"]["name"], media, recipe["seed"], driver, args.composite)
    partial.mkdir(parents=True)
    made = drive(
        acted,
        identity,
        generator,
        media,
        tracker,
        partial,
        composite=args.composite,
        mark=args.watermark,
        seed=recipe["seed"],
        record=record,
    )
    lines = []
    if made.held:
        why = "no face, or pose out of range"
        lines.append(f"{made.held} of {made.frames} frames could not be made honestly ({why}) and hold the last one")
    if made.bare:
        lines.append(f"in {made.bare} of {made.frames} frames {media.name} shows no face: they stay its own")
    if lines:
        ui.warn("; ".join(lines))
    contact_sheet(made.thumbnails, 4, 320).save(partial / "sheet.png", pnginfo=png_info(record))
    counts = {"frames": made.frames, "held": made.held, "unchanged": made.bare, "watermark": args.watermark}
    _write_record(partial, record | counts)
    return f"video.mp4 ({made.frames} frames), labels.csv, sheet.png and provenance.json"


def _write_record(place: Path, record: dict[str, Any]) -> None:
    (place / "provenance.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _pictures(args: argparse.Namespace, recipe: dict[str, Any], media: Media, tracker: Tracker, folder: Path, partial: Path) -> str:
    count = args.n or (len(sheet_cells(np.zeros(3), 0)) if args.grid == "sheet" else 100 if args.grid else 1)
    own = args.composite and _chooses_size(recipe, args)
    area = (LARGEST if own else side_of(create_generator(recipe))) ** 2
    if args.composite:  # the frames, and the faces that wait to be put into them
        area += max(media.size[0] * media.size[1], 1)
    _check_disk(folder, 2e6 + 2.5 * count * area)
    identity = _identify(args, recipe, media, tracker)
    first, rest = _rest(identity)
    sheet = args.grid == "sheet"
    cells = sheet_cells(rest, first) if sheet else []
    if sheet:
        requests = [cell.request for cell in cells]
    elif args.grid:
        requests = balanced(count, recipe["seed"])
        if not args.pose and not args.composite:  # within its own frame a face stays turned as it is
            requests = spread_poses(requests, identity, recipe["seed"])
    else:
        requests = [Request(parse_aus(args.aus or ""))] * count
    if args.pose:
        pose = parse_pose(args.pose, rest)
        requests = [replace(r, pose=pose) for r in requests]
    generator = _ready(recipe, media, identity, own)
    record = provenance(recipe["generator"]["name"], media, recipe["seed"], None, args.composite)
    partial.mkdir(parents=True)
    out = PictureFolder(partial, tracker, identity, record, args.watermark)
    aside = partial / ".faces"
    aside.mkdir()
    kept: list[Sample] = []  # without their pictures
    place: list[int] = []
    shown: list[tuple[np.ndarray, str]] = []
    grid: Sheet | None = None

    def written(index: int, image: np.ndarray, sample: Sample, near: np.ndarray | None = None) -> None:
        nonlocal grid
        image = out.add(index, image, sample, near)
        if sheet:
            if grid is None:
                factor = min(1.0, 240 / max(image.shape[:2])) if args.composite else 1.0
                grid = Sheet((round(image.shape[1] * factor), round(image.shape[0] * factor)))
            grid.place(cells[place[index]], image)
        elif len(shown) < 48:
            caption = " ".join(f"AU{a:02d} {v:.1f}" for a, v in sample.request.aus.items()) or "rest"
            shown.append((thumbnail(image), caption))

    refused: Counter[str] = Counter()
    with ui.progress(None, len(requests), "Generating") as bar:
        for number, sample in answers(generator, requests, args.grid == "balanced" and not args.pose):
            bar.advance(1)
            if sample is None:
                refused[requests[number].cell] += 1
                continue
            place.append(number)
            if args.composite:
                Image.fromarray(sample.image).save(aside / f"{len(kept)}.png")
                kept.append(replace(sample, image=np.zeros((0, 0, 3), np.uint8)))
            else:
                written(len(place) - 1, tilted(sample.image, roll_of(sample.request)), sample)
    if not place:
        meshed = any(o.landmarks is not None and np.isfinite(o.landmarks).all() for o in identity.observations)
        raise InputError(
            f"{recipe['generator']['name']} could make none of the pictures asked for from {media.name}: "
            + ("ask for smaller changes or another generator." if meshed else "it needs a tracker of 478 points with depth, as mediapipe.")
        )
    if args.composite:
        _put_back(media, identity, tracker, kept, aside, recipe["seed"], written)
    shutil.rmtree(aside)
    if len(place) < len(requests):
        left = f"{len(requests) - len(place)} of {len(requests)} pictures"
        ui.warn(f"{left} could not be made honestly (pose or AU out of range) and are left out")
    out.finish()
    drawn = grid.canvas if grid is not None else contact_sheet(shown)
    drawn.save(partial / "sheet.png", pnginfo=png_info(record))
    counted = {"pictures": len(out), "asked": len(requests), "refused": dict(refused)}
    _write_record(partial, record | counted | {"grid": args.grid, "watermark": args.watermark})
    return f"{len(out)} pictures, masks, labels.csv, landmarks.npz, sheet.png and provenance.json"


def _put_back(media: Media, identity: Identity, tracker: Tracker, samples: list[Sample], aside: Path, seed: int, written: Any) -> None:
    """Each picture into the frame that it was made from. The clip is read once more; the pictures wait on disk."""
    by_frame: dict[int, list[int]] = {}
    for i, sample in enumerate(samples):
        by_frame.setdefault(identity.observations[sample.source].frame, []).append(i)
    with ui.progress(None, len(samples), "Putting faces back") as bar:
        for frame in media.frames():
            for i in by_frame.pop(frame.index, []):
                with Image.open(aside / f"{i}.png") as picture:
                    sample = replace(samples[i], image=np.array(picture))
                seen = identity.observations[sample.source]
                image, points = inserted(frame.image, seen, sample, identity, tracker, np.random.default_rng([seed, 9204, i]))
                written(i, image, sample, points.mean(0))
                bar.advance(1)
            if not by_frame:
                break
