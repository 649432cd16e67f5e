"""Image files as pixels of one size, in order, with the reason for each that cannot be read."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedvad.data.images import MAX_PIXELS, read_rgb, resize_rgb
from fedvad.errors import ImageError

__all__ = ["Pixels", "read_pixels"]

_AHEAD = 32


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

    workers = max(2, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, thread_name_prefix="fedvad-read") as pool:
        waiting: deque[Future[Pixels]] = deque()
        try:
            for index in range(len(paths)):
                waiting.append(pool.submit(load, index))
                if len(waiting) == _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # a caller who stops early does not wait for images nobody wants
            for future in waiting:
                future.cancel()
