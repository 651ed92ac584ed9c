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
    k = int(np.argmin(np.abs(on.mean(0) - 0.5)))
    shutil.copy(face_clip.path, tmp_path / "a.mp4")
    step = 1 / face_clip.fps
    spans = "".join(f"a.mp4,{AUS[k]},{(i - 0.5) * step:.4f},{(i + 0.5) * step:.4f},{int(x)}\n" for i, x in enumerate(on[:, k]))
    (tmp_path / "events.csv").write_text("clip,au,start_s,end_s,state\n" + spans.replace(",-0.0333,", ",0,"))
    monkeypatch.setattr(sys, "argv", ["real_events", str(tmp_path), "--json", str(tmp_path / "out.json")])
    events.main()
    assert "landmarks" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    (figures,) = found["events"].values()
    assert list(found["events"]) == [f"a.mp4 {COLUMNS[k]}"] and set(found["mean"]) == {"base", "crop", "landmarks"}
    tracker = registry.create("trackers", "mediapipe", {})
    seen = [o for _, each in observe(open_media(face_clip.path), tracker) for o in each]
    tracker.close()
    reader = Reader(load_base())
    truth = on[[o.frame for o in seen], k]
    for branch in ("crop", "landmarks"):
        assert figures[branch] == pytest.approx(auc(reader.read(seen, branch).expected[:, k], truth), abs=1e-6)
    assert figures["base"] != figures["crop"] or figures["base"] != figures["landmarks"]
