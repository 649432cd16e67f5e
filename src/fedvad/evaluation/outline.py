"""Recall at the centre and at the edge of defects: which part of a defect does a map show?

* The ring of a mask is what an erosion by `width` pixels takes away, the centre what it leaves.
  A region that has nothing left counts for the ring alone.
* Erosion is by a square (8-connected), `width` times. Beyond the border of the image a defect is
  taken to go on, so that it has no edge there.
* One threshold serves both parts: the least value such that at most the share `fpr` of the pixels
  that no mask covers lies above it. It needs no anomalous pixel, so maps of any scale compare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fedvad.errors import ConfigError
from fedvad.evaluation.metrics import Bools, Pairs, gather, pixel_pairs

__all__ = ["OutlineRecall", "outline_recall", "split_mask"]


@dataclass(frozen=True)
class OutlineRecall:
    """Shares of pixels above the threshold.

    Attributes
    ----------
    centre, ring, whole : float or None
        Of all centres, all rings, all masks, in [0, 1]; None for a part without pixels.
    threshold : float
        The one that serves all parts.
    fpr : float
        Share of the normal pixels above it.
    centre_pixels, ring_pixels : int
        How many there are.
    """

    centre: float | None
    ring: float | None
    whole: float | None
    threshold: float
    fpr: float
    centre_pixels: int
    ring_pixels: int


def outline_recall(
    maps: ArrayLike | Pairs,
    masks: ArrayLike | None = None,
    *,
    width: int = 4,
    fpr: float = 0.05,
) -> OutlineRecall | None:
    """Recall of the centre and of the ring of defects at one threshold.

    Pixels of all images are counted together, so large defects weigh more.

    Parameters
    ----------
    maps, masks
        As for `pixel_auroc`.
    width : int, default=4
        Of the ring, in pixels, at least 1.
    fpr : float, default=0.05
        Share of the normal pixels that may lie above the threshold, in [0, 1).

    Returns
    -------
    OutlineRecall or None
        None without a normal pixel or an anomalous one.

    Raises
    ------
    ConfigError
        For a width below 1 or an `fpr` outside [0, 1).
    DataError
        As `pixel_auroc`.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.outline import outline_recall
    >>> mask, map_ = np.zeros((7, 7), bool), np.zeros((7, 7))
    >>> mask[1:6, 1:6] = True
    >>> map_[2:5, 2:5] = 1  # only the centre is lit
    >>> found = outline_recall([(map_, mask)], width=1, fpr=0)
    >>> found.centre, found.ring, found.ring_pixels
    (1.0, 0.0, 16)

    Source: ours, for a claim of DMDD (arXiv 2408.03888).
    """
    if width < 1:
        raise ConfigError(f"the ring must be 1 pixel wide or more, not {width}")
    if not 0 <= fpr < 1:
        raise ConfigError(f"fpr is {fpr}; it must lie in [0, 1), for example 0.05")
    normals, centres, rings = [], [], []
    for values, mask in pixel_pairs(maps, masks):
        centre, ring = split_mask(mask, width)
        normals.append(values[~mask])
        centres.append(values[centre])
        rings.append(values[ring])
    normal, inner, outer = gather(normals), gather(centres), gather(rings)
    if not normal.size or not inner.size + outer.size:
        return None
    allowed = math.floor(fpr * normal.size)
    place = normal.size - 1 - allowed
    threshold = np.partition(normal, place)[place]
    above = [int((part > threshold).sum()) for part in (inner, outer, normal)]
    return OutlineRecall(
        centre=above[0] / inner.size if inner.size else None,
        ring=above[1] / outer.size if outer.size else None,
        whole=(above[0] + above[1]) / (inner.size + outer.size),
        threshold=float(threshold),
        fpr=above[2] / normal.size,
        centre_pixels=inner.size,
        ring_pixels=outer.size,
    )


def split_mask(mask: Bools, width: int) -> tuple[Bools, Bools]:
    """Centre and ring (H, W) of a mask (H, W), the ring `width` pixels wide.

    Together they are the mask.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.outline import split_mask
    >>> centre, ring = split_mask(np.pad(np.ones((3, 3), bool), 1), 1)
    >>> int(centre.sum()), int(ring.sum())
    (1, 8)
    """
    from scipy import ndimage

    if not mask.any():
        return mask, mask
    square = np.ones((3, 3), dtype=np.bool_)
    centre: Bools = ndimage.binary_erosion(mask, square, iterations=width, border_value=1)
    return centre, mask & ~centre
