"""``personalize generate``: parsing, files, labels and refusals."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from personalize.errors import ConfigError
from personalize.generate import parse_aus, parse_pose


def test_aus_are_read_in_any_spelling() -> None:
    assert parse_aus("AU06=3,au12=2.5") == {6: 3.0, 12: 2.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("AU06=7", "the intensity of AU06 must be a number from 0 to 5, not '7'."),
        ("AU06", "the intensity of AU06 must be a number from 0 to 5, not ''."),
    ],
)
def test_bad_intensities(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_aus(text)
    assert str(error.value) == message


def test_unknown_au() -> None:
    with pytest.raises(ConfigError, match=r"^unknown AU 'AU99'\. "):
        parse_aus("AU99=1")


def test_pose_keeps_what_is_not_named() -> None:
    assert parse_pose("yaw=20", np.array([0.1, 0.0, 0.3])) == pytest.approx((0.1, math.radians(20), 0.3))


def test_pictures_labels_and_sheet(command, face_clip, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "made"
    said = command("generate", "--identity", face_clip.path, "--aus", "AU12=3", "-n", "2", "--output", out)
    assert said.code == 0
    rows = list(csv.DictReader((out / "labels.csv").open()))
    assert [r["file"] for r in rows] == ["00000.png", "00001.png"]
    assert all(float(r["AU12"]) == 3.0 for r in rows)
    picture = Image.open(out / "images" / "00000.png")
    assert "synthetic" in picture.info["personalize"]
    assert (out / "sheet.png").exists()
    again = command("generate", "--identity", face_clip.path, "--aus", "AU12=3", "--output", out)
    assert again.code == 2
    assert again.err[-1] == f"error: {out} is not empty: name another folder with --output."
