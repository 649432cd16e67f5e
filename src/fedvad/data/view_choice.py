"""At which size images are read, from their own sizes: headers only, no pixel is decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedvad.data.headers import read_header
from fedvad.data.sets import Site
from fedvad.data.views import Size

_LOOKED_AT = 32  # images a site whose headers are read
USUAL_SIZE = 256  # side to which small images are brought, as weights are trained on such sizes
_SIDES = (512, 384)  # of squares; never more than the images have
_PIXELS = 512 * 512  # four times the time of the usual size
_WIDE = 1.5
_ALIKE = 1.1  # between the most and the least elongated image
_PATCH = 16  # of most transformers


@dataclass(frozen=True)
class Sizes:
    """Sizes of a federation's training images in pixels.

    height, width: medians over sites of the medians of each. spread: how many times as long, for
    its width, the most elongated image is as the least.
    """

    height: int
    width: int
    spread: float

    @property
    def ratio(self) -> float:
        """Longer over shorter side."""
        return max(self.height, self.width) / min(self.height, self.width)

    def words(self) -> str:
        """A clause for people."""
        return f"images are {self.height} x {self.width} pixels"


def sizes_of(sites: Sequence[Site]) -> Sizes | None:
    """Sizes of up to 32 training images of each site; None where no header can be read."""
    middles, ratios = [], []
    for site in sites:
        found = [read_header(item.path) for item in site.train[:_LOOKED_AT]]
        sides = [(h.height, h.width) for h in found if h is not None and min(h.height, h.width) > 0]
        if sides:
            middles.append(np.median(sides, axis=0))
            ratios += [height / width for height, width in sides]
    if not middles:
        return None
    height, width = np.median(middles, axis=0)
    return Sizes(int(height), int(width), max(ratios) / min(ratios))


def choose_size(size: Size, sizes: Sizes | None, *, tiled: bool) -> Size:
    """What `auto` and `short:256` stand for with images of these sizes; other sizes stay.

    `short:256`: proportions are kept and the shorter side of the usual image becomes 256 pixels.
    `auto`: in tiles, all pixels that the images have. Else up to four times as many pixels as 256 x
    256: a square of 512, 384 or 256 pixels for images that are nearly square, their own
    proportions for longer ones. No image is enlarged for more detail than it has, but small ones
    still become 256 x 256, as the weights expect. Chosen on `screw_1024`. Source: ours.
    """
    if sizes is None:
        return USUAL_SIZE if size == "auto" else size
    height, width = sizes.height, sizes.width
    if isinstance(size, str) and size.startswith("short:"):
        scale = min(1.0, int(size.removeprefix("short:")) / min(height, width))
        return _fitted(scale * height, scale * width)
    if size != "auto":
        return size
    if tiled:
        return _fitted(height, width)
    if sizes.ratio < _WIDE:
        return next((side for side in _SIDES if min(height, width) >= side), USUAL_SIZE)
    if max(height, width) <= _SIDES[-1]:
        return USUAL_SIZE
    scale = min(1.0, math.sqrt(_PIXELS / (height * width)))
    if sizes.spread > _ALIKE:
        return _fitted(scale * height, scale * width)
    sides = (max(2, int(scale * side) // _PATCH) * _PATCH for side in (height, width))
    return "{}x{}".format(*sides)


def _fitted(height: float, width: float) -> str:
    return f"fit:{max(1, round(height))}x{max(1, round(width))}"
