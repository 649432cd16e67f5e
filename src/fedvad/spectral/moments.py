"""Count, mean and scatter of pixels: what sites add up in place of showing one another pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvad.data.cubes.scene import Cube, check_cube
from fedvad.detectors.artefact import read_arrays, write_arrays
from fedvad.errors import ArtefactError, DataError

__all__ = ["Moments"]

_KIND = "spectral moments"
_CHUNK = 1 << 16  # pixels in float64 at a time


@dataclass(frozen=True, eq=False)
class Moments:
    """The first two moments of pixels, of any number of scenes, sites or lines of a scan.

    They add up: the sum of the moments of parts is that of the whole, so that a federation has
    the RX of all its pixels (`rx`) from 8 (1 + b + b²) bytes per site and no pixel.

    Parameters
    ----------
    count : int
        Number of pixels, >= 0.
    mean : (b,) float64 array
    scatter : (b, b) float64 array
        Sum over pixels of the outer product of their distance from the mean.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.spectral.moments import Moments
    >>> one, two = np.random.default_rng(0).random((2, 5, 4, 3))
    >>> both = Moments.of(one) + Moments.of(two)
    >>> both.count, np.allclose(both.covariance, Moments.of(np.stack([*one, *two])).covariance)
    (40, True)

    Source: Chan, Golub and LeVeque 1983 for merging.
    """

    count: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    @classmethod
    def zero(cls, bands: int) -> Moments:
        """Of no pixel: the neutral element of the sum."""
        return cls(0, np.zeros(bands), np.zeros((bands, bands)))

    @classmethod
    def of(cls, cube: Cube) -> Moments:
        """Of all pixels of a cube (h, w, b), in float64 a part at a time."""
        check_cube(cube)
        pixels = cube.reshape(-1, cube.shape[2])
        total = cls.zero(cube.shape[2])
        for start in range(0, len(pixels), _CHUNK):
            part = pixels[start : start + _CHUNK].astype(np.float64)
            mean = part.mean(axis=0)
            part -= mean
            total += cls(len(part), mean, part.T @ part)
        return total

    def __add__(self, other: Moments) -> Moments:
        """Of the pixels of both; raises `DataError` where their bands differ."""
        if self.mean.shape != other.mean.shape:
            raise DataError(
                f"moments of {self.mean.size} and of {other.mean.size} bands cannot be added: "
                "bring the scenes to the same bands"
            )
        count = self.count + other.count
        if count == 0:
            return self
        step = other.mean - self.mean
        share = other.count / count
        between = np.outer(step, step) * (self.count * share)
        return Moments(count, self.mean + share * step, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """(b, b), with 1 / count; raises `DataError` for no pixel."""
        if self.count == 0:
            raise DataError("there are no pixels to take a covariance of")
        return self.scatter / self.count

    def save(self, path: Path) -> None:
        """Write a safetensors file; raises `StorageError` when the disk refuses."""
        values: dict[str, Any] = {"kind": _KIND, "count": self.count}
        write_arrays(path, {"mean": self.mean, "scatter": self.scatter}, values)

    @classmethod
    def load(cls, path: Path) -> Moments:
        """Read what `save` wrote; raises `ArtefactError` for anything else."""
        arrays, values = read_arrays(path)
        count, mean, scatter = values.get("count"), arrays.get("mean"), arrays.get("scatter")
        if (
            values.get("kind") != _KIND
            or not isinstance(count, int)
            or count < 1
            or mean is None
            or scatter is None
            or mean.ndim != 1
            or scatter.shape != (mean.size, mean.size)
            or {mean.dtype, scatter.dtype} != {np.dtype(np.float64)}
            or not (np.isfinite(mean).all() and np.isfinite(scatter).all())
            or not np.allclose(scatter, scatter.T)
        ):
            raise ArtefactError(f"{path} holds no moments of pixels: save them with --save-moments")
        return cls(count, mean, scatter)
