"""`plugins new`: what it writes works, passes its own test and the style check, and nothing is overwritten."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from personalize import cli, registry, scaffold
from personalize.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a new plug-in of each kind."""
    folder = tmp_path_factory.mktemp("plugins")
    for kind in registry.KINDS:
        scaffold.write_plugin(kind, f"my_{kind}", folder)
    return folder


def test_tests_pass_as_written(written: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(written), str(written)]
    done = subprocess.run(command, cwd=written, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stdout
    assert " 12 passed" in f" {done.stdout.splitlines()[-1]}"


@pytest.mark.parametrize("config", [("--config", str(ROOT / "pyproject.toml")), ("--isolated",)], ids=["ours", "ruff's own"])
def test_style(written: Path, config: tuple[str, ...]) -> None:
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    for command in (["check"], ["format", "--diff"]):
        done = subprocess.run([ruff, *command, *config, "--no-cache", str(written)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_plugins_are_listed_with_their_options(written: Path) -> None:
    command = [sys.executable, "-m", "personalize.cli", "plugins", "show", "my_trackers", "--plugins", str(written / "my_trackers.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Finds one bright patch and lays the 68 points on an ellipse in it: an example." in done.stdout
    assert "threshold: 32.0  # float" in done.stdout


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "new", "tracker", "my_points", "--output", str(tmp_path / "deep" / "er")]) == 0
    out = capsys.readouterr().out
    assert (tmp_path / "deep" / "er" / "my_points.py").is_file() and (tmp_path / "deep" / "er" / "test_my_points.py").is_file()
    assert "--tracker my_points" in out and 'my_points = "YOUR_PACKAGE.my_points:MyPointsTracker"' in out


def test_class_names() -> None:
    assert scaffold.class_name("trackers", "my_points") == "MyPointsTracker"
    assert scaffold.class_name("buffers", "replay") == "MyReplayBuffer"  # ReplayBuffer is the base class
    assert scaffold.class_name("adapters", "my_adapter") == "MyAdapter"


@pytest.mark.parametrize("name", ["Mine", "2nd", "my-own", "class", "a.b", "../x", ""])
def test_bad_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        scaffold.write_plugin("trackers", name, tmp_path)
    assert str(caught.value) == (
        f"'{name}' cannot be a plug-in's name: use lower-case letters, digits and _, a letter first, no word of Python."
    )
    assert not list(tmp_path.iterdir())


def test_taken_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^tracker 'mediapipe' is already offered by personalize [\d.]+\. Choose another name\.$"):
        scaffold.write_plugin("trackers", "mediapipe", tmp_path)


@pytest.mark.parametrize(("kind", "name"), [("buffer", "random"), ("generator", "copy"), ("adapter", "numpy")])
def test_names_that_would_hide_a_module(tmp_path: Path, kind: str, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        scaffold.write_plugin(kind, name, tmp_path)
    why = f"'{name}' is a module of Python or of an installed package, which {name}.py would hide. Choose another name."
    assert str(caught.value) == why and not list(tmp_path.iterdir())


@pytest.mark.parametrize("existing", ["mine.py", "test_mine.py"])
def test_nothing_is_overwritten(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(ConfigError) as caught:
        scaffold.write_plugin("adapters", "mine", tmp_path)
    assert str(caught.value) == f"{tmp_path / existing} exists. Choose another name or --output folder."
    assert [p.name for p in tmp_path.iterdir()] == [existing] and (tmp_path / existing).read_text() == "precious"
