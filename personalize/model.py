"""The AU model: a crop branch and a landmark branch, fused, with the person's neutral as an optional input.

Plain PyTorch, usable without Lightning:

>>> import torch
>>> from personalize.model import AUNet
>>> net = AUNet(backbone="mobilenetv4_conv_small_050").eval()
>>> out = net(torch.zeros(2, 3, 112, 112, dtype=torch.uint8), torch.zeros(2, 478, 3), torch.ones(2, dtype=torch.bool))
>>> out["intensity"].shape, bool(((out["intensity"] >= 0) & (out["intensity"] <= 5)).all())
(torch.Size([2, 22]), True)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .aus import AUS

CROP = 112
"""Side of the aligned crop in pixels."""
POINTS = 478
"""Landmarks of the 'mesh478' scheme."""
_LEVELS = 5
KNOWN_SHARE = 0.25
"""What is left of the landmarks' own say beside a known neutral: what tells photographs from renders, skin, lashes, make-up, is in the
person's neutral as well, and falls out of the crop's difference to it (docs/choices.md)."""


class OrdinalHead(nn.Module):
    """One latent value per AU and five ordered cut points: intensity is the expected number of passed cut points.

    P(y >= j) = sigmoid(z - c_j), c_1 < ... < c_5, the proportional-odds model (McCullagh, 1980, eq. 2.1); the intensity
    sum_j P(y >= j) lies in 0-5 and rises with z, so that thresholding it can never contradict it.
    """

    def __init__(self, dim: int, n_aus: int) -> None:
        super().__init__()
        self.latent = nn.Linear(dim, n_aus)
        self.first_cut = nn.Parameter(torch.zeros(n_aus))
        self.gaps = nn.Parameter(torch.full((n_aus, _LEVELS - 1), 0.5))

    def cuts(self) -> Tensor:
        """(K, 5) rising cut points."""
        return torch.cumsum(torch.cat([self.first_cut[:, None], F.softplus(self.gaps) + 0.05], dim=1), dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) features to (B, K, 5) logits of P(y >= j), j = 1..5."""
        return self.latent(features)[..., None] - self.cuts()


def _points_branch(hidden: int, width: int, dropout: float) -> nn.Sequential:
    """(B, 478 * 3) standardised points to (B, width)."""
    return nn.Sequential(
        nn.Linear(POINTS * 3, hidden),
        nn.LayerNorm(hidden),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, width),
        nn.LayerNorm(width),
        nn.GELU(),
    )


class AUNet(nn.Module):
    """Crop and landmarks in, AU intensities out; see :meth:`forward`.

    Each branch gives a feature of size ``width``; beside it stands its difference to the same feature of the person's neutral (zero, with
    a flag, where no neutral is known). Modality dropout in training makes each branch work alone.
    """

    def __init__(
        self,
        backbone: str = "mobilenetv4_conv_small",
        width: int = 192,
        hidden: int = 256,
        dropout: float = 0.1,
        pretrained: bool = False,
        n_aus: int = len(AUS),
        backbone_options: dict[str, Any] | None = None,
        landmark_share: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__()
        options = dict(backbone_options or {})
        self.config = {
            "backbone": backbone, "width": width, "hidden": hidden, "dropout": dropout, "n_aus": n_aus, "backbone_options": options,
            "landmark_share": landmark_share if isinstance(landmark_share, (int, float)) else [float(s) for s in landmark_share],
        }  # fmt: skip
        self.backbone = timm.create_model(backbone, pretrained=pretrained, features_only=True, out_indices=(-2, -1), **options)
        with torch.no_grad():
            middle, last = self.backbone.eval()(torch.zeros(1, 3, CROP, CROP))
        self.backbone.train().to(memory_format=torch.channels_last)  # a fifth faster on a CPU; what goes in follows the weights
        # Pooling over the whole face forgets where a wrinkle was: squeezed maps of the finer stage keep the place.
        self.squeeze = nn.Sequential(nn.Conv2d(middle.shape[1], 16, 1), nn.GELU())
        self.crop_project = nn.Sequential(
            nn.Linear(last.shape[1] + 16 * middle.shape[2] * middle.shape[3], width), nn.LayerNorm(width), nn.GELU()
        )
        self.register_buffer("landmark_mean", torch.zeros(POINTS, 3))
        self.register_buffer("landmark_std", torch.ones(POINTS, 3))
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), 0.5))
        self.register_buffer("pixel_std", torch.full((3, 1, 1), 0.25))
        self.landmark_project = _points_branch(hidden, width, dropout)
        # Small displacements from the neutral are the signal; they get a projection of their own, at their own scale.
        self.register_buffer("shift_std", torch.ones(POINTS, 3))
        self.shift_project = _points_branch(hidden, width, dropout)
        self.fuse = nn.Sequential(
            nn.Linear(4 * width + 4, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.GELU()
        )
        self.head = OrdinalHead(hidden, n_aus)
        # How much the landmarks alone have to say beside the fused reading, for each AU; see :meth:`answer`.
        self.register_buffer("landmark_share", torch.tensor(landmark_share, dtype=torch.float32).expand(n_aus).clone())
        # How wrong the reading will be, learnt beside it and without a say in it.
        self.doubt = nn.Sequential(nn.Linear(hidden + n_aus, 32), nn.GELU(), nn.Linear(32, 1), nn.Softplus())

    def maps(self, crop: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 112, 112) uint8, or float in 0-255, RGB to the backbone's two feature maps, of stride 16 and 32."""
        scaled = (crop.float() / 255.0 - self.pixel_mean) / self.pixel_std
        middle, last = self.backbone(scaled)
        return middle, last

    def project(self, maps: tuple[Tensor, Tensor]) -> Tensor:
        """Feature maps to (B, width)."""
        middle, last = maps
        return self.crop_project(torch.cat([last.mean(dim=(2, 3)), self.squeeze(middle).flatten(1)], dim=1))

    def crop_features(self, crop: Tensor) -> Tensor:
        """(B, 3, 112, 112) crops to (B, width)."""
        return self.project(self.maps(crop))

    def neutral_features(self, crop: Tensor, landmarks: Tensor) -> dict[str, Tensor]:
        """What the model keeps of a neutral: 'crop' (B, width) features and 'landmarks' (B, 478, 3); no picture."""
        return {"crop": self.crop_features(crop), "landmarks": landmarks}

    def rest_of(self, crops: Tensor, landmarks: Tensor) -> dict[str, Tensor]:
        """A person's neutral from several pictures of it, as :meth:`neutral_features` with a batch of 1: one picture's light and blur
        count less in the mean. crops: (M, 3, 112, 112); landmarks: (1, 478, 3)."""
        return {"crop": self.crop_features(crops).mean(0, keepdim=True), "landmarks": landmarks}

    def combine(
        self,
        look: Tensor,
        landmarks: Tensor,
        has_landmarks: Tensor,
        neutral: dict[str, Tensor] | None = None,
        has_neutral: Tensor | None = None,
        has_crop: Tensor | None = None,
    ) -> Tensor:
        """The fused (B, hidden) features from ``look``, the (B, width) features of the crops; other arguments as :meth:`forward`."""
        on = torch.ones(len(look), dtype=torch.bool, device=look.device)
        has_crop = on if has_crop is None else has_crop
        if neutral is None:
            has_neutral = ~on
        elif has_neutral is None:
            has_neutral = on
        assert has_neutral is not None
        c, p, n = (flag.float()[:, None] for flag in (has_crop, has_landmarks, has_neutral))
        # What is not known is NaN, and counts as average. Alone, landmarks have no depth: it is the tracker's guess, and photographs are
        # read better without it (docs/choices.md).
        solid = torch.cat([torch.ones_like(c), torch.ones_like(c), c], 1)[:, None]
        points = torch.nan_to_num((landmarks - self.landmark_mean) / self.landmark_std) * solid
        points = self.landmark_project(points.flatten(1)) * p
        if neutral is None:
            look_shift, points_shift = torch.zeros_like(look), torch.zeros_like(points)
        else:
            look_shift = (look - neutral["crop"].expand_as(look)) * c * n
            shift = (landmarks - neutral["landmarks"].expand_as(landmarks)) / self.shift_std
            points_shift = self.shift_project((torch.nan_to_num(shift).clamp(-8, 8) * solid).flatten(1)) * p * n
        return self.fuse(torch.cat([look * c, points, look_shift, points_shift, c, p, c * n, p * n], dim=1))

    def forward(
        self,
        crop: Tensor,
        landmarks: Tensor,
        has_landmarks: Tensor,
        neutral: dict[str, Tensor] | None = None,
        has_neutral: Tensor | None = None,
        has_crop: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Intensities of each AU.

        Args:
            crop: (B, 3, 112, 112) uint8, or float in 0-255, RGB.
            landmarks: (B, 478, 3) float, pose-normalised; NaN for points that the tracker does not give (all but 68, or depth); zeros where
                ``has_landmarks`` is False.
            has_landmarks, has_crop, has_neutral: (B,) bool; absent modalities are masked inside.
            neutral: of the same person, from :meth:`neutral_features`, batch B or 1; None: not known.

        Returns:
            'intensity' (B, K) in 0-5, 'logits' (B, K, 5) of P(y >= 1..5), 'features' (B, hidden), 'expected_error' (B,) mean absolute error
            over the AUs that the model expects of this reading.
        """
        return self.answer(self.crop_features(crop), landmarks, has_landmarks, neutral, has_neutral, has_crop)

    def answer(
        self,
        look: Tensor,
        landmarks: Tensor,
        has_landmarks: Tensor,
        neutral: dict[str, Tensor] | None = None,
        has_neutral: Tensor | None = None,
        has_crop: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What :meth:`forward` returns, from ``look``, the (B, width) features of the crops.

        The fused latents are mixed with those of the landmarks alone, by ``landmark_share``, where there are both: a crop branch that
        learned from renders is surer on renders than on photographs, while landmarks come from a tracker that knows photographs. The cut
        points are the same, so the mixed reading is as monotone as either. Where a neutral is known, so much less: :data:`KNOWN_SHARE`.
        """
        said = self.read(self.combine(look, landmarks, has_landmarks, neutral, has_neutral, has_crop))
        if not bool(self.landmark_share.any()):
            return said
        on = torch.ones(len(look), dtype=torch.bool, device=look.device)
        both = has_landmarks if has_crop is None else has_landmarks & has_crop
        share = self.landmark_share * both.float()[:, None]
        if neutral is not None:
            known = on if has_neutral is None else has_neutral
            share = share * torch.where(known, KNOWN_SHARE, 1.0)[:, None]
        alone = self.read(self.combine(look, landmarks, has_landmarks, neutral, has_neutral, ~on))
        logits = said["logits"] + share[..., None] * (alone["logits"] - said["logits"])
        return {**said, "logits": logits, "intensity": torch.sigmoid(logits).sum(-1)}

    def read(self, fused: Tensor) -> dict[str, Tensor]:
        """(B, hidden) fused features to what :meth:`forward` returns."""
        logits = self.head(fused)
        intensity = torch.sigmoid(logits).sum(-1)
        doubt = self.doubt(torch.cat([fused, intensity], 1).detach())[:, 0]
        return {"intensity": intensity, "logits": logits, "features": fused, "expected_error": doubt}


def ordinal_loss(logits: Tensor, target: Tensor, mask: Tensor, weight: Tensor | None = None, occurrence: Tensor | None = None) -> Tensor:
    """Mean over known labels of the cross-entropy of P(y >= j) against clamp(y - j + 1, 0, 1): soft for fractional labels.

    logits: (B, K, 5) of P(y >= 1..5); target: (B, K) in 0-5; mask: (B, K) bool; weight: broadcastable to (B, K), or None. Zero where
    nothing is known. The minimum is reached where the expected intensity equals the target.

    occurrence: (B, K) int, or None: 0 for an intensity; else the target says y < j (0) or y >= j (1 and more) and no more than
    that, and the one term of P(y >= j) is the whole likelihood of it in the proportional-odds model.
    """
    levels = torch.arange(_LEVELS, device=logits.device, dtype=logits.dtype)
    soft = (target[..., None].to(logits.dtype) - levels).clamp(0, 1)
    loss = F.binary_cross_entropy_with_logits(logits, soft, reduction="none").sum(-1)
    if occurrence is not None:
        level = occurrence.long()
        at = logits.gather(-1, (level - 1).clamp_min(0)[..., None])[..., 0]
        said = F.binary_cross_entropy_with_logits(at, target.to(at.dtype).clamp(0, 1), reduction="none")
        loss = torch.where(level > 0, said, loss)
    w = mask.to(logits.dtype) if weight is None else mask.to(logits.dtype) * weight
    return (loss * w).sum() / w.sum().clamp_min(1e-6)
