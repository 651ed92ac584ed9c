"""A sample that is even over people and AU states: rare AUs are kept, frequent faces make room."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from personalize.buffers import Item, ReplayBuffer
from personalize.errors import ConfigError

_TIE = 1e-6


class Balanced(ReplayBuffer):
    """As even as possible over people and over AUs present and absent; rare AUs are kept.

    Greedy: an item is kept where it makes the buffer more even than the item that it replaces did.

    Cells are person x AU x (present, absent), and person. A buffer is worth sum_cells w * log(1 + count), with w = 1 for AU cells and K for
    person cells: concave, so the first item of a rare AU counts for much and the hundredth neutral face for little, and an item with few
    known AUs has no advantage. A full buffer swaps the new item for the one that raises the value most. Where no swap does, the item
    competes with the held ones of its own kind (person and AU states) as in a reservoir of that kind (Chrysakis & Moens, 2020).

    Args:
        capacity: how many items are held.
        present: an AU is present from this intensity, 0-5.
        seed: of the random choices among equals.
    """

    def __init__(self, capacity: int = 512, present: float = 1.0, seed: int = 0) -> None:
        if not 0 < present <= 5:
            raise ConfigError(f"present is {present:g}; it is the intensity from which an AU is present, above 0 and at most 5.")
        super().__init__(capacity, seed)
        self.present = present
        self._kinds: dict[str, dict[str, int]] = {}  # person -> AU states -> items seen

    def slot(self, item: Item, n_seen: int) -> int | None:
        """See :meth:`ReplayBuffer.slot`."""
        mine = self._cells(item.target[None], item.known[None])[0]
        kind = "".join(map(str, mine.int().tolist()))
        kinds = self._kinds.setdefault(item.person, {})
        kinds[kind] = kinds.get(kind, 0) + 1
        free = self.free_slot()
        if free is not None:
            return free
        people = {person: i for i, person in enumerate(dict.fromkeys([*self.owners, item.person]))}
        owner = torch.tensor([people[o] for o in self.owners])
        cells = self._cells(self.targets, self.known)
        counts = torch.zeros(len(people), cells.shape[1], dtype=torch.float64).index_add_(0, owner, cells)
        weight = torch.ones(cells.shape[1], dtype=torch.float64)
        weight[-1] = max(item.target.shape[0], 1)
        ours = counts[people[item.person]]
        lost = weight * torch.log((1 + counts) / counts.clamp_min(1))  # by one item fewer in a cell
        won = weight * torch.log((2 + ours) / (1 + ours))  # by one more
        change = (mine * won).sum() - (cells * lost[owner]).sum(1)
        # Cells that both have stay as they are.
        same = owner == people[item.person]
        change[same] += (cells[same] * mine * (lost[people[item.person]] - won)).sum(1)
        best = change.max()
        if best > _TIE:
            return self._pick((change > best - _TIE).nonzero()[:, 0])
        twins = (same & (cells == mine).all(1)).nonzero()[:, 0]
        if len(twins) and int(torch.randint(kinds[kind], (), generator=self.generator)) < len(twins):
            return self._pick(twins)
        return None

    def forgotten(self, person: str, kept: int, seen: int) -> None:
        """See :meth:`ReplayBuffer.forgotten`."""
        self._kinds.pop(person, None)

    def extra_state(self) -> dict[str, Any]:
        """See :meth:`ReplayBuffer.extra_state`."""
        return {"kinds": self._kinds}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """See :meth:`ReplayBuffer.load_extra_state`."""
        self._kinds = {person: {kind: int(n) for kind, n in kinds.items()} for person, kinds in state["kinds"].items()}

    def _cells(self, target: Tensor, known: Tensor) -> Tensor:
        """(N, K) intensities to (N, 2K + 1) membership of: AU present, AU absent, the person."""
        on = known & (target >= self.present)
        return torch.cat([on, known & ~on, torch.ones(len(target), 1, dtype=torch.bool)], dim=1).double()

    def _pick(self, candidates: Tensor) -> int:
        return int(candidates[torch.randint(len(candidates), (), generator=self.generator)])
