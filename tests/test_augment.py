"""What is done to training pictures: painting that belongs to a person, detail against OpenCV, light and noise within a range."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from personalize import augment


@pytest.fixture
def faces() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight grey pictures of the same face, and where its 478 points lie in each: in the left half."""
    crop = torch.full((8, 3, 112, 112), 128.0)
    points = torch.rand(1, 478, 2, generator=torch.Generator().manual_seed(3)) * torch.tensor([30.0, 90.0]) + 10
    return crop, points.expand(8, -1, -1)


def test_people_are_repainted_each_in_one_way(faces: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in all of a person's, other with another seed; nothing far from the points or where they are unknown."""
    crop, points = faces
    points = points.clone()
    points[6] = torch.nan
    monkeypatch.setattr(augment, "_normal", lambda like, *shape: torch.zeros(shape))
    person = torch.tensor([1, 1, 2, 2, 3, 3, 1, 4])
    out = augment.repaint(crop, points, person, 5)
    for a, b in ((0, 1), (2, 3), (4, 5)):
        assert torch.equal(out[a], out[b])
    painted = [float((out[i] - crop[i]).abs().max()) for i in (0, 2, 4, 7)]
    assert sum(p > 5 for p in painted) >= 3  # a quarter of people stay as they are
    assert not torch.allclose(out[0], out[2]) and not torch.allclose(out[0], augment.repaint(crop, points, person, 6)[0])
    assert torch.equal(out[6], crop[6])
    assert float((out[..., 90:] - 128).abs().max()) < 0.5
    assert torch.equal(crop, faces[0])


def test_each_part_is_painted_as_its_formula_says(faces: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of the tone, in the middles of the cells, against a sum over parts and points written out in numpy."""
    crop, points = faces
    monkeypatch.setattr(augment, "_normal", lambda like, *shape: torch.zeros(shape))
    monkeypatch.setattr(augment, "LINES", ())
    seed, who = 11, 2
    painted = augment.repaint(crop[:1], points[:1], torch.tensor([who]), seed)[0].permute(1, 2, 0).numpy()
    rng = np.random.default_rng([seed, who])
    assert rng.random() >= 0.25  # a person who is painted
    some = rng.random((len(augment.PARTS), 1)) < 0.4
    common, own = rng.normal(size=(len(augment.PARTS), 1)), rng.normal(size=(len(augment.PARTS), 3))
    places = points[0].numpy()
    cells = (np.arange(28) + 0.5) * 4 - 0.5
    tone = np.zeros((28, 28, 3))
    for k, (part, radius, spread) in enumerate(augment.PARTS):
        for i, y in enumerate(cells):
            for j, x in enumerate(cells):
                near = min(np.hypot(x - places[p, 0], y - places[p, 1]) for p in part)
                tone[i, j] += some[k] * spread * (common[k] + 0.25 * own[k]) * np.exp(-0.5 * (near / radius) ** 2)
    whole = cv2.resize(tone.astype(np.float32), (112, 112), interpolation=cv2.INTER_LINEAR)
    assert np.abs(whole).max() > 0.1
    np.testing.assert_allclose(painted, 128 * np.exp(whole.clip(-1.6, 0.8)), atol=0.05)


def test_detail_is_sharpened_or_lost_as_opencv_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """What half and full resolution add to a quarter's, each weighted."""
    crop = 255 * torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    draws = iter([torch.tensor([1.0, -0.5]), torch.tensor([-2.0, 0.8])])
    monkeypatch.setattr(augment, "_normal", lambda like, *shape: next(draws).view(2, 1, 1, 1))
    monkeypatch.setattr(augment.torch, "rand", lambda *shape, **_: torch.full(shape[:-1] if shape == ((),) else shape, 0.5))
    out = augment.restyle(crop.clone())
    for i, (sharp, relief) in enumerate(((0.7 * 1.0, 0.45 * -2.0), (0.7 * -0.5, 0.45 * 0.8))):
        picture = crop[i].permute(1, 2, 0).numpy()
        half, quarter = (cv2.resize(picture, (s, s), interpolation=cv2.INTER_AREA) for s in (56, 28))
        fine = cv2.resize(half, (112, 112), interpolation=cv2.INTER_LINEAR)
        middle = cv2.resize(cv2.resize(quarter, (56, 56), interpolation=cv2.INTER_LINEAR), (112, 112), interpolation=cv2.INTER_LINEAR)
        wanted = middle + np.exp(relief) * (fine - middle) + np.exp(sharp) * (picture - fine)
        np.testing.assert_allclose(out[i].permute(1, 2, 0).numpy(), wanted, atol=0.05)


def test_random_filters_keep_each_picture_s_brightness_and_contrast() -> None:
    """Some of many pictures are filtered; their mean and spread stay those of the pictures."""
    torch.manual_seed(4)
    crop = 60 + 100 * torch.rand(64, 3, 112, 112)
    crop = torch.nn.functional.avg_pool2d(crop, 9, 1, 4)  # nothing fine to sharpen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "_normal", lambda like, *shape: torch.zeros(shape) if shape[1:] == (1, 1, 1) else torch.randn(shape))
        out = augment.restyle(crop.clone())
    changed = (out - crop).abs().amax((1, 2, 3)) > 1
    assert 0.05 < float(changed.float().mean()) < 0.8
    assert float((out.mean((1, 2, 3)) - crop.mean((1, 2, 3))).abs().max()) < 0.5
    assert float((out.std((1, 2, 3)) / crop.std((1, 2, 3))).max()) < 1.01


def test_augmented_crops_keep_their_range_and_some_are_grey() -> None:
    """0-255, about four tenths without colour, and what came in is not changed."""
    torch.manual_seed(2)
    crop = 255 * torch.rand(200, 3, 112, 112)
    before = crop.clone()
    out = augment.augment_crops(crop)
    assert torch.equal(crop, before)
    assert float(out.min()) >= 0 and float(out.max()) <= 255
    # Noise is drawn for each channel, and boxes may be coloured: grey ones have channels of nearly one mean.
    apart = (out.mean((2, 3)).amax(1) - out.mean((2, 3)).amin(1)) < 0.4
    assert 0.2 < float(apart.float().mean()) < 0.5


def test_some_pictures_are_compressed_as_video_files_are() -> None:
    """They stay near what they were, lose fine detail first, and a seed gives the same ones; the others are untouched."""
    y, x = np.mgrid[:112, :112].astype(np.float32)
    smooth = 128 + 60 * np.sin(x / 30) * np.cos(y / 25)
    fine = smooth + 6 * np.random.default_rng(0).normal(size=(112, 112))
    crop = torch.from_numpy(np.repeat(np.stack([smooth] * 20 + [fine] * 20)[:, None], 3, 1)).float().clamp(0, 255)
    torch.manual_seed(1)
    out = augment.compress(crop, share=0.5)
    torch.manual_seed(1)
    assert torch.equal(out, augment.compress(crop, share=0.5))
    changed = (out != crop).flatten(1).any(1)
    assert 10 <= int(changed.sum()) <= 30 and 0 < int(changed[20:].sum()) < 20
    assert float(out.min()) >= 0 and float(out.max()) <= 255
    error = (out - crop).abs().mean((1, 2, 3))
    assert 0 < float(error[:20][changed[:20]].max()) < 4
    assert float(error[20:][changed[20:]].min()) > float(error[:20][changed[:20]].max())
    laplacian = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    detail = torch.nn.functional.conv2d(out[:, :1], laplacian).std((1, 2, 3))
    assert float(detail[20:][changed[20:]].max()) < 0.9 * float(detail[20:][~changed[20:]].min())
    assert torch.equal(augment.compress(crop, share=0.0), crop)


def test_worse_calls_keep_less_and_each_frame_is_kept_once() -> None:
    rng = np.random.default_rng(0)
    clip = [np.clip(rng.normal(128, 25, (112, 112, 3)), 0, 255).astype(np.uint8) for _ in range(6)]
    errors = []
    for strength in (0.0, 0.5, 1.0):
        kept = augment._through_codec(clip, strength)
        assert len(kept) == 6 and kept[0].shape == (112, 112, 3)
        errors.append(np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(clip, kept, strict=True)]))
    assert errors[0] < errors[1] < errors[2]
