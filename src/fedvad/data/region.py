"""Where to look in an image: a shape or a mask, outside which nothing is learnt or scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fedvad.data.bounds import ANY_SIZE
from fedvad.data.images import read_mask
from fedvad.errors import ConfigError, ImageError

_SIDE = 1000  # of the mask of a shape, in pixels
_FORMS = (
    "no shape: give LEFT,TOP,RIGHT,BOTTOM or three and more corners X,Y,X,Y,X,Y in percent of "
    "width and height, such as 10,0,90,75, or the file of a mask"
)

Mask = npt.NDArray[np.bool_]


class Region:
    """A part of every image, in its own proportions; cells of which half lies in it belong to it.

    mask: bool (H, W), True where to look; it is laid over the whole of every image.
    """

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._sums = np.pad(np.cumsum(np.cumsum(mask, 0, dtype=np.int64), 1), ((1, 0), (1, 0)))
        self._grids: dict[tuple[int, int], Mask] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Region) and np.array_equal(self._mask, other._mask)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def of(cls, text: str) -> Region:
        """The region of `LEFT,TOP,RIGHT,BOTTOM` or of a polygon `X,Y,X,Y,X,Y,...`, in percent, or
        of a mask's file (not 0: look).

        Raises `ConfigError` for another text, a file that cannot be read, and an empty region.
        """
        corners = _corners(text)
        if corners is not None:
            picture = Image.new("1", (_SIDE, _SIDE))
            # the pixel at the end of an edge belongs to it
            scaled = [(x * _SIDE / 100 - 0.5, y * _SIDE / 100 - 0.5) for x, y in corners]
            ImageDraw.Draw(picture).polygon(scaled, fill=1)
            return cls(np.asarray(picture))
        try:
            mask = read_mask(Path(text), max_pixels=ANY_SIZE)
        except ImageError as error:
            raise ConfigError(f"region: {error}") from error
        if not mask.any():
            raise ConfigError(f"region {text} is black everywhere: mark where to look in white")
        return cls(mask)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of its mask in pixels."""
        height, width = self._mask.shape
        return height, width

    @property
    def whole(self) -> bool:
        """Whether it leaves nothing out."""
        return bool(self._mask.all())

    def cells(self, grid: tuple[int, int]) -> Mask:
        """(h, w) bool: which cells of an image belong to it, at least the one nearest to it."""
        if grid not in self._grids:
            top, bottom = _edges(self._mask.shape[0], grid[0])
            left, right = _edges(self._mask.shape[1], grid[1])
            sums = self._sums
            marked = (
                sums[np.ix_(bottom, right)]
                - sums[np.ix_(top, right)]
                - sums[np.ix_(bottom, left)]
                + sums[np.ix_(top, left)]
            )
            share = marked / ((bottom - top)[:, None] * (right - left))
            self._grids[grid] = share >= min(0.5, float(share.max()))
        return self._grids[grid]

    def within(self, descriptors: npt.NDArray[np.float16]) -> npt.NDArray[np.float16]:
        """The (h, w, d) descriptors of an image with NaN in the cells outside."""
        inside = self.cells((descriptors.shape[0], descriptors.shape[1]))
        return np.where(inside[:, :, None], descriptors, np.float16(np.nan))


def is_shape(text: str) -> bool:
    """Whether a region is a rectangle or polygon, not a file; `ConfigError` if impossible."""
    return _corners(text) is not None


def parse_region(text: str) -> str:
    """A region option, with the path of a mask made absolute; raises `ConfigError`."""
    if is_shape(text):
        return text
    if Region.of(text).whole:
        raise ConfigError(
            f"region {text} has no black pixel, so it is the whole image (is it a photograph?): "
            "paint black where not to look"
        )
    return str(Path(text).absolute())


def _corners(text: str) -> list[tuple[float, float]] | None:
    """(x, y) of each corner in percent; None for what names a file."""
    try:
        values = [float(part.strip().removesuffix("%")) for part in text.split(",")]
    except ValueError:
        if Path(text).exists() or any(letter.isalpha() for letter in text):
            return None
        raise ConfigError(f"region {text!r} is {_FORMS}") from None
    if len(values) < 4:
        if Path(text).exists():
            return None
        raise ConfigError(
            f"region {text!r} has {len(values)} number{'s' * (len(values) != 1)} and needs four, "
            "LEFT,TOP,RIGHT,BOTTOM in percent of width and height, or the file of a mask"
        )
    corners = list(zip(values[::2], values[1::2], strict=False))
    if len(values) == 4:
        (left, top), (right, bottom) = corners
        if left < right and top < bottom:
            corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    known = all(0 <= value <= 100 for value in values)
    if not known or len(values) % 2 or len(corners) < 3:
        raise ConfigError(f"region {text!r} is {_FORMS}")
    return corners


def _edges(side: int, cells: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First pixel, and the one after the last, of each cell along a side."""
    first = np.arange(cells) * side // cells
    return first, np.maximum((np.arange(cells) + 1) * side // cells, first + 1)
