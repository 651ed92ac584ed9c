"""What au_residual's network sees, and the network: corrections to a warped frame that grow from nothing with the asked change.

The warp (mesh_warp) moves pixels and shades by a formula. The network adds what a formula cannot know, AU by AU, each inside the support of
that AU and in proportion to its change ``c_k(x)`` = support x change / 5:

    picture = guide(x + sum_k c_k V_k) * exp(sum_k c_k M_k (R_k + D_k))

with the residual flow V_k, attention masks M_k in 0-1, log-ratio shading R_k (three colours at half resolution; ratio images carry over
between skins, Liu, Shan & Zhang, 2001) and its detail D_k (brightness at full resolution). Where nothing is asked for all c_k are zero and
the picture is the guide, exactly. Inside mouth and eyes it is, too: teeth and eyes are this person's, and those of rendered people, which
the network would paint there, are grey beside a photograph.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from personalize.aus import AUS, MAX_INTENSITY
from personalize_plugins.generators.mesh_warp import _OVAL, EYE, MOUTH, SKIN, _Drawn, load_mesh, vertex_normals

SIDE = 160
"""Pictures are corrected at this size; larger ones get the same corrections, enlarged."""
HALF = SIDE // 2
K = len(AUS)
MAPS = 13
"""Channels beside the K changes: place on the face (3), normal (3), parts (4), flow (2), inside mouth and eyes (1)."""
BRIGHTEST = 0.2
"""Log of the most that the network may brighten: more makes embers of lashes and of the corners of shut eyes, which are dark."""
GLOBAL = K + 8
"""What is said of the whole picture: the changes (K), light (4), turn (2), jaw and lips (2)."""
_FLOW_UNIT = 0.05


@cache
def support() -> np.ndarray:
    """(2, K, 468 + rings) 0-1: how much each AU has to do with each point of the mesh, by side; 0 around the face.

    What an AU moves or furrows, softened so that shading may reach a little further than displacement.
    """
    mesh = load_mesh()
    length = np.linalg.norm(mesh.fields[:, :, :468], axis=-1)
    for au, field in ((25, mesh.part), (26, mesh.jaw)):
        length[:, AUS.index(au)] = np.linalg.norm(field[:468], axis=-1)
    length /= np.maximum(length.max((0, 2), keepdims=True), 1e-9)
    side = mesh.relief.shape[1]
    x, y = np.round(mesh.chart[:468] * side - 0.5).astype(int).clip(0, side - 1).T
    right = mesh.mean[:468, 0] < 0
    for relief, au in zip(mesh.relief, mesh.relief_aus, strict=True):
        near = cv2.dilate(np.abs(relief), np.ones((5, 5), np.uint8))[y, x]
        near = near / max(float(near.max()), 1e-9)
        k = AUS.index(au)
        length[0, k] = np.maximum(length[0, k], near * ~right)
        length[1, k] = np.maximum(length[1, k], near * right)
    out = np.zeros((2, K, 4096), np.float32)
    out[:, :, :468] = np.clip(1.4 * np.sqrt(length), 0, 1)
    out[:, :, _OVAL] *= 0.35  # what lies beyond the contour is hair, neck and background
    return out


def conditions(drawn: _Drawn, strength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the network sees beside the guide, at half resolution.

    strength: (2, K) change of intensity by half of the face. Returns changes (K, 80, 80) float32 and maps (MAPS, 80, 80) float32. The
    picture must be of ``SIDE`` pixels.
    """
    mesh, flow = load_mesh(), drawn.flow
    keep = (flow.rows % 2 == 1) & (flow.columns % 2 == 1)
    rows, columns, index, weights = flow.rows[keep] // 2, flow.columns[keep] // 2, flow.index[keep], flow.weights[keep].astype(np.float32)
    change = np.einsum("sk,skv->vk", strength.astype(np.float32) / MAX_INTENSITY, support())
    normal = np.zeros((len(change), 3), np.float32)
    place = np.zeros((len(change), 3), np.float32)
    normal[:468] = (vertex_normals(drawn.after, mesh.faces[mesh.groups == SKIN]) @ drawn.rotation.T)[:468]
    place[:468] = mesh.mean[:468]
    values = np.concatenate([change, place, normal], 1)
    changes = np.zeros((HALF, HALF, K), np.float32)
    maps = np.zeros((HALF, HALF, MAPS), np.float32)
    at = np.einsum("nkc,nk->nc", values[index], weights)
    changes[rows, columns], maps[rows, columns, :6] = at[:, :K], at[:, K:]
    group = flow.groups[flow.face[keep]]
    maps[rows, columns, 6 + group] = 1
    x = np.arange(SIDE, dtype=np.float32)
    moved = np.stack([flow.map_x - x, flow.map_y - x[:, None]], -1)[1::2, 1::2]
    maps[..., 10:12] = moved / (_FLOW_UNIT * SIDE)
    inner = np.zeros((HALF, HALF), np.float32)
    inner[rows, columns] = (group == MOUTH) | (group == EYE)
    maps[..., 12] = cv2.GaussianBlur(cv2.dilate(inner, np.ones((3, 3), np.uint8)), (0, 0), 1.0)
    return changes.transpose(2, 0, 1), maps.transpose(2, 0, 1)


def about(strength: np.ndarray, light: np.ndarray, turn: tuple[float, float], jaw: float, part: float) -> np.ndarray:
    """(GLOBAL,) float32, what is said of the whole picture."""
    return np.concatenate([strength.mean(0) / MAX_INTENSITY, light, np.array(turn) / 0.26, [jaw, part]]).astype(np.float32)


class _Block(nn.Module):
    """Two convolutions with a short cut, scaled and shifted by what is asked (FiLM; Perez et al., 2018)."""

    def __init__(self, inputs: int, width: int, said: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inputs, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.short = nn.Conv2d(inputs, width, 1) if inputs != width else nn.Identity()
        self.film = nn.Linear(said, 2 * width)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, said: Tensor) -> Tensor:
        scale, shift = self.film(said)[..., None, None].chunk(2, 1)
        y = F.leaky_relu(self.first(x) * (1 + scale) + shift, 0.1)
        return F.leaky_relu(self.second(y) + self.short(x), 0.1)


class ResidualNet(nn.Module):
    """Corrections to a guide picture; see the module's text.

    Args:
        widths: channels at half, quarter and eighth resolution. said: size of the code of what is asked.
    """

    def __init__(self, widths: tuple[int, int, int] = (24, 48, 72), said: int = 64) -> None:
        super().__init__()
        self.config = {"widths": list(widths), "said": said}
        a, b, c = widths
        self.say = nn.Sequential(nn.Linear(GLOBAL, said), nn.LeakyReLU(0.1), nn.Linear(said, said), nn.LeakyReLU(0.1))
        self.enter = nn.Conv2d(4 * 4 + K + MAPS, a, 3, 1, 1)
        self.down1, self.down2, self.down3 = _Block(a, a, said), _Block(a, b, said), _Block(b, c, said)
        self.middle = _Block(c, c, said)
        self.up2, self.up1 = _Block(c + b, b, said), _Block(b + a, a, said)
        self.heads = nn.Conv2d(a, K * 6, 1)  # R (3), M, V (2) of each AU
        self.detail = nn.Sequential(nn.Conv2d(a // 4 + 4, 12, 3, 1, 1), nn.LeakyReLU(0.1), nn.Conv2d(12, K, 1))
        for last in (self.heads, self.detail[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, guide: Tensor, ratio: Tensor, changes: Tensor, maps: Tensor, said: Tensor) -> dict[str, Tensor]:
        """Corrections of pictures, or of parts of pictures, in the scale of ``SIDE`` pixels.

        Args:
            guide: (B, 3, H, W) 0-1, H and W multiples of 8. ratio: (B, 1, H, W) log of the light's change that is in it.
            changes: (B, K, H/2, W/2). maps: (B, MAPS, H/2, W/2). said: (B, GLOBAL).

        Returns:
            'shading' (B, 3, H, W) log ratio and 'flow' (B, 2, H, W) in pixels.
        """
        code = self.say(said)
        seen = torch.cat([guide - 0.5, ratio], 1)
        # Where an AU nowhere changes, its channels are 0, and what it would add is: a picture asks for few, the rest is not computed.
        moved = torch.nonzero(changes.flatten(2).any(2).any(0)).flatten()
        moved = moved if len(moved) else moved.new_zeros(1)
        changes, n = changes[:, moved], len(moved)
        first, last = 16, 16 + K
        used = torch.cat([torch.arange(first, device=moved.device), first + moved, torch.arange(last, last + MAPS, device=moved.device)])
        x = torch.cat([F.pixel_unshuffle(seen, 2), changes, maps], 1)
        x1 = self.down1(F.conv2d(x, self.enter.weight[:, used], self.enter.bias, padding=1), code)
        x2 = self.down2(F.avg_pool2d(x1, 2), code)
        x3 = self.middle(self.down3(F.avg_pool2d(x2, 2), code), code)
        x2 = self.up2(torch.cat([_twice(x3), x2], 1), code)
        x1 = self.up1(torch.cat([_twice(x2), x1], 1), code)
        rows = (6 * moved[:, None] + torch.arange(6, device=moved.device)).flatten()
        each = F.conv2d(x1, self.heads.weight[rows], self.heads.bias[rows]).unflatten(1, (n, 6))  # type: ignore[index]
        changes = changes * (1 - maps[:, 12:13])
        mask = torch.sigmoid(each[:, :, 3] + 1)
        strong = changes * mask
        shading = torch.einsum("bkhw,bkchw->bchw", strong, 2 * torch.tanh(each[:, :, :3]))
        flow = torch.einsum("bkhw,bkchw->bchw", changes, 8 * torch.tanh(each[:, :, 4:]))
        look, bend, tell = self.detail
        fine = bend(look(torch.cat([F.pixel_shuffle(x1, 2), seen], 1)))
        fine = F.conv2d(fine, tell.weight[moved], tell.bias[moved])  # type: ignore[index]
        detail = (torch.tanh(fine) * _twice(strong)).sum(1, keepdim=True)
        return {"shading": _twice(shading) + detail, "flow": _twice(flow)}


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def correct(guide: Tensor, parts: dict[str, Tensor]) -> Tensor:
    """The corrected pictures, (B, 3, H, W) 0-1 and of the guide's size. parts: what :class:`ResidualNet` returns for it, or for it made
    smaller."""
    size, told = guide.shape[-2:], parts["shading"].shape[-2:]

    def sized(x: Tensor) -> Tensor:
        return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)

    y, x = torch.meshgrid(*((torch.arange(n, device=guide.device, dtype=guide.dtype) + 0.5) * 2 / n - 1 for n in size), indexing="ij")
    flow = sized(parts["flow"])
    unit = torch.tensor([2 / told[1], 2 / told[0]], device=guide.device, dtype=guide.dtype)
    moved = torch.stack([x, y], -1) + flow.permute(0, 2, 3, 1) * unit
    moved_guide = F.grid_sample(guide, moved, mode="bilinear", padding_mode="border", align_corners=False)
    # Where nothing moves the guide stays what it is, untouched by resampling.
    still = (flow.abs().amax(1, keepdim=True) < 0.02).to(guide.dtype)
    return ((still * guide + (1 - still) * moved_guide) * sized(parts["shading"]).clamp(-1.5, BRIGHTEST).exp()).clamp(0, 1)


def correct_picture(net: ResidualNet, guide: np.ndarray, batch: dict[str, Tensor]) -> np.ndarray:
    """One corrected picture, (S, S, 3) uint8: the network looks only where something changes.

    guide: (S, S, 3) uint8. batch: the network's inputs for one picture of ``SIDE`` pixels, without 'guide' where it is the same.
    """
    where = batch["changes"][0].abs().sum(0)
    rows, columns = torch.nonzero(where.sum(1)).flatten(), torch.nonzero(where.sum(0)).flatten()
    if len(rows) == 0:
        return guide
    (top, bottom), (left, right) = (_span(int(v[0]), int(v[-1]) + 1) for v in (rows, columns))
    half, full = (..., slice(top, bottom), slice(left, right)), (..., slice(2 * top, 2 * bottom), slice(2 * left, 2 * right))
    picture = torch.from_numpy(guide).permute(2, 0, 1)[None].float() / 255
    small = batch.get("guide", picture)
    parts = net(small[full], batch["ratio"][full], batch["changes"][half], batch["maps"][half], batch["said"])
    if picture.shape[-1] == SIDE:
        out = guide.copy()
        made = correct(picture[full], parts)
        out[2 * top : 2 * bottom, 2 * left : 2 * right] = (made[0] * 255).round().byte().permute(1, 2, 0).numpy()
        return out
    around = (left, HALF - right, top, HALF - bottom)
    parts = {k: F.pad(v, [2 * n for n in around]) for k, v in parts.items()}
    return (correct(picture, parts)[0] * 255).round().byte().permute(1, 2, 0).numpy()


def _span(start: int, stop: int) -> tuple[int, int]:
    """A span of half-size pixels with a margin, a multiple of 4 long, inside the picture."""
    start, stop = max(start - 3, 0), min(stop + 3, HALF)
    length = min(-(-(stop - start) // 4) * 4, HALF)
    start = min(start, HALF - length)
    return start, start + length
