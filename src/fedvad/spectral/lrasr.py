"""LRASR: background as few and correlated atoms of a dictionary, anomalies as what is left."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedvad.data.cubes.scene import Cube, Norm, normalised
from fedvad.errors import ConfigError, DataError
from fedvad.memory.bank import MemoryBank
from fedvad.memory.kmeans import weighted_kmeans
from fedvad.spectral.rpca import shrunk, shrunk_rank

__all__ = ["dictionary", "low_rank", "lrasr"]

Matrix = NDArray[np.float64]
_START, _GROWTH, _MOST = 1e-3, 1.1, 1e10  # of the penalty
_LEFT, _MOVED = 1e-6, 1e-2  # of the scene, below which the steps end


def lrasr(
    cube: Cube,
    *,
    clusters: int = 15,
    atoms: int = 20,
    beta: float = 0.1,
    weight: float = 0.1,
    norm: Norm = "global_minmax",
    steps: int = 115,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Map of what a low-rank and sparse representation leaves of each pixel.

    Parameters
    ----------
    cube : (h, w, b) float array
    clusters, atoms : int, default=15, 20
        Clusters of pixels, and how many of each, those of smallest Mahalanobis distance in it, the
        dictionary takes. Clusters of fewer pixels give none.
    beta, weight : float, default=0.1, 0.1
        Of the representation's sparsity, and of what is left of pixels, > 0.
    norm : default="global_minmax"
        See `normalised`.
    steps : int, default=115
        At most.
    seed : int, default=0
        Of the clusters, on which the map depends visibly.

    Returns
    -------
    (h, w) float64 array
        Euclidean norms.

    Raises
    ------
    ConfigError, DataError
        For options out of range; for a scene of which no cluster has `atoms` pixels.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.spectral.lrasr import lrasr
    >>> rng = np.random.default_rng(0)
    >>> cube = rng.random((12, 12, 2)) @ rng.random((2, 30))
    >>> cube[3, 7, :5] += 1
    >>> found = lrasr(cube, clusters=3, atoms=10)
    >>> [int(i) for i in np.unravel_index(found.argmax(), (12, 12))]
    [3, 7]

    Source: Xu, Wu, Li, Plaza and Wei 2016; solved by linearised alternating directions.
    """
    if min(clusters, atoms, steps) < 1 or not (beta > 0 and weight > 0):
        raise ConfigError("clusters, atoms and steps must be at least 1, beta and weight above 0")
    values = normalised(cube, norm)
    pixels = values.reshape(-1, values.shape[2])
    chosen = dictionary(pixels, clusters, atoms, seed)
    left = low_rank(pixels, chosen, beta=beta, weight=weight, steps=steps)[1]
    found: Matrix = np.linalg.norm(left, axis=1).reshape(values.shape[:2])
    return found


def dictionary(pixels: Matrix, clusters: int, atoms: int, seed: int) -> Matrix:
    """The most usual spectra (k, b) of each cluster of pixels (n, b)."""
    if len(pixels) < clusters:
        raise DataError(f"{len(pixels)} pixels are too few for {clusters} clusters: lower clusters")
    bank = MemoryBank.of_patches(pixels.astype(np.float32))
    centres = weighted_kmeans(bank, clusters, seed=seed).vectors.astype(np.float64)
    owner = (np.square(centres).sum(1) - 2 * pixels @ centres.T).argmin(1)
    found = []
    for number in range(len(centres)):
        own = pixels[owner == number]
        if len(own) < atoms:
            continue
        step = own - own.mean(0)
        # of few pixels or bands that say the same, the directions in which there is any spread
        precision = np.linalg.pinv(step.T @ step / len(own), hermitian=True)
        distance = np.einsum("nb,bc,nc->n", step, precision, step)
        found.append(own[np.argsort(distance, kind="stable")[:atoms]])
    if not found:
        raise DataError(f"no cluster has {atoms} pixels: lower clusters or atoms")
    return np.concatenate(found)


def low_rank(
    pixels: Matrix, atoms: Matrix, *, beta: float, weight: float, steps: int = 115
) -> tuple[Matrix, Matrix]:
    """Coefficients (n, k) of atoms (k, b), and what they leave of pixels (n, b).

    Their sum is the pixels. They minimise the coefficients' nuclear norm, beta times their
    magnitudes and `weight` times the Euclidean norms of what is left of pixels.

    >>> _, left = low_rank(np.array([[3.0, 4.0]]), np.eye(2), beta=0.1, weight=0.5)
    >>> left.round(3).tolist()
    [[3.0, 4.0]]
    """
    size = float(np.linalg.norm(pixels))
    reach = float(np.linalg.norm(atoms, 2)) ** 2
    share = np.zeros((len(pixels), len(atoms)))
    sparse, left = np.zeros_like(share), np.zeros_like(pixels)
    if size == 0 or reach == 0:
        return share, pixels - left
    dual, tie = np.zeros_like(pixels), np.zeros_like(share)
    penalty = _START
    for _ in range(steps):
        before = share, sparse, left
        rest = pixels - share @ atoms - left + dual / penalty
        pull = rest @ atoms.T - (share - sparse + tie / penalty)
        share = shrunk_rank(share + pull / reach, 1 / (penalty * reach))
        sparse = shrunk(share + tie / penalty, beta / penalty)
        rest = pixels - share @ atoms + dual / penalty
        long = np.linalg.norm(rest, axis=1, keepdims=True)
        left = rest * np.maximum(1 - weight / penalty / np.maximum(long, 1e-300), 0)
        rest = pixels - share @ atoms - left
        dual += penalty * rest
        tie += penalty * (share - sparse)
        moved = [
            float(np.linalg.norm(new - old))
            for new, old in zip((share, sparse, left), before, strict=True)
        ]
        moved[0] *= np.sqrt(reach)
        done = np.linalg.norm(rest) < _LEFT * size and penalty * max(moved) < _MOVED * size
        penalty = min(penalty * _GROWTH, _MOST)
        if done:
            break
    return share, left
