"""Where a run's numbers go: a CSV file always, Weights & Biases when wanted (offline by default: no network, no account, no waiting).

The W&B run is named after the identity as the user gave it (``--name``) and the version, e.g. ``anna-v2``: choose a pseudonym where names
may not leave the machine. The recipe is logged with its paths cut to file names. No pictures, code, Git state, host or machine data.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import ranks
from .errors import ConfigError, unknown

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger, WandbLogger

MODES = ("offline", "online", "off")
_CONNECT_S = 20
"""Longest wait for the W&B server before the run goes on offline, in seconds."""


def loggers(run_dir: str | Path, recipe: Mapping[str, Any], name: str) -> list[Logger]:
    """The Lightning loggers of a run: CSV into ``run_dir/logs/metrics.csv``, and W&B into ``run_dir/logs/wandb`` unless it is off.

    recipe: resolved; ``recipe['tracking']`` holds 'wandb' (offline, online or off) and 'project'. name: of the identity.
    An online run without an account or network becomes an offline one, with a warning. An earlier ``metrics.csv`` of this run (resume) is
    kept as ``metrics-1.csv`` and so on.

    Raises:
        ConfigError: unknown mode, or W&B wanted and not installed.
    """
    from lightning.pytorch.loggers import CSVLogger

    tracking = dict(recipe.get("tracking") or {})
    mode = tracking.get("wandb", "offline")
    mode = "off" if mode is False else str(mode)  # YAML 1.1 reads a bare off as False
    if mode not in MODES:
        raise ConfigError(f"tracking.wandb: {unknown('mode', mode, MODES)}")
    run_dir = Path(run_dir)
    if ranks.is_first():
        _keep_earlier(run_dir / "logs" / "metrics.csv")
    # version "": Lightning would add a folder a version, and a run has its own already.
    found: list[Logger] = [CSVLogger(run_dir, name="logs", version="", flush_logs_every_n_steps=20)]
    if ranks.is_first():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Experiment logs directory")  # it holds the curves kept above
            found[0].experiment  # noqa: B018 (made now, where the warning can be caught)
    if mode != "off":
        found.append(_wandb(run_dir, dict(recipe), name, mode, str(tracking.get("project") or "personalize")))
    return found


def finish(found: Sequence[Logger] | None, status: str = "success") -> str | None:
    """Close the loggers and print how to upload an offline W&B run; returns that command, or None. Safe to call twice.

    status: 'success', or anything else for a run that failed.
    """
    command = None
    for logger in found or ():
        logger.finalize(status)
        run = getattr(logger, "_experiment", None)
        if type(logger).__name__ != "WandbLogger" or run is None or not hasattr(run, "finish"):
            continue
        offline = bool(run.settings._offline)
        folder = Path(run.dir).parent
        run.finish(exit_code=0 if status == "success" else 1)
        if offline and folder.is_dir():
            command = f"wandb sync {_shell(folder)}"
            print(f"To upload this run to Weights & Biases: {command}")
        logger._experiment = None  # type: ignore[attr-defined]
    return command


def _wandb(run_dir: Path, recipe: dict[str, Any], name: str, mode: str, project: str) -> WandbLogger:
    try:
        import wandb
    except ImportError:
        raise ConfigError("tracking.wandb needs the package wandb: pip install wandb, or set tracking.wandb=off.") from None
    from lightning.pytorch.loggers import WandbLogger

    from .profile import strip_paths

    title, logs = f"{name}-{run_dir.name}", run_dir / "logs"
    if not ranks.is_first():  # Lightning asks only the first rank for a run
        return WandbLogger(name=title, project=project, save_dir=logs, offline=True, log_model=False)
    logging.getLogger("wandb").setLevel(logging.ERROR)
    config = strip_paths(_plain(recipe))
    if mode == "online" and wandb.api.api_key is None:
        _warn("W&B is online, and nobody is logged in: logging offline. Run 'wandb login' first.")
        mode = "offline"
    given = {"project": project, "name": title, "dir": logs, "config": config, "settings": _settings(wandb), "reinit": "create_new"}
    run = None
    if mode == "online":
        try:
            run = wandb.init(mode="online", **given)
        except Exception as error:  # any failure of an upload must not cost the fit
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            _warn(f"W&B cannot be reached ({reason}): logging offline.")
    if run is None:
        run = wandb.init(mode="offline", **given)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    # The run is made here: with offline=True Lightning would set WANDB_MODE for the rest of the process.
    return WandbLogger(name=title, project=project, save_dir=logs, log_model=False, experiment=run)


def _settings(wandb: Any) -> Any:
    return wandb.Settings(
        silent=True,
        quiet=True,
        console="off",
        show_info=False,
        show_warnings=False,
        disable_code=True,
        disable_git=True,
        save_code=False,
        init_timeout=_CONNECT_S,
        login_timeout=1,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
    )


def _plain(value: Any) -> Any:
    """OmegaConf containers and mappings as plain ones."""
    if type(value).__module__.startswith("omegaconf"):
        from omegaconf import OmegaConf

        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _keep_earlier(file: Path) -> None:
    # Lightning deletes the file of an earlier run in the same folder; after a resume it is the first half of the curves.
    if file.is_file():
        number = 1
        while (kept := file.with_name(f"metrics-{number}.csv")).exists():
            number += 1
        file.rename(kept)


def _shell(path: Path) -> str:
    import shlex

    return shlex.quote(os.path.relpath(path))


def _warn(text: str) -> None:
    from .ui import warn

    warn(text)


def quiet_lightning() -> None:
    """Keep Lightning's hints about hardware, workers and other products off the user's terminal."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning|torch\.utils\.data|torch\.distributed")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
