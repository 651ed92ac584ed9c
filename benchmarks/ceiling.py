"""What a perfect generator would give: true renders of the very person, in their clip's light, as a plug-in for ``personalize bench``.

    personalize bench --plugins benchmarks/ceiling.py --generators ceiling,mesh_warp --output runs/ceiling

Its labels and its pictures are exact, so what adaptation on it does not reach, no generator can. Only for the benchmark's people, whom it
knows by name (``person0003``).
"""

from __future__ import annotations

import numpy as np

from personalize.aus import AUS
from personalize.errors import ConfigError
from personalize.generators import Generator, Request, Sample
from personalize.identity import Identity
from personalize.registry import register
from personalize.synth.person import controls
from personalize.synth.scene import Scene
from personalize.synth.world import World

MEASURED = (25, 26)
"""Not driven: lips and jaw are opened, and what comes of it is measured on the mesh."""


@register("ceiling")
class Ceiling(Generator):
    """Renders a synthetic person themselves, in their own clip's light and poses.

    split: whose person the number in the identity's name is. day: of their support clip, twice the bench's ``--seed``.
    """

    def __init__(self, split: str = "benchmark", day: int = 0) -> None:
        self.split, self.day = split, day

    def prepare(self, identity: Identity, seed: int) -> None:
        """Find the person and the light of their clip."""
        digits = identity.name.removeprefix("person")
        if not digits.isdigit():
            raise ConfigError(f"generator ceiling knows synthetic people only, named as person0003, not '{identity.name}'")
        self.world = World(size=identity.size[0])
        self.person = self.world.person(self.split, int(digits))
        self.scene = Scene.of_clip(self.person.seed, self.day)
        self.poses = np.stack([o.pose for o in identity.observations])
        self.rng = np.random.default_rng(seed)

    def generate(self, requests: list[Request]) -> list[Sample | None]:
        """Renders of what is asked, in poses that the clip shows; every label is the truth."""
        if not requests:
            return []
        aus = np.zeros((len(requests), len(AUS)), np.float32)
        extra = np.zeros((len(requests), len(controls()[0])), np.float32)
        for row, more, request in zip(aus, extra, requests, strict=True):
            for au, intensity in request.aus.items():
                if au not in MEASURED:
                    row[AUS.index(au)] = intensity
            jaw, part = request.aus.get(26, 0.0) / 5, request.aus.get(25, 0.0) / 5
            for name, value in (("jawOpen", 0.75 * jaw), ("mouthLowerDown", 0.35 * part), ("mouthUpperUp", 0.2 * part)):
                more[[i for i, control in enumerate(controls()[0]) if control.startswith(name)]] = value
        frames = self.rng.integers(len(self.poses), size=len(requests))
        shots = self.world.render(self.person, aus, extra, self.poses[frames], np.zeros((len(requests), 2)), [self.scene])
        made = [(image, target) for shot in shots for image, target in zip(shot.images, shot.target, strict=True)]
        known = np.ones(len(AUS), bool)
        return [Sample(i, t, known, r, int(f)) for (i, t), r, f in zip(made, requests, frames, strict=True)]
