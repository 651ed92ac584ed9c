"""Makes personalize/assets/mesh478.npz: what MediaPipe's 478 landmarks are on the synthetic head, and how each AU moves them.

    OMP_NUM_THREADS=1 python benchmarks/make_mesh478.py [--people 40] [--moved 24]

No photograph of anyone is involved: people of the training split are rendered and tracked. The steps:

1. correspondence: the surface point under each tracked landmark of frontal, resting faces, taken back to the mean head; the median over
   people, then the nearest point of the surface. Points of upper and lower lip, which touch, may only fall on their own lip.
2. fields: how the facial controls move these points, turned into the axes and the unit of `personalize.geometry.canonical()`.
3. opening: how far each AU parts the lips and drops the chin, in mm, so that AU25 and AU26 of a generated picture are measured by the
   rule of `personalize.synth.person.Person.measure`.
4. wrinkles: of sixty people's relief the one nearest to the mean of each AU. (A mean of lines that lie elsewhere in everybody is no line.)
5. tracked fields: the same AUs rendered, tracked and normalised, the mean slope over people: what the tracker makes of them. The cosine
   between these and the analytic fields is printed and stored for each AU.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import cv2
import numpy as np

from personalize import geometry
from personalize.aus import AUS, COLUMNS
from personalize.synth import head
from personalize.synth.expression import _control
from personalize.synth.person import TEXTURE, WRINKLES, Person, _bump, au_matrix, controls, person_seed, probes, topology, wrinkle_maps
from personalize.synth.render import chart_of
from personalize.synth.scene import Scene
from personalize.synth.world import Shot, World
from personalize_plugins.trackers.mediapipe import MediaPipeTracker

OUTPUT = Path(__file__).resolve().parents[1] / "personalize" / "assets" / "mesh478.npz"
UPPER_INNER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
UPPER_LIP = (
    *UPPER_INNER[1:-1],
    *(0, 11, 12, 37, 38, 39, 40, 41, 42, 72, 73, 74, 183, 184, 185, 267, 268, 269, 270, 271, 272, 302, 303, 304, 407, 408, 409),
)
LOWER_LIP = (
    *LOWER_INNER[1:-1],
    *(15, 16, 17, 84, 85, 86, 89, 90, 91, 96, 146, 179, 180, 181, 314, 315, 316, 319, 320, 321, 325, 375, 403, 404, 405),
)
RIGHT_EYE = ((33, 246, 161, 160, 159, 158, 157, 173, 133), (33, 7, 163, 144, 145, 153, 154, 155, 133))
LEFT_EYE = ((263, 466, 388, 387, 386, 385, 384, 398, 362), (263, 249, 390, 373, 374, 380, 381, 382, 362))
SKIN_GROUP, MOUTH_GROUP, EYE_GROUP = 0, 1, 2


def people(count: int) -> list[Person]:
    """People of the training split with nothing in front of the face."""
    found, index = [], 0
    while len(found) < count:
        person = World.person("train", index)
        if not person.wears:
            found.append(person)
        index += 1
    return found


def even_scene(seed: int) -> Scene:
    """Soft light from the front."""
    scene = Scene.sample(np.random.default_rng([seed, 478]))
    return dataclasses.replace(
        scene,
        key=np.array([0.2, -0.4, -0.9]) / 1.005,
        shadow=0.2,
        softness=0.3,
        distance=1200.0,
        exposure=0.5,
        face_share=0.7,
        offset=np.zeros(2),
    )


def shoot(world: World, person: Person, aus: np.ndarray, extra: np.ndarray | None = None) -> list[Shot]:
    """Frontal pictures of a person with these AUs."""
    n = len(aus)
    extra = np.zeros((n, len(controls()[0])), np.float32) if extra is None else extra
    return list(
        world.render(
            person, aus.astype(np.float32), extra, np.zeros((n, 3), np.float32), np.zeros((n, 2), np.float32), [even_scene(person.seed)]
        )
    )


def track(tracker: MediaPipeTracker, image: np.ndarray) -> np.ndarray | None:
    """(478, 3) landmarks in pixels of the one face."""
    faces = tracker.detect(image, 0.0, True)
    return faces[0].landmarks if faces else None


def correspondence(count: int, tracker: MediaPipeTracker) -> tuple[np.ndarray, np.ndarray]:
    """(478,) triangle and (478, 3) barycentric weights."""
    h = head.load()
    world = World(size=512, supersample=1)
    hits = np.full((count, 478, 3), np.nan)
    for row, person in enumerate(people(count)):
        shot = shoot(world, person, np.zeros((1, len(AUS))))[0]
        points = track(tracker, shot.images[0])
        if points is None:
            continue
        pixel = np.round(points[:, :2]).astype(int).clip(0, 511)
        triangle = shot.buffers.triangle[0].numpy()[pixel[:, 1], pixel[:, 0]]
        weights = shot.buffers.weights[0].numpy()[pixel[:, 1], pixel[:, 0]]
        good = (triangle >= 0) & (triangle < len(h.faces))
        hits[row, good] = np.einsum("nkx,nk->nx", h.vertices[h.faces[triangle[good]]], weights[good])
    typical = np.nanmedian(hits, axis=0)
    print(
        "seen by",
        np.isfinite(hits[..., 0]).sum(0).min(),
        "people or more; spread (median, mm)",
        np.nanmedian(np.nanstd(hits, axis=0)).round(2),
    )
    region = np.array(head.REGIONS)[h.region]
    centre = h.vertices[h.faces].mean(1)
    jaw = h.actions[h.action("jawOpen")][h.faces].mean(1)[:, 1]
    rim = h.actions[h.action("jawOpen")][np.concatenate([probes()["upper_lip"], probes()["lower_lip"]]), 1]
    cut = (rim.min() + rim.max()) / 2
    triangles, all_weights = np.zeros(478, np.int32), np.zeros((478, 3), np.float32)
    for point in range(478):
        allowed = region == ("eye" if point >= 468 else "skin")
        if point in UPPER_LIP:
            allowed &= jaw < cut
        elif point in LOWER_LIP:
            allowed &= jaw >= cut
        near = np.flatnonzero(allowed)
        near = near[np.argsort(((centre[near] - typical[point]) ** 2).sum(1))[:60]]
        best = np.inf
        for triangle in near:
            weights, distance = closest(typical[point], h.vertices[h.faces[triangle]])
            if distance < best:
                best, triangles[point], all_weights[point] = distance, triangle, weights
    return triangles, all_weights


def closest(point: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, float]:
    """Barycentric weights of the point of a triangle nearest to ``point``, and the squared distance."""
    edges = np.stack([corners[1] - corners[0], corners[2] - corners[0]], 1)
    u, v = np.linalg.lstsq(edges, point - corners[0], rcond=None)[0]
    weights = np.array([1 - u - v, u, v])
    if (weights < 0).any():
        options = []
        for i, j in ((0, 1), (1, 2), (2, 0)):
            along = corners[j] - corners[i]
            t = float(np.clip((point - corners[i]) @ along / max(along @ along, 1e-9), 0, 1))
            w = np.zeros(3)
            w[i], w[j] = 1 - t, t
            options.append(w)
        weights = min(options, key=lambda w: float(((w @ corners - point) ** 2).sum()))
    return weights, float(((weights @ corners - point) ** 2).sum())


def triangulation() -> tuple[np.ndarray, np.ndarray]:
    """(M, 3) triangles and (M,) group: MediaPipe's tessellation, and strips that close the mouth and the eyes."""
    from mediapipe.tasks.python import vision

    edges = vision.FaceLandmarksConnections.FACE_LANDMARKS_TESSELATION
    faces = [(edges[i].start, edges[i + 1].start, edges[i + 2].start) for i in range(0, len(edges), 3)]  # listed triangle by triangle
    groups = [SKIN_GROUP] * len(faces)
    for (upper, lower), group in (((UPPER_INNER, LOWER_INNER), MOUTH_GROUP), (RIGHT_EYE, EYE_GROUP), (LEFT_EYE, EYE_GROUP)):
        for i in range(len(upper) - 1):
            for face in ((upper[i], upper[i + 1], lower[i]), (upper[i + 1], lower[i + 1], lower[i])):
                if len(set(face)) == 3:
                    faces.append(face)
                    groups.append(group)
    # one orientation: clockwise as seen in the canonical face (y down), so that normals point to the camera
    points = geometry.canonical()
    table = np.array(faces)
    a, b, c = (points[table[:, i], :2] for i in range(3))
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    flipped = (area < 0) & (np.array(groups) != MOUTH_GROUP)
    table[flipped] = table[flipped][:, [0, 2, 1]]
    return table.astype(np.int16), np.array(groups, np.uint8)


def wrinkles(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(W, 160, 160) float16 mm of relief, and (160, 160) where a raised chin (AU17) is pebbled."""
    stack = np.stack([wrinkle_maps(np.random.default_rng([person_seed("train", i), 478])) for i in range(count)])
    small = stack.reshape(count, len(WRINKLES), TEXTURE // 2, 2, TEXTURE // 2, 2).mean((3, 5))
    mean = small.mean(0)
    chosen = []
    for w, au in enumerate(WRINKLES):
        if au == 17:
            chosen.append(mean[w])  # the pebbles average out, they are drawn for each person
            continue
        flat, target = small[:, w].reshape(count, -1), mean[w].ravel()
        cosine = flat @ target / np.linalg.norm(flat, axis=1)
        chosen.append(small[int(np.argmax(cosine)), w])
    pebbled = 0.75 * _bump(0, 103, 16, 9).reshape(TEXTURE // 2, 2, TEXTURE // 2, 2).mean((1, 3))
    return np.stack(chosen).astype(np.float16), pebbled.astype(np.float16)


def tracked_fields(count: int, tracker: MediaPipeTracker) -> np.ndarray:
    """(K, 478, 3): mean tracked displacement for one unit of intensity; AU25 and AU26 against their measured intensity."""
    world = World(size=224, supersample=1)
    aus = np.zeros((2 * len(AUS) + 1, len(AUS)), np.float32)
    extra = np.zeros((len(aus), len(controls()[0])), np.float32)
    for k, au in enumerate(AUS):
        for j, level in enumerate((2.5, 5.0)):
            row = 1 + 2 * k + j
            if au == 25:
                extra[row, _control("mouthLowerDown")], extra[row, _control("mouthUpperUp")] = 0.07 * level, 0.04 * level
            elif au == 26:
                extra[row, _control("jawOpen")] = 0.15 * level
            else:
                aus[row, k] = level
    top, bottom = np.zeros((len(AUS), 478, 3)), np.zeros((len(AUS), 1, 1))
    for person in people(count + 40)[40:]:
        shots = shoot(world, person, aus, extra)
        target = np.concatenate([s.target for s in shots])
        points = [track(tracker, image) for s in shots for image in s.images]
        if points[0] is None:
            continue
        flat = [None if p is None else geometry.normalise(p, geometry.fit_pose(p)) for p in points]
        for row in range(1, len(aus)):
            k = (row - 1) // 2
            found = flat[row]
            if found is None:
                continue
            level = float(target[row, k]) * (1.0 if AUS[k] in (25, 26) else float(person.gain[k].mean()))
            top[k] += level * (found - flat[0])
            bottom[k] += level**2
    return (top / np.maximum(bottom, 1e-6)).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Between two fields."""
    return float((a * b).sum() / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-9))


def main() -> None:
    """Make the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=40, help="for the correspondence")
    parser.add_argument("--moved", type=int, default=24, help="for the tracked fields")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    tracker = MediaPipeTracker(num_faces=1)
    triangle, weights = correspondence(options.people, tracker)
    corners = topology().faces[triangle]
    mean = np.einsum("nkx,nk->nx", head.load().vertices[corners], weights)
    pose = geometry.fit_pose(mean.astype(np.float32))

    def canonical(moves: np.ndarray) -> np.ndarray:
        """(..., V, 3) displacements in head axes, mm, to (..., 478, 3) in canonical units."""
        at = np.einsum("...nkx,nk->...nx", moves[..., corners, :], weights)
        return (at @ pose.rotation / pose.scale).astype(np.float32)

    _, moves = controls()
    matrices = au_matrix()
    meshes = np.stack([np.einsum("kc,cvx->kvx", m, moves) for m in matrices])
    jaw, part, shut = np.zeros((3, len(moves)))
    jaw[_control("jawOpen")] = shut[_control("mouthClose")] = 1.0
    part[_control("mouthLowerDown")], part[_control("mouthUpperUp")] = 0.35, 0.2
    extra = np.stack([np.einsum("c,cvx->vx", c, moves) for c in (jaw, part, shut)])
    p = probes()
    every = np.concatenate([meshes.sum(0), extra])
    opening = np.stack(
        [every[:, p["lower_lip"], 1].mean(1) - every[:, p["upper_lip"], 1].mean(1), every[:, p["chin"], 1].mean(1)], 1
    )  # (K + 3, 2) mm: lip gap, chin drop
    au_fields = canonical(meshes)
    jaw_field, part_field, shut_field = canonical(extra)
    faces, groups = triangulation()
    maps, pebbled = wrinkles(60)
    tracked = tracked_fields(options.moved, tracker)
    agreement = np.zeros(len(AUS), np.float32)
    print(f"unit: {pose.scale:.2f} mm; pitch of the head in canonical axes {np.degrees(pose.angles[0]):.1f} degrees")
    for k, au in enumerate(AUS):
        analytic = {25: part_field, 26: jaw_field}.get(au, au_fields[:, k].sum(0))[:468]
        seen = tracked[k, :468]
        agreement[k] = cosine(analytic[:, :2], seen[:, :2])
        size = np.linalg.norm(seen[:, :2] * 5) / np.linalg.norm(analytic[:, :2])
        depth = cosine(analytic, seen)
        print(f"{COLUMNS[k]}: cosine of tracked and analytic: x and y {agreement[k]:.2f}, with z {depth:.2f}; length ratio {size:.2f}")
    np.savez_compressed(
        options.output,
        triangle=triangle,
        weights=weights,
        mean=((mean - pose.translation) @ pose.rotation / pose.scale).astype(np.float32),
        unit_mm=np.float32(pose.scale),
        au_fields=au_fields.astype(np.float16),
        jaw_open=jaw_field.astype(np.float16)[None],
        lips_part=part_field.astype(np.float16)[None],
        lips_shut=shut_field.astype(np.float16)[None],
        opening_mm=opening.astype(np.float32),
        tracked_fields=tracked.astype(np.float16),
        agreement=agreement,
        chart=chart_of(mean).astype(np.float32),
        wrinkle_aus=np.array(WRINKLES),
        wrinkles=maps,
        pebbled=pebbled,
        faces=faces,
        groups=groups,
    )
    print(f"wrote {options.output.name}: {options.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    cv2.setNumThreads(1)
    main()
