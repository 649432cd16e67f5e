"""How densely normal patches lie around each row of a memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedvad.memory.bank import FloatArray, MemoryBank
from fedvad.memory.neighbours import NeighbourIndex

__all__ = ["density_scale", "holds", "row_gaps"]

# A row with near copies has a gap of almost 0; no row divides a distance by less than this share
# of the usual gap, raised to the exponent.
_SMALLEST = 0.05


def row_gaps(vectors: FloatArray, neighbours: int = 5) -> FloatArray:
    """Mean distance of each memory row to its nearest other rows.

    Parameters
    ----------
    vectors : (m, d) float32 array
        Rows of a memory, m >= 1.
    neighbours : int, default=5
        Number of other rows, at least 1; cut to m - 1.

    Returns
    -------
    (m,) float32 array
        In the units of the descriptors. Equal rows count once; 0 where there is no other row.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.memory.density import row_gaps
    >>> row_gaps(np.array([[0.0], [1.0], [3.0]], np.float32), neighbours=1).tolist()
    [1.0, 1.0, 2.0]

    Source: ours.
    """
    distinct, place = _distinct(vectors)
    if len(distinct) < 2:
        return np.zeros(len(vectors), np.float32)
    # the fast search saves no time for this many neighbours
    distances, _ = NeighbourIndex(distinct).query(distinct, neighbours + 1)
    gaps: FloatArray = distances[:, 1:].mean(1)[place]  # the first is the row itself
    return gaps


def density_scale(gaps: FloatArray, exponent: float) -> FloatArray:
    """Factor (m,) by which the distance to each row is divided: (gap / median gap) ** exponent.

    Where normal patches lie densely, a small distance already means something; where they are
    sparse, normal patches are far from one another, too. The median keeps scores in the units of
    the descriptors, so that thresholds stay readable. 1 everywhere when the median is 0.

    Parameters
    ----------
    gaps : (m,) float32 array
        What `row_gaps` gives.
    exponent : float
        From 0 (no effect) to 1 (distances in units of the gap).

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.memory.density import density_scale
    >>> density_scale(np.array([1.0, 4.0, 16.0], np.float32), 0.5).tolist()
    [0.5, 1.0, 2.0]

    Source: ours; relatives are the local outlier factor (Breunig et al. 2000) and PatchCore's
    re-weighting of the image score.
    """
    middle = float(np.median(gaps)) if len(gaps) else 0.0
    if middle == 0:
        return np.ones(len(gaps), np.float32)
    relative = np.maximum(gaps.astype(np.float64) / middle, _SMALLEST)
    return np.asarray(relative**exponent, dtype=np.float32)


def holds(bank: MemoryBank, other: MemoryBank) -> bool:
    """Whether every vector of `other` is a vector of `bank`, to the bit."""
    both = np.concatenate([bank.vectors, other.vectors])
    return len(_distinct(both)[0]) == len(_distinct(bank.vectors)[0])


def _distinct(vectors: FloatArray) -> tuple[FloatArray, npt.NDArray[np.intp]]:
    """The distinct rows, in order of their first appearance, and where each row is among them.

    The union of a global memory and a site's own holds rows twice, which makes nothing denser.
    """
    rows = np.ascontiguousarray(vectors)
    as_bytes = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize)))[:, 0]
    _, first, inverse = np.unique(as_bytes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rows[first[order]], rank[inverse.reshape(-1)]
