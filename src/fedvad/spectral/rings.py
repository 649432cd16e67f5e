"""The ring of neighbours around each pixel, between an inner and an outer window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedvad.errors import ConfigError, DataError

__all__ = ["BORDERS", "Border", "check_windows", "rings"]

Border = Literal["wrap", "mirror", "shift"]
BORDERS: tuple[str, ...] = get_args(Border)
Indices = NDArray[np.integer[Any]]


def check_windows(windows: tuple[int, int], shape: tuple[int, int], border: str) -> None:
    """Raise `ConfigError` for windows that make no ring, `DataError` for a scene they exceed.

    >>> check_windows((17, 15), (100, 80), "wrap")
    """
    outer, inner = windows
    if not 1 <= inner < outer or outer % 2 == 0 or inner % 2 == 0:
        raise ConfigError(
            f"windows are {outer},{inner}; give two odd numbers, the outer one larger: 17,15"
        )
    if border not in BORDERS:
        raise ConfigError(f"border is {border!r}; choose from {', '.join(BORDERS)}")
    if outer > min(shape):
        raise DataError(
            f"a window of {outer} pixels does not fit into a scene of {shape[0]} x {shape[1]}: "
            "take smaller windows"
        )


def rings(
    shape: tuple[int, int], windows: tuple[int, int], border: Border, *, batch: int
) -> Iterator[tuple[slice, Indices]]:
    """Neighbours of all pixels, some pixels at a time.

    Parameters
    ----------
    shape : (int, int)
        Height and width.
    windows : (int, int)
        Sides (outer, inner) in pixels, odd.
    border : {"wrap", "mirror", "shift"}
        Beyond the edge the scene continues at the opposite one, as in public code; or is mirrored,
        which copies an anomaly at the edge into its own ring; or the windows move inwards.
    batch : int
        Pixels at a time.

    Yields
    ------
    slice, (pixels, outer² - inner²) int array
        Which pixels, counted row by row, and the numbers of their neighbours.

    Examples
    --------
    >>> from fedvad.spectral.rings import rings
    >>> (_, found), = rings((3, 3), (3, 1), "wrap", batch=9)
    >>> found[4].tolist()
    [0, 1, 2, 3, 5, 6, 7, 8]
    """
    check_windows(windows, shape, border)
    (rows, row_inside), (columns, column_inside) = (_along(side, windows, border) for side in shape)
    count = windows[0] ** 2 - windows[1] ** 2
    for start in range(0, shape[0] * shape[1], batch):
        part = slice(start, min(start + batch, shape[0] * shape[1]))
        y, x = np.divmod(np.arange(part.start, part.stop), shape[1])
        places = rows[y][:, :, None] * shape[1] + columns[x][:, None, :]
        ring = ~(row_inside[y][:, :, None] & column_inside[x][:, None, :])
        yield part, places[ring].reshape(len(y), count)


def _along(
    side: int, windows: tuple[int, int], border: Border
) -> tuple[Indices, NDArray[np.bool_]]:
    """For each place on an axis: indices of its outer window, and which are in the inner one."""
    outer, inner = (size // 2 for size in windows)
    here = np.arange(side)[:, None]
    steps = np.arange(-outer, outer + 1)
    if border == "shift":
        places = np.clip(here, outer, side - 1 - outer) + steps
        return places, np.abs(places - np.clip(here, inner, side - 1 - inner)) <= inner
    inside = np.broadcast_to(np.abs(steps) <= inner, (side, steps.size))
    places = here + steps
    if border == "wrap":
        return places % side, inside
    places = np.abs(places)
    return np.where(places >= side, 2 * (side - 1) - places, places), inside
