"""One AU at a time, as somebody poses it for a photograph, and a second opinion: MediaPipe's blendshapes.

    python benchmarks/posed.py [--people 50] [--base base] [--clips FOLDER] [--md FILE]

People of the validation split, frontal, undegraded, each AU alone at intensity 3 and 5. How far do landmarks move, does the base tell
such a picture from a resting face of anybody (AUC, fused and by branch), and does the blendshape of the same name? Where MediaPipe, which
learned from photographs, sees nothing of an AU at 5, the renders do too little of it.

--clips: correlation of base and blendshapes over the frames of each clip in a folder. Neither is the truth. Nothing is trained on them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sheet import portrait

from personalize import registry, ui
from personalize.aus import AUS, COLUMNS
from personalize.base import read_renders
from personalize.metrics import auc, pcc
from personalize.reader import Reader
from personalize.synth.person import controls
from personalize.synth.world import World
from personalize.tracks import Survey, observe, tracked_sample
from personalize.video import open_media
from personalize.weights import load_base
from personalize_plugins.trackers.mediapipe import SHA256, MediaPipeTracker, find_model

SAME = {
    1: ("browInnerUp",), 2: ("browOuterUp",), 4: ("browDown",), 5: ("eyeWide",), 7: ("eyeSquint",), 10: ("mouthUpperUp",),
    12: ("mouthSmile",), 15: ("mouthFrown",), 16: ("mouthLowerDown",), 17: ("mouthShrugLower",), 18: ("mouthPucker",),
    20: ("mouthStretch",), 22: ("mouthFunnel",), 24: ("mouthPress",), 26: ("jawOpen",), 28: ("mouthRollLower", "mouthRollUpper"),
    43: ("eyeBlink",),
}  # fmt: skip
"""Blendshapes that mean an AU (both sides are averaged)."""
DRIVEN = tuple(au for au in AUS if au not in (25, 26))
"""AU25 and AU26 are measured: nobody poses them alone."""
LEVELS = (3.0, 5.0)
MOVES = 0.1
"""A blendshape that spans less than this in a clip says nothing about it."""


class Blendshapes:
    """MediaPipe's 52 blendshapes of pictures."""

    def __init__(self) -> None:
        from mediapipe.tasks.python import BaseOptions, vision

        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_buffer=find_model("", SHA256).read_bytes()), output_face_blendshapes=True
        )
        self.landmarker = vision.FaceLandmarker.create_from_options(options)

    def close(self) -> None:
        """Frees the native graph."""
        self.landmarker.close()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(K,) the mean of an AU's blendshapes; NaN where it has none, or no face is found."""
        import mediapipe as mp

        found = self.landmarker.detect(mp.Image(image_format=mp.ImageFormat.SRGB, data=np.ascontiguousarray(image))).face_blendshapes
        shapes = {c.category_name: c.score for c in found[0]} if found else {}
        out = np.full(len(AUS), np.nan)
        for au, names in SAME.items():
            own = [v for k, v in shapes.items() if any(k in (n, n + "Left", n + "Right") for n in names)]
            out[AUS.index(au)] = np.mean(own) if own else np.nan
        return out


def posed(people: int, blendshapes: Blendshapes) -> dict[str, np.ndarray]:
    """Pictures as tracked: 'crop', 'landmarks', 'pose', 'person', 'neutral' as in a shard; 'au' (0: at rest), 'level', 'shapes' (N, K)."""
    world, tracker = World(size=192), MediaPipeTracker(num_faces=1)
    asked = [(0, 0.0), *((au, level) for au in DRIVEN for level in LEVELS)]
    aus, none = np.zeros((len(asked), len(AUS)), np.float32), np.zeros((len(asked), 3), np.float32)
    for row, (au, level) in enumerate(asked[1:], 1):
        aus[row, AUS.index(au)] = level
    extra = np.zeros((len(asked), len(controls()[0])), np.float32)
    rows: list[tuple] = []
    for index in ui.progress(range(people), people, "Posing"):
        shots = world.render(world.person("validation", index), aus, extra, none, none[:, :2], [portrait(index)])
        for (au, level), image in zip(asked, (i for s in shots for i in s.images), strict=True):
            found = tracked_sample(image, tracker)
            if found is not None:
                rows.append((*found, index, au == 0, au, level, blendshapes(image)))
    tracker.close()
    names = ("crop", "landmarks", "pose", "person", "neutral", "au", "level", "shapes")
    return {name: np.stack([np.asarray(r[i]) for r in rows]) for i, name in enumerate(names)}


def single(people: int, base: str, blendshapes: Blendshapes) -> tuple[list[str], list[list]]:
    """The table of AUs alone."""
    data, net = posed(people, blendshapes), load_base(base).net
    read = {mode: read_renders(net, data, mode) for mode in ("fused", "crop", "landmarks")}
    rest = {int(p): points for p, points in zip(data["person"][data["neutral"]], data["landmarks"][data["neutral"]], strict=True)}
    rows = []
    for au in DRIVEN:
        k = AUS.index(au)
        row: list = [COLUMNS[k]]
        full = [i for i in np.flatnonzero((data["au"] == au) & (data["level"] == LEVELS[-1])) if int(data["person"][i]) in rest]
        moved = [data["landmarks"][i] - rest[int(data["person"][i])] for i in full]
        row.append(float(np.mean([np.linalg.norm(m[:, :2], axis=1).max() for m in moved])))
        for values in (*(r[:, k] for r in read.values()), data["shapes"][:, k]):
            for level in LEVELS:
                some = (data["neutral"] | ((data["au"] == au) & (data["level"] == level))) & np.isfinite(values)
                row.append(auc(values[some], data["au"][some] == au) if some.any() else float("nan"))
        rows.append(row)
    rows.append(["mean", *(float(np.nanmean([r[i] for r in rows])) for i in range(1, len(rows[0])))])
    return ["AU", "moved", *(f"{m} {level:.0f}" for m in (*read, "blendshape") for level in LEVELS)], rows


def agreement(folder: Path, base: str, blendshapes: Blendshapes) -> tuple[list[str], list[list]]:
    """The table of correlations in clips."""
    tracker = registry.create("trackers", "mediapipe", {})
    reader = Reader(load_base(base))
    columns: dict[str, list[float]] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".mp4", ".mov")):
        media = open_media(path)
        survey, seen, shapes = Survey(), [], {}
        for frame, found in observe(media, tracker, survey=survey):
            seen += found
            shapes[frame.index] = blendshapes(frame.image) if found else np.full(len(AUS), np.nan)
        seen = [o for o in seen if o.face_id == survey.identity()] if seen else []
        if len(seen) < 20:
            continue
        said, other = reader.read_clip(seen).best, np.stack([shapes[o.frame] for o in seen])
        columns[path.stem] = []
        for k in range(len(AUS)):
            on = np.isfinite(other[:, k])
            moves = on.sum() > 20 and np.ptp(other[on, k]) > MOVES
            columns[path.stem].append(pcc(said[on, k], other[on, k]) if moves else float("nan"))
    tracker.close()
    rows: list[list] = [[COLUMNS[k], *(c[k] for c in columns.values())] for k, au in enumerate(AUS) if au in SAME]
    rows.append(["mean", *(float(np.nanmean(c)) for c in columns.values())])
    return ["AU", *columns], rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=50, help="0: none")
    parser.add_argument("--base", default="base")
    parser.add_argument("--clips", type=Path)
    parser.add_argument("--md", type=Path)
    args = parser.parse_args()
    blendshapes, tables = Blendshapes(), []
    if args.people:
        tables.append(("AUC of one AU alone against rest", *single(args.people, args.base, blendshapes)))
    if args.clips:
        tables.append(("Correlation with blendshapes inside a clip", *agreement(args.clips, args.base, blendshapes)))
    blendshapes.close()
    for table in tables:
        ui.table(*table)
    if args.md:
        args.md.write_text("\n".join(ui.markdown(*table) for table in tables))


if __name__ == "__main__":
    main()
