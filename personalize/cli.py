"""The command line: ``personalize VERB [--option value] [key=value ...]``.

Each verb is declared here and done elsewhere, in a function that gets the parsed options and is imported only when it runs, so that
``--help`` stays quick. ``key=value`` overrides any key of the recipe. Exit codes: 0 done, 1 a bug (with its traceback), 2 something the
user can mend (one line), 130 interrupted.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .errors import ConfigError, PersonalizeError, unknown

Setup = Callable[[argparse.ArgumentParser], None]
_OVERRIDE = re.compile(r"^[A-Za-z_][\w.-]*=")

# Short flag -> the recipe key that it stands for.
_RECIPE_FLAGS = {
    "tracker": "tracker.name",
    "generator": "generator.name",
    "buffer": "buffer.name",
    "adapter": "adapter.name",
    "base": "base",
}


_YAML_WORDS = ("true", "false", "yes", "no", "on", "off", "y", "n", "null")


@dataclass(frozen=True)
class Verb:
    """One verb. target: 'module:function' under personalize, called with the parsed options; recipe: whether key=value is taken."""

    summary: str
    target: str
    setup: Setup = field(default=lambda parser: None)
    recipe: bool = False
    notes: str = ""
    flags: tuple[str, ...] = ()


class _Parser(argparse.ArgumentParser):
    """One line for an error, without the usage."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (\S+?)(/\S+)?: expected one argument$", r"\1 needs a value", message)
        message = re.sub(r"^the following arguments are required: ", "missing: ", message)
        message = re.sub(r"^argument ([^:\s]+): invalid (\w+) value: ", r"\1 must be of type \2, not ", message)
        raise ConfigError(f"{message.rstrip('.')}. See: {self.prog} --help")


def _plugins_option(p: argparse.ArgumentParser) -> None:
    p.add_argument("--plugins", metavar="FILE", action="append", default=[], help="Python file with plug-ins of yours; may be repeated")


def _face_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--tracker", metavar="T", help="finds the face: mediapipe (default), face_alignment")
    p.add_argument("--face", metavar="N", type=int, help="which face, counted from 0 as it appears (default: largest and longest)")


def _moment(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _neutral_option(p: argparse.ArgumentParser) -> None:
    p.add_argument("--neutral", metavar="S|FILE", type=_moment, help="a second, or a picture, that shows the face at rest (default: found)")


def _demo(p: argparse.ArgumentParser) -> None:
    p.add_argument("--output", metavar="DIR", default="demo_output", help="where to write (default: demo_output)")
    p.add_argument("--recipe", metavar="R", default="default", help="recipe name or YAML file (default: default)")
    p.add_argument("--people", metavar="N", type=int, default=3, help="how many synthetic people (default: 3)")
    p.add_argument("--seed", metavar="N", type=int, default=0, help="which synthetic person is the first (default: 0)")
    _plugins_option(p)


def _fit(p: argparse.ArgumentParser) -> None:
    p.add_argument("--identity", metavar="PATH", help="video, photograph or folder of photographs of one person")
    p.add_argument("--name", metavar="N", help="the person's name in the output (default: the file's name)")
    p.add_argument("--recipe", metavar="R", default="default", help="recipe name or YAML file (default: default)")
    p.add_argument("--labels", metavar="CSV", help="AU labels of some frames, to learn from as well")
    _neutral_option(p)
    p.add_argument("--generator", metavar="G", help="makes labelled pictures of the person: au_residual, mesh_warp, replay_only ...")
    p.add_argument("--buffer", metavar="B", help="replay buffer: balanced, reservoir ...")
    p.add_argument("--regularizer", metavar="R1,R2", help="exactly these: lwf, l2sp, ewc ..., or none")
    p.add_argument("--adapter", metavar="A", help="what moves in the model: head, norm, lora, full ...")
    _face_options(p)
    p.add_argument("--base", metavar="B", help="base model: shipped name or path")
    p.add_argument("--output", metavar="DIR", default="runs", help="writes DIR/NAME/vK (default: runs)")
    p.add_argument("--resume", metavar="RUN", help="continue an interrupted run, DIR/NAME/vK")
    p.add_argument("--consent", metavar="TEXT", help="who agreed to what and when; stored in the profile")
    _plugins_option(p)


def _predict(p: argparse.ArgumentParser) -> None:
    p.add_argument("--input", metavar="PATH", required=True, help="video, photograph or folder of photographs")
    p.add_argument("--profile", metavar="RUN", help="a person's profile, runs/NAME (default: the base model as it is)")
    p.add_argument("--output", metavar="CSV", help="table to write (default: INPUT's name with _aus.csv, here)")
    p.add_argument("--overlay", metavar="MP4", help="also write a video with box, name and AU bars")
    _face_options(p)
    p.add_argument(
        "--all-faces", action=argparse.BooleanOptionalAction, default=True, help="one row a face a frame (default), or one face only"
    )
    p.add_argument("--smooth", action="store_true", help="take the flicker out of a video's intensities; never looks ahead")
    p.add_argument("--base", metavar="B", help="base model: shipped name or path (default: the profile's)")
    _plugins_option(p)


def _evaluate(p: argparse.ArgumentParser) -> None:
    p.add_argument("--input", metavar="PATH", required=True, help="video, photograph or folder of photographs")
    p.add_argument("--labels", metavar="CSV", required=True, help="AU labels: per frame, or spans au,start_s,end_s,value")
    p.add_argument("--profile", metavar="RUN", help="a person's profile, runs/NAME, compared with the base model")
    p.add_argument("--output", metavar="JSON", help="also write the figures here")
    p.add_argument("--threshold", metavar="X", type=float, default=2.0, help="labels from this intensity count as present (default: 2)")
    _face_options(p)
    p.add_argument("--base", metavar="B", help="base model: shipped name or path (default: the profile's)")
    _plugins_option(p)


def _bench(p: argparse.ArgumentParser) -> None:
    p.add_argument("--people", metavar="N", type=int, default=12, help="unseen synthetic people (default: 12)")
    p.add_argument("--output", metavar="DIR", default="bench_output", help="where to write (default: bench_output)")
    p.add_argument("--recipe", metavar="R", default="default", help="recipe name or YAML file (default: default)")
    p.add_argument("--generators", metavar="G1,G2", default="au_residual", help="generators to compare (default: au_residual)")
    p.add_argument("--seed", metavar="N", type=int, default=0, help="which people and clips (default: 0)")
    p.add_argument("--quick", action="store_true", help="few people, short clips: whether it runs, not a figure to quote")
    _plugins_option(p)


def _generate(p: argparse.ArgumentParser) -> None:
    p.add_argument("--identity", metavar="PATH", required=True, help="video, photograph or folder of photographs of one person")
    _neutral_option(p)
    p.add_argument("--aus", metavar="AU=X,...", help="one expression, as in AU06=3,AU12=2 (intensities 0-5)")
    p.add_argument("--pose", metavar="A=DEG,...", help="head pose in degrees, as in yaw=20,pitch=5")
    p.add_argument("--grid", metavar="KIND", help="many expressions and poses: balanced, to learn from, or sheet, to look at")
    p.add_argument("-n", metavar="N", type=int, default=None, help="how many pictures (default: 1, of the balanced grid 100)")
    p.add_argument("--driver", metavar="VIDEO", help="put this clip's expressions and head pose onto the face: writes a video")
    p.add_argument("--driver-profile", metavar="RUN", help="profile of the driver, runs/NAME (default: the base model reads it)")
    p.add_argument("--composite", action="store_true", help="put the face back into the clip's own frames")
    p.add_argument("--watermark", action="store_true", help="write 'synthetic' into a corner of every picture")
    p.add_argument("--judge", action="store_true", help="measure the generator on this person: AU control, leakage, likeness, speed")
    p.add_argument("--labels", metavar="CSV", help="with --judge: AU labels of the clip, to test on what is not generated from")
    p.add_argument("--others", metavar="PATH", action="append", help="with --judge: clip of somebody else to compare with; may be repeated")
    p.add_argument("--verifier", metavar="B", help="with --judge: base model that reads the pictures (default: the recipe's)")
    p.add_argument("--generator", metavar="G", help="makes the pictures (default: au_residual)")
    p.add_argument("--output", metavar="DIR", default="generated", help="writes images, labels, masks, or the video (default: generated)")
    _face_options(p)
    p.add_argument("--recipe", metavar="R", default="default", help="recipe name or YAML file (default: default)")
    p.add_argument("--seed", metavar="N", type=int, help="of everything random (default: the recipe's, 0)")
    _plugins_option(p)


def _base_fit(p: argparse.ArgumentParser) -> None:
    p.add_argument("--recipe", metavar="R", default="base", help="recipe name or YAML file of kind base (default: base)")
    _data_options(p, "learn from: NAME=PATH of a data set, synthetic, or a folder of renders; may be repeated (default: rendered now)")
    p.add_argument("--output", metavar="DIR", default="runs/my-base", help="where to write; names the model (default: runs/my-base)")
    _plugins_option(p)


def _generator_fit(p: argparse.ArgumentParser) -> None:
    p.add_argument("--recipe", metavar="R", default="generator", help="recipe name or YAML file of kind generator (default: generator)")
    p.add_argument("--data", metavar="DIR", help="folder of rendered pairs (default: rendered into the output)")
    p.add_argument("--output", metavar="DIR", default="runs/generator", help="where to write (default: runs/generator)")
    _plugins_option(p)


def _data_options(p: argparse.ArgumentParser, what: str) -> None:
    p.add_argument("--data", metavar="SOURCE", action="append", help=what)
    p.add_argument("--fold", metavar="K", type=int, help="official fold, from 1, whose test people are held out of training")
    p.add_argument("--cache", metavar="DIR", default="runs/tracked", help="keeps tracked frames of data sets (default: runs/tracked)")


def _base_evaluate(p: argparse.ArgumentParser) -> None:
    p.add_argument("--base", metavar="B", help="base model: shipped name or path (default: base-s)")
    _data_options(p, "judge on: NAME=PATH of a data set, or a folder of renders; may be repeated (default: rendered now)")
    p.add_argument("--output", metavar="PATH", help="also write PATH.json, and PATH.csv for data sets")
    _plugins_option(p)


def _report(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN", help="a run's folder, runs/NAME or runs/NAME/vK")


def _plugins_list(p: argparse.ArgumentParser) -> None:
    p.add_argument("kind", metavar="KIND", nargs="?", help="trackers, generators, buffers, regularizers or adapters (default: all)")
    _plugins_option(p)


def _plugins_show(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="NAME", help="a plug-in's name, or KIND/NAME where two kinds share it")
    _plugins_option(p)


def _plugins_new(p: argparse.ArgumentParser) -> None:
    p.add_argument("kind", metavar="KIND", help="tracker, generator, buffer, regularizer or adapter")
    p.add_argument("name", metavar="NAME", help="its name, in lower_case")
    p.add_argument("--output", metavar="DIR", default=".", help="where to write NAME.py and test_NAME.py (default: here)")


def _identities(action: str, name: bool) -> Setup:
    def setup(p: argparse.ArgumentParser) -> None:
        p.set_defaults(action=action, name=None, yes=False)
        if name:
            p.add_argument("name", metavar="NAME", help="the person")
        p.add_argument("--output", metavar="DIR", default="runs", help="the folder of runs (default: runs)")
        if action == "forget":
            p.add_argument("--yes", action="store_true", help="do not ask first")

    return setup


_SAME_KEYS = ("tracker", "generator", "buffer", "adapter", "base")
VERBS: dict[str, Verb] = {
    "demo": Verb("the main job on synthetic people, offline", "demo:run", _demo, True),
    "fit": Verb(
        "learn one person from a clip: writes runs/NAME/vK with the profile and a report",
        "engine:fit_command",
        _fit,
        True,
        "example: personalize fit --identity me.mp4 --name me optim.lr=3e-4 trainer.devices=2",
        _SAME_KEYS,
    ),
    "predict": Verb("AU intensities and occurrence for each face and frame, as CSV", "predict:predict_command", _predict),
    "evaluate": Verb("F1, AUC, ICC, PCC, MAE for each AU against labels", "evaluate:evaluate_command", _evaluate),
    "bench": Verb("the benchmark on unseen synthetic people", "bench:bench_command", _bench, True),
    "generate": Verb("labelled pictures of one person", "generate:generate_command", _generate, True, flags=("generator", "tracker")),
    "plugins list": Verb("which plug-ins there are", "registry:list_command", _plugins_list),
    "plugins show": Verb("a plug-in's options and text", "registry:show_command", _plugins_show),
    "plugins new": Verb("write a working plug-in with its test, to start from", "scaffold:new_command", _plugins_new),
    "base fit": Verb("train the base model", "base:fit_command", _base_fit, True),
    "generator fit": Verb("train a generator's network on the synthetic world", "pretrain:fit_command", _generator_fit, True),
    "base evaluate": Verb("evaluate the base model", "base:evaluate_command", _base_evaluate, True),
    "report": Verb("write a run's report.html anew", "report:report_command", _report),
    "identities list": Verb("who has a profile", "profile:identities_command", _identities("list", False)),
    "identities show": Verb("what a person's profile holds", "profile:identities_command", _identities("show", True)),
    "identities forget": Verb("delete all that is stored about a person", "profile:identities_command", _identities("forget", True)),
}


def _help() -> str:
    lines = ["usage: personalize VERB [--option value] [key=value ...]", ""]
    lines += ["Personal facial Action Unit models: a clip of one person in, their model out.", "", "verbs:"]
    lines += [f"  {name:<18} {verb.summary}" for name, verb in VERBS.items()]
    lines += ["", "options:", "  --help             this, or after a verb: its options", "  --version          the version"]
    lines += ["", "start with: personalize demo", "then:       personalize fit --identity CLIP --name NAME"]
    return "\n".join(lines)


def _formatter(prog: str) -> argparse.HelpFormatter:
    width = min(shutil.get_terminal_size().columns, 120)
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=width)


def parser(name: str) -> argparse.ArgumentParser:
    """The parser of one verb."""
    verb = VERBS[name]
    p = _Parser(
        prog=f"personalize {name}",
        description=verb.summary[0].upper() + verb.summary[1:] + ".",
        epilog="\n".join(filter(None, ["key=value changes any key of the recipe." if verb.recipe else "", verb.notes])) or None,
        formatter_class=_formatter,
        allow_abbrev=False,
    )
    verb.setup(p)
    shown = " ".join(a.metavar for a in p._actions if not a.option_strings and isinstance(a.metavar, str))
    required = " ".join(f"{a.option_strings[0]} {a.metavar}" for a in p._actions if a.option_strings and a.required)
    pieces = (f"personalize {name}", shown, required, "[options]", "[key=value ...]" if verb.recipe else "")
    p.usage = " ".join(filter(None, pieces))
    return p


def _verb_of(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The verb and what follows it. Raises ConfigError with a suggestion for others."""
    first = argv[0]
    if first in VERBS:
        return first, list(argv[1:])
    actions = [name.split()[1] for name in VERBS if name.startswith(f"{first} ")]
    if actions:
        second = argv[1] if len(argv) > 1 else ""
        if second in actions:
            return f"{first} {second}", list(argv[2:])
        if not second or second.startswith("-"):
            raise ConfigError(f"personalize {first} needs one of: {', '.join(actions)}.")
        raise ConfigError(unknown(f"{first} verb", second, actions))
    if first.startswith("-"):
        raise ConfigError(f"the verb comes first: personalize VERB {first} ... There is: {', '.join(_first_words())}.")
    raise ConfigError(unknown("verb", first, _first_words()))


def _first_words() -> list[str]:
    return sorted({name.split()[0] for name in VERBS})


def parse(argv: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """The verb and its options; ``overrides`` holds the key=value words, those that short flags stand for first.

    Raises ConfigError in one line; exits with 0 for --help.
    """
    name, rest = _verb_of(argv)
    verb, p = VERBS[name], parser(name)
    args, extra = p.parse_known_args(rest)
    overrides: list[str] = []
    for word in extra:
        if word == "--":
            continue
        option = word.split("=", 1)[0]
        if word.startswith("-"):
            if verb.recipe and "." in option:
                raise ConfigError(f"recipe keys are given without dashes: {word.lstrip('-')}{'' if '=' in word else '=VALUE'}")
            raise ConfigError(unknown(f"option of {name}", option, [s for a in p._actions for s in a.option_strings if s.startswith("--")]))
        if not _OVERRIDE.match(word):
            if "--identity" in p._option_string_actions and Path(word).exists():
                raise ConfigError(f"unexpected '{word}': is it --identity {word}?")
            raise ConfigError(f"unexpected '{word}'. See: {p.prog} --help")
        if not verb.recipe:
            raise ConfigError(f"unexpected '{word}': {name} has no recipe to change. See: {p.prog} --help")
        overrides.append(word)
    args.overrides = _flag_overrides(verb, args) + overrides
    _finish(name, args)
    return name, args


def _flag_overrides(verb: Verb, args: argparse.Namespace) -> list[str]:
    """Short flags as overrides: the recipe is the only place where a run's settings are."""
    found = []
    for flag in verb.flags:
        value = getattr(args, flag, None)
        if value is not None:
            # A name or path is text, whatever YAML would make of '1e5' or 'my base #2'.
            plain = re.fullmatch(r"(\.{0,2}/)?[A-Za-z_][\w./-]*", value) and value.lower() not in _YAML_WORDS
            found.append(f"{_RECIPE_FLAGS[flag]}={value if plain else json.dumps(value, ensure_ascii=False)}")
    if getattr(args, "regularizer", None) is not None:
        names = [part.strip() for part in args.regularizer.split(",") if part.strip() not in ("", "none")]
        found.append(f"regularizers=[{', '.join(names)}]")
    return found


def _finish(name: str, args: argparse.Namespace) -> None:
    """What argparse cannot say: options that depend on each other, defaults from other options."""
    if name == "fit" and not (args.identity or args.resume):
        raise ConfigError("missing: --identity (a video, photograph or folder), or --resume RUN. See: personalize fit --help")
    if name == "fit" and args.identity and args.resume:
        raise ConfigError("--resume continues a run with its own clip: leave --identity out.")
    if name == "fit" and args.resume:
        typed = [f"--{key}" for key in ("name", "labels", "neutral", "face", "consent") if getattr(args, key) is not None] + args.overrides
        if typed:
            raise ConfigError(f"--resume continues a run with its own settings: leave {typed[0]} out.")
    if name == "predict" and args.output is None:
        args.output = f"{Path(args.input.rstrip('/') or '/').stem or 'input'}_aus.csv"
    if name == "generate" and not (args.aus or args.pose or args.grid or args.driver or args.judge):
        args.grid = "balanced"
    if name.startswith("base "):
        _sources(args)
    for least, option in ((1, "people"), (1, "n"), (0, "face"), (0, "seed"), (1, "fold")):
        value = getattr(args, option, None)
        if isinstance(value, int) and value < least:
            raise ConfigError(f"{'-n' if option == 'n' else '--' + option} must be at least {least}, not {value}.")


def _sources(args: argparse.Namespace) -> None:
    """``args.sources``: what --data names. ``args.data`` stays the folder of renders where that is all, else it is a list."""
    args.sources = []
    if args.data:
        from .datasets import SYNTHETIC, parse_source

        args.sources = [parse_source(text) for text in args.data]
        if len(args.data) == 1 and args.sources[0].name == SYNTHETIC:
            args.data = None if args.sources[0].path is None else str(args.sources[0].path)
    if args.fold is not None and not isinstance(args.data, list):
        raise ConfigError("--fold chooses people of a data set: name one, --data NAME=PATH.")


def _run(name: str, args: argparse.Namespace) -> int:
    if getattr(args, "plugins", None):
        from .registry import load_file

        for file in args.plugins:
            load_file(file)
    if VERBS[name].recipe and getattr(args, "recipe", None) and not getattr(args, "resume", None):
        from .config import check_keys

        kind = name.split()[0] if name in ("base fit", "generator fit") else "fit"
        check_keys(args.recipe, args.overrides, kind)  # before the libraries that a verb needs are loaded, which takes seconds
    module, _, function = VERBS[name].target.partition(":")
    result = getattr(importlib.import_module(f"{__package__}.{module}"), function)(args)
    return int(result or 0)


def _chain(problem: BaseException) -> list[BaseException]:
    """The exception and what it came from."""
    found: list[BaseException] = []
    current: BaseException | None = problem
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def _disk_full(problem: BaseException) -> str | None:
    """One line where the root of the problem is a full disk, whatever library noticed it."""
    for link in _chain(problem):
        full = isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(link) or "PytorchStreamWriter failed writing" in str(link):
            file = f" while writing {link.filename}" if isinstance(link, OSError) and link.filename else ""
            return f"the disk is full{file}. Free some space and run the command again."
    return None


def _mendable(problem: BaseException) -> str | None:
    """The one line for what the user can mend, or None for a bug."""
    full = _disk_full(problem)
    if full is not None:
        return full
    if isinstance(problem, PersonalizeError):
        return str(problem)
    if isinstance(problem, OSError) and problem.filename and problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission for {problem.filename}. Choose another place, or change its permissions."
    if isinstance(problem, (NotADirectoryError, IsADirectoryError, FileExistsError)) and problem.filename:
        return f"{problem.filename}: {(problem.strerror or 'in the way').lower()}. Choose another path."
    return None


def _interrupted(name: str, args: argparse.Namespace) -> str:
    run = getattr(args, "run_dir", None) or getattr(args, "resume", None)
    if name == "fit" and run:
        return f"Interrupted. Resume with: personalize fit --resume {run}"
    if name == "base fit":
        return "Interrupted. The same command goes on after the last whole epoch."
    return "Interrupted. Run the command again to start anew."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. A verb's function may set ``args.run_dir`` for the line that says how to resume."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help") and len(argv) == 1:
        print(_help())
        return 0
    if argv[0] == "help":
        argv = [*argv[1:], "--help"]
    if argv[0] in ("-V", "--version"):
        print(f"personalize {__version__}")
        return 0
    if len(argv) == 2 and argv[1] in ("-h", "--help") and argv[0] not in VERBS and argv[0] in _first_words():
        print("\n".join(f"personalize {name:<18} {verb.summary}" for name, verb in VERBS.items() if name.startswith(f"{argv[0]} ")))
        return 0
    name, args = "", argparse.Namespace()
    try:
        name, args = parse(argv)
        return _run(name, args)
    except KeyboardInterrupt:
        return _say_interrupted(name, args)
    except SystemExit as stop:
        # Lightning turns Ctrl-C into exit code 1.
        if any(isinstance(link, KeyboardInterrupt) for link in _chain(stop)):
            return _say_interrupted(name, args)
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BrokenPipeError:
        # The reader (head, less) has enough. Keep the interpreter from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as problem:
        line = _mendable(problem)
        if line is None:
            raise
        from . import ui

        ui.error(line)
        return 2


def run() -> None:
    """The command ``personalize``: :func:`main`, and the end of the process, without what takes a second and frees what ends anyway:
    taking all of PyTorch's objects apart."""
    ended: list[int] = []
    atexit.register(lambda: _leave(ended[0]) if ended else None)  # the first to be registered is the last to run
    ended.append(main())
    sys.exit(ended[0])


def _leave(code: int) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _say_interrupted(name: str, args: Any) -> int:
    from . import ui

    ui.info(_interrupted(name, args))
    return 130


if __name__ == "__main__":
    run()
