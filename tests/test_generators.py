"""Generators: mesh_warp's geometry against the synthetic head and the tracker, replay_only."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import cv2
import numpy as np
import pytest

from personalize import geometry
from personalize.aus import AUS
from personalize.errors import ConfigError, InputError
from personalize.faces import Observation
from personalize.generators import Request, Sample, ask
from personalize.identity import Identity, Neutral
from personalize_plugins.generators import mesh_warp
from personalize_plugins.generators.au_residual import AuResidual
from personalize_plugins.generators.mesh_warp import MeshWarp, around, displacement, load_mesh
from personalize_plugins.generators.replay_only import ReplayOnly

CORNERS = (61, 291)  # outer corners of the mouth, subject's right and left
OVAL = mesh_warp._OVAL


@cache
def tracker() -> Any:
    from personalize_plugins.trackers.mediapipe import MediaPipeTracker

    return MediaPipeTracker(num_faces=1)


def observe(image: np.ndarray, frame: int = 0) -> Observation:
    face = tracker().detect(image, 0.0, True)[0]
    pose = geometry.fit_pose(face.landmarks)
    crop, to_frame = geometry.crop(image, pose)
    view, view_to_frame = geometry.view(image, pose)
    points = geometry.normalise(face.landmarks, pose)
    angles = np.array(pose.angles, np.float32)
    return Observation(
        frame, frame / 25, 0, crop, points, angles, to_frame, face.landmarks, face.box, 1.0, 0.9, view=view, view_to_frame=view_to_frame
    )


@cache
def identity() -> Identity:
    """A rendered person at rest, from the front and turned by 12 degrees."""
    zeros = np.zeros((2, len(AUS)), np.float32)
    found = filmed(zeros, turned=1)
    neutral = Neutral(np.array([0]), found[0].crop[None], found[0].landmarks, 1.0)
    return Identity("someone", found, zeros, neutral, (320, 320))


def filmed(aus: np.ndarray, turned: int = -1) -> list[Observation]:
    """That person with other AUs, (N, K), in the same light, from the front; the frame ``turned`` by 12 degrees."""
    from personalize.synth.person import controls
    from personalize.synth.scene import Scene
    from personalize.synth.world import World

    n = len(aus)
    pose = np.tile(np.array([0, 0, 0.1], np.float32), (n, 1))
    if turned >= 0:
        pose[turned] = 0, 0.21, 0
    scene, still = Scene.sample(np.random.default_rng(5)), np.zeros((n, len(controls()[0])), np.float32)
    shot = next(World(size=320).render(World.person("train", 2), aus, still, pose, np.zeros((n, 2), np.float32), [scene], batch=n))
    return [observe(image, i) for i, image in enumerate(shot.images)]


def make(aus: dict[int, float], seed: int = 0, pose: tuple[float, float, float] | None = None, **options: Any) -> Sample:
    """One picture from the frontal frame."""
    generator = MeshWarp(gain_spread=0.0, **options)
    generator.prepare(identity(), seed)
    frontal = tuple(identity().observations[0].upright.tolist())
    answer = generator.generate([Request(aus, pose or frontal)])[0]  # type: ignore[arg-type]
    assert answer is not None
    return answer


def view_points() -> np.ndarray:
    o = identity().observations[0]
    assert o.view_to_frame is not None
    return MeshWarp._in_view(o.image_landmarks, o.view_to_frame)


def view() -> np.ndarray:
    image = identity().observations[0].view
    assert image is not None
    return image


def polygon(points: np.ndarray, grow: int = 0) -> np.ndarray:
    """(160, 160) bool: the convex hull of view points, grown by some pixels."""
    mask = np.zeros((160, 160), np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(np.round(points[:, :2]).astype(np.int32)), 1)
    return np.asarray(cv2.dilate(mask, np.ones((2 * grow + 1, 2 * grow + 1), np.uint8)) > 0)


# --- the asset ---------------------------------------------------------------------------------------------------------------


def test_fields_are_the_synthetic_heads_displacements() -> None:
    """The stored fields against the head's controls, put together here from the world's own person."""
    from personalize.synth import head
    from personalize.synth.person import Person, au_matrix, controls, topology

    mesh = load_mesh()
    with np.load(mesh_warp.ASSET) as data:
        triangle, weights = data["triangle"], data["weights"]
    h = head.load()

    def points(vertices: np.ndarray) -> np.ndarray:
        return np.asarray(np.einsum("nkx,nk->nx", vertices[topology().faces[triangle]], weights))

    person = Person.from_seed(3)
    person.gain[:], person.actions = 1.0, au_matrix()
    person.rest[:] = 0.0
    pose = geometry.fit_pose(points(h.vertices).astype(np.float32))
    assert mesh.unit == pytest.approx(pose.scale, rel=1e-4)
    for au, level in ((6, 5.0), (12, 2.5), (17, 4.0), (43, 3.0)):
        aus = np.zeros((2, len(AUS)), np.float32)
        aus[1, AUS.index(au)] = level
        a, b = person.mesh(person.activate(aus))
        expected = (points(b) - points(a)) @ pose.rotation / pose.scale
        got = displacement(np.tile(aus[1], (2, 1)))
        assert np.abs(got - expected).max() < 2e-3, au  # float16, and the cap on the blink
    for name, by in (("jawOpen", {"jaw": 1.0}), ("mouthClose", {"part": -1.0})):
        opened = np.zeros((1, len(controls()[0])), np.float32)
        opened[0, controls()[0].index(name)] = 1.0
        expected = (points(person.mesh(opened)[0]) - points(person.neutral)) @ pose.rotation / pose.scale
        assert np.abs(displacement(np.zeros((2, len(AUS))), **by) - expected).max() < 2e-3, name


def test_mesh_is_the_face() -> None:
    mesh = load_mesh()
    assert mesh.mean.shape == (478, 3) and mesh.fields.shape == (2, len(AUS), 478, 3) and mesh.tracked.shape == (len(AUS), 478, 3)
    assert np.linalg.norm(mesh.mean - geometry.canonical(), axis=1)[:468].mean() < 0.1
    skin = mesh.faces[mesh.groups == mesh_warp.SKIN]
    assert len(skin) == 852 and mesh.faces.max() == 467
    edges = {tuple(sorted(e)) for f in skin for e in (f[[0, 1]], f[[1, 2]], f[[2, 0]])}
    assert len(np.unique(skin)) - len(edges) + len(skin) == -2  # a disk with three holes: mouth and eyes
    closed = mesh.faces
    edges = {tuple(sorted(e)) for f in closed for e in (f[[0, 1]], f[[1, 2]], f[[2, 0]])}
    assert len(np.unique(closed)) - len(edges) + len(closed) == 1  # the strips close them
    normals = mesh_warp.vertex_normals(geometry.canonical(), skin)
    assert normals[4, 2] < -0.5 and normals[234, 0] < -0.5 and normals[454, 0] > 0.5  # the nose's tip, right and left side


def test_lips_and_lids_of_the_asset_part() -> None:
    mesh = load_mesh()
    assert mesh.jaw[14, 1] > mesh.jaw[13, 1] + 0.1  # the lower lip goes with the jaw, the upper stays
    closing = mesh.fields[:, AUS.index(43)].sum(0)
    for side in (0, 1):
        opening = mesh_warp.aperture(mesh.mean, side)
        # A field that closes wider eyes than the mean face's too; where lids meet, mesh_warp stops them.
        assert 0.8 * opening < opening - mesh_warp.aperture(mesh.mean + closing, side) < 1.6 * opening


def test_sides() -> None:
    """A left-sided smile moves the subject's left corner, in the image's right half."""
    strength = np.zeros((2, len(AUS)))
    strength[0, AUS.index(12)] = 5
    move = displacement(strength)
    assert np.linalg.norm(move[291]) > 5 * np.linalg.norm(move[61]) and geometry.canonical()[291, 0] > 0


# --- pictures ----------------------------------------------------------------------------------------------------------------


def test_no_change_gives_the_frame_itself() -> None:
    for aus in ({}, {12: 0.0, 43: 0.0}):
        sample = make(aus)
        assert sample.source == 0
        assert np.array_equal(sample.image, view())
        assert not sample.target.any()
        assert sample.known.all()


def test_flow_of_an_unmoved_mesh_is_none() -> None:
    points = view_points()
    flow = mesh_warp._Flow(points, points, points, [False, False], 160, np.zeros(2))
    y, x = np.mgrid[:160, :160]
    assert np.abs(flow.map_x - x).max() < 1e-4 and np.abs(flow.map_y - y).max() < 1e-4


def test_smile_moves_the_corners_up_and_out_for_the_tracker() -> None:
    before = observe(view()).landmarks
    sample = make({12: 4.0})
    after = observe(sample.image).landmarks
    assert before is not None and after is not None
    move = after - before
    right, left = move[CORNERS[0]], move[CORNERS[1]]
    assert right[1] < -0.03 and left[1] < -0.03
    assert right[0] < -0.02 and left[0] > 0.02
    expected = displacement(np.tile(4.0 * np.eye(len(AUS))[AUS.index(12)], (2, 1)))
    moved = np.linalg.norm(expected, axis=1)[:468] > 0.03
    a, b = expected[:468][moved][:, :2], move[:468][moved][:, :2]
    assert (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b) > 0.8
    assert sample.target[AUS.index(12)] == 4.0 and sample.known[AUS.index(12)]


def test_jaw_and_lids_for_the_tracker() -> None:
    before = observe(view()).landmarks
    opened = observe(make({26: 4.0}).image).landmarks
    shut = observe(make({43: 5.0}).image).landmarks
    assert before is not None and opened is not None and shut is not None
    assert (opened[14] - opened[13])[1] > (before[14] - before[13])[1] + 0.1
    assert opened[152, 1] > before[152, 1] + 0.1
    for side in (0, 1):
        assert mesh_warp.aperture(shut, side) < 0.5 * mesh_warp.aperture(before, side)


@pytest.mark.parametrize(
    ("au", "inside", "still"),
    [
        (4, (10, 109, 338, 108, 337, 55, 285, 70, 300, 6, 33, 263, 230, 450), (13, 14, 61, 291, 199, 152)),
        (6, (70, 300, 127, 356, 117, 346, 58, 288, 61, 291, 2), (199, 152, 9, 151, 10)),
        (17, (61, 291, 2, 152, 148, 377, 172, 397, 0), (9, 10, 33, 263, 168, 50, 280)),
        (43, (70, 300, 55, 285, 127, 356, 119, 348, 6), (13, 14, 61, 291, 199, 152, 10)),
    ],
)
def test_an_au_changes_its_region_and_nothing_else(au: int, inside: tuple[int, ...], still: tuple[int, ...]) -> None:
    points = view_points()
    change = np.abs(make({au: 5.0}).image.astype(int) - view()).max(-1)
    region = polygon(points[list(inside)], 8)
    assert (change[region] > 6).sum() > 30
    background = ~polygon(points[OVAL], 12)  # 0.2 units: the scalp follows the brows a little
    assert (change[background] > 12).mean() < 0.002
    for point in still:
        x, y = np.round(points[point, :2]).astype(int)
        assert change[y - 1 : y + 2, x - 1 : x + 2].mean() < 6, point
    assert change[region].sum() > 0.8 * change.sum()


def test_furrows_darken_only_with_shading() -> None:
    points = view_points()
    chin = polygon(points[[17, 18, 200, 199, 84, 314, 83, 313]], 1)
    flat, shaded = make({17: 5.0}, shading=False).image, make({17: 5.0}).image
    darker = cv2.blur(flat.mean(-1) - shaded.mean(-1), (3, 3))[chin]
    assert darker.max() > 6  # the furrow above the raised chin
    assert abs(darker.mean()) < 5  # and no wholesale darkening
    outside = ~polygon(points[OVAL], 6)
    assert np.array_equal(flat[outside], shaded[outside])


def test_open_mouth_is_dark_inside() -> None:
    sample = make({25: 5.0, 26: 5.0})
    points = observe(sample.image).image_landmarks
    middle = points[[13, 14], :2].mean(0)
    x, y = np.round(middle + (0, 3)).astype(int)
    lip = np.round(points[17, :2] - (0, 2)).astype(int)
    assert sample.image[y, x].mean() < 0.7 * sample.image[lip[1], lip[0]].mean()


def test_what_is_crowded_is_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lids that close, of a picture of noise: nearer to the same picture drawn three times as large and made small than one place a pixel
    is, and elsewhere one place a pixel as ever."""
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    made: list[Any] = []
    warp = mesh_warp._Flow.warp
    monkeypatch.setattr(mesh_warp._Flow, "warp", lambda self, image: made.append(self) or warp(self, image))
    make({43: 4.0})
    (flow,) = made
    once = cv2.remap(noise, flow.map_x, flow.map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    several, inside = flow.warp(noise), np.zeros((160, 160), bool)
    inside[flow.crowded] = True
    assert 100 < inside.sum() < 2000
    assert np.array_equal(several[~inside], once[~inside])

    def large(points: np.ndarray) -> np.ndarray:
        return np.concatenate([3 * points[:, :2] + 1, 3 * points[:, 2:]], 1)

    generator = MeshWarp(gain_spread=0.0)
    generator.prepare(identity(), 0)
    drawn = generator._sources[0]
    strength = np.zeros((2, len(AUS)))
    strength[:, AUS.index(43)] = 4
    *_, rigid, target = generator._motion(drawn, strength, 0.0, 0.0, (0.0, 0.0))
    big = mesh_warp._Flow(large(drawn.points), large(target), large(drawn.points + rigid), [True, True], 480, np.array([0.8, 0.8]))
    fine = cv2.remap(cv2.resize(noise, (480, 480), interpolation=cv2.INTER_LINEAR), big.map_x, big.map_y, cv2.INTER_LINEAR)
    oracle = cv2.resize(fine, (160, 160), interpolation=cv2.INTER_AREA).astype(float)
    off = [np.abs(x[inside] - oracle[inside]).mean() for x in (several, once)]
    assert off[0] < 0.4 * off[1], off


def test_jaw_drops_behind_lips_that_are_asked_to_stay_shut() -> None:
    """As the tracker sees it: without a word on the lips they part."""
    rest, shut, parted = (observe(image) for image in (view(), make({25: 0.0, 26: 3.0}).image, make({26: 3.0}).image))
    scale = geometry.fit_pose(rest.image_landmarks).scale / load_mesh().unit

    def opened(o: Observation) -> tuple[float, float]:
        points = o.image_landmarks[:, 1] / scale
        return points[14] - points[13], points[152] - points[1]

    gap, drop = (np.array(v) for v in zip(*(opened(o) for o in (rest, shut, parted)), strict=True))
    assert gap[1] - gap[0] < 2.0 and gap[2] - gap[0] > 6.0, gap
    assert min(drop[1:]) - drop[0] > 6.0, drop


def test_teeth_stand_side_by_side() -> None:
    """Where a closed mouth opens, crowns are brighter than what is between them, and that is no wider than it is in people."""
    sample = make({12: 3.0, 25: 5.0})
    points = observe(sample.image).image_landmarks
    pose = geometry.fit_pose(observe(view()).image_landmarks)
    line = np.round(points[13, 1] + 0.4 * (points[14, 1] - points[13, 1])).astype(int)
    middle = observe(view()).image_landmarks[[13, 14], 0].mean()
    row = sample.image[line - 1 : line + 1].mean((0, 2))

    def at(mm: float) -> float:
        return float(np.mean([np.interp(middle + side * mm * pose.scale / load_mesh().unit, np.arange(len(row)), row) for side in (-1, 1)]))

    for crown, gap in ((4.3, 0.0), (4.3, 8.6), (11.9, 8.6)):
        assert at(crown) > 1.03 * at(gap), (crown, gap)


def test_parted_lips_and_jaw_are_measured() -> None:
    """AU25 and AU26 of the answer by the world's rule; AU10 alone parts the lips."""
    from personalize.synth.person import Person, au_matrix

    sample = make({25: 3.0, 26: 2.0})
    assert sample.target[AUS.index(26)] == pytest.approx(2.0, abs=0.35)
    assert sample.target[AUS.index(25)] == pytest.approx(3.0, abs=0.7)
    person = Person.from_seed(3)
    person.gain[:], person.actions = 1.0, au_matrix()
    aus = np.zeros((1, len(AUS)), np.float32)
    aus[0, AUS.index(10)] = 5
    lips, jaw = person.measure(person.mesh(person.activate(aus)))
    sample = make({10: 5.0})
    assert sample.target[AUS.index(25)] == pytest.approx(float(lips[0]), abs=0.05)
    assert sample.target[AUS.index(26)] == pytest.approx(float(jaw[0]), abs=0.05)


def test_turning_the_head() -> None:
    pose = identity().observations[0].upright
    asked = (float(pose[0]), float(pose[1] - np.radians(12)), float(pose[2]))
    sample = make({}, pose=asked)
    assert sample.info["yaw_change"] == pytest.approx(-12, abs=0.1)
    turned, before = observe(sample.image), observe(view())
    assert np.degrees(turned.pose[1] - before.pose[1]) == pytest.approx(-12, abs=5)


@pytest.mark.parametrize("roll", [0, 20, 90, -150])
def test_a_tilted_head_is_turned_as_an_upright_one(roll: float) -> None:
    """The points of the picture have the pose that was asked for, whatever the frame's tilt; its view is upright."""
    rotation = geometry.rotation_matrix(*geometry.tilted(*np.radians([3.0, 18.0, roll])))
    points = (geometry.canonical() @ rotation.T * 100 + [300, 300, 0]).astype(np.float32)
    pose = geometry.fit_pose(points)
    frame, seen = np.full((600, 600, 3), 128, np.uint8), identity().observations[0]
    _, to_frame = geometry.crop(frame, pose)
    shown, view_to_frame = geometry.view(frame, pose)
    angles = np.array(pose.angles, np.float32)
    own = replace(seen, pose=angles, to_frame=to_frame, image_landmarks=points, view=shown, view_to_frame=view_to_frame)
    generator = MeshWarp(gain_spread=0.0)
    generator.prepare(replace(identity(), observations=[own], intensity=np.zeros((1, len(AUS)), np.float32), neutral=None), 0)
    for wanted in ([3.0, 18.0], [-6.0, 29.0], [10.0, 8.0]):
        draft = generator._draft(Request({}, (*np.radians(wanted).tolist(), 0.0)))
        assert draft is not None
        *_, after = generator._motion(draft.source, draft.strength, draft.jaw, draft.part, draft.turn)
        assert np.degrees(geometry.upright(geometry.fit_pose(after).angles)) == pytest.approx([*wanted, 0.0], abs=0.3)


def test_out_of_range_is_refused() -> None:
    generator = MeshWarp(max_intensity=4.0)
    generator.prepare(identity(), 0)
    requests = [
        Request({12: 3.0}, (0.0, 0.9, 0.0)),
        Request({12: 4.5}),
        Request({12: -1.0}),
        Request({12: float("nan")}),
        Request({12: 4.0}),
    ]
    answers = generator.generate(requests)
    assert [a is None for a in answers] == [True, True, True, True, False]
    with pytest.raises(InputError, match=r"^AU99 is none that the base model reads: 1, 2, "):
        generator.generate([Request({99: 1.0})])


def test_what_is_asked_exactly_is_as_strong_as_asked() -> None:
    """Else each picture has a gain of its own, as one label has on several people."""
    generator = MeshWarp()
    generator.prepare(identity(), 0)
    for exact in (True, False):
        drafts = [generator._draft(Request({12: v}, exact=exact)) for v in (1.0, 2.0, 3.0, 4.0, 5.0)]
        gains = [d.strength[:, AUS.index(12)] / v for d, v in zip(drafts, (1.0, 2.0, 3.0, 4.0, 5.0), strict=True) if d is not None]
        assert len(gains) == 5 and (np.allclose(gains, 1.0) if exact else np.std(gains) > 0.05)


def test_a_set_of_pictures_does_not_depend_on_the_sets_before() -> None:
    """A fit that goes on after a kill makes the second round's without having made the first's."""
    requests, made = [Request({12: 3.0})] * 4, []
    for before in ([], requests):
        generator = MeshWarp()
        generator.prepare(identity(), 0)
        generator.generate(before)
        generator.restart(1)
        made.append(generator.generate(requests))
        generator.restart(0)
        assert [s.info for s in generator.generate(requests)] != [s.info for s in made[-1]]  # type: ignore[union-attr]
    for a, b in zip(*made, strict=True):
        assert a is not None and b is not None and np.array_equal(a.image, b.image) and a.info == b.info


def test_a_large_picture_shows_what_a_small_one_does() -> None:
    """At 384 pixels more of it is skin than OpenCV looks up at once."""
    o = identity().observations[0]
    assert o.view is not None
    shown, to_frame = geometry.view(o.view, geometry.fit_pose(view_points()), size=384)
    large = replace(o, image_landmarks=view_points(), view=shown, view_to_frame=to_frame)
    generator = MeshWarp(384, gain_spread=0.0)
    generator.prepare(replace(identity(), observations=[large], intensity=np.zeros((1, len(AUS)), np.float32)), 0)
    small = MeshWarp(192, gain_spread=0.0)
    small.prepare(replace(identity(), observations=[large], intensity=np.zeros((1, len(AUS)), np.float32)), 0)
    (made,), (like,) = (g.generate([Request({6: 5.0, 17: 5.0})]) for g in (generator, small))
    assert made is not None and like is not None and made.image.shape == (384, 384, 3)
    halved = cv2.resize(made.image, (192, 192), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(halved - like.image).mean() < 2.5


def without_colours(noise: int) -> Identity:
    """The person filmed in black and white, with channels that differ by up to so many levels."""
    o = identity().observations[0]
    assert o.view is not None
    grey = np.repeat(cv2.cvtColor(o.view, cv2.COLOR_RGB2GRAY)[..., None], 3, 2).clip(0, 250)
    grey[::2, ::2, 0] += noise
    return replace(identity(), observations=[replace(o, view=grey)], intensity=np.zeros((1, len(AUS)), np.float32))


@pytest.mark.parametrize("cls", [MeshWarp, AuResidual])
def test_pictures_of_a_black_and_white_clip_have_no_colours(cls: type[MeshWarp]) -> None:
    """Lips, teeth, the dark between them and the light on skin are drawn in colours of their own."""
    requests = [Request({25: 5.0, 26: 5.0, 6: 5.0}, exact=True), Request({}, exact=True)]
    for noise, colours in ((0, 0), (2, 0), (3, 12)):
        person = without_colours(noise)
        generator = cls()
        generator.prepare(person, 0)
        drawn, same = generator.generate(requests)
        assert drawn is not None and same is not None
        apart = np.ptp(drawn.image.astype(int), axis=-1).max()
        assert apart == 0 if colours == 0 else apart >= colours
        assert np.array_equal(same.image, person.observations[0].view), "what is not changed is the frame's own"


def test_without_views_everything_is_refused() -> None:
    blind = replace(identity(), observations=[replace(o, view=None) for o in identity().observations])
    generator = MeshWarp()
    generator.prepare(blind, 0)
    assert generator.generate([Request({12: 1.0})]) == [None]


def test_what_the_frame_shows_counts() -> None:
    """A frame that already shows AU12 at 2 needs less of it, and what else it shows is not labelled."""
    o = identity()
    shown = np.zeros((2, len(AUS)), np.float32)
    shown[:, AUS.index(12)], shown[:, AUS.index(4)] = 2.0, 1.5
    generator = MeshWarp(gain_spread=0.0)
    generator.prepare(replace(o, intensity=shown, neutral=replace(o.neutral, confidence=0.0)), 0)  # type: ignore[type-var]
    pose = tuple(o.observations[0].upright.tolist())
    same, more = generator.generate([Request({12: 2.0}, pose), Request({12: 4.0}, pose)])  # type: ignore[arg-type]
    assert same is not None and more is not None
    assert np.array_equal(same.image, view())
    assert same.known[AUS.index(12)] and not same.known[AUS.index(4)]
    change, full = (np.abs(s.image.astype(int) - view()).sum() for s in (more, make({12: 4.0})))
    assert change < 0.8 * full


def test_the_onset_of_a_smile_is_neither_rest_nor_labelled_so() -> None:
    """A second at rest, then a smile that the base sees a little late: what lies just before it serves last, and says nothing of AU12."""
    o = identity()
    smile = AUS.index(12)
    found = [replace(o.observations[0], frame=i, timestamp=i / 25) for i in range(40)]
    shown = np.zeros((40, len(AUS)), np.float32)
    shown[30:, smile] = 3.0
    generator = MeshWarp(gain_spread=0.0, sources=24)
    generator.prepare(replace(o, observations=found, intensity=shown), 0)
    assert {s.index for s in generator._sources} == set(range(24)), "24 to 29 are within .25 s of the smile"
    # Where there is nothing else they serve, and what they may show is unknown.
    unsure = replace(o.neutral, confidence=0.0)  # type: ignore[type-var]
    generator.prepare(replace(o, observations=found[24:], intensity=shown[24:], neutral=unsure), 0)
    sample = generator.generate([Request({4: 3.0})])[0]
    assert sample is not None and not sample.known[smile] and sample.known[AUS.index(4)] and sample.known[AUS.index(17)]


def test_the_most_within_a_span_against_a_slow_reading() -> None:
    rng = np.random.default_rng(4)
    times = np.cumsum(rng.uniform(0.01, 0.3, 60))
    values = rng.uniform(0, 5, (60, 3))
    found = around(values, times.tolist(), 0.25)
    for i, t in enumerate(times):
        assert np.array_equal(found[i], values[np.abs(times - t) <= 0.25].max(0))
    assert np.array_equal(around(values, [0.0] * 60, 0.25), values), "photographs are not of one moment"


def test_a_habit_of_the_neutral_face_is_no_expression() -> None:
    reading = np.tile(np.where(np.arange(len(AUS)) == AUS.index(15), 1.5, 0.0).astype(np.float32), (2, 1))
    generator = MeshWarp()
    generator.prepare(replace(identity(), intensity=reading), 0)
    sample = generator.generate([Request({})])[0]
    assert sample is not None and sample.known.all()


def test_seed_decides() -> None:
    def run(seed: int) -> list[Sample | None]:
        generator = MeshWarp()
        generator.prepare(identity(), seed)
        return generator.generate([Request({12: 3.0}), Request({17: 2.0, 4: 1.0})])

    one, two, other = run(1), run(1), run(2)
    for a, b in zip(one, two, strict=True):
        assert a is not None and b is not None
        assert np.array_equal(a.image, b.image) and a.info == b.info
    assert one[0] is not None and other[0] is not None
    assert one[0].info["gain12"] != other[0].info["gain12"]
    assert one[0].target[AUS.index(12)] == 3.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 10}, "generator option size must be at least 64, got 10"),
        ({"max_yaw_change": 60.0}, "generator option max_yaw_change must lie in 0-45 degrees, got 60"),
        ({"max_intensity": 6.0}, "generator option max_intensity must lie above 0 and at most 5, got 6"),
        ({"sources": 0}, "generator option sources must be at least 1, got 0"),
        ({"gain_spread": -1.0}, "generator option gain_spread must not be negative, got -1"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        MeshWarp(**options)
    assert str(error.value) == message


def test_other_size_is_the_same_picture() -> None:
    small, large = make({12: 3.0}, size=160).image, make({12: 3.0}, size=240).image
    assert large.shape == (240, 240, 3)
    assert np.abs(cv2.resize(large, (160, 160), interpolation=cv2.INTER_AREA).astype(int) - small).mean() < 2.5


def test_replay_only_generates_nothing() -> None:
    generator = ReplayOnly()
    generator.prepare(identity(), 0)
    assert generator.generate([Request({12: 3.0}), Request({})]) == [None, None]


# --- what a plug-in answers --------------------------------------------------------------------------------------------------

PICTURE, NOTHING, EVERY = np.zeros((8, 8, 3), np.uint8), np.zeros(len(AUS), np.float32), np.ones(len(AUS), bool)


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (([PICTURE, 60 * np.eye(len(AUS))[3], EVERY],), "60 as a known intensity: they are 0-5."),
        (([PICTURE, np.full(len(AUS), np.nan), EVERY],), "nan as a known intensity: they are 0-5."),
        (
            ([PICTURE.astype(np.float32), NOTHING, EVERY],),
            "a picture of shape (8, 8, 3) and type float32: it must be (height, width, 3) of uint8.",
        ),
        (([PICTURE[..., 0], NOTHING, EVERY],), "a picture of shape (8, 8) and type uint8: it must be (height, width, 3) of uint8."),
        (
            ([PICTURE, np.zeros(12), np.ones(12, bool)],),
            f"labels of shapes (12,) and (12,) in target and known: both must be ({len(AUS)},), one of each AU.",
        ),
        ((), "0 answers to 1 requests: give one for each, None where it has none."),
    ],
)
def test_what_a_plugin_answers_is_checked(answer: tuple[list[np.ndarray], ...], line: str) -> None:
    class Mine(MeshWarp):
        name = "mine"

        def generate(self, requests: list[Request]) -> list[Sample | None]:
            return [Sample(*parts, requests[0], 0) for parts in answer]

    with pytest.raises(ConfigError) as caught:
        ask(Mine(), [Request({})])
    assert str(caught.value) == f"generator mine gave {line}"


def test_what_is_unknown_may_be_anything() -> None:
    class Mine(MeshWarp):
        def generate(self, requests: list[Request]) -> list[Sample | None]:
            return [None, Sample(PICTURE, np.full(len(AUS), np.nan), ~EVERY, requests[0], 0)]

    none, sample = ask(Mine(), [Request({})] * 2)
    assert none is None and sample is not None
