"""RX: how far a pixel lies from the mean spectrum, in units of how spectra vary."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedvad.data.cubes.scene import Cube, check_cube
from fedvad.errors import ConfigError, DataError
from fedvad.spectral.moments import Moments

__all__ = ["LineRx", "line_rx", "mahalanobis", "rx"]

_CHUNK = 1 << 16


def rx(cube: Cube, *, moments: Moments | None = None, ridge: float = 0.0) -> NDArray[np.float64]:
    """Global RX map of a scene.

    Parameters
    ----------
    cube : (h, w, b) float array
        In any unit: the map is the same for any invertible mixture of bands.
    moments : Moments, default=None
        Of the background; None for those of the cube itself. Those of a federation are
        the sum of its sites'.
    ridge : float, default=0.0
        Added to the covariance's diagonal in units of its mean, >= 0. 1e-4 finds more on most
        scenes of the literature, but is not the RX that papers report.

    Returns
    -------
    (h, w) float64 array
        Squared Mahalanobis distances.

    Raises
    ------
    ConfigError
        For a negative ridge.
    DataError
        For an array of another shape or other bands than the moments'.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.spectral.rx import rx
    >>> cube = np.random.default_rng(0).normal(size=(20, 20, 4))
    >>> cube[3, 7] += 9
    >>> [int(i) for i in np.unravel_index(rx(cube).argmax(), (20, 20))]
    [3, 7]

    Source: Reed and Yu 1990, with the covariance of all pixels and 1 / n.
    """
    check_cube(cube)
    moments = Moments.of(cube) if moments is None else moments
    return mahalanobis(cube, moments, ridge=ridge)


def mahalanobis(values: Cube, moments: Moments, *, ridge: float = 0.0) -> NDArray[np.float64]:
    """Squared Mahalanobis distances (...) of spectra (..., b) from `moments`; see `rx`.

    A covariance that no Cholesky factor exists of (constant or repeated bands) is inverted where
    it can be: there the distance counts in the directions in which the background varies.

    >>> square = np.array([[[1.0, 0], [-1, 0], [0, 2], [0, -2]]])
    >>> mahalanobis(square, Moments.of(square)).round(9).tolist()
    [[2.0, 2.0, 2.0, 2.0]]
    """
    if ridge < 0:
        raise ConfigError(f"ridge is {ridge}; it must be at least 0, for example 1e-4")
    bands = values.shape[-1]
    if moments.mean.size != bands:
        raise DataError(
            f"the scene has {bands} bands, the moments {moments.mean.size}: both must have the same"
        )
    covariance = moments.covariance
    covariance[np.diag_indices(bands)] += ridge * np.trace(covariance) / bands
    try:
        whiten = np.linalg.inv(np.linalg.cholesky(covariance))
    except np.linalg.LinAlgError:
        spread, axes = np.linalg.eigh(covariance)
        kept = spread > spread[-1] * bands * np.finfo(np.float64).eps
        whiten = (axes[:, kept] / np.sqrt(spread[kept])).T
    pixels = values.reshape(-1, bands)
    found = np.empty(len(pixels))
    for start in range(0, len(pixels), _CHUNK):
        part = (pixels[start : start + _CHUNK] - moments.mean) @ whiten.T
        found[start : start + _CHUNK] = np.einsum("nb,nb->n", part, part)
    return found.reshape(values.shape[:-1])


class LineRx:
    """RX for a line camera: each line is scored by the lines before it, then joins them.

    Parameters
    ----------
    bands : int
    warm_up : int, default=None
        Pixels to be seen before the first score, more than `bands`; None for 4 x bands. The lines
        of the warm-up are scored together at its end.
    ridge : float, default=1e-6
        See `rx`; a few lines hardly tell the covariance.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.spectral.rx import LineRx
    >>> lines = np.random.default_rng(0).normal(size=(3, 10, 2))
    >>> scan = LineRx(2, warm_up=20)
    >>> [scan.push(line).shape for line in lines]
    [(0, 10), (2, 10), (1, 10)]
    """

    def __init__(self, bands: int, *, warm_up: int | None = None, ridge: float = 1e-6) -> None:
        self.warm_up = 4 * bands if warm_up is None else warm_up
        if self.warm_up <= bands:
            raise ConfigError(f"warm_up is {self.warm_up} pixels; it must exceed the {bands} bands")
        self.moments = Moments.zero(bands)
        self.ridge = ridge
        self._waiting: list[Cube] = []

    def push(self, line: Cube) -> NDArray[np.float64]:
        """Scores (lines, w) that this line (w, b) makes known: none, the warm-up's, or its own."""
        if self.moments.count >= self.warm_up:
            scores = mahalanobis(line[None], self.moments, ridge=self.ridge)
            self.moments += Moments.of(line[None])
            return scores
        self.moments += Moments.of(line[None])
        self._waiting.append(line)
        if self.moments.count < self.warm_up:
            return np.empty((0, len(line)))
        waiting, self._waiting = np.stack(self._waiting), []
        return mahalanobis(waiting, self.moments, ridge=self.ridge)


def line_rx(cube: Cube, *, ridge: float = 1e-6) -> NDArray[np.float64]:
    """The map (h, w) that `LineRx` makes of a scene, row by row.

    Raises `DataError` for a scene of fewer pixels than the warm-up, 4 x bands.

    >>> line_rx(np.random.default_rng(0).normal(size=(6, 10, 2))).shape
    (6, 10)
    """
    check_cube(cube)
    scan = LineRx(cube.shape[2], ridge=ridge)
    scores = np.concatenate([scan.push(line) for line in cube])
    if len(scores) < len(cube):
        raise DataError(f"{cube.shape} are too few pixels for line RX: it takes {scan.warm_up}")
    return scores
