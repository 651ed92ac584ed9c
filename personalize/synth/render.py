"""Pictures from meshes: a small z-buffer rasteriser and skin shader in Warp, the same on CPU and CUDA.

Every pixel is decided by integer minima and by sums in a fixed order, so that a seed gives the same picture on every run, and on both
devices up to rounding. Camera axes: x right, y down, z away; millimetres and pixels; colours are linear RGB until :func:`to_srgb`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
import warp as wp
from torch import Tensor

if hasattr(wp.config, "log_level"):  # newer versions of Warp no longer heed "quiet"
    wp.config.log_level = wp.LOG_WARNING
else:
    wp.config.quiet = True

SKIN, EYE, EYE_CAVITY, MOUTH_CAVITY, TONGUE, NECK, TEETH, FRAME, DRAPE = range(9)
"""Materials of triangles; the first six are those of :data:`personalize.synth.head.REGIONS`."""

CHART_ANGLE = wp.constant(2.0)  # the chart spans this many radians to each side of the midline
CHART_TOP = wp.constant(-125.0)  # and these millimetres of height
CHART_BOTTOM = wp.constant(135.0)
CHART_AXIS = wp.constant(55.0)  # depth of the cylinder's axis
_FAR = 1 << 62
_OCCLUSION = wp.constant(1.7)  # by which the mean of the neighbours is as dark as rays to all sides say
_NEIGHBOURS = wp.constant(7)
_GOLDEN_COS, _GOLDEN_SIN = wp.constant(-0.737369), wp.constant(0.675490)  # the golden angle, by which a spiral fills evenly
_REACH = wp.constant(24.0)  # millimetres around a point within which what rises above it takes light from it: as wide as an eye's socket


@wp.func
def _edge(a: wp.vec3, b: wp.vec3, x: float, y: float) -> float:
    return (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])


@wp.kernel
def _rasterise(  # type: ignore[no-untyped-def]
    screen: wp.array2d(dtype=wp.vec3), faces: wp.array(dtype=wp.vec3i), size: int, keys: wp.array3d(dtype=wp.int64)
):
    """screen: pixels and 1/depth of each vertex; keys: depth (1/1024 mm) and triangle of the nearest surface of each pixel."""
    image, f = wp.tid()
    face = faces[f]
    a = screen[image, face[0]]
    b = screen[image, face[1]]
    c = screen[image, face[2]]
    if a[2] <= 0.0 or b[2] <= 0.0 or c[2] <= 0.0:
        return
    area = _edge(a, b, c[0], c[1])
    if wp.abs(area) < 1.0e-7:
        return
    x0 = wp.max(int(wp.ceil(wp.min(wp.min(a[0], b[0]), c[0]) - 0.5)), 0)
    x1 = wp.min(int(wp.floor(wp.max(wp.max(a[0], b[0]), c[0]) - 0.5)), size - 1)
    y0 = wp.max(int(wp.ceil(wp.min(wp.min(a[1], b[1]), c[1]) - 0.5)), 0)
    y1 = wp.min(int(wp.floor(wp.max(wp.max(a[1], b[1]), c[1]) - 0.5)), size - 1)
    inverse = 1.0 / area
    for y in range(y0, y1 + 1):
        for x in range(x0, x1 + 1):
            px = float(x) + 0.5
            py = float(y) + 0.5
            w0 = _edge(b, c, px, py) * inverse
            w1 = _edge(c, a, px, py) * inverse
            w2 = 1.0 - w0 - w1
            if w0 >= 0.0 and w1 >= 0.0 and w2 >= 0.0:
                depth = 1.0 / (w0 * a[2] + w1 * b[2] + w2 * c[2])
                key = (wp.int64(depth * 1024.0) << wp.int64(32)) | wp.int64(f)
                wp.atomic_min(keys, image, y, x, key)


@wp.kernel
def _vertex_normals(  # type: ignore[no-untyped-def]
    points: wp.array2d(dtype=wp.vec3),
    faces: wp.array(dtype=wp.vec3i),
    start: wp.array(dtype=int),
    around: wp.array(dtype=int),
    normals: wp.array2d(dtype=wp.vec3),
):
    image, v = wp.tid()
    total = wp.vec3(0.0, 0.0, 0.0)
    for i in range(start[v], start[v + 1]):
        face = faces[around[i]]
        p = points[image, face[0]]
        total = total + wp.cross(points[image, face[1]] - p, points[image, face[2]] - p)
    normals[image, v] = wp.normalize(total)


@wp.struct
class Look:
    """What one picture looks like: light, camera and materials that are no textures."""

    rotation: wp.mat33  # head to camera
    key: wp.vec3  # direction towards the key light, camera axes
    key_colour: wp.vec3
    fill: wp.vec3
    fill_colour: wp.vec3
    above: wp.vec3  # ambient light from above and below
    below: wp.vec3
    shadow: float  # how dark the key light's shadows are, 0-1
    softness: float  # how far light wraps around
    gloss: float
    shine: float
    iris: wp.vec3
    gaze_left: wp.vec3  # direction of each eye in head axes
    gaze_right: wp.vec3
    eye_left: wp.vec3  # centre of each eye in head axes
    eye_right: wp.vec3
    pupil: float  # cosines of the edges of pupil and iris
    iris_edge: float
    cloth: wp.vec3
    neckline: float  # y of the collar in head axes
    lash_edge: float  # how near the margin of a lid lashes begin, 0-1
    lashes: float  # how well they cover the skin, 0-1
    teeth: wp.vec3
    frame: wp.vec3
    hair: wp.vec3
    relief: float  # strength of the height map
    cavity: float  # how much darker it is down there: share of the sky that a furrow loses for each mm


@wp.func
def _sample3(texture: wp.array4d(dtype=float), person: int, u: float, v: float) -> wp.vec4:
    height = texture.shape[1]
    width = texture.shape[2]
    x = wp.clamp(u * float(width) - 0.5, 0.0, float(width) - 1.001)
    y = wp.clamp(v * float(height) - 0.5, 0.0, float(height) - 1.001)
    i = int(x)
    j = int(y)
    fx = x - float(i)
    fy = y - float(j)
    out = wp.vec4()
    for k in range(4):
        top = texture[person, j, i, k] * (1.0 - fx) + texture[person, j, i + 1, k] * fx
        bottom = texture[person, j + 1, i, k] * (1.0 - fx) + texture[person, j + 1, i + 1, k] * fx
        out[k] = top * (1.0 - fy) + bottom * fy
    return out


@wp.func
def _sample1(texture: wp.array3d(dtype=float), image: int, u: float, v: float) -> float:
    height = texture.shape[1]
    width = texture.shape[2]
    x = wp.clamp(u * float(width) - 0.5, 0.0, float(width) - 1.001)
    y = wp.clamp(v * float(height) - 0.5, 0.0, float(height) - 1.001)
    i = int(x)
    j = int(y)
    fx = x - float(i)
    fy = y - float(j)
    top = texture[image, j, i] * (1.0 - fx) + texture[image, j, i + 1] * fx
    bottom = texture[image, j + 1, i] * (1.0 - fx) + texture[image, j + 1, i + 1] * fx
    return top * (1.0 - fy) + bottom * fy


@wp.func
def _mix(a: wp.vec3, b: wp.vec3, t: float) -> wp.vec3:
    return a * (1.0 - t) + b * t


@wp.func
def _open_sky(  # type: ignore[no-untyped-def]
    keys: wp.array3d(dtype=wp.int64), image: int, x: int, y: int, p: wp.vec3, n: wp.vec3, focal: float, far: wp.int64
) -> float:
    """Share of the light from all around that reaches p: 1 on a ball, less in sockets, nostrils, folds and corners, as they are now.

    Ambient occlusion in the picture (Mittring, Finding next gen: CryEngine 2, SIGGRAPH 2007 courses, ch. 8; weighted by how far neighbours
    rise above the surface, as by Bavoil, Sainz and Dimitrov, SIGGRAPH 2008 talks): neighbours on a spiral, turned in each of four samples.
    """
    side = keys.shape[1]
    half = 0.5 * float(side)
    turn = 0.39 * float(x % 2) + 0.79 * float(y % 2)
    way = wp.vec2(wp.cos(turn), wp.sin(turn))
    step = _REACH / float(_NEIGHBOURS) * focal / p[2]
    away = float(0.0)
    hidden = float(0.0)
    for _ in range(_NEIGHBOURS):
        away += step
        sx = int(float(x) + away * way[0] + 0.5)
        sy = int(float(y) + away * way[1] + 0.5)
        way = wp.vec2(way[0] * _GOLDEN_COS - way[1] * _GOLDEN_SIN, way[0] * _GOLDEN_SIN + way[1] * _GOLDEN_COS)
        if sx >= 0 and sy >= 0 and sx < side and sy < side:
            key = keys[image, sy, sx]
            if key < far:
                z = float(key >> wp.int64(32)) / 1024.0
                d = wp.vec3((float(sx) + 0.5 - half) * z / focal, (float(sy) + 0.5 - half) * z / focal, z) - p
                far_off = wp.length(d)
                # Beyond the reach it is another thing, such as the nose before the cheek behind it.
                near = wp.clamp(1.6 - 0.8 * far_off / _REACH, 0.0, 1.0)
                hidden += near * wp.max(wp.dot(n, d) / (far_off + 0.1) - 0.1, 0.0)
    return wp.clamp(1.0 - _OCCLUSION * hidden / float(_NEIGHBOURS), 0.15, 1.0)


@wp.kernel
def _shade(  # type: ignore[no-untyped-def]
    keys: wp.array3d(dtype=wp.int64),
    screen: wp.array2d(dtype=wp.vec3),
    points: wp.array2d(dtype=wp.vec3),
    local: wp.array2d(dtype=wp.vec3),
    chart: wp.array(dtype=wp.vec2),
    focal: wp.array(dtype=float),
    normals: wp.array2d(dtype=wp.vec3),
    faces: wp.array(dtype=wp.vec3i),
    material: wp.array(dtype=int),
    lids: wp.array(dtype=float),
    albedo: wp.array4d(dtype=float),
    relief: wp.array3d(dtype=float),
    person: wp.array(dtype=int),
    looks: wp.array(dtype=Look),
    shadow_keys: wp.array3d(dtype=wp.int64),
    shadow_screen: wp.array2d(dtype=wp.vec3),
    far: wp.int64,
    colour: wp.array3d(dtype=wp.vec4),
    triangle: wp.array3d(dtype=int),
    weights: wp.array3d(dtype=wp.vec3),
    normal_out: wp.array3d(dtype=wp.vec3),
):
    image, y, x = wp.tid()
    key = keys[image, y, x]
    if key >= far:
        triangle[image, y, x] = -1
        colour[image, y, x] = wp.vec4(0.0, 0.0, 0.0, 0.0)
        return
    f = int(key & wp.int64(4294967295))
    face = faces[f]
    a = screen[image, face[0]]
    b = screen[image, face[1]]
    c = screen[image, face[2]]
    px = float(x) + 0.5
    py = float(y) + 0.5
    inverse = 1.0 / _edge(a, b, c[0], c[1])
    w0 = _edge(b, c, px, py) * inverse * a[2]
    w1 = _edge(c, a, px, py) * inverse * b[2]
    w2 = _edge(a, b, px, py) * inverse * c[2]
    norm = 1.0 / (w0 + w1 + w2)
    w0 = w0 * norm
    w1 = w1 * norm
    w2 = w2 * norm
    look = looks[image]
    m = material[f]
    p = points[image, face[0]] * w0 + points[image, face[1]] * w1 + points[image, face[2]] * w2
    h = local[image, face[0]] * w0 + local[image, face[1]] * w1 + local[image, face[2]] * w2
    n = wp.normalize(normals[image, face[0]] * w0 + normals[image, face[1]] * w1 + normals[image, face[2]] * w2)
    view = wp.normalize(-p)
    if wp.dot(n, view) < 0.0 and m != 0:
        n = -n
    uv = chart[face[0]] * w0 + chart[face[1]] * w1 + chart[face[2]] * w2
    base = wp.vec3(0.5, 0.5, 0.5)
    gloss = look.gloss
    shine = look.shine
    open_air = float(1.0)
    sky = float(1.0)
    if m == 0 or m == 5 or m == 8:
        sky = _open_sky(keys, image, x, y, p, n, focal[image], far)
    if m == 0 or m == 5 or m == 2:
        t = _sample3(albedo, person[image], uv[0], uv[1])
        base = wp.vec3(t[0], t[1], t[2])
        gloss = look.gloss * (1.0 - t[3])
        if m == 0:
            step = 1.0 / float(relief.shape[2])
            h0 = _sample1(relief, image, uv[0], uv[1])
            du = (_sample1(relief, image, uv[0] + step, uv[1]) - _sample1(relief, image, uv[0] - step, uv[1])) * 0.5
            dv = (_sample1(relief, image, uv[0], uv[1] + step) - _sample1(relief, image, uv[0], uv[1] - step)) * 0.5
            angle = (uv[0] * 2.0 - 1.0) * CHART_ANGLE
            tu = look.rotation * wp.vec3(wp.cos(angle), 0.0, wp.sin(angle))
            tv = look.rotation * wp.vec3(0.0, 1.0, 0.0)
            mm_u = 2.0 * CHART_ANGLE * 85.0 * step
            mm_v = (CHART_BOTTOM - CHART_TOP) * step
            bare = look.relief * (1.0 - t[3])  # hair and caps do not crease
            n = wp.normalize(n - (tu * (du / mm_u) + tv * (dv / mm_v)) * bare)
            # Less light of any kind reaches a furrow: how far it lies below what is beside it, whichever way it runs.
            beside = 5.0 * step
            across = _sample1(relief, image, uv[0] - beside, uv[1]) + _sample1(relief, image, uv[0] + beside, uv[1])
            along = _sample1(relief, image, uv[0], uv[1] - beside) + _sample1(relief, image, uv[0], uv[1] + beside)
            groove = wp.clamp(1.0 + look.cavity * bare * wp.min(h0 - 0.5 * wp.max(across, along), 0.0), 0.4, 1.0)
            base = base * groove
        lid = lids[face[0]] * w0 + lids[face[1]] * w1 + lids[face[2]] * w2
        if m == 0:
            lash = look.lashes * wp.clamp((lid - look.lash_edge) / (0.75 - look.lash_edge), 0.0, 1.0)
            base = _mix(base, wp.vec3(0.02, 0.014, 0.012), lash)
        if m == 2:
            base = _mix(base, wp.vec3(0.45, 0.2, 0.18), 0.5)
            open_air = 0.5
        if m == 5 and h[1] > look.neckline:
            base = look.cloth
            gloss = 0.0
    elif m == 1:
        centre = look.eye_left
        gaze = look.gaze_left
        if h[0] < 0.0:
            centre = look.eye_right
            gaze = look.gaze_right
        c_gaze = wp.dot(wp.normalize(h - centre), gaze)
        base = wp.vec3(0.36, 0.32, 0.30)
        if c_gaze > look.iris_edge:
            t_iris = (c_gaze - look.iris_edge) / (1.0 - look.iris_edge)
            base = look.iris * (0.35 + 0.9 * t_iris)
        if c_gaze > look.pupil:
            base = wp.vec3(0.01, 0.01, 0.01)
        gloss = 1.2
        shine = 120.0
        # The lids shade the ball from above.
        open_air = wp.clamp(0.85 + (h[1] - centre[1]) * 0.04, 0.4, 1.0)
    elif m == 3:
        base = wp.vec3(0.25, 0.06, 0.05)
        open_air = wp.clamp(0.6 - (h[2] + 25.0) * 0.02, 0.05, 0.6)
        gloss = 0.2
    elif m == 4:
        base = wp.vec3(0.36, 0.13, 0.12)
        open_air = wp.clamp(0.5 - (h[2] + 15.0) * 0.02, 0.05, 0.5)
        gloss = 0.5
    elif m == 6:
        base = look.teeth * wp.min(0.62 + 1.4 * wp.abs(wp.sin(h[0] * 0.39)), 1.0)  # a gap every 8 mm
        # Cheeks and corners of the mouth shade the back teeth.
        base = base * (1.0 - 0.8 * wp.clamp((wp.abs(h[0]) - 15.0) / 8.0, 0.0, 1.0))
        open_air = wp.clamp(1.0 - (h[2] + 25.0) * 0.04, 0.08, 1.0)
        gloss = 0.6 * open_air
        shine = 60.0
    elif m == 7:
        base = look.frame
        gloss = 0.8
        shine = 50.0
    elif m == 8:
        strand = 0.75 + 0.25 * wp.sin(uv[0] * 260.0 + 9.0 * wp.sin(uv[1] * 7.0))
        base = look.hair * strand
        gloss = 0.25
        shine = 12.0

    open_air = open_air * sky
    lit = float(1.0)
    if look.shadow > 0.0:
        s = shadow_screen[image, face[0]] * w0 + shadow_screen[image, face[1]] * w1 + shadow_screen[image, face[2]] * w2
        extent = shadow_keys.shape[1]
        blocked = float(0.0)
        bias = float(7.0)  # with less, nostrils go black
        if m == 3 or m == 4 or m == 6:
            bias = 3.0
        depth = s[2] - bias
        for i in range(3):
            for j in range(3):
                sx = int(s[0]) + (i - 1) * 2
                sy = int(s[1]) + (j - 1) * 2
                if sx >= 0 and sy >= 0 and sx < extent and sy < extent:
                    nearest = shadow_keys[image, sy, sx]
                    if nearest < far:  # noqa: SIM102
                        if float(nearest >> wp.int64(32)) / 1024.0 < depth:
                            blocked += 1.0
        lit = 1.0 - look.shadow * blocked / 9.0
    up = 0.5 - 0.5 * n[1]
    ambient = _mix(look.below, look.above, up) * open_air
    d_key = wp.dot(n, look.key)
    d_fill = wp.dot(n, look.fill)
    # Light that enters the skin leaves it further on, red furthest: a wrapped cosine for each channel.
    out = wp.vec3()
    wrap = wp.vec3(look.softness + 0.22, look.softness + 0.08, look.softness + 0.04)
    half_vector = wp.normalize(look.key + view)
    spark = gloss * wp.pow(wp.max(wp.dot(n, half_vector), 0.0), shine) * lit
    fresnel = 0.3 + 0.7 * wp.pow(1.0 - wp.max(wp.dot(n, view), 0.0), 4.0)
    for k in range(3):
        w = wrap[k]
        if m == 1 or m >= 6:
            w = 0.1
        by_key = wp.max((d_key + w) / (1.0 + w), 0.0) * lit * wp.min(open_air + 0.3, 1.0)
        by_fill = wp.max((d_fill + w) / (1.0 + w), 0.0) * open_air
        out[k] = (
            base[k] * (ambient[k] + look.key_colour[k] * by_key + look.fill_colour[k] * by_fill)
            + spark * fresnel * look.key_colour[k] * 0.5
        )
    colour[image, y, x] = wp.vec4(out[0], out[1], out[2], 1.0)
    triangle[image, y, x] = f
    weights[image, y, x] = wp.vec3(w0, w1, w2)
    normal_out[image, y, x] = n


def chart_of(points: np.ndarray) -> np.ndarray:
    """(N, 3) points of the mean head in millimetres to (N, 2) chart coordinates, 0-1: cylinder angle and height."""
    angle = np.arctan2(points[:, 0], CHART_AXIS - points[:, 2])
    return np.stack([angle / CHART_ANGLE * 0.5 + 0.5, (points[:, 1] - CHART_TOP) / (CHART_BOTTOM - CHART_TOP)], 1).astype(np.float32)


@dataclass
class Topology:
    """What all meshes of a batch share. faces: (F, 3) int32; material: (F,) int; chart: (V, 2); lids: (V,)."""

    faces: np.ndarray
    material: np.ndarray
    chart: np.ndarray
    lids: np.ndarray


@dataclass
class Pictures:
    """A batch of renders. B pictures of S pixels; ground truth at the same size.

    colour: (B, 3, S, S) linear RGB, premultiplied by ``alpha`` (B, 1, S, S). triangle: (B, S, S) int32, -1 where nothing is.
    weights: (B, S, S, 3) barycentric weights. normals: (B, S, S, 3) camera axes. screen: (B, V, 3) pixels and 1/depth of the vertices.
    """

    colour: Tensor
    alpha: Tensor
    triangle: Tensor
    weights: Tensor
    normals: Tensor
    screen: Tensor

    def cpu(self) -> Pictures:
        """The same on the CPU."""
        return Pictures(*(getattr(self, f.name).cpu() for f in fields(self)))


class Renderer:
    """Renders batches of meshes that share a topology. ``supersample`` squared samples a pixel are averaged."""

    def __init__(self, topology: Topology, size: int = 160, supersample: int = 2, device: str = "cpu", shadow_size: int = 160) -> None:
        self.size, self.supersample, self.device, self.shadow_size = size, supersample, device, shadow_size
        self.topology = topology
        n_vertices = len(topology.chart)
        self._faces = wp.array(topology.faces.astype(np.int32), dtype=wp.vec3i, device=device)
        self._material = wp.array(topology.material.astype(np.int32), dtype=int, device=device)
        self._chart = wp.array(topology.chart.astype(np.float32), dtype=wp.vec2, device=device)
        self._lids = wp.array(topology.lids.astype(np.float32), dtype=float, device=device)
        order = np.argsort(topology.faces.ravel(), kind="stable")
        counts = np.bincount(topology.faces.ravel(), minlength=n_vertices)
        self._start = wp.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32), dtype=int, device=device)
        self._around = wp.array((order // 3).astype(np.int32), dtype=int, device=device)

    def render(
        self,
        local: Tensor,
        rotation: Tensor,
        translation: Tensor,
        focal: Tensor,
        albedo: Tensor,
        relief: Tensor,
        person: Tensor,
        looks: list[Look],
    ) -> Pictures:
        """Render B meshes.

        Args:
            local: (B, V, 3) vertices in head axes, mm. rotation: (B, 3, 3), translation: (B, 3) head to camera. focal: (B,) in pixels of
                the final picture, the principal point is its centre.
            albedo: (P, H, W, 4) linear RGB and dullness. relief: (B, H, W) mm. person: (B,) row of ``albedo``. looks: B.
        """
        n, count, device = local.shape[0], local.shape[1], self.device
        side = self.size * self.supersample
        points = torch.einsum("bij,bvj->bvi", rotation, local) + translation[:, None]
        scale = (focal * self.supersample)[:, None, None]
        flat = points[..., :2] / points[..., 2:].clamp_min(1.0) * scale + side / 2
        # Negative where a vertex is not in front of the camera: the rasteriser leaves its triangles out.
        inverse = torch.where(points[..., 2:] > 1.0, 1.0 / points[..., 2:].clamp_min(1.0), -1.0)
        screen = torch.cat([flat, inverse], -1).contiguous()
        keys = wp.full((n, side, side), value=_FAR, dtype=wp.int64, device=device)
        w_screen, w_points, w_local = (wp.from_torch(t.contiguous(), dtype=wp.vec3) for t in (screen, points, local))
        n_faces = len(self.topology.faces)
        wp.launch(_rasterise, dim=(n, n_faces), inputs=[w_screen, self._faces, side, keys], device=device)
        normals = wp.empty((n, count), dtype=wp.vec3, device=device)
        wp.launch(_vertex_normals, dim=(n, count), inputs=[w_points, self._faces, self._start, self._around, normals], device=device)

        shadow_screen = self._light_space(points, translation, looks)
        shadow_keys = wp.full((n, self.shadow_size, self.shadow_size), value=_FAR, dtype=wp.int64, device=device)
        # The light is far away: parallel projection, so that 1/depth is linear enough over a triangle of a few millimetres.
        light = torch.cat([shadow_screen[..., :2], 1.0 / shadow_screen[..., 2:]], -1).contiguous()
        wp.launch(
            _rasterise,
            dim=(n, n_faces),
            inputs=[wp.from_torch(light, dtype=wp.vec3), self._faces, self.shadow_size, shadow_keys],
            device=device,
        )

        colour = torch.empty((n, side, side, 4), device=local.device)
        triangle = torch.empty((n, side, side), dtype=torch.int32, device=local.device)
        weights = torch.zeros((n, side, side, 3), device=local.device)
        normal_out = torch.zeros((n, side, side, 3), device=local.device)
        wp.launch(
            _shade,
            dim=(n, side, side),
            inputs=[
                keys,
                w_screen,
                w_points,
                w_local,
                self._chart,
                wp.from_torch((focal * self.supersample).to(torch.float32).contiguous()),
                normals,
                self._faces,
                self._material,
                self._lids,
                wp.from_torch(albedo.contiguous()),
                wp.from_torch(relief.contiguous()),
                wp.from_torch(person.to(torch.int32).contiguous()),
                wp.array(looks, dtype=Look, device=device),
                shadow_keys,
                wp.from_torch(shadow_screen.contiguous(), dtype=wp.vec3),
                wp.int64(_FAR),
                wp.from_torch(colour, dtype=wp.vec4),
                wp.from_torch(triangle),
                wp.from_torch(weights, dtype=wp.vec3),
                wp.from_torch(normal_out, dtype=wp.vec3),
            ],
            device=device,
        )
        s = self.supersample
        pooled = torch.nn.functional.avg_pool2d(colour.permute(0, 3, 1, 2), s)
        screen = torch.cat([screen[..., :2] / s, screen[..., 2:]], -1)
        centre = slice(s // 2, None, s)
        return Pictures(
            pooled[:, :3], pooled[:, 3:], triangle[:, centre, centre], weights[:, centre, centre], normal_out[:, centre, centre], screen
        )

    def _light_space(self, points: Tensor, translation: Tensor, looks: list[Look]) -> Tensor:
        """(B, V, 3): pixels of the shadow map, and depth along the key light in mm."""
        key = torch.tensor([list(look.key) for look in looks], dtype=torch.float32, device=points.device)
        helper = torch.where(
            (key[:, 1:2].abs() < 0.9),
            torch.tensor([[0.0, 1.0, 0.0]], device=key.device),
            torch.tensor([[1.0, 0.0, 0.0]], device=key.device),
        )
        right = torch.nn.functional.normalize(torch.linalg.cross(helper.expand_as(key), key), dim=1)
        up = torch.linalg.cross(key, right)
        frame = torch.stack([right, up, -key], 1)
        centred = torch.einsum("bij,bvj->bvi", frame, points - translation[:, None])
        pixels = centred[..., :2] * (self.shadow_size / 400.0) + self.shadow_size / 2
        return torch.cat([pixels, centred[..., 2:] + 1000.0], -1)


def to_srgb(linear: Tensor) -> Tensor:
    """Linear light to sRGB, 0-1 (IEC 61966-2-1)."""
    x = linear.clamp(0.0, 1.0)
    return torch.where(x <= 0.0031308, x * 12.92, 1.055 * x.clamp_min(1e-6) ** (1 / 2.4) - 0.055)
