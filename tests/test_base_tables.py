"""The base model's proof and its ablations: figures against metrics.py and hand computations; both commands on nets that know nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import script

from personalize import metrics
from personalize.aus import AUS, COLUMNS
from personalize.geometry import IBUG_TO_MESH
from personalize.model import AUNet
from personalize.weights import KNOTS, Base, save_base

K = len(AUS)


bt = script("base_tables")
ablations = script("ablations")  # imports base_tables by that name


def tiny_net() -> AUNet:
    torch.manual_seed(0)
    return AUNet(backbone="mobilenetv4_conv_small_050", width=16, hidden=24).eval()


def made_up(n: int, people: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "crop": rng.integers(0, 256, (n, 112, 112, 3), dtype=np.uint8),
        "landmarks": rng.normal(0, 1, (n, 478, 3)).astype(np.float16),
        "target": rng.uniform(0, 5, (n, K)).astype(np.float16),
        "person": np.sort(rng.integers(0, people, n)).astype(np.int32),
        "neutral": rng.random(n) < 0.3,
    }


# ---------------------------------------------------------------- figures


@pytest.fixture
def readings() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(30, 3) readings with ties, (30, 3) targets, and whose they are, of 5 people."""
    rng = np.random.default_rng(4)
    return rng.integers(0, 8, (30, 3)) / 2, rng.uniform(0, 3, (30, 3)), rng.integers(0, 5, 30)


def test_the_first_draw_is_the_figure_of_metrics(readings):
    pred, target, own = readings
    weights = bt.draws(5, 3)
    for k in range(3):
        assert bt.icc_draws(pred, target, own, weights)[0, k] == pytest.approx(metrics.icc31(pred[:, k], target[:, k]))
        assert bt.auc_draws(pred, target, own, weights)[0, k] == pytest.approx(metrics.auc(pred[:, k], target[:, k] >= 1))
        assert bt.pcc_draws(pred, target, own, weights)[0, k] == pytest.approx(metrics.pcc(pred[:, k], target[:, k]))
        assert bt.mean_draws(np.abs(pred - target), own, weights)[0, k] == pytest.approx(metrics.mae(pred[:, k], target[:, k]))


def test_a_draw_is_the_figure_of_the_people_it_drew(readings):
    pred, target, own = readings
    weights = np.array([[0, 2, 1, 0, 3]])
    rows = np.concatenate([np.flatnonzero(own == p) for p in (1, 1, 2, 4, 4, 4)])
    for k in range(3):
        p, t = pred[rows, k], target[rows, k]
        assert bt.icc_draws(pred, target, own, weights)[0, k] == pytest.approx(metrics.icc31(p, t))
        assert bt.auc_draws(pred, target, own, weights)[0, k] == pytest.approx(metrics.auc(p, t >= 1))
        assert bt.mean_draws(np.abs(pred - target), own, weights)[0, k] == pytest.approx(metrics.mae(p, t))


def test_undefined_and_worthless_readings():
    own, weights = np.array([0, 0, 1, 1]), bt.draws(2, 0)
    still, moving = np.zeros((4, 1)), np.array([[0.0], [1], [2], [3]])
    assert np.isnan(bt.icc_draws(moving, still, own, weights)).all()
    assert np.isnan(bt.auc_draws(moving, still, own, weights)).all()
    assert bt.icc_draws(still, moving, own, weights)[0, 0] == 0
    assert bt.auc_draws(still, moving, own, weights)[0, 0] == 0.5
    assert bt.over_aus(np.array([[0.2, np.nan, 0.4]]))[0] == pytest.approx(0.3)
    assert np.isnan(bt.over_aus(np.array([[np.nan]]))[0])


def test_draws_are_of_people_and_the_same_each_time():
    a = bt.draws(7, 20)
    assert np.array_equal(a, bt.draws(7, 20)) and a.shape == (21, 7)
    assert (a[0] == 1).all() and (a.sum(1) == 7).all() and len(np.unique(a, axis=0)) > 15


def test_interval_by_hand():
    it = bt.interval(np.array([5.0, *range(101), np.nan]), 9)
    assert (it.mean, it.low, it.high, it.n) == (5.0, 2.5, 97.5, 9)
    assert np.isnan(bt.interval(np.array([5.0, 5.0]), 1).low)


def test_mae_interval_agrees_with_the_bootstrap_of_metrics():
    rng = np.random.default_rng(1)
    own, error = np.repeat(np.arange(40), 5), rng.exponential(1, (200, 1)) + np.repeat(rng.normal(2, 1, 40), 5)[:, None]
    a = bt.interval(bt.mean_draws(error, own, bt.draws(40, 4000))[:, 0], 40)
    b = metrics.bootstrap(error[:, 0].reshape(40, 5).mean(1))
    assert (a.mean, a.low, a.high) == pytest.approx((b.mean, b.low, b.high), abs=0.02)


# ---------------------------------------------------------------- what is judged


def test_conditional_by_hand():
    target, pred = np.zeros((8, K)), np.zeros((8, K))
    k6, k12 = AUS.index(6), AUS.index(12)
    target[:, k12] = [0, 0.4, 0, 0.7, 1, 2, 3, 4]  # off x3, between, on x4
    target[:, k6] = [0, 2, 0.2, 5, 0, 0, 3, 1]
    pred[:, k6] = [0.1, 0.9, 0.5, 5, 1, 2, 3, 1.5]
    own, weights = np.arange(8) // 2, bt.draws(4, 10)
    off, on = (bt.conditional(pred, target, own, weights, 6, 12, flag) for flag in (False, True))
    assert (off["n"], off["present"], on["n"], on["present"]) == (3, 1, 4, 2)
    assert off["auc"].mean == 1
    assert on["auc"].mean == 0.75  # 3 lies above 1 and 2, and 1.5 above 1 alone
    assert off["absent"] == pytest.approx(0.3) and on["absent"] == pytest.approx(1.5)
    assert on["icc"].mean == pytest.approx(metrics.icc31(np.array([1, 2, 3, 1.5]), np.array([0, 0, 3, 1.0])))


def test_references_are_the_first_neutral_pictures_and_not_judged():
    person, neutral = np.array([3, 3, 3, 8, 8]), np.array([False, True, True, False, False])
    data = made_up(5, 1) | {"person": person, "neutral": neutral}
    assert bt.reference_rows(data).tolist() == [1, 1, 1, -1, -1]
    assert bt.Pictures(Base("tiny", "", tiny_net(), np.ones(K), {}), data).judged.tolist() == [True, False, True, False, False]


def test_bins_and_angles():
    assert [np.flatnonzero(m).tolist() for m in bt.bins(np.array([9.9, 10, 25]), [10, 20])] == [[0], [1], [2]]
    pose = np.radians([[0, 30, 50], [0, -30, 0], [40, 0, 0], [20, 20, 0]])
    expected = [30, 30, 40, np.degrees(np.arccos(np.cos(np.radians(20)) ** 2))]
    assert bt.off_axis(pose) == pytest.approx(expected)


def test_groups_share_out_all_pictures():
    data = {
        "below": np.array([True, False, False]), "hard": np.array([0.8, 0.45, 0.1]), "tone": np.array([3.4, 3.6, 8]),
        "sex": np.array([0, 1, 1]), "age": np.array([34.9, 60, 61]), "occluded": np.array([False, False, True]),
        "pose": np.zeros((3, 3)), "face_px": np.array([50, 64, 96]),
    }  # fmt: skip
    found = {k: {name: np.flatnonzero(m).tolist() for name, m in v.items()} for k, v in bt.groups(data).items()}
    assert found["light"] == {"soft": [2], "hard": [1], "from below": [0]}
    assert found["skin (Monk)"] == {"0-3": [0], "4-6": [1], "7-9": [2]}
    assert found["sex"] == {"male": [0], "female": [1, 2]}
    assert found["age"] == {"< 35": [0], "35-60": [1], "> 60": [2]}
    assert found["in front"] == {"nothing": [0, 1], "something": [2]}
    assert found["face px"] == {"< 64": [0], "64-96": [1], ">= 96": [2]}
    assert found["off axis"]["0-10"] == [0, 1, 2]


def test_only_what_was_found_everywhere_is_compared():
    data = {
        "kind": np.array([bt.TURNED] * 5 + [bt.SIZED, bt.NEUTRAL]), "person": np.array([0, 0, 1, 1, 1, 0, 0]),
        "expression": np.array([2, 2, 0, 1, 1, 2, 2]), "yaw": np.array([0, 30, 0, 0, 30, 0, 0]),
    }  # fmt: skip
    mask, found = bt.shared(data, bt.TURNED, (0, 30), "yaw")
    assert mask.tolist() == [True, True, False, True, True, False, False] and found == {0: 3, 30: 2}


def test_only68_keeps_the_points_and_nothing_else():
    points = torch.randn(2, 478, 3)
    full, flat = bt.only68(points), bt.only68(points, False)
    kept = sorted(set(IBUG_TO_MESH))
    assert torch.isfinite(full).all(2).nonzero()[:, 1].unique().tolist() == kept
    assert torch.equal(full[:, kept], points[:, kept]) and torch.equal(flat[:, kept, :2], points[:, kept, :2])
    assert flat[..., 2].isnan().all()


def test_correlations_by_hand():
    a = np.array([0.0, 1, 2, 3])
    pairs = bt.correlations(np.stack([a, -a, np.ones(4), [0, 1, 0, 1]], 1))
    assert [(i, j) for i, j, _ in pairs][0] == (0, 1) and pairs[0][2] == pytest.approx(-1)
    assert len(pairs) == 3 and pairs[1][2] == pytest.approx(np.corrcoef(a, [0, 1, 0, 1])[0, 1])


def test_bars():
    assert bt.Bar("a", 0.06, 0.05, True).met and not bt.Bar("a", 0.04, 0.05, True).met
    assert bt.Bar("a", -0.2, -0.15, False).met and not bt.Bar("a", float("nan"), 0.3, False).met
    assert bt.Bar("a", 0.04, 0.05, True).row() == ["a", "0.040", ">= 0.05", "MISSED by 0.010"]


def test_reads_as_the_package_does():
    from personalize.base import read_renders

    net, data = tiny_net(), made_up(9, 3)
    tables = np.sort(np.random.default_rng(3).uniform(0, 5, (2, K, len(KNOTS))), -1)
    base = Base("tiny", "", net.eval(), np.ones(K), {"readout": {"alone": tables[0].tolist(), "neutral": tables[1].tolist()}})
    pictures = bt.Pictures(base, data)
    ways = {"fused": ("fused", False), "crop": ("crop", False), "landmarks": ("landmarks", False), "fused+neutral": ("fused", True)}
    for way, (mode, neutral) in ways.items():
        reported = base.report(read_renders(net, data, mode, neutral), float(neutral))
        assert pictures.read(way)["intensity"] == pytest.approx(reported, abs=1e-4)


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder of renders with its tables, and the words that made them."""
    folder = tmp_path_factory.mktemp("proof")
    save_base(folder / "tiny", tiny_net(), {"name": "tiny", "aus": list(AUS), "model": tiny_net().config, "thresholds": [1.0] * K})

    def make(where: Path, split: str, people: int, each: int, size: int = 160, workers: int = 1, setting: str = "first") -> None:
        name = split if setting == "first" else f"{split}-{setting}"
        bt.dataset.make_shard(where / f"{name}-000000.npz", split, 0, people, each, size, setting)

    words = ["--data", str(folder), "--base", str(folder / "tiny"), "--people", "3", "--pictures", "5", "--turned", "1", "--size", "128"]
    words += ["--workers", "1", "--draws", "20", "--md", str(folder / "out.md"), "--json", str(folder / "out.json")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bt.dataset, "make", make)  # in this process: another would import everything anew
        assert bt.main(words) == 0
    return folder, words


def test_the_whole_command(proof):
    folder, _ = proof
    out = json.loads((folder / "out.json").read_text())
    assert {t["title"][0] for t in out["tables"]} == set("12345678")
    by_title = {t["title"]: t for t in out["tables"]}
    settings = by_title["2. By AU, fused, in the first and the second setting"]["rows"]
    assert [r[0] for r in settings] == list(COLUMNS) and all(len(r) == 7 for r in settings)
    shares = by_title["7. Share of validation pictures with both AUs at 1 or more, on the diagonal with the AU itself"]["rows"]
    target = bt.dataset.load(folder, "validation")["target"] >= 1
    for i, row in enumerate(shares):
        assert row[1:] == pytest.approx((target & target[:, [i]]).mean(0), abs=1e-4)
    correlations = np.array([r[1:] for r in by_title["7. Correlations of intensities"]["rows"]], float)
    assert correlations.shape == (K, K) and np.nanmax(np.abs(correlations - correlations.T)) == 0
    named = [r[1] for r in by_title["8. Expected and true error by picture"]["rows"]]
    assert {"sharp", "blurred (that part of the quality under 0.5)"} & set(named)
    branch = out["tables"][0]
    assert branch["columns"][2:7] == list(bt.BRANCHES) and [r[0] for r in branch["rows"]] == [*(f"AU{a:02d}" for a in AUS), "mean"]
    assert [b["bar"] for b in out["bars"]] == [0.05, -0.15, 0.05, 0.08]  # correlations have one on training pictures only
    text = (folder / "out.md").read_text()
    assert "## Bars" in text and text.count("\n## ") == len(out["tables"]) + 1
    turned = [t for t in out["tables"] if t["title"].startswith(("4", "5"))]
    assert [len(t["rows"]) for t in turned] == [len(bt.YAWS), len(bt.HEIGHTS)]


def test_turned_pictures_show_the_angle_asked_for(proof):
    with np.load(proof[0] / "turned-1.npz") as d:
        turned = d["kind"] == bt.TURNED
        yaw = np.abs(np.degrees(d["pose"][turned, 1]))
        # The tracker's reading, which now and then is some 15 degrees off.
        wrong = np.abs(yaw - d["yaw"][turned])
        assert np.median(wrong) < 4 and np.mean(wrong < 12) > 0.9 and set(d["yaw"][turned]) == set(bt.YAWS)
        assert d["neutral"].sum() == 1 and (d["target"][d["neutral"]][:, : AUS.index(25)] == 0).all()
        # One expression has one truth, however it is turned or shrunk.
        for e in range(bt.EXPRESSIONS):
            same = (d["expression"] == e) & ~d["neutral"]
            assert np.ptp(d["target"][same], axis=0).max() < 1e-3


def test_the_same_words_give_the_same_tables(proof):
    folder, words = proof
    before = (folder / "out.json").read_bytes()
    assert bt.main(words) == 0
    assert (folder / "out.json").read_bytes() == before


def test_training_pictures_and_what_is_missing(proof, tmp_path, capsys):
    folder, words = proof
    target = np.zeros((40, K), np.float16)
    target[:20] = np.random.default_rng(0).uniform(0, 5, (20, K))
    np.savez(tmp_path / "train-000000.npz", target=target)
    assert bt.main([*words, "--tables", "7", "--train", str(tmp_path)]) == 0
    out = json.loads((folder / "out.json").read_text())
    worst = np.abs(np.corrcoef(target.astype(float).T) - np.eye(K)).max()
    assert out["bars"][0]["value"] == pytest.approx(worst, abs=1e-4) and not out["bars"][0]["met"]
    capsys.readouterr()
    assert bt.main([*words, "--tables", "7", "--train", str(tmp_path / "none")]) == 2
    assert "no training shards in" in capsys.readouterr().err


# ---------------------------------------------------------------- ablations


def faces(*sets: dict[int, float]) -> np.ndarray:
    out = np.zeros((len(sets), K), np.float32)
    for row, each in zip(out, sets, strict=True):
        for au, level in each.items():
            row[AUS.index(au)] = level
    return out


def test_prototypes_are_told_by_the_aus_that_are_there():
    target = faces({6: 2, 12: 3}, {6: 2, 12: 3, 25: 4, 26: 1}, {6: 2, 17: 3}, {12: 1, 17: 0.9}, {}, {6: 1})
    assert ablations.is_prototype(target).tolist() == [True, True, False, True, True, False]


def test_each_variant_trains_on_its_pictures():
    smile, odd = {6: 2, 12: 3}, {6: 2, 17: 3}
    data = {
        "person": np.repeat(np.arange(8), 3), "neutral": np.tile([True, False, False], 8),
        "target": np.concatenate([faces({}, smile if p % 2 else odd, odd) for p in range(8)]),
    }  # fmt: skip
    data["neutral"][21] = False  # the last person has none
    assert ablations.usable(data, "all", 0).tolist() == list(range(21))
    assert ablations.usable(data, "quarter", 0).tolist() == [0, 1, 2]
    chosen, drawn = (ablations.usable(data, rows, 0) for rows in ("prototypes", "random"))
    assert chosen.tolist() == [0, 3, 4, 6, 9, 10, 12, 15, 16, 18]
    assert len(np.unique(drawn)) == len(chosen) and data["neutral"][drawn].sum() == data["neutral"][chosen].sum() == 7


def test_the_whole_ablation(tmp_path, capsys):
    for split, people in (("train", 9), ("validation", 3)):
        data = made_up(people * 6, people, seed=people)
        data |= {"person": np.repeat(np.arange(people), 6), "neutral": np.tile([True, True, *[False] * 4], people)}
        data["target"][data["neutral"]] = 0
        data["target"][5::6] = faces({12: 3})
        np.savez(tmp_path / f"{split}-000000.npz", **data)
    words = ["--data", str(tmp_path), "--steps", "2", "--people", "6", "--seeds", "0", "--json", str(tmp_path / "a.json")]
    assert ablations.main([*words, "--md", str(tmp_path / "a.md")]) == 0
    found = json.loads((tmp_path / "a.json").read_text())["variants"]
    assert list(found) == [v.name for v in ablations.VARIANTS]
    assert found["all"]["pictures"] == 54 and found["emotional prototypes only"]["pictures"] == 27
    assert set(found["all"]["runs"][0]) == {"with", "without"} and set(found["no neutral in training"]["runs"][0]) == {"without"}
    assert found["all"]["runs"] != found["no tremble of points"]["runs"]
    assert "| no stretch of faces | 54 |" in (tmp_path / "a.md").read_text()
    assert "What each ingredient gives" in capsys.readouterr().out
    (tmp_path / "train-000000.npz").unlink()
    assert ablations.main(words) == 2
