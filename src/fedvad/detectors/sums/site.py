"""A site's part in the sums: what its images add up to, with its share of the noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.sums.gaussian import Gaussian
from fedvad.detectors.sums.statistics import (
    Array,
    Space,
    image_mean,
    image_scatter,
    scatter_bound,
)
from fedvad.errors import ConfigError, FederationError
from fedvad.mergeable import merge_states


@dataclass(frozen=True)
class SumsConfig:
    """What is summed, and how it is protected.

    Parameters
    ----------
    dimensions : int, default=128
        Random directions in which a patch is described, at most as many as it has values.
    grid : int, default=1
        See `Space`.
    epsilon : float, optional
        Privacy loss of one image over the whole training; None adds no noise.
    delta : float in (0, 1), default=1e-5
    secure : bool, default=True
        Whether a site's sums travel under masks, see `federation.masks`.
    """

    dimensions: int = 128
    grid: int = 1
    epsilon: float | None = None
    delta: float = 1e-5
    secure: bool = True


class SumsSite:
    """A site's state between rounds; see `exchange.base.Member`.

    secret: the private half of its keys, b"" before the first round. sent: the sums that have left
    it, each of which may leave once: a second copy under another noise would tell more.

    Parameters
    ----------
    features : NormalFeatures
    space : Space
    rng : numpy.random.Generator, optional
        Source of the noise; for a guarantee one that nobody can repeat, as it is by default.
    """

    spread: float | None = None

    def __init__(
        self,
        features: NormalFeatures,
        space: Space,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.features = features
        self.space = space
        self.secret = b""
        self.sent: set[str] = set()
        self._rng = np.random.default_rng() if rng is None else rng

    @property
    def n_patches(self) -> int:
        """See `Member.n_patches`."""
        height, width, _ = self.features.extractor.grid
        return len(self.features) * height * width

    def mean_sum(self, noise: float) -> Array:
        """(g * g, k) sum of `image_mean` over the images, with noise of that deviation."""
        total = np.zeros((self.space.cells, self.space.size))
        for points, cells in self._points():
            total += image_mean(points, cells, self.space)
        return self._leaving("mean", total, noise)

    def scatter_sum(self, mean: Array, bound: float, noise: float) -> Array:
        """(g * g, k (k + 1) / 2) sum of `image_scatter`, with noise of that deviation."""
        size = self.space.size
        total = np.zeros((self.space.cells, size * (size + 1) // 2))
        for points, cells in self._points():
            total += image_scatter(points, cells, self.space, mean, bound)
        return self._leaving("scatter", total, noise)

    def snapshot(self) -> dict[str, npt.NDArray[Any]]:
        """See `Member.snapshot`; the secret never leaves the site's own folder."""
        sent = [name in self.sent for name in ("mean", "scatter")]
        return {
            "secret": np.frombuffer(self.secret, np.uint8).copy(),
            "sent": np.array(sent, np.uint8),
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `Member.restore`."""
        secret, sent = arrays["secret"], arrays["sent"]
        if secret.dtype != np.uint8 or len(secret) not in (0, 32) or sent.shape != (2,):
            raise ConfigError("what the site kept of its sums is damaged")
        self.secret = secret.tobytes()
        self.sent = {name for name, one in zip(("mean", "scatter"), sent, strict=True) if one}

    def _points(self) -> Iterator[tuple[Array, npt.NDArray[np.int64]]]:
        return (self.space.points(descriptors) for descriptors in self.features)

    def _leaving(self, name: str, total: Array, noise: float) -> Array:
        if name in self.sent:
            raise FederationError(
                f"{self.features.where} has sent its sum ({name}) before and sends none again, "
                "because two noisy sums reveal more than one: begin again in new folders"
            )
        self.sent.add(name)
        return total + self._rng.normal(0.0, noise, total.shape) if noise else total


def gaussian_of(space: Space, *sites: NormalFeatures) -> Gaussian:
    """The averages over the images of one place or several, without noise."""
    images = sum(map(len, sites))
    members = [SumsSite(site, space) for site in sites]
    mean = merge_states(member.mean_sum(0.0) for member in members) / images
    bound, centre = scatter_bound(mean), mean * space.grid
    total = merge_states(member.scatter_sum(centre, bound, 0.0) for member in members)
    return Gaussian(mean, total / images, images, bound)
