"""Plug-ins: found without imports, loaded with one-line errors, from packages, notebooks and loose files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from personalize import registry
from personalize.errors import ConfigError
from personalize.faces import Tracker

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

PLUGIN = '''
"""A module."""
from personalize.faces import Tracker
from personalize.registry import register

@register("{name}")
class Mine(Tracker):
    """Finds nothing.

    More.
    """

    def __init__(self, depth: int = 3, mode: str = "a") -> None:
        if depth > 9:
            raise ValueError("depth is above 9;\\n  too deep.")
        self.depth, self.mode = depth, mode

    def detect(self, frame, timestamp, still):
        return []
'''


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts with what is installed and leaves nothing behind."""
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    monkeypatch.setattr(registry, "_files", {})
    before = os.environ.pop(registry.FILES_VARIABLE, None)
    yield
    os.environ.pop(registry.FILES_VARIABLE, None)
    if before is not None:
        os.environ[registry.FILES_VARIABLE] = before


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """install(distribution, entry points by group, modules by path): a real distribution on the path."""

    def make(name: str, points: dict[str, str], files: dict[str, str]) -> None:
        site = tmp_path / f"site_{name}"
        info = site / f"{name}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        groups = "\n".join(f"[personalize.{group}]\n{line}" for group, line in points.items())
        (info / "entry_points.txt").write_text(groups)
        for path, text in files.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(textwrap.dedent(text))
        monkeypatch.syspath_prepend(str(site))

    return make


def error(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


# what is there


def test_a_plugin_with_methods_missing_says_which() -> None:
    from personalize.generators import Generator

    registry.register("half")(type("Half", (Generator,), {"prepare": lambda *_: None}))
    with pytest.raises(ConfigError, match=r"^generator 'half' is not finished: write generate\.$"):
        registry.create("generators", "half")


def test_every_built_in_loads_and_is_of_its_kind() -> None:
    groups = PROJECT["project"]["entry-points"]
    assert {g.removeprefix("personalize.") for g in groups} == set(registry.KINDS)
    for group, points in groups.items():
        kind = group.removeprefix("personalize.")
        found = registry.available(kind)
        assert set(points) <= set(found)
        for name in points:
            cls = registry.load(kind, name)
            assert registry._kind_of(cls) == kind
            assert found[name].summary, f"{name} needs a docstring"
            assert found[name].summary == (cls.__doc__ or sys.modules[cls.__module__].__doc__ or "").strip().split("\n")[0]


def test_every_package_is_installed() -> None:
    """A folder of code that pyproject.toml does not name would be missing from the wheel."""
    places = {"personalize": "personalize", "plugins": "personalize_plugins", "recipes": "personalize.recipes"}
    on_disk = set()
    for folder, package in places.items():
        for path in (ROOT / folder).rglob("__init__.py"):
            on_disk.add(".".join([package, *path.parent.relative_to(ROOT / folder).parts]))
    assert on_disk == set(PROJECT["tool"]["setuptools"]["packages"])


def test_listing_imports_neither_torch_nor_plugins() -> None:
    code = """
    import sys
    from personalize import registry
    for kind in registry.KINDS:
        assert registry.available(kind), kind
    heavy = [m for m in sys.modules if m.split(".")[0] in ("torch", "lightning", "numpy", "omegaconf", "mediapipe", "personalize_plugins")]
    assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_listing_a_third_party_does_not_import_it(install: Callable[..., None]) -> None:
    body = '"""Top."""\nraise RuntimeError("imported")\n'
    module = 'raise RuntimeError("imported")\nclass T:\n    """From elsewhere.\n\n    More."""\n'
    install(
        "elsewhere", {"trackers": "far = elsewhere_pkg.sub.far:T"}, {"elsewhere_pkg/__init__.py": body, "elsewhere_pkg/sub/far.py": module}
    )
    info = registry.available("trackers")["far"]
    assert info == registry.PluginInfo("far", "trackers", "elsewhere 1.2", "elsewhere_pkg.sub.far:T", "From elsewhere.")


def test_summary_falls_back_to_the_module_then_to_nothing(install: Callable[..., None]) -> None:
    files = {"plain_a.py": '"""Of the module."""\nclass T: pass\n', "plain_b.py": "class T: pass\n", "plain_c.py": "class T(:\n"}
    install("plain", {"adapters": "a = plain_a:T\nb = plain_b:T\nc = plain_c:T\nd = not_there:T"}, files)
    found = registry.available("adapters")
    assert [found[name].summary for name in "abcd"] == ["Of the module.", "", "", ""]


def test_third_party_loads_and_takes_options(install: Callable[..., None]) -> None:
    install("good", {"trackers": "good = good_mod:Mine"}, {"good_mod.py": PLUGIN.format(name="good")})
    tracker = registry.create("trackers", "good", {"depth": 5})
    assert isinstance(tracker, Tracker)
    assert (tracker.depth, tracker.mode) == (5, "a")  # type: ignore[attr-defined]
    # the module also says @register, of the very class: no clash
    assert registry.available("trackers")["good"].source == "good 1.2"


# what goes wrong


def test_unknown_name() -> None:
    text = error(lambda: registry.load("trackers", "mediapip"))
    assert text == "unknown tracker 'mediapip'. Did you mean 'mediapipe'? There is: face_alignment, mediapipe."


def test_unknown_kind() -> None:
    text = error(lambda: registry.available("traker"))
    start = "unknown kind of plug-in 'traker'. Did you mean 'trackers'? "
    assert text == start + "There is: adapters, buffers, generators, regularizers, trackers."


def test_singular_kind_is_understood() -> None:
    assert registry.available("Tracker") == registry.available("trackers")


def test_import_that_fails(install: Callable[..., None]) -> None:
    install("broken", {"trackers": "broken = broken_mod:T"}, {"broken_mod.py": "import surely_not_installed\n"})
    assert "broken" in registry.available("trackers")
    assert error(lambda: registry.load("trackers", "broken")) == (
        "tracker 'broken' of broken 1.2 cannot be imported (broken_mod:T): ModuleNotFoundError: "
        "No module named 'surely_not_installed'. Install what it needs, or uninstall it."
    )


def test_class_that_is_missing(install: Callable[..., None]) -> None:
    install("lacking", {"trackers": "lacking = lacking_mod:T"}, {"lacking_mod.py": ""})
    text = error(lambda: registry.load("trackers", "lacking"))
    assert text.startswith("tracker 'lacking' of lacking 1.2 cannot be imported (lacking_mod:T): AttributeError: ")


@pytest.mark.parametrize("body", ["class T: pass", "T = 3", "from personalize.generators import Generator as T"])
def test_wrong_base(install: Callable[..., None], body: str, request: pytest.FixtureRequest) -> None:
    module = f"wrong_{abs(hash(body))}"
    install("wrong", {"trackers": f"wrong = {module}:T"}, {f"{module}.py": body})
    assert error(lambda: registry.load("trackers", "wrong")) == (
        f"tracker 'wrong' of wrong 1.2 is no tracker: {module}:T does not derive from personalize.faces.Tracker."
    )


def test_same_name_from_two_packages(install: Callable[..., None]) -> None:
    for n in ("one", "two"):
        install(n, {"trackers": f"same = {n}_mod:Mine"}, {f"{n}_mod.py": "class Mine: pass"})
    assert set(registry.available("trackers")["same"].source.split(", ")) == {"one 1.2", "two 1.2"}
    text = error(lambda: registry.load("trackers", "same"))
    assert re.fullmatch(r"tracker 'same' is offered twice: by (one 1.2 and two|two 1.2 and one) 1.2. Uninstall one of them.", text)


def test_options_are_checked(install: Callable[..., None]) -> None:
    install("opt", {"trackers": "opt = opt_mod:Mine"}, {"opt_mod.py": PLUGIN.format(name="opt")})
    unknown = error(lambda: registry.create("trackers", "opt", {"dept": 1}))
    assert unknown == "unknown opt option 'dept'. Did you mean 'depth'? There is: depth, mode."
    assert error(lambda: registry.create("trackers", "opt", {"depth": "deep"})) == "tracker 'opt': depth must be int, not 'deep'."
    assert error(lambda: registry.create("trackers", "opt", {"depth": 10})) == "tracker 'opt': depth is above 9; too deep."


# @register


def test_register_in_a_notebook() -> None:
    def cell() -> type:
        @registry.register("note")
        class Note(Tracker):
            """In a notebook."""

        return Note

    first, second = cell(), cell()  # running a cell twice is normal
    assert first is not second
    assert registry.load("trackers", "note") is second
    info = registry.available("trackers")["note"]
    assert (info.source, info.summary) == ("registered", "In a notebook.")


def test_register_refuses_a_taken_name() -> None:
    text = error(lambda: registry.register("mediapipe")(type("Other", (Tracker,), {})))
    assert text == (
        "tracker 'mediapipe' is already offered by personalize_plugins.trackers.mediapipe:MediaPipeTracker. Give Other another name."
    )


def test_register_refuses_what_is_no_plugin() -> None:
    text = error(lambda: registry.register("x")(type("Stranger", (), {})))
    assert text.startswith("plug-in 'x': Stranger is not a plug-in class. Derive it from one of personalize.faces.Tracker, ")


# --plugins file.py


def test_file(tmp_path: Path) -> None:
    file = tmp_path / "loose.py"
    file.write_text(PLUGIN.format(name="loose"))
    registry.load_file(file)
    registry.load_file(file)  # once
    assert registry.create("trackers", "loose").depth == 3
    info = registry.available("trackers")["loose"]
    assert (info.source, info.summary) == (str(file), "Finds nothing.")
    assert os.environ[registry.FILES_VARIABLE] == str(file)


def test_relaunched_process_reads_the_environment(tmp_path: Path) -> None:
    files = []
    for name in ("first", "second"):
        files.append(tmp_path / f"{name}.py")
        files[-1].write_text(PLUGIN.format(name=name))
        registry.load_file(files[-1])
    assert os.environ[registry.FILES_VARIABLE] == os.pathsep.join(map(str, files))
    # as Lightning does for the other ranks: a new process with our environment
    code = "from personalize.registry import create as c; print(c('trackers', 'first').depth, c('trackers', 'second', {'depth': 4}).depth)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["3", "4"]


def test_file_that_is_missing(tmp_path: Path) -> None:
    assert error(lambda: registry.load_file(tmp_path / "no.py")) == f"no such plug-in file: {tmp_path / 'no.py'}"


def test_file_that_fails_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "fails.py"
    file.write_text(PLUGIN.format(name="half") + "\n1 / 0\n")
    assert error(lambda: registry.load_file(file)) == f"plug-in file {file} fails: ZeroDivisionError: division by zero"
    assert "half" not in registry.available("trackers")
    assert registry.FILES_VARIABLE not in os.environ


def test_file_that_registers_nothing(tmp_path: Path) -> None:
    file = tmp_path / "empty.py"
    file.write_text("x = 1\n")
    assert error(lambda: registry.load_file(file)) == (
        f'plug-in file {file} registers no plug-in. Put @register("name") from personalize.registry above its class.'
    )


def test_file_with_a_taken_name(tmp_path: Path) -> None:
    file = tmp_path / "taken.py"
    file.write_text(PLUGIN.format(name="mediapipe"))
    assert error(lambda: registry.load_file(file)).startswith(f"plug-in file {file}: tracker 'mediapipe' is already offered by ")


# plugins show


def test_show_is_a_piece_of_a_recipe(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    file = tmp_path / "shown.py"
    file.write_text(PLUGIN.format(name="shown"))
    registry.load_file(file)
    text = registry.describe(registry.available("trackers")["shown"])
    assert "Finds nothing.\n\nMore." in text
    snippet = text[text.index("tracker:\n") :]
    assert OmegaConf.to_container(OmegaConf.create(snippet)) == {"tracker": {"name": "shown", "options": {"depth": 3, "mode": "a"}}}
    assert "depth: 3  # int" in snippet


def test_show_of_every_built_in() -> None:
    from omegaconf import OmegaConf

    for kind in registry.KINDS:
        for info in registry.available(kind).values():
            text = registry.describe(info)
            section = "regularizers:\n" if kind == "regularizers" else f"{registry.singular(kind)}:\n"
            OmegaConf.create(text[text.rindex(section) :])
