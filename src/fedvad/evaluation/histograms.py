"""One threshold for all sites from sums only: counts of scores, added up, never the scores.

Sums are what secure aggregation can hide; a site's own histogram need not be seen by anybody.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fedvad.errors import DataError
from fedvad.evaluation.thresholds import Threshold

__all__ = ["BINS", "count", "threshold_of_counts"]

# the same at every site and for any data: bins of 1.4 % from 1e-3 to 1e3
BINS = 1000
_EDGES = np.geomspace(1e-3, 1e3, BINS + 1)


def count(scores: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """(1000,) how many of the normal scores (n,) lie in each bin; the outer bins take the rest.

    Raises `DataError` for NaN. Source: ours.
    """
    values = np.asarray(scores, np.float64)
    if np.isnan(values).any():
        raise DataError("a score is NaN")
    bins = np.clip(np.searchsorted(_EDGES, values, side="left") - 1, 0, BINS - 1)
    return np.bincount(bins, minlength=BINS)


def threshold_of_counts(counts: npt.NDArray[np.integer], target_fpr: float) -> Threshold | None:
    """Split-conformal threshold from summed counts (1000,): the upper edge of the bin of the rank.

    At most one bin above what the scores themselves would give, so false alarms are no more. None
    where there are fewer scores than the rate needs, ceil(1 / target_fpr) - 1, or the last bin is
    reached. It holds for the mixture of all sites; a single site may have more false alarms.
    """
    n = int(counts.sum())
    rank = math.ceil((n + 1) * (1 - Fraction(repr(float(target_fpr)))))  # as `conformal_threshold`
    if rank > n:
        return None
    at = int(np.searchsorted(np.cumsum(counts), rank))
    if at == BINS - 1:
        return None
    return Threshold(float(_EDGES[at + 1]), n, "conformal, summed counts", target_fpr)
