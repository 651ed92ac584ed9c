"""For those who hold real data: readers of the field's data sets, tracked once and mixed for training and evaluation.

Nothing of any data set is in this package.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple, get_args

from ..aus import MAX_INTENSITY
from ..errors import ConfigError, unknown
from .folder import Folder
from .readers import BP4D, DISFA, FERA2015, FERA2017, UNBC, AffWild2, BP4DPlus, CKPlus, DISFAPlus
from .source import AUDataset, Clip, Record

__all__ = ["DATASETS", "SYNTHETIC", "AUDataset", "Clip", "Record", "Source", "make_dataset", "parse_source"]

DATASETS: dict[str, type[AUDataset]] = {
    cls.name: cls for cls in (DISFA, DISFAPlus, BP4D, BP4DPlus, FERA2015, FERA2017, CKPlus, AffWild2, UNBC, Folder)
}
"""Name -> reader."""
SYNTHETIC = "synthetic"


class Source(NamedTuple):
    """Where data come from. name: of :data:`DATASETS`, or 'synthetic' (path: a folder of shards, None: the default one)."""

    name: str
    path: Path | None = None
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed


def make_dataset(name: str, path: str | Path, **options: Any) -> AUDataset:
    """The reader of a data set. options: of its class, as ``camera`` of DISFA.

    Raises ConfigError for an unknown name or option, InputError where the folder does not look as expected.
    """
    if name not in DATASETS:
        raise ConfigError(unknown("data set", name, [*DATASETS, SYNTHETIC]))
    known = {k: p for k, p in inspect.signature(DATASETS[name].__init__, eval_str=True).parameters.items() if k not in ("self", "path")}
    for key, given in options.items():
        if key not in known:
            raise ConfigError(unknown(f"option of {name}", key, known))
        types = set(get_args(known[key].annotation) or (known[key].annotation,))
        wanted = "a word" if str in types else "a number" if float in types else "a whole number"
        if isinstance(given, bool) or not isinstance(given, (*types, int) if float in types else tuple(types)):
            raise ConfigError(f"option {key} of {name} is {wanted}, not '{given}'.")
    if not 0 < options.get("present_at", 1) <= MAX_INTENSITY:
        raise ConfigError(f"option present_at of {name} is an intensity above 0 and at most 5, not {options['present_at']}.")
    return DATASETS[name](path, **options)


def parse_source(text: str) -> Source:
    """``NAME=PATH``, ``NAME=PATH?option=value&...``, ``synthetic``, or a bare path: a folder of synthetic shards.

    >>> parse_source("disfa=/data/DISFA?camera=right")
    Source(name='disfa', path=PosixPath('/data/DISFA'), options={'camera': 'right'})
    """
    if text == SYNTHETIC:
        return Source(SYNTHETIC)
    match = re.fullmatch(r"([A-Za-z][\w+-]*)=(.+)", text)
    if match is None:
        if text in DATASETS and not Path(text).exists():
            raise ConfigError(f"'{text}' needs its folder: --data {text}=/path/to/it")
        return Source(SYNTHETIC, Path(text))
    name, rest = match.groups()
    if name not in (*DATASETS, SYNTHETIC):
        raise ConfigError(unknown("data set", name, [*DATASETS, SYNTHETIC]))
    path, _, query = rest.partition("?")
    options: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        key, equals, given = pair.partition("=")
        if not equals:
            raise ConfigError(f"'{pair}' in --data {text} is no option. Write option=value.")
        options[key] = int(given) if re.fullmatch(r"[+-]?\d+", given) else float(given) if re.fullmatch(r"[+-]?\d*\.\d+", given) else given
    if options and name == SYNTHETIC:
        raise ConfigError(f"'{query}' in --data {text}: synthetic takes no option.")
    return Source(name, Path(path).expanduser(), options)
