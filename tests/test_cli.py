"""The command line: quick help, one line per error, exit codes, what reaches the verbs' functions."""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
import textwrap
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from personalize import __version__, cli
from personalize.errors import InputError

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """call("fit", ...) -> exit code, stdout, stderr."""

    def run(*argv: str) -> tuple[int, str, str]:
        code = cli.main(argv)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for personalize.engine, whose fit_command each test sets."""
    return stand_in(monkeypatch, "engine", "fit_command")


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, function: str) -> types.ModuleType:
    fake: Any = types.ModuleType(f"personalize.{module}")
    fake.seen = []
    setattr(fake, function, fake.seen.append)
    monkeypatch.setitem(sys.modules, f"personalize.{module}", fake)
    return fake


def failing(problem: BaseException) -> Callable[[argparse.Namespace], None]:
    def function(args: argparse.Namespace) -> None:
        raise problem

    return function


# help


@pytest.mark.parametrize("argv", [[], *(name.split() for name in cli.VERBS)], ids=lambda argv: " ".join(argv) or "personalize")
def test_help_fits_a_screen(argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([*argv, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 3 < len(lines) <= 40
    assert max(map(len, lines)) <= 100


def test_help_lists_every_verb(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    for name in cli.VERBS:
        assert f"  {name} " in out
    assert call()[1] == out == call("help")[1]


@pytest.mark.parametrize("verb", ["fit", "plugins list", "base fit", "identities forget"])
def test_help_is_quick_and_imports_nothing_heavy(verb: str) -> None:
    code = f"""
    import sys
    from personalize.cli import main
    assert main([*{verb.split()!r}, "--help"]) == 0
    heavy = sorted({{"torch", "lightning", "numpy", "omegaconf", "rich", "timm", "mediapipe"}} & set(sys.modules))
    assert not heavy, heavy
    """
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, stdout=subprocess.DEVNULL)
    assert time.perf_counter() - began < 1.0


def test_version(call: Call) -> None:
    assert call("--version") == (0, f"personalize {__version__}\n", "")


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).with_name("personalize")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"personalize {__version__}\n"


def test_every_verb_of_ours_is_there() -> None:
    """Verbs of this module's own family point to functions that exist; the others' modules are imported by their own tests."""
    import importlib

    for name in ("plugins list", "plugins show", "plugins new", "identities list"):
        module, _, function = cli.VERBS[name].target.partition(":")
        assert callable(getattr(importlib.import_module(f"personalize.{module}"), function))


# what the user typed wrong


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fti"], "unknown verb 'fti'. Did you mean 'fit'? There is: base, bench, demo, evaluate, fit, generate, "),
        (["plugins", "lst"], "unknown plugins verb 'lst'. Did you mean 'list'? There is: list, new, show."),
        (["plugins"], "personalize plugins needs one of: list, show, new."),
        (["--name", "x"], "the verb comes first: personalize VERB --name ... There is: base, "),
        (["fit", "--identiy", "x"], "unknown option of fit '--identiy'. Did you mean '--identity'? There is: --adapter, "),
        (["fit"], "missing: --identity (a video, photograph or folder), or --resume RUN. See: personalize fit --help"),
        (["fit", "--identity"], "--identity needs a value. See: personalize fit --help"),
        (["fit", "--identity", "x", "--face", "left"], "--face must be of type int, not 'left'. See: personalize fit --help"),
        (["fit", "--identity", "x", "--resume", "y"], "--resume continues a run with its own clip: leave --identity out."),
        (["fit", "--resume", "y", "--labels", "l.csv"], "--resume continues a run with its own settings: leave --labels out."),
        (["fit", "--resume", "y", "optim.lr=1"], "--resume continues a run with its own settings: leave optim.lr=1 out."),
        (["fit", "--identity", "x", "."], "unexpected '.': is it --identity .?"),
        (["fit", "--identity", "x", "--face", "-1"], "--face must be at least 0, not -1."),
        (["fit", "--identity", "x", "y"], "unexpected 'y'. See: personalize fit --help"),
        (["fit", "--identity", "x", "--trainer.devices=2"], "recipe keys are given without dashes: trainer.devices=2"),
        (["fit", "--identity", "x", "--trainer.devices", "2"], "recipe keys are given without dashes: trainer.devices=VALUE"),
        (["predict", "--input", "x", "a=1"], "unexpected 'a=1': predict has no recipe to change. See: personalize predict --help"),
        (["predict"], "missing: --input. See: personalize predict --help"),
        (["plugins", "new", "traker", "x"], "unknown kind of plug-in 'traker'. Did you mean 'trackers'? There is: "),
        (["plugins", "show", "mesh_wrap"], "unknown plug-in 'mesh_wrap'. Did you mean 'mesh_warp'? There is: "),
        (["plugins", "list", "--plugins", "no.py"], "no such plug-in file: no.py"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_line_and_exit_code_2(argv: list[str], message: str, call: Call) -> None:
    code, out, err = call(*argv)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith(f"error: {message}")


def test_long_messages_stay_one_line(engine: Any, call: Call) -> None:
    engine.fit_command = failing(InputError("no face in it. " * 30 + "[brackets]\n  and a break"))
    code, _, err = call("fit", "--identity", "x")
    assert code == 2 and err.count("\n") == 1 and err.endswith("[brackets] and a break\n")


# what the verbs get


def test_fit_gets_its_options(engine: Any, call: Call) -> None:
    code, _, _ = call("fit", "optim.lr=3e-4", "--identity", "me.mp4", "--neutral", "3.5", "trainer.devices=2", "--face", "1")
    assert code == 0
    (args,) = engine.seen
    assert (args.identity, args.neutral, args.face, args.output, args.recipe) == ("me.mp4", 3.5, 1, "runs", "default")
    assert args.overrides == ["optim.lr=3e-4", "trainer.devices=2"]
    assert (args.name, args.labels, args.resume, args.consent) == (None, None, None, None)


def test_short_flags_are_overrides_that_explicit_ones_follow(engine: Any, call: Call) -> None:
    flags = ["--buffer", "reservoir", "--regularizer", "ewc, lwf", "--adapter", "head", "--generator", "replay_only", "--tracker", "t"]
    call("fit", "--identity", "x", *flags, "--base", "b", "adapter.name=full")
    (args,) = engine.seen
    assert set(args.overrides[:-1]) == {
        "buffer.name=reservoir",
        "regularizers=[ewc, lwf]",
        "adapter.name=head",
        "generator.name=replay_only",
        "tracker.name=t",
        "base=b",
    }
    assert args.overrides[-1] == "adapter.name=full"


@pytest.mark.parametrize("path", ["runs/my base #2", "1e5", "runs/a: b", "no", "./b", "../b-1.x", "'q'", '"', "[a]", "~", "ü"])
def test_a_path_is_text_whatever_yaml_makes_of_it(engine: Any, call: Call, path: str) -> None:
    from personalize.config import load_recipe

    call("fit", "--identity", "x", "--base", path)
    assert load_recipe("default", engine.seen[0].overrides)["base"] == path


def test_no_regularizer_at_all(engine: Any, call: Call) -> None:
    call("fit", "--identity", "x", "--regularizer", "none")
    assert engine.seen[0].overrides == ["regularizers=[]"]


def test_predict_names_its_output(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    fake: Any = stand_in(monkeypatch, "predict", "predict_command")
    call("predict", "--input", "clips/me.mov")
    call("predict", "--input", "stills/", "--no-all-faces", "--output", "x.csv")
    assert [(a.output, a.all_faces) for a in fake.seen] == [("me_aus.csv", True), ("x.csv", False)]


def test_values_with_an_equals_sign_are_no_overrides(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    fake: Any = stand_in(monkeypatch, "generate", "generate_command")
    call("generate", "--identity", "x", "--aus", "AU06=3,AU12=2", "--pose", "yaw=-20", "-n", "5", "seed=4")
    (args,) = fake.seen
    assert (args.aus, args.pose, args.n, args.grid, args.overrides) == ("AU06=3,AU12=2", "yaw=-20", 5, None, ["seed=4"])


def test_two_word_verbs(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    fake: Any = stand_in(monkeypatch, "profile", "identities_command")
    call("identities", "forget", "ann", "--yes", "--output", "elsewhere")
    call("identities", "list")
    assert [(a.action, a.name, a.output, a.yes) for a in fake.seen] == [("forget", "ann", "elsewhere", True), ("list", None, "runs", False)]


def test_exit_code_of_the_verb_is_passed_on(engine: Any, call: Call) -> None:
    engine.fit_command = lambda args: 3
    assert call("fit", "--identity", "x")[0] == 3


def test_plugin_files_are_loaded_first(tmp_path: Path, engine: Any, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from personalize import registry

    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    monkeypatch.setattr(registry, "_files", {})
    monkeypatch.setenv(registry.FILES_VARIABLE, "")
    registry_text = "from personalize.faces import Tracker\nfrom personalize.registry import register\n"
    for name in ("one", "two"):
        text = (
            f'{registry_text}\n@register("{name}")\nclass T(Tracker):\n    def detect(self, frame, timestamp, still):\n        return []\n'
        )
        (tmp_path / f"{name}.py").write_text(text)
    files = [str(tmp_path / "one.py"), str(tmp_path / "two.py")]
    assert call("fit", "--identity", "x", "--plugins", files[0], "--plugins", files[1])[0] == 0
    assert {"one", "two"} <= set(registry.available("trackers"))
    assert os.environ[registry.FILES_VARIABLE].split(os.pathsep) == files


# how it ends


def test_ctrl_c_says_how_to_resume(engine: Any, call: Call) -> None:
    def interrupted(args: argparse.Namespace) -> None:
        args.run_dir = "runs/me/v2"
        raise KeyboardInterrupt

    engine.fit_command = interrupted
    assert call("fit", "--identity", "x") == (130, "", "Interrupted. Resume with: personalize fit --resume runs/me/v2\n")


def test_ctrl_c_as_lightning_passes_it_on(engine: Any, call: Call) -> None:
    def interrupted(args: argparse.Namespace) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    engine.fit_command = interrupted
    assert call("fit", "--resume", "runs/me/v1") == (130, "", "Interrupted. Resume with: personalize fit --resume runs/me/v1\n")


def test_ctrl_c_elsewhere(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    fake: Any = stand_in(monkeypatch, "demo", "run")
    fake.run = failing(KeyboardInterrupt())
    assert call("demo") == (130, "", "Interrupted. Run the command again to start anew.\n")


def wrapped() -> Exception:
    problem = RuntimeError("cannot save")
    problem.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return problem


@pytest.mark.parametrize(
    ("problem", "where"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out.csv"), " while writing out.csv"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), ""),
        (wrapped(), ""),
        (RuntimeError("[enforce fail at inline_container.cc:659] . PytorchStreamWriter failed writing file data/3"), ""),
        (InputError("cannot write x: I/O error: No space left on device (os error 28)."), ""),
    ],
)
def test_full_disk(engine: Any, call: Call, problem: Exception, where: str) -> None:
    engine.fit_command = failing(problem)
    assert call("fit", "--identity", "x") == (2, "", f"error: the disk is full{where}. Free some space and run the command again.\n")


def test_no_permission(engine: Any, call: Call) -> None:
    engine.fit_command = failing(PermissionError(errno.EACCES, "Permission denied", "runs"))
    assert call("fit", "--identity", "x") == (2, "", "error: no permission for runs. Choose another place, or change its permissions.\n")


def test_bugs_keep_their_traceback(engine: Any) -> None:
    engine.fit_command = failing(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["fit", "--identity", "x"])


@pytest.mark.parametrize("code", [0, 2])
def test_the_command_ends_after_everybody_else(code: int) -> None:
    """With main's exit code, its output written, when threads have ended and handlers have run; a bug ends it as ever."""
    script = """
        import atexit, sys, threading, time
        from personalize import cli
        def main():
            atexit.register(print, "handled")
            threading.Thread(target=lambda: (time.sleep(0.3), print("joined"))).start()
            print("done")
            return {code}
        cli.main = main
        cli.run()
    """
    ran = [sys.executable, "-c", textwrap.dedent(script).replace("{code}", str(code))]
    done = subprocess.run(ran, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "done\njoined\nhandled\n", "")
    broken = subprocess.run([*ran[:2], ran[2].replace(f"return {code}", "1 / 0")], capture_output=True, text=True, check=False)
    assert broken.returncode == 1 and broken.stdout == "done\njoined\nhandled\n" and "ZeroDivisionError" in broken.stderr


def test_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f'{sys.executable} -c \'import sys; from personalize.cli import main; sys.exit(main(["plugins", "list"]))\' | true',
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


# progress and messages


def test_progress_without_a_terminal_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from personalize.ui import progress

    assert list(progress(range(4), None, "Tracking")) == [0, 1, 2, 3]
    with progress(None, 10, "Fitting") as bar:
        bar.advance(7)
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("Tracking: 4 in ") and first.endswith(" s") and second.startswith("Fitting: 7 in ")


def test_progress_on_a_terminal_shows_the_time_left() -> None:
    """On a real pseudo-terminal; nested bars and a warning in between do not break it."""
    import pty

    code = """
    import time
    from personalize.ui import progress, warn
    for i in progress(range(4), 4, "Outer"):
        for _ in progress(range(3), 3, "Inner"):
            time.sleep(0.12)
        warn("left out: one row")
    """
    leader, follower = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=follower, env={**os.environ, "TERM": "xterm"})
    os.close(follower)
    seen = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        seen += piece
    assert process.wait() == 0
    text = seen.decode()
    assert "Outer" in text and "Inner" in text and "ETA" in text and "0:00:01" in text
    assert text.count("warning: left out: one row") == 4


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from personalize.ui import info, progress, warn

    monkeypatch.setenv("LOCAL_RANK", "1")
    warn("w")
    info("i")
    list(progress([1], 1, "P"))
    assert capsys.readouterr() == ("", "")


def test_table_is_not_squeezed_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    from personalize.ui import table

    table("T", ("AU", "ICC"), [("AU06 " + "x" * 100, 0.12345), ("mean", float("nan"))])
    out = capsys.readouterr().out
    assert "AU06 " + "x" * 100 in out and "0.123" in out and " -" in out


def test_a_mistyped_key_is_told_before_the_libraries_are_loaded() -> None:
    """In a process of its own: here they are loaded already."""
    code = (
        "import sys\nfrom personalize.cli import main\n"
        "assert main(['fit', '--identity', 'a.mp4', 'optim.lrr=3']) == 2\n"
        "assert not {'torch', 'lightning', 'cv2'} & set(sys.modules)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    line = "error: unknown optim key 'lrr'. Did you mean 'lr'? There is: batch_size, lr, max_steps, weight_decay.\n"
    assert (said.returncode, said.stderr) == (0, line)
