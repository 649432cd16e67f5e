"""AUPRO: area under the per-region overlap curve, exact and without a threshold grid.

One definition, here and in every table (Bergmann et al., "The MVTec Anomaly Detection Dataset",
IJCV 2021, section 5):

* a region is an 8-connected component of a mask; every region of every image has equal weight;
* PRO(t) is the mean over regions of the share of the region's pixels with map >= t;
* FPR(t) is the share of all normal pixels of all images, normal images included, with map >= t;
* the curve joins (0, 0) and the points (FPR(t), PRO(t)) of all distinct map values by straight
  lines, so tied pixels enter together; it is cut at `max_fpr`, interpolated there, and its area
  is divided by `max_fpr`.

A perfect map has 1, a constant one max_fpr / 2.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from fedvad.errors import ConfigError
from fedvad.evaluation.metrics import Bools, Floats, Pairs, gather, pixel_pairs

__all__ = ["aupro"]


def aupro(
    maps: ArrayLike | Pairs, masks: ArrayLike | None = None, *, max_fpr: float = 0.3
) -> float | None:
    """Normalised area under the per-region overlap curve.

    Parameters
    ----------
    maps : (n, H, W) float array, or iterable of (map, mask) pairs
        Anomaly maps; pairs are read once.
    masks : (n, H, W) bool array, default=None
        Anomalous pixels; None where `maps` holds pairs.
    max_fpr : float, default=0.3
        Share of normal pixels at which the curve is cut, in (0, 1].

    Returns
    -------
    float or None
        In [0, 1]; None when there is no region or no normal pixel. Peak memory in addition to the
        input: 8 bytes per normal pixel (16 for float64 maps) and about 60 per anomalous one.

    Raises
    ------
    ConfigError
        For `max_fpr` outside (0, 1].
    DataError
        For NaN, infinity, or masks that do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.aupro import aupro
    >>> masks = np.zeros((1, 4, 4), bool)
    >>> masks[0, 1:3, 1:3] = True
    >>> aupro(masks.astype(float), masks), aupro(np.zeros((1, 4, 4)), masks)
    (1.0, 0.15)

    Source: Bergmann et al., IJCV 2021; the module text fixes what the paper leaves open.
    """
    if not 0 < max_fpr <= 1:
        raise ConfigError(f"max_fpr is {max_fpr}; it must lie in (0, 1], for example 0.3")
    normals: list[Floats] = []
    anomalies: list[Floats] = []
    shares: list[Floats] = []
    n_regions = 0
    for values, mask in pixel_pairs(maps, masks):
        normals.append(values[~mask])
        if mask.any():
            share, n_found = _region_shares(mask)
            anomalies.append(values[mask])
            shares.append(share)
            n_regions += n_found
    normal, scores, weights = gather(normals), gather(anomalies), gather(shares)
    if not n_regions or not normal.size:
        return None
    return min(1.0, _area(normal, scores, weights, max_fpr) / n_regions)


def _region_shares(mask: Bools) -> tuple[Floats, int]:
    """For each anomalous pixel, in the order of values[mask], 1 / size of its region; regions."""
    from scipy import ndimage

    regions, n_found = ndimage.label(mask, structure=np.ones((3, 3), dtype=bool))
    owner = regions[mask]
    sizes = np.bincount(owner, minlength=n_found + 1)
    return 1.0 / sizes[owner], int(n_found)


def _area(normal: Floats, scores: Floats, weights: Floats, max_fpr: float) -> float:
    """Area under sum of weights against FPR up to `max_fpr`, over max_fpr. Reorders `normal`.

    Each normal pixel v is a step of 1 / N in FPR, over which the trapezium has the mean height of
    PRO(> v) and PRO(>= v). Summed the other way round, an anomalous pixel earns its weight times
    the normals below it, ties half: a weighted AUROC, two sorts and a binary search. Steps beyond
    max_fpr are never sorted: a partition finds the normal value `cut` at which FPR reaches it.
    """
    width = max_fpr * normal.size
    needed = min(normal.size, math.ceil(width))
    normal.partition(normal.size - needed)
    cut = normal[normal.size - needed]
    kept = normal[normal.size - needed :]
    kept = np.sort(kept[kept > cut])  # the others in it tie with the cut, as may some left of it
    n_ties = int(np.count_nonzero(normal == cut))

    above = scores > cut
    at_cut = float(weights[scores == cut].sum())
    scores, weights = scores[above], weights[above]
    order = np.argsort(scores)
    scores, weights = scores[order], weights[order]
    below = np.searchsorted(kept, scores, side="left") + np.searchsorted(kept, scores, side="right")
    full = float(np.sum(weights * below)) / 2  # not a BLAS dot: one answer for any thread count
    # The last trapezium holds all normals tied with the cut; max_fpr may fall inside it.
    rest = width - kept.size
    last = rest * (float(weights.sum()) + at_cut * rest / n_ties / 2)
    return (full + last) / width
