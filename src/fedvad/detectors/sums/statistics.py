"""What an image adds to the sums: its mean and its scatter, each of bounded length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedvad.memory.bank import FloatArray

Array = npt.NDArray[np.float64]
_TINY = 1e-6
# of a scatter's length, as a share of the mean trace: chosen on hazelnuts under six lights
_BOUND = 0.2
_LEAST_TRACE = 0.05


@dataclass(frozen=True, eq=False)
class Space:
    """The public space in which patches are described; it depends on no image.

    A descriptor is divided by its length and projected; on average it then has length 1.

    Parameters
    ----------
    projection : (dim, k) float32 array
        Orthogonal columns.
    grid : int, default=1
        An image is divided into grid x grid parts, each with sums of its own; 1 is the whole.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.detectors.sums.statistics import Space
    >>> space = Space.of(dim=6, dimensions=4)
    >>> points, cells = space.points(np.ones((2, 3, 6), np.float32))
    >>> points.shape, cells.tolist()
    ((6, 4), [0, 0, 0, 0, 0, 0])
    """

    projection: FloatArray
    grid: int = 1

    @classmethod
    def of(cls, dim: int, dimensions: int, grid: int = 1, seed: int = 0) -> Space:
        """A random projection from `dim` to at most `dimensions`, by the seed of the federation."""
        size = min(dim, dimensions)
        # the stream of RandomState is frozen: the same values in every version of NumPy
        drawn = np.random.RandomState([seed, dim]).standard_normal((dim, size))
        axes, upper = np.linalg.qr(drawn)
        axes *= np.sign(np.diag(upper))  # a convention of the library, no fact of the matrix
        return cls((axes * np.sqrt(dim / size)).astype(np.float32), grid)

    @property
    def size(self) -> int:
        """Numbers that describe a patch."""
        return int(self.projection.shape[1])

    @property
    def cells(self) -> int:
        """Parts of an image with sums of their own."""
        return self.grid**2

    def points(self, descriptors: npt.NDArray[np.floating]) -> tuple[Array, npt.NDArray[np.int64]]:
        """Projected patches (n, k) of an image's (h, w, dim) descriptors, and their parts (n,).

        Patches of NaN, outside the region of interest, are omitted.
        """
        height, width = descriptors.shape[:2]
        rows, columns = (np.arange(n) * self.grid // n for n in (height, width))
        cells = rows[:, None] * self.grid + columns
        inside = ~np.isnan(descriptors[:, :, 0])
        return self.project(descriptors[inside]), cells[inside]

    def project(self, patches: npt.NDArray[np.floating]) -> Array:
        """(n, k) of (n, dim) patches."""
        lengths = np.linalg.norm(patches.astype(np.float32), axis=1, keepdims=True)
        projected: Array = (patches / np.maximum(lengths, _TINY) @ self.projection).astype(
            np.float64
        )
        return projected


def clipped(values: Array, bound: float) -> Array:
    """The array, scaled down to the Euclidean length `bound` where it is longer."""
    length = float(np.linalg.norm(values))
    return values if length <= bound else values * (bound / length)


def image_mean(points: Array, cells: npt.NDArray[np.int64], space: Space) -> Array:
    """(g * g, k) mean patch of each part of an image, over g, of length at most 1.

    One image in place of another changes a sum of these by at most 2, the diameter of the ball.
    """
    found = np.zeros((space.cells, space.size))
    for cell in range(space.cells):
        own = points[cells == cell]
        if len(own):
            found[cell] = own.mean(axis=0)
    return clipped(found / space.grid, 1.0)


def image_scatter(
    points: Array, cells: npt.NDArray[np.int64], space: Space, mean: Array, bound: float
) -> Array:
    """Upper triangles (g * g, k (k + 1) / 2) of each part's mean outer product about `mean`, over
    g, of length at most `bound`; entries off the diagonal are multiplied by the root of 2, so that
    lengths are those of the whole matrices.

    mean: (g * g, k). One image in place of another changes a sum of these by at most sqrt(2)
    `bound`: the matrices A and B of two images have no negative eigenvalue, so <A, B> >= 0 and
    |A - B|^2 <= |A|^2 + |B|^2.
    """
    above, weights = _triangle(space.size)
    found = np.zeros((space.cells, len(weights)))
    for cell in range(space.cells):
        own = points[cells == cell] - mean[cell]
        if len(own):
            found[cell] = (own.T @ own)[above] * (weights / len(own))
    return clipped(found / space.grid, bound)


def scatter_bound(mean: Array, noise: float = 0.0) -> float:
    """The bound of `image_scatter`, which looks at no image: patches have length 1 on average, so
    that 1 less the squared length of their mean is the trace of their covariance.

    mean: (g * g, k) average of `image_mean`. noise: deviation of the noise in its entries.
    """
    trace = 1 - float(np.sum(mean**2)) + mean.size * noise**2
    return _BOUND * min(1.0, max(trace, _LEAST_TRACE))


def unpacked_scatter(triangles: Array, size: int) -> Array:
    """(c, k, k) symmetric matrices of their (c, k (k + 1) / 2) triangles from `image_scatter`."""
    above, weights = _triangle(size)
    full = np.zeros((len(triangles), size, size))
    full[:, above[0], above[1]] = triangles / weights
    full[:, above[1], above[0]] = triangles / weights
    return full


def _triangle(size: int) -> tuple[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]], Array]:
    rows, columns = np.triu_indices(size)
    return (rows, columns), np.where(rows == columns, 1.0, np.sqrt(2.0))
