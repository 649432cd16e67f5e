"""Memory-reduce: a few weighted averages that stand for a site's many normal patches.

The averages are what a site uploads (FedDyMem, arXiv 2502.21012, abstract: "a weighted average
method"); how patches are grouped before averaging was not readable and is our choice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError, check_choice
from fedvad.memory.bank import FloatArray, MemoryBank
from fedvad.memory.coreset import k_center
from fedvad.memory.distances import nearest
from fedvad.memory.kmeans import weighted_kmeans
from fedvad.memory.origin import Origin

__all__ = ["PositionMeans", "ReduceMode", "cells", "reduce_patches"]

ReduceMode = Literal["coreset", "cluster"]


def reduce_patches(
    patches: FloatArray,
    rows: int,
    *,
    mode: ReduceMode,
    seed: int,
    pull: float = 0.0,
    initial: FloatArray | None = None,
    near: FloatArray | None = None,
    projection: int | None = None,
    images: npt.NDArray[np.integer] | None = None,
    min_count: int = 1,
    origin: Origin | None = None,
) -> MemoryBank:
    """Reduce normal patches to a few weighted averages, which are what a site uploads.

    Weights are cell sizes and sum to n where no cell is dropped; spread is the root-mean-square
    distance of a cell's patches to its vector.

    Parameters
    ----------
    patches : (n, d) float32 array
        Normal patches of a site, n >= 1.
    rows : int
        Most rows of the result, at least 1.
    mode : {"coreset", "cluster"}
        `coreset`: k-center chooses the vectors, and a patch joins the cell of its nearest one.
        `cluster`: weighted k-means; vectors are cell means.
    seed : int
        Of k-center or k-means.
    pull : float, default=0
        Of `coreset`, in [0, 1]: a vector becomes (1 - pull) x centre + pull x mean of its cell. 0
        keeps real patches and their coverage, 1 sends pure averages.
    initial, near, projection : default=None
        Of `coreset`, as for `k_center`. No rows are returned where `initial` holds every patch.
    images : (n,) int array, default=None
        Number of the image that each patch is from.
    min_count : int, default=1
        Drop cells with patches of fewer distinct `images`: then no average is of one or two images.
    origin : Origin, default=None
        Sources of the n patches; a vector has that of its patch, a mean those of its cell.

    Raises
    ------
    ConfigError
        For an unknown mode, a pull outside [0, 1], or when `min_count` leaves nothing.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.memory.reduce import reduce_patches
    >>> patches = np.array([[0.0], [2.0], [10.0], [12.0]], np.float32)
    >>> bank = reduce_patches(patches, 2, mode="cluster", seed=0)
    >>> sorted(bank.vectors[:, 0].tolist()), bank.weights.tolist()
    ([1.0, 11.0], [2.0, 2.0])

    Source: ours, after FedDyMem.
    """
    check_choice("reduce mode", mode, ReduceMode)
    if not 0 <= pull <= 1:
        raise ConfigError(f"pull must lie in [0, 1], got {pull}")
    if mode == "cluster":
        points = replace(MemoryBank.of_patches(patches), origin=origin)
        means = weighted_kmeans(points, rows, seed=seed, restarts=1)
        if images is None or min_count == 1:
            return means
        # k-means ends between two steps: the means of the cells as they are counted here
        found = _Cells.of(patches, means.vectors)
        return _bank(found, means.vectors, 1.0, found.enough(images, min_count), means.origin)
    chosen = k_center(patches, rows, seed=seed, initial=initial, near=near, projection=projection)
    if len(chosen.indices) == 0:
        return MemoryBank.empty(patches.shape[1])
    centres = patches[chosen.indices]
    found = _Cells.labelled(patches, chosen.labels, chosen.distances, len(centres), pull > 0)
    if origin is not None:
        weights = np.ones(len(patches))
        origin = origin.cells(chosen.labels, weights) if pull else origin.take(chosen.indices)
    if images is None or min_count == 1:
        return _bank(found, centres, pull, np.ones(len(centres), np.bool_), origin)
    return _bank(found, centres, pull, found.enough(images, min_count), origin)


def _bank(
    found: _Cells,
    centres: FloatArray,
    pull: float,
    kept: npt.NDArray[np.bool_],
    origin: Origin | None = None,
) -> MemoryBank:
    vectors, spread = found.moved(centres, np.full(len(centres), pull))
    return MemoryBank(vectors, np.maximum(found.size, 1), spread, origin).take(kept)


def cells(patches: FloatArray, centres: FloatArray, *, pull: float = 0.0) -> MemoryBank:
    """Assign (n, d) patches to their nearest of (m, d) centres; empty cells are dropped.

    `pull`, in [0, 1], moves each centre that share of the way to the mean of its cell.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.memory.reduce import cells
    >>> patches = np.array([[0.0], [2.0], [9.0]], np.float32)
    >>> found = cells(patches, np.array([[0.0], [8.0], [50.0]], np.float32), pull=1.0)
    >>> found.vectors.tolist(), found.weights.tolist()
    ([[1.0], [9.0]], [2.0, 1.0])
    """
    found = _Cells.of(patches, centres)
    return _bank(found, centres, pull, found.size > 0)


def renew(
    bank: MemoryBank,
    patches: FloatArray,
    *,
    keep: float,
    images: npt.NDArray[np.integer] | None = None,
    min_count: int = 1,
) -> MemoryBank:
    """Move each vector of a bank towards the mean of the patches nearest to it.

    vector <- keep x vector + (1 - keep) x mean of its cell, weights likewise, from cell sizes
    scaled so that the total weight stays; spread is that of the cell.

    Parameters
    ----------
    bank : MemoryBank
        Of (m, d) vectors.
    patches : (n, d) float32 array
        Normal patches of this round.
    keep : float
        Share of the old vector that is kept, in [0, 1].
    images : (n,) int array, default=None
        Number of the image that each patch is from.
    min_count : int, default=1
        A vector whose cell holds patches of fewer distinct `images`, or none, stays as it is.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.memory.bank import MemoryBank
    >>> from fedvad.memory.reduce import renew
    >>> bank = MemoryBank.of_patches(np.array([[0.0], [10.0]], np.float32))
    >>> renew(bank, np.array([[1.0], [3.0]], np.float32), keep=0.5).vectors.tolist()
    [[1.0], [10.0]]

    Source: the dynamic update of FedDyMem as an exponential moving average (specification, section
    3.3; form ours).
    """
    found = _Cells.of(patches, bank.vectors)
    hit = found.size > 0
    if images is not None and min_count > 1:
        hit &= found.images(images) >= min_count
    vectors, spread = found.moved(bank.vectors, np.where(hit, 1 - keep, 0.0))
    scale = float(bank.weights[hit].sum()) / max(float(found.size[hit].sum()), 1.0)
    weights = np.where(hit, keep * bank.weights + (1 - keep) * scale * found.size, bank.weights)
    return MemoryBank(vectors, weights, np.where(hit, spread, bank.spread))


@dataclass(frozen=True, eq=False)
class _Cells:
    """Patches by nearest centre; all zero for empty cells.

    size: (m,) how many. mean: (m, d). squared: (m,) mean squared distance to the centre. label:
    (n,) cell of each patch.
    """

    size: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    squared: npt.NDArray[np.float64]
    label: npt.NDArray[np.int64]

    def images(self, images: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """(m,) distinct images, of the (n,) given, among the patches of each cell."""
        pairs = np.unique(np.stack([self.label, images]), axis=1)
        return np.bincount(pairs[0], minlength=len(self.size))

    def enough(self, images: npt.NDArray[np.integer], min_count: int) -> npt.NDArray[np.bool_]:
        """Cells of at least `min_count` images; raises `ConfigError` when there is none."""
        kept = self.images(images) >= min_count
        if not kept.any():
            raise ConfigError(
                f"no cell holds patches of min_count = {min_count} images (there are "
                f"{len(np.unique(images))}): lower it, send fewer rows, or leave this site out"
            )
        return kept

    @classmethod
    def of(cls, patches: FloatArray, centres: FloatArray) -> _Cells:
        import torch

        points = torch.from_numpy(np.ascontiguousarray(patches, dtype=np.float32))
        squared, label = nearest(points, torch.from_numpy(np.ascontiguousarray(centres)))
        return cls.labelled(patches, label.numpy(), squared.sqrt().numpy(), len(centres), True)

    @classmethod
    def labelled(
        cls,
        patches: FloatArray,
        label: npt.NDArray[np.int64],
        distances: FloatArray,
        count: int,
        with_means: bool,
    ) -> _Cells:
        """From each patch's centre and distance to it; means only if asked, else zero."""
        import torch

        size = np.bincount(label, minlength=count).astype(np.float64)
        divisor = np.maximum(size, 1)
        squared = np.bincount(label, distances.astype(np.float64) ** 2, minlength=count) / divisor
        sums = torch.zeros((count, patches.shape[1]), dtype=torch.float64)
        if with_means:
            sums.index_add_(0, torch.from_numpy(label), torch.from_numpy(patches).double())
        return cls(size, sums.numpy() / divisor[:, None], squared, label)

    def moved(
        self, centres: FloatArray, share: npt.NDArray[np.float64]
    ) -> tuple[FloatArray, FloatArray]:
        """Centres (m, d) moved by `share` (m,) of the way to their means, and their spread (m,)."""
        way = self.mean - centres
        vectors = (centres + share[:, None] * way).astype(np.float32)
        # mean |p - v|^2 = mean |p - mean|^2 + |mean - v|^2, for v the centre and for v moved
        variance = self.squared + ((1 - share) ** 2 - 1) * (way**2).sum(1)
        return vectors, np.sqrt(np.maximum(variance, 0)).astype(np.float32)


class PositionMeans:
    """Mode `position`: one running mean per patch position, in one pass.

    Weighted by images, never by batches, so that any split into batches, ragged ones included,
    gives the same means.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.memory.reduce import PositionMeans
    >>> means = PositionMeans()
    >>> means.add(np.array([[[[0.0]]], [[[2.0]]]]))  # two images of one patch of one value
    >>> found = means.result()
    >>> found.vectors.tolist(), found.weights.tolist(), found.spread.tolist()
    ([[1.0]], [2.0], [1.0])

    Source: FedDyMem specification, section 3.3 (after CFA).
    """

    def __init__(self) -> None:
        self._sum: npt.NDArray[np.float64] | None = None
        self._square: npt.NDArray[np.float64] | None = None
        self._images = 0

    def add(self, descriptors: npt.NDArray[np.floating]) -> None:
        """Add a batch of (b, h, w, d) descriptors; raises `ConfigError` for another grid."""
        images, height, width, dim = descriptors.shape
        batch = descriptors.reshape(images, height * width, dim).astype(np.float64)
        if self._sum is None:
            self._sum = np.zeros(batch.shape[1:])
            self._square = np.zeros(batch.shape[1])
        if batch.shape[1:] != self._sum.shape:
            raise ConfigError(f"patch grid changed from {self._sum.shape} to {batch.shape[1:]}")
        self._sum += batch.sum(0)
        self._square = self._square + (batch**2).sum((0, 2))
        self._images += len(batch)

    def result(self) -> MemoryBank:
        """The (h * w, d) means, each with weight n_images; raises `ConfigError` without images."""
        if self._sum is None or self._square is None:
            raise ConfigError("position means need at least one image")
        mean = self._sum / self._images
        variance = np.maximum(self._square / self._images - (mean**2).sum(1), 0)
        weights = np.full(len(mean), float(self._images))
        return MemoryBank(mean.astype(np.float32), weights, np.sqrt(variance).astype(np.float32))
