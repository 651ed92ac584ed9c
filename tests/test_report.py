"""The report: one file, offline, everything escaped, plots that show what the numbers say, no picture of the person."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from personalize import report
from personalize.aus import AUS, column
from personalize.errors import InputError
from personalize.report import read_curves, report_command, write_report

VOID = {"meta", "br", "img", "link", "hr", "input"}
EVIL = "<script>alert('x')</script> & \"quoted\""


class Checker(HTMLParser):
    """Fails on tags that do not close in order; collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.stack, self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop() == tag, tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def full() -> dict:
    time = np.arange(900) / 30
    wave = 2 + 2 * np.sin(time)
    return {
        "title": "webcam",
        "name": "webcam",
        "created": "2026-03-04",
        "version": "0.1.0",
        "summary": ["Tracked.", "Trained."],
        "warnings": ["No AU09."],
        "facts": {"frames": 900, "gain": "0.61 → 0.68"},
        "neutral": {"confidence": 0.83, "frames": 41, "text": "Three poses."},
        "coverage": {
            "yaw_deg": [-15, 0, 15],
            "pitch_deg": [-10, 10],
            "counts": [[3, 40]],
            "aus": {"AU06": {"frames": 7, "max": 2.5}},
            "lacks": ["AU09"],
        },
        "aus": [
            {
                "au": "AU06",
                "gate": 0.5,
                "evidence": {"agreement": 0.93},
                "threshold": 1.25,
                "offset": -0.3,
                "base": {"icc": 0.5, "mae": 0.4},
                "personal": {"icc": 0.6, "mae": 0.3},
            },
            {"au": "AU12", "gate": 0.0, "evidence": None, "base": {"icc": 0.9, "mae": 0.2}, "personal": {"icc": math.nan, "mae": 0.25}},
        ],
        "tables": [{"title": "Calibrations", "note": "n", "columns": ["method", "ICC"], "rows": [["base", 0.61], ["median", None]]}],
        "curves": {"loss": {"train": [(0, 2.0), (10, 1.0)], "held-out": [(0, 2.1), (10, None)]}},
        "traces": {
            "time": time.tolist(),
            "base": {"AU06": wave * 0.8, "AU09": wave * 0},
            "personal": {"AU06": wave, "AU09": wave * 0},
            "labels": {"AU06": [1.0] * 900},
        },
        "samples": [{"image": np.full((200, 300, 3), 128, np.uint8), "label": "AU06=3", "synthetic": True}],
        "forgetting": {"metric": "ICC", "rows": [{"who": "base domain", "before": 0.612, "after": 0.609}]},
        "provenance": {"clip": "me.mp4", "frames": 900},
        "consent": "Mine.",
        "use": ["personalize predict"],
        "recipe": {"adapter": {"options": {"rank": 4}}, "empty": {}},
    }


def page(tmp_path: Path, data: dict) -> tuple[Checker, str]:
    text = write_report(tmp_path / "report.html", data).read_text(encoding="utf-8")
    return Checker(text), text


def test_everything_is_there(tmp_path):
    checker, _ = page(tmp_path, full())
    sections = [
        "What was done",
        "Action Units",
        "Calibrations",
        "Readings over time",
        "The neutral face",
        "What the clip covers",
        "Training",
    ]
    sections += ["Generated samples", "Forgetting", "How to use it", "Provenance and consent", "Recipe"]
    at = [checker.text.index(title) for title in sections]
    assert at == sorted(at)
    for text in (
        "No AU09.",
        "cheek raiser",
        "0.61 → 0.68",
        "0.83",
        "+0.10",
        "−0.10",
        "−0.30",
        "1.25",
        "Mine.",
        "rank: 4",
        "not drawn: AU09",
    ):
        assert text in checker.text
    assert set(full()) == set(report.KEYS)  # this test's data uses every documented key


def test_changes_are_judged_by_what_is_better(tmp_path):
    _, text = page(tmp_path, full())
    assert '<span class="good">+0.10</span>' in text and '<span class="good">−0.10</span>' in text  # ICC up, MAE down
    assert '<span class="bad">+0.05</span>' in text  # MAE up
    assert not re.search(r"\bnan\b", re.sub(r"data:[^\"]*", "", text), re.IGNORECASE)


@pytest.mark.parametrize("key", report.KEYS)
def test_every_key_may_be_left_out_or_stand_alone(tmp_path, key):
    data = full()
    alone = {key: data.pop(key)}
    page(tmp_path, data)
    page(tmp_path, alone)


def test_an_empty_report_is_still_a_page(tmp_path):
    checker, _ = page(tmp_path, {})
    assert "Personal AU model" in checker.text


def test_it_loads_nothing_and_runs_nothing(tmp_path):
    checker, text = page(tmp_path, full())
    names = {name for name, _ in checker.tags}
    assert not names & {"script", "link", "iframe", "object", "form", "base"}
    for _, attrs in checker.tags:
        assert not [a for a in attrs if a.startswith("on")]
        for key in ("src", "href", "xlink:href"):
            assert (attrs.get(key) or "data:").startswith("data:")
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    assert checker.all("meta")[2]["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def poison(value):
    """Every text in a container, but for keys, replaced by an attack."""
    if isinstance(value, dict):
        return {key: poison(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(poison(item) for item in value)
    return EVIL if isinstance(value, str) else value


def test_every_text_is_escaped(tmp_path):
    data = poison(full())
    data["facts"] = {EVIL: EVIL}
    data["neutral"] = {EVIL: EVIL, "text": EVIL}
    data["curves"] = {EVIL: {EVIL: [(0, 1.0), (1, 2.0)]}}
    data["coverage"]["aus"] = {EVIL: {"frames": EVIL, "max": EVIL}}
    data["provenance"] = {EVIL: EVIL}
    data["recipe"] = {EVIL: EVIL}
    data["traces"] = {"time": [0, 1], "base": {EVIL: [1, 2]}, "personal": {EVIL: [1, 3]}}
    data["aus"] = [{"au": EVIL, "gate": 0.5, "evidence": {EVIL: 1.0}, "base": {EVIL: 1.0}, "personal": {EVIL: 2.0}}]
    checker, text = page(tmp_path, data)
    assert "<script" not in text and not checker.all("script")
    assert checker.text.count("alert('x')") >= 20


def test_markers_in_user_text_are_not_filled_in(tmp_path):
    checker, _ = page(tmp_path, {"title": "100 %BODY% and %CSS%", "summary": "%BODY% %TITLE%"})
    assert checker.text.count("%BODY%") >= 2 and checker.text.count("What was done") == 1


def test_pictures_are_small_synthetic_and_without_metadata(tmp_path):
    from PIL import Image

    checker, _ = page(tmp_path, full())
    [image] = checker.all("img")
    assert image["src"].startswith("data:image/jpeg;base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))
    assert max(picture.size) == 160 and not picture.getexif()
    for flag in ({}, {"synthetic": False}, {"synthetic": "yes"}):
        with pytest.raises(ValueError, match="generated pictures only"):
            write_report(tmp_path / "no.html", {"samples": [{"image": b"", **flag}]})
    with pytest.raises(InputError, match="a sample for the report is no picture"):
        write_report(tmp_path / "no.html", {"samples": [{"image": b"no picture", "synthetic": True}]})
    assert not (tmp_path / "no.html").exists()


def test_unknown_keys_are_refused(tmp_path):
    with pytest.raises(ValueError, match="write_report does not know tittle"):
        write_report(tmp_path / "r.html", {"tittle": "x"})


def test_a_plot_puts_values_where_they_belong():
    svg = report._panel("p", {"s": (np.array([0.0, 10.0, 20.0]), np.array([0.0, 5.0, 2.5]))}, {"s": "c0"}, (300, 100), (0.0, 5.0))
    points = [tuple(map(float, p.split())) for p in re.findall(r"[ML]([\d.]+ [\d.]+)", re.search(r' d="([^"]+)"', svg).group(1))]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1) and y0 > y2 > y1 and y2 == pytest.approx((y0 + y1) / 2)
    ticks = {float(t): float(y) for y, t in re.findall(r'y="([\d.]+)" text-anchor="end">([\d.]+)<', svg)}
    assert ticks[0.0] - 3.5 == pytest.approx(y0, abs=0.1) and ticks[4.0] < ticks[2.0]


def test_gaps_break_the_line_and_thinning_keeps_peaks():
    assert report._line(np.arange(4.0), np.array([1, np.nan, 1, 2])) == "M0.0 1.0M2.0 1.0L3.0 2.0"
    x = np.arange(100_000.0)
    y = np.zeros(100_000)
    y[54_321] = 5
    y[70_000:80_000] = np.nan
    tx, ty = report._thin(x, y)
    assert len(tx) < 800 and np.nanmax(ty) == 5 and tx[np.nanargmax(ty)] == 54_321 and np.isnan(ty).any() and (np.diff(tx) > 0).all()


@pytest.mark.parametrize(
    ("low", "high", "wanted"), [(0, 5, [0, 2, 4]), (0, 300, [0, 100, 200, 300]), (-1, 1, [-1, 0, 1]), (0.58, 0.69, [0.6, 0.65])]
)
def test_ticks_are_round(low, high, wanted):
    assert report._ticks(low, high, 3) == pytest.approx(wanted)


def test_curves_from_lightnings_csv(tmp_path):
    (tmp_path / "metrics-1.csv").write_text("epoch,step,train/loss,val/loss\n0,0,2.0,\n0,1,1.5,\n0,1,,1.8\n")
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss,val/loss,lr\n1,2,1.0,,0.1\n1,3,x,1.2,\n")
    assert read_curves([tmp_path / "metrics-1.csv", tmp_path / "metrics.csv"]) == {
        "loss": {"train": [(0, 2.0), (1, 1.5), (2, 1.0)], "val": [(1, 1.8), (3, 1.2)]}
    }


def test_rounds_follow_each_other_and_nothing_counts_twice(tmp_path):
    """Round 1 killed after step 29 and resumed from 20, round 2 killed before its first checkpoint and begun again."""
    files = []
    for steps in (range(0, 30, 10), range(20, 50, 10), range(0, 20, 10), range(0, 50, 10)):
        files.append(tmp_path / f"{len(files)}.csv")
        files[-1].write_text("step,train/loss\n" + "".join(f"{s},{len(files)}\n" for s in steps))
    found = read_curves(files)["loss"]["train"]
    assert found == [*((s, 1) for s in (0, 10)), *((s, 2) for s in (20, 30, 40)), *((s, 4) for s in range(41, 91, 10))]


def test_report_command_renders_a_run_again(tmp_path, capsys):
    from PIL import Image

    from personalize.profile import Profile

    run = tmp_path / "anna" / "v3"
    Profile("anna", "base", "f" * 64, consent="Mine.", gate=np.full(len(AUS), 0.25, np.float32), provenance={"clip": "me.mp4"}).save(run)
    (run / "metrics.json").write_text(json.dumps({"report": {"title": "Anna", "facts": {"x": float("nan")}}, "other": 1}))
    (run / "logs").mkdir()
    (run / "logs" / "metrics.csv").write_text("step,train/loss\n0,2.0\n1,1.5\n")
    (run / "samples").mkdir()
    Image.new("RGB", (112, 112)).save(run / "samples" / "AU06=3_yaw20.png")
    (tmp_path / "anna" / "v4").mkdir()
    assert report_command(SimpleNamespace(run=str(tmp_path / "anna"))) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    checker = Checker((run / "report.html").read_text(encoding="utf-8"))
    for text in ("Anna", "Mine.", "me.mp4", "Training", "AU06=3 yaw20", column(6), "0.25", "--profile runs/anna"):
        assert text in checker.text
    assert {p.name for p in run.iterdir()} == {"profile", "metrics.json", "logs", "samples", "report.html"}


def test_runs_that_cannot_be_reported(tmp_path):
    with pytest.raises(InputError, match=r"^no such run: '.*no'. Give runs/NAME or runs/NAME/vK.$"):
        report_command(SimpleNamespace(run=str(tmp_path / "no")))
    with pytest.raises(InputError, match=r"no metrics.json in .* its fit did not finish"):
        report_command(SimpleNamespace(run=str(tmp_path)))
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(InputError, match=r"is broken: no JSON object. Fit again.$"):
        report_command(SimpleNamespace(run=str(tmp_path)))
    assert not (tmp_path / "report.html").exists()


def test_a_report_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^cannot write the report to '.*': "):
        write_report(tmp_path / "file" / "report.html", {})
