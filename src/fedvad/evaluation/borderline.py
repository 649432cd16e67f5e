"""Which scores lie so close to their threshold that another calibration might have decided else."""

from __future__ import annotations

import math

__all__ = ["BORDER", "is_borderline"]

BORDER = 0.1  # share of the threshold; thresholds of resampled calibration images spread as far


def is_borderline(score: float, threshold: float | None) -> bool:
    """Whether a score lies within a tenth of its threshold, above or below.

    Such an image is on neither side for certain: show it as "borderline", never as a plain normal.
    Without a positive, finite threshold nothing is borderline. Source: ours (`docs/thresholds.md`).

    >>> is_borderline(0.93, 1.0), is_borderline(1.05, 1.0), is_borderline(0.5, 1.0)
    (True, True, False)
    """
    if threshold is None or not 0 < threshold < math.inf:
        return False
    return abs(score - threshold) <= BORDER * threshold
