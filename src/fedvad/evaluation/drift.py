"""Whether a site's normal images still score as they did when its threshold was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Drift", "drift"]

_FEWEST = 8
# both are needed: with many images the smallest shift is certain, with few a large one is chance
_CERTAIN, _SHIFT = 1e-3, 1.1


@dataclass(frozen=True)
class Drift:
    """How normal scores moved since a threshold was found.

    Attributes
    ----------
    ratio : float
        Median of the scores now over their median then.
    p : float
        Of the two-sided Kolmogorov-Smirnov test of no drift, in [0, 1].
    n : int
        Number of scores now.
    drifted : bool
        Whether p is below 0.001 and the median moved by more than a tenth.
    """

    ratio: float
    p: float
    n: int
    drifted: bool


def drift(calibration: Sequence[float], normal_scores: npt.NDArray[np.float64]) -> Drift | None:
    """Compare scores of normal images with those of the calibration.

    Parameters
    ----------
    calibration : (m,) floats
        Scores of held-out normal images when the threshold was found.
    normal_scores : (n,) float array
        Scores of normal images now.

    Returns
    -------
    Drift or None
        None below eight scores of either.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.drift import drift
    >>> then = np.linspace(0.9, 1.1, 30)
    >>> drift(then, then).drifted, drift(then, 1.5 * then).drifted
    (False, True)

    Source: two-sample Kolmogorov-Smirnov test (scipy); the rule is ours.
    """
    from scipy.stats import ks_2samp

    if min(len(calibration), len(normal_scores)) < _FEWEST:
        return None
    ratio = float(np.median(normal_scores) / max(float(np.median(calibration)), 1e-12))
    p = float(ks_2samp(calibration, normal_scores).pvalue)
    moved = not 1 / _SHIFT <= ratio <= _SHIFT
    return Drift(ratio, p, len(normal_scores), bool(p < _CERTAIN and moved))
