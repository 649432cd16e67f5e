"""Robust PCA: the background as a low-rank matrix, anomalies as what is sparse beside it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedvad.data.cubes.scene import Cube, Norm, normalised
from fedvad.errors import ConfigError
from fedvad.spectral.rx import rx

__all__ = ["robust_pca", "rpca", "shrunk", "shrunk_rank"]

_GROWTH = 1.5
_START = 1.25  # first penalty, over the greatest singular value


def rpca(
    cube: Cube,
    *,
    score: Literal["norm", "rx"] = "norm",
    norm: Norm = "global_minmax",
    steps: int = 200,
) -> NDArray[np.float64]:
    """Map of the sparse part that robust PCA splits off a scene.

    Parameters
    ----------
    cube : (h, w, b) float array
    score : {"norm", "rx"}, default="norm"
        Euclidean norm of a pixel's sparse part, or the RX of the sparse parts (RPCA-RX).
    norm : default="global_minmax"
        See `normalised`.
    steps : int, default=200
        At most.

    Returns
    -------
    (h, w) float64 array

    Raises
    ------
    ConfigError, DataError
        For options out of range; for an array of another shape.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.spectral.rpca import rpca
    >>> rng = np.random.default_rng(0)
    >>> cube = rng.random((12, 12, 2)) @ rng.random((2, 30))
    >>> cube[3, 7, 5] += 1
    >>> [int(i) for i in np.unravel_index(rpca(cube).argmax(), (12, 12))]
    [3, 7]

    Source: Candès et al. 2011; solved as by Lin, Chen and Ma 2010.
    """
    if score not in ("norm", "rx"):
        raise ConfigError(f"score is {score!r}; choose norm or rx")
    values = normalised(cube, norm)
    sparse = robust_pca(values.reshape(-1, values.shape[2]), steps=steps)[1].reshape(values.shape)
    return rx(sparse) if score == "rx" else np.linalg.norm(sparse, axis=2)


def robust_pca(
    matrix: NDArray[np.float64], *, steps: int = 200, tolerance: float = 1e-7
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A matrix (n, b) as a low-rank and a sparse one whose sum it is.

    They minimise the nuclear norm of the one plus 1 / sqrt(max(n, b)) times the sum of magnitudes
    of the other, by augmented Lagrangian steps until what remains is `tolerance` of the matrix.

    >>> low, sparse = robust_pca(np.eye(3) * 5 + 1)
    >>> np.allclose(low + sparse, np.eye(3) * 5 + 1, atol=1e-6)
    True
    """
    if steps < 1:
        raise ConfigError(f"steps is {steps}; it must be at least 1")
    size = float(np.linalg.norm(matrix))
    largest = float(np.linalg.norm(matrix, 2))
    low, sparse = np.zeros_like(matrix), np.zeros_like(matrix)
    if size == 0:
        return low, sparse
    weight = 1 / np.sqrt(max(matrix.shape))
    dual = matrix / max(largest, float(np.abs(matrix).max()) / weight)
    penalty = _START / largest
    for _ in range(steps):
        low = shrunk_rank(matrix - sparse + dual / penalty, 1 / penalty)
        rest = matrix - low
        sparse = shrunk(rest + dual / penalty, weight / penalty)
        rest = rest - sparse
        dual += penalty * rest
        penalty = min(penalty * _GROWTH, _START / largest * 1e7)
        if float(np.linalg.norm(rest)) < tolerance * size:
            break
    return low, sparse


def shrunk(values: NDArray[np.float64], by: float) -> NDArray[np.float64]:
    return np.sign(values) * np.maximum(np.abs(values) - by, 0)


def shrunk_rank(matrix: NDArray[np.float64], by: float) -> NDArray[np.float64]:
    """Singular values less `by`; from the small Gram matrix, since pixels outnumber bands."""
    square, axes = np.linalg.eigh(matrix.T @ matrix)
    singular = np.sqrt(np.maximum(square, 0))
    kept = singular > by
    shrink = (singular[kept] - by) / singular[kept]
    found: NDArray[np.float64] = (matrix @ (axes[:, kept] * shrink)) @ axes[:, kept].T
    return found
