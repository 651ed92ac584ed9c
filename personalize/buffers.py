"""The base class of replay buffers: a bounded memory of earlier people and of the base domain.

A template method: the base class checks, copies, saves and draws; a plug-in only decides which slot an item goes to. A buffer is told what
it sees and in which order, so ranks of a distributed run that are told the same hold the same. It holds pictures: it stays on the user's
machine, and :meth:`ReplayBuffer.forget` takes a person out of it.

>>> import torch
>>> from personalize.buffers import Field, ReplayBuffer
>>> class First(ReplayBuffer):
...     schema = {"x": Field((2,), torch.float32)}
...     def slot(self, item, n_seen):
...         return self.free_slot()
>>> buffer = First(capacity=3)
>>> buffer.add({"x": torch.ones(5, 2)}, person="ann")
>>> len(buffer), buffer.people(), buffer.sample(2)["x"].shape
(3, {'ann': 3}, torch.Size([2, 2]))
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .aus import AUS, MAX_INTENSITY
from .errors import ConfigError, InputError, unknown
from .model import CROP, POINTS

Batch = dict[str, Tensor]
_FORMAT = 1


@dataclass(frozen=True)
class Field:
    """One tensor of a batch: its shape without the batch axis, its dtype, the range of its values (None: any finite), and the name of the
    group that it belongs to where it is optional (fields of one group come together or not at all).
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: float | None = None
    high: float | None = None
    group: str | None = None


AU_SCHEMA: dict[str, Field] = {
    "crop": Field((3, CROP, CROP), torch.uint8),
    "landmarks": Field((POINTS, 3), torch.float32),
    "has_landmarks": Field((), torch.bool),
    "target": Field((len(AUS),), torch.float32, 0.0, MAX_INTENSITY),
    "mask": Field((len(AUS),), torch.bool),
    "weight": Field((), torch.float32, low=0.0),
    "neutral_crop": Field((3, CROP, CROP), torch.uint8, group="neutral"),
    "neutral_landmarks": Field((POINTS, 3), torch.float32, group="neutral"),
    "has_neutral": Field((), torch.bool, group="neutral"),
}
"""The batches of the package. Unknown targets are 0 with ``mask`` False, never NaN: NaN times a zero weight is NaN."""


@dataclass(frozen=True)
class Item:
    """What a plug-in sees of an item when it decides on a slot: whose it is, AU intensities (K,) and which of them are known (K,) bool.
    K is 0 where the schema has no ``target`` and ``mask``.
    """

    person: str
    target: Tensor
    known: Tensor


class ReplayBuffer(ABC):
    """Base class of replay buffers. The signature of ``__init__`` is the plug-in's configuration.

    Attributes for plug-ins (read only): ``capacity``; ``owners``, the person in each slot or None; ``targets`` and ``known``, (capacity, K)
    of what the slots hold; ``generator``, the only source of randomness that ``slot`` may use; ``seen``, items offered by each person that
    is not forgotten. ``schema`` may be overridden in a subclass or on an empty instance.

    Args:
        capacity: how many items are held, at least 1.
        seed: of the two random streams, one for slots and one for draws, so that drawing never changes what is kept.
    """

    schema: Mapping[str, Field] = AU_SCHEMA

    def __init__(self, capacity: int = 512, seed: int = 0) -> None:
        if capacity < 1:
            raise ConfigError(f"buffer capacity is {capacity}; it must be at least 1.")
        self.capacity = capacity
        self.generator = torch.Generator().manual_seed(seed)
        self._draws = torch.Generator().manual_seed(seed + 0x5EED)
        self._slots: list[Batch | None] = [None] * capacity
        self.owners: list[str | None] = [None] * capacity
        self.seen: dict[str, int] = {}
        self.targets = torch.zeros(capacity, 0)
        self.known = torch.zeros(capacity, 0, dtype=torch.bool)

    # What a plug-in writes

    @abstractmethod
    def slot(self, item: Item, n_seen: int) -> int | None:
        """The slot 0..capacity-1 that the item goes to, whatever lies there is dropped; None: it is not kept.

        ``n_seen`` counts the items offered so far, this one included and forgotten people left out: the first item has 1.
        """

    def forgotten(self, person: str, kept: int, seen: int) -> None:  # noqa: B027 (a hook, empty on purpose)
        """Called after a person's ``kept`` items left their slots; ``seen`` of theirs had been offered."""

    def extra_state(self) -> dict[str, Any]:
        """What ``slot`` remembers beside the slots: plain JSON values."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:  # noqa: B027 (a hook, empty on purpose)
        """Restore what :meth:`extra_state` gave."""

    # What the framework calls

    def __len__(self) -> int:
        return sum(owner is not None for owner in self.owners)

    @property
    def n_seen(self) -> int:
        """Items offered so far, of people who are not forgotten."""
        return sum(self.seen.values())

    def people(self) -> dict[str, int]:
        """How many items are held of each person, in the order of the slots."""
        counts: dict[str, int] = {}
        for owner in self.owners:
            if owner is not None:
                counts[owner] = counts.get(owner, 0) + 1
        return counts

    def free_slot(self) -> int | None:
        """The first empty slot, or None where there is none."""
        return self.owners.index(None) if None in self.owners else None

    def add(self, batch: Mapping[str, Tensor], person: str) -> None:
        """Offer the items of a batch in order; those that are kept are copied to the CPU.

        Raises InputError, before anything is stored, where a field is missing, unknown, of another shape or dtype, out of range or NaN.
        """
        if not isinstance(person, str) or not person:
            raise InputError("a replay item needs the name of its person: a text that is not empty.")
        size = self._check(batch)
        rows = {name: tensor.detach() for name, tensor in batch.items()}
        for i in range(size):
            self.seen[person] = self.seen.get(person, 0) + 1
            item = self._item(rows, i, person)
            chosen = self.slot(item, self.n_seen)
            if chosen is None:
                continue
            if not 0 <= chosen < self.capacity:
                raise ConfigError(f"{type(self).__name__}.slot gave {chosen}; it must be None or within 0-{self.capacity - 1}.")
            # A row is cloned: a view would keep the whole batch alive and follow later writes to it.
            self._put(chosen, {name: tensor[i].to("cpu", copy=True).contiguous() for name, tensor in rows.items()}, item)

    def sample(self, n: int, rank: int = 0, world: int = 1) -> Batch:
        """Draw ``n`` items, without replacement while there are enough; optional fields that an item lacks are zero (False).

        Under ``world`` ranks every rank makes the same draw of ``n * world`` and takes its own part: parts are disjoint, and together they
        are what one process draws with ``sample(n * world)``. With fewer items than that, the items are dealt out to the ranks and each
        repeats its own; with fewer items than ranks some ranks share. Each rank must call equally often.
        """
        if n < 1 or not 0 <= rank < world:
            raise ConfigError(f"cannot draw n={n} for rank {rank} of {world}; n is at least 1 and rank within 0 to world - 1.")
        filled = [i for i, owner in enumerate(self.owners) if owner is not None]
        if not filled:
            raise InputError("the replay buffer is empty; add items before drawing from it.")
        order = torch.randperm(len(filled), generator=self._draws).tolist()
        if len(order) >= n * world:
            part = order[rank * n : (rank + 1) * n]
        else:
            share = order[rank % len(order) :: world]
            part = (share * (n // len(share) + 1))[:n]
        items = [self._slots[filled[i]] for i in part]
        # Which fields come back depends on all that is held, not on the draw, so that every rank gets the same keys.
        held = {name for slot in self._slots if slot is not None for name in slot}
        return {
            name: torch.stack([item[name] if item is not None and name in item else torch.zeros(f.shape, dtype=f.dtype) for item in items])
            for name, f in self.schema.items()
            if name in held
        }

    def forget(self, person: str) -> int:
        """Drop all of a person's items, and that they were seen; the others stay where they are. Returns how many were dropped."""
        if person not in self.seen:
            raise InputError(unknown("person in the replay buffer", person, self.seen) if self.seen else "the replay buffer knows nobody.")
        mine = [i for i, owner in enumerate(self.owners) if owner == person]
        for i in mine:
            self._slots[i], self.owners[i] = None, None
            self.targets[i], self.known[i] = 0, False
        self.forgotten(person, len(mine), self.seen.pop(person))
        return len(mine)

    # Saving

    def state_dict(self) -> dict[str, Any]:
        """Everything, exactly: tensors, counts and both random streams. Plain containers and tensors only; a copy."""
        fields: dict[str, Tensor] = {}
        for name in self.schema:
            rows = [i for i, slot in enumerate(self._slots) if slot is not None and name in slot]
            if rows:
                fields[f"{name}.slots"] = torch.tensor(rows)
                fields[name] = torch.stack([self._slots[i][name] for i in rows])  # type: ignore[index]
        return {
            "format": _FORMAT,
            "capacity": self.capacity,
            "owners": list(self.owners),
            "seen": dict(self.seen),
            "extra": json.loads(json.dumps(self.extra_state())),
            "fields": fields,
            "rng_slots": self.generator.get_state(),
            "rng_draws": self._draws.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`. Raises ConfigError for another capacity, InputError for contents that the schema does not allow;
        the buffer is then as it was.
        """
        if state["format"] != _FORMAT:
            raise InputError(f"the replay buffer is of format {state['format']}; this version reads {_FORMAT}. Update the package.")
        if state["capacity"] != self.capacity:
            raise ConfigError(
                f"the saved replay buffer holds {state['capacity']} items, this one {self.capacity}; "
                f"set buffer.options.capacity={state['capacity']} or start a new buffer."
            )
        owners: list[str | None] = list(state["owners"])
        slots: list[Batch | None] = [None if owner is None else {} for owner in owners]
        if len(owners) != self.capacity:
            raise InputError("the saved replay buffer is broken: its slots do not fit its capacity; start a new buffer.")
        for name in [key for key in state["fields"] if not key.endswith(".slots")]:
            for row, i in enumerate(state["fields"][f"{name}.slots"].tolist()):
                slot = slots[i] if 0 <= i < self.capacity else None
                if slot is None:
                    raise InputError("the saved replay buffer is broken: an item lies in an empty slot; start a new buffer.")
                slot[name] = state["fields"][name][row].clone()
        for slot in slots:
            if slot is not None:
                self._check({name: value[None] for name, value in slot.items()})
        self._slots, self.owners = [None] * self.capacity, [None] * self.capacity
        for i, (slot, owner) in enumerate(zip(slots, owners, strict=True)):
            if slot is not None and owner is not None:
                self._put(i, slot, self._item({name: value[None] for name, value in slot.items()}, 0, owner))
        self.seen = dict(state["seen"])
        self.generator.set_state(state["rng_slots"])
        self._draws.set_state(state["rng_draws"])
        self.load_extra_state(state["extra"])

    def save(self, path: str | Path) -> None:
        """Write one safetensors file whose header carries the rest as JSON; the file appears whole or not at all."""
        from safetensors.torch import save_file

        state = self.state_dict()
        tensors = {**{f"field.{k}": v for k, v in state.pop("fields").items()}, **{k: state.pop(k) for k in ("rng_slots", "rng_draws")}}
        partial = Path(f"{path}.part")
        try:
            save_file(tensors, partial, metadata={"replay_buffer": json.dumps({**state, "plugin": type(self).__name__})})
            os.replace(partial, path)
        except Exception as error:
            partial.unlink(missing_ok=True)
            raise InputError(f"cannot write the replay buffer {path}: {error}.") from error

    @staticmethod
    @contextmanager
    def alone(path: str | Path) -> Iterator[None]:
        """While this lasts, no other process is within it for the same saved buffer: for a change of it, from loading to saving. Raises
        InputError where nothing can be written."""
        import fcntl

        try:
            lock = Path(path).with_name(f".{Path(path).name}.lock").open("w")
        except OSError as error:
            raise InputError(f"cannot write the replay buffer {path}: {error.strerror}.") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def load(self, path: str | Path) -> None:
        """Restore what :meth:`save` wrote. Never unpickles. Raises InputError for a missing or broken file, or one of another plug-in."""
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise InputError(f"no replay buffer at {path}; check the path.")
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads((file.metadata() or {})["replay_buffer"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            plugin = state.pop("plugin")
            state["fields"] = {key.removeprefix("field."): value for key, value in tensors.items() if key.startswith("field.")}
            state |= {key: tensors[key] for key in ("rng_slots", "rng_draws")}
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path} is broken or no replay buffer; restore a copy of it or delete it to start a new one.") from error
        if plugin != type(self).__name__:
            raise InputError(f"{path} was written by the buffer {plugin}, not {type(self).__name__}; choose that buffer or another file.")
        self.load_state_dict(state)

    # Inside

    def _put(self, i: int, slot: Batch, item: Item) -> None:
        if self.targets.shape[1] != item.target.shape[0]:
            self.targets = torch.zeros(self.capacity, item.target.shape[0])
            self.known = torch.zeros(self.capacity, item.target.shape[0], dtype=torch.bool)
        self._slots[i], self.owners[i] = slot, item.person
        self.targets[i], self.known[i] = item.target, item.known

    def _item(self, rows: Mapping[str, Tensor], i: int, person: str) -> Item:
        if "target" not in self.schema or "mask" not in self.schema:
            return Item(person, torch.zeros(0), torch.zeros(0, dtype=torch.bool))
        return Item(person, rows["target"][i].detach().to("cpu", torch.float32), rows["mask"][i].detach().cpu())

    def _check(self, batch: Mapping[str, Tensor]) -> int:
        """The number of items; InputError where the batch does not fit the schema."""
        for name in batch:
            if name not in self.schema:
                raise InputError(unknown("field of a replay batch", name, self.schema))
        groups = {f.group for name, f in self.schema.items() if name in batch}
        size: int | None = None
        for name, f in self.schema.items():
            if name not in batch:
                if f.group is None or f.group in groups:
                    raise InputError(f"a replay batch lacks '{name}'; it must be {_spell(f)}.")
                continue
            tensor = batch[name]
            if not isinstance(tensor, Tensor):
                raise InputError(f"'{name}' of a replay batch is a {type(tensor).__name__}; it must be {_spell(f)}.")
            if tensor.dtype != f.dtype or tuple(tensor.shape[1:]) != f.shape or tensor.ndim == 0:
                given = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
                raise InputError(f"'{name}' of a replay batch is {given}; it must be {_spell(f)}.")
            if size is not None and tensor.shape[0] != size:
                raise InputError(f"'{name}' of a replay batch has {tensor.shape[0]} items, the fields before it {size}.")
            size = tensor.shape[0]
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise InputError(
                    f"'{name}' of a replay batch holds NaN or infinite values; leave such items out, or mask them and set them to 0."
                )
            low, high = f.low, f.high
            if size and ((low is not None and bool((tensor < low).any())) or (high is not None and bool((tensor > high).any()))):
                bounds = f"at least {low:g}" if high is None else f"at most {high:g}" if low is None else f"within {low:g}-{high:g}"
                raise InputError(f"'{name}' of a replay batch spans {tensor.min():g} to {tensor.max():g}; it must be {bounds}.")
        return size or 0


def _spell(f: Field) -> str:
    return f"{str(f.dtype).removeprefix('torch.')} (B{''.join(f', {side}' for side in f.shape)}{'' if f.shape else ','})"
