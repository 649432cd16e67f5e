"""Woven cloth, rendered from yarn heights: the material, the defects and the camera of the demo.

Lengths are in cloth units, 128 across the image whatever its size in pixels, so that a defect
keeps its share of the picture. Everything is drawn twice as fine as the camera sees it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["CLOTHS", "DEFECTS", "Camera", "Cloth", "photograph"]

Array = NDArray[np.float32]

_SPAN = 128.0
_PLAIN = ((1, 0), (0, 1))
_TWILL = ((1, 1, 0, 0), (0, 1, 1, 0), (0, 0, 1, 1), (1, 0, 0, 1))
_SATIN = ((1, 1, 0), (0, 1, 1), (1, 0, 1))
_BASKET = ((1, 1, 0, 0), (1, 1, 0, 0), (0, 0, 1, 1), (0, 0, 1, 1))


@dataclass(frozen=True)
class Cloth:
    """One normal variant: which yarn lies on top where, its pitch, its direction, its dye lot."""

    pattern: tuple[tuple[int, ...], ...]
    pitch: tuple[float, float]
    angle: float
    warp: tuple[float, float, float]
    weft: tuple[float, float, float]


CLOTHS: tuple[Cloth, ...] = (
    Cloth(_PLAIN, (8.0, 8.0), 0.03, (0.30, 0.33, 0.38), (0.46, 0.44, 0.40)),
    Cloth(_TWILL, (7.0, 7.0), 0.00, (0.10, 0.15, 0.27), (0.42, 0.42, 0.41)),
    Cloth(_SATIN, (7.5, 6.5), -0.05, (0.33, 0.25, 0.17), (0.47, 0.39, 0.29)),
    Cloth(_BASKET, (6.5, 6.5), 0.05, (0.24, 0.29, 0.24), (0.43, 0.45, 0.38)),
)


@dataclass(frozen=True)
class Camera:
    """How one plant sees and wears its cloth: light (radians), colour, optics, sensor, wear."""

    azimuth: float
    elevation: float
    tint: tuple[float, float, float]
    gain: float
    contrast: float
    blur: float
    noise: float
    vignette: float
    wear: float


@dataclass
class _Scene:
    """What the light falls on: height (n, n) in cloth units, albedo (n, n, 3), gloss (n, n)."""

    height: Array
    albedo: Array
    gloss: Array


@dataclass
class _Weave:
    """The yarns under every pixel; a defect may change radii before the cloth is built."""

    cloth: Cloth
    warp_at: Array
    weft_at: Array
    warp_radius: Array
    weft_radius: Array
    warp_shade: Array
    weft_shade: Array
    warp_phase: Array
    weft_phase: Array


def _grid(n: int) -> tuple[Array, Array]:
    line = ((np.arange(n, dtype=np.float32) + 0.5) * np.float32(_SPAN / n)).astype(np.float32)
    return line[:, None], line[None, :]


def _smooth(rng: np.random.Generator, n: int, knots: int) -> Array:
    """Smooth noise (n, n), about unit variance: cubic B-splines over knots x knots values."""
    where = np.linspace(0.0, knots, n, endpoint=False)
    distance = np.abs(where[:, None] - (np.arange(knots + 3)[None, :] - 1.0))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    basis = np.where(distance < 1, near, far)
    values = rng.standard_normal((knots + 3, knots + 3))
    return np.asarray((2.1 * basis) @ values @ basis.T, dtype=np.float32)


def _blur(field: Array, sigma: float, n: int) -> Array:
    pixels = sigma * n / _SPAN
    return np.asarray(
        ndimage.gaussian_filter(field, pixels, mode="nearest", truncate=3.0), dtype=np.float32
    )


def _shrink(field: Array) -> Array:
    """Mean of each 2 x 2 block, (2h, 2w, ...) to (h, w, ...)."""
    rows = field[0::2] + field[1::2]
    return np.asarray((rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25), dtype=np.float32)


def _step(x: Array) -> Array:
    """Smooth step from 0 at x <= 0 to 1 at x >= 1."""
    t = np.clip(x, 0, 1)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)


def _lay(cloth: Cloth, wear: float, rng: np.random.Generator, n: int) -> _Weave:
    """Place the yarns: small rotation, shift and stretch differ from piece to piece."""
    y, x = _grid(n)
    angle = cloth.angle + float(rng.normal(0, 0.025))
    cos, sin = math.cos(angle), math.sin(angle)
    sag = 0.5 + 1.2 * wear
    x, y = x + sag * _smooth(rng, n, 3), y + sag * _smooth(rng, n, 3)
    wide, high = (pitch * float(rng.normal(1, 0.015)) for pitch in cloth.pitch)
    shift = rng.uniform(40, 52, 2).astype(np.float32)
    # 40 pitches away from zero, so that yarn numbers stay positive after the rotation.
    warp_at = (x * cos + y * sin) / wide + shift[0]
    weft_at = (y * cos - x * sin) / high + shift[1]
    yarns = 128
    uneven = 0.02 + 0.06 * wear
    slub = 1 + uneven * _smooth(rng, n, 7)
    radius = 0.48 * (1 + uneven * rng.standard_normal((2, yarns))).astype(np.float32)
    shade = (1 + 0.05 * rng.standard_normal((2, yarns))).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, (2, yarns)).astype(np.float32)
    i, j = warp_at.astype(np.intp), weft_at.astype(np.intp)
    return _Weave(
        cloth,
        warp_at,
        weft_at,
        radius[0][i] * slub,
        radius[1][j] * slub,
        shade[0][i],
        shade[1][j],
        phase[0][i],
        phase[1][j],
    )


def _build(weave: _Weave, fuzz: Array) -> _Scene:
    """Interlace the yarns: heights of both systems, the upper one is seen."""
    cloth = weave.cloth
    table = np.asarray(cloth.pattern, dtype=np.float32) * 2 - 1
    rows, columns = table.shape
    warp_no, weft_no = np.floor(weave.warp_at), np.floor(weave.weft_at)
    a, b = weave.warp_at - warp_no - 0.5, weave.weft_at - weft_no - 0.5
    i, j = warp_no.astype(np.intp), weft_no.astype(np.intp)
    # The pattern is widened by one row and column on each side: neighbours need no second modulo.
    wide = np.pad(table, 1, mode="wrap").ravel()
    step = columns + 2
    cell = (j % rows + 1) * step + i % columns + 1
    here = wide.take(cell)
    along_warp = wide.take(cell + np.where(b < 0, -step, step))
    along_weft = wide.take(cell + np.where(a < 0, -1, 1))
    pi = math.pi
    to_next_b = 0.5 - 0.5 * np.cos(pi * b)
    to_next_a = 0.5 - 0.5 * np.cos(pi * a)
    lift = np.float32(0.42)
    warp_z = lift * (here + (along_warp - here) * to_next_b)
    weft_z = -lift * (here + (along_weft - here) * to_next_a)
    warp_round = 1 - (a / np.maximum(weave.warp_radius, 1e-3)) ** 2
    weft_round = 1 - (b / np.maximum(weave.weft_radius, 1e-3)) ** 2
    # Twisted fibres run obliquely round each yarn.
    warp_twist = np.sin(2 * pi * (2.0 * weave.weft_at + 1.6 * a) + weave.warp_phase)
    weft_twist = np.sin(2 * pi * (2.0 * weave.warp_at - 1.6 * b) + weave.weft_phase)
    ground = np.float32(-1.1)
    warp_h = np.where(
        warp_round > 0,
        warp_z + np.sqrt(np.maximum(warp_round, 0)) * (2 * weave.warp_radius) + 0.05 * warp_twist,
        ground,
    )
    weft_h = np.where(
        weft_round > 0,
        weft_z + np.sqrt(np.maximum(weft_round, 0)) * (2 * weave.weft_radius) + 0.05 * weft_twist,
        ground,
    )
    upper = warp_h > weft_h
    height = np.where(upper, warp_h, weft_h)
    shade = np.where(upper, weave.warp_shade, weave.weft_shade)
    shade = shade * (1 + 0.05 * np.where(upper, warp_twist, weft_twist) + 0.05 * fuzz)
    shade = shade * np.where(height <= ground + 0.01, np.float32(0.25), np.float32(1))
    colours = np.asarray([cloth.weft, cloth.warp], dtype=np.float32)
    albedo = colours.take(upper.astype(np.intp), axis=0) * shade[..., None]
    depth = np.float32(0.30 * (cloth.pitch[0] + cloth.pitch[1]) / 2)
    return _Scene(
        (height * depth).astype(np.float32),
        albedo.astype(np.float32),
        np.full_like(height, 0.10, dtype=np.float32),
    )


def _curve(
    rng: np.random.Generator, n: int, length: float, bend: float, heading: float
) -> tuple[Array, Array]:
    """Distance (n, n) to a bent line inside the picture, and position along it, 0 to 1."""
    y, x = _grid(n)
    steps = 18
    turn = np.cumsum(rng.normal(0, bend, steps)) + heading
    xs = np.cumsum(np.cos(turn)) * length / steps
    ys = np.cumsum(np.sin(turn)) * length / steps
    cx, cy = rng.uniform(0.3, 0.7, 2) * _SPAN
    px, py = (xs - xs.mean() + cx).tolist(), (ys - ys.mean() + cy).tolist()
    best = np.full((n, n), np.inf, dtype=np.float32)
    place = np.zeros((n, n), dtype=np.float32)
    for k in range(steps - 1):
        dx, dy = px[k + 1] - px[k], py[k + 1] - py[k]
        norm = max(dx * dx + dy * dy, 1e-9)
        t = np.clip(((x - px[k]) * dx + (y - py[k]) * dy) / norm, 0, 1)
        d = (x - px[k] - t * dx) ** 2 + (y - py[k] - t * dy) ** 2
        closer = d < best
        best = np.where(closer, d, best)
        place = np.where(closer, (t + k) / (steps - 1), place)
    return np.sqrt(best), place


def _blob(rng: np.random.Generator, n: int, radius: float, ragged: float) -> Array:
    """Signed distance-like field (n, n), negative inside an irregular spot."""
    y, x = _grid(n)
    cx, cy = (rng.uniform(0.2, 0.8, 2) * _SPAN).tolist()
    squash, turn = float(rng.uniform(0.7, 1.0)), float(rng.uniform(0, math.pi))
    u = (x - cx) * math.cos(turn) + (y - cy) * math.sin(turn)
    v = (y - cy) * math.cos(turn) - (x - cx) * math.sin(turn)
    reach = np.hypot(u * squash, v / squash)
    # The outline is bounded, so that a ragged spot stays one spot of about its radius.
    wobble = np.clip(_smooth(rng, n, 14), -1.5, 1.5) * ragged * radius
    return np.asarray(reach + wobble - radius, dtype=np.float32)


def _yarn(weave: _Weave, rng: np.random.Generator, n: int, severity: float) -> Array:
    """Missing or thick pick: one weft yarn changes its radius over a stretch."""
    cy, cx = (rng.uniform(0.3, 0.7, 2) * (n - 1)).astype(int)
    number = int(weave.weft_at[cy, cx])
    offset = weave.weft_at - number - 0.5
    away = np.abs(weave.warp_at - weave.warp_at[cy, cx]) * weave.cloth.pitch[0]
    half = 12 + 30 * severity
    stretch = (1 - _step((away - half) / 6)) * (np.abs(offset) < 0.5)
    if rng.random() < 0.5:
        weave.weft_radius = weave.weft_radius * (1 - (0.35 + 0.65 * severity) * stretch)
    else:
        weave.weft_radius = weave.weft_radius * (1 + (0.25 + 0.55 * severity) * stretch)
        weave.weft_shade = weave.weft_shade * (1 + 0.12 * stretch)
    return np.asarray(stretch, dtype=np.float32)


def _hole(scene: _Scene, rng: np.random.Generator, n: int, severity: float) -> Array:
    """Hole: yarns end in a frayed, raised rim, the dark ground shows."""
    inside = _blob(rng, n, 2.2 + 5.5 * severity, 0.30)
    gone = 1 - _step((inside + 0.8) / 1.6)
    rim = _step((inside + 1.0) / 1.6) * (1 - _step((inside - 0.6) / 1.6))
    tuft = 0.5 + 0.5 * np.clip(_smooth(rng, n, 48), -1, 1)
    frayed: Array = np.asarray(rim * tuft, dtype=np.float32)
    scene.height = scene.height * (1 - gone) - 3.2 * gone + 1.1 * frayed
    scene.albedo = scene.albedo * (1 - 0.85 * gone[..., None]) * (1 + 0.2 * frayed[..., None])
    return np.asarray(np.maximum(gone, rim), dtype=np.float32)


def _cut(scene: _Scene, rng: np.random.Generator, n: int, severity: float) -> Array:
    """Cut: a thin slit that tapers out, its lips turned up."""
    far, place = _curve(rng, n, 14 + 34 * severity, 0.06, rng.uniform(0, math.pi))
    taper = np.sqrt(np.clip(4 * place * (1 - place), 0, 1))
    width: Array = np.asarray((0.5 + 0.8 * severity) * taper, dtype=np.float32)
    slit = 1 - _step((far - width + 0.5) / 1.0)
    lips = (1 - _step((far - width - 0.5) / 1.3)) * (1 - slit)
    scene.height = scene.height - 2.5 * slit + 0.8 * lips
    scene.albedo = scene.albedo * (1 - 0.75 * slit[..., None])
    return np.asarray(np.maximum(slit, lips), dtype=np.float32)


def _stain(scene: _Scene, rng: np.random.Generator, n: int, severity: float) -> Array:
    """Oil stain: the yarns stay, soaked darker and warmer, darkest at the drying edge."""
    inside = _blob(rng, n, 7 + 12 * severity, 0.22)
    wet = 1 - _step((inside + 1.5) / 3.0)
    edge = wet * (1 - _step(-inside / 4.0))
    soak = (0.24 + 0.34 * severity) * (wet + 0.5 * edge)
    loss = np.asarray([0.75, 0.95, 1.2], dtype=np.float32)
    left: Array = np.asarray(1 - np.clip(soak[..., None] * loss, 0, 0.9), dtype=np.float32)
    scene.albedo = scene.albedo * left
    scene.gloss = scene.gloss + 0.15 * wet
    return wet


def _fibre(scene: _Scene, rng: np.random.Generator, n: int, severity: float) -> Array:
    """Foreign fibre: a thin curled thread on top of the cloth; it throws its shadow itself."""
    far, place = _curve(rng, n, 30 + 40 * severity, 0.22, rng.uniform(0, 2 * math.pi))
    thick = 0.55 + 0.45 * severity
    body = 1 - _step((far - thick + 0.4) / 0.8)
    # The thread dives under a yarn here and there.
    body = body * _step(2.5 + 2.5 * np.sin(place * 21 + rng.uniform(0, 6)) + severity)
    colours = np.asarray(
        [[0.75, 0.72, 0.66], [0.05, 0.05, 0.06], [0.45, 0.10, 0.10], [0.12, 0.22, 0.42]],
        dtype=np.float32,
    )
    colour = colours[int(rng.integers(len(colours)))]
    top = _blur(scene.height, 2.0, n) + 1.2 + np.sqrt(np.maximum(thick**2 - far**2, 0))
    scene.height = scene.height * (1 - body) + top * body
    scene.albedo = scene.albedo * (1 - body[..., None]) + colour * body[..., None]
    return body


def _melt(scene: _Scene, rng: np.random.Generator, n: int, severity: float) -> Array:
    """Heat damage: yarns sink into one another, colours run, the spot shines."""
    inside = _blob(rng, n, 6 + 8 * severity, 0.2)
    hot = (1 - _step((inside + 1.2) / 2.4)) * (0.65 + 0.35 * severity)
    flat = _blur(scene.height, 2.6, n)
    scene.height = scene.height + (flat - scene.height) * hot
    for band in range(3):
        run = _blur(np.ascontiguousarray(scene.albedo[..., band]), 1.8, n)
        scene.albedo[..., band] += (run * 0.95 - scene.albedo[..., band]) * hot
    scene.gloss = scene.gloss + 0.25 * hot
    return hot


_ON_SCENE = {"hole": _hole, "cut": _cut, "stain": _stain, "fibre": _fibre, "melt": _melt}
DEFECTS: tuple[str, ...] = ("hole", "cut", "stain", "yarn", "fibre", "melt")


def _light(scene: _Scene, camera: Camera, n: int) -> Array:
    """Shade the scene: diffuse and glossy light, and darkness in the gaps; linear RGB (n, n, 3)."""
    height = _blur(scene.height, 0.45, n)
    pixel = np.float32(_SPAN / n)
    gy = ndimage.correlate1d(height, [-0.5, 0, 0.5], axis=0, mode="nearest") / pixel
    gx = ndimage.correlate1d(height, [-0.5, 0, 0.5], axis=1, mode="nearest") / pixel
    lx = math.cos(camera.elevation) * math.cos(camera.azimuth)
    ly = math.cos(camera.elevation) * math.sin(camera.azimuth)
    lz = math.sin(camera.elevation)
    slope = gx * lx + gy * ly
    norm = 1 / np.sqrt(gx * gx + gy * gy + 1)
    diffuse = np.maximum((lz - slope) * norm, 0) * (1 / lz)
    # Half way between light and a viewer straight above.
    shine = np.maximum((lz + 1 - slope) * norm * (1 / math.sqrt(2 + 2 * lz)), 0)
    shine = shine**4
    shine = (shine * shine * shine) ** 2
    # The neighbourhood's mean height is smooth: half resolution is enough for it.
    around = _blur(_shrink(height), 2.4, n // 2).repeat(2, 0).repeat(2, 1)
    depth = height - around
    open_sky = np.clip(0.78 + 0.22 * depth, 0.25, 1.15)
    light = (0.30 + 0.70 * diffuse) * open_sky
    return np.asarray(
        scene.albedo * light[..., None] + (scene.gloss * shine)[..., None], dtype=np.float32
    )


def _expose(
    linear: Array, camera: Camera, rng: np.random.Generator, size: int
) -> NDArray[np.uint8]:
    """Take the picture: optics, uneven light, sensor; (size, size, 3) uint8."""
    seen = _shrink(linear)
    sigma = camera.blur * size / _SPAN
    seen = ndimage.gaussian_filter(seen, (sigma, sigma, 0), mode="nearest", truncate=3.0)
    y, x = _grid(size)
    radius = ((x - _SPAN / 2) ** 2 + (y - _SPAN / 2) ** 2) / (_SPAN**2 / 2)
    # A soft patch of light that wanders from picture to picture is normal.
    px, py = rng.uniform(0, _SPAN, 2)
    spot = np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 38.0**2))
    falloff = (1 - camera.vignette * radius) * (1 + rng.uniform(0, 0.16) * spot)
    gain = camera.gain * rng.normal(1, 0.03)
    tint = np.asarray(camera.tint, dtype=np.float32)
    seen = np.clip(seen * (falloff * gain)[..., None] * tint, 0, None) ** (1 / 2.2)
    seen = 0.5 + camera.contrast * (seen - 0.5)
    # Photon noise grows with the light.
    sigma_map = camera.noise * np.sqrt(0.3 + np.clip(seen, 0, 1))
    seen = seen + sigma_map * rng.standard_normal(seen.shape)
    return np.asarray(np.clip(np.rint(seen * 255), 0, 255), dtype=np.uint8)


def photograph(
    cloth: Cloth,
    camera: Camera,
    seed: tuple[int, ...],
    *,
    size: int,
    defect: str | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Picture (size, size, 3) of one piece of cloth and mask (size, size) of its defect.

    The same seed with and without a defect gives the same piece, light and sensor noise, so the
    two pictures differ by the defect alone. Raises KeyError for an unknown defect. Source: ours.
    """
    if defect is not None and defect not in DEFECTS:
        raise KeyError(f"unknown defect {defect!r}; one of {', '.join(DEFECTS)}")
    n = 2 * size
    piece, flaw, sensor = (np.random.default_rng((*seed, k)) for k in range(3))
    weave = _lay(cloth, camera.wear, piece, n)
    fuzz = piece.standard_normal((n, n)).astype(np.float32)
    aim = camera.azimuth + piece.normal(0, 0.05)
    severity = float(flaw.uniform(0.2, 1.0))
    touched = np.zeros((n, n), dtype=np.float32)
    if defect == "yarn":
        touched = _yarn(weave, flaw, n, severity)
    scene = _build(weave, fuzz)
    if defect is not None and defect != "yarn":
        touched = _ON_SCENE[defect](scene, flaw, n, severity)
    linear = _light(scene, replace(camera, azimuth=aim), n)
    picture = _expose(linear, camera, sensor, size)
    return picture, np.asarray(_shrink(touched) > 0.2)
