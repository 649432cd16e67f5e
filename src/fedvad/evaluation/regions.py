"""Connected regions of a mask, with the outline of each as a polygon."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvad.errors import DataError

__all__ = ["Region", "regions"]

_Corner = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Region:
    """Pixels that touch each other along an edge.

    Attributes
    ----------
    box : (int, int, int, int)
        Left, top, width and height, in pixels.
    area : int
        Number of pixels.
    polygon : (n, 2) int64 array
        Corners as (x, y) of the outer outline, along the edges of pixels; holes are not part of it.
    highest : float
        Highest value of the map in it.
    """

    box: tuple[int, int, int, int]
    area: int
    polygon: NDArray[np.int64]
    highest: float


def regions(mask: NDArray[np.bool_], map: NDArray[np.float32]) -> list[Region]:
    """The regions of a mask, from top to bottom.

    Parameters
    ----------
    mask : (H, W) bool array
    map : (H, W) float32 array
        Anomaly map, of which the highest value in each region is kept.

    Raises
    ------
    DataError
        For arrays of unequal or other shapes.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.regions import regions
    >>> mask = np.zeros((4, 5), bool)
    >>> mask[1:3, 2:5] = True
    >>> [found] = regions(mask, np.ones((4, 5), np.float32))
    >>> found.box, found.area, found.polygon.tolist()
    ((2, 1, 3, 2), 6, [[2, 1], [5, 1], [5, 3], [2, 3]])
    """
    from scipy.ndimage import find_objects, label

    if mask.ndim != 2 or mask.shape != map.shape or mask.dtype != np.bool_:
        raise DataError(f"a mask {mask.dtype} {mask.shape} does not fit a map {map.shape}")
    labels, _ = label(mask)
    found = []
    for number, (rows, columns) in enumerate(find_objects(labels), start=1):
        part = labels[rows, columns] == number
        found.append(
            Region(
                box=(
                    int(columns.start),
                    int(rows.start),
                    int(columns.stop - columns.start),
                    int(rows.stop - rows.start),
                ),
                area=int(part.sum()),
                polygon=_outline(part) + np.array([columns.start, rows.start]),
                highest=float(map[rows, columns][part].max()),
            )
        )
    return found


def _outline(part: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The outer outline of one region, clockwise, beginning at its first pixel's upper left."""
    steps = _steps(part)
    start = (int(np.argmax(part[0])), 0)
    corners, here, heading = [start], (start[0] + 1, 0), (1, 0)
    while here != start:
        # where pixels of the region touch at a corner only, a right turn stays with the same one
        right = (-heading[1], heading[0])
        following = min(steps[here], key=lambda step: step != right)
        if following != heading:
            corners.append(here)
        here, heading = (here[0] + following[0], here[1] + following[1]), following
    return np.array(corners, dtype=np.int64)


def _steps(part: NDArray[np.bool_]) -> dict[_Corner, list[_Corner]]:
    """From each corner of a pixel the steps along the outline, with the region on the right."""
    wide = np.pad(part, 1)
    inner = wide[1:-1, 1:-1]
    found: dict[_Corner, list[_Corner]] = {}
    for open_, offset, step in (
        (wide[:-2, 1:-1], (0, 0), (1, 0)),  # upper edges go right
        (wide[1:-1, 2:], (1, 0), (0, 1)),  # right edges down
        (wide[2:, 1:-1], (1, 1), (-1, 0)),  # lower edges left
        (wide[1:-1, :-2], (0, 1), (0, -1)),  # left edges up
    ):
        for y, x in np.argwhere(inner & ~open_).tolist():
            found.setdefault((x + offset[0], y + offset[1]), []).append(step)
    return found
