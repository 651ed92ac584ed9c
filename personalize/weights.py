"""A base model's weights: loading the one that ships, or another, and writing one.

Apart from :mod:`personalize.base`, which trains them: reading a clip must not wait for the training libraries, seconds to import.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from . import ui
from .aus import AUS, column
from .errors import ProfileError
from .model import AUNet
from .smooth import from_card

SHIPPED = "base-s"
"""The base model that ships; plain 'base' means it too."""
KNOTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
"""Expected intensities at which a card says what is reported of them; see :meth:`Base.report`."""


class Base:
    """A base model with its name, hash and card. ``net`` is in eval mode; copy it before you change it.

    expected_thresholds: (K,) expected intensity from which an AU is present; thresholds: the same of what is reported, without a neutral.
    readout: (2, K, 18) what is reported at :data:`KNOTS`, without and with the person's neutral, None where the card has none.
    smoothing: (4, K) parameters of :class:`personalize.smooth.Smoother`, None where the card has none.
    """

    def __init__(
        self, name: str, sha256: str, net: AUNet, expected_thresholds: np.ndarray, card: dict[str, Any], smoothing: np.ndarray | None = None
    ) -> None:
        self.name, self.sha256, self.net, self.expected_thresholds, self.card = name, sha256, net, expected_thresholds, card
        self.smoothing = smoothing
        table = card.get("readout")
        self.readout = None if table is None else np.array([table["alone"], table["neutral"]], np.float64).reshape(2, len(AUS), len(KNOTS))
        self.thresholds = self.thresholds_with(0.0)

    def report(self, expected: np.ndarray, known: np.ndarray | float = 0.0) -> np.ndarray:
        """(N, K) of what is reported of (N, K) expected intensities, 0-5, the neutral being used to the extent ``known`` (K,), 0-1.

        An expectation is drawn to the mean by all that the model cannot know: it never says 0, and hardly ever 5. ``readout`` leads it
        halfway back to how intensities are distributed, learnt on people of known truth (:func:`personalize.base.fit_readout`). It rises,
        so that order, and with it AUC, stays.
        """
        if self.readout is None:
            return np.asarray(expected, np.float32)
        share = np.broadcast_to(np.asarray(known, np.float64), (len(AUS),))
        table = self.readout[0] + share[:, None] * (self.readout[1] - self.readout[0])
        return np.stack([np.interp(x, KNOTS, t) for x, t in zip(np.asarray(expected).T, table, strict=True)], 1).astype(np.float32)

    def thresholds_with(self, known: np.ndarray | float) -> np.ndarray:
        """(K,) reported intensity from which an AU is present; ``known`` as in :meth:`report`."""
        return self.report(self.expected_thresholds[None], known)[0]

    def reliability(self) -> np.ndarray:
        """(K,) ICC of each AU's expected intensity on validation people, from the card; 0 where the card has none."""
        return np.nan_to_num(self._icc("fused"))

    def promise(self) -> np.ndarray:
        """(K,) share of the error (1 - ICC) on validation people that is gone when their neutral is known; NaN where unknown."""
        alone = self._icc("fused")
        return (self._icc("fused+neutral") - alone) / np.maximum(1 - alone, 1e-3)

    def _icc(self, mode: str) -> np.ndarray:
        """(K,) ICC on validation people from the card, NaN where it has none."""
        table = self.card.get("validation", {}).get(mode, {})
        return np.array([table.get(column(au), {}).get("icc", np.nan) for au in AUS], np.float32)

    def fresh(self) -> AUNet:
        """A copy of the network, free to adapt."""
        net = AUNet(**self.net.config)  # type: ignore[arg-type]
        net.load_state_dict(self.net.state_dict())
        return net.eval()


def load_base(name: str = SHIPPED) -> Base:
    """The shipped base model, or one at a path: NAME.safetensors with NAME.json beside it, or the folder NAME that both are in.

    Raises ProfileError in one line.
    """
    name = SHIPPED if name == "base" else name
    try:
        if name == SHIPPED:
            folder = resources.files("personalize").joinpath("assets")
            blob = folder.joinpath(f"{name}.safetensors").read_bytes()
            card = json.loads(folder.joinpath(f"{name}.json").read_text())
        else:
            path = weights_at(name)
            blob, card = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
        tensors = load(blob)
        if card["aus"] != list(AUS):
            raise ProfileError(f"base model '{name}' reads other AUs than this version of personalize: train it anew.")
        net = AUNet(**card["model"])
        net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
        smoothing = from_card(card, len(AUS))
        base = Base(
            name if name == SHIPPED else str(card["name"]),
            hashlib.sha256(blob).hexdigest(),
            net.eval(),
            np.array(card["thresholds"], np.float32),
            card,
            smoothing,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as e:
        raise ProfileError(f"base model '{name}' cannot be read ({ui.one_line(e)[:120]}): reinstall personalize or train it anew.") from e
    if card.get("untaught"):
        ui.warn(f"base model '{base.name}' was taught nothing of {', '.join(card['untaught'])}: what it reads of them means nothing")
    return base


def weights_at(name: str | Path) -> Path:
    """NAME.safetensors of a base model at a path: NAME, or the folder that it is in. Raises ProfileError where there is none."""
    path = Path(name)
    path = path / path.resolve().name if path.is_dir() else path
    path = path if path.suffix == ".safetensors" else path.with_name(f"{path.name}.safetensors")  # a dot in a name is no suffix
    if not path.is_file():
        raise ProfileError(f"no base model at {path}: give 'base-s', or the path that 'personalize base fit --output' wrote.")
    return path


def save_base(path: Path, net: AUNet, card: dict[str, Any]) -> None:
    """Write NAME.safetensors (float16) and NAME.json, the model card."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().half().contiguous() if v.is_floating_point() else v.cpu() for k, v in net.state_dict().items()}
    save_file(tensors, path.with_name(f"{path.name}.safetensors"))
    path.with_name(f"{path.name}.json").write_text(json.dumps(card, indent=1) + "\n")
