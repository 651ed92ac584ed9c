"""The door to the synthetic face world: pictures of people, with their ground truth.

>>> from personalize.synth.world import World
>>> world = World(size=160)
>>> shot = world.stills(world.person("train", 3), n=2, seed=0)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..aus import AUS
from ..geometry import rotation_matrix
from . import expression
from .person import Person, controls, person_seed, topology
from .render import Pictures, Renderer, to_srgb
from .scene import Scene, expose, film, known_setting, other_skin, stack_views


@dataclass
class Shot:
    """Rendered frames of one person with their truth. T frames of S pixels, of ``person``.

    images: (T, S, S, 3) uint8 sRGB. target: (T, K) intensities 0-5, AU25 and AU26 measured. pose: (T, 3) radians pitch, yaw, roll as
    OpenFace signs them. local: (T, V, 3) vertices in head axes, mm; rotation, translation, focal: the cameras. buffers: the renderer's
    ground truth (triangles, weights, normals). scenes: of each frame.
    """

    person: Person
    images: np.ndarray
    target: np.ndarray
    pose: np.ndarray
    local: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    focal: np.ndarray
    buffers: Pictures
    scenes: list[Scene]

    def project(self, points: np.ndarray) -> np.ndarray:
        """(T, N, 3) points in head axes to (T, N, 3): pixels and depth in mm."""
        camera = np.einsum("tij,tnj->tni", self.rotation, points) + self.translation[:, None]
        flat = camera[..., :2] / camera[..., 2:] * self.focal[:, None, None] + self.images.shape[1] / 2
        return np.concatenate([flat, camera[..., 2:]], -1)

    def surface(self, triangles: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(T, N, 3) points in head axes of N surface points, given by triangle and barycentric weights."""
        corners = topology().faces[triangles]
        return np.einsum("tnkx,nk->tnx", self.local[:, corners], weights)

    def flow(self, source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
        """Where each surface point of frame ``source`` lies in frame ``target``.

        Returns (S, S, 2) pixels of displacement and (S, S) bool, where the point is seen in both.
        """
        triangle = self.buffers.triangle[source].numpy()
        seen = triangle >= 0
        weights = self.buffers.weights[source].numpy()[seen]
        corners = topology().faces[triangle[seen]]
        points = np.einsum("nkx,nk->nx", self.local[target][corners], weights)
        camera = points @ self.rotation[target].T + self.translation[target]
        size = self.images.shape[1]
        there = camera[:, :2] / camera[:, 2:] * self.focal[target] + size / 2
        flow = np.zeros((size, size, 2), np.float32)
        rows, columns = np.nonzero(seen)
        # From where the point itself lies in the source: with supersampling that is not quite the middle of its pixel.
        origin = np.einsum("nkx,nk->nx", self.local[source][corners], weights) @ self.rotation[source].T + self.translation[source]
        flow[seen] = there - (origin[:, :2] / origin[:, 2:] * self.focal[source] + size / 2)
        pixel = np.floor(there).astype(int)
        inside = ((pixel >= 0) & (pixel < size)).all(1)
        visible = np.zeros(len(rows), bool)
        other = self.buffers.triangle[target].numpy()
        hit = other[pixel[inside, 1], pixel[inside, 0]]
        depth_there = np.full(inside.sum(), np.inf)
        found = hit >= 0
        hit_weights = self.buffers.weights[target].numpy()[pixel[inside, 1], pixel[inside, 0]][found]
        hit_points = np.einsum("nkx,nk->nx", self.local[target][topology().faces[hit[found]]], hit_weights)
        depth_there[found] = (hit_points @ self.rotation[target].T + self.translation[target])[:, 2]
        visible[inside] = np.abs(depth_there - camera[inside, 2]) < 4.0
        both = np.zeros((size, size), bool)
        both[seen] = visible
        return flow, both

    def face_mask(self, frame: int) -> np.ndarray:
        """(S, S) bool: pixels of the face's skin, lips and eyes."""
        triangle = self.buffers.triangle[frame].numpy()
        material = topology().material
        return (triangle >= 0) & np.isin(material[np.maximum(triangle, 0)], (0, 1, 2))

    def au_support(self, frame: int, au: int) -> np.ndarray:
        """(S, S) float: how far, in mm, the AU at full strength, with a gain of 1, moves this person's surface seen at each pixel.

        For AU25 and AU26, which are measured, what parting the lips and dropping the jaw alone would move.
        """
        left, right = self.person.actions
        names, moves = controls()
        strength = (left + right)[AUS.index(au)]
        for name, value in {25: {"mouthLowerDown": 0.8, "mouthUpperUp": 0.4}, 26: {"jawOpen": 0.65}}.get(au, {}).items():
            strength[[i for i, n in enumerate(names) if n in (name, name + "Left", name + "Right")]] = value
        field = np.einsum("c,cvx->vx", strength, moves)
        length = np.zeros(len(topology().chart), np.float32)
        length[: len(field)] = np.linalg.norm(field, axis=1)
        triangle = self.buffers.triangle[frame].numpy()
        corner = length[topology().faces[np.maximum(triangle, 0)]]
        return np.where(triangle >= 0, (corner * self.buffers.weights[frame].numpy()).sum(-1), 0.0)


class World:
    """Renders people. size: pixels of the square pictures; device: 'cpu' or 'cuda:0'.

    setting: 'first', or 'second', another light, camera and skin that training never sees; the truth of a seed is the same in both.
    """

    def __init__(self, size: int = 160, device: str = "cpu", supersample: int = 2, setting: str = "first") -> None:
        self.size, self.device, self.setting = size, device, known_setting(setting)
        self.renderer = Renderer(topology(), size=size, supersample=supersample, device=device)

    @staticmethod
    def person(split: str, index: int) -> Person:
        """Person ``index`` of 'train', 'validation', 'benchmark' or 'demo'."""
        return Person.from_seed(person_seed(split, index))

    def render(
        self, person: Person, aus: np.ndarray, extra: np.ndarray, pose: np.ndarray, gaze: np.ndarray, scenes: list[Scene], batch: int = 16
    ) -> Iterator[Shot]:
        """Render T frames in batches. aus: (T, K), extra: (T, C), pose: (T, 3), gaze: (T, 2), scenes: T, or one for all."""
        second = self.setting == "second"
        skin = other_skin(person.albedo, person.seed) if second else person.albedo
        albedo = torch.from_numpy(skin)[None].to(self.device)
        for start in range(0, len(aus), batch):
            rows = slice(start, start + batch)
            values = person.activate(aus[rows], extra[rows])
            local = person.mesh(values)
            target = aus[rows].astype(np.float32).copy()
            target[:, AUS.index(25)], target[:, AUS.index(26)] = person.measure(local)
            relief = person.relief(aus[rows])
            rotation = rotation_of(pose[rows])
            chosen = scenes[rows] if len(scenes) > 1 else scenes * len(local)
            cameras = [s.camera(self.size) for s in chosen]
            translation = np.stack([c[0] for c in cameras])
            focal = np.array([c[1] for c in cameras], np.float32)
            looks = [s.look(person, r, g) for s, r, g in zip(chosen, rotation, gaze[rows], strict=True)]
            on = [stack_views(list(a)).to(self.device) for a in (local, rotation, translation, focal, relief)]
            pictures = self.renderer.render(
                on[0], on[1], on[2], on[3], albedo, on[4], torch.zeros(len(local), device=self.device), looks
            ).cpu()
            colour, alpha = pictures.colour.permute(0, 2, 3, 1).numpy(), pictures.alpha[:, 0].numpy()
            images = []
            for i, scene in enumerate(chosen):
                face = expose(colour[i], alpha[i], scene.exposure)
                image = face + (1 - alpha[i][..., None]) * scene.background(self.size)
                if second:
                    camera, grain = (np.random.default_rng([scene.background_seed, 7006, *key]) for key in ((), (start + i,)))
                    image = film(image, camera, grain)
                images.append(image)
            srgb = (to_srgb(torch.from_numpy(np.stack(images))) * 255).round().to(torch.uint8).numpy()
            yield Shot(person, srgb, target, pose[rows], local, rotation, translation, focal, pictures, list(chosen))

    def stills(self, person: Person, n: int, seed: int, neutral: int = 1) -> Shot:
        """n unrelated pictures of a person, the first ``neutral`` of them with a resting face; each in its own light and pose."""
        rng = np.random.default_rng([person.seed, seed, 7002])
        drawn = [expression.sample_still(rng) for _ in range(n)]
        aus, extra = np.stack([a for a, _ in drawn]), np.stack([e for _, e in drawn])
        aus[:neutral] = 0
        extra[:neutral] = 0
        wide = rng.random((n, 1)) < 0.12
        pose = (rng.normal(0, 1, (n, 3)) * [0.14, 0.24, 0.10] * np.where(wide, 2.0, 1.0)).clip(-0.85, 0.85).astype(np.float32)
        gaze = rng.normal(0, [0.2, 0.1], (n, 2)).clip(-0.5, 0.5).astype(np.float32)
        names = controls()[0]
        for column, sign in (("eyeLookDown", 1), ("eyeLookUp", -1)):
            rows = [i for i, name in enumerate(names) if name.startswith(column)]
            extra[:, rows] += np.clip(sign * gaze[:, 1:2] * 1.6, 0, 0.8)
        scenes = [Scene.sample(rng, self.setting) for _ in range(n)]
        return next(self.render(person, aus, extra, pose, gaze, scenes, batch=n))

    def clip(self, person: Person, seed: int, seconds: float, fps: float = 25.0, liveliness: float = 1.0) -> Iterator[Shot]:
        """A clip of a person on one day: one light, one camera, one background; batches of frames."""
        rng = np.random.default_rng([person.seed, seed, 7003])
        scene = Scene.of_clip(person.seed, seed, self.setting)
        motion = expression.sample_motion(person, rng, seconds, fps, liveliness)
        yield from self.render(person, motion.aus, motion.extra, motion.pose, motion.gaze, [scene])


def rotation_of(pose: np.ndarray) -> np.ndarray:
    """(T, 3) radians, OpenFace's pose_Rx, pose_Ry, pose_Rz, to (T, 3, 3) rotations of the head in camera axes."""
    return np.stack([rotation_matrix(*map(float, angles)) for angles in pose]).astype(np.float32)
