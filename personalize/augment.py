"""What is done to training pictures and landmarks, drawn anew each time they are seen.

Renders are truer to themselves than to faces: how one renderer draws a lash, a lip or a crease tells everything about its renders and
little about a photograph. So the drawing is varied as much as the light: parts of the face are repainted, static lines are drawn where
faces have them, detail is sharpened or lost, and pictures go through random filters (Xu et al., RandConv, ICLR 2021), which leave shape to
learn from. And some are compressed as video files are.
"""

from __future__ import annotations

from fractions import Fraction

import av
import cv2
import numpy as np
import torch
from kornia.geometry.transform import get_affine_matrix2d, warp_affine
from torch import Tensor
from torch.nn import functional as F

from .geometry import CENTRE, CROP_SIZE, IBUG_TO_MESH, WINDOW
from .video import ENCODER

_LIDS = ((33, 246, 161, 160, 159, 158, 157, 173, 133), (263, 466, 388, 387, 386, 385, 384, 398, 362))
_LOWER_LIDS = ((33, 7, 163, 144, 145, 153, 154, 155, 133), (263, 249, 390, 373, 374, 380, 381, 382, 362))
_LID_FOLDS = ((247, 30, 29, 27, 28, 56, 190), (467, 260, 259, 257, 258, 286, 414))
_UNDER_EYES = ((31, 228, 229, 230, 231, 232, 233), (261, 448, 449, 450, 451, 452, 453))
_UPPER_LIP = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
_LOWER_LIP = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
PARTS: tuple[tuple[tuple[int, ...], float, float], ...] = (
    ((61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146), 3.5, 0.35),  # lips
    ((82, 13, 312, 87, 14, 317), 2.5, 0.5),  # what an open mouth shows
    ((*_LID_FOLDS[0], *_LID_FOLDS[1]), 3.0, 0.3),  # upper lids
    ((*_UNDER_EYES[0], *_UNDER_EYES[1]), 3.5, 0.25),
    ((468, 159, 145, 473, 386, 374), 2.5, 0.35),  # eyes
    ((46, 52, 53, 55, 63, 65, 66, 70, 105, 107, 276, 282, 283, 285, 293, 295, 296, 300, 334, 336), 3.0, 0.4),  # brows
    ((50, 205, 187, 123, 280, 425, 411, 352), 9.0, 0.2),  # cheeks
    ((172, 136, 149, 148, 152, 377, 378, 365, 397, 200, 199, 182, 406), 8.0, 0.3),  # jaw and chin, as a beard would
    ((164, 167, 165, 92, 393, 391, 322), 4.0, 0.3),  # where a moustache is
    ((151, 108, 337, 69, 299), 10.0, 0.15),
    ((4, 5, 195, 1, 45, 275, 98, 327), 4.0, 0.2),  # nose
    ((35, 124, 143, 156, 265, 353, 372, 383), 5.0, 0.2),  # temples
)
"""Repainted parts: mesh points, radius in crop pixels, standard deviation of the log of their tone."""
LINES: tuple[tuple[tuple[int, ...], float], ...] = (
    *((line, 0.6) for line in (*_LIDS, *_LOWER_LIDS)),
    *((line, 0.3) for line in (*_LID_FOLDS, *_UNDER_EYES)),
    *((line, 0.4) for line in (_UPPER_LIP, _LOWER_LIP)),
    *((line, 0.3) for line in ((129, 203, 206, 216, 212), (358, 423, 426, 436, 432))),  # nasolabial folds
    *((line, 0.3) for line in ((107, 55, 193), (336, 285, 417), (104, 69, 108, 151, 337, 299, 333))),  # between the brows, forehead
    *((line, 0.25) for line in ((182, 83, 18, 313, 406), (193, 168, 417), (122, 6, 351))),  # above the chin, root of the nose
    *((line, 0.25) for line in ((33, 130, 35), (263, 359, 265))),  # crow's feet
)
"""Static lines: mesh points along them, standard deviation of the log of their tone."""


def augment(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch of one known person's samples, augmented; see :func:`augment_crops` and :func:`augment_landmarks`."""
    return {**batch, "crop": augment_crops(batch["crop"]), "landmarks": augment_landmarks(batch["landmarks"])}


def _normal(like: Tensor, *shape: int) -> Tensor:
    return torch.randn(*shape, device=like.device)


def in_crop(landmarks: Tensor, pose: Tensor) -> Tensor:
    """(B, N, 3) pose-normalised landmarks and (B, 3) pitch, yaw, roll to (B, N, 2) pixels of the aligned crop (:func:`geometry.crop`)."""
    (cx, cy, cz), (sx, sy, sz) = pose.cos().unbind(1), pose.sin().unbind(1)
    turn = torch.stack(
        [cy * cz, -cy * sz, sy, cx * sz + sx * sy * cz, cx * cz - sx * sy * sz, -sx * cy], 1
    ).view(-1, 2, 3)  # fmt: skip
    centre = torch.as_tensor(CENTRE, dtype=landmarks.dtype, device=landmarks.device)
    flat = torch.einsum("bij,bnj->bni", turn, landmarks - centre)
    roll = torch.atan2(turn[:, 1, 0] - turn[:, 0, 1], turn[:, 0, 0] + turn[:, 1, 1])
    cos, sin = roll.cos(), roll.sin()
    upright = torch.stack([cos, sin, -sin, cos], 1).view(-1, 2, 2)
    return torch.einsum("bij,bnj->bni", upright, flat) * (CROP_SIZE / WINDOW) + (CROP_SIZE - 1) / 2


def _grid(like: Tensor, side: int) -> Tensor:
    """(side * side, 2) crop pixels of the middles of the cells of a coarser grid."""
    place = (torch.arange(side, device=like.device) + 0.5) * (CROP_SIZE / side) - 0.5
    y, x = torch.meshgrid(place, place, indexing="ij")
    return torch.stack([x, y], -1).view(-1, 2)


def repaint(crop: Tensor, points: Tensor, person: Tensor, seed: int) -> Tensor:
    """Other skin, lips, lids, brows and lines on the same faces: a person's are the same in all pictures with the same seed.

    crop: (B, 3, 112, 112) float, 0-255; points: (B, 478, 2) crop pixels (:func:`in_crop`), NaN where unknown: nothing is painted there;
    person: (B,) numbers, not negative.
    """
    n, side, device = len(crop), CROP_SIZE // 4, crop.device
    points = torch.nan_to_num(points, nan=-1e4) + 0.5 * _normal(crop, n, points.shape[1], 2)
    colours, lines = np.zeros((n, len(PARTS), 3), np.float32), np.zeros((n, CROP_SIZE, CROP_SIZE), np.float32)
    places = np.round(points.cpu().numpy().clip(-500, 500) * 16).astype(np.int32)
    spread = np.array([s for _, _, s in PARTS])[:, None]
    for i, who in enumerate(person.tolist()):
        rng = np.random.default_rng([seed, who])
        if rng.random() < 0.25:
            continue
        some = rng.random((len(PARTS), 1)) < 0.4
        colours[i] = some * spread * (rng.normal(size=(len(PARTS), 1)) + 0.25 * rng.normal(size=(len(PARTS), 3)))
        soft = float(rng.uniform(0.6, 1.4))
        for line, strength in LINES:
            if rng.random() < 0.3:
                gain = float(strength * (rng.normal() - 0.7))  # most are shadows
                cv2.polylines(lines[i], [places[i, list(line)]], False, gain, int(rng.integers(1, 3)), cv2.LINE_8, 4)
        cv2.GaussianBlur(lines[i], (0, 0), soft, lines[i])
    cells = _grid(crop, side)
    painted = torch.zeros(n, 3, side * side, device=device)
    for k, (part, radius, _) in enumerate(PARTS):
        rows = np.flatnonzero(colours[:, k].any(-1))  # most are painted in a few pictures only
        if len(rows):
            near = torch.cdist(cells.expand(len(rows), -1, -1), points[rows][:, part]).amin(2)
            colour = torch.from_numpy(colours[rows, k]).to(device)
            painted[rows] += colour[:, :, None] * torch.exp(-0.5 * (near / radius) ** 2)[:, None]
    tone = F.interpolate(painted.view(n, 3, side, side), (CROP_SIZE, CROP_SIZE), mode="bilinear", align_corners=False)
    return tone.add_(torch.from_numpy(lines).to(device)[:, None]).clamp_(-1.6, 0.8).exp_().mul_(crop)


def restyle(crop: Tensor) -> Tensor:
    """Detail sharpened or lost, and random filters over some pictures. crop: (B, 3, H, W) float, 0-255."""
    n = len(crop)
    height, width = crop.shape[-2:]
    fine = F.interpolate(crop, (height // 2, width // 2), mode="area")
    middle = F.interpolate(F.interpolate(fine, (height // 4, width // 4), mode="area"), fine.shape[-2:], mode="bilinear")
    on = (torch.rand(n, 1, 1, 1, device=crop.device) < 0.6).float()
    sharp, relief = (0.7 * on * _normal(crop, n, 1, 1, 1)).exp(), (0.45 * on * _normal(crop, n, 1, 1, 1)).exp()
    # relief and sharp weigh what half and full resolution add to a quarter's; summed at half of it first.
    coarse = (relief - sharp) * fine + (1 - relief) * middle
    crop = F.interpolate(coarse, (height, width), mode="bilinear").addcmul_(sharp, crop)
    # A filter for each eighth picture of the batch: one call for all of its pictures.
    for group in range(min(n, 8)):
        if float(torch.rand(())) < 0.35:
            some = crop[group::8]
            size = 1 + 2 * int(torch.randint(0, 3, ()))
            kernel = _normal(crop, 3, 3, size, size) / (3**0.5 * size)
            seen = F.conv2d(F.pad(some, [size // 2] * 4, mode="replicate"), kernel)
            (was, had), (var, mean) = (torch.var_mean(x.flatten(1), 1) for x in (some, seen))
            gain = (was.sqrt() / var.sqrt().clamp_min(1e-3)).view(-1, 1, 1, 1)
            own = seen.sub_(mean.view(-1, 1, 1, 1)).mul_(gain).add_(had.view(-1, 1, 1, 1))
            crop[group::8] = torch.lerp(some, own, 0.6 * float(torch.rand(())))
    return crop


def redraw(batch: dict[str, Tensor], seed: int) -> Tensor:
    """The augmented crops of a batch of renders: people repainted (:func:`repaint`), then drawn and filmed otherwise. (B, 3, 112, 112)."""
    points = in_crop(batch["landmarks"], batch["pose"])
    return compress(augment_crops(restyle(repaint(batch["crop"].float(), points, batch["person"], seed))))


def compress(crop: Tensor, share: float = 0.15) -> Tensor:
    """A ``share`` of the pictures as a video file keeps them: as the second frame of a clip, told from a first one in which the face was a
    pixel or two away. crop: (B, 3, H, W) float, 0-255, H and W even; H.264 where the installed ffmpeg has it, MPEG-4 elsewhere.
    """
    some = torch.nonzero(torch.rand(len(crop)) < share).flatten()
    strength, moved = float(torch.rand(())), torch.randint(-2, 3, (len(some), 2)).tolist()
    if not len(some):
        return crop
    after = crop[some.to(crop.device)].round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    clip = [frame for rgb, way in zip(after, moved, strict=True) for frame in (np.roll(rgb, way, (0, 1)), rgb)]
    kept = np.stack(_through_codec(clip, strength)[1::2])
    crop = crop.clone()
    crop[some.to(crop.device)] = torch.from_numpy(kept).permute(0, 3, 1, 2).to(crop)
    return crop


def _through_codec(clip: list[np.ndarray], strength: float) -> list[np.ndarray]:
    """(H, W, 3) uint8 frames, every second told from the one before, encoded and decoded. strength: 0-1, from a good to a bad call."""
    h264 = ENCODER == "libx264"
    encoder = av.CodecContext.create(ENCODER, "w")
    decoder = av.CodecContext.create("h264" if h264 else "mpeg4", "r")
    encoder.height, encoder.width = clip[0].shape[:2]
    encoder.pix_fmt, encoder.time_base, encoder.gop_size, encoder.max_b_frames = "yuv420p", Fraction(1, 25), 2, 0
    encoder.thread_count = decoder.thread_count = 1  # else a seed would not give the same picture
    if h264:
        encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "crf": str(round(18 + 16 * strength))}
    else:
        encoder.options = {"qmin": str(round(3 + 13 * strength)), "qmax": str(round(3 + 13 * strength))}
    seen = []
    for i, rgb in enumerate([*clip, None]):
        frame = None
        if rgb is not None:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            frame.pts = i
        for packet in encoder.encode(frame):
            seen += decoder.decode(packet)
    return [frame.to_ndarray(format="rgb24") for frame in [*seen, *decoder.decode(None)]]


def augment_crops(crop: Tensor) -> Tensor:
    """(B, 3, 112, 112), 0-255: misaligned, coarse, in another light, often grey, noisy, with something in front."""
    crop = crop.float()
    n, device, size = len(crop), crop.device, crop.shape[-1]
    centre = torch.full((n, 2), size / 2, device=device)
    scale = (1 + 0.05 * _normal(crop, n, 1)).clamp(0.85, 1.15).expand(n, 2)
    matrix = get_affine_matrix2d(3.0 * _normal(crop, n, 2), centre, scale, 4.0 * _normal(crop, n))[:, :2]
    crop = warp_affine(crop, matrix, crop.shape[-2:], padding_mode="border")
    # Every fourth picture is made as coarse as the next fourth: resizing costs one call for all of them.
    for group in range(min(n, 4)):
        small = int(size * float(torch.empty(()).uniform_(0.3, 1.2)))
        if small < size:
            coarse = F.interpolate(crop[group::4], (small, small), mode="area")
            crop[group::4] = F.interpolate(coarse, (size, size), mode="bilinear", align_corners=False)
    gain, bias, tint = (
        torch.exp(0.25 * _normal(crop, n, 1, 1, 1)),
        18 * _normal(crop, n, 1, 1, 1),
        torch.exp(0.08 * _normal(crop, n, 3, 1, 1)),
    )
    light = F.interpolate(0.22 * _normal(crop, n, 1, 4, 4), (size, size), mode="bicubic", align_corners=True).exp()
    crop = crop.mul_(light).sub_(110).mul_(gain * tint).add_(110 + bias)
    grey = torch.rand(n, device=device) < 0.4
    crop[grey] = crop[grey].mean(1, keepdim=True).expand(-1, 3, -1, -1)
    crop.addcmul_(6 * torch.rand(n, 1, 1, 1, device=device), torch.randn_like(crop))
    for i in torch.nonzero(torch.rand(n) < 0.25).flatten().tolist():
        h, w = int(torch.randint(14, 60, ())), int(torch.randint(14, 60, ()))
        y, x = int(torch.randint(0, size - h, ())), int(torch.randint(0, size - w, ()))
        crop[i, :, y : y + h, x : x + w] = 255 * torch.rand(3, 1, 1, device=device)
    return crop.clamp_(0, 255)


def augment_landmarks(
    landmarks: Tensor, people: int = 0, each: int = 0, *, stretch: float = 0.05, bend: float = 0.012, tremble: float = 0.003
) -> Tensor:
    """(B, 478, 3): stretched, turned, bent, shifted, and noisy; what is NaN stays so.

    people, each: the batch is of so many people (references first, then ``each`` pictures of each) whose faces are stretched besides, every
    person in a way of their own, and every picture bent (stretched and sheared) in its own: in another light or camera a tracker places
    the same resting face .01 to .04 elsewhere, most of it so. 0: one known person in one clip, who is neither stretched nor bent.
    stretch, bend, tremble: standard deviations, the first two relative, the last in canonical units.
    """
    n, device = len(landmarks), landmarks.device

    if people:
        drawn = 1 + stretch * _normal(landmarks, people, 1, 3)
        landmarks = landmarks * torch.cat([drawn, drawn.repeat_interleave(each, 0)])
        bent = bend * _normal(landmarks, n, 3, 3)
        landmarks = landmarks + torch.einsum("bij,bnj->bni", bent, landmarks.nan_to_num())
    # The pose fit is never exact: a little rotation, scale and shift remain, and every point trembles, most in depth.
    turn, zero = 0.035 * _normal(landmarks, n, 3), torch.zeros(n, device=device)
    skew = torch.stack([zero, -turn[:, 2], turn[:, 1], turn[:, 2], zero, -turn[:, 0], -turn[:, 1], turn[:, 0], zero], 1).view(n, 3, 3)
    landmarks = landmarks + torch.einsum("bij,bnj->bni", skew, landmarks.nan_to_num())
    noise = tremble * torch.randn_like(landmarks) * torch.tensor([1, 1, 2.0], device=device)
    return landmarks * (1 + 0.01 * _normal(landmarks, n, 1, 1)) + 0.006 * _normal(landmarks, n, 1, 3) + noise


def thin_out(landmarks: Tensor, own: Tensor, share: float = 0.12) -> Tensor:
    """Leave a ``share`` of the people of a batch only the 68 points of ibug's scheme, half of these without depth; the rest is NaN.

    own: (B,) the person of each row. Another tracker's points lie a little elsewhere, the same way in all pictures of a person.
    """
    people = int(own.max()) + 1
    draw = torch.rand(people, device=landmarks.device)
    index = torch.tensor(IBUG_TO_MESH, device=landmarks.device)
    kept = torch.full_like(landmarks, torch.nan)
    elsewhere = 0.012 * torch.randn(people, len(index), 3, device=landmarks.device)[own]
    kept[:, index] = landmarks[:, index] + elsewhere + 0.004 * torch.randn_like(elsewhere)
    kept[..., 2] = torch.where((draw[own] < share / 2)[:, None], torch.nan, kept[..., 2])
    return torch.where((draw[own] < share)[:, None, None], kept, landmarks)
