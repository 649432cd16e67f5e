"""Image files as pixels of one size, in order, with the reason for each that cannot be read."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fedvad.data.bounds import ANY_SIZE, MAX_PIXELS
from fedvad.data.images import read_rgb, resize_rgb
from fedvad.errors import DataError, ImageError
from fedvad.features.config import FeatureConfig
from fedvad.memory.bank import FloatArray

# from uint8 (S, S, 3) images to raw (h, w) maps, each with its number
Mapper = Callable[[Iterable[tuple[int, npt.NDArray[np.uint8]]]], Iterator[tuple[int, FloatArray]]]

_AHEAD = 32
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, eq=False)
class Pixels:
    """One image's outcome: uint8 (S, S, 3) pixels, or the reason why there are none."""

    index: int
    pixels: npt.NDArray[np.uint8] | None
    error: str | None = None


def read_pixels(
    paths: Sequence[Path], size: int, *, max_pixels: int = MAX_PIXELS
) -> Iterator[Pixels]:
    """Outcome of every path, in order; at most 32 images are read ahead."""

    def load(index: int) -> Pixels:
        try:
            return Pixels(index, resize_rgb(read_rgb(paths[index], max_pixels=max_pixels), size))
        except ImageError as error:
            return Pixels(index, None, str(error))

    return ahead(load, range(len(paths)), workers=max(2, os.cpu_count() or 1), most=_AHEAD)


def pixels_again(paths: Sequence[Path], size: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Pixels of files that have been read before; raises `DataError` for one that is gone."""
    for item in read_pixels(paths, size, max_pixels=ANY_SIZE):
        if item.pixels is None:
            raise DataError(f"an image vanished during the run: {item.error}")
        yield item.pixels


def ahead(work: Callable[[A], B], items: Iterable[A], *, workers: int, most: int) -> Iterator[B]:
    """What `work` makes of each item, in order, by threads that are at most `most` items ahead."""
    with ThreadPoolExecutor(workers, thread_name_prefix="fedvad-read") as pool:
        waiting: deque[Future[B]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) == most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # a caller who stops early does not wait for images nobody wants
            for future in waiting:
                future.cancel()


def mapped(
    mapper: Mapper, paths: Sequence[Path], config: FeatureConfig
) -> Iterator[tuple[int, FloatArray | None, str | None]]:
    """Raw maps of image files, in order, or why one cannot be read."""
    bad: dict[int, str | None] = {}

    def readable() -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        for item in read_pixels(paths, config.side, max_pixels=config.max_pixels):
            if item.pixels is None:
                bad[item.index] = item.error
            else:
                yield item.index, item.pixels

    expected = 0
    for index, map_ in mapper(readable()):
        for skipped in range(expected, index):
            yield skipped, None, bad[skipped]
        yield index, map_, None
        expected = index + 1
    for skipped in range(expected, len(paths)):
        yield skipped, None, bad[skipped]
