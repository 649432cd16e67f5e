"""Figures over all pixels of all images that depend on how rare anomalies are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fedvad.evaluation.metrics import Pairs, check_labelled, flag_counts, gather, pixel_pairs

__all__ = ["PixelFigures", "pixel_figures"]


@dataclass(frozen=True)
class PixelFigures:
    """Figures over all pixels, both in [0, 1].

    Attributes
    ----------
    average_precision : float
        Area under the precision-recall curve.
    oracle_f1 : float
        The best F1 over all thresholds, which reads the test masks.
    """

    average_precision: float
    oracle_f1: float


def pixel_figures(maps: ArrayLike | Pairs, masks: ArrayLike | None = None) -> PixelFigures | None:
    """Average precision and oracle F1 over all pixels of all images.

    Parameters
    ----------
    maps, masks
        As for `pixel_auroc`.

    Returns
    -------
    PixelFigures or None
        None when all pixels are of one class. Peak memory: some 40 bytes per pixel.

    Raises
    ------
    DataError
        As `pixel_auroc`.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.pixels import pixel_figures
    >>> mask = np.array([[[True, False], [False, False]]])
    >>> pixel_figures(mask.astype(float), mask)
    PixelFigures(average_precision=1.0, oracle_f1=1.0)
    """
    values, marks = [], []
    for map_, mask in pixel_pairs(maps, masks):
        values.append(map_.ravel())
        marks.append(mask.ravel())
    scores = gather(values)
    labels = np.concatenate(marks or [np.empty(0, np.bool_)])
    counted = flag_counts(*check_labelled(scores, labels))
    if counted is None:
        return None
    return PixelFigures(counted.average_precision(), counted.f1_max()[0])
