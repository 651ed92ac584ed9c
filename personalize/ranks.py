"""The ranks of a distributed training: who started them, and how they find the first one's run.

Either Lightning starts them (``trainer.devices=2``: it calls the same command again, with the run's folder in the environment), or
torchrun does, on one machine or on several that share the run's folder: then the first rank tells the others through torchrun's store.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigError

if TYPE_CHECKING:
    from lightning import LightningModule
    from torch.distributed import Store

_RUN_DIR = "PERSONALIZE_RUN_DIR"
BY_EPOCHS = {
    "max_epochs": "optim.epochs", "logger": "", "enable_checkpointing": "", "enable_model_summary": "", "enable_progress_bar": "",
    "gradient_clip_val": "", "use_distributed_sampler": "", "callbacks": "",
}  # fmt: skip
"""Flags of the Trainer that trainings of shipped weights set themselves, and the keys of a recipe that say it instead."""


def by_torchrun() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def is_first() -> bool:
    """Whether this process is the first rank, or the only one."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def trainer_flags(flags: dict[str, Any], all_reached: bool = False) -> dict[str, Any]:
    """Flags of a Trainer, completed: torchrun's numbers of devices and machines where it started this process, and with several devices and
    no strategy named DDP that allows for parameters which a batch does not reach, but where ``all_reached``."""
    flags = dict(flags)
    if by_torchrun() and flags.get("devices", 1) in (1, "1", "auto"):
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        flags["devices"], flags["num_nodes"] = here, int(os.environ["WORLD_SIZE"]) // here
    if several(flags) and not all_reached and flags.get("strategy", "auto") in ("auto", "ddp", None):
        flags["strategy"] = "ddp_find_unused_parameters_true"
    return flags


def several(flags: Mapping[str, Any]) -> bool:
    """Whether a Trainer with these flags trains on more than one device: 'auto' takes all GPUs there are."""
    devices = flags.get("devices", 1)
    if devices in ("auto", -1, "-1") and flags.get("accelerator", "auto") in ("auto", "gpu", "cuda"):
        import torch

        devices = torch.cuda.device_count()
    alone = devices in (0, 1, "1", "auto", -1, "-1") or (isinstance(devices, list) and len(devices) == 1)
    return not alone or flags.get("num_nodes", 1) > 1


def refuse_own(flags: dict[str, Any], own: dict[str, str], verb: str) -> None:
    """Raise ConfigError for a flag of the Trainer that a command sets itself. own: flag -> the key that says it instead, or ''."""
    for flag, instead in own.items():
        if flag in flags:
            raise ConfigError(f"trainer.{flag} is for personalize {verb} to set{f': use {instead}' if instead else ''}.")


def seed_step(module: LightningModule, seed: int, batch_idx: int) -> None:
    """Seed torch by the number of the step and the rank: ranks draw other numbers, and a resumed training those it would have drawn."""
    import torch

    parts = module.trainer.accumulate_grad_batches
    part = module.global_step * parts + batch_idx % parts
    torch.manual_seed((seed * 1_000_003 + part) * 64 + module.global_rank)


def tell_run(run_dir: Path) -> None:
    """Called by the first rank, before it trains: where the run is that the others take part in."""
    os.environ[_RUN_DIR] = str(run_dir)
    if by_torchrun():
        _store().set("run", str(run_dir.resolve()))


def joined_run() -> Path | None:
    """Where the run is that this process takes part in: None for the first rank. Waits for the first rank to say."""
    if is_first():
        return None
    if by_torchrun():
        return Path(_wait_for("run"))
    return Path(os.environ[_RUN_DIR]) if _RUN_DIR in os.environ else None


@contextmanager
def first_goes_ahead() -> Iterator[None]:
    """What is inside writes files that all ranks read: where torchrun starts them at once, the others wait for the first one."""
    if by_torchrun() and not is_first():
        _wait_for("made")
    yield
    if by_torchrun() and is_first():
        _store().set("made", "")


def _wait_for(key: str) -> str:
    _store().wait([key], timedelta(days=7))  # torchrun ends those who wait for a rank that has failed
    return str(_store().get(key).decode())


@functools.cache  # where no agent of torchrun holds what is stored, the first rank does, as long as this object lives
def _store() -> Store:
    from torch.distributed import PrefixStore, rendezvous

    store, _, _ = next(rendezvous("env://"))
    return PrefixStore("personalize", store)
