"""Loggers: CSV always, W&B offline without network or account, nothing of it when off."""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path

import pytest

from personalize import tracking
from personalize.errors import ConfigError
from personalize.tracking import finish, loggers


def recipe(mode: object = "offline") -> dict:
    tracked = {"wandb": mode, "project": "test"}
    return {"seed": 0, "identity": "/home/secret/me.mp4", "adapter": {"options": {"rank": 4}}, "tracking": tracked}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "anna" / "v2"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("mode", ["off", False])
def test_off_writes_csv_and_nothing_of_wandb(run, mode, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "_wandb", lambda *_: pytest.fail("W&B was asked for a run"))
    found = loggers(run, recipe(mode), "anna")
    for step, loss in enumerate((1.0, 0.5)):
        found[0].log_metrics({"train/loss": loss}, step=step)
    assert finish(found) is None and capsys.readouterr().out == ""
    with open(run / "logs" / "metrics.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [{"step": "0", "train/loss": "1.0"}, {"step": "1", "train/loss": "0.5"}]
    assert [p.name for p in run.iterdir()] == ["logs"]


def test_resuming_keeps_the_earlier_curves(run):
    for _ in range(3):
        found = loggers(run, recipe("off"), "anna")
        found[0].log_metrics({"loss": 1.0}, step=0)
        finish(found)
    assert sorted(p.name for p in (run / "logs").iterdir()) == ["metrics-1.csv", "metrics-2.csv", "metrics.csv"]


def test_offline_is_written_without_network_account_or_noise(run, monkeypatch, capfd):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers: offline must not even ask
    before = dict(os.environ)
    found = loggers(run, recipe(), "anna")
    assert [type(logger).__name__ for logger in found] == ["CSVLogger", "WandbLogger"]
    for logger in found:
        logger.log_metrics({"train/loss": 0.25}, step=0)
    command = finish(found)
    captured = capfd.readouterr()
    assert command is not None and captured.out == f"To upload this run to Weights & Biases: {command}\n" and captured.err == ""
    [folder] = (run / "logs" / "wandb").glob("offline-run-*")
    assert command == f"wandb sync {os.path.relpath(folder)}"
    [file] = folder.glob("*.wandb")
    data, deadline = file.read_bytes(), time.monotonic() + 10
    while b"train/loss" not in data and time.monotonic() < deadline:  # W&B's own process writes it
        time.sleep(0.05)
        data = file.read_bytes()
    for wanted in (b"train/loss", b"anna-v2", b"me.mp4", b'"rank":4'):
        assert wanted in data
    assert not [p for p in (run / "logs" / "wandb").rglob("*") if p.is_file() and b"/home/secret" in p.read_bytes()]
    assert finish(found) is None  # twice is harmless
    assert os.environ.get("WANDB_MODE") == before.get("WANDB_MODE")


def test_online_without_an_account_goes_on_offline(run, monkeypatch):
    wandb = pytest.importorskip("wandb")
    said: list[str] = []
    modes: list[str] = []
    monkeypatch.setattr(tracking, "_warn", said.append)
    monkeypatch.setattr(type(wandb.api), "api_key", None)
    monkeypatch.setattr(wandb, "init", lambda **given: modes.append(given["mode"]) or FakeRun())
    loggers(run, recipe("online"), "anna")
    assert modes == ["offline"] and said == ["W&B is online, and nobody is logged in: logging offline. Run 'wandb login' first."]


def test_online_without_network_goes_on_offline(run, monkeypatch):
    wandb = pytest.importorskip("wandb")
    said: list[str] = []

    def init(**given):
        if given["mode"] == "online":
            raise TimeoutError("no route\nto host")
        assert given["settings"].init_timeout <= 30 and given["settings"].disable_git and given["config"]["identity"] == "me.mp4"
        return FakeRun()

    monkeypatch.setattr(tracking, "_warn", said.append)
    monkeypatch.setattr(type(wandb.api), "api_key", "x" * 40)
    monkeypatch.setattr(wandb, "init", init)
    assert len(loggers(run, recipe("online"), "anna")) == 2
    assert said == ["W&B cannot be reached (no route): logging offline."]


def test_only_the_first_rank_makes_a_run(run, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("a second rank made a run"))
    (run / "logs").mkdir()
    (run / "logs" / "metrics.csv").write_text("step\n")
    assert len(loggers(run, recipe(), "anna")) == 2
    assert (run / "logs" / "metrics.csv").exists()


def test_an_unknown_mode_is_one_line(run):
    with pytest.raises(ConfigError) as caught:
        loggers(run, recipe("ofline"), "anna")
    assert str(caught.value) == "tracking.wandb: unknown mode 'ofline'. Did you mean 'offline'? There is: off, offline, online."
    assert not list(run.iterdir())


def test_omegaconf_is_logged_as_a_plain_container():
    from omegaconf import OmegaConf

    plain = tracking._plain({"a": OmegaConf.create({"b": [1, "${c}"], "c": 2}), "d": (1, 2)})
    assert plain == {"a": {"b": [1, 2], "c": 2}, "d": [1, 2]}
    assert type(plain["a"]) is dict and type(plain["a"]["b"]) is list


class FakeRun:
    """Stands for wandb's Run."""

    def define_metric(self, *_: object, **__: object) -> None:
        """Accepts what Lightning's x axis needs."""
