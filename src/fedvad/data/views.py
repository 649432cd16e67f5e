"""How an image becomes what a backbone sees: size, proportions, padding and tiles."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedvad.data.images import resize_rgb
from fedvad.errors import ConfigError

Pixels = npt.NDArray[np.uint8]
Size = int | str

SIDES = (32, 2048)  # least and greatest side that a network is given, in pixels
LARGEST = 16_384  # side of an image that is read in tiles
STEP = 32  # to which tiles, their overlap and their places are multiples: strides divide it
_FORM = re.compile(r"(fit:)?(\d{1,5})(?:\s*[xX×]\s*(\d{1,5}))?")
_SHORT = re.compile(r"short:(\d{1,5})")


@dataclass(frozen=True)
class View:
    """The pixels of an image that a backbone sees, the same rule for every site and image.

    height, width: in pixels. fit: whether images keep their proportions, are only ever reduced,
    until they fit into height x width, and have cells of their own size alone; else they are
    squashed to exactly height x width. tile: side of the squares in which the backbone sees them,
    None for whole; overlap: pixels that neighbouring tiles share at least. Raises `ConfigError` for
    a side below 1.
    """

    height: int
    width: int
    fit: bool = False
    tile: int | None = None
    overlap: int = 64

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ConfigError(f"image size must be at least 1, not {self.size}")

    def check(self) -> None:
        """Raise `ConfigError` unless backbones can be given such images.

        Sides must lie in 32 to 2048 pixels (16 384 in tiles); a tile and its overlap must fit and
        be multiples of 32.
        """
        low, high = SIDES[0], SIDES[1] if self.tile is None else LARGEST
        for side in (self.height, self.width):
            if not low <= side <= high:
                tiled = "; larger images are read in tiles (--tiles 512)"
                raise ConfigError(
                    f"image size must lie in {low}..{high} pixels, got {side}"
                    + tiled * (side > high and self.tile is None)
                )
        if self.tile is None:
            return
        if not 2 * STEP <= self.tile <= SIDES[1] or self.tile % STEP:
            raise ConfigError(
                f"tiles must be a multiple of {STEP} from {2 * STEP} to {SIDES[1]} pixels, got "
                f"{self.tile}"
            )
        if not 0 <= self.overlap <= self.tile // 2 or self.overlap % STEP:
            raise ConfigError(
                f"overlap must be a multiple of {STEP} from 0 to half of the tile "
                f"({self.tile // 2} pixels), got {self.overlap}"
            )

    @classmethod
    def of(cls, size: Size | View, tile: int | None = None, overlap: int = 64) -> View:
        """The view of `256` (a square), `256x512` (height x width) or `fit:256x512`.

        A view stays what it is. Raises `ConfigError` for another text.
        """
        if isinstance(size, View):
            return size
        if isinstance(size, int) and not isinstance(size, bool):
            return cls(size, size, False, tile, overlap)
        match = _FORM.fullmatch(str(size).strip())
        if match is None:
            raise ConfigError(
                f"image_size {size!r} is none of the forms 256, 256x512 (height x width), "
                "fit:256x512, short:256 and auto"
            )
        height = int(match[2])
        return cls(height, int(match[3] or height), match[1] is not None, tile, overlap)

    @property
    def size(self) -> Size:
        """Its form as text, and the side alone as a number for squashed squares."""
        if self.fit:
            return f"fit:{self.height}x{self.width}"
        return self.height if self.height == self.width else f"{self.height}x{self.width}"

    @property
    def input(self) -> tuple[int, int]:
        """(height, width) in pixels of what the network is given at a time."""
        return (self.tile, self.tile) if self.tile is not None else (self.height, self.width)

    @property
    def varies(self) -> bool:
        """Whether images may differ in their number of cells."""
        return self.fit

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels at which an image of that size is read."""
        if not self.fit:
            return self.height, self.width
        scale = min(1.0, self.height / height, self.width / width)
        return max(1, round(scale * height)), max(1, round(scale * width))

    def scaled(self, image: Pixels) -> Pixels:
        """A uint8 (H, W, 3) image in the size at which it is read; raises as `resize_rgb`."""
        return resize_rgb(image, self.shape(*image.shape[:2]))

    def tiling(self, shape: tuple[int, int], grid: tuple[int, int]) -> Tiling:
        """Where the tiles of an image read at `shape` (height, width) lie.

        grid: (h, w) cells that the network gives for one. Raises `ConfigError` for a tile that is
        no multiple of the size of a cell.
        """
        rows, columns = map(self._axis, shape, self.input, grid)
        return Tiling(shape, rows, columns)

    def _axis(self, length: int, given: int, cells: int) -> Axis:
        if self.tile is None:
            # a cell belongs to the image in which its centre lies
            own = max(1, math.ceil(length * cells / given - 0.5))
            return Axis((0,), given, cells, cells, own, 0)
        if given % cells:
            raise ConfigError(
                f"tiles of {given} pixels are {cells} cells of this backbone, which is no whole "
                "number of pixels a cell: choose other --tiles, or another --backbone"
            )
        stride = given // cells
        own = max(1, math.ceil(length / stride - 0.5))
        if length <= given:
            return Axis((0,), given, cells, cells, own, self.overlap // stride)
        step = STEP if STEP % stride == 0 else stride
        last = -(-(length - given) // step) * step
        count = -(-(length - given) // (given - self.overlap))
        starts = tuple(i * last // (count * step) * step for i in range(count + 1))
        return Axis(
            starts, given, cells, (starts[-1] + given) // stride, own, self.overlap // stride
        )


@dataclass(frozen=True)
class Axis:
    """The tiles of an image along one side.

    starts: of each in pixels. tile: length in pixels; cells: in cells. total: cells of all. own:
    cells of the image itself, without the padding. overlap: cells over which a tile fades out.
    """

    starts: tuple[int, ...]
    tile: int
    cells: int
    total: int
    own: int
    overlap: int

    @property
    def length(self) -> int:
        """Pixels from the first to the end of the last tile."""
        return self.starts[-1] + self.tile

    def place(self, number: int) -> slice:
        """The cells of a tile."""
        first = self.starts[number] * self.cells // self.tile
        return slice(first, first + self.cells)

    def weights(self) -> list[npt.NDArray[np.float32]]:
        """(cells,) of each tile: how much it counts where it meets others; the sum is 1."""
        depth = np.minimum(np.arange(self.cells), np.arange(self.cells)[::-1]) + 0.5
        fading = np.minimum(1.0, depth / max(1, self.overlap))
        total = np.zeros(self.total)
        places = [self.place(i) for i in range(len(self.starts))]
        for place in places:
            total[place] += fading
        return [(fading / total[place]).astype(np.float32) for place in places]


@dataclass(frozen=True)
class Tiling:
    """The tiles of one image, row by row. shape: its (height, width) in pixels."""

    shape: tuple[int, int]
    rows: Axis
    columns: Axis

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """Down and across."""
        return self.rows, self.columns

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) cells of the image, without its padding."""
        return self.rows.own, self.columns.own

    def cut(self, image: Pixels) -> Iterator[Pixels]:
        """The tiles of a uint8 (H, W, 3) image, which is mirrored beyond its right and lower edge.

        A constant would light up along the edge in every convolution.
        """
        beyond = (self.rows.length - image.shape[0], self.columns.length - image.shape[1])
        if any(beyond):
            image = np.pad(image, ((0, beyond[0]), (0, beyond[1]), (0, 0)), mode="symmetric")
        for top in self.rows.starts:
            for left in self.columns.starts:
                yield image[top : top + self.rows.tile, left : left + self.columns.tile]


def is_plain(size: Size) -> bool:
    """Whether a size says how images are read without a look at them, as a `View` needs it."""
    return _FORM.fullmatch(str(size).strip()) is not None


def parse_size(size: Size, tile: int | None = None, overlap: int = 64) -> Size:
    """The plain form of an image size option: `auto`, `short:256`, or the size of a `View`.

    Raises `ConfigError` for another text, and as `View`.
    """
    text = str(size).strip().lower()
    if text == "auto":
        return text
    if match := _SHORT.fullmatch(text):
        View(int(match[1]), int(match[1]), True, tile, overlap).check()
        return f"short:{int(match[1])}"
    view = View.of(text if isinstance(size, str) else size, tile, overlap)
    view.check()
    return view.size
