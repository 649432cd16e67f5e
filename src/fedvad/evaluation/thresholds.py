"""Alarm thresholds from normal images only; an image is flagged when score > threshold.

The scores must come from normal images that the detector was not fitted on: scores of its own
training images are too low, and the alarms would be too many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from fedvad.errors import ConfigError, DataError
from fedvad.evaluation.metrics import Bools, Floats, check_labelled, check_scores

__all__ = [
    "CONFIDENCE",
    "LOWEST_FPR",
    "MIN_SCORES",
    "Promise",
    "Threshold",
    "achieved",
    "check_target",
    "conformal_rank",
    "conformal_threshold",
    "images_needed",
    "lifted",
    "promise",
    "promise_in_words",
]

MIN_SCORES = 3
CONFIDENCE = 0.95
LOWEST_FPR = 1e-6  # what a score so far out means, no number of images could tell


@dataclass(frozen=True)
class Promise:
    """At most the share `rate` of normal images alarms, with this confidence.

    It holds for images like the held-out ones; nobody can promise anything about normal images of
    another kind.

    Attributes
    ----------
    rate, confidence : float
        Both in [0, 1].
    above, images : int
        Held-out normal images that exceed the threshold, and all of them.
    """

    rate: float
    confidence: float
    above: int
    images: int


@dataclass(frozen=True)
class Threshold:
    """A threshold, the number of held-out normal scores behind it, and how it was found.

    Attributes
    ----------
    value : float
        An image is anomalous when its score is above.
    n : int
        Number of held-out normal scores.
    method : str
        "conformal" (no assumption on the shape of the scores), "log-normal-tail" or "normal-tail"
        (too few scores for the wanted rate: a parametric bound, to be reported as such), or one of
        `evaluation.federated`.
    target_fpr : float
        Wanted false-alarm rate, in [1e-6, 0.5].
    scores : tuple of float
        Those n scores, ascending; from them a user sees what another threshold would do.
    """

    value: float
    n: int
    method: str
    target_fpr: float
    scores: tuple[float, ...] = field(default=(), compare=False, repr=False)

    @property
    def promise(self) -> Promise | None:
        """What its own scores can promise; None without them (artefacts of early versions)."""
        above = sum(score > self.value for score in self.scores)
        return promise(len(self.scores), above) if self.scores else None

    @property
    def promised(self) -> str | None:
        """The same as a sentence; None without scores."""
        found = self.promise
        wanted = None if self.method == "given" else self.target_fpr
        return None if found is None else promise_in_words(found, wanted)


def conformal_threshold(normal_scores: ArrayLike, target_fpr: float) -> Threshold:
    """Threshold that a new normal image exceeds with probability at most `target_fpr`.

    With rank k = ceil((n + 1)(1 - target_fpr)):

    * k <= n: the k-th smallest score, method "conformal". If the new image is exchangeable with
      the held-out ones the rate holds whatever the distribution (Vovk et al. 2005; Lei et al.,
      JASA 2018). It is a mean over held-out sets: one small set may give a higher rate.
    * else (1 % needs n >= 99): the upper prediction bound for one future normal observation,
      mean + t(n-1, 1 - target_fpr) * s * sqrt(1 + 1/n), on log scores, method "log-normal-tail"
      (normal prediction limits: Hahn and Meeker, "Statistical Intervals", 1991). Exact if the
      scores are log-normal, cautious for lighter tails, up to about twice the target for heavier
      ones. Scores with negative values or a median of 0 have no useful log: the bound is taken
      on them as they are, method "normal-tail". Never below the largest held-out score, so that
      no known normal image alarms.

    Parameters
    ----------
    normal_scores : (n,) float array
        Of held-out normal images, n >= 3.
    target_fpr : float
        Wanted false-alarm rate, in [1e-6, 0.5].

    Raises
    ------
    ConfigError
        For `target_fpr` outside [1e-6, 0.5].
    DataError
        For n < 3, NaN or infinity.

    Examples
    --------
    >>> from fedvad.evaluation.thresholds import conformal_threshold
    >>> conformal_threshold(range(1, 101), 0.05)
    Threshold(value=96.0, n=100, method='conformal', target_fpr=0.05)
    >>> conformal_threshold(range(1, 11), 0.05).method
    'log-normal-tail'
    """
    check_target(target_fpr)
    scores = check_scores(normal_scores).astype(np.float64)
    if scores.size < MIN_SCORES:
        raise DataError(
            f"{scores.size} held-out normal images are too few for a threshold: hold out at least "
            "3, better 25, or set the threshold by hand"
        )
    rank = conformal_rank(scores.size, target_fpr)
    if rank <= scores.size:
        value, method = float(np.partition(scores, rank - 1)[rank - 1]), "conformal"
    else:
        value, method = _tail_bound(scores, target_fpr)
    return Threshold(
        value=value,
        n=scores.size,
        method=method,
        target_fpr=float(target_fpr),
        scores=tuple(np.sort(scores).tolist()),
    )


def check_target(target_fpr: float) -> None:
    """Raise ConfigError for a wanted false-alarm rate outside [1e-6, 0.5]."""
    if not LOWEST_FPR <= target_fpr <= 0.5:
        raise ConfigError(
            f"target_fpr is {target_fpr}; it must lie in [{LOWEST_FPR:g}, 0.5], for example 0.01"
        )


def conformal_rank(n: int, target_fpr: float) -> int:
    """The rank, from 1, of the threshold: ceil((n + 1)(1 - target_fpr)); n + 1 if n are too few.

    Examples
    --------
    >>> from fedvad.evaluation.thresholds import conformal_rank
    >>> conformal_rank(99, 0.01), conformal_rank(98, 0.01)
    (99, 99)
    """
    # As written in decimal: in floats 100 * (1 - 0.29) lands above 71 and would cost a rank.
    return math.ceil((n + 1) * (1 - Fraction(repr(float(target_fpr)))))


def promise(images: int, above: int = 0, confidence: float = CONFIDENCE) -> Promise:
    """What can be promised when some of the held-out normal images exceed a threshold.

    The upper Clopper-Pearson limit. It is exact for a threshold of a fixed rank among the scores,
    where it is the beta quantile of order statistics, and cautious above the highest.

    Parameters
    ----------
    images : int
        Held-out normal images, at least 0.
    above : int, default=0
        Those of them that exceed the threshold, from 0 to `images`.
    confidence : float, default=0.95
        In (0, 1).

    Raises
    ------
    ConfigError
        For a confidence outside (0, 1), or counts that contradict each other.

    Examples
    --------
    >>> from fedvad.evaluation.thresholds import promise
    >>> round(promise(24).rate, 3), round(promise(299).rate, 3)
    (0.117, 0.01)
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}; it must lie in (0, 1), for example 0.95")
    if not 0 <= above <= images:
        raise ConfigError(f"{above} of {images} images cannot exceed a threshold")
    if above == images:
        return Promise(1.0, confidence, above, images)
    from scipy.special import betaincinv

    rate = float(betaincinv(above + 1, images - above, confidence))
    return Promise(rate, confidence, above, images)


def images_needed(target_fpr: float, confidence: float | None = None) -> int:
    """Number of normal images from which a rate can be promised, none of them above the threshold.

    Parameters
    ----------
    target_fpr : float
        Wanted false-alarm rate, in [1e-6, 0.5].
    confidence : float, default=None
        In (0, 1); None promises the rate on average.

    Raises
    ------
    ConfigError
        For a rate outside [1e-6, 0.5].

    Examples
    --------
    >>> from fedvad.evaluation.thresholds import images_needed
    >>> images_needed(0.01), images_needed(0.01, 0.95), images_needed(0.05)
    (99, 299, 19)
    """
    check_target(target_fpr)
    if confidence is None:
        return math.ceil(1 / Fraction(repr(float(target_fpr)))) - 1
    return math.ceil(math.log1p(-confidence) / math.log1p(-target_fpr))


def promise_in_words(found: Promise, target_fpr: float | None = None) -> str:
    """A sentence for those who have to live with the alarms.

    It ends with what the wanted rate would take, where one is given that is not promised.

    Examples
    --------
    >>> from fedvad.evaluation.thresholds import promise, promise_in_words
    >>> promise_in_words(promise(299), 0.01)
    '299 normal images promise at most 0.997 % false alarms with 95 % confidence.'
    """
    sure = f"with {found.confidence:.0%} confidence".replace("%", " %")
    text = (
        f"{found.images} normal images promise at most {_percent(found.rate)} false alarms {sure}"
    )
    if target_fpr is None or found.rate <= target_fpr:
        return text + "."
    return (
        f"{text}; to promise {_percent(target_fpr)} takes {images_needed(target_fpr)} images on "
        f"average, {images_needed(target_fpr, found.confidence)} {sure}."
    )


def _percent(rate: float) -> str:
    return f"{100 * rate:.3g} %"


def achieved(
    scores: ArrayLike, labels: ArrayLike, threshold: Threshold | float
) -> tuple[float | None, float | None]:
    """False-alarm rate and recall of score > threshold on labelled images.

    Parameters
    ----------
    scores : (n,) float array
    labels : (n,) array of 0 and 1
        1 for anomalous images.
    threshold : Threshold or float

    Returns
    -------
    (float or None, float or None)
        Both in [0, 1]; None when the class is absent.

    Raises
    ------
    DataError
        For NaN or infinite scores, unequal lengths, or labels other than 0 and 1.

    Examples
    --------
    >>> from fedvad.evaluation.thresholds import achieved
    >>> achieved([1, 2, 3, 4], [0, 0, 1, 1], 3)
    (0.0, 0.5)
    """
    values, anomalous = check_labelled(scores, labels)
    limit = threshold.value if isinstance(threshold, Threshold) else float(threshold)
    # In float64: numpy would round the limit to the precision of float32 scores before comparing.
    flagged = values.astype(np.float64) > limit
    return _share(flagged[~anomalous]), _share(flagged[anomalous])


def _tail_bound(scores: Floats, target_fpr: float) -> tuple[float, str]:
    median, largest = float(np.median(scores)), float(scores.max())
    if scores.min() < 0 or median <= 0:
        return max(_prediction_bound(scores, target_fpr), largest), "normal-tail"
    bound = _prediction_bound(np.log(lifted(scores)), target_fpr)
    value = math.exp(min(bound, math.log(np.finfo(np.float64).max)))
    return max(value, largest), "log-normal-tail"


def lifted(scores: Floats) -> Floats:
    """Scores (n,) with a positive median, none below a tenth of it, so that logs stay small.

    A near-copy of a training image scores near 0. Its log would stretch the spread until nothing
    alarms any more (25 scores around 1 and one of 1e-6: threshold 650).
    """
    floor = float(np.median(scores)) / 10
    return np.maximum(scores, floor)


def _prediction_bound(sample: Floats, target_fpr: float) -> float:
    from scipy.special import stdtrit

    n = sample.size
    t = float(stdtrit(n - 1, 1 - target_fpr))
    return float(sample.mean()) + t * float(sample.std(ddof=1)) * math.sqrt(1 + 1 / n)


def _share(flagged: Bools) -> float | None:
    return float(flagged.mean()) if flagged.size else None
