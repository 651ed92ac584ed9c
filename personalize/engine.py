"""``personalize fit``: from a clip to a profile.

Collect the person's frames, find their neutral, generate labelled samples of them, adapt the base on samples and replay, weigh the
evidence, open the gates, write the profile and the report. Every stage leaves its result in ``work/``, so that a killed run goes on where
it was, and so that the ranks of a distributed run find the same samples.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import hashlib
import json
import os
import shutil
import tempfile
import time
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from torch import Tensor

from . import __version__, gate, ranks, registry, tracking, ui
from .aus import AUS, COLUMNS
from .base import Base, load_base, save_checkpoint
from .buffers import ReplayBuffer
from .collect import Collected, Truth, check_neutral, collect, identify, labels_of
from .config import digest, load_recipe, save_recipe
from .data import LOST, REFUSED, PersonData, Samples, base_domain, frame_samples, generate, join
from .errors import ConfigError, InputError, PersonalizeError
from .faces import Tracker
from .generate import png_info, provenance
from .generators import Generator
from .identity import Identity, calm_frames
from .labels import LabelTable, read_labels
from .metrics import best_threshold
from .model import AUNet
from .module import PersonalModule, predict
from .profile import BASE_DOMAIN, Profile, check_name, check_text, next_version
from .reader import Reader, batch_of, blend, lasting, lead_of, neutral_features, neutral_tensors, offsets_at, without_rest
from .regularizers import ParameterRegularizer, Regularizer
from .requests import needs, of_round
from .video import Media, open_media

KEEP = 400
"""Frames of a person that are kept: spread over the clip, at most so many, whatever its length."""
MAX_PEOPLE = 6
CHECKPOINT_EVERY = 25
SHARED = 64
"""Generated samples of a person that later fits rehearse, at most."""
GENERATED_KEPT = 4
"""Sets of generated samples of a person that are kept for later fits, the newest."""
GENERATED, SAMPLES = "generated", "samples.safetensors"
MADE = "made"
"""In a run's work folder: the sets that it made itself, a name a line."""


@dataclass
class FitResult:
    """A finished fit. evidence: of each AU column, heard: the same for people; metrics: what stands in metrics.json."""

    profile: Profile
    run_dir: Path
    identity: Identity
    evidence: dict[str, dict[str, float]]
    heard: dict[str, dict[str, float]]
    metrics: dict[str, Any]


def fit(
    media: Media,
    recipe: dict[str, Any],
    run_dir: Path,
    name: str,
    labels: LabelTable | None = None,
    neutral_at: float | str | None = None,
    face: int | None = None,
    consent: str = "",
) -> FitResult:
    """Fit the base model of ``recipe`` to the person in a clip; writes everything of a run into ``run_dir``.

    A run that was killed is continued when called again with the same arguments. Raises InputError where the clip cannot be used.
    """
    started = time.time()
    tracking.quiet_lightning()
    L.seed_everything(recipe["seed"], verbose=False)
    base = load_base(recipe["base"])
    work = run_dir / "work"
    work.mkdir(parents=True, exist_ok=True)
    tracker = registry.create("trackers", recipe["tracker"]["name"], recipe["tracker"]["options"])
    try:
        found = collect(media, tracker, face, labels, neutral_at)
        notes = list(found.warnings)
        identity = identify(found, base, media, name, neutral_at, notes)
        session = Session(base, identity, recipe, run_dir, labels_of(labels, identity, found, media, notes))
        generator = registry.create("generators", recipe["generator"]["name"], recipe["generator"]["options"])
        seen_by = {"clip": media.sha256(), "face": face, "base": base.sha256, "tracker": recipe["tracker"]}
        for number in range(recipe["rounds"]):
            if not (work / f"samples-{number}.safetensors").exists() and recipe["generator"]["samples"] > 0:
                made = session.generate(generator, tracker, number, seen_by, media)
                if not made and generator.makes_pictures and number == 0:
                    notes.append(no_pictures(recipe, found.scheme))
                    ui.warn(notes[-1])
            (work / f"ready-{number}").touch()
            session.train(number)
            if not session.improved(number):
                break
        (work / "done").touch()
    finally:
        tracker.close()
    return session.finish(media, found, notes, consent, started)


def trainer_of(recipe: dict[str, Any], loggers: Any, ours: list[L.Callback]) -> L.Trainer:
    """The trainer of a round, with the recipe's flags. Raises ConfigError for flags that go together with nothing here."""
    flags = ranks.trainer_flags(recipe["trainer"])
    defaults = {
        "max_steps": recipe["optim"]["max_steps"],
        "max_epochs": -1,
        "logger": loggers,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "log_every_n_steps": 10,
        "gradient_clip_val": 1.0,
    }
    if flags.get("logger") in (True, None):
        flags.pop("logger", None)
    ranks.refuse_own(recipe["trainer"], {"use_distributed_sampler": "", "max_steps": "optim.max_steps"}, "fit")
    if str(flags.get("precision", "")) in ("bf16-true", "16-true", "64-true", "64"):
        raise ConfigError(f"trainer.precision={flags['precision']} would change the model's own numbers: use bf16-mixed, 16-mixed or 32.")
    callbacks = ours + list(flags.get("callbacks") or [])
    try:
        # What a step sees is for StepBatches to say, on every rank.
        return L.Trainer(**{**defaults, **flags, "callbacks": callbacks, "use_distributed_sampler": False})
    except (MisconfigurationException, ValueError, TypeError) as problem:
        raise ConfigError(f"flags of the trainer: {ui.one_line(problem)}") from problem


def no_pictures(recipe: dict[str, Any], scheme: str) -> str:
    """What to say of a generator that answered no request. scheme: of the tracker's points."""
    why = "" if scheme == "mesh478" else f": those of tracker {recipe['tracker']['name']} are not the 478 points that most generators need"
    return (
        f"generator {recipe['generator']['name']} made none of {recipe['generator']['samples']} pictures{why}; "
        "the fit learns from the clip's calm frames, labels and rehearsal alone"
    )


class Session:
    """The training of one person: samples, rounds, the best round so far."""

    def __init__(self, base: Base, identity: Identity, recipe: dict[str, Any], run_dir: Path, labels: Truth) -> None:
        self.base, self.identity, self.recipe, self.run_dir = base, identity, recipe, run_dir
        self.labels = labels
        self.work = run_dir / "work"
        self.net = base.fresh()
        options = recipe["adapter"]["options"]
        self.adapter = registry.create("adapters", recipe["adapter"]["name"], options)
        torch.manual_seed(recipe["seed"])
        moving = self.adapter.apply(self.net)
        size, most = sum(p.numel() for p in moving) * (2 if self.adapter.half else 4) / 1e6, recipe["profile"]["max_mb"]
        if size > most:
            raise ConfigError(
                f"with adapter {recipe['adapter']['name']} the profile takes some {size:.1f} MB, more than profile.max_mb={most:g}: "
                "raise that, or take a smaller adapter (lora)."
            )
        # What regularizers hold it to, in every round: the base, with an adapter that has not moved.
        self.unmoved = copy.deepcopy(self.net)
        self.delta: dict[str, Tensor] = {}
        self.rounds: list[dict[str, Any]] = []
        # Two of every five seconds of the clip are held out for the evidence: neither they nor, where they have labels, warps of them are
        # trained on.
        times = np.array([o.timestamp for o in identity.observations])
        self.held = (times % 5.0) >= 3.0
        if self.held.sum() < 4 or (~self.held).sum() < 4:
            self.held = np.arange(len(times)) % 5 >= 3
        self.neutral = None
        if identity.neutral is not None and recipe["neutral"]["use"]:
            self.neutral = neutral_tensors(identity.neutral)
        self.trusted = identity.neutral.trusted if identity.neutral is not None else np.zeros(len(AUS), np.float32)
        self.evidence: gate.Evidence | None = None
        self.prepared = False

    def generate(self, generator: Generator, tracker: Tracker, number: int, seen_by: dict[str, Any], media: Media) -> bool:
        """Make the samples of a round, what the clip lacks and the base is weak in, then what is still held-out error; or take those that
        an earlier fit made in the same way of the same frames. seen_by: what makes the frames the same. False where there are none."""
        if self.evidence is None:
            need = needs(self.identity, self.base.reliability())
        else:
            need = np.clip(1 - np.nan_to_num(self.evidence.gain), 0, 2)[:, None]
        asked = of_round(self.identity, need, self.recipe, number)
        neutral = [] if self.identity.neutral is None else self.identity.neutral.indices.tolist()
        made_by = {"generator": self.recipe["generator"], "content": generator.content(), "seed": self.recipe["seed"]}
        seen_by = {**seen_by, "hidden": np.flatnonzero(self._judged).tolist()}
        key = digest({**seen_by, **made_by, "neutral": neutral, "requests": [str(r) for r in asked], "version": (__version__, 2)})
        kept = self.run_dir.parent / GENERATED / key
        if not (kept / SAMPLES).exists():
            if not self.prepared:
                # Of frames whose labels decide gates it has no views: warped, they would be trained on.
                given = [replace(o, view=None) if judged else o for o, judged in zip(self.identity.observations, self._judged, strict=True)]
                generator.prepare(replace(self.identity, observations=given), self.recipe["seed"])
                self.prepared = True
            generator.restart(number)
            samples, pictures = generate(generator, asked, self.identity, tracker, f"Generating round {number + 1}")
            if samples is None:
                return False
            kept.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".", dir=kept.parent))
            try:
                self._write_pictures(pictures, temporary, media)
                samples.save(temporary / SAMPLES)
                temporary.replace(kept)
                with (self.work / MADE).open("a") as made:
                    made.write(f"{key}\n")
            except OSError:
                if not (kept / SAMPLES).exists():  # else a fit beside this one was quicker
                    raise
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        for picture in sorted(kept.glob("*.png")):
            (self.run_dir / "samples").mkdir(exist_ok=True)
            shutil.copy2(picture, self.run_dir / "samples")
        mine = self.work / f"samples-{number}.safetensors"
        shutil.copy2(kept / SAMPLES, mine.with_suffix(".tmp"))
        mine.with_suffix(".tmp").replace(mine)  # whole or not at all
        for old in sorted(kept.parent.glob("[!.]*"), key=lambda p: p.stat().st_mtime)[:-GENERATED_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return True

    @property
    def _judged(self) -> np.ndarray:
        """(N,) bool, the held-out frames that have labels."""
        return np.asarray(self.held & self.labels.known.any(1))

    def _write_pictures(self, pictures: list[tuple[np.ndarray, str]], folder: Path, media: Media) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        record = provenance(self.recipe["generator"]["name"], media, self.recipe["seed"])
        for i, (image, caption) in enumerate(pictures):
            info = png_info(record | {"asked": caption})
            info.add_text("caption", caption)
            Image.fromarray(image).save(folder / f"{i:02d}_{caption.replace(' ', '_')}.png", pnginfo=info)

    def _made(self, number: int) -> list[Samples]:
        """The generated samples of each round up to one that has any."""
        return [Samples.load(p) for i in range(number + 1) if (p := self.work / f"samples-{i}.safetensors").exists()]

    def samples(self, number: int) -> tuple[Samples, Samples | None]:
        """Training samples up to a round (generated, neutral frames, labelled frames), and the generated ones that are held out."""
        generated = self._made(number)
        parts, held = [], None
        if generated:
            whole = join(generated)
            # By source and place, so that a later round's samples never move an earlier one's across the line.
            out = torch.arange(len(whole)) % 5 == 4
            parts.append(Samples(whole.rows(~out), whole.rejected))
            held = Samples(whole.rows(out))
        observations, neutral = self.identity.observations, self.identity.neutral
        at_rest = self.trusted > 0.3
        if neutral is not None and at_rest.any():
            rest = [int(i) for i in neutral.indices if not self.held[i]] or [int(i) for i in neutral.indices]
            calm = Truth.unknown(len(rest))
            calm.known = at_rest & ~self.labels.known[rest]  # what a label says of them, it says
            parts.append(frame_samples([observations[i] for i in rest], calm, neutral.confidence, rest))
        rows = np.flatnonzero(self.labels.known.any(1) & ~self.held)
        if len(rows):
            parts.append(frame_samples([observations[i] for i in rows], self.labels.rows(rows), 2.0, rows.tolist()))
        if not parts:
            raise InputError(
                f"nothing to learn from: {self.identity.name}'s clip shows no calm face and there are neither samples nor labels. "
                "Use --neutral SECONDS."
            )
        return join(parts), held

    def _buffer(self) -> ReplayBuffer:
        buffer: ReplayBuffer = registry.create("buffers", self.recipe["buffer"]["name"], self.recipe["buffer"]["options"])
        buffer.add(base_domain(self.recipe["base"]), BASE_DOMAIN)
        if self.recipe["buffer"]["shared"] and self._shared.exists():
            buffer.load(self._shared)
            if self.identity.name in buffer.seen:
                buffer.forget(self.identity.name)
        return buffer

    @property
    def _shared(self) -> Path:
        return self.run_dir.parent.parent / "buffer.safetensors"

    def train(self, number: int) -> None:
        """One round; on every rank. Continues from the round's checkpoint where there is one."""
        recipe = self.recipe
        finished = self.work / f"round-{number}.safetensors"
        if finished.exists():
            from safetensors.torch import load_file

            self.adapter.restore(self.net, load_file(finished))
            return
        samples, _ = self.samples(number)
        buffer = self._buffer()
        regularizers: dict[str, Regularizer] = {}
        for key, options in recipe["regularizers"].items():
            made: Regularizer = registry.create("regularizers", key, options)
            if isinstance(made, ParameterRegularizer):
                batches = (buffer.sample(16) for _ in range(max(len(buffer) // 16, 1)))  # as many as it asks for
                made.start(self.unmoved, batches, predict=predict)
                made.check_stiffness(recipe["optim"]["lr"], adaptive=True)
            else:
                made.start(self.unmoved, predict)  # type: ignore[attr-defined]
            regularizers[key] = made
        optim = recipe["optim"]
        module = PersonalModule(
            self.net, self.adapter, regularizers, buffer, self.neutral, optim, optim["batch_size"], recipe["seed"] * 100 + number
        )
        last = self.work / f"round-{number}.ckpt"
        start = _step_of(last)
        loggers = tracking.loggers(self.run_dir, recipe, self.identity.name)
        ours = [_Saver(last, start), _Bar(f"Adapting, round {number + 1}", optim["max_steps"], start)]
        trainer = trainer_of(recipe, loggers, ours)
        gathered = trainer.accumulate_grad_batches
        data = PersonData(samples, optim["batch_size"], optim["max_steps"] * gathered, recipe["seed"] * 100 + number)
        trainer.fit(module, data, ckpt_path=str(last) if start else None, weights_only=False)
        tracking.finish(loggers)
        self.net.eval()
        # A later round starts from what is written, which is rounded to half precision, as it would after a kill.
        delta = self.adapter.delta(self.net)
        self.adapter.restore(self.net, delta)
        if trainer.is_global_zero:
            from safetensors.torch import save_file

            temporary = finished.with_suffix(".tmp")
            save_file({k: v.contiguous() for k, v in delta.items()}, temporary)
            temporary.replace(finished)
            last.unlink(missing_ok=True)
        if trainer.world_size > 1:
            trainer.strategy.barrier()

    @torch.no_grad()
    def _read(self, net: AUNet, batch: dict[str, Tensor], neutral: bool) -> np.ndarray:
        """(N, K) expected intensities."""
        out = []
        rest = None
        if neutral and self.neutral is not None:
            rest = net.rest_of(self.neutral["crop"], self.neutral["landmarks"])
        for i in range(0, len(batch["crop"]), 64):
            part = {k: v[i : i + 64] for k, v in batch.items()}
            out.append(net(part["crop"], part["landmarks"], part["has_landmarks"], rest)["intensity"].numpy())
        return np.concatenate(out) if out else np.zeros((0, len(AUS)), np.float32)

    def weigh(self, number: int) -> gate.Evidence:
        """The evidence for the model as it is now, on what its training did not see."""
        self.net.eval()
        _, held = self.samples(number)
        neutral = self.neutral is not None
        fresh = self.base.net
        tested = None
        if held is not None and len(held):
            t = held.tensors
            tested = (self._read(fresh, t, False), self._read(self.net, t, neutral), t["target"].numpy(), t["mask"].numpy())
        frames = batch_of([o for o, h in zip(self.identity.observations, self.held, strict=True) if h])
        readings = {"base": self.identity.intensity[self.held], "personal": self._read(self.net, frames, neutral)}
        labelled = None
        if (self.labels.known & self.held[:, None]).any():
            truth = self.labels.rows(self.held)
            labelled = (truth.judge(readings["base"]), truth.judge(readings["personal"]), truth.target, truth.known)
        return gate.hear(tested, readings, labelled)

    def improved(self, number: int) -> bool:
        """Weigh a round; keep it if it is the best so far. False: the rounds end here."""
        new = self.adapter.delta(self.net)
        evidence, score = self._weighed(number)
        self.rounds.append({"round": number + 1, "held_out_gain": score})
        best = -np.inf
        if self.delta:  # by what is held out now, samples asked for where it was weak among them
            self.adapter.restore(self.net, self.delta)
            self.evidence, best = self._weighed(number)
            self.adapter.restore(self.net, new)
        if score > best:
            self.evidence, self.delta = evidence, new
        return score > best + 0.005

    def _weighed(self, number: int) -> tuple[gate.Evidence, float]:
        """:meth:`weigh`, and the mean gain over AUs that labels, else held-out samples, tell of; 0 where they tell of none."""
        evidence = self.weigh(number)
        witnesses = np.where(np.isnan(evidence.labelled), evidence.gain, evidence.labelled)
        return evidence, float(np.nanmean(witnesses)) if not np.isnan(witnesses).all() else 0.0

    def finish(self, media: Media, found: Collected, notes: list[str], consent: str, started: float) -> FitResult:
        """Open the gates, write profile, metrics, recipe and report; drop the work folder."""
        self.adapter.restore(self.net, self.delta)
        self.net.eval()
        assert self.evidence is not None
        settings = self.recipe["gate"]
        trusted = self.trusted if self.neutral is not None else np.ones(len(AUS), np.float32)
        opened = gate.opening(self.evidence, trusted, self.base.promise(), settings["closed_agreement"], settings["open_agreement"])
        opened = opened * min(settings["open"], 1.0)
        trust = np.full(len(AUS), settings["trust"], np.float32)
        neutral: dict[str, Tensor] = {}
        if self.neutral is not None and self.identity.neutral is not None:
            neutral = {k: v.float() for k, v in neutral_features(self.net, self.identity.neutral).items()}
        own = self._read(self.net, batch_of(self.identity.observations), self.neutral is not None)
        read = blend(self.identity.intensity, own, opened, trust)
        offsets = self._offsets(read)
        thresholds = self._thresholds(read, offsets, opened if self.neutral is not None else np.zeros_like(opened))
        adapter = self.recipe["adapter"]
        profile = Profile(
            name=self.identity.name,
            base_name=self.base.name,
            base_sha256=self.base.sha256,
            adapter=adapter["name"],
            adapter_options=adapter["options"],
            delta=self.delta,
            neutral=neutral,
            neutral_confidence=float(self.trusted.mean()),
            gate=opened,
            trust=trust,
            thresholds=thresholds,
            offsets=offsets,
            lead=lead_of(read, self.identity.intensity),
            plugins={key: Path(source).name for key, source in registry.used(self.recipe).items()},
            recipe=self.recipe,
            provenance=_provenance(media, found),
            consent=consent,
            version=__version__,
        )
        profile.save(self.run_dir, round(self.recipe["profile"]["max_mb"] * 1e6))
        from .report import collect as gather
        from .report import write_report

        samples, held = self.samples(len(self.rounds) - 1)
        times = [o.timestamp for o in self.identity.observations]
        traces = {
            "base": self.base.report(self.identity.intensity),
            "personal": Reader(self.base, profile).in_clip(read, self.identity.intensity, times),
        }
        coverage = self.identity.coverage()
        evidence = self.evidence.rows()
        told = heard(evidence, self.trusted, self.base.promise())
        report: dict[str, Any] = {
            "title": f"Personal AU model of {self.identity.name}",
            "name": self.identity.name,
            "created": profile.manifest()["created"],
            "version": __version__,
            "summary": f"Fitted on {media.name}: {found.frames_with_face} of {found.frames} frames show the face, {len(times)} were used. "
            f"{int((opened > 0.5).sum())} of {len(AUS)} AUs are read mostly by the personal model, "
            f"{int((opened < 0.05).sum())} stay as the base reads them.",
            "warnings": notes,
            "facts": {
                "samples trained on": len(samples),
                "samples held out": 0 if held is None else len(held),
                "refused by the generator": sum(samples.rejected.get(REFUSED, {}).values()),
                "not found again by the tracker": sum(samples.rejected.get(LOST, {}).values()),
                "rounds": len(self.rounds),
                "minutes": round((time.time() - started) / 60, 1),
            },
            "neutral": {
                "confidence": round(float(self.trusted.mean()), 2),
                "seconds": ", ".join(f"{times[int(i)]:.2f}" for i in self.identity.neutral.indices[:8])
                if self.identity.neutral
                else "none found",
            },
            "coverage": self._coverage(),
            "aus": [
                {
                    "au": c,
                    "gate": round(float(opened[k]), 3),
                    "evidence": {said: None if np.isnan(v) else round(v, 3) for said, v in told[c].items()},
                    "trust": float(trust[k]),
                    "threshold": round(float(thresholds[k]), 2),
                    "offset": round(float(offsets[k]), 2),
                }
                for k, c in enumerate(COLUMNS)
            ],
            "traces": {
                "time": times,
                **{who: {c: shown[:, k].round(2).tolist() for k, c in enumerate(COLUMNS)} for who, shown in traces.items()},
            },
            "provenance": profile.manifest()["provenance"],
            "consent": consent,
            "use": [f"personalize predict --input CLIP --profile {self.run_dir.parent}"],
            "recipe": profile.manifest()["recipe"],
        }
        metrics = {
            "seconds": round(time.time() - started, 1),
            "rounds": self.rounds,
            "evidence": {c: {k: (None if np.isnan(v) else round(v, 4)) for k, v in row.items()} for c, row in evidence.items()},
            "gate": {c: round(float(g), 4) for c, g in zip(COLUMNS, opened, strict=True)},
            "rejected": samples.rejected,
            "coverage": coverage,
            "report": report,
        }
        (self.run_dir / "metrics.json").write_text(json.dumps(_jsonable(metrics), indent=1) + "\n")
        save_recipe(self.recipe, self.run_dir / "recipe.yaml")
        write_report(self.run_dir / "report.html", gather(self.run_dir))
        if self.recipe["buffer"]["shared"]:
            self._remember()
        shutil.rmtree(self.work, ignore_errors=True)
        return FitResult(profile, self.run_dir, self.identity, evidence, told, metrics)

    def _remember(self) -> None:
        """Put some of this person's generated samples into the buffer that later fits rehearse from, in place of what an earlier fit put
        there; ``identities forget`` takes them out. A profile that is written already is not lost for it."""
        generated = self._made(len(self.rounds) - 1)
        if not generated:
            return
        samples = join(generated)
        rows = samples.rows(torch.linspace(0, len(samples) - 1, min(len(samples), SHARED)).long())
        n = len(rows["crop"])
        del rows["source"], rows["occurrence"]  # a generated picture's intensities are known
        rows["landmarks"] = torch.nan_to_num(rows["landmarks"])
        if self.neutral is not None:
            rows["neutral_crop"] = self.neutral["crop"][:1].expand(n, -1, -1, -1)
            rows["neutral_landmarks"] = torch.nan_to_num(self.neutral["landmarks"]).expand(n, -1, -1)
            rows["has_neutral"] = torch.ones(n, dtype=torch.bool)
        try:
            with ReplayBuffer.alone(self._shared):  # fits may run side by side
                buffer = self._buffer()
                buffer.add(rows, self.identity.name)
                buffer.save(self._shared)
        except (PersonalizeError, OSError) as error:
            ui.warn(f"later fits cannot rehearse this person, {self._shared.name} is left as it was: {ui.one_line(error)}")

    def _offsets(self, read: np.ndarray) -> np.ndarray:
        """(K,) see :func:`offsets_at`; 0 without a neutral. read: (N, K) expected in the clip's frames."""
        if self.neutral is None or self.identity.neutral is None:
            return np.zeros(len(AUS), np.float32)
        expected = self.identity.intensity
        calm = calm_frames(expected, expected[self.identity.neutral.indices])
        return offsets_at(read[calm], self.trusted, self.base)

    def _thresholds(self, read: np.ndarray, offsets: np.ndarray, told: np.ndarray) -> np.ndarray:
        """(K,) reported intensities: the base's thresholds; where labels show both states, the one with the best F1 on them.

        read: (N, K) expected in the clip's frames; offsets: (K,) what the person shows at rest; told: (K,) 0-1, how far the neutral tells.
        """
        thresholds = self.base.thresholds_with(told)
        if self.labels.known.any():
            seen = lasting(read, [o.timestamp for o in self.identity.observations])
            final = self.base.report(without_rest(read, offsets, seen), told)
            for k in range(len(AUS)):
                rows = self.labels.known[:, k]
                present = self.labels.target[rows, k] >= 2
                if present.sum() >= 5 and (~present).sum() >= 5:
                    found = best_threshold(final[rows, k], present)
                    if found > final[rows, k].min():  # else present in every frame there is
                        thresholds[k] = max(found, 0.25 * thresholds[k])
        return thresholds

    def _coverage(self) -> dict[str, Any]:
        poses = np.degrees(np.array([o.pose for o in self.identity.observations]))
        yaw, pitch = np.array([-90, -45, -25, -10, 10, 25, 45, 90.0]), np.array([-90, -30, -10, 10, 30, 90.0])
        counts, _, _ = np.histogram2d(poses[:, 0], poses[:, 1], bins=[pitch, yaw])
        shown = self.base.report(self.identity.intensity)
        frames, high = (shown >= self.base.thresholds).sum(0), shown.max(0)
        rare = [c for c, n in zip(COLUMNS, frames, strict=True) if n < 0.005 * len(shown)]
        return {
            "yaw_deg": yaw.tolist(),
            "pitch_deg": pitch.tolist(),
            "counts": counts.astype(int).tolist(),
            "aus": {c: {"frames": int(frames[k]), "max": round(float(high[k]), 2)} for k, c in enumerate(COLUMNS)},
            "lacks": [f"never seen in the clip: {', '.join(rare)}"] if rare else [],
        }


def _jsonable(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _jsonable(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_jsonable(v) for v in x]
    if isinstance(x, float) and np.isnan(x):
        return None
    return x


class _Saver(L.Callback):
    """Saves the round's checkpoint now and then, whole or not at all; small, as the base is not in it.

    Only between steps: an exception, Ctrl-C too, may come when half of a step is done, and what is saved then repeats nothing exactly.
    """

    def __init__(self, path: Path, start: int) -> None:
        self.path, self.saved = path, start

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step % CHECKPOINT_EVERY == 0 and self.saved < step < trainer.max_steps:
            save_checkpoint(trainer, self.path)
            self.saved = step


def _step_of(checkpoint: Path) -> int:
    """The step at which a checkpoint was written, 0 where there is none."""
    return int(torch.load(checkpoint, map_location="cpu", weights_only=False)["global_step"]) if checkpoint.exists() else 0


class _Bar(L.Callback):
    def __init__(self, title: str, steps: int, start: int) -> None:
        self.title, self.steps, self.start = title, steps, start

    def on_train_start(self, *_: Any) -> None:
        self.bar = ui.progress(None, self.steps - self.start, self.title)
        self.bar.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self.bar.advance(1)

    def on_train_end(self, *_: Any) -> None:
        self.bar.__exit__(None, None, None)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self.bar.__exit__(type(exception), exception, None)


def _provenance(media: Media, found: Collected) -> dict[str, Any]:
    return {
        "clip": media.name,
        "kind": media.kind,
        "sha256": media.sha256(),
        "duration_s": None if media.duration is None else round(float(media.duration), 2),
        "frames": found.frames,
        "frames_with_face": found.frames_with_face,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),  # noqa: UP017
    }


def fit_command(args: argparse.Namespace) -> int:
    """``personalize fit``."""
    joined = ranks.joined_run()
    if joined is not None:
        return _join(joined)
    if args.resume:
        run_dir = Path(args.resume)
        state = run_dir / "work" / "arguments.json"
        if not state.exists():
            raise InputError(
                f"nothing to resume in {run_dir}: it is finished, or no run of personalize. "
                "Start anew with personalize fit --identity CLIP."
            )
        saved, recipe = _begun(run_dir)
    else:
        if not args.identity:
            raise InputError("no clip given: use personalize fit --identity CLIP, or --resume RUN to continue one.")
        recipe = load_recipe(args.recipe or "default", args.overrides, "fit")
        saved = {
            "identity": _absolute(args.identity),
            "name": check_name(args.name or _name_of(args.identity)),
            "labels": _absolute(args.labels) if args.labels else None,
            "neutral": args.neutral,
            "face": args.face,
            "consent": args.consent or "",
            "plugins": [str(Path(file).expanduser().resolve()) for file in args.plugins or ()],
        }
    # Everything that can be wrong with what the user gave is found before a folder is made.
    typed = saved if args.resume else {"identity": args.identity, "labels": args.labels}
    media = open_media(typed["identity"])
    labels = read_labels(typed["labels"], clip=media.name) if typed["labels"] else None
    same = {"clip": media.sha256(), "base": load_base(recipe["base"]).sha256}
    if saved["labels"]:
        same["label file"] = hashlib.sha256(Path(saved["labels"]).read_bytes()).hexdigest()
    for what, digest_now in same.items():
        if saved.setdefault("same", same)[what] != digest_now:
            raise InputError(f"the {what} is not the one that {run_dir} was begun with: put that back, or start anew.")
    for kind in ("tracker", "generator", "buffer", "adapter"):
        registry.load(kind + "s", recipe[kind]["name"])
    tracking.quiet_lightning()
    trainer_of(recipe, [DummyLogger()], [])
    check_neutral(saved["neutral"], media)
    check_text(saved["consent"], "--consent")
    made = None
    if not args.resume:
        run_dir = made = next_version(args.output, saved["name"])
        (run_dir / "work").mkdir(parents=True)
        (run_dir / "work" / "arguments.json").write_text(json.dumps(saved))
        save_recipe(recipe, run_dir / "work" / "recipe.yaml")
    args.run_dir = run_dir
    ranks.tell_run(run_dir)
    try:
        result = fit(media, recipe, run_dir, saved["name"], labels, saved["neutral"], saved["face"], saved["consent"])
    except Exception:
        if made is not None and not (made / "profile").exists():  # what is written is not lost, and goes on with --resume
            own = made / "work" / MADE
            for key in own.read_text().split() if own.exists() else ():
                shutil.rmtree(made.parent / GENERATED / key, ignore_errors=True)
            shutil.rmtree(made, ignore_errors=True)
            for folder in (made.parent / GENERATED, made.parent):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        raise
    _say(result)
    return 0


def _begun(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an unfinished run was started with, its arguments and its recipe; its plug-in files are loaded."""
    saved = json.loads((run_dir / "work" / "arguments.json").read_text())
    for file in saved.get("plugins", ()):
        registry.load_file(file)
    return saved, load_recipe(str(run_dir / "work" / "recipe.yaml"), [])


def _absolute(path: str) -> str:
    """Where a resumed run and other ranks find a file; a link stays what it is called."""
    return os.path.abspath(Path(path).expanduser())


def _name_of(identity: str) -> str:
    stem = unicodedata.normalize("NFKD", Path(identity.rstrip("/")).stem)
    cleaned = "".join(c if c.isalnum() or c in "._-" else "_" for c in stem.encode("ascii", "ignore").decode())[:64].strip("._-")
    if cleaned and not any(c.isalnum() and not c.isascii() for c in stem):
        return cleaned
    # Letters of other scripts are lost: what is left of two strangers' names may be the same.
    return f"{cleaned[:55].rstrip('._-') or 'person'}-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"


def heard(evidence: dict[str, dict[str, float]], trusted: np.ndarray, promise: np.ndarray) -> dict[str, dict[str, float]]:
    """For people, by AU column: what a gate was decided on, see :mod:`personalize.gate`; without labels where there are none."""
    found = {}
    for k, c in enumerate(COLUMNS):
        e = evidence[c]
        found[c] = {"rests": float(trusted[k]), "helps": float(promise[k])}
        found[c] |= {"moves": e["moves"], "agreement": e["agreement"], "gain": e["gain"]}
        if any(not np.isnan(row["labelled"]) for row in evidence.values()):
            found[c]["gain on labels"] = e["labelled"]
    return found


def _say(result: FitResult) -> None:
    gate = result.profile.gate
    rows = [[c, float(gate[k]), *(result.heard[c].values())] for k, c in enumerate(COLUMNS)]
    ui.table("Gates, and what they were decided on", ["AU", "gate", *result.heard[COLUMNS[0]]], rows)
    if gate.max() < 0.05 and result.profile.offsets.max() < 0.05:
        ui.warn("no gate opened: with this profile everything is read as the base reads it")
    run = result.run_dir
    ui.info(f"profile: {run / 'profile'}; report: {run / 'report.html'}")
    ui.info(f"next: personalize predict --input CLIP --profile {run.parent}")


def _join(run_dir: Path) -> int:
    """A worker rank of a distributed fit: waits for each round's samples and trains along, as long as the rank that started it lives."""
    parent = os.getppid()
    tracking.quiet_lightning()
    work = run_dir / "work"
    saved, recipe = _begun(run_dir)
    base = load_base(recipe["base"])
    labels = read_labels(saved["labels"], clip=Path(saved["identity"]).name) if saved["labels"] else None
    tracker = registry.create("trackers", recipe["tracker"]["name"], recipe["tracker"]["options"])
    media = open_media(saved["identity"])
    found = collect(media, tracker, saved["face"], labels, saved["neutral"], quiet=True)
    tracker.close()
    identity = identify(found, base, media, saved["name"], saved["neutral"], [])
    session = Session(base, identity, recipe, run_dir, labels_of(labels, identity, found, media, []))
    for number in range(recipe["rounds"]):
        while not (work / f"ready-{number}").exists():
            if (work / "done").exists() or not work.exists() or os.getppid() != parent:
                return 0
            time.sleep(0.2)
        session.train(number)
    return 0
