"""Mean and covariance of all sites' patches, and what they say of a patch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedvad.detectors.scoring import ScoringConfig, mean_of_highest, smooth
from fedvad.detectors.sums.statistics import (
    Array,
    Space,
    image_mean,
    image_scatter,
    unpacked_scatter,
)
from fedvad.errors import DataError
from fedvad.memory.bank import FloatArray

_RIDGE = 0.01


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Averages over images of `image_mean` and `image_scatter`.

    Parameters
    ----------
    mean : (g * g, k) float64 array
    scatter : (g * g, k (k + 1) / 2) float64 array
    images : int, >= 1
        Number of images behind the scatter.
    bound : float, default=infinity
        Of the length of an image's scatter.
    noise : float, default=0
        Standard deviation of the noise in an entry of `scatter`.
    """

    mean: Array
    scatter: Array
    images: int
    bound: float = math.inf
    noise: float = 0.0

    def without(
        self, images: Sequence[tuple[Array, npt.NDArray[np.int64]]], space: Space
    ) -> Gaussian:
        """The averages of all images but these, of which the points and their cells are given; the
        scatter stays about the mean of all.

        Raises `DataError` where there is no other.
        """
        left = self.images - len(images)
        if left < 1:
            raise DataError("the sums hold no other image: nothing is left without these")
        mean, scatter, about = (
            self.images * self.mean,
            self.images * self.scatter,
            self.centre(space),
        )
        for points, cells in images:
            mean = mean - image_mean(points, cells, space)
            scatter = scatter - image_scatter(points, cells, space, about, self.bound)
        noise = self.noise * self.images / left
        return Gaussian(mean / left, scatter / left, left, self.bound, noise)

    def centre(self, space: Space) -> Array:
        """(g * g, k) mean patch of each part."""
        return self.mean * space.grid

    def roots(self, space: Space) -> Array:
        """(g * g, k, k) matrices after which the mean squared value is a Mahalanobis distance.

        Added to each covariance are a hundredth of its mean eigenvalue and, in multiples of the
        identity, half of how far noise spreads eigenvalues (the edge of Wigner's semicircle is 2 s
        sqrt(k)): directions that drown in noise count less. Ours.
        """
        size = space.size
        found = []
        for covariance in unpacked_scatter(self.scatter * space.grid, size):
            values, axes = np.linalg.eigh(covariance)
            ridge = _RIDGE * max(float(np.trace(covariance)) / size, 1e-9)
            ridge += math.sqrt(size / 2) * self.noise * space.grid
            found.append(axes / np.sqrt((np.maximum(values, 0) + ridge) * size))
        return np.stack(found)


class SumsScorer:
    """Scores descriptors by the distance of each patch from the mean of its part of the image."""

    def __init__(self, space: Space, gaussian: Gaussian, config: ScoringConfig) -> None:
        self.space = space
        self.config = config
        self.centre = gaussian.centre(space)
        self.roots = gaussian.roots(space)

    def score(self, descriptors: npt.NDArray[np.floating]) -> tuple[float, FloatArray]:
        """Image score and smoothed (h, w) map of one image's (h, w, d) descriptors."""
        inside = ~np.isnan(descriptors[:, :, 0])
        points, cells = self.space.points(descriptors)
        if len(points) == 0:
            return math.nan, np.zeros(inside.shape, np.float32)
        values = np.zeros(len(points))
        for cell in range(self.space.cells):
            own = cells == cell
            away = (points[own] - self.centre[cell]) @ self.roots[cell]
            values[own] = np.linalg.norm(away, axis=1)
        raw = np.zeros(inside.shape, np.float32)
        raw[inside] = values
        map_ = smooth(raw, self.config.smooth, inside)
        return mean_of_highest(map_[inside], self.config.count(len(points))), map_
