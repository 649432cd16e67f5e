"""What a texture defect is filled with: a folder's pictures, other images, or drawn noise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedvad.data.bounds import MAX_PIXELS
from fedvad.data.images import read_rgb, resize_rgb
from fedvad.data.inputs import list_images
from fedvad.data.synthesis.perlin import perlin
from fedvad.errors import ConfigError

Pixels = NDArray[np.uint8]
Table = NDArray[np.float64]

_KEPT = 256  # decoded textures in memory: 50 MB at 256 pixels a side
_OPERATIONS = 3


class TextureFolder(Sequence[Pixels]):
    """The images of a folder, at any depth, as textures uint8 (size, size, 3); read when used.

    The last 256 stay decoded. max_pixels: of a picture at most. Raises `DataError` for a
    missing folder or one without images, `ConfigError` for size < 1; `ImageError` naming the file
    when one that is used is unreadable.
    """

    def __init__(self, folder: Path, *, size: int = 256, max_pixels: int = MAX_PIXELS) -> None:
        if size < 1:
            raise ConfigError(f"texture size must be at least 1, not {size}")
        self.paths = tuple(list_images([Path(folder)]).paths)
        self.size = size
        self._max_pixels = max_pixels
        self._read = lru_cache(maxsize=_KEPT)(self._decode)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Pixels: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pixels]: ...
    def __getitem__(self, index: int | slice) -> Pixels | list[Pixels]:
        if isinstance(index, slice):
            return [self._read(path) for path in self.paths[index]]
        return self._read(self.paths[index])

    def _decode(self, path: Path) -> Pixels:
        texture = resize_rgb(read_rgb(path, max_pixels=self._max_pixels), self.size)
        texture.setflags(write=False)
        return texture


def cutting(texture: Pixels, shape: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """A random part of a texture (H, W, 3) as uint8 (h, w, 3); enlarged if it is too small."""
    height, width = shape
    scale = max(height / texture.shape[0], width / texture.shape[1])
    if scale > 1:
        size = (
            max(width, round(texture.shape[1] * scale)),
            max(height, round(texture.shape[0] * scale)),
        )
        texture = np.asarray(Image.fromarray(texture).resize(size, Image.Resampling.BILINEAR))
    top = int(rng.integers(texture.shape[0] - height + 1))
    left = int(rng.integers(texture.shape[1] - width + 1))
    return texture[top : top + height, left : left + width]


def augment(texture: Pixels, rng: np.random.Generator) -> Pixels:
    """A texture uint8 (h, w, 3), mirrored at random, after three different changes of its values.

    The changes are combined into one table of values per channel, which is applied once.
    Source: DRAEM's public code, where three of nine operations are drawn; the list here is ours.
    """
    table = np.broadcast_to(np.arange(256, dtype=np.float64), (3, 256))
    for number in rng.choice(len(_CHANGES), _OPERATIONS, replace=False):
        table = np.clip(_CHANGES[number](table, rng), 0, 255)
    values = np.rint(table).astype(np.uint8)
    down, across = (int(step) for step in rng.choice([-1, 1], 2))
    turned = texture[::down, ::across]
    return np.stack([values[band][turned[..., band]] for band in range(3)], axis=-1)


def draw_texture(shape: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """A texture uint8 (h, w, 3) without any file: noise of three octaves between two colours. Ours.

    Octaves are stretched alike in one direction, as fibres, rust and scale are.
    """
    coarse = rng.uniform(1, 6, 2) * np.maximum(np.array(shape) / 64, 0.5)
    level = np.zeros(shape, dtype=np.float32)
    for octave in range(3):
        down, across = (coarse * 2**octave).tolist()
        level += perlin(shape, (down, across), rng) / np.float32(2**octave)
    level = level * np.float32(rng.uniform(0.8, 2.0)) + np.float32(0.5)
    level += rng.normal(0, rng.uniform(0.02, 0.12), shape).astype(np.float32)
    dark, light = rng.uniform(0, 110, 3), rng.uniform(100, 255, 3)
    # Colours close to grey are more common on real surfaces than bright ones.
    dark, light = (0.6 * colour.mean() + 0.4 * colour for colour in (dark, light))
    mixed = dark + np.clip(level, 0, 1)[..., None] * (light - dark)
    drawn: Pixels = np.rint(mixed).astype(np.uint8)
    return drawn


# Each changes a table of values (3, 256), 0 to 255.
def _gamma(table: Table, rng: np.random.Generator) -> Table:
    return np.asarray(255 * (table / 255) ** rng.uniform(0.5, 2.0))


def _brightness(table: Table, rng: np.random.Generator) -> Table:
    return table * rng.uniform(0.8, 1.2) + rng.uniform(-30, 30)


def _colour(table: Table, rng: np.random.Generator) -> Table:
    return table * rng.uniform(0.75, 1.25, (3, 1))


def _solarise(table: Table, rng: np.random.Generator) -> Table:
    return np.where(table < rng.uniform(32, 224), table, 255 - table)


def _posterise(table: Table, rng: np.random.Generator) -> Table:
    width = 2 ** rng.integers(3, 6)
    return table // width * width


def _invert(table: Table, rng: np.random.Generator) -> Table:
    return 255 - table


_CHANGES = (_gamma, _brightness, _colour, _solarise, _posterise, _invert)
