"""Codecs that learn from features: principal components and product quantisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

CODEBOOKS = "codebooks"
_CODES = 256
_ITERATIONS = 20
_ROWS = 50_000  # positions that codebooks and bases are learned from


def _rows(sample: Array) -> Floats:
    """(c, h, w) as one row (c,) for each position."""
    return np.ascontiguousarray(sample.reshape(len(sample), -1).T, dtype=np.float32)


def _gathered(samples: Sequence[Array]) -> Floats:
    rows = np.concatenate([_rows(s) for s in samples])
    if len(rows) <= _ROWS:
        return rows
    # not every n-th: on a grid that is the same columns of every image
    chosen: Floats = rows[np.sort(np.random.default_rng(0).permutation(len(rows))[:_ROWS])]
    return chosen


def fit_basis(samples: Sequence[Array], components: int, *, quantised: bool) -> dict[str, Array]:
    """The mean (c,) and the `components` strongest directions (k, c) of (c, h, w) samples.

    quantised: also the range of each coordinate, for bytes. Raises `ConfigError` for more
    directions than there are channels.
    """
    rows = _gathered(samples).astype(np.float64)
    if components > rows.shape[1]:
        raise ConfigError(f"pca cannot keep {components} components of {rows.shape[1]} channels")
    mean = rows.mean(0)
    _, directions = np.linalg.eigh(np.cov(rows - mean, rowvar=False).reshape(rows.shape[1], -1))
    basis = directions[:, ::-1][:, :components].T
    learned: dict[str, Array] = {"mean": mean.astype(np.float32), "basis": basis.astype(np.float32)}
    if quantised:
        scores = (rows - mean) @ basis.T
        learned |= {
            "low": scores.min(0).astype(np.float32),
            "high": scores.max(0).astype(np.float32),
        }
    return learned


def pca_encode(sample: Array, learned: dict[str, Array], variance: float) -> dict[str, Array]:
    """Coordinates of a (c, h, w) sample in the learned basis, or in one of its own that keeps
    `variance`, which is then stored beside them. Source: replay code of the thesis for the latter.
    """
    rows, grid = _rows(sample), np.array(sample.shape[1:], np.uint16)
    if "basis" not in learned:
        mean = rows.mean(0)
        left, values, directions = np.linalg.svd(rows - mean, full_matrices=False)
        share = np.cumsum(values**2) / max(float((values**2).sum()), 1e-30)
        kept = min(int(np.searchsorted(share, variance)) + 1, len(values))
        scores = left[:, :kept] * values[:kept]
        return {"scores": scores, "mean": mean, "basis": directions[:kept], "grid": grid}
    scores = (rows - learned["mean"]) @ learned["basis"].T
    if "low" not in learned:
        return {"scores": scores.astype(np.float16), "grid": grid}
    codes = np.clip(np.rint((scores - learned["low"]) / _step(learned)), 0, 255)
    return {"scores": codes.astype(np.uint8), "grid": grid}


def pca_decode(kept: dict[str, Array], learned: dict[str, Array]) -> Floats:
    """The (c, h, w) sample whose `pca_encode` this was, up to its error."""
    source = learned if "basis" in learned else kept
    scores = kept["scores"].astype(np.float32)
    if "low" in learned:
        scores = scores * _step(learned) + learned["low"]
    rows = scores @ source["basis"] + source["mean"]
    return np.ascontiguousarray(rows.T.reshape(-1, *map(int, kept["grid"])), dtype=np.float32)


def _step(learned: dict[str, Array]) -> Floats:
    width = (learned["high"] - learned["low"]) / 255
    return np.where(width > 0, width, 1).astype(np.float32)


def fit_codebooks(samples: Sequence[Array], groups: int, *, seed: int) -> npt.NDArray[np.float16]:
    """Codebooks (groups, 256, c / groups) of the channels of (c, h, w) samples, by k-means.

    Raises `ConfigError` when the channels do not divide into the groups. Source: product
    quantisation, Jégou et al. 2011.
    """
    from sklearn.cluster import KMeans

    rows = _gathered(samples)
    if rows.shape[1] % groups:
        raise ConfigError(f"{rows.shape[1]} channels do not divide into {groups} groups")
    parts = rows.reshape(len(rows), groups, -1)
    books = np.zeros((groups, _CODES, parts.shape[2]), np.float16)
    for i in range(groups):
        centres = np.unique(parts[:, i], axis=0)
        if len(centres) > _CODES:
            fit = KMeans(_CODES, n_init=1, max_iter=_ITERATIONS, random_state=seed)
            centres = fit.fit(parts[:, i]).cluster_centers_
        books[i, : len(centres)] = centres
        books[i, len(centres) :] = centres[0]
    return books


def pq_encode(sample: Array, codebooks: Array) -> dict[str, Array]:
    """One byte per position and group: the nearest entry of the group's codebook."""
    parts = _rows(sample).reshape(-1, len(codebooks), codebooks.shape[2])
    codes = np.empty(parts.shape[:2], np.uint8)
    for i, book in enumerate(codebooks.astype(np.float32)):
        codes[:, i] = ((book**2).sum(1) - 2 * parts[:, i] @ book.T).argmin(1)
    return {"codes": codes, "grid": np.array(sample.shape[1:], np.uint16)}


def pq_decode(kept: dict[str, Array], codebooks: Array) -> Floats:
    """The (c, h, w) sample whose `pq_encode` this was, up to its error."""
    codes = kept["codes"]
    rows = codebooks[np.arange(len(codebooks)), codes].reshape(len(codes), -1)
    return np.ascontiguousarray(rows.T.reshape(-1, *map(int, kept["grid"])), dtype=np.float32)
