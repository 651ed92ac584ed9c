"""Recipes: what a run does, as YAML over defaults, every key checked.

A plug-in's options are the arguments of its ``__init__``; Trainer flags are those of ``lightning.Trainer``; every other key is one that
the kind's reference recipe has (``default.yaml`` for ``kind: fit``, ``KIND.yaml`` for the others), which is also the one home of the
defaults. Later layers win: reference, then the chain of ``base_recipe``, the recipe itself, then ``key=value`` overrides.

>>> load_recipe("default", ["optim.lr=1e-2", "buffer.name=reservoir"])["optim"]["lr"]
0.01
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Optional, Union

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from . import registry
from .errors import ConfigError, unknown
from .ranks import several
from .ui import one_line

REFERENCES = {"fit": "default", "base": "base", "generator": "generator"}
"""Kind of recipe -> the shipped recipe that says which keys there are."""

PLUGIN_SECTIONS = {"tracker": "trackers", "generator": "generators", "buffer": "buffers", "adapter": "adapters"}
"""Recipe sections of the form {name, options}, and the kind of plug-in that they name."""

_CHOICES = {"tracking.wandb": ("offline", "online", "off")}
_AT_LEAST = {
    "seed": 0,
    "rounds": 1,
    "generator.samples": 0,
    "generator.turned": 0,
    "optim.lr": 0,
    "optim.weight_decay": 0,
    "optim.batch_size": 1,
    "optim.max_steps": 0,
    "gate.open": 0,
    "gate.trust": 0,
    "profile.max_mb": 0,
    "smoothing.people": 0,
    "smoothing.seconds": 1,
    "optim.people": 1,
    "optim.each": 1,
    "optim.epochs": 1,
    "top.epochs": 0,
    "top.views": 1,
    "top.lr": 0,
    "top.people": 1,
    "world.train_people": 1,
    "world.validation_people": 1,
    "world.pictures": 2,
    "world.size": 32,
    "world.workers": 1,
    "model.width": 1,
    "model.hidden": 1,
    "model.said": 1,
}
_AT_MOST = {
    "seed": 2**24,  # seeds of rounds and pictures are made of it
    "generator.turned": 1,
}

_PRIMITIVES = (int, float, bool, str, bytes)
REQUIRED: Any = inspect.Parameter.empty
"""The default of an option that has none."""


@dataclass(frozen=True)
class Field:
    """One option. kind: a type that OmegaConf checks; text: the annotation as written; choices: what it must be among, or None."""

    kind: Any = Any
    default: Any = REQUIRED
    text: str = ""
    choices: tuple[Any, ...] | None = None
    is_tuple: bool = False

    def type_text(self) -> str:
        """The type for people: 'int', 'one of a, b'."""
        return f"one of {', '.join(map(str, self.choices))}" if self.choices else self.text or "anything"

    def default_text(self) -> str:
        """The default as YAML on one line; '???' where the option must be given."""
        if self.default is REQUIRED:
            return "???"
        try:
            plain = _plain(self.default)
            return str(plain) if isinstance(plain, (list, dict)) else OmegaConf.to_yaml(OmegaConf.create({"v": plain}))[3:].strip()
        except OmegaConfBaseException:
            return repr(self.default)


# --- options from signatures ----------------------------------------------------------------------------------------------------------


def signature_fields(cls: type) -> tuple[dict[str, Field], bool]:
    """The options of a class: the parameters of its ``__init__``, and those of its bases' while these are passed on as ``**kwargs``.

    Returns the fields by name and whether further keys are taken (``**kwargs`` all the way up).
    """
    fields: dict[str, Field] = {}
    for owner in cls.__mro__:
        init = vars(owner).get("__init__")
        if init is None:
            continue
        if owner is object:
            break
        parameters = list(inspect.signature(init).parameters.values())[1:]
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in fields:
                fields[p.name] = _field(_annotation(init, p), p.default)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return fields, False
    # Reached through **kwargs all the way: keys that no signature names. A class without any __init__ takes none.
    return fields, cls.__init__ is not object.__init__  # type: ignore[misc]


def _annotation(function: Any, parameter: inspect.Parameter) -> Any:
    """The parameter's annotation, evaluated; Any where it is missing or cannot be (a name imported for type checking only)."""
    raw = parameter.annotation
    if raw is parameter.empty:
        return Any
    if not isinstance(raw, str):
        return raw
    holder = types.SimpleNamespace(__annotations__={parameter.name: raw}, __globals__=getattr(function, "__globals__", {}))
    try:
        return typing.get_type_hints(holder, globalns=holder.__globals__)[parameter.name]
    except (NameError, TypeError, AttributeError, SyntaxError):
        return Any


def _field(annotation: Any, default: Any = REQUIRED) -> Field:
    kind, choices = _simplify(annotation)
    if default is None and kind is not Any:
        kind = Optional[kind]  # noqa: UP045 -- kind is a value here
    text = "" if annotation is Any else inspect.formatannotation(annotation).replace("typing.", "")
    origin = typing.get_origin(annotation)
    return Field(kind, default, text, choices, is_tuple=annotation is tuple or origin is tuple)


def _simplify(annotation: Any) -> tuple[Any, tuple[Any, ...] | None]:
    """The annotation as OmegaConf knows it (Any where it does not), and the choices of a Literal, which it rejects."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _simplify(arguments[0])
    if origin is Literal:
        kinds = list(dict.fromkeys(type(value) for value in arguments if value is not None))
        kind = kinds[0] if len(kinds) == 1 else Union[tuple(kinds)]  # noqa: UP007
        return (Optional[kind] if None in arguments else kind), tuple(arguments)  # noqa: UP045
    if origin in (Union, types.UnionType):
        return _simplify_union(arguments)
    if annotation in (list, dict, tuple):
        return (list[Any] if annotation is not dict else dict[str, Any]), None
    if origin in (list, Sequence, tuple):
        inner = [_simplify(a)[0] for a in arguments if a is not Ellipsis]
        same = inner[0] if inner and all(a == inner[0] for a in inner) and inner[0] in _PRIMITIVES else Any
        return list[same], None  # type: ignore[valid-type]
    if origin in (dict, Mapping):
        key, value = (_simplify(a)[0] for a in arguments)
        return dict[key if key in (int, str) else Any, value if value in _PRIMITIVES else Any], None  # type: ignore[misc]
    if annotation in _PRIMITIVES or annotation is Path or (inspect.isclass(annotation) and issubclass(annotation, Enum)):
        return annotation, None
    return Any, None


def _simplify_union(arguments: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...] | None]:
    members = [_simplify(a) for a in arguments if a is not type(None)]
    optional = len(members) < len(arguments)
    # A recipe cannot hold a Logger or a Callback: where a union offers plainer types, these are what is left.
    plain = [(kind, choices) for kind, choices in members if kind is not Any]
    if not plain:
        return Any, None
    kinds: list[Any] = []
    for kind, _ in plain:
        for part in typing.get_args(kind) if typing.get_origin(kind) is Union else (kind,):
            if part not in kinds:
                kinds.append(part)
    if len(kinds) > 1 and not all(kind in _PRIMITIVES for kind in kinds):
        return Any, None
    choices: tuple[Any, ...] | None = None
    if all(found is not None for _, found in plain):
        choices = tuple(value for _, found in plain for value in found or ())
        choices += (None,) if optional else ()
    union = Union[tuple(kinds)] if len(kinds) > 1 else kinds[0]  # noqa: UP007
    return (Optional[union] if optional else union), choices  # noqa: UP045


def fill(
    fields: Mapping[str, Field],
    given: Mapping[str, Any],
    where: str,
    key_kind: str,
    *,
    is_open: bool = False,
    complete: bool = True,
) -> dict[str, Any]:
    """Check options and fill in defaults.

    Args:
        fields: what there is. given: what was given. is_open: keys without a field are passed through.
        where: starts the message of a wrong value, "generator 'mesh_warp'"; key_kind: of an unknown key, "mesh_warp option".
        complete: add the defaults of what was not given, and demand what has none.

    Raises ConfigError in one line: unknown key, wrong type or choice, missing option.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: options must be given as key: value, not {given!r}.")
    for key in given:
        if key not in fields and not is_open:
            raise ConfigError(unknown(key_kind, str(key), fields))
    checked: dict[str, Any] = {}
    for key, field in fields.items():
        if key in given:
            checked[key] = _check(field, given[key], f"{where}: {key}")
        elif complete and field.default is REQUIRED:
            raise ConfigError(f"{where} needs the option '{key}' ({field.type_text()}).")
        elif complete:
            checked[key] = field.default
    checked.update({str(key): value for key, value in given.items() if key not in fields})
    return checked


def _check(field: Field, value: Any, what: str) -> Any:
    if field.choices is not None:
        # YAML 1.1 reads a bare off as False.
        value = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) and value not in field.choices else value
        if value not in field.choices:
            close = difflib.get_close_matches(str(value), [str(c) for c in field.choices], n=1)
            meant = f" Did you mean '{close[0]}'?" if close else ""
            raise ConfigError(f"{what} must be {field.type_text()}, not {value!r}.{meant}")
        return value
    holder = dataclasses.make_dataclass("Options", [("value", field.kind, dataclasses.field(default=MISSING))])
    try:
        config = OmegaConf.structured(holder)
        OmegaConf.update(config, "value", list(value) if isinstance(value, tuple) else value)
        result = OmegaConf.to_container(config, resolve=True)["value"]  # type: ignore[call-overload,index]
    except OmegaConfBaseException as problem:
        raise ConfigError(f"{what} must be {field.type_text()}, not {value!r}.") from problem
    return tuple(result) if field.is_tuple and isinstance(result, list) else result


# --- recipes --------------------------------------------------------------------------------------------------------------------------


def recipes() -> dict[str, str]:
    """The shipped recipes: name -> what the first comment line says."""
    found = {}
    for file in sorted(resources.files("personalize.recipes").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            first = file.read_text(encoding="utf-8").split("\n", 1)[0]
            found[file.name.removesuffix(".yaml")] = first.lstrip("# ").rstrip() if first.startswith("#") else ""
    return found


def digest(content: Any) -> str:
    """Twelve hex digits that name what something was made by: the same content, whatever the order of its keys, the same name."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def load_recipe(name_or_path: str | Path = "default", overrides: Iterable[str] = (), kind: str | None = None) -> dict[str, Any]:
    """The recipe as a plain dict: inherited, overridden, checked, resolved, the plug-ins' options complete.

    Args:
        name_or_path: a shipped recipe's name or a YAML file. ``base_recipe: NAME_OR_PATH`` in it names the one that it changes; without
            it, keys that it leaves out come from the reference. A file that has ``regularizers`` says which there are: none is inherited.
        overrides: ``key=value``, values in YAML: ``optim.lr=1e-3``, ``buffer.name=reservoir``, ``regularizers.ewc.weight=30``,
            ``regularizers.lwf=null`` (without it), ``regularizers=[ewc]`` (only it). A section that gets another plug-in starts from that
            plug-in's own options.
        kind: what the recipe must be for: fit, base or generator; None: anything.

    Raises ConfigError in one line, with the nearest known name: unknown recipe, key, plug-in or option; wrong type; malformed YAML; a
    recipe of another kind.
    """
    resolved, reference = _resolved(name_or_path, overrides)
    found = reference["kind"]
    if kind is not None and found != kind:
        raise ConfigError(
            f"recipe {name_or_path} is of kind '{found}', and this command takes one of kind '{kind}', as {REFERENCES[kind]} is."
        )
    plain = _plain(_checked(resolved, reference))
    if plain["kind"] != found:
        raise ConfigError(f"recipe {name_or_path} is of kind '{found}', which an override cannot change.")
    assert isinstance(plain, dict)
    return plain


def changes(recipe: Mapping[str, Any]) -> list[str]:
    """The overrides, ``key=value``, that make this whole recipe of the shipped one of its kind, in its order."""

    def differ(path: str, value: Any, model: Any) -> list[str]:
        if isinstance(value, Mapping) and isinstance(model, Mapping):
            if value.get("name") != model.get("name"):  # another plug-in: the options are not those of the reference
                model = {**model, "options": {}}
            lines = [line for key in value for line in differ(f"{path}.{key}".lstrip("."), value[key], model.get(key))]
            return lines + [f"{path}.{key}=null" for key in model if key not in value]
        return [] if value == model else [f"{path}={json.dumps(value)}"]

    return differ("", recipe, load_recipe(REFERENCES[recipe["kind"]]))


def check_keys(name_or_path: str | Path, overrides: Iterable[str], kind: str) -> None:
    """Raise the ConfigError that :func:`load_recipe` would for a key that no plug-in has to say anything about, without their libraries:
    whoever mistypes one is told at once. Of a recipe of another kind it says nothing."""
    resolved, reference = _resolved(name_or_path, overrides)
    if reference["kind"] == kind:
        _checked_plain(resolved, reference)


def _resolved(name_or_path: str | Path, overrides: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recipe inherited, overridden and resolved, not yet checked; and the reference of its kind."""
    layers = _chain(name_or_path)
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, layer, is_file=True)
    merged = _merge(merged, parse_overrides(overrides), is_file=False)
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(merged), resolve=True)
    except OmegaConfBaseException as problem:
        raise ConfigError(f"recipe {name_or_path}: {one_line(problem)}") from problem
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}, layers[0]


def given_options(name_or_path: str | Path, overrides: Iterable[str], section: str) -> dict[str, Any]:
    """The options of a section's plug-in that recipe and overrides name, before its defaults join them."""
    return dict(_resolved(name_or_path, overrides)[0][section].get("options") or {})


def one_device(recipe: Mapping[str, Any], verb: str) -> None:
    """Raise ConfigError where a recipe asks for several devices and the command runs many fits side by side or one of several steps."""
    if several(recipe["trainer"]):
        raise ConfigError(f"{verb} trains on one device: leave trainer.devices at 1. personalize fit uses several.")


def save_recipe(recipe: Mapping[str, Any], path: str | Path) -> None:
    """Write a resolved recipe as YAML; :func:`load_recipe` reads it back to the same."""
    Path(path).write_text(OmegaConf.to_yaml(OmegaConf.create(dict(recipe))), encoding="utf-8")


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """``["a.b=3"]`` to ``{"a": {"b": 3}}``. Raises ConfigError for what is not of that form."""
    tree: dict[str, Any] = {}
    chosen = False
    for text in overrides:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"'{text}' is not of the form key=value, as in optim.lr=1e-3.")
        try:
            parsed = OmegaConf.to_container(OmegaConf.create(f"value: {value.strip()}"), resolve=False)
        except (YAMLError, OmegaConfBaseException) as problem:
            raise ConfigError(f"the value of '{text}' is not YAML: {_yaml_problem(problem)}") from problem
        assert isinstance(parsed, dict)
        if keys == ["regularizers"] and not isinstance(parsed["value"], dict):
            # Exactly these, with what is said of them before and after.
            chosen, said = True, tree.get("regularizers", {})
            tree["regularizers"] = {name: {**(said.get(name) or {}), **given} for name, given in _listed(parsed["value"]).items()}
            continue
        branch = tree
        for key in keys[:-1]:
            below = branch.setdefault(key, {})
            if not isinstance(below, dict):  # buffer=reservoir buffer.options.capacity=9
                below = branch[key] = {"name": below}
            branch = below
        new, old = parsed["value"], branch.get(keys[-1])
        if isinstance(old, dict) and isinstance(new, str):
            new = {"name": new}
        branch[keys[-1]] = {**old, **new} if isinstance(old, dict) and isinstance(new, dict) else new
    if chosen:
        tree["regularizers"] = [{name: options} for name, options in tree["regularizers"].items() if options is not None]
    return tree


def _listed(value: Any) -> dict[str, dict[str, Any]]:
    """Regularizers as a list or a text names them, with the options that stand beside them."""
    if isinstance(value, str):
        value = [name for name in value.replace(",", " ").split() if name != "none"]
    if not isinstance(value, list):
        value = [] if value is None else [value]
    pairs = [next(iter(item.items())) if isinstance(item, dict) and len(item) == 1 else (str(item), {}) for item in value]
    return {str(name): options if isinstance(options, dict) else {} for name, options in pairs}


def _yaml_problem(problem: Exception) -> str:
    """What PyYAML found, without its excerpts, with the line."""
    what, mark = getattr(problem, "problem", None), getattr(problem, "problem_mark", None)
    if what is None:
        return one_line(problem)
    return f"line {mark.line + 1}: {what}" if mark is not None else str(what)


def _read(name_or_path: str | Path, beside: Path | None = None) -> tuple[dict[str, Any], Path | None, str]:
    """A recipe file's own keys, its path where it is a file, and its name for messages."""
    text = str(name_or_path)
    path = Path(text).expanduser()
    shipped = resources.files("personalize.recipes") / f"{text}.yaml"
    if "/" not in text and path.suffix not in (".yaml", ".yml") and shipped.is_file():
        source, file = shipped.read_text(encoding="utf-8"), None
    else:
        if beside is not None and not path.is_absolute():
            path = beside / path
        if not path.is_file():
            if "/" in text or path.suffix in (".yaml", ".yml"):
                raise ConfigError(f"no such recipe file: {text}")
            raise ConfigError(unknown("recipe", text, recipes()))
        try:
            source, file = path.read_text(encoding="utf-8"), path.resolve()
        except (OSError, UnicodeDecodeError) as problem:
            raise ConfigError(f"recipe {text} cannot be read: {one_line(problem)}") from problem
    try:
        content = OmegaConf.to_container(OmegaConf.create(source), resolve=False)
    except (YAMLError, OmegaConfBaseException) as problem:
        raise ConfigError(f"recipe {text} is not valid YAML: {_yaml_problem(problem)}") from problem
    if not isinstance(content, dict) or (isinstance(content, dict) and len(content) == 1 and content.get(source.strip(), 0) is None):
        raise ConfigError(f"recipe {text} must be a mapping of keys to values.")
    return {str(key): value for key, value in content.items()}, file, text


def _chain(name_or_path: str | Path) -> list[dict[str, Any]]:
    """The recipe's layers, the reference of its kind first."""
    layers: list[dict[str, Any]] = []
    seen: list[str] = []
    current: str | Path | None = name_or_path
    beside: Path | None = None
    kind: str | None = None
    while current is not None:
        content, file, name = _read(current, beside)
        identity = str(file) if file else name
        if identity in seen:
            raise ConfigError(f"recipe {name_or_path}: base_recipe leads back to {name}.")
        seen.append(identity)
        mine = content.get("kind", kind)
        if mine not in (*REFERENCES, None):
            raise ConfigError(unknown("kind of recipe", str(mine), REFERENCES))
        if kind is not None and mine != kind:
            raise ConfigError(f"recipe {name_or_path} is of kind '{kind}', but the recipe {name} that it changes is of kind '{mine}'.")
        kind = mine
        current = content.pop("base_recipe", None)
        beside = file.parent if file else None
        layers.append(content)
    reference = REFERENCES[kind or "fit"]
    if seen[-1] != reference:
        layers.append(_read(reference)[0])
    return layers[::-1]


def _merge(parent: dict[str, Any], layer: Mapping[str, Any], is_file: bool) -> dict[str, Any]:
    merged = dict(parent)
    for key, value in layer.items():
        old = merged.get(key)
        if key == "regularizers":
            merged[key] = _merge_regularizers(old or {}, value, is_file)
        elif key in PLUGIN_SECTIONS and isinstance(old, dict) and "options" in old:
            given = {"name": value} if isinstance(value, str) else value
            if isinstance(given, dict):
                start = {**old, "options": {}} if given.get("name", old.get("name")) != old.get("name") else old
                merged[key] = _deep(start, given)
            else:
                merged[key] = value
        else:
            merged[key] = _deep(old, value)
    return merged


def _merge_regularizers(old: dict[str, Any], value: Any, is_file: bool) -> Any:
    if isinstance(value, (str, list)):
        return {name: _deep(old.get(name, {}), options) for name, options in _listed(value).items()}
    if value is None or value == {}:
        return {}
    if not isinstance(value, dict):
        return value
    if is_file:
        return {name: {} if options is None else options for name, options in value.items()}
    merged = _deep(old, value)
    return {name: options for name, options in merged.items() if options is not None}


def _deep(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, Mapping)):
        return new
    return {**old, **{key: _deep(old.get(key), value) for key, value in new.items()}}


def _checked(recipe: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """The recipe with every key and value checked against its reference, plug-ins and the Trainer."""
    plain = _checked_plain(recipe, reference)
    result: dict[str, Any] = {}
    for key, model in reference.items():
        value = recipe.get(key)
        if key in plain:
            result[key] = plain[key]
        elif key == "regularizers":
            result[key] = _checked_regularizers(value)
        elif key == "trainer":
            result[key] = fill(_trainer_fields(), _section(key, value), "trainer", "trainer key", complete=False)
        else:
            result[key] = _checked_plugin(key, PLUGIN_SECTIONS[key], value, model)
    return result


def _checked_plain(recipe: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """What of the recipe is no plug-in's and not the Trainer's, checked against its reference."""
    for key in recipe:
        if key not in reference:
            raise ConfigError(_unknown_top(key, reference))

    def others(key: str, model: Any) -> bool:
        return key in ("regularizers", "trainer") or (key in PLUGIN_SECTIONS and isinstance(model, dict) and "options" in model)

    return {key: _like(model, recipe.get(key), key) for key, model in reference.items() if not others(key, model)}


def _unknown_top(key: str, reference: dict[str, Any]) -> str:
    homes = [f"{section}.{key}" for section, model in reference.items() if isinstance(model, dict) and key in model]
    message = unknown("recipe key", key, reference)
    if not homes:
        return message
    return f"unknown recipe key '{key}'. Did you mean '{homes[0]}'? There is: {', '.join(sorted(reference))}."


def _section(path: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"recipe key '{path}' is a section of keys, not {value!r}.")
    return value


def _like(model: Any, value: Any, path: str) -> Any:
    """The value, checked to have the type that the reference's has; sections recursively."""
    if isinstance(model, dict):
        for key in _section(path, value):
            if key not in model:
                raise ConfigError(unknown(f"{path} key", str(key), model))
        return {key: _like(below, _section(path, value).get(key, below), f"{path}.{key}") for key, below in model.items()}
    choices = _CHOICES.get(path)
    # What the reference leaves empty (null) has no type to go by.
    kind: Any = Any if model is None else list[Any] if isinstance(model, list) else type(model)
    name = "anything" if model is None else "a list" if isinstance(model, list) else type(model).__name__
    checked = _check(Field(kind, model, name, choices), value, f"recipe key '{path}'")
    least, most = _AT_LEAST.get(path), _AT_MOST.get(path)
    if isinstance(checked, float) and not math.isfinite(checked):
        raise ConfigError(f"recipe key '{path}' must be a finite number, not {checked!r}.")
    if least is not None and isinstance(checked, (int, float)) and not checked >= least:
        raise ConfigError(f"recipe key '{path}' must be at least {least}, not {checked!r}.")
    if most is not None and isinstance(checked, (int, float)) and checked > most:
        raise ConfigError(f"recipe key '{path}' must be at most {most}, not {checked!r}.")
    return checked


def _checked_plugin(section: str, kind: str, value: Any, model: dict[str, Any]) -> dict[str, Any]:
    given = _section(section, value)
    rest = {key: below for key, below in model.items() if key != "options"}
    checked = _like(rest, {key: below for key, below in given.items() if key != "options"}, section)
    registry.check_name(kind, checked["name"])
    return {**checked, "options": registry.check_options(kind, checked["name"], _section(f"{section}.options", given.get("options")))}


def _checked_regularizers(value: Any) -> dict[str, Any]:
    result = {}
    for name, options in _section("regularizers", value).items():
        registry.check_name("regularizers", name)
        if not isinstance(options, dict):
            raise ConfigError(f"recipe key 'regularizers.{name}' is a section, as in regularizers.{name}.weight=1.0, not {options!r}.")
        result[name] = registry.check_options("regularizers", name, options)
    return result


def _trainer_fields() -> dict[str, Field]:
    from lightning import Trainer

    return signature_fields(Trainer)[0]


def _plain(value: Any) -> Any:
    """The value in what YAML and JSON hold: tuples as lists, paths as text, enums by name."""
    if isinstance(value, Mapping):
        return {key: _plain(below) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(below) for below in value]
    if isinstance(value, Enum):
        return value.name
    return str(value) if isinstance(value, Path) else value
