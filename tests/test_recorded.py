"""A base trained and judged on recorded data, by the commands: what is wrong is said before the work, and what nobody taught is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Said
from test_base import SMALL_ONE
from test_datasets import Grey, disfa, film, line, picture, text

from personalize import registry
from personalize.aus import COLUMNS
from personalize.base import best_thresholds
from personalize.datasets import make_dataset, parse_source
from personalize.errors import ConfigError
from personalize.weights import load_base

Run = Callable[..., Said]
TINY = [*(word for word in SMALL_ONE if not word.startswith(("world.", "top."))), "top.epochs=0", "optim.epochs=2"]


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every command sees the canonical face in each picture that is not dark, and works in a folder of its own."""
    create = registry.create
    made = lambda kind, name, *a, **k: Grey() if kind == "trackers" else create(kind, name, *a, **k)  # noqa: E731
    monkeypatch.setattr(registry, "create", made)
    monkeypatch.chdir(tmp_path)


def presence(root: Path) -> Path:
    """Six people, four pictures of each, AU12 present in two of them; nothing else is coded."""
    rows = ["file,subject,AU12_c"]
    for who in "abcdef":
        for i in range(4):
            picture(root / f"{who}{i}.png", 60 + 20 * i)
            rows.append(f"{who}{i}.png,{who},{i // 2}")
    text(root / "labels.csv", "\n".join(rows) + "\n")
    return root


def test_a_base_says_what_it_was_never_taught(tmp_path: Path, tracked: None, command: Run) -> None:
    """Of presence alone: no table of intensities while it trains, the AUs that no source codes named in its card and where it is used."""
    root = presence(tmp_path / "photos")
    said = command("base", "fit", "--data", f"folder={root}", "--output", "runs/mine", *TINY)
    assert said.code == 0, said.err
    others = ", ".join(name for name in COLUMNS if name != "AU12")
    told = [x for x in said.err if "no source codes" in x]
    assert len(told) == 1 and told[0].endswith(f"no source codes {others}: the model learns nothing of them. "
                                               "Add --data synthetic, or another source.")  # fmt: skip
    prevalence = next(x for x in said.err if x.startswith("prevalence: "))
    assert "AU12 0.50" in prevalence and "AU06 nan" in prevalence
    assert any(x.startswith("epoch 1/2: fused auc ") for x in said.err) and "icc" not in "".join(said.err)
    base = load_base("runs/mine")
    assert base.card["untaught"] == [name for name in COLUMNS if name != "AU12"]
    assert len(set(base.thresholds.tolist())) == 1, "no person shows the others: theirs is AU12's"
    said = command("base", "evaluate", "--base", "runs/mine", "--data", f"folder={presence(tmp_path / 'moved' / 'photos')}")
    assert said.code == 2 and "the model learned from" in said.err[-1], "the study's folder, in another place"
    assert any(f"base model 'mine' was taught nothing of {others}: what it reads of them means nothing" in x for x in said.err)


def test_thresholds_are_chosen_where_the_data_set_says_present() -> None:
    """A reader without error at 1: in a data set in which 1 is present, the threshold is just below; at 2 it is not."""
    level = np.arange(300)[:, None] % 6
    target = np.repeat(level, len(COLUMNS), 1).astype(float)
    known, intensity, one = np.ones(target.shape, bool), np.zeros(target.shape, np.int8), np.zeros(300)
    for at in (1.0, 2.0, 3.0):
        found = best_thresholds(target, target, known, intensity, one, np.full((300, 1), at))
        assert ((found > at - 1) & (found <= at)).all(), at
    # Nobody shows AU01: neither the lowest threshold nor none, but what the others have in the middle.
    target[:, 0] = 0
    known[:, 1] = False
    found = best_thresholds(target * 1.0, target, known, intensity, one)
    assert found[0] == found[1] == np.median(found[2:]) and found[0] > 1


def test_what_is_wrong_is_said_before_the_work(tmp_path: Path, tracked: None, command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is missing is told before anything is rendered, tracked, read or made."""
    good = disfa(tmp_path / "disfa", {f"SN{i:03d}": [{}, {12: 2}] for i in (1, 2, 3, 6)})
    worked: list[object] = []
    monkeypatch.setattr("personalize.synth.dataset.make", lambda *a, **k: worked.append(a))
    monkeypatch.setattr("personalize.base.read_renders", lambda *a, **k: worked.append(a))
    for words in (["--data", "synthetic", "--data", "disfa=nowhere"], ["--data", f"disfa={good}", "--data", "synthetic", "--fold", "7"]):
        said = command("base", "fit", *words, "--output", "runs/mine", *TINY)
        assert said.code == 2 and len(said.err) == 1 and not worked and not Path("runs").exists()
    said = command("base", "evaluate", "--data", f"disfa={good}", "--data", "bp4d=nowhere")
    assert said.code == 2 and said.err[-1].startswith("error: bp4d: ") and not worked and not Path("runs").exists()


def test_tables_never_take_the_place_of_labels(tmp_path: Path, tracked: None, command: Run) -> None:
    """Nor do they lie among a data set, where they would be taken for its labels, nor is one of the two written without the other."""
    film(tmp_path / "data" / "a.mp4", [80] * 6)
    rows = "clip,subject,frame,AU12\n" + "".join(f"a.mp4,a,{i},{i % 3}\n" for i in range(6))
    labels = text(tmp_path / "data" / "labels.csv", rows)
    for name in ("labels.csv", "table", "deep/er"):
        said = command("base", "evaluate", "--data", "folder=data", "--output", f"data/{name}")
        where = {"labels.csv": "labels.json", "table": "table.json", "deep/er": "deep/er.json"}[name]
        assert said.code == 2 and said.err == [f"error: --output: data/{where} would be taken for a part of folder: give another folder."]
    assert labels.read_text() == rows and not list((tmp_path / "data").glob("*.json"))
    (tmp_path / "made" / "t.csv").mkdir(parents=True)
    said = command("base", "evaluate", "--data", "folder=data", "--output", "made/t")
    assert said.code == 2 and said.err == ["error: made/t.csv is a folder: give the name of a file to write."]
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["t.csv"]
    said = command("base", "evaluate", "--data", "folder=data", "--output", "made/u")
    assert said.code == 0 and json.loads((tmp_path / "made" / "u.json").read_text())["folder"]["frames"] == 5


def test_pictures_of_two_people_with_one_stem(tmp_path: Path) -> None:
    """Each row is of the picture that it names, though another person's is named alike but for its ending."""
    for name in ("1.png", "1.jpg"):
        picture(tmp_path / name)
    text(tmp_path / "labels.csv", "file,subject,AU06,AU12\n1.png,ann,5,\n1.jpg,bob,,2\n")
    found = {
        r.path.name: {COLUMNS[k]: float(v) for k, v in enumerate(r.target) if np.isfinite(v)} for r in make_dataset("folder", tmp_path)
    }
    assert found == {"1.png": {"AU06": 5}, "1.jpg": {"AU12": 2}}


def test_options_are_checked() -> None:
    for given in ("0", "-1", "7"):
        source = parse_source(f"folder=.?present_at={given}")
        said = line(Path("no such folder"), lambda source=source: make_dataset(source.name, source.path, **source.options), ConfigError)
        assert said == f"option present_at of folder is an intensity above 0 and at most 5, not {given}."
    said = line(Path("no such folder"), lambda: parse_source("synthetic=renders?present_at=3"), ConfigError)
    assert said == "'present_at=3' in --data synthetic=renders?present_at=3: synthetic takes no option."


def test_a_generator_of_a_loose_file_is_trained(tmp_path: Path, tracked: None, command: Run) -> None:
    """All three commands that train or judge shipped weights know files with plug-ins."""
    text(
        tmp_path / "mine.py",
        "from pathlib import Path\n"
        "from personalize.generators import Generator\n"
        "from personalize.registry import register\n\n"
        "@register('loose')\n"
        "class Loose(Generator):\n"
        "    def __init__(self, size: int = 8): pass\n"
        "    def prepare(self, identity, seed): pass\n"
        "    def generate(self, requests): return [None for _ in requests]\n"
        "    @staticmethod\n"
        "    def pretrain(recipe, output, data):\n"
        "        output.mkdir(parents=True)\n"
        "        (output / 'weights').write_text(str(recipe['generator']['options']['size']))\n"
        "        return output / 'weights'\n",
    )
    words = ["generator.name=loose", "generator.options.size=9"]
    said = command("generator", "fit", "--plugins", "mine.py", "--output", "made", *words)
    assert said.code == 0 and (tmp_path / "made" / "weights").read_text() == "9"
    for verb in ("fit", "evaluate"):
        said = command("base", verb, "--plugins", "nowhere.py")
        assert said.code == 2 and said.err == ["error: no such plug-in file: nowhere.py"]
