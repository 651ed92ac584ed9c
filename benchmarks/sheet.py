"""Draws docs/images/synthetic-world.jpg: people of the synthetic world (rows) doing Action Units at full strength (columns).

Run: python benchmarks/sheet.py [OUTPUT] [--people 5] [--size 160] [--all]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from personalize.aus import AUS
from personalize.synth.person import controls
from personalize.synth.scene import Scene
from personalize.synth.world import World

OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "images" / "synthetic-world.jpg"
COLUMNS: tuple[tuple[int, ...], ...] = ((), (6,), (12,), (6, 12), (6, 12, 25), (17,), (15,), (4,), (9,), (1, 2), (43,))
LIMIT = 400_000
"""Bytes that a picture in the repository may have."""
CAPTION = 18


def portrait(seed: int) -> Scene:
    """Some light, but white, and some background, the camera close and straight ahead."""
    scene = Scene.sample(np.random.default_rng([seed, 7100]))
    for light in ("key_colour", "fill_colour", "above", "below"):
        setattr(scene, light, np.full(3, np.mean(getattr(scene, light))))
    scene.distance, scene.face_share, scene.offset = 700.0, 0.74, np.zeros(2)
    return scene


def faces(world: World, index: int, columns: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """(columns, S, S, 3) uint8: one person of the demo split, frontal, in one light, at intensity 5 in each column's AUs."""
    person = world.person("demo", index)
    names = controls()[0]
    aus = np.zeros((len(columns), len(AUS)), np.float32)
    extra = np.zeros((len(columns), len(names)), np.float32)
    for row, wanted in enumerate(columns):
        aus[row, [AUS.index(au) for au in wanted if au not in (25, 26)]] = 5
        # The two AUs that are measured rather than driven: the lips part, the jaw drops.
        extra[row, names.index("jawOpen")] = 0.7 * (26 in wanted)
        smile = 0.6 if 12 in wanted else 0.0  # shows the upper teeth
        extra[row, [i for i, n in enumerate(names) if n.startswith("mouthLowerDown")]] = 0.35 * (25 in wanted)
        extra[row, [i for i, n in enumerate(names) if n.startswith("mouthUpperUp")]] = (0.2 + smile) * (25 in wanted)
        extra[row, names.index("mouthClose")] = -0.35 * (25 in wanted and smile > 0)
    scene = portrait(index)
    nothing = np.zeros((len(columns), 3), np.float32)
    return next(world.render(person, aus, extra, nothing, nothing[:, :2], [scene], batch=len(columns))).images


def sheet(people: int, size: int, columns: tuple[tuple[int, ...], ...]) -> Image.Image:
    """The whole picture, with a caption over each column."""
    world = World(size=size)
    rows = [np.concatenate(list(faces(world, i, columns)), axis=1) for i in range(people)]
    out = Image.new("RGB", (size * len(columns), CAPTION + size * people), "white")
    out.paste(Image.fromarray(np.concatenate(rows)), (0, CAPTION))
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(13)
    for i, wanted in enumerate(columns):
        text = "AU" + "+".join(map(str, wanted)) if wanted else "neutral"
        draw.text((i * size + size / 2, CAPTION / 2), text, fill="black", font=font, anchor="mm")
    return out


def save(image: Image.Image, path: Path) -> int:
    """Write a JPEG (or a PNG, by the name) of at most LIMIT bytes; returns its size. Raises SystemExit where no quality is small enough."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in range(90, 40, -5):
        image.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= LIMIT or path.suffix == ".png":
            break
    if path.stat().st_size > LIMIT:
        raise SystemExit(
            f"{path.name} has {path.stat().st_size / 1e3:.0f} kB, more than {LIMIT / 1e3:.0f}: draw fewer people or smaller tiles."
        )
    return path.stat().st_size


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, nargs="?", default=OUTPUT)
    parser.add_argument("--people", type=int, default=5)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--all", action="store_true", help="a column for every AU instead of the usual ones")
    a = parser.parse_args()
    drawn = sheet(a.people, a.size, ((), *((au,) for au in AUS)) if a.all else COLUMNS)
    print(f"wrote {a.output.name}: {drawn.width} x {drawn.height}, {save(drawn, a.output) / 1e3:.0f} kB")
