"""``personalize generator fit``: train what a generator knows before it meets anybody."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import registry, ui
from .config import load_recipe
from .errors import ConfigError


def fit_command(args: argparse.Namespace) -> int:
    """Hand the recipe to the generator's own ``pretrain``."""
    recipe = load_recipe(args.recipe, args.overrides, "generator")
    name = recipe["generator"]["name"]
    pretrain = getattr(registry.load("generators", name), "pretrain", None)
    if pretrain is None:
        raise ConfigError(f"generator '{name}' has nothing to train before it meets a person: au_residual has.")
    path = pretrain(recipe, Path(args.output), Path(args.data) if args.data else None)
    ui.info(f"wrote {path}; use it with generator.options.weights={path}")
    return 0
