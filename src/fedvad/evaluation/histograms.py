"""One threshold for all sites from sums only: counts of scores, added up, never the scores.

Sums are what secure aggregation can hide; a site's own histogram need not be seen by anybody.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedvad.errors import DataError
from fedvad.evaluation.thresholds import Threshold, conformal_rank

__all__ = ["BINS", "SUMMED_COUNTS", "count", "from_pairs", "threshold_of_counts", "to_pairs"]

# the same at every site and for any data: bins of 1.4 % from 1e-3 to 1e3
BINS = 1000
SUMMED_COUNTS = "conformal, summed counts"  # method of such a threshold
_EDGES = np.geomspace(1e-3, 1e3, BINS + 1)


def count(scores: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Number of normal scores in each bin; the two outer bins hold everything beyond.

    Parameters
    ----------
    scores : (n,) floats
        Scores of held-out normal images.

    Returns
    -------
    (1000,) int64 array
        Bins are the same at every site and for any data: 1.4 % wide, from 1e-3 to 1e3.

    Raises
    ------
    DataError
        For NaN.

    Examples
    --------
    >>> from fedvad.evaluation.histograms import count
    >>> int(count([0.5, 0.5, 7.0]).sum())
    3

    Source: ours.
    """
    values = np.asarray(scores, np.float64)
    if np.isnan(values).any():
        raise DataError("a score is NaN")
    bins = np.clip(np.searchsorted(_EDGES, values, side="left") - 1, 0, BINS - 1)
    return np.bincount(bins, minlength=BINS)


def to_pairs(counts: npt.NDArray[np.integer]) -> list[list[int]]:
    """Counts (1000,) as [bin, count] of the bins that are not empty, for JSON.

    Examples
    --------
    >>> from fedvad.evaluation.histograms import count, to_pairs
    >>> to_pairs(count([0.5, 0.5, 7.0]))
    [[449, 2], [640, 1]]
    """
    return [[int(i), int(counts[i])] for i in np.flatnonzero(counts)]


def from_pairs(pairs: object, most: int) -> npt.NDArray[np.int64]:
    """Read what `to_pairs` wrote, of at most `most` scores; raises `DataError` for anything else.

    Examples
    --------
    >>> from fedvad.evaluation.histograms import from_pairs
    >>> int(from_pairs([[449, 2], [640, 1]], most=3).sum())
    3
    """
    counts = np.zeros(BINS, np.int64)
    if not isinstance(pairs, list) or len(pairs) > BINS:
        raise DataError("counts are a list of [bin, count]")
    for pair in pairs:
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or any(type(value) is not int for value in pair)
            or not (0 <= pair[0] < BINS and 0 <= pair[1] <= most)
        ):
            raise DataError(f"{str(pair)[:40]} is not a [bin, count] of at most {most} scores")
        counts[pair[0]] += pair[1]
    if counts.sum() > most:
        raise DataError(f"{counts.sum()} scores are counted, there can be {most}")
    return counts


def threshold_of_counts(counts: npt.NDArray[np.integer], target_fpr: float) -> Threshold | None:
    """Split-conformal threshold from summed counts: the upper edge of the bin of the rank.

    At most one bin above what the scores themselves would give, so false alarms are no more. It
    holds for the mixture of all sites; a single site may have more false alarms.

    Parameters
    ----------
    counts : (1000,) int array
        Sum of what `count` gives at each site.
    target_fpr : float
        Wanted false-alarm rate, in [1e-6, 0.5].

    Returns
    -------
    Threshold or None
        None where there are fewer scores than the rate needs, ceil(1 / target_fpr) - 1, or an outer
        bin is reached, which has no other edge.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.histograms import count, threshold_of_counts
    >>> counts = count(np.linspace(1, 2, 50)) + count(np.linspace(1, 3, 50))
    >>> round(threshold_of_counts(counts, 0.05).value, 2)
    2.86

    Source: ours.
    """
    n = int(counts.sum())
    rank = conformal_rank(n, target_fpr)
    if rank > n:
        return None
    at = int(np.searchsorted(np.cumsum(counts), rank))
    if at in (0, BINS - 1):
        return None
    return Threshold(float(_EDGES[at + 1]), n, SUMMED_COUNTS, target_fpr)
