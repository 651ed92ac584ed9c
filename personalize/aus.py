"""The Action Unit (AU) vocabulary: which AUs there are, their FACS names, and how users spell them.

Intensities are floats from 0 (absent) to 5; FACS letters A-E are 1-5 (Ekman, Friesen & Hager, 2002).

>>> parse_au("AU06_r"), parse_au("au_6"), parse_au("6")
(6, 6, 6)
>>> column(6)
'AU06'
"""

from __future__ import annotations

import re

NAMES: dict[int, str] = {
    1: "inner brow raiser",
    2: "outer brow raiser",
    4: "brow lowerer",
    5: "upper lid raiser",
    6: "cheek raiser",
    7: "lid tightener",
    9: "nose wrinkler",
    10: "upper lip raiser",
    12: "lip corner puller",
    14: "dimpler",
    15: "lip corner depressor",
    16: "lower lip depressor",
    17: "chin raiser",
    18: "lip pucker",
    20: "lip stretcher",
    22: "lip funneler",
    23: "lip tightener",
    24: "lip pressor",
    25: "lips part",
    26: "jaw drop",
    28: "lip suck",
    43: "eyes closed",
}
AUS: tuple[int, ...] = tuple(NAMES)
"""The AUs that the base model reads, in the order of every AU axis in the package."""

COLUMNS: tuple[str, ...] = tuple(f"AU{au:02d}" for au in AUS)
MAX_INTENSITY = 5.0
UNKNOWN_CODES = (9.0, -1.0, 999.0)
"""Values that label files use for 'not coded'; an empty cell means the same."""

_SPELLING = re.compile(r"^\s*(?:occ_|int_)?(?:au)?[_\s-]?0*(\d{1,2})(?:[_-]?(r|c|intensity|occurrence))?\s*$", re.IGNORECASE)


def column(au: int) -> str:
    """The column name of an AU: ``AU06`` for 6."""
    return f"AU{au:02d}"


def parse_au(text: str) -> int | None:
    """The AU number in any common spelling (AU06, AU6, au_6, AU06_r, Occ_au_6, 6), or None where it is none."""
    match = _SPELLING.match(str(text))
    return int(match.group(1)) if match else None


def index(au: int) -> int:
    """Position of an AU on the AU axis. Raises ValueError where the base model does not read it."""
    return AUS.index(au)
