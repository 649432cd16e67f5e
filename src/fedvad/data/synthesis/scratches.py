"""Thin scratches: a pen walks over the object and turns where it would leave it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fedvad.data.synthesis.shapes import Region, random_pixel, top_region

# Lines are drawn this many times finer and averaged: smooth edges, widths of part of a pixel.
_FINE = 3
_TURNS = (0.0, 0.3, -0.3, 0.6, -0.6)
_MOST_STROKES = 24

Stroke = list[tuple[float, float]]


def scratch(allowed: NDArray[np.bool_], pixels: int, rng: np.random.Generator) -> Region:
    """Bent thin strokes of `pixels` in all on the allowed pixels, bool (H, W); ours.

    A stroke tapers; it is 0.3 to 1.5 % of the shorter side wide, a pixel at least, and 0.3 to 0.9
    of the longer side long at most; a larger area gets several. `depth` is the share of a pixel
    that a stroke covers. The region can be smaller than asked for, not larger.
    """
    height, width = allowed.shape
    thick = max(1.0, float(rng.uniform(0.003, 0.015)) * min(height, width))
    longest = max(4.0, float(rng.uniform(0.3, 0.9)) * max(height, width))
    # Pixels that a stroke only grazes count as well: about one more across its width.
    left = 1.15 * pixels / (thick + 0.8)
    heading = float(rng.uniform(0, 2 * math.pi))
    strokes: list[Stroke] = []
    for _ in range(_MOST_STROKES):
        stroke = _walk(allowed, min(left, longest), thick, heading, rng)
        strokes.append(stroke)
        left -= _length(stroke)
        if left < 2 * thick:
            break
        heading += float(rng.normal(0, 0.25))  # scratches of one accident run alike
    coverage = _draw(strokes, thick, (height, width))
    # The first point is allowed, so that the region is never empty.
    start = int(strokes[0][0][0]), int(strokes[0][0][1])
    coverage[start] = max(float(coverage[start]), 0.5)
    region = top_region(coverage, allowed & (coverage > 0), pixels)
    return replace(region, depth=coverage[region.box] * region.mask)


def _walk(
    allowed: NDArray[np.bool_],
    length: float,
    thick: float,
    heading: float,
    rng: np.random.Generator,
) -> Stroke:
    """Points (row, column) from a random allowed pixel on; ends where no turn stays allowed."""
    height, width = allowed.shape
    row, column = (float(value) for value in random_pixel(allowed, rng))
    stroke = [(row, column)]
    step = max(2.0, 1.5 * thick, length / 40)
    bend = float(rng.choice([0.0, 0.03, 0.1]))
    for change in rng.normal(0, bend, max(1, round(length / step))).tolist():
        heading += change
        for turn in _TURNS:
            y = row + step * math.sin(heading + turn)
            x = column + step * math.cos(heading + turn)
            if 0 <= y < height and 0 <= x < width and allowed[int(y), int(x)]:
                heading += turn
                row, column = y, x
                stroke.append((y, x))
                break
        else:
            break
    return stroke


def _length(stroke: Stroke) -> float:
    return 1.0 + sum(math.dist(a, b) for a, b in pairwise(stroke))


def _draw(strokes: list[Stroke], thick: float, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The share of each pixel that is covered, float32 (H, W)."""
    points = np.array([point for stroke in strokes for point in stroke])
    margin = math.ceil(thick) + 1
    top, left = (max(0, int(low) - margin) for low in points.min(axis=0))
    bottom, right = (
        min(side, int(high) + margin + 1)
        for side, high in zip(shape, points.max(axis=0), strict=True)
    )
    fine = Image.new("L", ((right - left) * _FINE, (bottom - top) * _FINE))
    pen = ImageDraw.Draw(fine)
    for stroke in strokes:
        at = [((x + 0.5 - left) * _FINE, (y + 0.5 - top) * _FINE) for y, x in stroke]
        for k in range(len(at) - 1):
            along = (k + 0.5) / (len(at) - 1)
            taper = 0.4 + 0.6 * math.sqrt(4 * along * (1 - along))
            pen.line([at[k], at[k + 1]], fill=255, width=max(2, round(thick * _FINE * taper)))
    coverage = np.zeros(shape, dtype=np.float32)
    coverage[top:bottom, left:right] = np.asarray(fine.reduce(_FINE), dtype=np.float32) / 255
    return coverage
