"""No generated pictures: the fit learns from the clip's own frames alone."""

from __future__ import annotations

from personalize.generators import Generator, Request, Sample
from personalize.identity import Identity


class ReplayOnly(Generator):
    """Generates nothing: every request is answered with None.

    The baseline that any generator has to beat: the person's own calm frames and the user's labels, nothing else.
    """

    makes_pictures = False

    def __init__(self) -> None:
        pass

    def prepare(self, identity: Identity, seed: int) -> None:
        """Nothing to fit."""

    def generate(self, requests: list[Request]) -> list[Sample | None]:
        """One None a request."""
        return [None for _ in requests]
