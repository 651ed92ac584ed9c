"""What a figure or a model came from: command, date, versions and machine. No paths."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__

_PACKAGES = ("torch", "lightning", "timm", "kornia", "mediapipe", "numpy", "opencv-python-headless", "warp-lang", "av")


def circumstances(words: Sequence[Any]) -> dict[str, Any]:
    """'date', 'command', 'versions' and 'machine'. words: of the command, without paths."""
    versions = {"personalize": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),  # noqa: UP017
        "command": shlex.join(str(w) for w in words),
        "versions": versions,
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Processor, cores, memory, GPU and system."""
    import torch

    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    out: dict[str, Any] = {"processor": processor, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"}
    with contextlib.suppress(OSError, ValueError, AttributeError):
        out["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    out["gpu"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return out
