"""How many pictures a second the synthetic world draws. The bar: at least 25 at 160 px, on two cores.

Counts everything from intensities to sRGB pictures: meshes, creases, light, background; not tracking. ``clip``: frames of one person;
``stills``: as training data are made, a new person (shape, skin, creases) every 8 pictures.
``cpu_ms_per_picture`` hardly depends on what else the machine does; the rate does.

Run: python benchmarks/render_speed.py [--size 160] [--processes 2] [--seconds 10]. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from multiprocessing.synchronize import Barrier

BAR = 25.0
_barrier: Barrier


def _start(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier
    os.dup2(2, 1)  # what Warp reports while it loads is no result: standard output is for the one line


def _count(job: tuple[int, int, float, str]) -> dict[str, float]:
    """Pictures a second of one process in both ways; all processes measure at the same time."""
    number, size, seconds, device = job
    import torch

    from personalize.synth.world import World

    torch.set_num_threads(1)
    world = World(size=size, device=device)
    people = iter(range(number * 100_000, (number + 1) * 100_000))
    person = world.person("train", next(people))
    world.stills(person, 8, seed=0)  # compiles the kernels where they are not yet

    def clip() -> int:
        return sum(len(shot.images) for shot in world.clip(person, seed=1, seconds=2, fps=24))

    def stills() -> int:
        return len(world.stills(world.person("train", next(people)), 8, seed=0).images)

    rates = {}
    for name, draw in (("clip", clip), ("stills", stills)):
        _barrier.wait()
        drawn, start, used = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - start < seconds:
            drawn += draw()
        rates[name] = drawn / (time.perf_counter() - start)
        rates[name + "_cpu_ms"] = 1000 * (time.process_time() - used) / drawn
    return rates


def measure(size: int, processes: int, seconds: float, device: str) -> dict[str, object]:
    """The rates of all processes together, as a plain dictionary."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _start, (context.Barrier(processes),)) as pool:
        # One job a process: each waits at the barrier for the others.
        found = pool.map(_count, [(i, size, seconds, device) for i in range(processes)], chunksize=1)
    rates = {name: round(sum(f[name] for f in found), 1) for name in ("clip", "stills")}
    cost = {name: round(sum(f[name + "_cpu_ms"] for f in found) / processes, 1) for name in rates}
    return {
        "benchmark": "render_speed",
        "size": size,
        "processes": processes,
        "device": device,
        "pictures_per_second": rates,
        "cpu_ms_per_picture": cost,
        "bar": BAR,
        "passed": rates["clip"] >= BAR,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "machine": platform.machine(),
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each of the two ways")
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    print(json.dumps(measure(a.size, a.processes, a.seconds, a.device)))
