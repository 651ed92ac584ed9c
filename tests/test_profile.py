"""Profiles: what is on disk is a contract (exact round trip, integrity, no picture, no path), and folders of runs."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from personalize import profile as profiles
from personalize.aus import AUS
from personalize.errors import InputError, ProfileError
from personalize.profile import Profile, check_name, find_profile, identities_command, next_version, strip_paths

BASE = hashlib.sha256(b"base").hexdigest()


def make(name: str = "anna", **changes) -> Profile:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    given = {
        "adapter": "lora",
        "adapter_options": {"rank": 4},
        "delta": {"head.latent.lora_a": torch.randn(4, 256), "head.latent.lora_b": torch.randn(22, 4).half()},
        "neutral": {"crop": torch.randn(1, 192), "landmarks": torch.randn(1, 478, 3)},
        "neutral_confidence": 0.83,
        "gate": rng.random(len(AUS)).astype(np.float32),
        "trust": np.full(len(AUS), 1.5, np.float32),
        "thresholds": rng.random(len(AUS)).astype(np.float32) * 5,
        "offsets": rng.normal(size=len(AUS)).astype(np.float32),
        "lead": rng.normal(size=len(AUS)).astype(np.float32),
        "plugins": {"adapters/lora": "0.1.0"},
        "recipe": {"seed": 0, "base": "base", "adapter": {"name": "lora", "options": {"rank": 4}}},
        "provenance": {"clip": "talking.mp4", "sha256": "ab" * 32, "duration_s": 53.2, "frames": 1580, "date": "2026-03-04"},
        "consent": "I am the person in the clip, and/or their guardian.",
    }
    return Profile(name, "base", BASE, **(given | changes))


def test_round_trip_is_exact(tmp_path):
    mine = make()
    folder = mine.save(tmp_path / "anna" / "v1")
    assert folder == tmp_path / "anna" / "v1" / "profile"
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "profile.safetensors"]
    assert [p.name for p in folder.parent.iterdir()] == ["profile"]
    other = Profile.load(folder, "base", BASE)
    for key in ("gate", "trust", "thresholds", "offsets", "lead"):
        np.testing.assert_array_equal(getattr(other, key), getattr(mine, key))
        assert getattr(other, key).dtype == np.float32
    for kind in ("delta", "neutral"):
        assert set(getattr(other, kind)) == set(getattr(mine, kind))
        for key, value in getattr(mine, kind).items():
            assert torch.equal(getattr(other, kind)[key], value) and getattr(other, kind)[key].dtype == value.dtype
    for key in (
        "name",
        "adapter",
        "adapter_options",
        "aus",
        "plugins",
        "recipe",
        "provenance",
        "consent",
        "neutral_confidence",
        "base_sha256",
    ):
        assert getattr(other, key) == getattr(mine, key)
    assert other.created and other.version


def test_the_manifest_is_a_contract(tmp_path):
    folder = make().save(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest) == {
        "schema", "personalize", "created", "name", "base", "aus", "adapter", "neutral", "per_au", "plugins", "recipe", "provenance",
        "consent", "tensors",
    }  # fmt: skip
    assert manifest["schema"] == 2 and manifest["aus"] == list(AUS)
    assert set(manifest["per_au"]["AU06"]) == {"gate", "trust", "threshold", "offset", "lead"}
    assert manifest["tensors"]["sha256"] == hashlib.sha256((folder / "profile.safetensors").read_bytes()).hexdigest()


def test_an_empty_adapter_is_a_profile_too(tmp_path):
    other = Profile.load(Profile("anna", "base", BASE).save(tmp_path))
    assert other.delta == {} and other.neutral == {} and not other.gate.any()


def test_every_way_to_name_it_and_the_latest_complete_version(tmp_path):
    person = tmp_path / "anna"
    for k in (1, 2, 10):
        make(consent=f"v{k}").save(person / f"v{k}")
    (person / "v11").mkdir()  # a fit that did not finish
    for path, wanted in (
        (person, "v10"),
        (person / "v2", "v2"),
        (person / "v2" / "profile", "v2"),
        (person / "v1" / "profile" / "manifest.json", "v1"),
        (str(person), "v10"),
    ):
        assert Profile.load(path).consent == wanted
    with pytest.raises(ProfileError) as caught:
        find_profile(person / "v11")
    assert str(caught.value) == f"no profile in '{person / 'v11'}'. Give runs/NAME, runs/NAME/vK or the profile folder."


def test_saving_again_replaces(tmp_path):
    make(consent="one").save(tmp_path)
    make(consent="two").save(tmp_path)
    assert Profile.load(tmp_path).consent == "two" and [p.name for p in tmp_path.iterdir()] == ["profile"]


def test_too_large_says_what_to_do_and_writes_nothing(tmp_path):
    with pytest.raises(ProfileError) as caught:
        make(delta={"w": torch.zeros(600_000)}).save(tmp_path / "v1")
    assert str(caught.value) == (
        "the profile of 'anna' takes 2.4 MB, more than 2.0 MB. "
        "Use a lower rank (adapter.options.rank=2) or a smaller adapter (adapter.name=head)."
    )
    assert not (tmp_path / "v1").exists()
    assert make(delta={"w": torch.zeros(600_000)}).save(tmp_path / "v1", max_bytes=None).is_dir()


@pytest.mark.parametrize("earlier", [False, True])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, earlier):
    if earlier:
        make(consent="earlier").save(tmp_path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(profiles.os, "fsync", full)
        with pytest.raises(ProfileError) as caught:
            make().save(tmp_path)
    assert str(caught.value) == (
        f"cannot write the profile to '{tmp_path / 'profile'}': the disk is full. "
        "Nothing was written; free some space or choose another --output."
    )
    assert [p.name for p in tmp_path.iterdir()] == (["profile"] if earlier else [])
    if earlier:
        assert Profile.load(tmp_path).consent == "earlier"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neutral": {"crop": torch.zeros(3, 112, 112)}}, "neutral 'crop' must be"),
        ({"neutral": {"crop": torch.zeros(1, 3, 112, 112)}}, "A profile keeps no picture."),
        ({"neutral": {"crop": torch.zeros(1, 37632)}}, "A profile keeps no picture."),
        ({"neutral": {"picture": torch.zeros(4)}}, "'picture' is no neutral statistic. There is: crop, landmarks."),
        ({"delta": {"w": torch.zeros(3, 8, 8, dtype=torch.uint8)}}, "only floats are kept, and no picture of the person."),
        ({"delta": {"w": torch.tensor([float("nan")])}}, "tensor 'delta/w' of the profile is not finite"),
        ({"gate": np.full(len(AUS), np.nan)}, "manifest.per_au.AU01.gate of the profile is not a finite number"),
        (
            {"consent": "see /home/anna/consent.pdf"},
            "a profile may hold no path, and manifest.consent has one: '/home/anna/consent.pdf'. Leave it out.",
        ),
        ({"plugins": {"C:\\plugins\\mine.py": "1"}}, "a profile may hold no path"),
        ({"recipe": {"x": object()}}, "manifest.recipe.x of the profile is a object; it must be plain JSON."),
    ],
)
def test_no_picture_and_no_path_enters(tmp_path, changes, message):
    with pytest.raises(ProfileError) as caught:
        make(**changes).save(tmp_path / "v1")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "v1").exists()


def test_paths_in_recipe_and_provenance_are_cut_to_names(tmp_path):
    recipe = {"base": "/home/anna/models/mine.safetensors", "plugins": ["../x/my.py", Path("/a/b.py")], "n": 3, "url": "https://x.org/a/b"}
    folder = make(recipe=recipe, provenance={"clip": "C:\\Users\\Anna\\me.mp4", "note": "from /mnt/disk/a b"}).save(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["recipe"] == {"base": "mine.safetensors", "plugins": ["my.py", "b.py"], "n": 3, "url": "https://x.org/a/b"}
    assert manifest["provenance"] == {"clip": "me.mp4", "note": "from a b"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/home/anna/My Clips/a.mp4", "a.mp4"),
        ("~/clips/a.mp4", "a.mp4"),
        ("file:///home/anna/a.mp4", "a.mp4"),
        ("runs/anna/v1", "v1"),
        ("\\\\server\\share\\a.mp4", "a.mp4"),
        ("1/2 and/or 3", "1/2 and/or 3"),
        ('start="/home/anna/mine/base"', 'start="base"'),
        ("generator.options.weights=models/x.pt", "generator.options.weights=x.pt"),
        ("url=https://x.org/a/b", "url=https://x.org/a/b"),
        ("lora", "lora"),
        (1.5, 1.5),
        (None, None),
    ],
)
def test_strip_paths(text, wanted):
    assert strip_paths(text) == wanted


def corrupt(folder: Path, change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    def error(path: Path, **given) -> str:
        with pytest.raises(ProfileError) as caught:
            Profile.load(path, **given)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert (
        error(tmp_path / "no")
        == f"no profile at '{tmp_path / 'no'}': there is no such folder. Make one with: personalize fit --identity CLIP --name NAME."
    )
    assert error(tmp_path) == f"no profile in '{tmp_path}'. Give runs/NAME, runs/NAME/vK or the profile folder."

    def fresh(name: str) -> Path:
        return make().save(tmp_path / name)

    folder = fresh("truncated")
    (folder / "profile.safetensors").write_bytes((folder / "profile.safetensors").read_bytes()[:-100])
    assert error(folder).startswith(f"'{folder / 'profile.safetensors'}' is broken (")
    folder = fresh("garbage")
    (folder / "profile.safetensors").write_bytes(b"")
    assert " is broken (" in error(folder)
    folder = fresh("flipped")
    data = bytearray((folder / "profile.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "profile.safetensors").write_bytes(bytes(data))
    assert error(folder) == (
        f"'{folder / 'profile.safetensors'}' is not the file that its manifest was written for (wrong hash). "
        "Copy both files again, or fit again."
    )
    folder = fresh("half")
    (folder / "profile.safetensors").unlink()
    assert (
        error(folder.parent)
        == f"the profile in '{folder}' is incomplete: profile.safetensors is missing. Copy the whole folder, or fit again."
    )
    folder = fresh("other-base")
    assert error(folder, base_name="mine", base_sha256="f" * 64) == (
        f"the profile of 'anna' was made for base 'base' ({BASE[:12]}), and this is base 'mine' (ffffffffffff). "
        "Use that base, or fit again with this one."
    )
    folder = fresh("newer")
    corrupt(folder, lambda m: m.update(schema=3, personalize="9.0"))
    assert (
        error(folder)
        == f"'{folder / 'manifest.json'}' has schema 3, written by personalize 9.0; this one reads up to 2. Upgrade personalize."
    )
    folder = fresh("json")
    (folder / "manifest.json").write_text("{")
    assert error(folder) == f"'{folder / 'manifest.json'}' is broken: no JSON. Copy it again from where it was made, or fit again."
    for content in ("[]", "{}", '{"schema": "1"}', '{"schema": 0}'):
        (folder / "manifest.json").write_text(content)
        assert error(folder) == f"'{folder / 'manifest.json'}' is no profile's manifest: it has no schema version."
    folder = fresh("lacks")
    corrupt(folder, lambda m: m["base"].pop("sha256"))
    assert error(folder) == f"'{folder / 'manifest.json'}' is broken: 'base.sha256' is missing. Copy it again, or fit again."
    folder = fresh("aus")
    assert error(folder, aus=(1, 2, *AUS[2:-1], 99)) == (
        "the profile of 'anna' has another AU list than this base (only it has AU43; it lacks AU99). Fit again with this base."
    )


def test_loading_never_unpickles(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "boom",))

    folder = make().save(tmp_path / "v1")
    (folder / "profile.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ProfileError, match="is broken"):
        Profile.load(folder)
    torch.save({"x": torch.zeros(1)}, folder / "profile.safetensors")
    with pytest.raises(ProfileError, match="is broken"):
        Profile.load(folder)
    assert not (tmp_path / "boom").exists()


def test_an_older_schema_is_migrated(tmp_path, monkeypatch):
    folder = make().save(tmp_path)
    monkeypatch.setattr(profiles, "SCHEMA", 3)
    monkeypatch.setitem(profiles.MIGRATIONS, 2, lambda m: m | {"schema": 3, "consent": "migrated"})
    assert Profile.load(folder).consent == "migrated"


def test_a_profile_of_the_first_schema_says_nothing_of_its_lead(tmp_path):
    """As it was written before there was a lead: everything else is as it was, and no reading leads by 5."""
    mine = make()
    folder = mine.save(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    for values in manifest["per_au"].values():
        del values["lead"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema": 1}))
    other = Profile.load(folder)
    assert (other.lead == 5).all() and other.lead.shape == (len(AUS),)
    np.testing.assert_array_equal(other.offsets, mine.offsets)
    for broken in ({}, {"per_au": 3}, {"per_au": {"AU01": 3}}):
        (folder / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "per_au"} | {"schema": 1} | broken))
        with pytest.raises(ProfileError, match="is broken: 'per_au' (is missing|has no numbers)"):
            Profile.load(folder)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "ä", "-x", "x" * 65, "a\n", "dot."])
def test_bad_names(tmp_path, name):
    with pytest.raises(InputError, match=r"cannot be a name. Use letters, digits, '.', '_' and '-'"):
        next_version(tmp_path / "runs", name)
    assert not (tmp_path / "runs").exists()


def test_versions_count_up_also_at_the_same_time(tmp_path):
    assert check_name("Anna_2.b-c") == "Anna_2.b-c"
    assert next_version(tmp_path, "anna") == tmp_path / "anna" / "v1"
    (tmp_path / "anna" / "v9").mkdir()
    assert next_version(tmp_path, "anna").name == "v10"
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: next_version(tmp_path, "ben"), range(48)))
    assert sorted(int(p.name[1:]) for p in made) == list(range(1, 49))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make a run folder"):
        next_version(tmp_path, "file")


def args(action: str, output: Path, name: str | None = None, yes: bool = False) -> SimpleNamespace:
    return SimpleNamespace(action=action, name=name, output=str(output), yes=yes)


def test_list_and_show(tmp_path, capsys):
    assert identities_command(args("list", tmp_path / "none")) == 0
    assert (
        capsys.readouterr().out == f"No identities in '{tmp_path / 'none'}'. Make one with: personalize fit --identity CLIP --name NAME.\n"
    )
    make().save(tmp_path / "anna" / "v1")
    make().save(tmp_path / "anna" / "v2")
    (tmp_path / "ben" / "v1").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    identities_command(args("list", tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "anna", "ben"]
    opened = int((make().gate > 0.5).sum())  # read mostly by the personal model
    assert 0 < opened < 22
    assert lines[1].split()[1] == "v2" and lines[1].split()[-1] == f"{opened}/22" and "no complete profile" in lines[2]
    identities_command(args("show", tmp_path, "anna"))
    out = capsys.readouterr().out
    assert "clip: talking.mp4" in out and "lora" in out and "AU06" in out and "and/or their guardian" in out
    with pytest.raises(InputError, match=r"^unknown identity 'ana'. Did you mean 'anna'\? There is: anna, ben.$"):
        identities_command(args("show", tmp_path, "ana"))
    with pytest.raises(InputError, match="identities show needs a name"):
        identities_command(args("show", tmp_path))


def test_forget_deletes_everything_of_one_person(tmp_path, capsys, monkeypatch):
    for name in ("anna", "ben"):
        make(name).save(tmp_path / name / "v1")
        make(name).save(tmp_path / name / "v2")
        (tmp_path / name / "cache").mkdir()
        (tmp_path / name / "v2" / "last.ckpt").write_bytes(b"x" * 10)
    with pytest.raises(InputError) as caught:
        identities_command(args("forget", tmp_path, "anna"))
    assert str(caught.value).startswith(f"forget deletes '{tmp_path / 'anna'}': 2 versions (v1, v2), ") and str(caught.value).endswith(
        "Add --yes to confirm."
    )
    assert (tmp_path / "anna").exists()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert identities_command(args("forget", tmp_path, "anna")) == 1 and (tmp_path / "anna").exists()
    capsys.readouterr()
    assert identities_command(args("forget", tmp_path, "anna", yes=True)) == 0
    assert capsys.readouterr().out.startswith(f"Deleted '{tmp_path / 'anna'}': 2 versions (v1, v2), ")
    assert not (tmp_path / "anna").exists() and (tmp_path / "ben" / "v2" / "last.ckpt").exists()
    with pytest.raises(InputError, match=r"cannot be a name"):
        identities_command(args("forget", tmp_path / "ben", "..", yes=True))


def test_forget_takes_the_person_out_of_other_peoples_unfinished_fits(tmp_path, capsys):
    """Whose checkpoints hold a replay buffer with pictures of earlier people; one that nobody can read may."""
    make("anna").save(tmp_path / "anna" / "v1")
    for name, seen in (("ben", {"base": 3, "anna": 2}), ("cid", {"base": 3})):
        (tmp_path / name / "v1" / "work").mkdir(parents=True)
        torch.save({"buffer": {"seen": seen}}, tmp_path / name / "v1" / "work" / "round-0.ckpt")
    (tmp_path / "ben" / "v1" / "work" / "round-1.ckpt").write_bytes(b"half of one")
    identities_command(args("forget", tmp_path, "anna", yes=True))
    assert "Deleted 2 checkpoints of other people's unfinished fits that held 'anna'." in capsys.readouterr().out
    assert [p.parent.parent.parent.name for p in tmp_path.glob("*/v1/work/*.ckpt")] == ["cid"]


def test_forget_follows_no_link_out_of_the_runs(tmp_path):
    outside = tmp_path / "outside"
    make().save(outside / "v1")
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "anna").symlink_to(outside)
    identities_command(args("forget", runs, "anna", yes=True))
    assert not (runs / "anna").is_symlink() and (outside / "v1" / "profile").is_dir()


def test_forget_takes_the_person_out_of_shared_buffers(tmp_path, capsys):
    pytest.importorskip("personalize.registry")
    from personalize import registry

    if "reservoir" not in registry.available("buffers"):
        pytest.skip("needs the installed package: its plug-ins are found by entry points")
    reservoir = registry.load("buffers", "reservoir")
    buffer = reservoir(capacity=8)
    for who in ("anna", "ben"):
        batch = {
            "crop": torch.zeros(3, 3, 112, 112, dtype=torch.uint8),
            "landmarks": torch.zeros(3, 478, 3),
            "has_landmarks": torch.ones(3, dtype=torch.bool),
            "target": torch.zeros(3, len(AUS)),
            "mask": torch.ones(3, len(AUS), dtype=torch.bool),
            "weight": torch.ones(3),
        }
        buffer.add(batch, who)
    buffer.save(tmp_path / "buffer.safetensors")
    make().save(tmp_path / "anna" / "v1")
    identities_command(args("forget", tmp_path, "anna", yes=True))
    assert f"Removed 3 items of 'anna' from '{tmp_path / 'buffer.safetensors'}'." in capsys.readouterr().out
    again = reservoir(capacity=8)
    again.load(tmp_path / "buffer.safetensors")
    assert again.people() == {"ben": 3} and "anna" not in again.seen
