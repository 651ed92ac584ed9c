"""Recipes: every shipped one loads; every wrong key, type and value is one line that says what was meant."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from personalize import config
from personalize.config import REFERENCES, Field, changes, fill, load_recipe, parse_overrides, recipes, save_recipe, signature_fields
from personalize.errors import ConfigError


def error(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def bad(*overrides: str) -> str:
    return error(lambda: load_recipe("default", list(overrides)))


# shipped recipes


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_shipped_recipe_loads_and_survives_saving(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert type(recipe) is dict
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert recipes()[name], "the first line is a comment that says what the recipe is for"


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        *((name, []) for name in sorted(recipes())),
        ("ganimation", ["optim.epochs=4", "generator.options.size=160"]),  # au_residual's values, which are not its own
        ("base", ["model.backbone_options.channels=[8,8,8,8]", "start=other", "trainer.devices=2"]),
        ("default", ["regularizers=[ewc]", "generator=au_residual", "buffer.options.capacity=64"]),
    ],
)
def test_changes_make_a_recipe_of_the_shipped_one(name: str, overrides: list[str]) -> None:
    recipe = load_recipe(name, overrides)
    assert load_recipe(REFERENCES[recipe["kind"]], changes(recipe)) == recipe
    assert name not in REFERENCES.values() or overrides or changes(recipe) == []


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_key_of_a_shipped_recipe_is_commented(name: str) -> None:
    """Each top-level key has a comment above it, beside it, or on a key inside it."""
    blocks: list[str] = []
    for line in (resources.files("personalize.recipes") / f"{name}.yaml").read_text().splitlines():
        if not blocks or (blocks[-1] and not blocks[-1].startswith("#") and line and line[0] != " ") or not line:
            blocks.append("")
        blocks[-1] += line + "\n" if line else ""
    for block in filter(None, blocks):
        assert "#" in block or block.startswith("base_recipe"), f"{name}.yaml lacks a comment: {block}"


def test_default_is_what_the_contract_says() -> None:
    recipe = load_recipe()
    keys = {"kind", "seed", "base", "neutral", "rounds", "tracker", "generator", "buffer", "regularizers", "adapter", "optim", "gate"}
    assert keys | {"trainer", "tracking"} <= set(recipe)
    assert recipe["buffer"]["options"]["capacity"] == 512
    # complete: the plug-in's own defaults are written out, so that a later release cannot change what a recipe.yaml means
    assert "seed" in recipe["buffer"]["options"]


def test_base_recipe_changes_only_what_it_names() -> None:
    default, fast = load_recipe("default"), load_recipe("fast")
    assert {k for k in default if default[k] != fast[k]} == {"generator", "optim"}
    assert fast["optim"] == {**default["optim"], "max_steps": 40}


def test_a_recipe_says_which_regularizers_there_are() -> None:
    assert list(load_recipe("head_only")["regularizers"]) == ["l2sp"]


# overrides


def test_override_values_are_yaml() -> None:
    text = ["a.b=3", "a.c=[1, x]", "d=1e-3", "e=null", "f=hello world", "g=a=b", "h=", "i=true", "a.d.e={x: 1}"]
    assert parse_overrides(text) == {
        "a": {"b": 3, "c": [1, "x"], "d": {"e": {"x": 1}}},
        "d": 1e-3,
        "e": None,
        "f": "hello world",
        "g": "a=b",
        "h": None,
        "i": True,
    }


def test_overrides_reach_every_section() -> None:
    recipe = load_recipe("default", ["seed=7", "optim.lr=3e-4", "trainer.devices=2", "regularizers.l2sp.weight=30", "tracking.wandb=off"])
    assert (recipe["seed"], recipe["optim"]["lr"], recipe["trainer"]["devices"]) == (7, 3e-4, 2)
    assert recipe["regularizers"]["l2sp"]["weight"] == 30.0
    assert recipe["tracking"]["wandb"] == "off"  # YAML reads a bare off as False


def test_any_trainer_flag() -> None:
    flags = ["trainer.max_time=00:01:00:00", "trainer.precision=bf16-mixed", "trainer.limit_train_batches=0.5", "trainer.devices=[0, 1]"]
    trainer = load_recipe("default", [*flags, "trainer.strategy=ddp", "trainer.gradient_clip_val=1"])["trainer"]
    assert trainer["max_time"] == "00:01:00:00" and trainer["precision"] == "bf16-mixed"
    assert trainer["limit_train_batches"] == 0.5 and trainer["devices"] == [0, 1] and trainer["strategy"] == "ddp"


def test_another_plugin_starts_from_its_own_options() -> None:
    recipe = load_recipe("default", ["adapter.name=head"])
    assert "rank" not in recipe["adapter"]["options"]
    for overrides in (["buffer.name=reservoir", "buffer.options.capacity=9"], ["buffer.options.capacity=9", "buffer=reservoir"]):
        buffer = load_recipe("default", overrides)["buffer"]
        assert (buffer["name"], buffer["options"]["capacity"]) == ("reservoir", 9)


def test_regularizers_added_removed_and_chosen() -> None:
    names = lambda *o: sorted(load_recipe("default", list(o))["regularizers"])  # noqa: E731
    assert names("regularizers.ewc.weight=30") == ["ewc", "l2sp", "lwf"]
    assert names("regularizers.lwf=null") == ["l2sp"]
    assert names("regularizers=[ewc]") == ["ewc"]
    assert names("regularizers=[]") == names("regularizers={}") == names("regularizers=null") == []
    assert names("regularizers=[ewc]", "regularizers.lwf.weight=3") == ["ewc", "lwf"]
    assert names("regularizers=[ewc, lwf]", "regularizers.ewc=null") == ["lwf"]
    for words in (["regularizers=[ewc]", "regularizers.ewc.weight=30"], ["regularizers.ewc.weight=30", "regularizers=ewc"]):
        found = load_recipe("default", words)["regularizers"]
        assert list(found) == ["ewc"] and found["ewc"]["weight"] == 30.0
    # the options of one that stays are kept
    assert load_recipe("default", ["regularizers=[lwf]"])["regularizers"]["lwf"]["weight"] == 1.0


# errors


def test_unknown_recipe() -> None:
    text = error(lambda: load_recipe("defualt"))
    assert text == f"unknown recipe 'defualt'. Did you mean 'default'? There is: {', '.join(sorted(recipes()))}."
    assert error(lambda: load_recipe("my/own.yaml")) == "no such recipe file: my/own.yaml"


def test_unknown_keys() -> None:
    assert bad("roundz=3").startswith("unknown recipe key 'roundz'. Did you mean 'rounds'? There is: adapter, base, ")
    assert bad("lr=3").startswith("unknown recipe key 'lr'. Did you mean 'optim.lr'? There is: adapter, ")
    assert bad("optim.lrr=3") == "unknown optim key 'lrr'. Did you mean 'lr'? There is: batch_size, lr, max_steps, weight_decay."
    assert bad("tracker.nam=x") == "unknown tracker key 'nam'. Did you mean 'name'? There is: name."
    assert bad("trainer.max_step=3").startswith("unknown trainer key 'max_step'. Did you mean 'max_steps'? There is: accelerator, ")
    assert bad("buffer.options.capasity=3").startswith("unknown balanced option 'capasity'. Did you mean 'capacity'? There is: capacity, ")
    assert bad("regularizers.l2sp.wieght=3").startswith("unknown l2sp option 'wieght'. Did you mean 'weight'? There is: ")
    assert bad("base_recipe=fast").startswith("unknown recipe key 'base_recipe'.")


def test_unknown_plugins() -> None:
    assert bad("buffer.name=resrvoir") == "unknown buffer 'resrvoir'. Did you mean 'reservoir'? There is: balanced, reservoir."
    assert bad("regularizers.lfw.weight=1").startswith("unknown regularizer 'lfw'. Did you mean 'lwf'? There is: ewc, l2sp, lwf")


def test_wrong_values() -> None:
    assert bad("rounds=many") == "recipe key 'rounds' must be int, not 'many'."
    assert bad("rounds=0") == "recipe key 'rounds' must be at least 1, not 0."
    assert bad("optim.lr=nan") == "recipe key 'optim.lr' must be a finite number, not nan."
    assert bad("gate.open=-1") == "recipe key 'gate.open' must be at least 0, not -1.0."
    assert bad("gate.trust=-0.5") == "recipe key 'gate.trust' must be at least 0, not -0.5."
    assert bad("profile.max_mb=.inf") == "recipe key 'profile.max_mb' must be a finite number, not inf."
    assert bad("generator.turned=1.5") == "recipe key 'generator.turned' must be at most 1, not 1.5."
    assert bad("seed=5000000000") == "recipe key 'seed' must be at most 16777216, not 5000000000."
    assert bad("neutral.use=perhaps") == "recipe key 'neutral.use' must be bool, not 'perhaps'."
    assert (
        bad("tracking.wandb=onlin")
        == "recipe key 'tracking.wandb' must be one of offline, online, off, not 'onlin'. Did you mean 'online'?"
    )
    assert bad("buffer.options.capacity=few") == "buffer 'balanced': capacity must be int, not 'few'."
    assert bad("regularizers.lwf.weight=[1]") == "regularizer 'lwf': weight must be float, not [1]."
    assert bad("regularizers.lwf=3") == "recipe key 'regularizers.lwf' is a section, as in regularizers.lwf.weight=1.0, not 3."
    assert bad("optim=3") == "recipe key 'optim' is a section of keys, not 3."
    assert bad("trainer.max_steps=long") == "trainer: max_steps must be int, not 'long'."
    assert bad("trainer.precision=bf16-mixd").endswith("not 'bf16-mixd'. Did you mean 'bf16-mixed'?")
    assert bad("kind=base") == "recipe default is of kind 'fit', which an override cannot change."


def test_malformed_overrides() -> None:
    assert bad("optim.lr") == "'optim.lr' is not of the form key=value, as in optim.lr=1e-3."
    assert bad("optim..lr=3") == "'optim..lr=3' is not of the form key=value, as in optim.lr=1e-3."
    assert bad("optim.lr=[1").startswith("the value of 'optim.lr=[1' is not YAML: ")


# recipe files of one's own


def test_file_inherits_from_a_shipped_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base_recipe: fast\noptim: {lr: 0.5}\n")
    (tmp_path / "child.yaml").write_text("base_recipe: mine.yaml\nseed: 3\n")
    recipe = load_recipe(tmp_path / "child.yaml")
    assert (recipe["seed"], recipe["optim"]["lr"], recipe["rounds"]) == (3, 0.5, 1)
    assert "base_recipe" not in recipe


def test_file_without_base_recipe_takes_the_rest_from_the_default(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("seed: 3\n")
    assert load_recipe(tmp_path / "short.yaml") == {**load_recipe("default"), "seed": 3}


def test_file_may_refer_to_its_own_keys(tmp_path: Path) -> None:
    (tmp_path / "refers.yaml").write_text("seed: 5\nrounds: ${seed}\n")
    assert load_recipe(tmp_path / "refers.yaml")["rounds"] == 5
    (tmp_path / "nowhere.yaml").write_text("rounds: ${sead}\n")
    assert "sead" in error(lambda: load_recipe(tmp_path / "nowhere.yaml"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\n  rounds: 2\n", "is not valid YAML: line 2: mapping values are not allowed"),
        ("seed: 1\nseed: 2\n", "is not valid YAML: line 2: found duplicate key seed"),
        ("- 1\n- 2\n", "must be a mapping of keys to values."),
        ("just words\n", "must be a mapping of keys to values."),
    ],
)
def test_broken_file(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    # libyaml and PyYAML end the same message differently
    assert error(lambda: load_recipe(file)).startswith(f"recipe {file} {expected}")


def test_circle_and_wrong_kinds(tmp_path: Path) -> None:
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text("base_recipe: b.yaml\n")
    b.write_text("base_recipe: a.yaml\n")
    assert error(lambda: load_recipe(a)) == f"recipe {a}: base_recipe leads back to a.yaml."
    b.write_text("kind: fitt\n")
    assert error(lambda: load_recipe(b)) == "unknown kind of recipe 'fitt'. Did you mean 'fit'? There is: base, fit, generator."
    b.write_text("kind: base\nbase_recipe: default\n")
    assert error(lambda: load_recipe(b)) == f"recipe {b} is of kind 'base', but the recipe default that it changes is of kind 'fit'."


# options from signatures


class Parent:
    def __init__(self, weight: float = 1.0, *, path: Path | None = None) -> None: ...


class Child(Parent):
    def __init__(self, n: int, mode: Literal["fast", "slow"] = "fast", size: tuple[int, int] = (1, 2), **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Open:
    def __init__(self, *args: Any, loose=3, strange: inspect.Signature | None = None, **kwargs: Any) -> None: ...


def test_signature_is_the_schema() -> None:
    fields, is_open = signature_fields(Child)
    assert not is_open
    assert list(fields) == ["n", "mode", "size", "weight", "path"]
    assert [f.default_text() for f in fields.values()] == ["???", "fast", "[1, 2]", "1.0", "null"]
    assert [f.type_text() for f in fields.values()][:2] == ["int", "one of fast, slow"]


def test_options_are_filled_and_converted() -> None:
    fields, _ = signature_fields(Child)
    filled = fill(fields, {"n": 3, "size": [4, 5], "weight": 2, "path": "x/y"}, "it", "it option")
    assert filled == {"n": 3, "mode": "fast", "size": (4, 5), "weight": 2.0, "path": Path("x/y")}
    assert type(filled["weight"]) is float


def test_options_that_are_wrong() -> None:
    fields, _ = signature_fields(Child)
    assert error(lambda: fill(fields, {}, "child 'c'", "c option")) == "child 'c' needs the option 'n' (int)."
    message = "child 'c': mode must be one of fast, slow, not 'slwo'. Did you mean 'slow'?"
    assert error(lambda: fill(fields, {"n": 1, "mode": "slwo"}, "child 'c'", "c option")) == message
    assert error(lambda: fill(fields, {"n": True}, "child 'c'", "c option")) == "child 'c': n must be int, not True."
    assert error(lambda: fill(fields, {"n": None}, "child 'c'", "c option")) == "child 'c': n must be int, not None."


def test_what_cannot_be_checked_is_passed_through() -> None:
    fields, is_open = signature_fields(Open)
    assert is_open and list(fields) == ["loose", "strange"]
    assert fill(fields, {"strange": "x", "more": [1]}, "it", "it option", is_open=True) == {"loose": 3, "strange": "x", "more": [1]}


def test_no_init_means_no_options() -> None:
    assert signature_fields(type("Bare", (), {})) == ({}, False)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [(int | float, 2, 2), (list[float], [1, 2], [1.0, 2.0]), (dict[str, int], {"a": 1}, {"a": 1}), (int | str | list[int], [1], [1])],
)
def test_unions_and_containers(annotation: Any, value: Any, expected: Any) -> None:
    assert config._check(config._field(annotation), value, "x") == expected


def test_saved_recipe_is_plain_yaml(tmp_path: Path) -> None:
    save_recipe(load_recipe("default", ["tracking.wandb=off"]), tmp_path / "r.yaml")
    import yaml

    assert yaml.safe_load((tmp_path / "r.yaml").read_text())["tracking"]["wandb"] == "off"
    assert OmegaConf.load(tmp_path / "r.yaml").tracking.wandb == "off"


def test_default_text_of_odd_defaults() -> None:
    assert Field(default=object).default_text().startswith("<class")
    assert Field(default=Path("a")).default_text() == "a"


@pytest.mark.parametrize(
    ("kind", "override", "least"),
    [
        ("base", "optim.people=0", 1), ("base", "optim.epochs=-1", 1), ("base", "top.views=0", 1), ("base", "top.epochs=-1", 0),
        ("base", "world.workers=0", 1), ("base", "world.pictures=1", 2), ("generator", "optim.epochs=0", 1),
        ("generator", "world.train_people=0", 1), ("generator", "model.said=0", 1),
    ],
)  # fmt: skip
def test_trainings_of_nothing_are_refused(kind: str, override: str, least: int) -> None:
    key, _, value = override.partition("=")
    with pytest.raises(ConfigError) as error:
        load_recipe(kind, [override])
    assert str(error.value) == f"recipe key '{key}' must be at least {least}, not {value}."
