"""What a threshold says about one score: the outcome, and whether it is a close call."""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["BORDER", "Outcome", "is_borderline", "outcome"]

Outcome = Literal["caught", "missed", "false alarm", "passed", "not judged"]
BORDER = 0.1  # share of the threshold; those of resampled calibration images spread about as far


def outcome(label: int, score: float, threshold: float | None) -> Outcome:
    """What became of an image of this label (0 normal, 1 anomalous).

    "caught" or "false alarm" where score > threshold, else "missed" or "passed"; "not judged"
    without a finite threshold.

    Examples
    --------
    >>> outcome(1, 1.2, 1.0), outcome(0, 1.2, 1.0), outcome(0, 0.8, None)
    ('caught', 'false alarm', 'not judged')
    """
    if threshold is None or not math.isfinite(threshold):
        return "not judged"
    if score > threshold:
        return "caught" if label else "false alarm"
    return "missed" if label else "passed"


def is_borderline(score: float, threshold: float | None) -> bool:
    """Whether a score lies within a tenth of its threshold, above or below.

    Such an image is on neither side for certain: show it as "borderline", never as plainly normal.
    Without a positive, finite threshold nothing is borderline. Source: ours (`docs/thresholds.md`).

    Examples
    --------
    >>> is_borderline(0.93, 1.0), is_borderline(1.05, 1.0), is_borderline(0.5, 1.0)
    (True, True, False)
    """
    if threshold is None or not 0 < threshold < math.inf:
        return False
    return abs(score - threshold) <= BORDER * threshold
