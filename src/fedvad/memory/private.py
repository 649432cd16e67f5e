"""Position means under the Gaussian mechanism: one image changes them by a known bound."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError
from fedvad.memory.bank import MemoryBank
from fedvad.memory.reduce import PositionMeans

__all__ = ["PrivatePositionMeans"]


class PrivatePositionMeans(PositionMeans):
    """Mode `position`, with every image clipped and Gaussian noise on the sums.

    An image's (h, w, d) descriptors are scaled down until their root-mean-square patch length is
    at most `clip`, so setting one image to zero moves the sums by at most clip x sqrt(h w) in
    Euclidean length; noise of `noise` times that is added to every value. The number of images is
    taken as public, and the spread, which would need noise of its own, is sent as zero. Grouping
    by position looks at no data, which is why only this mode can give a guarantee.

    Parameters
    ----------
    clip : float
        Largest root-mean-square patch length of an image, > 0, in the units of the descriptors.
    noise : float
        Standard deviation in multiples of what one image can change, >= 0.
    rng : numpy.random.Generator
        Source of the noise; for a guarantee one that nobody can repeat.

    Raises
    ------
    ConfigError
        For a clip <= 0 or a negative noise.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.memory.private import PrivatePositionMeans
    >>> means = PrivatePositionMeans(clip=1.0, noise=0.0, rng=np.random.default_rng())
    >>> means.add(np.full((2, 1, 1, 4), 10.0))
    >>> means.result().vectors.tolist()
    [[0.5, 0.5, 0.5, 0.5]]

    Source: Gaussian mechanism (Dwork & Roth 2014, appendix A); epsilon: `federation/privacy.py`.
    Floating-point attacks (Mironov 2012) are not defended against.
    """

    def __init__(self, *, clip: float, noise: float, rng: np.random.Generator) -> None:
        super().__init__()
        if clip <= 0 or noise < 0:
            raise ConfigError(f"clip > 0 and noise >= 0 are needed, got {clip} and {noise}")
        self.clip = clip
        self.noise = noise
        self._rng = rng

    def add(self, descriptors: npt.NDArray[np.floating]) -> None:
        """Add a batch of (b, h, w, d) descriptors; raises `ConfigError` for another grid."""
        values = descriptors.astype(np.float64)
        squared = (values**2).sum(3).mean((1, 2))
        scale = np.minimum(1.0, self.clip / np.sqrt(np.maximum(squared, 1e-300)))
        super().add(values * scale[:, None, None, None])

    def result(self) -> MemoryBank:
        """The (h * w, d) noisy means, each with weight n_images; raises as `PositionMeans`."""
        exact = super().result()
        images = float(exact.weights[0])
        deviation = self.noise * self.clip * np.sqrt(len(exact)) / images
        noise = self._rng.normal(0.0, deviation, exact.vectors.shape)
        vectors = (exact.vectors + noise).astype(np.float32)
        return MemoryBank(vectors, exact.weights, np.zeros(len(vectors), np.float32))
