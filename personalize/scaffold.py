"""``personalize plugins new KIND NAME``: a small plug-in that works, with its test, to start from."""

from __future__ import annotations

import argparse
import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from . import registry
from .errors import ConfigError

_TEST_HEAD = '''"""Tests of the __KIND__ '__NAME__'."""

from pathlib import Path

__IMPORTS__
from personalize.registry import create, load_file

load_file(Path(__file__).with_name("__NAME__.py"))
'''

_TRACKER = '''"""The tracker '__NAME__': says where faces are. Replace the body of `detect`."""

from __future__ import annotations

import numpy as np

# isort: split
from personalize.faces import Face, Tracker
from personalize.registry import register


@register("__NAME__")
class __CLASS__(Tracker):
    """Finds one bright patch and lays the 68 points on an ellipse in it: an example.

    Args:
        threshold: grey value, 0-255, from which a pixel belongs to the patch.
    """

    scheme = "ibug68"

    def __init__(self, threshold: float = 32.0) -> None:
        if not 0 <= threshold <= 255:
            raise ValueError(f"threshold is {threshold:g}; it must be within 0-255.")
        self.threshold = threshold

    def detect(self, frame: np.ndarray, timestamp: float, still: bool) -> list[Face]:
        """Faces in one (H, W, 3) uint8 RGB frame; an empty list where there is none."""
        rows, columns = np.nonzero(frame.mean(axis=2) >= self.threshold)
        if len(rows) == 0:
            return []
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        angle = np.linspace(0, 2 * np.pi, 68, endpoint=False)
        x = (box[0] + box[2]) / 2 + np.cos(angle) * (box[2] - box[0]) / 2
        y = (box[1] + box[3]) / 2 + np.sin(angle) * (box[3] - box[1]) / 2
        # This tracker knows no depth: NaN says so.
        points = np.stack([x, y, np.full(68, np.nan)], axis=1)
        return [Face(points.astype(np.float32), box.astype(np.float32), 1.0)]
'''

_TRACKER_TEST = """

def test_finds_the_patch() -> None:
    frame = np.zeros((60, 80, 3), np.uint8)
    frame[10:40, 20:50] = 200
    (face,) = create("trackers", "__NAME__").detect(frame, 0.0, still=True)
    assert face.box.tolist() == [20, 10, 50, 40]
    assert face.landmarks.shape == (68, 3)
    x = face.landmarks[:, 0]
    assert x.min() == 20 and x.max() == 50


def test_finds_nothing_in_the_dark() -> None:
    frame = np.zeros((60, 80, 3), np.uint8)
    assert create("trackers", "__NAME__").detect(frame, 0.0, still=True) == []


def test_threshold_is_an_option() -> None:
    frame = np.full((60, 80, 3), 100, np.uint8)
    tracker = create("trackers", "__NAME__", {"threshold": 150})
    assert tracker.detect(frame, 0.0, still=True) == []
"""

_GENERATOR = '''"""The generator '__NAME__': labelled pictures of one person. Replace `generate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

# isort: split
from personalize.aus import AUS
from personalize.generators import Generator, Request, Sample
from personalize.registry import register

if TYPE_CHECKING:
    from personalize.identity import Identity


@register("__NAME__")
class __CLASS__(Generator):
    """The person's own frames, mirrored: an example. Their AUs stay unknown.

    Args:
        min_quality: frames below this quality, 0-1, are not used.
    """

    def __init__(self, min_quality: float = 0.3) -> None:
        self.min_quality = min_quality

    def prepare(self, identity: Identity, seed: int) -> None:
        """Note which frames are good enough, in an order of their own for each seed."""
        seen = identity.observations
        good = [i for i, o in enumerate(seen) if o.quality >= self.min_quality]
        order = np.random.default_rng(seed).permutation(good)
        self.crops = [(int(i), seen[int(i)].crop) for i in order]
        self.made = 0

    def generate(self, requests: list[Request]) -> list[Sample | None]:
        """One picture a request; None for what this generator cannot make."""
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Sample | None:
        # Mirroring makes no expression: requests for one are not met.
        if not self.crops or any(request.aus.values()):
            return None
        source, crop = self.crops[self.made % len(self.crops)]
        self.made += 1
        image = np.ascontiguousarray(crop[:, ::-1])
        # Set target and known for the AUs that you are sure of; only these are learned.
        target, known = np.zeros(len(AUS), np.float32), np.zeros(len(AUS), bool)
        return Sample(image, target, known, request, source)
'''

_GENERATOR_TEST = """

def person(n: int = 3) -> SimpleNamespace:
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (n, 112, 112, 3), dtype=np.uint8)
    seen = [SimpleNamespace(crop=crop, quality=0.9) for crop in crops]
    return SimpleNamespace(observations=seen)


def test_mirrors_frames() -> None:
    identity = person()
    generator = create("generators", "__NAME__")
    generator.prepare(identity, seed=0)
    (sample,) = generator.generate([Request({})])
    assert (sample.image[:, ::-1] == identity.observations[sample.source].crop).all()
    assert not sample.known.any()


def test_does_not_pretend_to_make_expressions() -> None:
    generator = create("generators", "__NAME__")
    generator.prepare(person(), seed=0)
    assert generator.generate([Request({12: 3.0})]) == [None]


def test_poor_frames_are_not_used() -> None:
    generator = create("generators", "__NAME__", {"min_quality": 0.95})
    generator.prepare(person(), seed=0)
    assert generator.generate([Request({})]) == [None]
"""

_BUFFER = '''"""The replay buffer '__NAME__': what is remembered. Replace the body of `slot`."""

from __future__ import annotations

from typing import Any

from personalize.buffers import Item, ReplayBuffer
from personalize.registry import register


@register("__NAME__")
class __CLASS__(ReplayBuffer):
    """Keeps the newest items: an example.

    Args:
        capacity: how many items are held.
        seed: of random draws.
    """

    def __init__(self, capacity: int = 512, seed: int = 0) -> None:
        super().__init__(capacity, seed)
        self.position = 0

    def slot(self, item: Item, n_seen: int) -> int | None:
        """The slot for this item, whatever lies there is dropped; None: not kept."""
        chosen = self.position
        self.position = (self.position + 1) % self.capacity
        return chosen

    def extra_state(self) -> dict[str, Any]:
        """What `slot` remembers beside the slots, so that a resumed run goes on as before."""
        return {"position": self.position}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore `extra_state`."""
        self.position = int(state["position"])
'''

_BUFFER_TEST = """

def numbers(capacity: int) -> ReplayBuffer:
    buffer = create("buffers", "__NAME__", {"capacity": capacity})
    buffer.schema = {"x": Field((), torch.float32)}
    return buffer


def held(buffer: ReplayBuffer) -> list[float]:
    return sorted(buffer.sample(len(buffer))["x"].tolist())


def test_keeps_the_newest() -> None:
    buffer = numbers(capacity=3)
    buffer.add({"x": torch.arange(5.0)}, person="ann")
    assert held(buffer) == [2, 3, 4]


def test_restored_it_goes_on_as_before() -> None:
    one, other = numbers(capacity=3), numbers(capacity=3)
    one.add({"x": torch.arange(4.0)}, person="ann")
    other.load_state_dict(one.state_dict())
    for buffer in (one, other):
        buffer.add({"x": torch.tensor([9.0])}, person="ben")
    assert held(one) == held(other) == [2, 3, 9]
"""

_REGULARIZER = '''"""The regularizer '__NAME__': what must stay. Replace the body of `importance`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# isort: split
from personalize.registry import register
from personalize.regularizers import (
    Batch,
    Loss,
    ParameterRegularizer,
    Predict,
    trainable,
)


@register("__NAME__")
class __CLASS__(ParameterRegularizer):
    """weight/2 * sum_i importance_i * (p_i - start_i)^2, biases free: an example.

    Args:
        weight: the strength.
        biases: the importance of biases; that of all else is 1.
    """

    def __init__(self, weight: float = 0.01, biases: float = 0.0) -> None:
        super().__init__(weight)
        self.biases = biases

    def importance(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        loss: Loss | None,
        predict: Predict,
    ) -> dict[str, Tensor]:
        """The importance of each trainable parameter, shaped as it, at least 0."""
        found = {}
        for name, parameter in trainable(model):
            value = self.biases if name.endswith("bias") else 1.0
            found[name] = torch.full_like(parameter.detach(), value)
        return found
'''

_REGULARIZER_TEST = """

def test_pulls_back_to_the_start() -> None:
    model = torch.nn.Linear(3, 2)
    options = {"weight": 0.5, "biases": 2.0}
    regularizer = create("regularizers", "__NAME__", options)
    regularizer.start(model)
    with torch.no_grad():
        model.weight += 3.0
        model.bias += 1.0
    regularizer.gradients(model.named_parameters())
    # weight * importance * (p - start)
    assert model.weight.grad is not None and model.bias.grad is not None
    torch.testing.assert_close(model.weight.grad, torch.full((2, 3), 0.5 * 1.0 * 3.0))
    torch.testing.assert_close(model.bias.grad, torch.full((2,), 0.5 * 2.0 * 1.0))


def test_no_pull_at_the_start() -> None:
    model = torch.nn.Linear(3, 2)
    regularizer = create("regularizers", "__NAME__")
    regularizer.start(model)
    assert float(regularizer.penalty(model.named_parameters())) == 0.0
"""

_ADAPTER = '''"""The adapter '__NAME__': which parameters move. Replace the body of `moving`."""

from __future__ import annotations

from torch import nn

# isort: split
from personalize.adapters import Adapter
from personalize.registry import register


@register("__NAME__")
class __CLASS__(Adapter):
    """Moves parameters by the end of their names: an example.

    Args:
        suffix: the end of the names; the default moves all biases.
        half: store differences as fp16.
    """

    def __init__(self, suffix: str = "bias", half: bool = True) -> None:
        super().__init__(half)
        self.suffix = suffix

    def moving(self, model: nn.Module) -> list[str]:
        """Names of the parameters that move."""
        names = [name for name, _ in model.named_parameters()]
        return [name for name in names if name.endswith(self.suffix)]
'''

_ADAPTER_TEST = """

def model() -> torch.nn.Module:
    torch.manual_seed(0)
    first, last = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)
    return torch.nn.Sequential(first, torch.nn.Tanh(), last)


def test_only_biases_move() -> None:
    net = model()
    parameters = create("adapters", "__NAME__").apply(net)
    assert sum(p.numel() for p in parameters) == 3 + 2
    moving = [name for name, p in net.named_parameters() if p.requires_grad]
    assert moving == ["0.bias", "2.bias"]


def test_a_delta_brings_the_change_to_a_fresh_base() -> None:
    net, x = model(), torch.randn(5, 4)
    adapter = create("adapters", "__NAME__", {"half": False})
    with torch.no_grad():
        for p in adapter.apply(net):
            p += 0.5
    fresh = model()
    create("adapters", "__NAME__").restore(fresh, adapter.delta(net))
    torch.testing.assert_close(fresh(x), net(x))
"""

# The split keeps the order right whether ruff takes `personalize` for the user's own package or for another's.
_IMPORTS = {
    "trackers": "import numpy as np\n\n# isort: split",
    "generators": "from types import SimpleNamespace\n\nimport numpy as np\n\n# isort: split\nfrom personalize.generators import Request",
    "buffers": "import torch\n\n# isort: split\nfrom personalize.buffers import Field, ReplayBuffer",
    "regularizers": "import torch\n\n# isort: split",
    "adapters": "import torch\n\n# isort: split",
}
_TEMPLATES = {
    "trackers": (_TRACKER, _TRACKER_TEST),
    "generators": (_GENERATOR, _GENERATOR_TEST),
    "buffers": (_BUFFER, _BUFFER_TEST),
    "regularizers": (_REGULARIZER, _REGULARIZER_TEST),
    "adapters": (_ADAPTER, _ADAPTER_TEST),
}


def class_name(kind: str, name: str) -> str:
    """'my_points', a tracker, to 'MyPointsTracker'; never the name of a base class."""
    suffix = registry.singular(kind).capitalize()
    camel = "".join(part.capitalize() for part in name.split("_"))
    camel = camel if camel.endswith(suffix) else camel + suffix
    taken = {base for _, base in registry.BASES.values()} | {"ParameterRegularizer", "FunctionRegularizer"}
    return f"My{camel}" if camel in taken else camel


def write_plugin(kind: str, name: str, folder: str | Path) -> tuple[Path, Path]:
    """Write NAME.py and test_NAME.py, both or neither; returns their paths.

    Raises ConfigError: unknown kind, a name that Python does not take or that is in use, files that exist.
    """
    kind = registry.parse_kind(kind)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(f"'{name}' cannot be a plug-in's name: use lower-case letters, digits and _, a letter first, no word of Python.")
    existing = registry.available(kind)
    if name in existing:
        raise ConfigError(f"{registry.singular(kind)} '{name}' is already offered by {existing[name].source}. Choose another name.")
    if name in sys.stdlib_module_names or find_spec(name) is not None:
        raise ConfigError(f"'{name}' is a module of Python or of an installed package, which {name}.py would hide. Choose another name.")
    folder = Path(folder)
    plugin, test = folder / f"{name}.py", folder / f"test_{name}.py"
    for file in (plugin, test):
        if file.exists():
            raise ConfigError(f"{file} exists. Choose another name or --output folder.")
    code, test_code = _TEMPLATES[kind]
    head = _TEST_HEAD.replace("__IMPORTS__", _IMPORTS[kind])
    if kind == "generators":  # the standard library's imports are one group
        head = head.replace("from pathlib import Path\n\nfrom types", "from pathlib import Path\nfrom types")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for file, text in ((plugin, code), (test, head + test_code)):
            for mark, value in (("NAME", name), ("CLASS", class_name(kind, name)), ("KIND", registry.singular(kind))):
                text = text.replace(f"__{mark}__", value)
            file.write_text(text, encoding="utf-8")
    except OSError:
        plugin.unlink(missing_ok=True)
        test.unlink(missing_ok=True)
        raise
    return plugin, test


def new_command(args: argparse.Namespace) -> None:
    """``personalize plugins new KIND NAME``."""
    kind = registry.parse_kind(args.kind)
    plugin, test = write_plugin(kind, args.name, args.output)
    singular = registry.singular(kind)
    flag = f"--{singular} {args.name}"
    print(f"wrote {plugin} and {test}")
    print(f"test it:  python -m pytest {test}")
    print(f"use it:   personalize fit --identity CLIP --plugins {plugin} {flag}")
    print(f'ship it:  in your pyproject.toml, [project.entry-points."personalize.{kind}"] with')
    print(f'          {args.name} = "YOUR_PACKAGE.{args.name}:{class_name(kind, args.name)}"')
