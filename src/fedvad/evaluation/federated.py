"""Thresholds of sites that learn from one another how normal scores spread.

One site's few normal scores say where its scores lie, but little about how far they reach. All
sites together know more: how widely scores usually spread, how heavy their upper tail is, and how
high normal images of other sites score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from fedvad.evaluation.metrics import check_scores
from fedvad.evaluation.thresholds import (
    MIN_SCORES,
    Threshold,
    check_target,
    conformal_rank,
    conformal_threshold,
    lifted,
)

__all__ = ["Prior", "federated_thresholds", "residuals", "spread_prior"]

Array = npt.NDArray[np.float64]
# degrees of freedom of Student's t, whose tail stands for the one that too few scores do not show
_TAIL = 5
_LEAST_VARIANCE = 1e-12  # equal scores have no logarithm of their variance


@dataclass(frozen=True)
class Prior:
    """How the variance of a site's scores varies over sites.

    Parameters
    ----------
    variance : float
        The variance that sites are drawn towards.
    strength : float
        It counts as this many scores with that variance: infinite where all sites spread alike, 0
        for one site.

    Examples
    --------
    >>> from fedvad.evaluation.federated import Prior
    >>> Prior(variance=1.0, strength=10).shrunk([2.0], freedom=10).tolist()
    [1.5]
    """

    variance: float
    strength: float

    def shrunk(self, variance: npt.ArrayLike, freedom: float) -> Array:
        """Site variances of `freedom` degrees each, drawn towards that of all sites."""
        own = np.asarray(variance, np.float64)
        if math.isinf(self.strength):
            return np.full_like(own, self.variance)
        together = self.strength * self.variance + freedom * own
        shrunk: Array = together / (self.strength + freedom)
        return shrunk


def federated_thresholds(
    normal_scores: Mapping[str, ArrayLike], target_fpr: float
) -> dict[str, Threshold]:
    """Thresholds by site from the held-out normal scores of all sites.

    On the logarithms of the scores (on the scores where one site has negative ones, or a median
    of 0), with m and s the mean of a site's n scores and their standard deviation, shrunk towards
    that of all sites (`spread_prior`), a site's own threshold is m + q s sqrt(1 + 1/n). The factor
    q is common to all sites: the conformal rank among the `residuals` of all sites' scores, more
    than the largest of them where they are too few for a rank, and never below the quantile of
    Student's t for scores that are normal. If `conformal_threshold` of all scores together is
    higher, the threshold lies half-way between the two: what is normal elsewhere may come here.

    Only sums need to leave a site: those of `spread_prior`, then counts of residuals and of scores.

    Parameters
    ----------
    normal_scores : mapping of str to (n,) float array
        By name of the site.
    target_fpr : float
        Wanted false-alarm rate, in [1e-6, 0.5].

    Returns
    -------
    dict of str to Threshold
        With method "federated", or "federated-tail" where there are too few residuals for a rank.
        Sites with fewer than three scores get none; one site alone gets its `conformal_threshold`.

    Raises
    ------
    ConfigError
        For `target_fpr` outside [1e-6, 0.5].
    DataError
        For NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.federated import federated_thresholds
    >>> scores = {"alder": np.linspace(0.8, 1.2, 60), "birch": np.linspace(1.6, 2.4, 60)}
    >>> found = federated_thresholds(scores, 0.01)
    >>> {name: (one.method, round(one.value, 2)) for name, one in found.items()}
    {'alder': ('federated', 1.78), 'birch': ('federated', 2.63)}

    Source: ours; the shrinkage is Smyth's (Stat. Appl. Genet. Mol. Biol. 2004).
    """
    check_target(target_fpr)
    # ascending: the sums must not depend, in their last bits, on who adds them up
    checked = {
        name: np.sort(check_scores(own).astype(np.float64)) for name, own in normal_scores.items()
    }
    given = {name: own for name, own in checked.items() if own.size >= MIN_SCORES}
    if len(given) < 2:
        return {name: conformal_threshold(own, target_fpr) for name, own in given.items()}
    logs = all(own.min() >= 0 and np.median(own) > 0 for own in given.values())
    values = {name: np.log(lifted(own)) if logs else own for name, own in given.items()}
    prior = spread_prior(list(values.values()))
    pooled = np.sort(np.concatenate([residuals(own, prior) for own in values.values()]))
    rank = conformal_rank(pooled.size, target_fpr)
    factor = float(pooled[rank - 1]) if rank <= pooled.size else _beyond(pooled, target_fpr)
    together = conformal_threshold(np.concatenate(list(given.values())), target_fpr).value
    common = math.log(max(together, np.finfo(np.float64).tiny)) if logs else together
    method = "federated" if rank <= pooled.size else "federated-tail"
    found = {}
    for name, own in values.items():
        limit = _upper(own, prior, factor, target_fpr)
        limit = max(limit, (limit + common) / 2)
        if logs:
            limit = math.exp(min(limit, math.log(np.finfo(np.float64).max)))
        scores = tuple(np.sort(given[name]).tolist())
        found[name] = Threshold(limit, own.size, method, float(target_fpr), scores)
    return found


def spread_prior(samples: list[Array]) -> Prior:
    """The prior of the variances of samples, by the moments of their logarithms.

    Of each sample only n and the variance are needed, in three sums: the number of samples, and
    the sums of x and x squared, x the centred logarithm of the variance.

    Parameters
    ----------
    samples : list of (n,) float64 arrays
        Scores of each site, n >= 2.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.federated import spread_prior
    >>> spread_prior([np.array([0.0, 2.0]), np.array([5.0, 7.0])])
    Prior(variance=2.0, strength=inf)

    Source: Smyth 2004.
    """
    freedom = np.array([own.size - 1 for own in samples], np.float64)
    variance = np.array([max(float(own.var(ddof=1)), _LEAST_VARIANCE) for own in samples])
    if len(samples) < 2:
        return Prior(float(variance[0]), 0.0)
    from scipy.special import digamma, polygamma

    x = np.log(variance) - digamma(freedom / 2) + np.log(freedom / 2)
    excess = float(x.var(ddof=1) - polygamma(1, freedom / 2).mean())
    if excess <= 0:  # no more different than chance makes them
        return Prior(float((freedom * variance).sum() / freedom.sum()), math.inf)
    strength = 2 * _trigamma_inverse(excess)
    mean = float(x.mean()) + float(digamma(strength / 2)) - math.log(strength / 2)
    return Prior(math.exp(mean), strength)


def residuals(sample: Array, prior: Prior) -> Array:
    """How far each value lies above what the others predict, in standard errors.

    Mean and variance are those of the other n - 1 values, so that a value far out is not hidden by
    the spread that it causes itself.

    Parameters
    ----------
    sample : (n,) float64 array
        Scores of a site, n >= 3.
    prior : Prior
        What the variance is drawn towards.

    Examples
    --------
    >>> import math
    >>> import numpy as np
    >>> from fedvad.evaluation.federated import Prior, residuals
    >>> residuals(np.array([-1.0, 0.0, 1.0]), Prior(1.0, math.inf)).round(2).tolist()
    [-1.22, 0.0, 1.22]

    Source: ours.
    """
    n = sample.size
    off = sample - sample.mean()
    others = (np.sum(off**2) - off**2 * n / (n - 1)) / (n - 2)
    variance = prior.shrunk(np.maximum(others, _LEAST_VARIANCE), n - 2)
    found: Array = off * n / (n - 1) / np.sqrt(variance * (1 + 1 / (n - 1)))
    return found


def _beyond(residuals: Array, target_fpr: float) -> float:
    """What lies as far beyond the largest of n ascending residuals as in a heavy-tailed sample."""
    from scipy.special import stdtrit

    n = residuals.size
    further = stdtrit(_TAIL, 1 - target_fpr) / stdtrit(_TAIL, n / (n + 1))
    return float(residuals[-1]) * float(further)


def _upper(sample: Array, prior: Prior, factor: float, target_fpr: float) -> float:
    from scipy.special import ndtri, stdtrit

    n = sample.size
    freedom = n - 1 + prior.strength
    normal = ndtri(1 - target_fpr) if math.isinf(freedom) else stdtrit(freedom, 1 - target_fpr)
    variance = float(prior.shrunk(max(float(sample.var(ddof=1)), _LEAST_VARIANCE), n - 1))
    return float(sample.mean()) + max(factor, float(normal)) * math.sqrt(variance * (1 + 1 / n))


def _trigamma_inverse(value: float) -> float:
    """x > 0 with trigamma(x) = value > 0, by Newton's method on 1 / trigamma (Smyth 2004)."""
    from scipy.special import polygamma

    x = 0.5 + 1 / value
    for _ in range(50):
        at = float(polygamma(1, x))
        step = at * (1 - at / value) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-9 * x:
            break
    return x
