"""``evaluate`` end to end: its figures against scikit-learn and closed forms, computed from the CSV that ``predict`` wrote."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FPS, Clip, Said, write_clip
from sklearn.metrics import f1_score, roc_auc_score

from personalize import evaluate
from personalize.aus import AUS, COLUMNS
from personalize.profile import Profile
from personalize.weights import load_base

Run = Callable[..., Said]
METRICS = ("f1", "auc", "icc", "pcc", "mae")


def write_labels(path: Path, keys: list[Any], target: np.ndarray, key: str = "frame") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([key, *(f"{c}_r" for c in COLUMNS)])
        writer.writerows([k, *(f"{v:.3f}" for v in row)] for k, row in zip(keys, target, strict=True))
    return path


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def oracle(rows: list[dict[str, str]], target: np.ndarray, name: str, present_at: float = 2.0) -> dict[str, float | None]:
    """F1 of the table's own occurrence column and AUC by scikit-learn; ICC(3,1) of two raters as 2 cov / (var + var'); PCC by NumPy."""
    p, c = np.array([float(r[f"{name}_r"]) for r in rows]), np.array([int(r[f"{name}_c"]) for r in rows])
    t = np.round(target[:, COLUMNS.index(name)].astype(float), 3)
    y = t >= present_at
    cov = np.cov(p, t)
    return {
        "f1": float(f1_score(y, c)) if y.any() else None,
        "auc": float(roc_auc_score(y, p)) if y.any() and not y.all() else None,
        "icc": float(2 * cov[0, 1] / (cov[0, 0] + cov[1, 1])) if np.ptp(t) else None,
        "pcc": float(np.corrcoef(p, t)[0, 1]) if np.ptp(t) and np.ptp(p) else None,
        "mae": float(np.abs(p - t).mean()),
    }


def agrees(got: dict[str, Any], want: dict[str, float | None]) -> None:
    assert set(got) == set(METRICS)
    for metric, value in want.items():
        assert got[metric] == (None if value is None else pytest.approx(value, abs=1e-6)), metric


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """The person's reading is the base's without a rest of a quarter, present from 1.3."""
    base, k = load_base(), len(AUS)
    per_au = {"gate": np.ones(k), "trust": np.ones(k), "offsets": np.full(k, 0.25), "thresholds": np.full(k, 1.3)}
    return Profile("her", base.name, base.sha256, **per_au).save(tmp_path / "her")  # type: ignore[arg-type]


@pytest.mark.parametrize("present_at", [2.0, 0.5])
def test_figures_are_those_of_the_table(face_clip: Clip, tmp_path: Path, command: Run, profile: Path, present_at: float) -> None:
    labels = write_labels(tmp_path / "labels.csv", list(range(45)), face_clip.target)
    words = ["evaluate", "--input", face_clip.path, "--labels", labels, "--threshold", str(present_at)]
    said = command(*words, "--profile", profile, "--output", tmp_path / "e.json")
    assert said.code == 0 and said.warnings == []
    found = json.loads((tmp_path / "e.json").read_text())
    tables = {}
    for model, extra in {"base": [], "personal": ["--profile", profile]}.items():
        assert command("predict", "--input", face_clip.path, "--output", tmp_path / f"{model}.csv", *extra).code == 0
        tables[model] = read_table(tmp_path / f"{model}.csv")
    assert list(found["aus"]) == list(COLUMNS)
    defined = 0
    for name, entry in found["aus"].items():
        for model, rows in tables.items():
            agrees(entry[model], oracle(rows, face_clip.target, name, present_at))
        for metric in METRICS:
            base, own = entry["base"][metric], entry["personal"][metric]
            assert entry["difference"][metric] == (None if base is None else pytest.approx(own - base, abs=1e-9))
        assert entry["frames"] == 45
        assert entry["present"] == int((np.round(face_clip.target[:, COLUMNS.index(name)].astype(float), 3) >= present_at).sum())
        defined += entry["base"]["auc"] is not None
    assert defined >= 4  # the clip moves enough to try the formulas
    for model in ("base", "personal", "difference"):
        for metric in METRICS:
            values = [e[model][metric] for e in found["aus"].values() if e["base"][metric] is not None]
            assert found["mean"][model][metric] == pytest.approx(np.mean(values))
    assert found["frames"] == {"read": 45, "with_face": 45, "labelled": 45, "compared": 45}
    assert (found["profile"], found["present_at"], found["face"], found["input"]) == ("her", present_at, 0, "face.mp4")


def test_what_is_printed(face_clip: Clip, tmp_path: Path, command: Run, profile: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv", list(range(45)), face_clip.target)
    said = command("evaluate", "--input", face_clip.path, "--labels", labels, "--profile", profile, "--output", tmp_path / "e.json")
    found = json.loads((tmp_path / "e.json").read_text())
    lines = [line.split() for line in said.out.splitlines()]
    assert said.out.splitlines()[0] == "face.mp4: 45 frames, 45 with the face, 45 labelled, 45 compared; labels from 2 count as present."
    assert ["AU", "model", "frames", "present", "F1", "AUC", "ICC(3,1)", "PCC", "MAE"] in lines
    entry = found["aus"]["AU25"]
    at = next(i for i, cells in enumerate(lines) if cells[:1] == ["AU25"])
    assert lines[at] == ["AU25", "base", "45", str(entry["present"]), *(f"{entry['base'][m]:.3f}" for m in METRICS)]
    assert lines[at + 1] == ["her", "45", str(entry["present"]), *(f"{entry['personal'][m]:.3f}" for m in METRICS)]
    assert lines[at + 2] == ["difference", "-", "-", *(f"{entry['difference'][m]:+.3f}" for m in METRICS)]
    assert any(cells[:2] == ["mean", "base"] for cells in lines)
    never = [n for n, e in found["aus"].items() if e["present"] == 0]
    assert f"not measured, never present in its labels: {' '.join(never)} (F1, AUC)" in said.out
    assert "NaN" not in (tmp_path / "e.json").read_text() and said.err[-1] == f"wrote {tmp_path / 'e.json'}"


def test_spans_and_occurrence(face_clip: Clip, tmp_path: Path, command: Run) -> None:
    """Spans by seconds; 0 and 1 say whether, not how much; the rest of the clip has no labels."""
    labels = tmp_path / "events.csv"
    labels.write_text("au,start_s,end_s,state\n25,0.2,1.0,0\n25,1.6,2.6,1\n12,0.2,1.0,0\n")
    said = command("evaluate", "--input", face_clip.path, "--labels", labels, "--output", tmp_path / "e.json")
    found = json.loads((tmp_path / "e.json").read_text())
    assert said.code == 0 and set(found["aus"]) == {"AU12", "AU25"}
    command("predict", "--input", face_clip.path, "--output", tmp_path / "p.csv")
    rows = read_table(tmp_path / "p.csv")
    time = np.arange(45) / FPS
    off, on = (time >= 0.2 - 1e-6) & (time < 1.0 - 1e-6), (time >= 1.6 - 1e-6) & (time < 2.6 - 1e-6)
    score = np.array([float(r["AU25_r"]) for r in rows])
    entry = found["aus"]["AU25"]
    assert entry["base"]["auc"] == pytest.approx(roc_auc_score(on[on | off], score[on | off]))
    assert (entry["labels"], entry["frames"], entry["present"]) == ("occurrence", int((on | off).sum()), int(on.sum()))
    assert entry["base"]["icc"] is None and entry["base"]["mae"] is None
    assert found["unmeasured"]["AU25 MAE"] == "its labels say only whether, not how much"
    assert found["unmeasured"]["AU12 AUC"] == "never present in its labels"
    assert found["unmeasured"]["AU01"] == "no labels"
    assert "not measured, no labels: AU01 AU02 AU04 AU05 " in said.out
    assert found["frames"]["labelled"] == int((on | off).sum())


def test_frames_without_a_face_do_not_count(face_clip: Clip, tmp_path: Path, command: Run) -> None:
    images = face_clip.images[:30].copy()
    images[:6] = 90
    clip = write_clip(tmp_path / "late.mp4", images)
    labels = write_labels(tmp_path / "labels.csv", list(range(40)), face_clip.target[:40])
    said = command("evaluate", "--input", clip, "--labels", labels, "--output", tmp_path / "e.json")
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["frames"] == {"read": 30, "with_face": 24, "labelled": 30, "compared": 24}
    assert said.warnings == ["warning: labels.csv: 10 of 40 rows lie outside the clip (frames 0 to 29) and were left out."]
    command("predict", "--input", clip, "--output", tmp_path / "p.csv")
    agrees(found["aus"]["AU25"]["base"], oracle(read_table(tmp_path / "p.csv")[6:], face_clip.target[6:30], "AU25"))


def test_stills_are_matched_by_name(face_clip: Clip, tmp_path: Path, command: Run) -> None:
    from PIL import Image

    folder, which = tmp_path / "stills", [0, 8, 16, 24, 32, 40]
    folder.mkdir()
    for i in which:
        Image.fromarray(face_clip.images[i]).save(folder / f"p{i}.png")
    mixed = which[::-1]
    labels = write_labels(tmp_path / "labels.csv", [f"p{i}.png" for i in mixed], face_clip.target[mixed], key="file")
    assert command("evaluate", "--input", folder, "--labels", labels, "--output", tmp_path / "e.json").code == 0
    found = json.loads((tmp_path / "e.json").read_text())
    command("predict", "--input", folder, "--output", tmp_path / "p.csv")
    rows = read_table(tmp_path / "p.csv")
    assert [r["file"] for r in rows] == [f"p{i}.png" for i in which]
    agrees(found["aus"]["AU25"]["base"], oracle(rows, face_clip.target[which], "AU25"))


def test_the_chosen_person_is_evaluated(face_clip: Clip, other_face: np.ndarray, tmp_path: Path, command: Run) -> None:
    """Of two people, the rows of the one that was asked for, or of the one that predict says it took."""
    pair = write_clip(tmp_path / "pair.mp4", np.concatenate([face_clip.images[:24, :, 40:280], other_face], 2))
    labels = write_labels(tmp_path / "labels.csv", list(range(24)), face_clip.target[:24])
    command("predict", "--input", pair, "--output", tmp_path / "p.csv")
    rows = read_table(tmp_path / "p.csv")
    for words in (["--face", "0"], ["--face", "1"], []):
        said = command("evaluate", "--input", pair, "--labels", labels, "--output", tmp_path / "e.json", *words)
        found = json.loads((tmp_path / "e.json").read_text())
        face = words[1] if words else said.warnings[0].split("took face ")[1][0]
        assert found["face"] == int(face)
        agrees(found["aus"]["AU25"]["base"], oracle([r for r in rows if r["face_id"] == face], face_clip.target[:24], "AU25"))


def test_clip_column_chooses_rows(face_clip: Clip, tmp_path: Path, command: Run) -> None:
    labels = tmp_path / "events.csv"
    labels.write_text("clip,au,start_s,end_s,state\nother.mp4,25,0,9,1\nface.mp4,25,0,1,0\nface.mp4,25,2,3,1\n")
    assert command("evaluate", "--input", face_clip.path, "--labels", labels, "--output", tmp_path / "e.json").code == 0
    assert json.loads((tmp_path / "e.json").read_text())["frames"]["labelled"] == 30


def test_mean_over_aus_that_both_models_have() -> None:
    """A personal model that stands still has no PCC: the base's PCC of that AU must not count in its mean either."""
    rng = np.random.default_rng(0)
    base, target = rng.uniform(0, 5, (50, len(AUS))), rng.uniform(0, 5, (50, len(AUS)))
    personal = base + 0.1
    personal[:, 0] = 1.0
    known = np.zeros((50, len(AUS)), bool)
    known[:, :2] = True
    limits = np.ones(len(AUS))
    found = evaluate.compare(base, personal, target, known, np.zeros(len(AUS), bool), limits, limits)
    assert found["mean"]["base"]["pcc"] == pytest.approx(np.corrcoef(base[:, 1], target[:, 1])[0, 1])
    assert found["mean"]["difference"]["pcc"] == pytest.approx(0, abs=1e-9)
    assert found["unmeasured"]["AU01 PCC"] == "its readings never change"


@pytest.mark.parametrize("person", [0, 1])
def test_rows_of_one_person(person: int) -> None:
    """Frame 0 shows both, frame 1 only face 1, frame 2 nobody: a row a frame, blank where the person is not seen."""
    from personalize.predict import Row, Table

    table, k = Table(still=False), len(AUS)
    for frame, face in ((0, 0), (0, 1), (1, 1), (2, -1)):
        values = None if face < 0 else np.full(k, face + 0.1234, np.float32)
        table.rows.append(Row("", (frame, face, frame / 25, 1.0, int(face >= 0), 0.0, 0.0, 0.0), values))
    frames, timestamps, _, base, personal = evaluate.person_rows(table, person)
    assert frames.tolist() == [0, 1, 2] and timestamps.tolist() == [0.0, 0.04, 0.08] and personal is None
    want = [0.123, np.nan, np.nan] if person == 0 else [1.123, 1.123, np.nan]
    assert np.array_equal(base[:, 0], want, equal_nan=True)
