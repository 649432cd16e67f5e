"""Patches of confirmed defects against normal ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedvad.memory.bank import FloatArray
from fedvad.memory.neighbours import NeighbourIndex

__all__ = ["more_like"]


def more_like(defects: FloatArray, known: FloatArray, patches: FloatArray) -> npt.NDArray[np.bool_]:
    """Which (n, d) patches are no farther from one of (k, d) defects than from any known row.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.memory.negatives import more_like
    >>> defects, known, patches = (np.array([[x]], np.float32) for x in (5.0, 0.0, 4.0))
    >>> more_like(defects, known, patches).tolist()
    [True]
    """
    found = np.zeros(len(patches), np.bool_)
    if len(defects) and len(patches):
        to_defects = NeighbourIndex(defects).query(patches)[0][:, 0]
        if not len(known):
            return ~found
        found = to_defects <= NeighbourIndex(known).query(patches)[0][:, 0]
    return found
