"""An image in memory that goes wherever the path of an image file goes."""

from __future__ import annotations

import sys
from pathlib import PosixPath, WindowsPath
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fedvad.errors import ImageError

if sys.platform == "win32":
    _Base = WindowsPath
else:
    _Base = PosixPath


class Picture(_Base):
    """A path that no file has, with pixels: its name is what results and messages call it.

    `read_rgb` and `FeatureExtractor.stream` take its pixels; no cache knows it. Lists, detectors
    and overlays treat it as any other path.
    """

    _pixels: npt.NDArray[np.uint8] | str

    @classmethod
    def of(cls, name: str, pixels: npt.NDArray[np.uint8] | str) -> Self:
        """A picture of uint8 (H, W, 3) pixels, or the reason why there are none."""
        made = cls(name)
        made._pixels = pixels
        return made

    def rgb(self) -> npt.NDArray[np.uint8]:
        """Its pixels; raises `ImageError` where there are none."""
        if isinstance(self._pixels, str):
            raise ImageError(self._pixels)
        return self._pixels

    def exists(self, **options: Any) -> bool:
        """Whether it can be read: always, whatever files there are."""
        return True

    def is_dir(self, **options: Any) -> bool:
        """Never a folder, whatever is called like it."""
        return False
