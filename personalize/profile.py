"""The profile: what turns the base model into one person's, in a small file; and the folders that profiles live in.

A profile is a folder of two files. ``profile.safetensors`` holds the adapter's delta and the neutral statistics, ``manifest.json`` all that
can be read by eye. It holds no picture and no path, and loading it never unpickles. Runs are kept as ``OUTPUT/NAME/vK/``.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

from .aus import AUS, MAX_INTENSITY, column
from .errors import InputError, ProfileError

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 2
"""Version of the format that this package writes."""
NO_LEAD = float(MAX_INTENSITY)
"""A profile's ``lead`` where it is not known: no reading leads by more, so none is taken to be another day's."""


def _without_lead(manifest: dict[str, Any]) -> dict[str, Any]:
    given = manifest.get("per_au")
    per_au = {au: v | {"lead": NO_LEAD} for au, v in given.items() if isinstance(v, dict)} if isinstance(given, dict) else given
    return manifest | {"schema": 2, "per_au": per_au}


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _without_lead}
"""Schema -> function that turns a manifest of it into one of the next schema."""
MAX_BYTES = 2_000_000
MANIFEST, TENSORS = "manifest.json", "profile.safetensors"
_NEUTRAL_SHAPES = {"crop": "(width,) or (1, width) features", "landmarks": "(478, 3) or (1, 478, 3) points"}
_PER_AU = ("gate", "trust", "threshold", "offset", "lead")


@dataclass
class Profile:
    """One person's model, as a difference to a base model.

    name: the identity. base_name, base_sha256: the base's name and the hash of its weights file.
    adapter, adapter_options, delta: the adapter plug-in, its options, and its tensors by parameter name (floats).
    neutral: 'crop' (1, width) features and 'landmarks' (1, 478, 3), as :meth:`personalize.model.AUNet.neutral_features`; may be empty.
    neutral_confidence: 0-1.
    gate: (K,) 0-1, share of the personal output. trust: (K,) largest move from the base, in intensity. thresholds: (K,) intensity from
    which an AU counts as present. offsets: (K,) what is taken out as rest, see :func:`personalize.reader.without_rest`.
    lead: (K,) by how much this model read above the base in half of the person's clip, see :meth:`personalize.reader.Reader.another_day`.
    plugins: 'kind/name' -> version. recipe: resolved; paths in it are cut to file names when saved.
    provenance: e.g. 'clip' (file name), 'sha256', 'duration_s', 'frames', 'date'; no paths. consent: free text.
    """

    name: str
    base_name: str
    base_sha256: str
    adapter: str = ""
    adapter_options: dict[str, Any] = field(default_factory=dict)
    delta: dict[str, Tensor] = field(default_factory=dict)
    neutral: dict[str, Tensor] = field(default_factory=dict)
    neutral_confidence: float = 0.0
    gate: np.ndarray = field(default_factory=lambda: np.zeros(len(AUS), dtype=np.float32))
    trust: np.ndarray = field(default_factory=lambda: np.zeros(len(AUS), dtype=np.float32))
    thresholds: np.ndarray = field(default_factory=lambda: np.ones(len(AUS), dtype=np.float32))
    offsets: np.ndarray = field(default_factory=lambda: np.zeros(len(AUS), dtype=np.float32))
    lead: np.ndarray = field(default_factory=lambda: np.full(len(AUS), NO_LEAD, dtype=np.float32))
    aus: tuple[int, ...] = AUS
    plugins: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    consent: str = ""
    created: str = ""
    version: str = ""

    def manifest(self) -> dict[str, Any]:
        """What ``manifest.json`` holds, but for the hash of the tensors."""
        arrays = {"gate": self.gate, "trust": self.trust, "threshold": self.thresholds, "offset": self.offsets, "lead": self.lead}
        per_au = {key: np.broadcast_to(np.asarray(value, dtype=np.float32), (len(self.aus),)) for key, value in arrays.items()}
        return {
            "schema": SCHEMA,
            "personalize": self.version or _version(),
            "created": self.created or datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),  # noqa: UP017
            "name": self.name,
            "base": {"name": self.base_name, "sha256": self.base_sha256},
            "aus": [int(au) for au in self.aus],
            "adapter": {"name": self.adapter, "options": strip_paths(self.adapter_options)},
            "neutral": {"confidence": float(self.neutral_confidence), "parts": sorted(self.neutral)},
            "per_au": {column(au): {key: float(per_au[key][k]) for key in _PER_AU} for k, au in enumerate(self.aus)},
            "plugins": dict(self.plugins),
            "recipe": strip_paths(self.recipe),
            "provenance": strip_paths(self.provenance),
            "consent": self.consent,
        }

    def save(self, folder: str | Path, max_bytes: int | None = MAX_BYTES) -> Path:
        """Write ``folder/profile/`` and return it; whole or not at all, an earlier one is replaced.

        max_bytes: limit of both files together; None: none.

        Raises:
            ProfileError: too large, a picture or a path in it, a value that is not finite, or it cannot be written (disk full).
        """
        from safetensors.torch import save

        parts = {"delta": self.delta, "neutral": self.neutral}
        tensors = {f"{part}/{key}": value for part, held in parts.items() for key, value in held.items()}
        _check_tensors(tensors)
        tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        manifest = self.manifest()
        _check_manifest(manifest)
        data = save(tensors)
        manifest["tensors"] = {"file": TENSORS, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False).encode()
        if max_bytes is not None and len(data) + len(text) > max_bytes:
            raise ProfileError(
                f"the profile of '{self.name}' takes {(len(data) + len(text)) / 1e6:.1f} MB, more than {max_bytes / 1e6:.1f} MB. "
                "Use a lower rank (adapter.options.rank=2) or a smaller adapter (adapter.name=head)."
            )
        folder = Path(folder)
        target = folder / "profile"
        temporary: Path | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".profile-", dir=folder))
            new, old = temporary / "new", temporary / "old"
            new.mkdir()
            for name, content in ((TENSORS, data), (MANIFEST, text)):
                with open(new / name, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            if target.exists():  # a folder cannot be renamed over one that is not empty
                target.rename(old)
            try:
                new.rename(target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
        except OSError as error:
            what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
            raise ProfileError(
                f"cannot write the profile to '{target}': {what}. Nothing was written; free some space or choose another --output."
            ) from None
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        return target

    @classmethod
    def load(
        cls, path: str | Path, base_name: str | None = None, base_sha256: str | None = None, aus: tuple[int, ...] | None = AUS
    ) -> Profile:
        """Read a profile; tensors come on the CPU.

        path: runs/N (its latest complete version), runs/N/vK, runs/N/vK/profile or a file in it.
        base_name, base_sha256: the base at hand, checked where given. aus: the AU axis at hand, or None for no check.

        Raises:
            ProfileError: in one line, for anything that keeps it from being used.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        folder = find_profile(path)
        manifest = read_manifest(folder)
        try:
            data = (folder / TENSORS).read_bytes()
        except OSError as error:
            raise ProfileError(f"cannot read '{folder / TENSORS}': {error.strerror}.") from None
        try:
            tensors = load(data)
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ProfileError(f"'{folder / TENSORS}' is broken ({reason}). Copy it again from where it was made, or fit again.") from None
        base = manifest["base"]
        if hashlib.sha256(data).hexdigest() != manifest["tensors"]["sha256"]:
            raise ProfileError(
                f"'{folder / TENSORS}' is not the file that its manifest was written for (wrong hash). Copy both files again, or fit again."
            )
        if base_sha256 is not None and base["sha256"] != base_sha256:
            raise ProfileError(
                f"the profile of '{manifest['name']}' was made for base '{base['name']}' ({base['sha256'][:12]}), and this is "
                f"base '{base_name or 'unnamed'}' ({base_sha256[:12]}). Use that base, or fit again with this one."
            )
        if aus is not None and tuple(manifest["aus"]) != tuple(aus):
            mine, other = set(manifest["aus"]), set(aus)
            parts = {"only it has": mine - other, "it lacks": other - mine}
            differs = "; ".join(f"{how} {', '.join(map(column, sorted(some)))}" for how, some in parts.items() if some) or "another order"
            raise ProfileError(
                f"the profile of '{manifest['name']}' has another AU list than this base ({differs}). Fit again with this base."
            )
        per_au = manifest["per_au"]
        arrays = {key: np.array([per_au[column(au)][key] for au in manifest["aus"]], dtype=np.float32) for key in _PER_AU}
        return cls(
            name=manifest["name"],
            base_name=base["name"],
            base_sha256=base["sha256"],
            adapter=manifest["adapter"]["name"],
            adapter_options=manifest["adapter"]["options"],
            delta={key[len("delta/") :]: value for key, value in tensors.items() if key.startswith("delta/")},
            neutral={key[len("neutral/") :]: value for key, value in tensors.items() if key.startswith("neutral/")},
            neutral_confidence=manifest["neutral"]["confidence"],
            gate=arrays["gate"],
            trust=arrays["trust"],
            thresholds=arrays["threshold"],
            offsets=arrays["offset"],
            lead=arrays["lead"],
            aus=tuple(manifest["aus"]),
            plugins=manifest["plugins"],
            recipe=manifest["recipe"],
            provenance=manifest["provenance"],
            consent=manifest["consent"],
            created=manifest["created"],
            version=manifest["personalize"],
        )


def find_profile(path: str | Path) -> Path:
    """The profile folder that a path means; see :meth:`Profile.load`. Raises ProfileError where there is none."""
    path = Path(path)
    if path.name in (MANIFEST, TENSORS) and path.parent.is_dir():
        path = path.parent
    if not path.exists():
        raise ProfileError(f"no profile at '{path}': there is no such folder. Make one with: personalize fit --identity CLIP --name NAME.")
    candidates = [path, path / "profile", *(v / "profile" for v in reversed(versions(path)))]
    for candidate in candidates:
        if _complete(candidate):
            return candidate
    half = next((c for c in candidates if any((c / name).is_file() for name in (MANIFEST, TENSORS))), None)
    if half is not None:
        missing = next(name for name in (MANIFEST, TENSORS) if not (half / name).is_file())
        raise ProfileError(f"the profile in '{half}' is incomplete: {missing} is missing. Copy the whole folder, or fit again.")
    hint = "Its fit did not finish; run it with --resume." if versions(path) else "Give runs/NAME, runs/NAME/vK or the profile folder."
    raise ProfileError(f"no profile in '{path}'. {hint}")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a profile folder, migrated to this schema and checked; reads no tensors and imports no torch."""
    file = Path(folder) / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"cannot read '{file}': {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise ProfileError(f"'{file}' is broken: no JSON. Copy it again from where it was made, or fit again.") from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if not isinstance(schema, int) or schema < 1:
        raise ProfileError(f"'{file}' is no profile's manifest: it has no schema version.")
    if schema > SCHEMA:
        raise ProfileError(
            f"'{file}' has schema {schema}, written by personalize {manifest.get('personalize', '?')}; "
            f"this one reads up to {SCHEMA}. Upgrade personalize."
        )
    for step in range(schema, SCHEMA):
        manifest = MIGRATIONS[step](manifest)
    wanted: dict[str, type | tuple[type, ...]] = {
        "personalize": str, "created": str, "name": str, "base": dict, "aus": list, "adapter": dict, "neutral": dict,
        "per_au": dict, "plugins": dict, "recipe": dict, "provenance": dict, "consent": str, "tensors": dict,
    }  # fmt: skip
    inner = {"base": ("name", "sha256"), "adapter": ("name", "options"), "neutral": ("confidence",), "tensors": ("sha256",)}
    for key, kind in wanted.items():
        if not isinstance(manifest.get(key), kind):
            raise ProfileError(f"'{file}' is broken: '{key}' is missing or of the wrong type. Copy it again, or fit again.")
        for part in inner.get(key, ()):
            if part not in manifest[key]:
                raise ProfileError(f"'{file}' is broken: '{key}.{part}' is missing. Copy it again, or fit again.")
    for au in manifest["aus"]:
        values = manifest["per_au"].get(column(au)) if isinstance(au, int) else None
        if not isinstance(values, dict) or not all(isinstance(values.get(key), (int, float)) for key in _PER_AU):
            raise ProfileError(f"'{file}' is broken: 'per_au' has no numbers for AU {au}. Copy it again, or fit again.")
    return manifest


def _complete(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and (folder / TENSORS).is_file()


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("personalize")
    except PackageNotFoundError:
        return "0"


# --- nothing of the person but numbers ---------------------------------------------------------------------------------------------

_ABSOLUTE = re.compile(r"(?<![\w:/.\\])(?:/(?=[\w.~])|~/|[A-Za-z]:[\\/]|\\\\(?=\w))|(?<=:)/(?=\w)|file:/", re.IGNORECASE)
_EMBEDDED = re.compile(r"(?:(?<![\w:/.\\])(?:/(?=[\w.~])|~/|[A-Za-z]:[\\/]|\\\\(?=\w))|(?<=:)/(?=\w)|file:/+)[^\s'\",;]*", re.IGNORECASE)
_SETTING = re.compile(r"([A-Za-z_][\w.]*=)(['\"]?)(.*)\2", re.DOTALL)


def strip_paths(value: Any) -> Any:
    """A copy of a plain container in which every path is cut to its file name; keys, also those of overrides (key=value), numbers
    and web addresses stay."""
    if isinstance(value, dict):
        return {str(key): strip_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strip_paths(item) for item in value]
    if isinstance(value, os.PathLike):
        return _file_name(os.fspath(value))
    if not isinstance(value, str):
        return value
    if setting := _SETTING.fullmatch(value):
        key, quote, said = setting.groups()
        return f"{key}{quote}{strip_paths(said)}{quote}"
    if _ABSOLUTE.match(value) or (("/" in value or "\\" in value) and "://" not in value and not re.search(r"\s", value)):
        return _file_name(value)
    return _EMBEDDED.sub(lambda match: _file_name(match.group()), value)


def _file_name(text: str) -> str:
    name = PureWindowsPath(text).name if "\\" in text else PurePosixPath(text).name
    return name if name not in ("", "..", "~") else "folder"


def check_text(text: str, what: str) -> None:
    """Raise ProfileError where a text that is to stand in a profile holds a path."""
    if found := _ABSOLUTE.search(text):
        path = text[found.start() : found.start() + 60]
        raise ProfileError(f"a profile may hold no path, and {what} has one: '{path}'. Leave it out.")


def _check_manifest(value: Any, where: str = "manifest") -> None:
    """Refuse paths and numbers that JSON cannot hold."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_manifest(str(key), where)
            _check_manifest(item, f"{where}.{key}")
    elif isinstance(value, list):
        for item in value:
            _check_manifest(item, where)
    elif isinstance(value, str):
        check_text(value, where)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ProfileError(f"{where} of the profile is not a finite number: the fit went wrong. Fit again with a smaller optim.lr.")
    elif value is not None and not isinstance(value, (bool, int)):
        raise ProfileError(f"{where} of the profile is a {type(value).__name__}; it must be plain JSON.")


def _check_tensors(tensors: dict[str, Tensor]) -> None:
    for key, value in tensors.items():
        if not value.is_floating_point():
            raise ProfileError(f"tensor '{key}' of the profile is {value.dtype}: only floats are kept, and no picture of the person.")
        # A tracker of 68 points knows nothing of the rest of the mesh.
        held = value[~value.isnan()] if key == "neutral/landmarks" else value
        if not bool(held.isfinite().all()):
            raise ProfileError(f"tensor '{key}' of the profile is not finite: the fit went wrong. Fit again with a smaller optim.lr.")
        kind, _, part = key.partition("/")
        if kind != "neutral":
            continue
        if part not in _NEUTRAL_SHAPES:
            raise ProfileError(f"'{part}' is no neutral statistic. There is: {', '.join(_NEUTRAL_SHAPES)}.")
        shape = tuple(value.shape[1:] if value.ndim > 1 and value.shape[0] == 1 else value.shape)
        fits = shape == (478, 3) if part == "landmarks" else len(shape) == 1 and shape[0] <= 4096
        if not fits:
            wanted = _NEUTRAL_SHAPES[part]
            raise ProfileError(f"neutral '{part}' must be {wanted}, and has shape {tuple(value.shape)}. A profile keeps no picture.")


# --- runs/NAME/vK ------------------------------------------------------------------------------------------------------------------

BASE_DOMAIN = "base"
"""Whose the base model's own pictures are in a replay buffer; nobody may be called so."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str) -> str:
    """The name of an identity, or InputError: letters, digits, '.', '_' and '-', at most 64, the first a letter or a digit."""
    if not _NAME.fullmatch(name) or name.endswith("."):
        allowed = "letters, digits, '.', '_' and '-', at most 64, starting with a letter or a digit"
        raise InputError(f"'{name}' cannot be a name. Use {allowed}.")
    if name == BASE_DOMAIN:
        raise InputError(
            f"'{name}' cannot be a person's name: replay buffers keep the base model's own pictures under it. Give another --name."
        )
    return name


def versions(folder: str | Path) -> list[Path]:
    """The version folders v1, v2, ... in ``runs/NAME``, in order of number."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if re.fullmatch(r"v[1-9]\d*", p.name) and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name[1:]))


def next_version(output: str | Path, name: str) -> Path:
    """Make and return ``output/name/vK``, K one more than the highest there, from 1; two runs at the same time get two folders."""
    folder = Path(output) / check_name(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            there = versions(folder)
            new = folder / f"v{int(there[-1].name[1:]) + 1 if there else 1}"
            try:
                new.mkdir()  # atomic: of two runs one gets it, the other counts on
            except FileExistsError:
                if not new.is_dir():
                    raise InputError(f"'{new}' is in the way: it is no folder.") from None
                continue
            return new
    except OSError as error:
        raise InputError(f"cannot make a run folder in '{folder}': {error.strerror}. Choose another --output.") from None


# --- personalize identities ---------------------------------------------------------------------------------------------------------


def identities_command(args: Any) -> int:
    """``personalize identities list|show NAME|forget NAME``; returns the exit code.

    args: ``action``, ``name`` (None for list), ``output`` (the runs folder) and ``yes`` (forget without asking).
    """
    output = Path(args.output)
    if args.action == "list":
        return _list(output)
    if not args.name:
        raise InputError(f"identities {args.action} needs a name.")
    if args.action == "show":
        return _show(_person(output, args.name))
    if args.action == "forget":
        return _forget(output, _person(output, args.name), bool(args.yes))
    from .errors import unknown

    raise InputError(unknown("action", str(args.action), ("list", "show", "forget")))


def _person(output: Path, name: str) -> Path:
    folder = output / check_name(name)
    if not versions(folder):
        from .errors import unknown

        names = [p.name for p in _people(output)]
        raise InputError(unknown("identity", name, names) if names else f"unknown identity '{name}': '{output}' holds none.")
    return folder


def _people(output: Path) -> list[Path]:
    return sorted(p for p in output.iterdir() if versions(p)) if output.is_dir() else []


def _size(folder: Path) -> int:
    return sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def _list(output: Path) -> int:
    people = _people(output)
    if not people:
        print(f"No identities in '{output}'. Make one with: personalize fit --identity CLIP --name NAME.")
        return 0
    width = max(len("name"), *(len(p.name) for p in people))
    print(f"{'name':<{width}}  {'latest':<6}  {'made':<10}  {'base':<12}  {'adapter':<8}  AUs open")
    for folder in people:
        try:
            profile = find_profile(folder)
            m = read_manifest(profile)
        except ProfileError:
            print(f"{folder.name:<{width}}  {versions(folder)[-1].name:<6}  no complete profile")
            continue
        opened = sum(values["gate"] > 0.5 for values in m["per_au"].values())
        version = profile.parent.name if profile.name == "profile" else "-"
        base, adapter = m["base"]["name"], m["adapter"]["name"] or "-"
        print(f"{folder.name:<{width}}  {version:<6}  {m['created'][:10]:<10}  {base:<12}  {adapter:<8}  {opened}/{len(m['aus'])}")
    return 0


def _show(folder: Path) -> int:
    for version in versions(folder):
        state = "" if _complete(version / "profile") else "  (no complete profile)"
        print(f"{folder.name}/{version.name}  {_size(version) / 1e6:.1f} MB{state}")
    profile = find_profile(folder)
    m = read_manifest(profile)
    lines = {
        "profile": str(profile),
        "made": f"{m['created']} by personalize {m['personalize']}",
        "base": f"{m['base']['name']} ({m['base']['sha256'][:12]})",
        "adapter": f"{m['adapter']['name'] or 'none'} {json.dumps(m['adapter']['options'])}",
        "neutral": f"confidence {m['neutral']['confidence']:.2f}",
        "plugins": ", ".join(f"{k} {v}" for k, v in m["plugins"].items()) or "none",
        "provenance": ", ".join(f"{k}: {v}" for k, v in m["provenance"].items()) or "none",
        "consent": m["consent"] or "not stated",
    }
    for key, text in lines.items():
        print(f"{key + ':':<12}{text}")
    print("\nAU    gate  trust  threshold  offset")
    for name, v in m["per_au"].items():
        print(f"{name}  {v['gate']:4.2f}  {v['trust']:5.2f}  {v['threshold']:9.2f}  {v['offset']:+6.2f}")
    return 0


def _forget(output: Path, folder: Path, yes: bool) -> int:
    there = versions(folder)
    buffers = sorted(output.glob("buffer*.safetensors"))
    names = ", ".join(v.name for v in there)
    what = f"'{folder}': {len(there)} version{'s' if len(there) > 1 else ''} ({names}), {_size(folder) / 1e6:.1f} MB"
    if not yes:
        if not sys.stdin.isatty():
            raise InputError(f"forget deletes {what}, for good. Add --yes to confirm.")
        if input(f"Delete {what}, for good? [y/N] ").strip().lower() not in ("y", "yes"):
            print("Nothing was deleted.")
            return 1
    # Buffers first: should one fail, the folder is still there to try again by its name.
    for file in buffers:
        from .buffers import ReplayBuffer

        with ReplayBuffer.alone(file):
            removed = _forget_in_buffer(file, folder.name)
        print(f"Removed {removed} item{'' if removed == 1 else 's'} of '{folder.name}' from '{file}'.")
    rehearsed = [file for file in sorted(output.glob("*/v*/work/*.ckpt")) if folder not in file.parents and _rehearses(file, folder.name)]
    for file in rehearsed:
        file.unlink(missing_ok=True)
    if rehearsed:
        print(
            f"Deleted {len(rehearsed)} checkpoint{'s' * (len(rehearsed) > 1)} of other people's unfinished fits that held '{folder.name}'."
        )
    try:
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)
    except OSError as error:
        raise InputError(f"cannot delete '{error.filename or folder}': {error.strerror}. Part of '{folder}' is left.") from None
    print(f"Deleted {what}: profiles, checkpoints, samples, logs and caches.")
    print("Copies elsewhere (exported files, synced W&B runs) are not known here: delete them yourself.")
    return 0


def _rehearses(checkpoint: Path, name: str) -> bool:
    """Whether the replay buffer in an unfinished fit's checkpoint holds a person, or nobody can say."""
    import torch

    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)  # runs nothing that a file may hold
        return name in state.get("buffer", {}).get("seen", {})
    except Exception:
        return True


def _forget_in_buffer(file: Path, name: str) -> int:
    """Remove a person's items from a shared buffer file, through the class that wrote it; returns how many."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            state = json.loads((opened.metadata() or {})["replay_buffer"])
        plugin, capacity, seen = str(state["plugin"]), int(state["capacity"]), state["seen"]
    except (SafetensorError, KeyError, ValueError, TypeError, OSError):
        raise InputError(
            f"'{file}' is broken or no replay buffer, so '{name}' cannot be removed from it. Delete that file and try again."
        ) from None
    if name not in seen:
        return 0
    from . import registry

    kinds = (registry.load("buffers", known) for known in registry.available("buffers"))
    buffer_class = next((kind for kind in kinds if kind.__name__ == plugin), None)
    if buffer_class is None:
        raise InputError(
            f"'{file}' was written by the buffer {plugin}, which is not installed. Install it, or delete that file, and try again."
        )
    buffer = buffer_class(capacity=capacity)
    buffer.load(file)
    removed = int(buffer.forget(name))
    buffer.save(file)
    return removed
