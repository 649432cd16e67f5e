"""Which features say most about a task's normal images, and whether tasks want the same of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
_KEPT = 0.8
_OVERLAP = 0.3


def feature_importance(features: Floats, *, kept: float = _KEPT) -> npt.NDArray[np.float64]:
    """Importance of each feature by a principal component analysis of each patch.

    Parameters
    ----------
    features : (n, ..., d) array
        d features of patches at the positions ..., of n images.
    kept : float, default=0.8
        Share of the variance that the components looked at keep, in (0, 1].

    Returns
    -------
    (..., d) array
        Sum over the first components of |loading| times variance, at every position.

    Notes
    -----
    The continual-learning thesis names the analysis; the formula is ours.

    Examples
    --------
    >>> feature_importance(np.array([[3.0, 1], [3, -1], [-3, 1], [-3, -1]])).round(1)
    array([9., 0.])
    """
    patches = np.moveaxis(features.astype(np.float64), 0, -2)  # (..., n, d)
    centred = patches - patches.mean(-2, keepdims=True)
    _, spreads, loadings = np.linalg.svd(centred, full_matrices=False)
    variances = spreads**2 / len(features)
    reached = variances.cumsum(-1)
    before = reached - variances  # a component counts while those before it keep too little
    counts = before < kept * reached[..., -1:] - 1e-12
    found: npt.NDArray[np.float64] = np.einsum(
        "...k,...kd->...d", variances * counts, np.abs(loadings)
    )
    return found


def most_important(importance: Floats, share: float) -> npt.NDArray[np.bool_]:
    """Marks the `share` of the features, one at least, whose importance is highest."""
    flat = importance.ravel()
    chosen = np.zeros(flat.size, bool)
    chosen[np.argsort(-flat, kind="stable")[: max(1, round(share * flat.size))]] = True
    return chosen.reshape(importance.shape)


def ranges_overlap(first: Floats, other: Floats, *, at_least: float = _OVERLAP) -> float:
    """Share of the features of (n, d) and (m, d) whose ranges of values overlap.

    Two ranges overlap where what they have in common is at least this share of both together.
    """
    lows, highs = (np.stack([f(first, 0), f(other, 0)]) for f in (np.min, np.max))
    common = np.clip(highs.min(0) - lows.max(0), 0, None)
    whole = highs.max(0) - lows.min(0)
    return float(np.mean(common >= at_least * whole))


def conflicts(features: Mapping[str, Floats]) -> dict[tuple[str, str], float]:
    """`ranges_overlap` of each pair of tasks, whose features are (n, d)."""
    names = list(features)
    return {
        (a, b): ranges_overlap(features[a], features[b])
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }


def task_map(features: Mapping[str, Floats], *, seed: int) -> dict[str, Floats]:
    """Images of tasks as points of a plane by t-SNE of their features (n, d): (n, 2) by task."""
    from sklearn.manifold import TSNE

    rows = np.concatenate(list(features.values())).astype(np.float32)
    nearest = min(30.0, (len(rows) - 1) / 3)
    points = TSNE(perplexity=nearest, init="pca", random_state=seed).fit_transform(rows)
    ends = np.cumsum([len(own) for own in features.values()])[:-1]
    return dict(zip(features, np.split(points, ends), strict=True))
