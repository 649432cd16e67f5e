"""CRD: how badly a pixel is a mixture of those of the ring around it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedvad.data.cubes.scene import Cube, Norm, normalised
from fedvad.errors import ConfigError
from fedvad.spectral.rings import Border, check_windows, rings

__all__ = ["crd"]

_BATCH_VALUES = 1 << 23  # of all rings of a batch of pixels


def crd(
    cube: Cube,
    *,
    windows: tuple[int, int] = (17, 15),
    border: Border = "wrap",
    ridge: float = 1e-6,
    norm: Norm = "global_minmax",
) -> NDArray[np.float64]:
    """Map of the collaborative-representation detector.

    Each pixel is fitted by the pixels of its ring, with weights that sum to one; a neighbour of
    another spectrum costs more. The score is what remains.

    Parameters
    ----------
    cube : (h, w, b) float array
    windows : (int, int), default=(17, 15)
        Sides of the outer and the inner window in pixels. Papers choose them per scene, by its
        labels; this one is even over scenes.
    border : {"wrap", "mirror", "shift"}, default="wrap"
        See `rings`.
    ridge : float, default=1e-6
        Weight of the cost, > 0.
    norm : default="global_minmax"
        See `normalised`.

    Returns
    -------
    (h, w) float64 array
        Euclidean norms of the residuals.

    Raises
    ------
    ConfigError, DataError
        For options out of range; for a scene smaller than the window.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.spectral.crd import crd
    >>> cube = np.random.default_rng(0).uniform(0.4, 0.5, (12, 12, 30))
    >>> cube[3, 7, :15] += 0.5
    >>> [int(i) for i in np.unravel_index(crd(cube, windows=(5, 3)).argmax(), (12, 12))]
    [3, 7]

    Source: Li and Du 2015, with the sum-to-one constraint.
    """
    values = normalised(cube, norm)
    check_windows(windows, values.shape[:2], border)
    if not ridge > 0:
        raise ConfigError(f"ridge is {ridge}; CRD needs one above 0, for example 1e-6")
    bands, n = values.shape[2], windows[0] ** 2 - windows[1] ** 2
    pixels = values.reshape(-1, bands)
    found = np.empty(len(pixels))
    batch = max(1, _BATCH_VALUES // (n * max(n, bands)))
    for part, ring in rings(values.shape[:2], windows, border, batch=batch):
        around, own = pixels[ring], pixels[part]
        distance = np.square(around - own[:, None]).sum(axis=2)
        # each spectrum goes on with a 1, so that the weights sum to about one
        products = around @ around.swapaxes(1, 2) + 1
        aim = np.einsum("pnb,pb->pn", around, own) + 1
        diagonal = np.einsum("pii->pi", products)  # a view
        # repeated pixels make the products singular
        diagonal += ridge * distance + 1e-12 * diagonal.mean(axis=1, keepdims=True)
        weights = np.linalg.solve(products, aim[:, :, None])[:, :, 0]
        found[part] = np.linalg.norm(own - np.einsum("pn,pnb->pb", weights, around), axis=1)
    return found.reshape(values.shape[:2])
