"""What sums tell of the images behind them: was this one among them?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedvad.errors import DataError

Array = npt.NDArray[np.float64]


def sums_statistics(
    asked: Array, total: Array, images: int, reference: Array, noise: Array
) -> dict[str, Array]:
    """How much sums speak for images having taken part, by statistic; higher is more.

    The attacker has images like those of the sites, from which it knows how the terms of the sums
    scatter, the total, and the strength of its noise. It takes all for Gaussian; then no statistic
    distinguishes better than the likelihood ratio. An attacker who knows all other images is
    stronger; what that one can learn is bounded by epsilon alone.

    Parameters
    ----------
    asked : (n, p) float64 array
        What each image would have added.
    total : (p,) float64 array
    images : int
        Number of images in the total.
    reference : (r, p) float64 array
        What at least two images add that are known not to be in the total.
    noise : (p,) float64 array
        Standard deviation of the noise in the total.

    Returns
    -------
    dict of str to (n,) float64 array
        `likelihood ratio`, and the `inner product` of Dwork et al. 2015.

    Raises
    ------
    DataError
        For fewer than two reference images.

    Examples
    --------
    >>> import numpy as np
    >>> from leaks_sums import sums_statistics
    >>> drawn = np.random.default_rng(0).normal(size=(40, 200))
    >>> inside, outside, reference = drawn[:10], drawn[10:20], drawn[20:]
    >>> found = sums_statistics(
    ...     drawn[:20], inside.sum(0), 10, reference, np.zeros(200)
    ... )["likelihood ratio"]
    >>> bool(found[:10].min() > found[10:].max())
    True

    Source: Homer et al. 2008 and Dwork et al. 2015 (tracing from sums); the form is ours.
    """
    if len(reference) < 2:
        raise DataError(f"{len(reference)} reference images: at least two are needed")
    centre = reference.mean(axis=0)
    away, rest = asked - centre, total - images * centre
    spread = (reference - centre) / np.sqrt(len(reference) - 1)
    # directions in which the reference does not vary: a hundredth of its mean variance
    floor = 0.01 * float(np.mean((spread**2).sum(axis=0)))
    diagonal = noise**2 + images * max(floor, 1e-12)
    weighed = spread / diagonal
    inner = np.eye(len(spread)) / images + weighed @ spread.T

    def solved(rows: Array) -> Array:  # Woodbury
        first: Array = rows / diagonal - np.linalg.solve(inner, weighed @ rows.T).T @ weighed
        return first

    precise = solved(away)
    ratio = precise @ rest - 0.5 * (precise * away).sum(axis=1)
    return {"likelihood ratio": ratio, "inner product": away @ rest}
