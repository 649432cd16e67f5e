"""What a site's normal images are like, in a few numbers that show none of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedvad.data.bounds import MAX_PIXELS
from fedvad.data.cubes.pixels import read_picture
from fedvad.data.synthesis.config import SynthesisConfig
from fedvad.data.synthesis.foreground import find_foreground
from fedvad.errors import DataError, ImageError

_LOOKED_AT, _RUN = 128, 4  # images, in runs of neighbours: copies often follow one another
_SMALL = 64  # pixels to which images are squashed
_NEAR = 0.99
_FLAT = 3  # grey levels of a border in which nothing is
_DIRECTED = 0.1
_OTSU = SynthesisConfig(foreground="otsu")

_Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Fingerprint:
    """A site's normal training images, of which at most 128 were read.

    Parameters
    ----------
    images : int
        Number of them, at least 1; `seen` of these were read.
    seen : int
    height, width : float
        Medians, in pixels.
    shortest, longest : float
        Least and greatest height / width.
    border : tuple of four float
        Left, top, right and bottom in percent of the part in which anything is seen: beyond it
        all images are one flat colour. (0, 0, 100, 100) where there is no such border.
    foreground : float
        Median share of the image that an object covers before a plain background; 1 where none
        stands out.
    brightness, brightness_spread : float
        Median of the images' mean grey levels, 0 to 255, and their standard deviation.
    alignment : float or None
        How alike the directions of the images are, from 0 (objects lie at any angle) to 1; None
        where images have no direction.
    near_copies : float
        Share of the images that nearly equal another, in [0, 1].
    """

    images: int
    seen: int
    height: float
    width: float
    shortest: float
    longest: float
    border: tuple[float, float, float, float]
    foreground: float
    brightness: float
    brightness_spread: float
    alignment: float | None
    near_copies: float

    def __post_init__(self) -> None:
        left, top, right, bottom = self.border
        shares = (self.foreground, self.near_copies, self.alignment or 0.0)
        if not (
            1 <= self.seen <= self.images
            and min(self.height, self.width) >= 1
            and 0 < self.shortest <= self.longest
            and 0 <= left < right <= 100
            and 0 <= top < bottom <= 100
            and all(0 <= share <= 1 for share in shares)
        ):
            raise DataError("a fingerprint has values that no images have")


def fingerprint_of(paths: Sequence[Path], *, max_pixels: int = MAX_PIXELS) -> Fingerprint:
    """The fingerprint of normal images.

    Parameters
    ----------
    paths : sequence of Path
        Their files; at most 128 are decoded, in evenly spaced runs of four.
    max_pixels : int, default=100_000_000
        An image of more counts as unreadable.

    Raises
    ------
    DataError
        When none can be read.

    Source: ours.
    """
    sides: list[tuple[int, int]] = []
    small: list[_Grey] = []
    shares: list[float] = []
    for path in _chosen(paths):
        try:
            image = read_picture(path, max_pixels=max_pixels)
        except ImageError:  # training counts these, and says why
            continue
        sides.append(image.shape[:2])
        grey = Image.fromarray(image).convert("L").resize((_SMALL, _SMALL), Image.Resampling.BOX)
        small.append(np.asarray(grey))
        shares.append(float(find_foreground(np.asarray(grey.convert("RGB")), _OTSU).mean()))
    if not small:
        raise DataError(f"none of {len(paths)} normal images can be read")
    greys = np.stack(small)
    heights, widths = np.array(sides).T
    means = greys.mean((1, 2))
    return Fingerprint(
        images=len(paths),
        seen=len(small),
        height=float(np.median(heights)),
        width=float(np.median(widths)),
        shortest=float((heights / widths).min()),
        longest=float((heights / widths).max()),
        border=_border(greys),
        foreground=float(np.median(shares)),
        brightness=float(np.median(means)),
        brightness_spread=float(means.std()),
        alignment=_alignment(greys),
        near_copies=_near_copies(greys),
    )


def _chosen(paths: Sequence[Path]) -> list[Path]:
    if len(paths) <= _LOOKED_AT:
        return list(paths)
    starts = np.linspace(0, len(paths) - _RUN, _LOOKED_AT // _RUN).astype(int)
    return [paths[i] for start in starts for i in range(start, start + _RUN)]


def _border(greys: _Grey) -> tuple[float, float, float, float]:
    """Left, top, right, bottom in percent of what is not the same flat colour in all images."""
    edges: list[float] = []
    for axis in (2, 1):  # columns, then rows
        lines = np.moveaxis(greys, axis, 0).reshape(_SMALL, -1).astype(int)
        alike = np.ptp(lines, axis=1) <= _FLAT
        first = int(np.argmin(alike)) if not alike.all() else 0
        last = int(np.argmin(alike[::-1])) if not alike.all() else 0
        edges += [100 * first / _SMALL, 100 * (1 - last / _SMALL)]
    left, right, top, bottom = edges
    return left, top, right, bottom


def _alignment(greys: _Grey) -> float | None:
    """Length of the mean of the images' directions, as unit vectors of twice the angle."""
    found: list[complex] = []
    for grey in greys.astype(np.float64):
        down, across = np.gradient(grey)
        energy = float((down**2 + across**2).sum())
        turned = complex((across**2 - down**2).sum(), 2 * (across * down).sum())
        if energy and abs(turned) > _DIRECTED * energy:
            found.append(turned / abs(turned))
    return min(1.0, abs(sum(found)) / len(found)) if 2 * len(found) > len(greys) else None


def _near_copies(greys: _Grey) -> float:
    """Share of images whose difference from the mean image is that of another image, too.

    Less the mean image: pictures of one aligned part are alike, but not in what differs.
    """
    if len(greys) < 3:
        return 0.0
    own = greys.reshape(len(greys), -1).astype(np.float64)
    own -= own.mean(0)
    own -= own.mean(1, keepdims=True)  # brighter is no copy
    own /= np.maximum(np.linalg.norm(own, axis=1, keepdims=True), math.sqrt(own.shape[1]))
    alike = own @ own.T
    np.fill_diagonal(alike, 0)
    return float((alike.max(1) > _NEAR).mean())
