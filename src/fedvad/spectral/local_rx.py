"""Local RX: how far a pixel lies from the spectra of the ring around it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedvad.data.cubes.scene import Cube, check_cube
from fedvad.errors import ConfigError
from fedvad.spectral.moments import Moments
from fedvad.spectral.rings import Border, rings

__all__ = ["local_rx", "principal"]

_BATCH = 2048


def local_rx(
    cube: Cube,
    *,
    windows: tuple[int, int] = (17, 9),
    border: Border = "wrap",
    components: int = 10,
    ridge: float = 1e-5,
) -> NDArray[np.float64]:
    """Local RX map of a scene.

    Parameters
    ----------
    cube : (h, w, b) float array
    windows : (int, int), default=(17, 9)
        Sides of the outer and the inner window in pixels; the inner one larger than an anomaly.
    border : {"wrap", "mirror", "shift"}, default="wrap"
        See `rings`; "shift" where anomalies may lie at the edge.
    components : int, default=10
        Principal components of the scene that are kept, since a ring has fewer pixels than bands.
    ridge : float, default=1e-5
        Added to each covariance's diagonal in units of its mean, > 0.

    Returns
    -------
    (h, w) float64 array
        Squared Mahalanobis distances from the ring.

    Raises
    ------
    ConfigError, DataError
        For options out of range; for a scene smaller than the window.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.spectral.local_rx import local_rx
    >>> cube = np.random.default_rng(0).normal(size=(20, 20, 4))
    >>> cube[3, 7] += 9
    >>> found = local_rx(cube, windows=(9, 3), components=4)
    >>> [int(i) for i in np.unravel_index(found.argmax(), (20, 20))]
    [3, 7]

    Source: Matteoli, Diani and Corsini 2010.
    """
    check_cube(cube)
    if not ridge > 0:
        raise ConfigError(f"ridge is {ridge}; local RX needs one above 0, for example 1e-5")
    pixels = principal(cube, components)
    found = np.empty(len(pixels))
    # flat ground, of which nothing is known but that it is flat; no quotient may overflow
    least = np.finfo(np.float64).eps * float(pixels.var(axis=0).mean())
    least = max(least, np.finfo(np.float64).tiny / ridge)
    for part, ring in rings(cube.shape[:2], windows, border, batch=_BATCH):
        around = pixels[ring]
        mean = around.mean(axis=1)
        around -= mean[:, None]
        covariance = around.swapaxes(1, 2) @ around / around.shape[1]
        level = np.trace(covariance, axis1=1, axis2=2) / covariance.shape[1]
        level = np.maximum(level, least)
        covariance += (ridge * level)[:, None, None] * np.eye(covariance.shape[1])
        step = (pixels[part] - mean)[:, :, None]
        found[part] = (step * np.linalg.solve(covariance, step)).sum(axis=(1, 2))
    return found.reshape(cube.shape[:2])


def principal(cube: Cube, components: int) -> NDArray[np.float64]:
    """The pixels (h w, k) of a cube along its k principal components, those of most variance first.

    Raises `ConfigError` for components < 1; k is at most the number of bands.

    >>> principal(np.array([[[0.0, 1.0], [0.0, 3.0]]]), 1).round(9).tolist()
    [[-1.0], [1.0]]
    """
    if components < 1:
        raise ConfigError(f"components is {components}; it must be at least 1")
    moments = Moments.of(cube)
    axes = np.linalg.eigh(moments.covariance)[1][:, ::-1][:, :components]
    # of the two directions the one with its largest entry positive: the same on every machine
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0))
    found: NDArray[np.float64] = (cube.reshape(-1, cube.shape[2]) - moments.mean) @ axes
    return found
