"""The subject-exclusive folds on which the field's numbers are quoted: facts about the data sets, not data of them."""

from __future__ import annotations

from collections.abc import Sequence


def _set(prefix_and_numbers: str) -> frozenset[str]:
    """'F 1 2 M 3' -> F001, F002, M003."""
    found, prefix = set(), ""
    for word in prefix_and_numbers.split():
        if word.isdigit():
            found.add(f"{prefix}{int(word):03d}")
        else:
            prefix = word
    return frozenset(found)


DISFA_PARTS = (
    _set("SN 1 2 9 10 16 26 27 30 32"),
    _set("SN 6 11 12 13 18 21 24 28 31"),
    _set("SN 3 4 5 7 8 17 23 25 29"),
)
"""The three parts of ME-GraphAU, LibreFace and FMAE-IAT."""

BP4D_PARTS = (
    _set("F 1 2 8 9 10 16 18 23 M 1 4 7 8 12 14"),
    _set("F 3 5 11 13 20 22 M 2 5 10 11 13 16 17 18"),
    _set("F 4 6 7 12 14 15 17 19 21 M 3 6 9 15"),
)
"""The three parts of JAA-Net, ME-GraphAU and FMAE-IAT."""

BP4D_PLUS_FOLDS = {
    1: _set("M 40 15 29 3 50 33 25 17 42 4 36 26 48 51 20 F 72 76 53 26 44 66 57 61 71 79 20 14 4 13 33 38 19 39 46 47"),
    2: _set("M 1 9 38 47 45 34 22 11 44 46 5 28 55 19 37 43 23 18 16 52 F 74 12 34 56 75 24 16 60 77 28 32 30 31 22 65"),
    3: _set("M 41 56 24 10 54 57 35 30 27 31 8 F 29 54 64 45 9 40 8 63 1 80 62 35 52 27 43 42 50 78 58 17 21 69 2 68"),
    4: _set("M 58 7 2 32 21 13 49 14 39 6 53 12 F 37 10 23 25 73 48 41 51 11 5 18 70 6 67 59 3 7 49 81 55 82 15 36"),
}
"""The four random folds of FMAE-IAT's README; there is no split that all papers use."""


def last_part_first(parts: Sequence[frozenset[str]]) -> dict[int, frozenset[str]]:
    """ME-GraphAU's numbering: fold 1 tests the last part, fold 2 the middle one, fold 3 the first."""
    return {k + 1: part for k, part in enumerate(reversed(parts))}


def odd_even(subjects: Sequence[str]) -> dict[int, frozenset[str]]:
    """FERA 2015: odd numbers train, even numbers test."""
    return {1: frozenset(s for s in subjects if int(s[1:]) % 2 == 0)}
