"""Cubes of a data folder as arrays, and as pictures wherever one is shown."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedvad.data.bounds import MAX_PIXELS, check_pixels
from fedvad.data.cubes.names import is_cube
from fedvad.data.cubes.reading import read_scene
from fedvad.data.cubes.scene import Scene, false_colour
from fedvad.data.images import read_rgb
from fedvad.data.pictures import Picture
from fedvad.data.sets import Site
from fedvad.data.views import SIDES, Size
from fedvad.errors import DataError, ImageError

_LARGEST = 256  # side in pixels, where nobody asks for more


def read_cube(path: Path, *, max_pixels: int = MAX_PIXELS) -> Scene:
    """The scene of a cube by its name (see `names`); raises `ImageError` as `read_rgb`."""
    try:
        scene = read_scene(path)
        check_pixels(scene.cube.shape[1], scene.cube.shape[0], str(path), max_pixels)
    except ImageError:
        raise
    except (DataError, OSError) as error:
        raise ImageError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    return scene


def cube_of(path: Path, bands: int, max_pixels: int) -> NDArray[np.float32]:
    """A cube of this many bands; raises `ImageError`."""
    if isinstance(path, Picture):
        raise ImageError(f"{path}: is a picture, and this takes cubes of bands: give a file")
    cube = read_cube(path, max_pixels=max_pixels).cube
    if cube.shape[2] != bands:
        raise ImageError(f"{path}: has {cube.shape[2]} bands, and this detector is for {bands}")
    return cube


def size_of_cubes(sites: Sequence[Site]) -> Size:
    """That of the largest of the sites' first cubes, up to 256 x 256; none is enlarged to it."""
    height = width = SIDES[0]
    for site in sites:
        for item in site.train[:1]:
            with suppress(ImageError):  # training says why
                rows, columns, _ = read_cube(item.path).cube.shape
                height, width = max(height, rows), max(width, columns)
    return f"fit:{min(_LARGEST, height)}x{min(_LARGEST, width)}"


def read_picture(path: Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) to look at: `read_rgb`, and false colours of a cube."""
    if isinstance(path, Picture) or not is_cube(path):
        return read_rgb(path, max_pixels=max_pixels)
    return false_colour(read_cube(path, max_pixels=max_pixels))


def resize_cube(cube: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A float32 (h, w, bands) cube at (height, width), each band as `resize_rgb` does colours.

    >>> resize_cube(np.ones((4, 6, 5), np.float32), (2, 3)).shape
    (2, 3, 5)
    """
    if cube.shape[:2] == size:
        return cube
    made = [
        Image.fromarray(np.ascontiguousarray(band)).resize(size[::-1], Image.Resampling.BILINEAR)
        for band in np.moveaxis(cube, 2, 0)
    ]
    return np.stack([np.asarray(band) for band in made], axis=2)
