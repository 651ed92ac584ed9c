"""``personalize demo``: the main job from end to end, offline, on synthetic people whose every expression is known exactly.

Each is rendered into two real video files, a calm clip to learn from and a lively one of another day. Then the very functions of
``fit`` and ``predict`` run on these files, and their readings are compared with the truth.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import registry, scoring, ui
from .aus import COLUMNS, NAMES, parse_au
from .bench import align, film
from .errors import ConfigError
from .synth.clips import Clip, read_truth

if TYPE_CHECKING:
    from .weights import Base

NAME = "demo"
MOVES = 1.0
"""An AU counts as moving in a clip where its true intensity spans at least this."""
_SIZE = 240
_COMPARED = ["ICC base", "ICC personal", "MAE base", "MAE personal"]


def run(args: argparse.Namespace) -> int:
    """``personalize demo``. args: output, people, seed, recipe, plugins, overrides."""
    from .config import load_recipe, one_device
    from .profile import next_version
    from .weights import load_base

    started = time.perf_counter()
    if args.people < 1:
        raise ConfigError(f"--people must be at least 1, not {args.people}.")
    if args.seed > 900_000:
        raise ConfigError(f"--seed must be at most 900000, not {args.seed}.")
    recipe = load_recipe(args.recipe, args.overrides, "fit")
    one_device(recipe, "demo")
    base = load_base(recipe["base"])
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [clips_of(args.seed + i) for i in range(args.people)]
    who = "a person" if args.people == 1 else f"{args.people} people"
    ui.info(f"1/{args.people + 1} filming {who} nobody has seen: 20 s to learn from, 10 s of another day to be read")
    film([clip for pair in pairs for clip in pair], folder / "clips", args)
    runs: list[Path] = []
    means: list[list[Any]] = []
    for i, (support, query) in enumerate(pairs):
        name = NAME if i == 0 else f"{NAME}{i + 1}"
        ui.info(f"{i + 2}/{args.people + 1} {name}: personalize fit on the first clip, personalize predict on the second")
        runs.append(next_version(folder / "runs", name))
        table = one_person(support.path(folder / "clips"), query.path(folder / "clips"), recipe, base, runs[-1], folder if i == 0 else None)
        means.append([name, *next(row[1:2] + row[3:] for row in table if row[0] == "mean")])
    if len(means) > 1:
        whole = ["mean", f"{len(means)} people", *map(float, np.nanmean([row[2:] for row in means], axis=0))]
        ui.table("All of them, where AUs move", ["person", "AUs", *_COMPARED], [*means, whole])
    ui.info("ICC: agreement, 1 is perfect, higher is better. MAE: mean error on the scale of 0-5, lower is better.")
    ui.info(verdict(means))
    ui.info(f"done in {time.perf_counter() - started:.0f} s; everything is in {folder}, of the first person:")
    for file, what in (
        (runs[0] / "report.html", "what the fit did and how far to trust it"),
        (folder / "overlay.mp4", "the second clip with the readings drawn in"),
        (folder / "result.png", "base, personalised and truth side by side"),
        (folder / "query_aus.csv", "the readings, one row a frame"),
    ):
        ui.info(f"  {file}  {what}")
    ui.info("next, on a clip of your own (10 s or more, mostly at ease), then on any other clip of the same person:")
    ui.info("  personalize fit --identity CLIP.mp4 --name NAME")
    ui.info("  personalize predict --input OTHER.mp4 --profile runs/NAME --overlay overlay.mp4")
    ui.info(f"  (the first person's profile is {runs[0].parent})")
    return 0


def one_person(support: Path, query: Path, recipe: dict[str, Any], base: Base, run_dir: Path, show_in: Path | None) -> list[list[Any]]:
    """Fit to ``support``, read ``query``; the rows of the table (:func:`table_rows`).

    show_in: where the overlay, the picture and the readings go, and the table is printed; None: nothing is kept but the run.
    """
    from . import engine
    from .predict import predict
    from .profile import Profile
    from .reader import Reader
    from .video import open_media

    engine.fit(open_media(support), recipe, run_dir, run_dir.parent.name)
    reader = Reader(base, Profile.load(run_dir, base_name=base.name, base_sha256=base.sha256))
    tracker = registry.create("trackers", recipe["tracker"]["name"], recipe["tracker"]["options"])
    media = open_media(query)
    try:
        table, person = predict(media, reader, tracker, overlay=show_in / "overlay.mp4" if show_in else None)
    finally:
        tracker.close()
    frames, before, after = readings_of(table.rows, person)
    count = len({int(row[1][0]) for row in table.rows})
    truth = align(read_truth(query), frames, count)
    scores = [
        scoring.evaluate({NAME: values}, {NAME: truth}, {NAME: levels})
        for values, levels in ((before, base.thresholds), (after, reader.thresholds))
    ]
    rows = table_rows(scores[0], scores[1], truth)
    if show_in:
        note = f"{len(frames)} of {count} frames, people and light not seen before"
        ui.table(f"Base beside personalised, against the truth: {note}", ["AU", "", "truth up to", *_COMPARED], rows)
        table.write(show_in / "query_aus.csv", reader.thresholds, base.thresholds, person)
        picture(show_in / "result.png", _pictures(media, frames, truth), before, after, truth, frames)
    return rows


def clips_of(seed: int) -> tuple[Clip, Clip]:
    """The support and the query clip of demo person ``seed``."""
    return (
        Clip("demo", seed, 0, 20.0, liveliness=0.6, size=_SIZE),
        Clip("demo", seed, 1, 10.0, liveliness=1.5, size=_SIZE),
    )


def readings_of(rows: Sequence[Any], person: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(frame numbers (N,), base (N, K), personal (N, K)) of one person from the rows of :class:`personalize.predict.Table`."""
    mine = [(int(row.meta[0]), row.base, row.best) for row in rows if row.is_of(person)]
    frames, before, after = zip(*mine, strict=True)
    return np.array(frames), np.stack(before), np.stack(after)


def moving(truth: np.ndarray) -> list[str]:
    """The AUs whose true intensity, (T, K), spans at least MOVES."""
    return [au for au, span in zip(COLUMNS, np.ptp(truth, axis=0), strict=True) if span >= MOVES]


def table_rows(before: dict[str, Any], after: dict[str, Any], truth: np.ndarray) -> list[list[Any]]:
    """Rows of the table: AU, name, largest true intensity, ICC and MAE of base and person; before, after: of :func:`scoring.evaluate`.

    Then the means over the AUs that move, and the error in the others, which stay near rest: their ICC says nothing.
    """

    def values(au: str) -> list[float]:
        return [s[au]["pooled"][m] for m in ("icc", "mae") for s in (before, after)]

    moved = moving(truth)
    rows: list[list[Any]] = []
    for au in moved:
        number = parse_au(au)
        rows.append([au, NAMES[number] if number is not None else "", float(truth[:, COLUMNS.index(au)].max()), *values(au)])
    mean = np.nanmean([values(au) for au in moved], axis=0) if moved else np.full(4, np.nan)
    rows.append(["mean", f"{len(moved)} that move", None, *map(float, mean)])
    still = [au for au in COLUMNS if au not in moved]
    if still:
        errors = np.array([values(au)[2:] for au in still]).mean(0)
        rows.append(["others", f"{len(still)} at rest", None, None, None, *map(float, errors)])
    return rows


def verdict(means: list[list[Any]]) -> str:
    """What the tables say in a sentence, and that it is an anecdote. means: a row for each person, the last four columns as compared."""
    icc, personal_icc, mae, personal_mae = np.nanmean([row[-4:] for row in means], axis=0)
    good = [name for name, gain in (("ICC", personal_icc - icc), ("mean error", mae - personal_mae)) if gain > 0.005]
    bad = [name for name, gain in (("ICC", icc - personal_icc), ("mean error", personal_mae - mae)) if gain > 0.005]
    words = [f"{' and '.join(names)} {how}" for names, how in ((good, "better"), (bad, "worse")) if names] or ["nothing changed"]
    whom, few = ("For this person", "One person is") if len(means) == 1 else (f"For these {len(means)} people", "So few are")
    return (
        f"{whom}, where AUs move: {', '.join(words)}. {few} an anecdote: "
        "docs/results.md has what was found over many, personalize bench measures it."
    )


# --- the picture ----------------------------------------------------------------------------------------------------------------------


def telling_frames(truth: np.ndarray, count: int = 4) -> list[int]:
    """``count`` rows of ``truth`` (T, K), in order, that show much and differ: each next one adds most to what the others show."""
    moved = [COLUMNS.index(au) for au in moving(truth)] or list(range(len(COLUMNS)))
    seen = np.zeros(len(moved))
    chosen: list[int] = []
    for _ in range(min(count, len(truth))):
        gain = np.maximum(truth[:, moved] - seen, 0).sum(1)
        gain[chosen] = -1
        best = int(gain.argmax())
        chosen.append(best)
        seen = np.maximum(seen, truth[best, moved])
    return sorted(chosen)


def _pictures(media: Any, frames: np.ndarray, truth: np.ndarray) -> dict[int, np.ndarray]:
    """Row -> picture of the telling frames."""
    wanted = {int(frames[row]): row for row in telling_frames(truth)}
    return {wanted[frame.index]: frame.image for frame in media.frames() if frame.index in wanted}


def picture(
    path: Path, images: dict[int, np.ndarray], before: np.ndarray, after: np.ndarray, truth: np.ndarray, frames: np.ndarray, bars: int = 6
) -> None:
    """A few frames, and under each the AUs with most to say: truth, base and personalised as bars.

    images: row -> (H, W, 3) uint8; before, after, truth: (N, K) 0-5; frames: (N,) their numbers.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.9 * len(images), 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(images), squeeze=False, gridspec_kw={"height_ratios": [1.15, 1]})
    drawn = ((truth, "truth", "#3c4148"), (before, "base", "#e0a458"), (after, "personalised", "#2f7fb8"))
    for column, (row, image) in enumerate(sorted(images.items())):
        top, low = axes[0, column], axes[1, column]
        top.imshow(image)
        top.set_axis_off()
        top.set_title(f"frame {int(frames[row])}", fontsize=9)
        # What really moves first, then where the base sees most that is not there.
        rank = np.argsort(-(2 * truth[row] + before[row]), kind="stable")[:bars]
        y = np.arange(len(rank))
        for i, (values, text, colour) in enumerate(drawn):
            low.barh(y + (i - 1) * 0.27, values[row, rank], 0.25, color=colour, label=text if column == 0 else None)
        low.set_yticks(y, [COLUMNS[k].replace("AU0", "AU") for k in rank], fontsize=8)
        low.invert_yaxis()
        low.set_xlim(0, 5)
        low.tick_params(axis="x", labelsize=7)
        low.spines[["top", "right"]].set_visible(False)
        low.grid(axis="x", alpha=0.25)
        low.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=100)
