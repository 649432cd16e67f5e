"""The outlines of defects: a field is drawn over the image and its highest pixels are taken.

Taking a count of pixels, not those over a fixed level, gives every shape exactly the area that was
asked for, on objects of any form, and never an empty one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvad.data.synthesis.perlin import perlin, turned_perlin

Mask = NDArray[np.bool_]
Field = NDArray[np.float32]
Box = tuple[slice, slice]

# Fields are drawn on a window of this many radii around the centre, where that holds enough pixels.
_WINDOW = 3.5


@dataclass(frozen=True)
class Region:
    """A place on the image: its bounding box, and in the box what belongs to it.

    box: slices of rows and columns. mask: bool (h, w). depth: float32 (h, w), 0 outside, rising
    from the outline to 1 at the innermost pixel.
    """

    box: Box
    mask: Mask
    depth: Field


def top_region(field: Field, allowed: Mask, pixels: int, window: Box | None = None) -> Region:
    """The `pixels` highest values of a field (h, w) among the allowed pixels, bool (H, W).

    The field covers the window, or everything without one. If fewer pixels are allowed there, all
    of them are taken. Raises ValueError when none is allowed.
    """
    rows_in, columns_in = window or (slice(0, allowed.shape[0]), slice(0, allowed.shape[1]))
    places = np.flatnonzero(allowed[rows_in, columns_in])
    if not len(places):
        raise ValueError("a region needs at least one allowed pixel")
    values = field.ravel()[places]
    if pixels < len(places):
        chosen = np.argpartition(values, len(places) - pixels)[len(places) - pixels :]
        places, values = places[chosen], values[chosen]
    rows, columns = np.divmod(places, field.shape[1])
    top, left = int(rows.min()), int(columns.min())
    height, width = int(rows.max()) + 1 - top, int(columns.max()) + 1 - left
    inside = np.zeros((height, width), dtype=np.bool_)
    depth = np.zeros((height, width), dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    inside[rows - top, columns - left] = True
    depth[rows - top, columns - left] = (values - low) / max(high - low, 1e-6)
    top, left = top + rows_in.start, left + columns_in.start
    return Region((slice(top, top + height), slice(left, left + width)), inside, depth)


def random_pixel(allowed: Mask, rng: np.random.Generator) -> tuple[int, int]:
    """Row and column of a random allowed pixel of bool (H, W)."""
    places = np.flatnonzero(allowed)
    row, column = divmod(int(places[rng.integers(len(places))]), allowed.shape[1])
    return row, column


def speckle(allowed: Mask, pixels: int, rng: np.random.Generator) -> Region:
    """Patches where turned Perlin noise is highest.

    Source: DRAEM, section 3.3, which cuts at a fixed level of 0.5; a fixed area is ours.
    """
    height, width = allowed.shape
    return top_region(turned_perlin((height, width), rng), allowed, pixels)


def blob(allowed: Mask, pixels: int, rng: np.random.Generator, *, ragged: float = 0.35) -> Region:
    """One irregular spot around a random allowed pixel; `ragged` 0 is an ellipse. Ours."""
    near, u, v = _around(allowed, pixels, rng)
    squash = float(rng.uniform(0.6, 1.0))
    radius = math.sqrt(pixels / math.pi)
    reach = np.sqrt((u * squash) ** 2 + (v / squash) ** 2)
    height, width = reach.shape
    cell = max(1.3 * radius + 2, max(height, width) / 64)
    wobble = perlin((height, width), (height / cell, width / cell), rng)
    # Bounded by the radius, so that a ragged spot stays one spot.
    return top_region(2 * ragged * radius * wobble - reach, allowed, pixels, near)


def patch(allowed: Mask, pixels: int, rng: np.random.Generator) -> Region:
    """A turned rectangle around a random allowed pixel, with sides of 1:1 to 3:1. Ours.

    Source: CutPaste (Li et al., CVPR 2021), section 2.1, where aspects go from 0.3 to 3.3.
    """
    near, u, v = _around(allowed, pixels, rng)
    squash = math.exp(0.5 * float(rng.uniform(0, math.log(3))))
    reach = np.maximum(np.abs(u) / squash, np.abs(v) * squash)
    return top_region(-reach, allowed, pixels, near)


def _around(allowed: Mask, pixels: int, rng: np.random.Generator) -> tuple[Box, Field, Field]:
    """A window around a random allowed centre, and in it (h, w) the way from the centre in pixels.

    The way is measured along two axes at right angles, turned by a random angle.
    """
    row, column = random_pixel(allowed, rng)
    reach = math.ceil(_WINDOW * math.sqrt(pixels / math.pi)) + 2
    rows = slice(max(0, row - reach), min(allowed.shape[0], row + reach + 1))
    columns = slice(max(0, column - reach), min(allowed.shape[1], column + reach + 1))
    if np.count_nonzero(allowed[rows, columns]) < pixels:
        rows, columns = slice(0, allowed.shape[0]), slice(0, allowed.shape[1])
    angle = float(rng.uniform(0, math.pi))
    y = np.arange(rows.start - row, rows.stop - row, dtype=np.float32)[:, None]
    x = np.arange(columns.start - column, columns.stop - column, dtype=np.float32)[None, :]
    cos, sin = math.cos(angle), math.sin(angle)
    along = np.asarray(x * cos + y * sin, dtype=np.float32)
    return (rows, columns), along, np.asarray(y * cos - x * sin, dtype=np.float32)
