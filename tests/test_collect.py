"""Frames that are kept of a clip: few, spread, of the people who count, and those that labels and the user's neutral are about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Clip, Said

from personalize import collect as collected
from personalize import registry
from personalize.aus import AUS
from personalize.collect import MAX_PEOPLE, Keeper, check_neutral, collect, identify, labels_of
from personalize.errors import ConfigError
from personalize.faces import Observation
from personalize.identity import Neutral
from personalize.labels import read_labels
from personalize.video import open_media
from personalize.weights import load_base

BLACK = np.zeros((4, 4, 3), np.uint8)


@pytest.fixture
def face(monkeypatch: pytest.MonkeyPatch) -> Observation:
    monkeypatch.setattr(collected.geometry, "fit_pose", lambda *_: None)
    monkeypatch.setattr(collected.geometry, "view", lambda *_: (BLACK, None))
    empty = np.zeros((478, 3), np.float32)
    box = np.array([0, 0, 10, 10], np.float32)
    return Observation(0, 0.0, 0, np.zeros((112, 112, 3), np.uint8), empty, np.zeros(3), np.eye(2, 3), empty, box, 1.0, 1.0)


@pytest.mark.parametrize("n", [3, 8, 9, 100, 1000])
def test_kept_frames_are_few_and_spread(n: int, face: Observation) -> None:
    keeper = Keeper(limit=8)
    for i in range(n):
        keeper.add(replace(face, frame=i), BLACK, "mesh478")
    frames = [o.frame for o in keeper.of(0)]
    assert len(frames) <= 8 and (n < 8 or len(frames) > 3)
    gaps = set(np.diff(frames))
    assert len(gaps) == 1 and frames[0] == 0 and n - frames[-1] <= gaps.pop()


def test_frames_of_a_sort_are_kept_beside_the_spread_ones(face: Observation) -> None:
    keeper = Keeper(limit=8, sorts=(lambda o: o.frame in (13, 500, 501), lambda o: o.frame >= 900))
    for i in range(1000):
        keeper.add(replace(face, frame=i), BLACK, "mesh478")
    frames = [o.frame for o in keeper.of(0)]
    assert frames == sorted({*range(0, 1000, 128), 13, 500, 501, *range(900, 1000, 16)})
    assert [keeper.offered(0, i) for i in range(3)] == [1000, 3, 100]
    assert all(o.view is BLACK for o in keeper.of(0)) and keeper.of(1) == [] and keeper.offered(1, 0) == 0


def test_who_comes_late_and_stays_is_kept(face: Observation) -> None:
    """Six passers-by, then the person of the clip; and of many passers-by the one whom the user chose."""
    for chosen in (None, 2):
        keeper = Keeper(limit=40, face=chosen)
        for i in range(400):
            if i < 60:
                keeper.add(replace(face, frame=i, face_id=i // 10), BLACK, "mesh478")
            else:
                keeper.add(replace(face, frame=i, face_id=6, box=np.array([0, 0, 20, 20], np.float32)), BLACK, "mesh478")
        mine = [o.frame for o in keeper.of(6)]
        assert len(keeper.people) == MAX_PEOPLE and mine[0] < 70 and mine[-1] > 380 and len(mine) > 19
        assert chosen is None or len(keeper.of(chosen)) == 10


def test_labels_of_a_long_clip_are_used(
    face_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """Eight frames are kept of 45: those with a label as well, each with its own; and of more of them than are kept, that is said."""
    monkeypatch.setattr(collected, "KEEP", 8)
    monkeypatch.setattr(Keeper.__init__, "__defaults__", (8, (), None))
    n, media, base = len(face_clip.images), open_media(face_clip.path), load_base()
    for rows in ((7, 19, 31), range(0, n, 2)):
        path = tmp_path / f"{len(rows)}.csv"
        path.write_text("timestamp,AU12_r,AU06_c\n" + "".join(f"{i / 15:.3f},{i % 6},{i % 2}\n" for i in rows))
        labels = read_labels(path)
        tracker = registry.create("trackers", "mediapipe", {})
        found = collect(media, tracker, labels=labels, neutral_at=1.0)
        tracker.close()
        notes: list[str] = []
        identity = identify(found, base, media, "her", 1.0, notes)
        said = labels_of(labels, identity, found, media, notes)
        truth, known = said.target[:, AUS.index(12)], said.known
        frames = np.array([o.frame for o in identity.observations])
        used = frames[known.any(1)]
        assert set(used) <= set(rows) and (truth[known[:, AUS.index(12)]] == used % 6).all()
        # 'Present' is no intensity: it says 'at least 2', 'absent' says 0.
        six = said.target[known[:, AUS.index(6)], AUS.index(6)]
        assert six.tolist() == (used % 2 * 2).tolist() and said.at_least[known.any(1)].sum() == six.sum()
        assert found.labelled == len(rows)
        if len(rows) == 3:
            assert used.tolist() == [7, 19, 31] and notes == []
        else:
            assert 4 < len(used) < len(rows) and notes == [f"{len(used)} of {len(rows)} labelled frames are used, spread over the clip"]
            assert f"warning: {notes[0]}" in capfd.readouterr().err.splitlines()
        assert identity.neutral is not None
        rest = frames[identity.neutral.indices]
        assert len(rest) >= 4 and (np.abs(rest / 15 - 1.0) <= 0.26).all(), "more of them than are spread over the clip"


def test_what_does_not_rest_in_the_neutral_is_said(face_clip: Clip, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    media, tracker = open_media(face_clip.path), registry.create("trackers", "mediapipe", {})
    found = collect(media, tracker)
    tracker.close()
    for shown, line in (
        ((6, 12), "the calmest frames do not show AU06, AU12 at rest, so little of that is personalised"),
        (AUS[:12], "the clip hardly shows the face at rest, so little is personalised"),
    ):
        resting = np.array([au not in shown for au in AUS], np.float32)
        neutral = Neutral(np.array([0]), np.zeros((1, 112, 112, 3), np.uint8), None, 1.0, resting)
        monkeypatch.setattr(collected, "find_neutral", lambda *_, n=neutral: n)
        notes: list[str] = []
        identify(found, load_base(), media, "her", None, notes)
        assert notes == [f"{line}; name a calm moment with --neutral SECONDS"]
        assert f"warning: {notes[0]}" in capfd.readouterr().err.splitlines()


@pytest.mark.parametrize("verb", ["fit", "generate"])
@pytest.mark.parametrize(
    "at, line",
    [
        ("1", "--neutral 1 is a moment of a video, and photo.png is none: name a picture, as --neutral photo.png."),
        ("calm.png", "--neutral calm.png is none of the pictures of photo.png."),
    ],
)
def test_a_neutral_of_photographs_is_one_of_them(
    verb: str, at: str, line: str, face_photo: Path, tmp_path: Path, command: Callable[..., Said]
) -> None:
    said = command(verb, "--identity", face_photo, "--neutral", at, "--output", tmp_path / "runs")
    assert said.code == 2 and said.err[-1] == f"error: {line}"
    assert not (tmp_path / "runs").exists()


def test_a_neutral_of_a_clip_is_a_moment(face_clip: Clip) -> None:
    with pytest.raises(ConfigError, match=r"^--neutral calm.png is no moment of .*: give seconds, as --neutral 3.5.$"):
        check_neutral("calm.png", open_media(face_clip.path))
