"""A uniform sample of everything seen (Vitter, 1985, algorithm R), also after people were forgotten."""

from __future__ import annotations

from typing import Any

import torch

from personalize.buffers import Item, ReplayBuffer


class Reservoir(ReplayBuffer):
    """A uniform sample: every item seen is held with the same probability, capacity / n.

    Forgetting takes items out of the sample and out of the stream. Filling the holes with whatever comes next would favour newcomers;
    random pairing (Gemulla, Lehner & Haas, 2006) lets each newcomer take the place of one forgotten item, held or not, and stays uniform.
    """

    def __init__(self, capacity: int = 512, seed: int = 0) -> None:
        super().__init__(capacity, seed)
        self._holes = 0  # forgotten items that were held, and not yet paired with a newcomer
        self._misses = 0  # forgotten items that were not held, likewise

    def slot(self, item: Item, n_seen: int) -> int | None:
        """See :meth:`ReplayBuffer.slot`."""
        open_pairs = self._holes + self._misses
        if open_pairs:
            if self._draw(open_pairs) < self._holes:
                self._holes -= 1
                return self.free_slot()
            self._misses -= 1
            return None
        if n_seen <= self.capacity:
            return self.free_slot()
        # Item n is kept with probability capacity / n: n equally likely places, this item's own included.
        place = self._draw(n_seen)
        return place if place < self.capacity else None

    def forgotten(self, person: str, kept: int, seen: int) -> None:
        """See :meth:`ReplayBuffer.forgotten`."""
        self._holes += kept
        self._misses += seen - kept

    def extra_state(self) -> dict[str, Any]:
        """See :meth:`ReplayBuffer.extra_state`."""
        return {"holes": self._holes, "misses": self._misses}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """See :meth:`ReplayBuffer.load_extra_state`."""
        self._holes, self._misses = int(state["holes"]), int(state["misses"])

    def _draw(self, n: int) -> int:
        return int(torch.randint(n, (), generator=self.generator))
