"""Random scalar fields, the stuff of procedural images: noise, clouds, flames, weaves, cells.

A field is float32 (n, n) in 0..1. Lengths are shares of the side, so that a field of another size
shows about the same things. Every field takes the generator that it draws from.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import fft, ndimage

Field = NDArray[np.float32]


def unit(field: NDArray[np.floating]) -> Field:
    """Shifted and scaled to 0..1; a constant becomes 0."""
    low, high = float(field.min()), float(field.max())
    return np.asarray((field - low) / max(high - low, 1e-12), dtype=np.float32)


@lru_cache(maxsize=8)
def _frequencies(n: int) -> tuple[Field, Field]:
    fy, fx = fft.fftfreq(n)[:, None] * n, fft.rfftfreq(n)[None, :] * n
    return np.asarray(fy, dtype=np.float32), np.asarray(fx, dtype=np.float32)


@lru_cache(maxsize=8)
def _grid(n: int) -> tuple[Field, Field]:
    line = (np.arange(n, dtype=np.float32) + np.float32(0.5)) / np.float32(n)
    y, x = np.meshgrid(line, line, indexing="ij")
    return y, x


def noise(rng: np.random.Generator, n: int, slope: float, stretch: float = 1.0) -> Field:
    """Noise whose amplitude falls as 1 / f^slope, `stretch` times longer along a random direction.

    slope 0 is white, 1 is that of natural images, 2 is smooth. The power falls twice as fast.
    """
    if slope >= 1.5 and n >= 64:  # nothing fine in it: half the resolution is enough
        small = Image.fromarray(_noise(rng, n // 2, slope, stretch))
        return np.asarray(small.resize((n, n), Image.Resampling.BILINEAR), dtype=np.float32)
    return _noise(rng, n, slope, stretch)


def _noise(rng: np.random.Generator, n: int, slope: float, stretch: float) -> Field:
    fy, fx = _frequencies(n)
    turn = rng.uniform(0, math.pi)
    along = fx * math.cos(turn) + fy * math.sin(turn)
    across = fy * math.cos(turn) - fx * math.sin(turn)
    square = np.square(along * stretch) + np.square(across)
    square[0, 0] = 1
    spectrum = rng.standard_normal((2, *square.shape), dtype=np.float32)
    spectrum *= square ** np.float32(-slope / 2)
    spectrum[:, 0, 0] = 0
    return unit(fft.irfft2(spectrum[0] + 1j * spectrum[1], (n, n), overwrite_x=True))


def _spectrum(rng: np.random.Generator, n: int) -> Field:
    stretch = 1.0 if rng.random() < 0.6 else float(rng.uniform(1.5, 8))
    return noise(rng, n, float(rng.uniform(0.4, 2.2)), stretch)


def _clouds(rng: np.random.Generator, n: int) -> Field:
    """Smooth noise looked at through smooth noise, folded into veins now and then."""
    field = noise(rng, n, float(rng.uniform(1.2, 1.9)))
    y, x = _grid(n)
    reach = rng.uniform(0.05, 0.6)
    dy, dx = (noise(rng, n, float(rng.uniform(1.6, 2.4))) - 0.5 for _ in range(2))
    places = np.stack([(y + reach * dy) * n, (x + reach * dx) * n])
    warped = ndimage.map_coordinates(field, places, order=1, mode="reflect")
    kind = rng.random()
    if kind < 0.3:
        return unit(np.sin(warped * np.float32(rng.uniform(8, 50))))
    if kind < 0.5:
        return unit(np.abs(warped - np.median(warped)))
    return unit(warped)


def _flames(rng: np.random.Generator, n: int) -> Field:
    """Iterated functions: logarithm of how often random affine maps, bent, visit a place.

    Source: the chaos game (Barnsley 1988) with variations after fractal flames (Draves 2003).
    """
    maps = int(rng.integers(2, 5))
    linear = rng.normal(0, 0.6, (maps, 2, 2))
    # contractions on the whole, else the points leave for ever
    linear *= (rng.uniform(0.5, 0.95, maps) / np.linalg.norm(linear, 2, (1, 2)))[:, None, None]
    affine = np.concatenate([linear.reshape(maps, 4), rng.uniform(-0.7, 0.7, (maps, 2))], 1)
    table = np.ascontiguousarray(affine.T, dtype=np.float32)
    bend = rng.integers(0, 4, maps)
    x, y = rng.uniform(-1, 1, (2, 2000)).astype(np.float32)
    choices = rng.integers(0, maps, (26, len(x)))
    visited = []
    for step, choice in enumerate(choices):
        a, b, c, d, e, f = np.take(table, choice, axis=1)
        x, y = a * x + b * y + e, c * x + d * y + f
        kind = np.take(bend, choice)
        gain = np.where(kind == 2, 1 / (x * x + y * y + np.float32(0.3)), np.float32(1))
        gain = np.where(kind == 3, np.cos(2 * (x * x + y * y)), gain)
        x, y = (np.where(kind == 1, np.sin(2 * v), v * gain) for v in (x, y))
        if step > 5:
            visited.append((x, y))
    cells = []
    inside = np.ones(len(visited) * len(x), dtype=bool)
    for axis in (0, 1):
        place = np.concatenate([spot[axis] for spot in visited])
        middle, reach = float(place.mean()), 2.2 * float(place.std()) + 1e-6
        place = (place - middle) * (0.5 * n / reach) + 0.5 * n
        inside &= (place >= 0) & (place < n)
        cells.append(place)
    index = cells[1][inside].astype(np.int64) * n + cells[0][inside].astype(np.int64)
    count = np.bincount(index, minlength=n * n).reshape(n, n)
    soft = ndimage.gaussian_filter(np.log1p(count).astype(np.float32), n / 200, truncate=3.0)
    return unit(soft)


def _turned(rng: np.random.Generator, n: int, wobble: float) -> tuple[Field, Field]:
    """Coordinates along and across a random direction, a little bent."""
    y, x = _grid(n)
    turn = rng.uniform(0, math.pi)
    bend = (noise(rng, n, 2.0) - np.float32(0.5)) * np.float32(wobble)
    along = x * math.cos(turn) + y * math.sin(turn) + bend
    across = y * math.cos(turn) - x * math.sin(turn) + bend
    return np.asarray(along, dtype=np.float32), np.asarray(across, dtype=np.float32)


def _stripes(rng: np.random.Generator, n: int) -> Field:
    """Waves of one direction or two, from soft to sharp: stripes, checks, ripples."""
    u, v = _turned(rng, n, float(rng.choice([0, 0.05, 0.3])))
    pitch = np.exp(rng.uniform(np.log(3), np.log(45), 2))
    if rng.random() < 0.2:
        u = np.hypot(u - u.mean(), v - v.mean())
    wave = np.sin(2 * math.pi * pitch[0] * u)
    if rng.random() < 0.5:
        other = np.sin(2 * math.pi * pitch[1] * v)
        wave = wave * other if rng.random() < 0.5 else np.maximum(wave, other)
    return unit(np.tanh(wave * np.float32(rng.uniform(0.5, 8))))


def _weave(rng: np.random.Generator, n: int) -> Field:
    """Two yarns over and under each other, with yarns of different shades."""
    u, v = _turned(rng, n, float(rng.choice([0, 0.02, 0.08])))
    count = float(np.exp(rng.uniform(np.log(5), np.log(30))))
    u, v = u * np.float32(count), v * np.float32(count * rng.uniform(0.6, 1.6))
    step = int(rng.integers(1, 4))
    over = (np.floor(u) * step + np.floor(v)) % (step + 1 + rng.integers(0, 2)) < 1
    warp = np.sin(math.pi * (u % 1)) * (0.75 + 0.25 * np.sin(math.pi * (v % 1)))
    weft = np.sin(math.pi * (v % 1)) * (0.75 + 0.25 * np.sin(math.pi * (u % 1)))
    shades = rng.uniform(0.5, 1, (2, 128)).astype(np.float32)
    warp = warp * np.take(shades[0], u.astype(np.int32) % 128)
    weft = weft * np.take(shades[1], v.astype(np.int32) % 128)
    return unit(np.where(over, warp, weft * np.float32(rng.uniform(0.5, 1))))


def _cells(rng: np.random.Generator, n: int) -> Field:
    """Grains: one seed in each square of a grid; distance to the nearest, its shade, or borders."""
    count = int(np.exp(rng.uniform(np.log(4), np.log(28))))
    width = count + 2
    seed_y, seed_x, shade = rng.uniform(0, 1, (3, width * width)).astype(np.float32)
    squash = np.float32(rng.uniform(0.4, 1))
    y, x = (np.float32(count) * g for g in _grid(n))
    row, column = y.astype(np.int32), x.astype(np.int32)
    corner = row * width + column
    y, x = y - row, x - column
    first = np.full((n, n), np.inf, dtype=np.float32)
    second, nearest = first, corner
    for i in (0, 1, 2):
        for j in (0, 1, 2):
            at = corner + (i * width + j)
            dy = y - np.take(seed_y, at) - (i - 1)
            dx = x - np.take(seed_x, at) - (j - 1)
            away = dy * dy + squash * dx * dx
            nearest = np.where(away < first, at, nearest)
            second = np.minimum(second, np.maximum(first, away))
            first = np.minimum(first, away)
    first, second = np.sqrt(first), np.sqrt(second)
    tone = np.take(shade, nearest)
    kind = rng.random()
    if kind < 0.35:
        return unit(first)
    if kind < 0.65:
        return unit(np.minimum(second - first, np.float32(0.25)) * (np.float32(0.6) + tone))
    return unit(tone - np.float32(0.4) * np.exp(-12 * (second - first)))


def labels(
    rng: np.random.Generator, n: int, count: int, smallest: float, largest: float
) -> NDArray[np.int32]:
    """Overlapping ellipses, boxes and polygons, each with its number 1..count; (n, n), 0 is ground.

    Radii follow a power law between the two shares of the side, so that things of all sizes
    occlude each other (dead leaves; Lee, Mumford and Huang 2001).
    """
    picture = Image.new("I", (n, n), 0)
    pen = ImageDraw.Draw(picture)
    # inverse of the cumulative distribution of r^-3 between the two
    share = rng.uniform(0, 1, count)
    radii = n / np.sqrt(share / largest**2 + (1 - share) / smallest**2)
    centres = rng.uniform(-0.1, 1.1, (count, 2)) * n
    kinds = rng.integers(0, 4, count)
    squash = rng.uniform(0.3, 1, count)
    turns = rng.uniform(0, 2 * math.pi, count)
    wobble = rng.uniform(-0.2, 0.1, (count, 12))
    corners = np.asarray([1, 12, 3, 4])[kinds]  # upright ellipse, blot, triangle, box
    angles = np.arange(12) * (2 * math.pi / corners[:, None])
    reach = radii[:, None] * (1 + wobble * (kinds == 1)[:, None])
    px, py = reach * np.cos(angles), reach * squash[:, None] * np.sin(angles)
    cos, sin = np.cos(turns)[:, None], np.sin(turns)[:, None]
    outlines = np.stack([cos * px - sin * py, sin * px + cos * py], 2) + centres[:, None]
    half = np.stack([radii, radii * squash], 1)
    boxes = np.concatenate([centres - half, centres + half], 1).tolist()
    for i, points in enumerate(outlines.tolist()):
        if kinds[i] == 0:
            pen.ellipse(boxes[i], fill=i + 1)
        else:
            pen.polygon([tuple(point) for point in points[: corners[i]]], fill=i + 1)
    return np.asarray(picture, dtype=np.int32)


def _strokes(rng: np.random.Generator, n: int) -> Field:
    """Fibres, scratches and wires: many curved lines of a few widths over each other."""
    picture = Image.new("L", (2 * n, 2 * n), 0)
    pen = ImageDraw.Draw(picture)
    heading, spread = rng.uniform(0, 2 * math.pi), rng.choice([0.15, 0.6, math.pi])
    for _ in range(int(np.exp(rng.uniform(np.log(6), np.log(120))))):
        width = max(1, round(2 * n * float(np.exp(rng.uniform(np.log(0.004), np.log(0.03))))))
        turn = heading + rng.uniform(-spread, spread) + np.cumsum(rng.normal(0, 0.15, 10))
        length = 2 * n * rng.uniform(0.02, 0.12)
        xs = rng.uniform(-0.1, 1.1) * 2 * n + np.cumsum(np.cos(turn)) * length
        ys = rng.uniform(-0.1, 1.1) * 2 * n + np.cumsum(np.sin(turn)) * length
        pen.line(
            np.stack([xs, ys], 1).ravel().tolist(),
            fill=int(rng.integers(60, 256)),
            width=width,
            joint="curve",
        )
    return unit(np.asarray(picture.reduce(2), dtype=np.float32))


FIELDS = {
    "spectrum": _spectrum,
    "clouds": _clouds,
    "flames": _flames,
    "stripes": _stripes,
    "weave": _weave,
    "cells": _cells,
    "strokes": _strokes,
}
