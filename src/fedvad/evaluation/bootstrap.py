"""Is detector A better than B on the same images? A paired, stratified bootstrap of the AUROC.

Normal and anomalous images are drawn with replacement within their class, the same draw for both
detectors, so that the luck of the test set cancels. The AUROC is bilinear in how often each
normal and each anomalous image is drawn: all resamples together are one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvad.errors import ConfigError, DataError
from fedvad.evaluation.metrics import Bools, Floats, check_labelled

__all__ = ["Interval", "mean_paired_gain", "mean_paired_gain_of_runs", "paired_gain"]

_BLOCK = 2**22  # entries of the pair matrix held at once: 32 MB


@dataclass(frozen=True)
class Interval:
    """A gain in AUROC (a minus b) with its bootstrap interval: low <= gain <= high."""

    gain: float
    low: float
    high: float


def paired_gain(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    labels: ArrayLike,
    *,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Gain AUROC(a) - AUROC(b) on the same images, with a percentile interval.

    Parameters
    ----------
    scores_a, scores_b : (images,) float arrays
        Scores of the two detectors; higher is more anomalous.
    labels : (images,) array of 0 and 1
        1 for anomalous images; both classes must be there.
    n : int, default=1000
        Number of resamples, at least 1.
    seed : int, default=0
        Of the resamples: one seed, one answer.
    level : float, default=0.95
        Of the interval, in (0, 1). It is widened to contain the gain where a skewed bootstrap would
        leave it out.

    Raises
    ------
    DataError
        For unfit arrays or a missing class.
    ConfigError
        For a bad `n` or `level`.

    Examples
    --------
    >>> from fedvad.evaluation.bootstrap import paired_gain
    >>> labels = [0, 0, 0, 1, 1, 1]
    >>> found = paired_gain([1, 2, 3, 4, 5, 6], [1, 2, 5, 4, 3, 6], labels, n=200)
    >>> round(found.gain, 3), found.low >= 0, round(found.high, 2)
    (0.222, True, 0.67)

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    return mean_paired_gain([(scores_a, scores_b, labels)], n=n, seed=seed, level=level)


def mean_paired_gain(
    per_site: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean over sites of AUROC(a) - AUROC(b), with a percentile interval.

    Every site has equal weight and is resampled independently: the interval speaks of these sites,
    not of new ones.

    Parameters
    ----------
    per_site : sequence of (scores_a, scores_b, labels)
        Each (images of the site,), as for `paired_gain`.
    n, seed, level
        As for `paired_gain`.

    Raises
    ------
    DataError
        For unfit arrays or a missing class.
    ConfigError
        For a bad `n` or `level`.

    Examples
    --------
    >>> from fedvad.evaluation.bootstrap import mean_paired_gain
    >>> mean_paired_gain([([1, 2], [2, 1], [0, 1]), ([1, 2], [1, 2], [0, 1])], n=10)
    Interval(gain=0.5, low=0.5, high=0.5)
    """
    return mean_paired_gain_of_runs([per_site], n=n, seed=seed, level=level)


def mean_paired_gain_of_runs(
    runs: Sequence[Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]]],
    *,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """`mean_paired_gain` averaged over runs (seeds) on the same images of the same sites.

    All runs see the same draws: more seeds average out a method's own randomness, but do not
    narrow the interval as more test images would.

    Parameters
    ----------
    runs : sequence of sequences of (scores_a, scores_b, labels)
        For each run what `mean_paired_gain` takes; at least one.
    n, seed, level
        As for `paired_gain`.

    Raises
    ------
    DataError
        For unfit arrays, a missing class, or no run.
    ConfigError
        For a bad `n` or `level`.

    Examples
    --------
    >>> from fedvad.evaluation.bootstrap import mean_paired_gain_of_runs
    >>> better, level = ([1, 2], [2, 1], [0, 1]), ([1, 2], [1, 2], [0, 1])
    >>> mean_paired_gain_of_runs([[better], [level]], n=10).gain
    0.5

    Source: ours.
    """
    if n < 1:
        raise ConfigError(f"n is {n}; the bootstrap needs at least 1 resample, better 1000")
    if not 0 < level < 1:
        raise ConfigError(f"level is {level}; it must lie in (0, 1), for example 0.95")
    parts = [_gains(per_site, n, seed) for per_site in runs]
    if not parts:
        raise DataError("no run to compare: give at least one")
    gain = sum(one for one, _ in parts) / len(parts)
    gains = np.mean([many for _, many in parts], axis=0)
    low, high = np.quantile(gains, [(1 - level) / 2, (1 + level) / 2])
    return Interval(gain=gain, low=min(gain, float(low)), high=max(gain, float(high)))


def _gains(
    per_site: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]], n: int, seed: int
) -> tuple[float, NDArray[np.float64]]:
    """Mean gain over sites, and the same in n resamples (n,)."""
    if not per_site:
        raise DataError("no site to compare: give at least one (scores_a, scores_b, labels)")
    gain, gains = 0.0, np.zeros(n)
    for index, (scores_a, scores_b, labels) in enumerate(per_site):
        a, anomalous = check_labelled(scores_a, labels)
        b, _ = check_labelled(scores_b, labels)
        if not anomalous.any() or anomalous.all():
            raise DataError(f"site {index} has images of one class only, so no AUROC: leave it out")
        rng = np.random.default_rng([seed, index])
        one, many = _resampled(a.astype(np.float64), b.astype(np.float64), anomalous, n, rng)
        gain += one / len(per_site)
        gains += many / len(per_site)
    return gain, gains


def _resampled(
    a: Floats, b: Floats, anomalous: Bools, n: int, rng: np.random.Generator
) -> tuple[float, NDArray[np.float64]]:
    """AUROC(a) - AUROC(b), and the same in n resamples (n,)."""
    hit, miss = np.flatnonzero(anomalous), np.flatnonzero(~anomalous)
    n_pairs = hit.size * miss.size
    drawn_hit, drawn_miss = _draws(hit.size, n, rng), _draws(miss.size, n, rng)
    total, totals = 0.0, np.zeros(n)
    step = max(1, _BLOCK // miss.size)
    for start in range(0, hit.size, step):  # blocks bound the memory whatever the test set
        rows = hit[start : start + step, None]
        # Sums of whole numbers, halved at the end: equal gains stay equal to the last bit.
        pairs = np.sign(a[rows] - a[miss]) - np.sign(b[rows] - b[miss])
        total += float(pairs.sum())
        totals += np.einsum("ij,ij->i", drawn_hit[:, start : start + step] @ pairs, drawn_miss)
    return total / 2 / n_pairs, totals / 2 / n_pairs


def _draws(size: int, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How often each of `size` images is drawn in each of n resamples: (n, size)."""
    drawn = rng.integers(0, size, size=(n, size)) + size * np.arange(n)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * size).reshape(n, size).astype(np.float64)
