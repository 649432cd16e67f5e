"""Which sites look at the same kind of thing: groups from small one-class summaries.

Sites of unlike products gain nothing from one memory and pay for its rows. Each site sends the
mean and covariance of its normal images in a few random directions, never an image or a support
vector; two sites belong together where each one's normal images look normal to the other.
Source: Nardi, Valerio and Passarella 2022 (arXiv 2209.04184), step 1, with moments instead of
one-class SVMs and connected components instead of greedy modularity, which divides one product
under several lights where few other products take part; both are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError, DataError

FloatArray = npt.NDArray[np.float64]

MIN_IMAGES = 8
TOLERANCE = 0.25  # of a site's images, that may look odd to another of its group
_DIRECTIONS = 32
_SHRINKAGE = 0.2
_QUANTILE = 0.9


@dataclass(frozen=True, eq=False)
class SiteSummary:
    """What a site tells of its normal images.

    Parameters
    ----------
    mean : (k,) float64
        Mean of the projected images.
    precision : (k, k) float64
        Inverse of their shrunk covariance.
    limit : float
        Squared Mahalanobis distance within which nine in ten of the site's own images lie,
        each judged by the half of the images that it is not in.
    n_images : int
        Images behind it, 8 at least.
    """

    mean: FloatArray
    precision: FloatArray
    limit: float
    n_images: int

    @property
    def nbytes(self) -> int:
        """Bytes that a site sends: mean, half of the symmetric matrix, limit and count."""
        k = len(self.mean)
        return 8 * (k + k * (k + 1) // 2 + 2)

    def share_within(self, projected: FloatArray) -> float:
        """Share of (n, k) projected images that look normal to this site."""
        return float(np.mean(_squared(projected, self.mean, self.precision) <= self.limit))


def summarise_site(
    images: npt.NDArray[np.floating], *, seed: int = 0
) -> tuple[SiteSummary, FloatArray]:
    """A site's summary, and its own images in the directions of the summary.

    Parameters
    ----------
    images : (n, d) floating
        Mean descriptor of each normal image.
    seed : int, default=0
        Of the random directions; the same at all sites.

    Raises
    ------
    DataError
        For fewer than 8 images.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.federation.grouping import find_groups, inlier_shares, summarise_site
    >>> rng = np.random.default_rng(0)
    >>> sites = {
    ...     name: summarise_site(mean + rng.normal(size=(40, 100)))
    ...     for name, mean in {"a": 0.0, "b": 0.0, "c": 3.0, "d": 3.0}.items()
    ... }
    >>> find_groups(sorted(sites), inlier_shares(sites))
    [['a', 'b'], ['c', 'd']]
    """
    if len(images) < MIN_IMAGES:
        raise DataError(f"a summary takes {MIN_IMAGES} normal images or more, not {len(images)}")
    d = images.shape[1]
    k = min(_DIRECTIONS, d)
    directions = np.random.default_rng([seed, d]).normal(size=(d, k)) / np.sqrt(k)
    projected = images.astype(np.float64) @ directions
    halves = projected[::2], projected[1::2]
    distances = [
        _squared(held_out, *_moments(seen)) for seen, held_out in (halves, reversed(halves))
    ]
    mean, precision = _moments(projected)
    limit = float(np.quantile(np.concatenate(distances), _QUANTILE))
    return SiteSummary(mean, precision, limit, len(images)), projected


def inlier_shares(sites: Mapping[str, tuple[SiteSummary, FloatArray]]) -> FloatArray:
    """(n, n) share of site i's images that look normal to site j, sites in order of name.

    Row i is computed at site i from the others' summaries: only shares leave it.
    """
    names = sorted(sites)
    return np.array([[sites[j][0].share_within(sites[i][1]) for j in names] for i in names])


def find_groups(
    names: Sequence[str], shares: FloatArray, *, tolerance: float = TOLERANCE
) -> list[list[str]]:
    """Groups of sites connected by mutual acceptance; a site that nobody accepts is alone.

    Parameters
    ----------
    names : n strings
        In the order of `shares`.
    shares : (n, n) float64
        See `inlier_shares`.
    tolerance : float in [0, 1), default=0.25
        Two sites accept each other where at least 1 - tolerance of the share that each finds
        normal among its own images is normal to the other.

    Raises
    ------
    ConfigError
        For a tolerance out of range.
    """
    if not 0 <= tolerance < 1:
        raise ConfigError(f"tolerance must be in [0, 1), not {tolerance}")
    from scipy.sparse.csgraph import connected_components

    accepts = shares >= (1 - tolerance) * np.diag(shares)[:, None]
    count, part = connected_components(accepts & accepts.T, directed=False)
    return sorted(sorted(names[int(i)] for i in np.flatnonzero(part == k)) for k in range(count))


def _moments(projected: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean, and inverse of the covariance shrunk towards a multiple of the identity."""
    covariance = np.cov(projected.T).reshape(projected.shape[1], -1)
    scale = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * scale * np.eye(len(covariance))
    return projected.mean(axis=0), np.linalg.inv(shrunk).astype(np.float64)


def _squared(projected: FloatArray, mean: FloatArray, precision: FloatArray) -> FloatArray:
    away = projected - mean
    squared: FloatArray = np.einsum("ni,ij,nj->n", away, precision, away)
    return squared
