"""Whether a training was long enough, by its loss on normal images that it did not learn from."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

__all__ = ["still_falling"]

_LEAST = 0.05  # a smaller fall is no reason to train longer
_WINDOW = 0.2  # share of the training whose median is taken
_FEWEST = 5  # measurements


def still_falling(at: Sequence[int], losses: Sequence[float]) -> float | None:
    """By what share a loss fell over the second half of a training; None where it has settled.

    at: steps of the measurements, rising. losses: as many, positive. The median of the last fifth
    of the steps is held against that of the fifth before their middle. Less than 5 % counts as
    settled, as do fewer than five measurements, which say nothing. A loss that falls by a power of
    the steps falls as much again when the training is doubled. Ours.

    Examples
    --------
    >>> from fedvad.evaluation.learning import still_falling
    >>> steps = range(1, 101)
    >>> round(still_falling(steps, [step**-0.5 for step in steps]), 2)
    0.33
    >>> still_falling(steps, [0.3 + 0.7 * 0.9**step for step in steps]) is None
    True
    """
    if len(at) < _FEWEST:
        return None
    last = at[-1]

    def around(end: float) -> float:
        begin = end - _WINDOW * last
        inside = [loss for step, loss in zip(at, losses, strict=True) if begin < step <= end]
        nearest = min(range(len(at)), key=lambda i: abs(at[i] - end))
        return median(inside or [losses[nearest]])

    before = around(last / 2)
    fall = 1 - around(last) / before if before > 0 else 0.0
    return fall if fall >= _LEAST else None
