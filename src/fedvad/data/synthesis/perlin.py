"""Perlin noise on a whole grid at once: two matrix products, no loop over pixels."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_MOST_EXPONENT = 5
# Turned noise is drawn on a square of this side and sampled: its cost does not grow with the image.
_CANVAS = 256
_DIAGONAL = math.sqrt(2)


def perlin(
    shape: tuple[int, int], periods: tuple[float, float], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Perlin noise float32 (H, W) within [-1, 1], with `periods` cells down and across the image.

    Each lattice point has a random unit gradient g; a pixel at offset d from it gets the four
    nearest g · d, faded into one another by 6 t^5 - 15 t^4 + 10 t^3. Both the fade and d factor
    into a part per row and a part per column, so that the sum over lattice points is two matrix
    products. Source: Perlin, "Improving noise" (2002); the factoring is ours.
    """
    rows, rows_away = _axis(shape[0], periods[0])
    columns, columns_away = _axis(shape[1], periods[1])
    angle = rng.uniform(0, 2 * math.pi, (rows.shape[1], columns.shape[1]))
    down = (_DIAGONAL * np.sin(angle)).astype(np.float32)
    across = (_DIAGONAL * np.cos(angle)).astype(np.float32)
    noise = rows_away @ down @ columns.T + rows @ across @ columns_away.T
    return np.asarray(noise, dtype=np.float32)


def turned_perlin(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Perlin noise (H, W) of random coarseness per axis, turned by a random angle.

    Cells per side are 2^0 to 2^5, drawn for each axis, and at least four pixels wide; the angle is
    within ±90 degrees. Source: DRAEM (Zavrtanik et al., ICCV 2021), section 3.3 and public code.
    """
    height, width = shape
    most = min(_MOST_EXPONENT, int(math.log2(max(1.0, min(height, width) / 4))))
    down, across = (2.0 ** rng.integers(0, most + 1, 2)).tolist()
    canvas = perlin((_CANVAS, _CANVAS), (down * _DIAGONAL, across * _DIAGONAL), rng)
    angle = rng.uniform(-math.pi / 2, math.pi / 2)
    step = _CANVAS / _DIAGONAL
    cos, sin = step * math.cos(angle), step * math.sin(angle)
    # The image's centre lies on the canvas' centre.
    left = _CANVAS / 2 - (cos - sin) / 2
    top = _CANVAS / 2 - (sin + cos) / 2
    matrix = (cos / width, -sin / height, left, sin / width, cos / height, top)
    turned = Image.fromarray(canvas).transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    return np.asarray(turned, dtype=np.float32)


def _axis(n: int, periods: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Fades (n, lattice) of one axis, and fades times the offset from each lattice point."""
    where = (np.arange(n) + 0.5) * (periods / n)
    cell = where.astype(np.intp)
    offset = where - cell
    fade = offset**3 * (offset * (6 * offset - 15) + 10)
    fades = np.zeros((n, math.ceil(periods) + 1), dtype=np.float32)
    away = np.zeros_like(fades)
    pixel = np.arange(n)
    fades[pixel, cell], fades[pixel, cell + 1] = 1 - fade, fade
    away[pixel, cell], away[pixel, cell + 1] = (1 - fade) * offset, fade * (offset - 1)
    return fades, away
