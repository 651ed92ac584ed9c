"""One AU at a time, and blendshapes as a second opinion: the script's figures against counted pairs and a clip of known readings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Clip, script

from personalize.aus import AUS, COLUMNS
from personalize.reader import Reader

script("sheet")  # posed imports it by that name
posed = script("posed")
K, AU12 = len(AUS), AUS.index(12)


def test_an_au_alone_is_told_from_everybody_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of three people, the third not found at rest: AUC against a count of pairs, movement against the distance moved."""
    rng = np.random.default_rng(0)
    rows = [(p, au, level) for p in range(3) for au, level in [(0, 0.0), *((a, v) for a in posed.DRIVEN for v in posed.LEVELS)]]
    rows = [r for r in rows if r != (2, 0, 0.0)]
    person, au, level = (np.array([r[i] for r in rows]) for i in range(3))
    points = rng.normal(size=(3, 478, 3))[person]
    points[np.arange(len(rows)), au, 0] += 0.01 * au * level  # one point moves sideways, the further the higher the AU's number
    points[:, :, 2] += rng.normal(size=(len(rows), 478))  # depth counts for nothing
    data = {"person": person, "au": au, "level": level, "neutral": au == 0, "landmarks": points}
    data["shapes"] = rng.normal(size=(len(rows), K))
    data["shapes"][:, 0] = np.nan
    read = {mode: rng.normal(size=(len(rows), K)) for mode in ("fused", "crop", "landmarks")}
    monkeypatch.setattr(posed, "posed", lambda *_: data)
    monkeypatch.setattr(posed, "read_renders", lambda _, __, mode: read[mode])
    columns, table = posed.single(3, "base", None)
    assert columns == ["AU", "moved", *(f"{m} {v}" for m in (*read, "blendshape") for v in (3, 5))]
    assert [r[0] for r in table] == [*(COLUMNS[AUS.index(a)] for a in posed.DRIVEN), "mean"]
    for row in table[:-1]:
        k = COLUMNS.index(row[0])
        assert row[1] == pytest.approx(0.05 * AUS[k], rel=1e-6)
        for column, value in zip(columns[2:], row[2:], strict=True):
            mode, strength = column.split()
            values = data["shapes"][:, k] if mode == "blendshape" else read[mode][:, k]
            on, off = values[(au == AUS[k]) & (level == int(strength))], values[au == 0]
            won = np.mean([(a > b) + 0.5 * (a == b) for a in on for b in off])
            assert np.isnan(value) if np.isnan(on).any() else value == pytest.approx(won)
    for i, value in enumerate(table[-1][1:], 1):
        assert value == pytest.approx(np.nanmean([r[i] for r in table[:-1]]))


def test_blendshapes_that_follow_the_reading_agree_with_it(face_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AU12's blendshapes move with the reading, AU4's against it, AU1's hardly."""
    (tmp_path / "clip.mp4").symlink_to(face_clip.path)
    said: list[np.ndarray] = []
    read_clip = Reader.read_clip

    def known(self: Reader, seen: list[Any]) -> Any:
        found = read_clip(self, seen)
        found.base[:, :] = np.linspace(0, 4, len(seen))[:, None] ** 2
        said.append(found.base)
        return found

    class Follows:
        frame = 0

        def __call__(self, _: np.ndarray) -> np.ndarray:
            self.frame += 1
            out = np.full(K, np.nan)
            out[AU12], out[AUS.index(4)], out[AUS.index(1)] = self.frame, -self.frame, 0.001 * self.frame
            return out

    monkeypatch.setattr(Reader, "read_clip", known)
    columns, table = posed.agreement(tmp_path, "base", Follows())
    assert columns == ["AU", "clip"]
    found = {row[0]: row[1] for row in table}
    n = len(said[0])
    expected = np.corrcoef(np.linspace(0, 4, n) ** 2, np.arange(n))[0, 1]
    assert found["AU12"] == pytest.approx(expected, abs=1e-6) and found["AU04"] == pytest.approx(-expected, abs=1e-6)
    assert np.isnan(found["AU01"]) and found["mean"] == pytest.approx(0, abs=1e-6)


def test_blendshapes_of_a_smile_are_those_of_a_smile(world: Any) -> None:
    """The picture with most of AU12 has a higher smile than the same face at rest; a wall has none."""
    from personalize.synth.person import controls

    aus, still = np.zeros((2, K), np.float32), np.zeros((2, 3), np.float32)
    aus[1, AU12] = 5
    nothing = np.zeros((2, len(controls()[0])), np.float32)
    (shot,) = world.render(world.person("validation", 13), aus, nothing, still, still[:, :2], [posed.portrait(13)])
    blendshapes = posed.Blendshapes()
    try:
        least, most = map(blendshapes, shot.images)
        assert most[AU12] > least[AU12] + 0.1
        assert np.isnan(most[AUS.index(6)])
        assert np.isnan(blendshapes(np.full((120, 120, 3), 90, np.uint8))).all()
    finally:
        blendshapes.close()
