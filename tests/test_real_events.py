"""The benchmark on filmed events, on a rendered clip whose truth makes the events."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Clip, script

from personalize import registry
from personalize.aus import AUS, COLUMNS
from personalize.metrics import auc
from personalize.reader import Reader
from personalize.tracks import observe
from personalize.video import open_media
from personalize.weights import load_base

events = script("real_events")


def test_branches_alone_stand_beside_the_base(
    face_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on = face_clip.target >= 1
    some = np.flatnonzero((on.mean(0) > 0.1) & (on.mean(0) < 0.9))
    shutil.copy(face_clip.path, tmp_path / "a.mp4")
    step = 1 / face_clip.fps
    spans = "".join(
        f"a.mp4,{AUS[k]},{(i - 0.5) * step:.4f},{(i + 0.5) * step:.4f},{int(x)}\n" for k in some for i, x in enumerate(on[:, k])
    )
    (tmp_path / "events.csv").write_text("clip,au,start_s,end_s,state\n" + spans.replace(",-0.0333,", ",0,"))
    monkeypatch.setattr(sys, "argv", ["real_events", str(tmp_path), "--json", str(tmp_path / "out.json")])
    events.main()
    assert "landmarks" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found["events"]) == {f"a.mp4 {COLUMNS[k]}" for k in some} and set(found["mean"]) == {"base", "crop", "landmarks"}
    tracker = registry.create("trackers", "mediapipe", {})
    seen = [o for _, each in observe(open_media(face_clip.path), tracker) for o in each]
    tracker.close()
    reader, frames = Reader(load_base()), [o.frame for o in seen]
    for branch in ("crop", "landmarks"):
        expected = reader.read(seen, branch).expected
        for k in some:
            assert found["events"][f"a.mp4 {COLUMNS[k]}"][branch] == pytest.approx(auc(expected[:, k], on[frames, k]), abs=1e-6)
    assert len({found["mean"][way] for way in ("base", "crop", "landmarks")}) > 1
