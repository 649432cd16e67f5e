"""One image's descriptors out of those of its tiles."""

from __future__ import annotations

import numpy as np

from fedvad.data.views import Tiling
from fedvad.half import HalfArray


class Stitching:
    """Descriptors of tiles, joined as they come.

    Where tiles overlap, each counts the less the nearer its own edge is: there a convolution saw
    the tile's padding instead of the image.
    """

    def __init__(self, tiling: Tiling, dim: int) -> None:
        self._tiling = tiling
        self._whole: HalfArray | None = None
        if len(tiling) > 1:
            self._whole = np.zeros((tiling.rows.total, tiling.columns.total, dim), np.float16)
            self._rows, self._columns = tiling.rows.weights(), tiling.columns.weights()

    def add(self, number: int, part: HalfArray) -> None:
        """Take the (h, w, d) descriptors of a tile, by its number in the order of `Tiling.cut`."""
        if self._whole is None:
            self._whole = part
            return
        row, column = divmod(number, len(self._tiling.columns.starts))
        weight = self._rows[row][:, None] * self._columns[column]
        place = self._tiling.rows.place(row), self._tiling.columns.place(column)
        self._whole[place] += (part * weight[:, :, None]).astype(np.float16)

    def result(self) -> HalfArray:
        """The (h, w, d) descriptors of the image, without its padding."""
        assert self._whole is not None
        height, width = self._tiling.grid
        return np.ascontiguousarray(self._whole[:height, :width])
