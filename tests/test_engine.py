"""``personalize fit`` on a small clip: what it writes, the same result again, after a kill and over ranks, and what it refuses."""

from __future__ import annotations

import csv
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Clip, Said, expected_of
from PIL import Image
from torch import Tensor

from personalize import __version__, engine, registry
from personalize.aus import AUS, COLUMNS
from personalize.module import PersonalModule
from personalize.profile import Profile
from personalize.reader import Reader, batch_of, lasting, without_rest
from personalize.tracks import observe
from personalize.video import open_media
from personalize.weights import load_base
from personalize_plugins.generators.au_residual import AuResidual

K = len(AUS)
Run = Callable[..., Said]

SMALL = [
    "--adapter=lora",
    "generator.samples=12",
    "optim.max_steps=6",
    "optim.batch_size=4",
    "buffer.options.capacity=32",
    "tracking.wandb=off",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
]
"""A fit of seconds, with every part of the default recipe."""
TRACKED: list[engine.Collected] = []
"""The clip, tracked once for all fits of this file but the first and the one on two ranks."""


def tensors(run_dir: Path) -> dict[str, Tensor]:
    return Profile.load(run_dir).delta


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys() and a
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def warned(said: Said) -> list[str]:
    return [line.removeprefix("warning: ") for line in said.warnings]


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lightning ignores Ctrl-C once it has seen one, and a fit names its folder to its ranks."""
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.delenv("PERSONALIZE_RUN_DIR", raising=False)
    yield
    signal.signal(signal.SIGINT, handler)
    os.environ.pop("PERSONALIZE_RUN_DIR", None)


@pytest.fixture
def fit(command: Run, face_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``personalize fit`` in an empty folder on the clip with the small recipe, and words of the test's own."""
    monkeypatch.chdir(tmp_path)
    whole = engine.collect

    def once(media: Any, tracker: Any, *asked: Any) -> engine.Collected:
        if media.path != face_clip.path or any(a is not None for a in asked):
            return whole(media, tracker, *asked)
        if not TRACKED:
            TRACKED.append(whole(media, tracker))
        return replace(TRACKED[0], observations=[*TRACKED[0].observations], warnings=[*TRACKED[0].warnings])

    monkeypatch.setattr(engine, "collect", once)

    def run(*words: str | Path, clip: Path = face_clip.path) -> Said:
        return command("fit", "--identity", clip, "--name", "her", *SMALL, *words)

    return run


@pytest.fixture(scope="module")
def unbroken(face_clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    from personalize.cli import main

    folder = tmp_path_factory.mktemp("unbroken")
    assert main(["fit", "--identity", str(face_clip.path), "--name", "her", "--output", str(folder / "runs"), *SMALL]) == 0
    return folder / "runs" / "her" / "v1"


# What a fit leaves


def test_one_neutral_photograph_without_training(face_photo: Path, face_clip: Clip, tmp_path: Path, command: Run) -> None:
    """The recipe 'neutral': what the base itself says, given that photograph as the neutral, gate by gate."""
    words = ["--identity", face_photo, "--neutral", face_photo, "--recipe", "neutral", "--name", "her", "--output", tmp_path]
    said = command("fit", *words, "tracking.wandb=off")
    assert said.code == 0 and not [w for w in said.warnings if "hardly" in w], "the user says that it is neutral"
    profile, base = Profile.load(tmp_path / "her"), load_base()
    tracker = registry.create("trackers", "mediapipe", {})
    calm, seen = ([o for _, found in observe(open_media(file), tracker) for o in found] for file in (face_photo, face_clip.path))
    tracker.close()
    at_rest, batch = batch_of(calm), batch_of(seen)
    with torch.no_grad():
        rest = base.net.rest_of(at_rest["crop"], at_rest["landmarks"])
        told = base.net(batch["crop"], batch["landmarks"], batch["has_landmarks"], rest)["intensity"].numpy()
    reading = Reader(base, profile).read(seen)
    moved = np.clip(told - reading.expected, -profile.trust, profile.trust)
    assert reading.own is not None and np.allclose(reading.own, reading.expected + profile.gate * moved, atol=5e-3)
    promise = np.nan_to_num(base.promise(), nan=1.0)
    assert np.abs(moved).max() > 0.3
    assert (profile.gate[promise >= 0.08] > 0.5).all() and (profile.gate[promise < 0.02] == 0).all()


def test_what_is_written(unbroken: Path) -> None:
    there = files(unbroken)
    assert {
        "profile/manifest.json",
        "profile/profile.safetensors",
        "metrics.json",
        "report.html",
        "recipe.yaml",
        "logs/metrics.csv",
    } <= there
    pictures = {p for p in there if p.startswith("samples/")}
    assert pictures and all(p.endswith(".png") for p in pictures)
    for place in pictures:  # the record that every picture carries
        with Image.open(unbroken / place) as picture:
            record = json.loads(picture.info["personalize"])
            assert record["asked"] == picture.info["caption"] and record["generator"] == "au_residual" and record["synthetic"] is True
        assert record["source"]["file"] == "face.mp4" and len(record["source"]["sha256"]) == 64
    assert not {p for p in there - pictures if p.split("/")[0] not in ("profile", "metrics.json", "report.html", "recipe.yaml", "logs")}
    assert {p.name for p in unbroken.iterdir()} == {"profile", "metrics.json", "report.html", "recipe.yaml", "logs", "samples"}
    assert sum(p.stat().st_size for p in (unbroken / "profile").iterdir()) < 2e6
    beside = files(unbroken.parent.parent) - {f"her/v1/{p}" for p in there}
    assert {Path(p).parts[:2] for p in beside} == {("her", "generated")} and {Path(p).name for p in beside} >= {"samples.safetensors"}
    profile = Profile.load(unbroken)
    assert profile.name == "her" and profile.adapter == "lora" and profile.delta
    assert profile.gate.shape == (K,) and profile.gate.min() >= 0 and profile.gate.max() <= 1
    assert profile.provenance["frames"] == 45 and profile.provenance["clip"] == "face.mp4"
    assert profile.plugins["generators/au_residual"] == profile.plugins["regularizers/lwf"] == f"personalize {__version__}"
    page = (unbroken / "report.html").read_text()
    assert f"personalize {__version__}<" in page and f"--profile {unbroken.parent}<" in page and ">Training<" in page
    metrics = json.loads((unbroken / "metrics.json").read_text())
    assert metrics["gate"] == {c: pytest.approx(float(g), abs=1e-4) for c, g in zip(COLUMNS, profile.gate, strict=True)}
    with (unbroken / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {int(r["step"]) for r in rows} == set(range(6))
    assert {"train/own", "train/replay", "train/lwf", "train/l2sp"} <= set(rows[0])


def test_the_profile_reads_the_clip(unbroken: Path, face_clip: Clip, command: Run, tmp_path: Path) -> None:
    said = command("predict", "--input", face_clip.path, "--profile", unbroken, "--output", tmp_path / "own.csv")
    assert said.code == 0, said.err
    assert command("predict", "--input", face_clip.path, "--output", tmp_path / "base.csv").code == 0
    own, base = (list(csv.DictReader((tmp_path / f"{n}.csv").open())) for n in ("own", "base"))
    profile = Profile.load(unbroken)
    after, before = (np.array([[float(r[f"{c}_r"]) for c in COLUMNS] for r in rows]) for rows in (own, base))
    reach, rest = profile.gate * profile.trust, profile.offsets
    model = load_base()
    expected = expected_of(model, before)
    told = profile.gate if profile.neutral else 0.0
    times = [float(r["timestamp"]) for r in own]
    reached = [np.clip(expected + sign * reach, 0, 5) for sign in (1, -1)]
    most, least = (model.report(without_rest(y, rest, lasting(y, times)), told) for y in reached)
    assert (after <= most + 0.011).all() and (after >= least - 0.011).all(), "further than the gates allow"
    assert (rest > 0).any() and (rest >= 0).all(), "the face at rest reads something"


def test_the_recipe_that_is_written_gives_the_same_run(
    unbroken: Path, face_clip: Clip, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = command("fit", "--identity", face_clip.path, "--name", "her", "--recipe", unbroken / "recipe.yaml")
    assert said.code == 0, said.err
    assert_same(tensors(tmp_path / "runs/her/v1"), tensors(unbroken))
    assert Profile.load(tmp_path / "runs/her/v1").gate.tolist() == Profile.load(unbroken).gate.tolist()


def test_samples_are_generated_once(fit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another fit of the same clip takes them from the first; another seed or option of the generator, or a neutral named, does not."""
    asked: list[int] = []
    whole = AuResidual.generate

    def counted(self: AuResidual, requests: list[Any]) -> list[Any]:
        asked.append(len(requests))
        return whole(self, requests)

    monkeypatch.setattr(AuResidual, "generate", counted)
    assert fit("optim.max_steps=2").code == 0 and sum(asked) == 12
    assert fit("optim.max_steps=2").code == 0 and sum(asked) == 12
    runs = tmp_path / "runs" / "her"
    assert_same(tensors(runs / "v2"), tensors(runs / "v1"))
    pictures = {p.name: p.read_bytes() for p in (runs / "v1" / "samples").iterdir()}
    assert pictures and pictures == {p.name: p.read_bytes() for p in (runs / "v2" / "samples").iterdir()}
    reports = [json.loads((runs / v / "metrics.json").read_text()) for v in ("v1", "v2")]
    assert reports[0]["rejected"] == reports[1]["rejected"]
    for count, words in enumerate((["seed=1"], ["generator.options.shading=false"], ["--neutral", "0.1"]), 2):
        assert fit("optim.max_steps=2", *words).code == 0 and sum(asked) == 12 * count
    kept = {p.name for p in (runs / "generated").iterdir()}
    assert len(kept) == 4
    assert fit("optim.max_steps=2", "seed=2").code == 0
    assert len({p.name for p in (runs / "generated").iterdir()} & kept) == 3  # the oldest went


def test_another_seed_is_another_run(unbroken: Path, fit: Run, tmp_path: Path) -> None:
    assert fit("seed=1", "generator.samples=4", "optim.max_steps=2").code == 0
    ours, theirs = tensors(tmp_path / "runs/her/v1"), tensors(unbroken)
    assert any(not torch.equal(ours[k], theirs[k]) for k in ours)


# Killed and resumed


class Killed(BaseException):
    """What no handler expects: the process is gone."""


def stop_in_step(patch: pytest.MonkeyPatch, step: int, problem: BaseException, number: int = 0) -> None:
    """Training dies in the middle of a step of a round: samples are drawn, nothing is learned from them yet."""
    whole = PersonalModule.training_step

    def partly(self: PersonalModule, batch: Any, batch_idx: int) -> Tensor:
        loss = whole(self, batch, batch_idx)
        if self.global_step == step and self.seed % 100 == number:
            raise problem
        return loss

    patch.setattr(PersonalModule, "training_step", partly)


@pytest.mark.parametrize("step", [1, 3])
def test_killed_and_resumed_is_unbroken(unbroken: Path, fit: Run, command: Run, tmp_path: Path, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "CHECKPOINT_EVERY", 2)
        stop_in_step(patch, step, Killed())
        with pytest.raises(Killed):
            fit()
    run = tmp_path / "runs/her/v1"
    assert (run / "work").is_dir() and not (run / "profile").exists()
    steps: list[int] = []
    whole = PersonalModule.training_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PersonalModule, "training_step", lambda m, *a: steps.append(m.global_step) or whole(m, *a))
        said = command("fit", "--resume", run)
    assert said.code == 0, said.err
    assert steps == list(range(step // 2 * 2, 6)), "goes on at the last checkpoint"
    assert_same(tensors(run), tensors(unbroken))
    assert Profile.load(run).gate.tolist() == Profile.load(unbroken).gate.tolist()
    assert not (run / "work").exists()


def test_ctrl_c_says_how_to_resume_and_resumes(unbroken: Path, fit: Run, command: Run, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "CHECKPOINT_EVERY", 2)
        stop_in_step(patch, 5, KeyboardInterrupt())
        said = fit()
    assert said.code == 130 and said.err[-1] == "Interrupted. Resume with: personalize fit --resume runs/her/v1"
    assert command("fit", "--resume", "runs/her/v1").code == 0
    assert_same(tensors(tmp_path / "runs/her/v1"), tensors(unbroken))


def test_killed_in_the_second_round_and_resumed(fit: Run, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second round starts from what the first one wrote, whether or not the process is the same."""
    whole = engine.Session.improved
    monkeypatch.setattr(engine.Session, "improved", lambda session, number: whole(session, number) or True)
    two = ["rounds=2", "optim.max_steps=2", "generator.samples=6"]
    assert fit(*two).code == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_in_step(patch, 1, Killed(), number=1)
        with pytest.raises(Killed):
            fit(*two)
    assert (tmp_path / "runs/her/v2/work/round-0.safetensors").exists()
    assert command("fit", "--resume", "runs/her/v2").code == 0
    # The profile keeps the better round: that of both must be the same one, and exactly so.
    rounds = [json.loads((tmp_path / f"runs/her/v{v}/metrics.json").read_text())["rounds"] for v in (1, 2)]
    assert rounds[0] == rounds[1] and len(rounds[0]) == 2
    assert_same(tensors(tmp_path / "runs/her/v2"), tensors(tmp_path / "runs/her/v1"))


# Over ranks

NOTE_WHAT_RANKS_SEE = """
import json, os, pathlib
from personalize.generators import Generator
from personalize.module import PersonalModule
from personalize.registry import register

@register("nothing")
class Nothing(Generator):
    def prepare(self, identity, seed): pass
    def generate(self, requests): return [None for _ in requests]

whole = PersonalModule.training_step
def noting(self, batch, batch_idx):
    path = pathlib.Path(os.environ["SEEN"]) / f"{os.environ.get('LOCAL_RANK', '0')}.jsonl"
    with path.open("a") as file:
        file.write(json.dumps([self.global_rank, self.trainer.world_size, batch["crop"].sum((1, 2, 3)).tolist()]) + "\\n")
    return whole(self, batch, batch_idx)
PersonalModule.training_step = noting
"""


def seen_by(folder: Path, rank: int) -> list[tuple[int, int, list[int]]]:
    return [tuple(json.loads(line)) for line in (folder / f"{rank}.jsonl").read_text().splitlines()]


TORCHRUN = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node=2", "--no-python"]


@pytest.mark.parametrize(("before", "more"), [([], ["trainer.devices=2"]), (TORCHRUN, ["trainer.accelerator=cpu"])])
def test_two_ranks_on_a_cpu(
    before: list[str], more: list[str], fit: Run, face_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started by Lightning or by torchrun: both ranks train, on samples of their own, in one run; together on those of one process with
    batches of twice the size."""
    plugin = tmp_path / "note.py"
    plugin.write_text(NOTE_WHAT_RANKS_SEE)
    three = [*SMALL, "optim.max_steps=3"]
    words = ["fit", "--identity", face_clip.path, "--name", "two", "--plugins", plugin, *three, "optim.batch_size=2", *more]
    call = [*before, Path(sys.executable).with_name("personalize"), *words]
    env = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT")}
    done = subprocess.run(call, env={**env, "SEEN": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Tracking face.mp4: ") == 1, "ranks above 0 are silent"
    assert [p.name for p in (tmp_path / "runs").glob("*/v*")] == ["v1"]
    assert tensors(tmp_path / "runs/two/v1") and not (tmp_path / "runs/two/v1/work").exists()

    one: list[list[int]] = []
    whole = PersonalModule.training_step
    monkeypatch.setattr(PersonalModule, "training_step", lambda m, b, i: one.append(b["crop"].sum((1, 2, 3)).tolist()) or whole(m, b, i))
    assert fit("optim.max_steps=3").code == 0
    left, right = seen_by(tmp_path, 0), seen_by(tmp_path, 1)
    assert [s[:2] for s in left] == [(0, 2)] * 3 and [s[:2] for s in right] == [(1, 2)] * 3
    assert [a[2] + b[2] for a, b in zip(left, right, strict=True)] == one


ONE_STEP = """
import sys
import unicodedata
import torch
from personalize import module
from personalize.registry import create
from personalize.weights import load_base

torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
batch = torch.load(folder + "/batch.pt")
base = load_base()
module.augment = lambda b: {**b, "crop": b["crop"].float()}

def step(rows, world):
    net = base.fresh()
    create("adapters", "head", {}).apply(net)
    own = module.PersonalModule(net, None, {}, None, None, {"lr": 0.01, "weight_decay": 0.0}, 0, 0)
    own.log = lambda *_, **__: None
    own.forward = own.training_step
    wrapped = own
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
        wrapped = torch.nn.parallel.DistributedDataParallel(own, find_unused_parameters=True)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01)
    wrapped({k: v[rows] for k, v in batch.items()}, 0).backward()
    optimizer.step()
    torch.save({n: p.detach() for n, p in net.named_parameters() if p.requires_grad}, f"{folder}/{world}-{rank}.pt")

step(slice(rank, None, 2), 2)
if rank == 0:
    step(slice(None), 1)
"""


def test_two_ranks_step_as_one_process_on_both_batches(tmp_path: Path) -> None:
    """Without augmentation and dropout, the mean of two ranks' gradients moves the parameters as the joined batch does."""
    draw = torch.Generator().manual_seed(0)
    batch = {
        "crop": torch.randint(0, 256, (6, 3, 112, 112), generator=draw, dtype=torch.uint8),
        "landmarks": torch.randn(6, 478, 3, generator=draw),
        "has_landmarks": torch.ones(6, dtype=torch.bool),
        "target": 5 * torch.rand(6, K, generator=draw),
        "mask": torch.ones(6, K, dtype=torch.bool),
        "occurrence": torch.randint(0, 3, (6, K), generator=draw),
        "weight": torch.ones(6),
    }
    torch.save(batch, tmp_path / "batch.pt")
    calls = [[sys.executable, "-c", ONE_STEP, str(rank), str(tmp_path)] for rank in (0, 1)]
    running = [subprocess.Popen(call, stderr=subprocess.PIPE, text=True) for call in calls]
    for process in running:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    left, right, one = (torch.load(tmp_path / f"{n}.pt") for n in ("2-0", "2-1", "1-0"))
    before = dict(load_base().net.named_parameters())
    assert any((one[n] - before[n]).abs().max() > 1e-4 for n in one), "the step moves something"
    for name, value in one.items():
        assert torch.equal(left[name], right[name])
        torch.testing.assert_close(left[name], value, rtol=0, atol=1e-6)


# What may be given besides


def test_labels_are_learned_from(face_clip: Clip, fit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of half of the frames: they are trained on, those of the held-out frames are the evidence, and no generator sees these."""
    au, given = AUS.index(12), []
    prepare = AuResidual.prepare
    monkeypatch.setattr(AuResidual, "prepare", lambda self, identity, seed: given.append(identity) or prepare(self, identity, seed))
    rows = [f"{i},{2.5 if i % 2 else 0.0},{face_clip.target[i, au]:.2f}" for i in range(40)] + ["900,1,1"]
    (tmp_path / "labels.csv").write_text("frame,AU06,AU12\n" + "\n".join(rows) + "\n")
    said = fit("--labels", "labels.csv", "optim.max_steps=2")
    assert said.code == 0, said.err
    assert any("labels.csv" in line and "outside" in line for line in warned(said)), said.err
    evidence = json.loads((tmp_path / "runs/her/v1/metrics.json").read_text())["evidence"]
    heard = {c for c, row in evidence.items() if row["labelled"] is not None}
    assert heard == {"AU06", "AU12"}
    facts = json.loads((tmp_path / "runs/her/v1/metrics.json").read_text())["report"]["facts"]
    assert facts["samples trained on"] > 12, "labelled frames are trained on besides the generated ones"
    hidden = [o.frame for o in given[0].observations if o.view is None]
    assert hidden and hidden == [o.frame for i, o in enumerate(given[0].observations) if i % 5 >= 3 and o.frame < 40]


def test_everything_may_move(fit: Run, tmp_path: Path) -> None:
    assert fit("--adapter", "full", "profile.max_mb=5", "optim.max_steps=2", "generator.samples=6").code == 0
    assert sum(p.stat().st_size for p in (tmp_path / "runs/her/v1/profile").iterdir()) > 2e6
    assert Profile.load(tmp_path / "runs/her/v1").adapter == "full"
    words = ["adapter.options.batchnorm=adapt", "profile.max_mb=5", "optim.max_steps=2", "generator.samples=6"]
    assert fit("--adapter", "full", *words).code == 0
    assert any(key.endswith("running_mean") for key in Profile.load(tmp_path / "runs/her/v2").delta)


def test_weights_that_earlier_people_need_are_found_in_the_real_network(fit: Run, tmp_path: Path) -> None:
    """Gradients sample by sample, through the backbone and all."""
    assert fit("--regularizer", "ewc", "regularizers.ewc.weight=30", "optim.max_steps=2", "generator.samples=6").code == 0
    recipe = yaml.safe_load((tmp_path / "runs/her/v1/recipe.yaml").read_text())
    assert list(recipe["regularizers"]) == ["ewc"] and recipe["regularizers"]["ewc"]["weight"] == 30


def test_two_fits_side_by_side_keep_one_set_of_samples(fit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another fit of the same person makes the same set while this one does: that one's is taken, and is left when this one fails."""
    words = ["optim.max_steps=1", "generator.samples=6"]
    assert fit(*words).code == 0
    (made,) = (tmp_path / "runs/her/generated").iterdir()
    made.rename(tmp_path / "aside")
    whole = engine.generate

    def meanwhile(*given: Any) -> Any:
        found = whole(*given)
        (tmp_path / "aside").rename(made)
        return found

    monkeypatch.setattr(engine, "generate", meanwhile)
    monkeypatch.setattr(engine.Session, "finish", _full_disk)
    before = (tmp_path / "aside").stat().st_mtime_ns
    assert fit(*words).code == 2
    assert list((tmp_path / "runs/her/generated").iterdir()) == [made] and made.stat().st_mtime_ns == before


STOPS = (
    "import os\n"
    "from personalize.registry import register\n"
    "from personalize_plugins.generators.replay_only import ReplayOnly\n\n"
    "@register('mine')\n"
    "class Mine(ReplayOnly):\n"
    "    def prepare(self, identity, seed):\n"
    "        if 'STOP' in os.environ:\n"
    "            raise KeyboardInterrupt\n"
)
"""A plug-in at which a fit stops, when told to."""


def alone(folder: Path, *words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """``personalize fit`` in a folder, in a process of its own, with more in its environment."""
    call = [Path(sys.executable).with_name("personalize"), "fit", *words]
    return subprocess.run(call, env={**os.environ, **more}, cwd=folder, capture_output=True, text=True, timeout=240)


def test_plugin_files_are_known_to_the_fit_that_goes_on(face_clip: Clip, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(STOPS)
    words = ["--identity", str(face_clip.path), "--name", "her", "--plugins", "mine.py", "--generator", "mine", *SMALL]
    stopped = alone(tmp_path, *words, STOP="1")
    assert stopped.stderr.splitlines()[-1] == "Interrupted. Resume with: personalize fit --resume runs/her/v1"
    done = alone(tmp_path, "--resume", "runs/her/v1")
    assert done.returncode == 0, done.stderr
    assert Profile.load(tmp_path / "runs/her/v1").recipe["generator"]["name"] == "mine"


def test_regularizers_hold_to_the_base_in_every_round(fit: Run, tmp_path: Path) -> None:
    """And get as many samples of what must stay as they ask for."""
    (tmp_path / "mine.py").write_text(
        "import json, pathlib, torch\n"
        "from personalize.registry import register\n"
        "from personalize_plugins.regularizers.l2sp import L2SP\n\n"
        "@register('spy')\n"
        "class Mine(L2SP):\n"
        "    def importance(self, model, batches, loss, predict):\n"
        "        rows = sum(len(b['crop']) for b in batches)\n"
        "        moved = [float(p.abs().sum()) for _, p in model.named_parameters() if p.requires_grad]\n"
        "        with pathlib.Path('seen.jsonl').open('a') as file:\n"
        "            file.write(json.dumps([rows, moved]) + chr(10))\n"
        "        return super().importance(model, batches, loss, predict)\n"
    )
    said = fit("--plugins", tmp_path / "mine.py", "--regularizer", "spy", "rounds=2", "optim.max_steps=2", "generator.samples=6")
    assert said.code == 0, said.err
    rounds = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert len(rounds) == 2 and rounds[0] == rounds[1] and rounds[0][0] == 32, "all that the buffer holds"


def test_a_generator_without_pictures_is_told_of(fit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AuResidual, "generate", lambda self, requests: [None for _ in requests])
    monkeypatch.setattr(AuResidual, "content", lambda self: "of this test alone")
    said = fit("optim.max_steps=2")
    line = "generator au_residual made none of 12 pictures; the fit learns from the clip's calm frames, labels and rehearsal alone"
    assert said.code == 0 and warned(said).count(line) == 1
    assert "generator au_residual made none of 12 pictures" in (tmp_path / "runs/her/v1/report.html").read_text()
    assert not any("made none" in w for w in warned(fit("--generator", "replay_only", "optim.max_steps=2")))
    other = engine.no_pictures({"generator": {"name": "au_residual", "samples": 240}, "tracker": {"name": "face_alignment"}}, "ibug68")
    assert ": those of tracker face_alignment are not the 478 points that most generators need; the fit" in other


def test_a_run_goes_on_with_what_it_was_begun_with(face_clip: Clip, tmp_path: Path) -> None:
    """Or not at all: pictures of one clip, and the neutral of another, would be one person's."""
    clip, table = tmp_path / "clip.mp4", tmp_path / "labels.csv"
    shutil.copy(face_clip.path, tmp_path / "real.mp4")
    clip.symlink_to("real.mp4")
    table.write_text("clip,frame,AU12\n" + "".join(f"clip.mp4,{i},{3 * (i % 2)}\n" for i in range(40)))
    (tmp_path / "mine.py").write_text(STOPS)
    words = [*SMALL, "--plugins", "mine.py", "--generator", "mine", "--labels", table, "--name", "her", "optim.max_steps=2"]
    done = alone(tmp_path, "--identity", clip, *words, STOP="1")
    assert done.returncode == 130, done.stderr
    run = tmp_path / "runs/her/v1"

    def resumed() -> tuple[int, str]:
        done = alone(tmp_path, "--resume", run)
        return done.returncode, done.stderr.splitlines()[-1]

    kept = table.read_text()
    table.write_text(kept + "clip.mp4,41,1\n")
    assert resumed() == (2, f"error: the label file is not the one that {run} was begun with: put that back, or start anew.")
    table.write_text(kept)
    whole = (tmp_path / "real.mp4").read_bytes()
    (tmp_path / "real.mp4").write_bytes(whole + b"0")
    assert resumed() == (2, f"error: the clip is not the one that {run} was begun with: put that back, or start anew.")
    (tmp_path / "real.mp4").write_bytes(whole)
    assert resumed()[0] == 0, "a link keeps its name, by which labels go"
    assert Profile.load(run).recipe["generator"]["name"] == "mine"


def test_a_profile_that_is_written_is_not_lost_with_the_report(fit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("personalize.report.write_report", full)
    assert fit("optim.max_steps=2", "--generator", "replay_only").code == 2
    monkeypatch.undo()
    assert Profile.load(tmp_path / "runs/her/v1").gate.shape == (K,)


def test_a_flag_that_fit_sets_is_refused(fit: Run) -> None:
    said = fit("trainer.use_distributed_sampler=true", "optim.max_steps=2")
    assert said.code == 2 and said.err[-1] == "error: trainer.use_distributed_sampler is for personalize fit to set."


def test_a_term_that_is_no_number_ends_the_fit_at_once(fit: Run, tmp_path: Path) -> None:
    """And is told apart from a learning rate that is too high."""
    (tmp_path / "mine.py").write_text(
        "from personalize.registry import register\n"
        "from personalize.regularizers import FunctionRegularizer\n\n"
        "@register('mine')\n"
        "class Mine(FunctionRegularizer):\n"
        "    def start(self, model, predict=None):\n"
        "        self.calls = 0\n\n"
        "    def state_dict(self):\n"
        "        return {}\n\n"
        "    def load_state_dict(self, state):\n"
        "        pass\n\n"
        "    def loss(self, model, batch, outputs):\n"
        "        self.calls += 1\n"
        "        return outputs['logits'].sum() * (float('nan') if self.calls == 3 else 0)\n"
    )
    said = fit("--plugins", tmp_path / "mine.py", "--regularizer", "mine")
    assert said.code == 2 and said.err[-1] == "error: regularizer mine is nan at step 2: check the plug-in."
    said = fit("optim.lr=1e30", "--regularizer", "none")
    assert (
        said.code == 2
        and said.err[-1].startswith("error: the loss of the ")
        and said.err[-1].endswith(": fit again with a smaller optim.lr.")
    )


def test_what_later_fits_rehearse(fit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Her generated samples, once, whoever fits again; no frame of the clip. A buffer that cannot be written costs no profile."""
    words = ["buffer.shared=true", "optim.max_steps=1", "generator.samples=30"]
    monkeypatch.setattr(engine, "SHARED", 7)
    generated: list[Tensor] = []
    remember = engine.Session._remember
    monkeypatch.setattr(
        engine.Session,
        "_remember",
        lambda s: generated.append(engine.Samples.load(s.work / "samples-0.safetensors").tensors["crop"]) or remember(s),
    )
    for _ in range(2):
        assert fit(*words).code == 0
    buffer = engine.registry.create("buffers", "balanced", {"capacity": 32})
    buffer.load(tmp_path / "runs" / "buffer.safetensors")
    assert buffer.seen["her"] == 7 and 0 < buffer.people()["her"] <= 7 and set(buffer.people()) == {"base", "her"}
    state = buffer.state_dict()
    crops = dict(zip(state["fields"]["crop.slots"].tolist(), state["fields"]["crop"], strict=True))
    there = {crop.numpy().tobytes() for crop in generated[0]}
    assert all(crops[i].numpy().tobytes() in there for i, owner in enumerate(state["owners"]) if owner == "her")
    assert fit("neutral.use=false", *words).code == 0
    buffer.load(tmp_path / "runs" / "buffer.safetensors")
    slots = buffer.state_dict()["fields"]["has_neutral.slots"].tolist()
    assert buffer.people()["her"] > 0 and not {i for i, owner in enumerate(buffer.owners) if owner == "her"} & set(slots)
    monkeypatch.setattr(engine.ReplayBuffer, "save", _full_disk)
    said = fit(*words)
    assert said.code == 0 and Profile.load(tmp_path / "runs/her/v4").delta is not None
    problem = "[Errno 28] No space left on device: 'profile.safetensors'"
    assert f"later fits cannot rehearse this person, buffer.safetensors is left as it was: {problem}" in warned(said)


@pytest.mark.parametrize(("clip", "name"), [("a/José.mp4", "Jose"), ("x" * 70 + ".mp4", "x" * 64), ("my clip(2).mov", "my_clip_2")])
def test_a_name_is_made_of_the_clips(clip: str, name: str) -> None:
    assert engine.check_name(engine._name_of(clip)) == name


def test_names_in_other_scripts_stay_apart() -> None:
    """Strangers must not become versions of one identity; the same clip, elsewhere or in another Unicode form, must."""
    clips = ["张三.mp4", "王.mov", "Вася.mp4", "Вася2.mp4", "Петя2.mp4", "видео" + "x" * 70 + ".mp4", "ß.mp4", "(😀).mp4"]
    names = [engine.check_name(engine._name_of(clip)) for clip in clips]
    assert len(set(names)) == len(names) and [n.rpartition("-")[0] for n in names][:4] == ["person", "person", "person", "2"]
    assert engine._name_of("a/й.mp4") == engine._name_of("b/" + unicodedata.normalize("NFD", "й") + ".mov")


def test_one_photograph(face_photo: Path, fit: Run, tmp_path: Path) -> None:
    said = fit("optim.max_steps=2", clip=face_photo)
    assert said.code == 0, said.err
    assert any("photo" in line for line in warned(said)), said.err
    profile = Profile.load(tmp_path / "runs/her/v1")
    assert profile.gate.max() <= 0.5 and profile.provenance["kind"] == "image"


def test_the_users_neutral_is_sure(fit: Run, tmp_path: Path) -> None:
    assert fit("--neutral", "1.0", "optim.max_steps=1", "generator.samples=6").code == 0
    assert Profile.load(tmp_path / "runs/her/v1").neutral_confidence == 1.0


def test_wandb_offline_and_trainer_flags(fit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any flag reaches the Trainer, also one that has a default of ours."""
    given: dict[str, Any] = {}
    whole = engine.L.Trainer.__init__

    @functools.wraps(whole)
    def spy(self: Any, **flags: Any) -> None:
        given.update(flags)
        whole(self, **flags)

    monkeypatch.setattr(engine.L.Trainer, "__init__", spy)
    flags = [
        "trainer.limit_train_batches=2",
        "trainer.gradient_clip_val=0.3",
        "trainer.enable_model_summary=true",
        "trainer.deterministic=true",
    ]
    said = fit("tracking.wandb=offline", "tracking.project=faces", "optim.max_steps=4", *flags)
    assert said.code == 0, said.err
    assert "wandb sync runs/her/v1/logs/wandb/offline-run-" in said.out
    assert given["limit_train_batches"] == 2 and given["gradient_clip_val"] == 0.3
    assert given["enable_model_summary"] is True and given["deterministic"] is True and given["log_every_n_steps"] == 1
    with (tmp_path / "runs/her/v1/logs/metrics.csv").open() as file:
        assert {r["epoch"] for r in csv.DictReader(file)} == {"0", "1"}, "two epochs of two batches"


def test_batches_that_are_gathered_into_a_step(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accumulating gradients uses new samples in each part of a step."""
    seen: list[list[int]] = []
    whole = PersonalModule.training_step
    monkeypatch.setattr(
        PersonalModule, "training_step", lambda m, b, i: seen.append(b["source"].tolist() + [int(b["crop"].sum())]) or whole(m, b, i)
    )
    assert fit("trainer.accumulate_grad_batches=2", "optim.max_steps=2", "optim.batch_size=2", "generator.samples=30").code == 0
    assert len(seen) == 4 and len({tuple(s) for s in seen}) == 4


# What is refused


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--neutral", "9"], "--neutral 9 lies outside the clip, which lasts 3.0 s."),
        (["--neutral", "-1"], "--neutral -1 lies outside the clip, which lasts 3.0 s."),
        (
            ["--generator", "mesh_wrap"],
            "unknown generator 'mesh_wrap'. Did you mean 'mesh_warp'? "
            "There is: au_residual, ganimation, mesh_warp, pix2pix, pix2pix_au, pix2pixhd, replay_only.",
        ),
        (["--name", "../x"], None),
        (
            ["--name", "base"],
            "'base' cannot be a person's name: replay buffers keep the base model's own pictures under it. Give another --name.",
        ),
        (
            ["trainer.precision=bf16-true"],
            "trainer.precision=bf16-true would change the model's own numbers: use bf16-mixed, 16-mixed or 32.",
        ),
        (["trainer.devices=0"], None),
        (["trainer.barebones=true"], None),
        (["--face", "4"], None),
        (["--labels", "none.csv"], "no such label file: 'none.csv'."),
        (["--recipe", "base"], "recipe base is of kind 'base', and this command takes one of kind 'fit', as default is."),
        (["--consent", "signed: /data/anna.pdf"], "a profile may hold no path, and --consent has one: '/data/anna.pdf'. Leave it out."),
        (
            ["--adapter", "full"],
            "with adapter full the profile takes some 4.0 MB, more than profile.max_mb=2: raise that, or take a smaller adapter (lora).",
        ),
    ],
)
def test_refused_in_one_line_and_nothing_left(fit: Run, tmp_path: Path, words: list[str], line: str | None) -> None:
    said = fit(*words)
    assert said.code == 2 and said.out == ""
    assert said.err[-1].startswith("error: ") and sum(e.startswith("error: ") for e in said.err) == 1
    if line is not None:
        said_so = [s for s in said.err if not s.startswith("Tracking ")]  # that it took long is said where it did
        assert said_so == [f"error: {line}"]
    assert not list(tmp_path.iterdir()) or files(tmp_path) == set() and not list((tmp_path / "runs").iterdir())


def test_nothing_to_resume(unbroken: Path, command: Run, tmp_path: Path) -> None:
    for run in (unbroken, tmp_path / "nowhere"):
        said = command("fit", "--resume", run)
        line = f"nothing to resume in {run}: it is finished, or no run of personalize. Start anew with personalize fit --identity CLIP."
        assert said.code == 2 and said.err == [f"error: {line}"]
    assert not (tmp_path / "nowhere").exists()


def test_an_earlier_version_stays_when_a_later_one_fails(fit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs/her/v1").mkdir(parents=True)
    monkeypatch.setattr(engine.Session, "finish", _full_disk)
    said = fit("optim.max_steps=1", "generator.samples=6")
    assert said.code == 2 and sum(e.startswith("error: ") for e in said.err) == 1
    assert [p.name for p in (tmp_path / "runs/her").iterdir()] == ["v1"]


def _full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device", "profile.safetensors")
