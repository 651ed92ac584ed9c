"""The benchmark: its scores against other implementations, truth and frames in step, and the whole command."""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import f1_score, mean_absolute_error, roc_auc_score

from personalize import bench, registry, scoring
from personalize.aus import AUS, COLUMNS
from personalize.errors import ConfigError, InputError
from personalize.generators import Request
from personalize.metrics import bootstrap, icc31
from personalize.synth import clips
from personalize.synth.clips import Camera, Clip
from personalize.video import VideoWriter, open_media

K = len(AUS)


def made_up(people: int = 4, frames: int = 40, seed: int = 0) -> tuple[dict, dict, dict]:
    """Readings that follow the truth with noise and a person's own offset; AU01 never moves in person 0."""
    rng = np.random.default_rng(seed)
    target, pred, thresholds = {}, {}, {}
    for i in range(people):
        truth = np.clip(rng.normal(1.5, 1.5, (frames, K)), 0, 5)
        if i == 0:
            truth[:, 0] = 0
        target[f"p{i}"] = truth
        pred[f"p{i}"] = np.clip(truth + rng.normal(0, 0.7, (frames, K)) + rng.normal(0, 0.5, K), 0, 5)
        thresholds[f"p{i}"] = rng.uniform(1, 2.5, K)
    return pred, target, thresholds


def anova_icc(p: np.ndarray, t: np.ndarray) -> float:
    """ICC(3,1) by the textbook's sums of squares, cell by cell."""
    n, table = len(p), [[float(a), float(b)] for a, b in zip(p, t, strict=True)]
    grand = sum(map(sum, table)) / (2 * n)
    rows = [sum(r) / 2 for r in table]
    columns = [sum(r[j] for r in table) / n for j in range(2)]
    total = sum((x - grand) ** 2 for r in table for x in r)
    between_rows = 2 * sum((r - grand) ** 2 for r in rows)
    between_columns = n * sum((c - grand) ** 2 for c in columns)
    msr, mse = between_rows / (n - 1), (total - between_rows - between_columns) / (n - 1)
    return (msr - mse) / (msr + mse)


def test_scores_agree_with_scipy_and_sklearn() -> None:
    pred, target, thresholds = made_up()
    scores = scoring.evaluate(pred, target, thresholds)
    for k in (3, 12):
        row = scores[COLUMNS[k]]
        p, t = (np.concatenate([x[n][:, k] for n in pred]) for x in (pred, target))
        called = np.concatenate([pred[n][:, k] >= thresholds[n][k] for n in pred])
        assert row["pooled"]["icc"] == pytest.approx(anova_icc(p, t), abs=1e-9)
        assert row["pooled"]["pcc"] == pytest.approx(pearsonr(p, t)[0], abs=1e-9)
        assert row["pooled"]["mae"] == pytest.approx(mean_absolute_error(t, p), abs=1e-9)
        assert row["pooled"]["f1"] == pytest.approx(f1_score(t >= 2, called), abs=1e-9)
        assert row["pooled"]["auc"] == pytest.approx(roc_auc_score(t >= 2, p), abs=1e-9)
        each = [anova_icc(pred[n][:, k], target[n][:, k]) for n in pred]
        assert row["per_person"]["icc"] == pytest.approx(np.mean(each), abs=1e-9)
        f1s = [f1_score(target[n][:, k] >= 2, pred[n][:, k] >= thresholds[n][k]) for n in pred]
        assert row["per_person"]["f1"] == pytest.approx(np.mean(f1s), abs=1e-9)
    assert scores["AU01"]["defined"] == {"icc": 3, "pcc": 3, "mae": 4, "f1": 3, "auc": 3}
    assert np.isnan(scores["AU01"]["people"]["p0"]["icc"])
    assert scores["mean"]["pooled"]["icc"] == pytest.approx(np.mean([scores[c]["pooled"]["icc"] for c in COLUMNS]))


def test_icc_from_sums_is_the_metric_and_adds_up_over_people() -> None:
    pred, target, _ = made_up()
    s = scoring.sums(pred, target)
    for people in ([0, 1, 2, 3], [1, 1, 3]):
        names = [f"p{i}" for i in people]
        p, t = (np.concatenate([x[n] for n in names]) for x in (pred, target))
        drawn = s[people].sum(0)
        icc = scoring.pooled_icc(drawn)
        assert icc == pytest.approx([icc31(p[:, k], t[:, k]) for k in range(K)], abs=1e-9)
        assert scoring.pooled_mae(drawn) == pytest.approx(np.abs(p - t).mean(0), abs=1e-9)
    assert np.isnan(scoring.pooled_icc(s[0])[0]), "a constant target has no ICC"


def test_pooled_differences_draw_people() -> None:
    pred, target, _ = made_up(people=3)
    better = {n: (p + target[n]) / 2 for n, p in pred.items()}
    found = scoring.pooled_differences(pred, better, target, draws=3000, seed=1)
    names = list(pred)
    # all 27 equally likely draws of three people, by the plain metric
    exact = []
    for draw in np.ndindex(3, 3, 3):
        t, b, a = (np.concatenate([x[names[i]][:, 5] for i in draw]) for x in (target, better, pred))
        exact.append(icc31(b, t) - icc31(a, t))
    interval = found["icc"]["AU07"]
    assert COLUMNS[5] == "AU07"
    assert interval.low == pytest.approx(np.quantile(exact, 0.025), abs=0.02)
    assert interval.high == pytest.approx(np.quantile(exact, 0.975), abs=0.02)
    t, b, a = (np.concatenate([x[n][:, 5] for n in names]) for x in (target, better, pred))
    assert interval.mean == pytest.approx(icc31(b, t) - icc31(a, t), abs=1e-9)
    assert scoring.improves(found["icc"]["mean"], "icc") and scoring.improves(found["mae"]["mean"], "mae")
    same = scoring.pooled_differences(pred, pred, target, draws=50)["icc"]["mean"]
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_differences_are_paired_and_leave_out_who_is_undefined() -> None:
    pred, target, thresholds = made_up()
    before = scoring.evaluate(pred, target, thresholds)
    after = scoring.evaluate({n: np.clip(p * 0.5 + target[n] * 0.5, 0, 5) for n, p in pred.items()}, target, thresholds)
    gained = scoring.differences(before, after, "icc")
    single = [icc31(pred[n][:, 0] * 0.5 + target[n][:, 0] * 0.5, target[n][:, 0]) - icc31(pred[n][:, 0], target[n][:, 0]) for n in pred]
    assert (gained["AU01"].n, gained["AU01"].undefined) == (3, 1)
    assert gained["AU01"].mean == pytest.approx(np.nanmean(single), abs=1e-9)
    people = [np.nanmean([after[c]["people"][n]["icc"] - before[c]["people"][n]["icc"] for c in COLUMNS]) for n in pred]
    assert gained["mean"].mean == pytest.approx(np.mean(people), abs=1e-9)


def test_calibrations() -> None:
    read = np.array([[1.0] * K, [2.0] * K, [4.0] * K])
    made = bench.calibrations(read, np.full(K, 1.5))
    assert made["median_subtraction"][:, 0].tolist() == [0, 0, 2]
    assert made["neutral_subtraction"][:, 0].tolist() == [0, 0.5, 2.5]
    assert made["base"] is read


def test_best_simple_is_chosen_per_metric_and_bars_tell_who_loses() -> None:
    pred, target, thresholds = made_up(people=5, frames=80)
    shifted = {n: p + 0.4 for n, p in pred.items()}
    own = {n: 0.3 * p + 0.7 * target[n] for n, p in pred.items()}
    for n in own:
        own[n][:, COLUMNS.index("AU04")] = pred[n][:, COLUMNS.index("AU04")][::-1]
    methods = {
        "base": pred,
        "median_subtraction": shifted,
        "neutral_subtraction": pred,
        "neutral_input": pred,
        "mesh_warp": own,
        "replay_only": pred,
    }
    result = bench.compare(methods, target, dict.fromkeys(methods, thresholds), ["mesh_warp", "replay_only"])
    assert result["best_simple"]["per_person"]["mae"] == "neutral_subtraction"
    assert result["personalised"] == "mesh_warp"
    zero = result["differences"]["replay_only"]["base"]["per_person"]["icc"]["mean"]
    assert (zero.mean, zero.low, zero.high) == (0, 0, 0)
    verdict = {b["what"]: b for b in bench.bars(result)}
    assert verdict["mean ICC (pooled) better than base, interval clear of zero"]["met"]
    assert verdict["AU06 gains ICC (per person)"]["met"]
    lost = verdict["others lose at most 0.01 ICC (pooled)"]
    assert not lost["met"] and lost["figure"].startswith("AU04 -")


def test_forgetting_is_after_minus_before_in_each_other_clip() -> None:
    pred, target, _ = made_up(people=2)
    worse = np.clip(pred["p1"] + np.random.default_rng(0).normal(0, 1, pred["p1"].shape), 0, 5)
    clip = {"target": target["p1"].tolist(), "before": pred["p1"].tolist(), "gated": pred["p1"].tolist(), "ungated": worse.tolist()}
    found = bench.forgetting({"p0": {"p1": clip}, "p2": {}})
    before, after = (np.mean([icc31(x[:, k], target["p1"][:, k]) for k in range(K)]) for x in (pred["p1"], worse))
    assert found["people"]["p0"]["before"] == pytest.approx(before)
    assert found["gated"]["change"].mean == 0
    assert found["ungated"]["change"].mean == pytest.approx(after - before)
    assert found["ungated"]["per_au"]["AU12"] == pytest.approx(
        icc31(worse[:, COLUMNS.index("AU12")], target["p1"][:, COLUMNS.index("AU12")])
        - icc31(pred["p1"][:, COLUMNS.index("AU12")], target["p1"][:, COLUMNS.index("AU12")])
    )


def test_truth_and_frames_stay_in_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The truth's row t says how bright frame t is; after camera, encoder and decoder it must still be that frame."""
    levels = np.random.default_rng(3).uniform(40, 215, 37).astype(np.float32)

    class FakeWorld:
        def __init__(self, size: int) -> None:
            self.size = size

        def person(self, split: str, index: int) -> None:
            return None

        def clip(self, person: None, seed: int, seconds: float, fps: float, liveliness: float):  # noqa: ANN202
            for start in range(0, len(levels), 16):
                part = levels[start : start + 16]
                images = np.broadcast_to(part[:, None, None, None], (len(part), self.size, self.size, 3)).astype(np.uint8)
                yield SimpleNamespace(images=images, target=np.repeat(part[:, None], K, 1))

    monkeypatch.setattr("personalize.synth.world.World", FakeWorld)
    plain = Camera(0.0, 1.0, 1.0, 1.0, 0.0, (1.0, 1.0, 1.0), 1.0, 3.0, 0.0, 80)
    monkeypatch.setattr(Camera, "sample", lambda rng: plain)
    path = clips.render(Clip("benchmark", 0, 0, 3.0, size=64), tmp_path)
    frames = list(open_media(path).frames())
    truth = clips.read_truth(path)
    assert len(frames) == len(truth) == 37
    seen = np.array([f.image.mean() for f in frames])
    picked = bench.align(truth, [f.index for f in frames if f.index % 3], len(frames))
    assert picked[:, 0].tolist() == levels[[i for i in range(37) if i % 3]].tolist()
    assert np.abs(seen - truth[:, 0]).max() < 6
    assert not list(tmp_path.glob(".*")), "nothing half-written stays"


def test_truth_of_another_length_is_refused() -> None:
    with pytest.raises(RuntimeError, match="the clip has 9 frames, its truth 10: they cannot be aligned"):
        bench.align(np.zeros((10, K)), [0, 1], 9)


def test_one_camera_for_all_frames_of_a_clip() -> None:
    camera = Camera.sample(np.random.default_rng(1))
    quiet = Camera(**{**camera.__dict__, "luma": 0.0, "chroma": 0.0})
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    first, second = (quiet.apply(image, np.random.default_rng(s)) for s in (1, 2))
    assert (first == second).all(), "only the grain differs between frames"
    assert Camera.sample(np.random.default_rng(1)) == camera != Camera.sample(np.random.default_rng(2))


def test_clip_files_are_named_by_content(tmp_path: Path) -> None:
    clip = Clip("benchmark", 3, 1, 8.0)
    assert clip.path(tmp_path) == Clip("benchmark", 3, 1, 8.0).path(tmp_path)
    others = [Clip("benchmark", 3, 1, 9.0), Clip("benchmark", 3, 2, 8.0), Clip("benchmark", 4, 1, 8.0), Clip("demo", 3, 1, 8.0)]
    assert len({c.path(tmp_path) for c in [clip, *others]}) == 5


# --- the command, with a fit that is made up ------------------------------------------------------------------------------------------


def options(folder: Path, **changes: object) -> argparse.Namespace:
    given = {"people": 12, "output": str(folder), "recipe": "default", "generators": "mesh_warp", "seed": 0, "quick": True}
    return argparse.Namespace(**{**given, "plugins": [], "overrides": [], **changes})


@pytest.fixture
def small_bench(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three people whose 'clips' are grey frames and whose tracks and readings are made up; the fit opens all gates on an unchanged net."""
    import personalize.base
    import personalize.reader
    from personalize.faces import Observation
    from personalize.profile import Profile

    fitted: list[str] = []
    base = SimpleNamespace(name="base", sha256="0" * 64, thresholds=np.full(K, 1.5, np.float32), net=None, card={})
    base.thresholds_with = lambda known: np.full(K, 1.5 - 0.25 * known, np.float32)

    def truth_of(clip: Clip) -> np.ndarray:
        return np.clip(np.random.default_rng([clip.person, clip.seed]).normal(1, 1.5, (20, K)), 0, 5).astype(np.float32)

    def fake_render(clip: Clip, folder: Path) -> Path:
        path = clip.path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with VideoWriter(path, 12.5, (32, 32)) as writer:
            for _ in range(20):
                writer.write(np.full((32, 32, 3), 90, np.uint8))
        np.savez(path.with_suffix(".npz"), target=truth_of(clip))
        return path

    def tracked(path: Path, name: str, options: str) -> tuple[list[Observation], int]:
        noise = np.random.default_rng(len(path.name)).normal(0, 0.6, (20, K))
        read = np.clip(clips.read_truth(path) + noise + 0.3, 0, 5)
        seen = []
        for i in range(20):
            if i == 7:
                continue  # a frame without a tracked face
            crop = np.zeros((112, 112, 3), np.uint8)
            zeros = np.zeros(3, np.float32)
            o = Observation(i, i / 12.5, 0, crop, None, zeros, np.eye(2, 3, dtype=np.float32), np.zeros((478, 3)), np.zeros(4), 1.0, 1.0)
            o.parts = {"read": read[i]}  # type: ignore[dict-item]
            seen.append(o)
        return seen, 20

    class FakeReader:
        def __init__(self, base: object, profile: Profile | None = None) -> None:
            self.profile = profile

        def read(self, observations: list[Observation]) -> SimpleNamespace:
            read = np.stack([o.parts["read"] for o in observations])
            best = read if self.profile is None else np.clip(read - 0.3 * self.profile.gate, 0, 5)
            return SimpleNamespace(best=best, base=read, expected=read)

        read_clip = read

    def fit(media: object, recipe: dict, run_dir: Path, name: str) -> SimpleNamespace:
        fitted.append(f"{name} {recipe['generator']['name']}")
        assert recipe["tracking"]["wandb"] == "off" and run_dir.is_dir()
        if name == "person0001":
            raise InputError("nothing to learn from")
        gate = np.full(K, 1.0 if recipe["generator"]["name"] == "mesh_warp" else 0.0, np.float32)
        return SimpleNamespace(profile=Profile(name, base.name, base.sha256, gate=gate, thresholds=base.thresholds))

    crops = np.zeros((2, 112, 112, 3), np.uint8)
    neutral = SimpleNamespace(indices=np.array([0, 2]), crops=crops, landmarks=None, trusted=np.full(K, 0.7, np.float32))
    features = {"crop": None, "landmarks": None}
    base.net = SimpleNamespace(rest_of=lambda crops, landmarks: dict(features))
    monkeypatch.setattr(bench, "WORKERS", 0)
    monkeypatch.setattr(bench, "render", fake_render)
    monkeypatch.setattr(bench, "_tracked", tracked)
    monkeypatch.setattr(personalize.base, "load_base", lambda name="base": base)
    monkeypatch.setattr(personalize.reader, "Reader", FakeReader)
    monkeypatch.setattr("personalize.identity.find_neutral", lambda observations, read: neutral)
    engine = types.ModuleType("personalize.engine")
    engine.fit = fit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "personalize.engine", engine)
    monkeypatch.setattr("personalize.engine", engine, raising=False)
    return fitted


def test_command_writes_everything_and_resumes(
    tmp_path: Path, small_bench: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.bench_command(options(tmp_path)) == 0
    assert sorted(small_bench) == sorted(f"person000{i} {g}" for i in range(3) for g in ("mesh_warp", "replay_only"))
    out = capsys.readouterr()
    assert "57 query frames (3 without a tracked face left out for all)" in out.out
    assert "person0001: adapted, mesh_warp stays with the base: nothing to learn from" in out.err
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result["methods"] == ["base", "median_subtraction", "neutral_subtraction", "neutral_input", "mesh_warp", "replay_only"]
    assert result["people"]["person0002"]["dropped"] == 1
    assert result["command"] == "personalize bench --people 12 --recipe default --generators mesh_warp --seed 0 --quick"
    assert str(tmp_path) not in (tmp_path / "bench.json").read_text()
    # the scores again, from what was rendered and read
    target, base = [], []
    for i in range(3):
        part = json.loads(next((tmp_path / "people").glob(f"person000{i}_base_*.json")).read_text())
        clip = Clip("benchmark", i, 1, 8.0, liveliness=1.5)
        truth = clips.read_truth(clip.path(tmp_path / "clips"))
        assert np.allclose(part["target"], np.delete(truth, 7, axis=0), atol=1e-4)
        target.append(part["target"])
        base.append(part["base"])
    p, t = np.concatenate(base)[:, 4], np.concatenate(target)[:, 4]
    assert result["scores"]["base"]["AU06"]["pooled"]["icc"] == pytest.approx(anova_icc(p, t), abs=1e-9)
    better = result["differences"]["mesh_warp"]["base"]["per_person"]["mae"]["mean"]
    assert better["mean"] < 0 and better["n"] == 3
    # replay_only keeps all gates closed: the base, exactly
    assert result["differences"]["replay_only"]["base"]["pooled"]["icc"]["mean"]["mean"] == 0
    rows = list(csv.DictReader((tmp_path / "bench.csv").open()))
    assert len(rows) == 6 * 23 * 5
    mean = result["scores"]["base"]["mean"]
    told = next(line for line in (tmp_path / "bench.md").read_text().splitlines() if line.startswith("| base |"))
    assert told.split("|")[2:4] == [f" {mean['pooled']['icc']:.3f} ", f" {mean['per_person']['icc']:.3f} "]
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"
    # again: nothing is fitted anew; with one part lost, only that part
    small_bench.clear()
    bench.bench_command(options(tmp_path))
    assert small_bench == []
    next((tmp_path / "people").glob("person0002_replay_only_*")).unlink()
    bench.bench_command(options(tmp_path))
    assert small_bench == ["person0002 replay_only"]
    # another recipe is another result
    small_bench.clear()
    bench.bench_command(options(tmp_path, overrides=["optim.lr=1e-4"]))
    assert len(small_bench) == 6
    capsys.readouterr()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generators": " , "}, "--generators needs at least one name, as in --generators au_residual."),
        ({"seed": 901}, "--seed must be at most 900, not 901."),
        ({"generators": "mesh_wrap"}, "Did you mean 'mesh_warp'?"),
        ({"overrides": ["optim.lrr=1"]}, "lrr"),
        ({"overrides": ["trainer.devices=2"]}, "bench trains on one device: leave trainer.devices at 1. personalize fit uses several."),
    ],
)
def test_mistakes_are_found_before_rendering(tmp_path: Path, small_bench: list[str], changes: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bench.bench_command(options(tmp_path / "out", **changes))
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_quick_for_real(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Rendered, encoded, tracked, fitted and read, in two processes."""
    from personalize.cli import main

    threads = os.environ.get("OMP_NUM_THREADS")
    assert main(["bench", "--quick", "--people", "2", "--output", str(tmp_path)]) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "bench.json").read_text())
    assert len(result["people"]) == 2 and result["quick"]
    assert all(p["read"] + p["dropped"] == 100 for p in result["people"].values())
    assert result["scores"]["base"]["mean"]["pooled"]["icc"] is not None
    assert os.environ.get("OMP_NUM_THREADS") == threads and "Bars" in capsys.readouterr().out


def test_options_are_the_named_generators(tmp_path: Path) -> None:
    from personalize import bench

    args = SimpleNamespace(seed=0, quick=True, people=1, recipe="default", overrides=["generator.options.size=96"], generators="mesh_warp")
    recipes = bench.plan(args, tmp_path)[0].recipes
    assert list(recipes) == ["mesh_warp", "replay_only"]
    assert recipes["mesh_warp"]["generator"]["options"]["size"] == 96 and recipes["replay_only"]["generator"]["options"] == {}
    args.generators = "mesh_warp,replay_only"
    with pytest.raises(ConfigError, match=r"^unknown replay_only option 'size'\."):
        bench.plan(args, tmp_path)


def test_readings_of_an_edited_plugin_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from personalize import bench

    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    monkeypatch.setattr(registry, "_files", {})
    monkeypatch.setenv(registry.FILES_VARIABLE, "")
    file = tmp_path / "mine.py"
    text = (
        "from personalize.registry import register\nfrom personalize_plugins.generators.replay_only import ReplayOnly\n"
        "@register('mine')\nclass Mine(ReplayOnly):\n    pass\n"
    )
    file.write_text(text)
    registry.load_file(file)
    args = SimpleNamespace(seed=0, quick=True, people=1, recipe="default", overrides=[], generators="mine")
    before, again = (bench.plan(args, tmp_path)[0].parts for _ in range(2))
    file.write_text(text + "# another\n")
    after = bench.plan(args, tmp_path)[0].parts
    assert before == again and after["mine"] != before["mine"]
    assert {k: v for k, v in after.items() if k != "mine"} == {k: v for k, v in before.items() if k != "mine"}


def test_the_ceiling_renders_the_very_person(monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/ceiling.py: labels are what was asked, pictures those of the person and nobody else."""
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    monkeypatch.setattr(registry, "_files", {})
    monkeypatch.setenv(registry.FILES_VARIABLE, "")
    registry.load_file(Path(__file__).parents[1] / "benchmarks" / "ceiling.py")
    ceiling = registry.create("generators", "ceiling", {"split": "validation"})
    frames = [SimpleNamespace(pose=np.zeros(3, np.float32))]
    ceiling.prepare(SimpleNamespace(name="person0002", size=(96, 96), observations=frames), 0)
    rest, raised, open_ = ceiling.generate([Request({}), Request({6: 4.0}), Request({26: 4.0})])
    assert not rest.target.any() and rest.known.all()
    assert raised.target[AUS.index(6)] == 4 and np.count_nonzero(raised.target) == 1
    assert open_.target[AUS.index(26)] > 2 and open_.target[AUS.index(25)] > 1
    assert 0.5 < np.abs(raised.image.astype(float) - rest.image).mean() < np.abs(open_.image.astype(float) - rest.image).mean()
    ceiling.prepare(SimpleNamespace(name="person0003", size=(96, 96), observations=frames), 0)
    other = ceiling.generate([Request({})])[0]
    assert np.abs(other.image.astype(float) - rest.image).mean() > 10
    with pytest.raises(ConfigError) as error:
        ceiling.prepare(SimpleNamespace(name="anna", size=(96, 96), observations=frames), 0)
    assert str(error.value) == "generator ceiling knows synthetic people only, named as person0003, not 'anna'"


def test_several_runs_as_one(tmp_path: Path) -> None:
    """benchmarks/bench_together.py, by its command: people of all runs count alike, undefined ones nowhere; nobody counts twice. Runs of
    the same people are set side by side."""

    metrics = ("icc", "mae", "f1", "auc")

    def run(seed: int, scores: dict[str, list[float | None]], own: str = "mine") -> Path:
        names = [f"person{1000 * seed + i:04d}" for i in range(len(scores["base"]))]
        people = {m: {"people": {n: dict.fromkeys(metrics, v) for n, v in zip(names, x, strict=True)}} for m, x in scores.items()}
        found = {method: {"AU06": each, "AU17": each, "mean": each} for method, each in people.items()}
        about = {"seed": seed, "personalised": own, "methods": list(scores), "people": dict.fromkeys(names)}
        path = tmp_path / f"{own}{seed}.json"
        path.write_text(json.dumps({**about, "scores": found}))
        return path

    first = {"base": [0.1, 0.3], "only_here": [0.0, 0.0], "mine": [0.2, 0.6]}
    runs = [run(0, first), run(1, {"base": [0.5, 0.1, 0.1], "mine": [0.5, None, 0.3]})]
    script = [sys.executable, str(Path(__file__).parents[1] / "benchmarks" / "bench_together.py")]
    done = subprocess.run([*script, *map(str, runs)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "base                   icc 0.220 mae 0.220 f1 0.220 auc 0.220" and lines[1].startswith(
        "mine                   icc 0.400"
    )
    low, high = bootstrap([0.1, 0.3, 0.0, 0.2]).low, bootstrap([0.1, 0.3, 0.0, 0.2]).high
    assert f"mine minus base, icc: +0.150 [{low:+.3f}, {high:+.3f}], 4 people" in lines and "only_here" not in done.stdout
    assert lines[-2] == f"AU06, ICC gained on the base: +0.150 [{low:+.3f}, {high:+.3f}], 4 people"
    other = run(0, {"base": [0.1], "theirs": [0.7]}, "theirs")
    done = subprocess.run([*script, str(runs[0]), str(other)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[2] for line in lines[:4]] == ["0.100", "0.000", "0.200", "0.700"], (
        "base, only_here, mine, theirs: of the one person"
    )
    assert "mine minus theirs, AU17, icc: -0.500 [+nan, +nan], 1 people" in lines
    done = subprocess.run([*script, *map(str, runs), str(other)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == "some of the runs have the same seed, so the same people, others not: give either the ones or the others.\n"
