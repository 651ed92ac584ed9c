"""How many frames a second ``personalize predict`` reads, and where the time goes.

    python benchmarks/predict_speed.py CLIP [--profile RUN] [--overlay] [--threads N]

The first line is of the whole command in a process of its own, start-up included, and of its loop alone, as it prints it. The stages are
then measured one after the other, so that their sum is more than the command takes: there they run side by side.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def whole(clip: Path, profile: str | None, overlay: bool) -> tuple[float, float, int]:
    """Seconds of the command, seconds of its loop, frames."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["predict", "--input", str(clip), "--output", f"{folder}/a.csv"]
        words += ["--profile", profile] if profile else []
        words += ["--overlay", f"{folder}/a.mp4"] if overlay else []
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "personalize.cli", *words], capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        found = re.search(r": (\d+) in ([\d.]+) s", done.stderr)
        if done.returncode or found is None:
            raise SystemExit(done.stderr)
        return seconds, float(found[2]), int(found[1])


def stages(clip: Path, profile: str | None) -> dict[str, float]:
    """Seconds of each stage alone, over the whole clip."""
    start = time.perf_counter()
    from personalize import registry
    from personalize.predict import BATCH, open_reader
    from personalize.tracks import observe
    from personalize.video import Frame, open_media

    spent = {"imports": time.perf_counter() - start}

    def clock(name: str, since: float) -> float:
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - since
        return time.perf_counter()

    start = time.perf_counter()
    reader = open_reader(profile, None)
    start = clock("loading the model", start)
    tracker = registry.create("trackers", "mediapipe", {})
    media = open_media(clip)
    tracker.detect(next(iter(media.frames())).image, 0.0, False)
    tracker.reset()
    clock("starting the tracker", start)

    frames: list[Frame] = []
    since = time.perf_counter()
    for frame in media.frames():
        clock("decoding", since)
        frames.append(frame)
        if len(frames) == 1200:  # memory; speed does not depend on length
            break
        since = time.perf_counter()
    spent["frames"] = float(len(frames))
    media.frames = lambda: iter(frames)  # type: ignore[method-assign]
    found = []
    since = time.perf_counter()
    for frame in frames:
        found.append(tracker.detect(frame.image, frame.timestamp, False))
    clock("landmarks", since)

    class Found:
        """A tracker that has seen it all: what ``observe`` takes with it is cropping, pose and quality."""

        scheme = tracker.scheme

        def reset(self) -> None:
            """Starts anew."""
            self.faces = iter(found)

        def detect(self, *_: object) -> object:
            """The next frame's faces."""
            return next(self.faces)

    since = time.perf_counter()
    seen = [o for _, each in observe(media, Found(), True) for o in each]  # type: ignore[arg-type]
    clock("alignment, pose, quality", since)
    since = time.perf_counter()
    for i in range(0, len(seen), BATCH):
        reader.read(seen[i : i + BATCH])
    clock("model", since)
    tracker.close()
    return spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--profile")
    parser.add_argument("--overlay", action="store_true", help="write the overlay video as well")
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS of the command (default: as it is set)")
    args = parser.parse_args()
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    seconds, loop, frames = whole(args.clip, args.profile, args.overlay)
    print(
        f"{args.clip.name}: {frames} frames; {frames / seconds:.1f} frames/s with start-up ({seconds:.1f} s), {frames / loop:.1f} without"
    )
    print(f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    spent = stages(args.clip, args.profile)
    count = spent.pop("frames")
    for name in ("imports", "loading the model", "starting the tracker"):
        print(f"  {name:<26}{spent.pop(name):7.2f} s once")
    for name, value in spent.items():
        print(f"  {name:<26}{1000 * value / count:7.2f} ms a frame")


if __name__ == "__main__":
    main()
