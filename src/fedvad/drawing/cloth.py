"""Woven cloth, rendered from yarn heights: the material of the demo.

Lengths are in cloth units, 128 across the image whatever its size in pixels, so that a defect
keeps its share of the picture. Everything is drawn twice as fine as the camera sees it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# A field over the picture.
Array = NDArray[np.float32]
# The width of every picture in cloth units.
SPAN = 128.0
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


@dataclass
class Scene:
    """What the light falls on: height (n, n) in cloth units, albedo (n, n, 3), gloss (n, n)."""

    height: Array
    albedo: Array
    gloss: Array


@dataclass
class Weave:
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


def grid(n: int) -> tuple[Array, Array]:
    """Rows (n, 1) and columns (1, n) of the pixel centres in cloth units."""
    line = ((np.arange(n, dtype=np.float32) + 0.5) * np.float32(SPAN / n)).astype(np.float32)
    return line[:, None], line[None, :]


def smooth(rng: np.random.Generator, n: int, knots: int) -> Array:
    """Smooth noise (n, n), about unit variance: cubic B-splines over knots x knots values."""
    where = np.linspace(0.0, knots, n, endpoint=False)
    distance = np.abs(where[:, None] - (np.arange(knots + 3)[None, :] - 1.0))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    basis = np.where(distance < 1, near, far)
    values = rng.standard_normal((knots + 3, knots + 3))
    return np.asarray((2.1 * basis) @ values @ basis.T, dtype=np.float32)


def blur(field: Array, sigma: float, n: int) -> Array:
    """The field (n, n) under a Gaussian of `sigma` cloth units."""
    pixels = sigma * n / SPAN
    return np.asarray(
        ndimage.gaussian_filter(field, pixels, mode="nearest", truncate=3.0), dtype=np.float32
    )


def shrink(field: Array) -> Array:
    """Mean of each 2 x 2 block, (2h, 2w, ...) to (h, w, ...)."""
    rows = field[0::2] + field[1::2]
    return np.asarray((rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25), dtype=np.float32)


def step(x: Array) -> Array:
    """Smooth step from 0 at x <= 0 to 1 at x >= 1."""
    t = np.clip(x, 0, 1)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)


def lay(cloth: Cloth, wear: float, rng: np.random.Generator, n: int) -> Weave:
    """Place the yarns: small rotation, shift and stretch differ from piece to piece."""
    y, x = grid(n)
    angle = cloth.angle + float(rng.normal(0, 0.025))
    cos, sin = math.cos(angle), math.sin(angle)
    sag = 0.5 + 1.2 * wear
    x, y = x + sag * smooth(rng, n, 3), y + sag * smooth(rng, n, 3)
    wide, high = (pitch * float(rng.normal(1, 0.015)) for pitch in cloth.pitch)
    shift = rng.uniform(40, 52, 2).astype(np.float32)
    # 40 pitches away from zero, so that yarn numbers stay positive after the rotation.
    warp_at = (x * cos + y * sin) / wide + shift[0]
    weft_at = (y * cos - x * sin) / high + shift[1]
    yarns = 128
    uneven = 0.02 + 0.06 * wear
    slub = 1 + uneven * smooth(rng, n, 7)
    radius = 0.48 * (1 + uneven * rng.standard_normal((2, yarns))).astype(np.float32)
    shade = (1 + 0.05 * rng.standard_normal((2, yarns))).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, (2, yarns)).astype(np.float32)
    i, j = warp_at.astype(np.intp), weft_at.astype(np.intp)
    return Weave(
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


def build(weave: Weave, fuzz: Array) -> Scene:
    """Interlace the yarns: heights of both systems, the upper one is seen."""
    cloth = weave.cloth
    table = np.asarray(cloth.pattern, dtype=np.float32) * 2 - 1
    rows, columns = table.shape
    warp_no, weft_no = np.floor(weave.warp_at), np.floor(weave.weft_at)
    a, b = weave.warp_at - warp_no - 0.5, weave.weft_at - weft_no - 0.5
    i, j = warp_no.astype(np.intp), weft_no.astype(np.intp)
    # The pattern is widened by one row and column on each side: neighbours need no second modulo.
    wide = np.pad(table, 1, mode="wrap").ravel()
    stride = columns + 2
    cell = (j % rows + 1) * stride + i % columns + 1
    here = wide.take(cell)
    along_warp = wide.take(cell + np.where(b < 0, -stride, stride))
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
    return Scene(
        (height * depth).astype(np.float32),
        albedo.astype(np.float32),
        np.full_like(height, 0.10, dtype=np.float32),
    )
