"""Plug-ins: where they are found, how they are loaded, and how their options are checked.

Built-ins and third parties use the same door, the entry-point groups ``personalize.<kind>``. In a notebook ``@register("name")`` does; a
loose file is named with ``--plugins my_file.py`` (:func:`load_file`). Listing reads metadata only: neither the plug-ins' modules nor torch
are imported.

>>> sorted(available("trackers"))[:2]
['face_alignment', 'mediapipe']
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError, PersonalizeError, unknown
from .ui import one_line

BASES: dict[str, tuple[str, str]] = {
    "trackers": ("personalize.faces", "Tracker"),
    "generators": ("personalize.generators", "Generator"),
    "buffers": ("personalize.buffers", "ReplayBuffer"),
    "regularizers": ("personalize.regularizers", "Regularizer"),
    "adapters": ("personalize.adapters", "Adapter"),
}
"""Kind of plug-in -> module and class that it derives from."""
KINDS: tuple[str, ...] = tuple(BASES)
FILES_VARIABLE = "PERSONALIZE_PLUGINS"
"""Environment variable with loose plug-in files, separated as in PATH: processes that Lightning relaunches for DDP find them there."""

C = TypeVar("C", bound=type)


@dataclass(frozen=True)
class PluginInfo:
    """One plug-in, as listed. source: distribution and version, file, or 'registered'; target: module:class; summary: one line or ''."""

    name: str
    kind: str
    source: str
    target: str
    summary: str


@dataclass(frozen=True)
class _Registered:
    cls: type
    source: str


_registered: dict[str, dict[str, _Registered]] = {kind: {} for kind in KINDS}
_files: dict[Path, str] = {}  # file -> its module's name
_loading: list[Path] = []  # the file being executed, for the source of what it registers


def singular(kind: str) -> str:
    """'trackers' -> 'tracker'."""
    return kind[:-1]


def parse_kind(text: str) -> str:
    """The kind in singular or plural spelling. Raises ConfigError for others."""
    kind = text.lower()
    kind = kind if kind in BASES else f"{kind}s"
    if kind not in BASES:
        raise ConfigError(unknown("kind of plug-in", text, KINDS))
    return kind


def register(name: str) -> Callable[[C], C]:
    """Class decorator: offer the class as plug-in ``name`` of the kind that its base class says.

    Raises ConfigError where the class derives from none of the base classes, or another plug-in of the kind has the name. Registering the
    same class again replaces it, so that a notebook cell can run twice.
    """

    def decorate(cls: C) -> C:
        kind = _kind_of(cls)
        if kind is None:
            bases = ", ".join(f"{module}.{base}" for module, base in BASES.values())
            raise ConfigError(f"plug-in '{name}': {_name(cls)} is not a plug-in class. Derive it from one of {bases}.")
        target, source = f"{cls.__module__}:{cls.__qualname__}", str(_loading[-1]) if _loading else "registered"
        for other in _targets(kind, name):
            if other != target:
                raise ConfigError(f"{singular(kind)} '{name}' is already offered by {other}. Give {_name(cls)} another name.")
        _registered[kind][name] = _Registered(cls, source)
        return cls

    return decorate


def _name(cls: object) -> str:
    return getattr(cls, "__qualname__", None) or repr(cls)


def _kind_of(cls: object) -> str | None:
    if not inspect.isclass(cls):
        return None
    for kind, (module, base) in BASES.items():
        # A class can only derive from a base whose module is imported, so nothing needs importing to find out.
        root = getattr(sys.modules.get(module), base, None)
        if root is not None and issubclass(cls, root):
            return kind
    return None


def _entry_points(kind: str) -> dict[str, list[importlib.metadata.EntryPoint]]:
    """Name -> its entry points, one for each different target (a checkout on the path may be listed twice)."""
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for point in importlib.metadata.entry_points(group=f"personalize.{kind}"):
        same = found.setdefault(point.name, [])
        if point.value not in {p.value for p in same}:
            same.append(point)
    return found


def _targets(kind: str, name: str) -> list[str]:
    """Who offers this name: 'module:class' of each."""
    targets = [point.value for point in _entry_points(kind).get(name, [])]
    if name in _registered[kind]:
        cls = _registered[kind][name].cls
        targets.append(f"{cls.__module__}:{cls.__qualname__}")
    return targets


def _distribution(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "unknown distribution"


def available(kind: str) -> dict[str, PluginInfo]:
    """All plug-ins of a kind by name, sorted. Imports neither their modules nor torch (loose files named by --plugins excepted)."""
    kind = parse_kind(kind)
    _load_environment()
    found: dict[str, PluginInfo] = {}
    for name, points in _entry_points(kind).items():
        source = ", ".join(_distribution(point) for point in points)
        target = ", ".join(point.value for point in points)
        found[name] = PluginInfo(name, kind, source, target, _summary(points[0].value))
    for name, entry in _registered[kind].items():
        if name not in found:
            summary = (entry.cls.__doc__ or "").strip().split("\n")[0]
            found[name] = PluginInfo(name, kind, entry.source, f"{entry.cls.__module__}:{entry.cls.__qualname__}", summary)
    return dict(sorted(found.items()))


def used(recipe: Mapping[str, Any]) -> dict[str, str]:
    """'kind/name' -> source of the plug-ins that a recipe of a fit names: distribution and version, or a file."""
    names = [(kind + "s", recipe[kind]["name"]) for kind in ("tracker", "generator", "buffer", "adapter")]
    names += [("regularizers", name) for name in recipe["regularizers"]]
    return {f"{kind}/{name}": available(kind)[name].source for kind, name in names}


def check_name(kind: str, name: str) -> None:
    """Raises ConfigError with a suggestion where there is no plug-in of that name. Imports nothing."""
    kind = parse_kind(kind)
    _load_environment()
    if not _targets(kind, name):
        raise ConfigError(unknown(singular(kind), str(name), available(kind)))


def load(kind: str, name: str) -> type:
    """The plug-in's class. Raises ConfigError: unknown, offered twice, fails to import, or not of the kind's base class."""
    kind = parse_kind(kind)
    check_name(kind, name)
    if name in _registered[kind]:
        return _registered[kind][name].cls
    points = _entry_points(kind)[name]
    if len(points) > 1:
        offers = " and ".join(_distribution(point) for point in points)
        raise ConfigError(f"{singular(kind)} '{name}' is offered twice: by {offers}. Uninstall one of them.")
    point = points[0]
    try:
        cls = point.load()
    except PersonalizeError:
        raise
    except Exception as problem:  # whatever a third party's module does while it is imported
        raise ConfigError(
            f"{singular(kind)} '{name}' of {_distribution(point)} cannot be imported ({point.value}): "
            f"{type(problem).__name__}: {one_line(problem)}. Install what it needs, or uninstall it."
        ) from problem
    module, base = BASES[kind]
    if not (inspect.isclass(cls) and issubclass(cls, getattr(importlib.import_module(module), base))):
        offer = f"{singular(kind)} '{name}' of {_distribution(point)}"
        raise ConfigError(f"{offer} is no {singular(kind)}: {point.value} does not derive from {module}.{base}.")
    return cls


def check_options(kind: str, name: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options with the defaults of the plug-in's signature filled in. Raises ConfigError for unknown keys and wrong types."""
    from .config import fill, signature_fields

    fields, is_open = signature_fields(load(kind, name))
    return fill(fields, options or {}, f"{singular(parse_kind(kind))} '{name}'", f"{name} option", is_open=is_open)


def create(kind: str, name: str, options: Mapping[str, Any] | None = None) -> Any:
    """An instance of the plug-in, its options checked against its signature. ValueErrors of its ``__init__`` come as ConfigErrors."""
    cls = load(kind, name)
    checked = check_options(kind, name, options)
    if inspect.isabstract(cls):
        missing = [n for n, member in inspect.getmembers(cls) if getattr(member, "__isabstractmethod__", False)]
        raise ConfigError(f"{singular(parse_kind(kind))} '{name}' is not finished: write {', '.join(missing)}.")
    try:
        return cls(**checked)
    except ValueError as problem:
        raise ConfigError(f"{singular(parse_kind(kind))} '{name}': {one_line(problem)}") from problem


def load_file(path: str | Path) -> None:
    """Execute a loose plug-in file, once, and pass it on to processes started from here.

    Raises ConfigError where it does not exist, fails, or registers nothing.
    """
    file = Path(path).expanduser().resolve()
    if file in _files:
        return
    if not file.is_file():
        raise ConfigError(f"no such plug-in file: {path}")
    name = f"personalize_file_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_loader(name, importlib.machinery.SourceFileLoader(name, str(file)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look the module up by name
    before = _count()
    _loading.append(file)
    try:
        spec.loader.exec_module(module)
    except BaseException as problem:
        _forget(name)
        if isinstance(problem, PersonalizeError):
            raise ConfigError(f"plug-in file {path}: {one_line(problem)}") from problem
        if isinstance(problem, Exception):
            raise ConfigError(f"plug-in file {path} fails: {type(problem).__name__}: {one_line(problem)}") from problem
        raise
    finally:
        _loading.pop()
    if _count() == before:
        _forget(name)
        raise ConfigError(f'plug-in file {path} registers no plug-in. Put @register("name") from personalize.registry above its class.')
    _files[file] = name
    passed_on = [p for p in os.environ.get(FILES_VARIABLE, "").split(os.pathsep) if p]
    if str(file) not in passed_on:
        os.environ[FILES_VARIABLE] = os.pathsep.join([*passed_on, str(file)])


def _count() -> int:
    return sum(map(len, _registered.values()))


def _forget(module: str) -> None:
    sys.modules.pop(module, None)
    for entries in _registered.values():
        for name in [n for n, entry in entries.items() if entry.cls.__module__ == module]:
            del entries[name]


def _load_environment() -> None:
    if _loading:  # a plug-in file that itself lists plug-ins
        return
    for path in os.environ.get(FILES_VARIABLE, "").split(os.pathsep):
        if path:
            load_file(path)


def _summary(target: str) -> str:
    """First line of the docstring of 'module:class', or of the module, read from its source without importing it; '' for none."""
    module, _, name = target.partition(":")
    file = _source_file(module)
    if file is None:
        return ""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    text = (ast.get_docstring(classes[0]) if classes else None) or ast.get_docstring(tree) or ""
    return text.strip().split("\n")[0]


def _source_file(module: str) -> Path | None:
    """The file of a module. Only the top package's finder is asked: finding a submodule would import its parents."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for root in spec.submodule_search_locations or ():
        for candidate in (Path(root, *rest).with_suffix(".py"), Path(root, *rest, "__init__.py")):
            if candidate.is_file():
                return candidate
    return None


def list_command(args: argparse.Namespace) -> None:
    """``personalize plugins list``: a table of all plug-ins, or of one kind."""
    from . import ui

    kinds = [parse_kind(args.kind)] if args.kind else KINDS
    rows = [(info.kind, info.name, info.source, info.summary) for kind in kinds for info in available(kind).values()]
    ui.table(None, ("kind", "name", "from", "what it does"), rows)


def show_command(args: argparse.Namespace) -> None:
    """``personalize plugins show NAME``: its options with types and defaults, as a piece of a recipe, and its docstring."""
    kind, _, name = args.name.rpartition("/")
    kinds = [parse_kind(kind)] if kind else list(KINDS)
    infos = [found[name] for k in kinds if name in (found := available(k))]
    if not infos:
        raise ConfigError(unknown("plug-in", name, [n for k in kinds for n in available(k)]))
    for i, info in enumerate(infos):
        print("\n" * bool(i) + describe(info))


def describe(info: PluginInfo) -> str:
    """The text of ``plugins show``."""
    from .config import signature_fields

    cls = load(info.kind, info.name)
    fields, _ = signature_fields(cls)
    lines = [f"{singular(info.kind)} {info.name}  ({info.target}, from {info.source})", ""]
    lines += (inspect.getdoc(cls) or "(no docstring)").splitlines() + [""]
    if info.kind == "regularizers":
        lines += ["regularizers:", f"  {info.name}:" if fields else f"  {info.name}: {{}}"]
        indent = "    "
    else:
        lines += [f"{singular(info.kind)}:", f"  name: {info.name}", "  options:" if fields else "  options: {}"]
        indent = "    "
    shown = [(f"{indent}{key}: {field.default_text()}", field.type_text()) for key, field in fields.items()]
    width = max((len(text) for text, _ in shown), default=0)
    lines += [f"{text:<{width}}  # {kind}" for text, kind in shown]
    return "\n".join(lines)
