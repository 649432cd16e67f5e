"""Whether normal images still look and score as they did: tests that may be read at any time.

Each test bets against "nothing changed" and counts what it wins. Without a change the winnings
ever reach 1/alpha with probability alpha at most (Ville's inequality), however long one watches
and however often one looks.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["ALPHA", "SHIFT", "Drift", "RankTest", "ShareTest", "drift"]

ALPHA = 0.01
_FEWEST = 8
SHIFT = 1.1  # of scores: with many images one that is of no use to anybody is certain, too
_MOST = 1e250
_SAMPLE = 10_000  # values that a `RankTest` keeps
_SLOPES = (2, 8)  # of the densities that `RankTest` bets on
_PARTS = (0.25, 0.75)  # of the way to 1, the rates that `ShareTest` bets on


class _Bets:
    """Wealth of several bets, each of which may begin at any image.

    The one that begins at image t has the share 1 / (t (t + 1)) of the stake, so that a change
    after n images must win back n + 1 times the stake, not a power of it. peak: greatest wealth so
    far, from a stake of 1; it may be compared with 1/alpha.
    """

    def __init__(self, bets: int) -> None:
        self.peak, self.n = 1.0, 0
        self._placed = [0.0] * bets

    def pay(self, factors: Sequence[float]) -> None:
        """Multiply each bet by its factor, whose mean without a change is 1 at most."""
        self.n += 1
        begun = 1 / (self.n * (self.n + 1) * len(factors))
        pairs = zip(self._placed, factors, strict=True)
        self._placed = [min((placed + begun) * factor, _MOST) for placed, factor in pairs]
        self.peak = max(self.peak, sum(self._placed) + 1 / (self.n + 1))


class RankTest:
    """Whether values still come from where the first ones came from, to either side.

    Each value is ranked among all before it; without a change the ranks are uniform and
    independent, whatever the distribution, and bets on high or on low ones win nothing. Source:
    conformal test martingales, Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random
    World" (2005), section 7.1; the bets (densities k p^(k-1), k = 2 and 8, from either end) and
    their shares are ours.

    Parameters
    ----------
    reference : sequence of float
        Values of normal images.
    seed : int, default=0
        Of the draws that order equal values.

    Notes
    -----
    Of more than 10 000 values a uniform random sample of that size is kept, so that memory and time
    per value stay as they are. Ranks are then uniform up to the error of the sample.

    Examples
    --------
    >>> from fedvad.evaluation.drift import RankTest
    >>> test = RankTest(range(30))
    >>> for value in (3, 17, 9, 26): test.add(value)
    >>> round(test.peak, 2)
    1.1
    >>> for value in (41, 37, 45, 40, 50, 38): test.add(value)
    >>> test.peak > 100
    True
    """

    def __init__(self, reference: Sequence[float], *, seed: int = 0) -> None:
        self._sorted = sorted(map(float, reference))
        self._n = len(self._sorted)
        self._bets = _Bets(2 * len(_SLOPES))
        self._rng = np.random.default_rng(seed)

    @property
    def peak(self) -> float:
        """Greatest wealth so far; without a change it reaches 1/alpha with probability alpha."""
        return self._bets.peak

    def add(self, value: float) -> None:
        """Take in the value of a further image."""
        low, high = bisect_left(self._sorted, value), bisect_right(self._sorted, value)
        rank = low + (high - low + 1) * self._rng.random()
        p = rank / (len(self._sorted) + 1)
        self._n += 1
        if len(self._sorted) < _SAMPLE or self._rng.random() < _SAMPLE / self._n:
            if len(self._sorted) >= _SAMPLE:
                del self._sorted[int(self._rng.integers(len(self._sorted)))]
            insort(self._sorted, float(value))
        self._bets.pay([k * end ** (k - 1) for k in _SLOPES for end in (p, 1 - p)])


class ShareTest:
    """Whether more images than the share `most` have a property, such as being stopped.

    Parameters
    ----------
    most : float in (0, 1)
        The greatest share that is no change.

    Examples
    --------
    >>> from fedvad.evaluation.drift import ShareTest
    >>> test = ShareTest(0.1)
    >>> for stopped in (False, True, True, True, True): test.add(stopped)
    >>> test.peak > 100
    True

    Source: likelihood ratios as bets (Wald, "Sequential Analysis", 1947); the choice is ours.
    """

    def __init__(self, most: float) -> None:
        rates = [most + (1 - most) * part for part in _PARTS]
        self._won = [rate / most for rate in rates]
        self._lost = [(1 - rate) / (1 - most) for rate in rates]
        self._bets = _Bets(len(rates))

    @property
    def peak(self) -> float:
        """As that of `RankTest`."""
        return self._bets.peak

    def add(self, has: float) -> None:
        """Take in whether a further image has it."""
        self._bets.pay(self._won if has else self._lost)


@dataclass(frozen=True)
class Drift:
    """How normal scores moved since a threshold was found.

    Attributes
    ----------
    ratio : float
        Median of the scores now over their median then.
    p : float
        Of no drift, in [0, 1]: one over the peak of a `RankTest`.
    n : int
        Number of scores now.
    drifted : bool
        Whether p is 0.01 at most and the median moved by more than a tenth.
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

    Source: `RankTest`; that the median must have moved, too, is ours.
    """
    if min(len(calibration), len(normal_scores)) < _FEWEST:
        return None
    ratio = float(np.median(normal_scores) / max(float(np.median(calibration)), 1e-12))
    test = RankTest(calibration)
    for score in normal_scores:
        test.add(score)
    p = 1 / test.peak
    moved = not 1 / SHIFT <= ratio <= SHIFT
    return Drift(ratio, p, len(normal_scores), p <= ALPHA and moved)
