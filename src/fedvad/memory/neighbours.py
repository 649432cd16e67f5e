"""Nearest memory vectors of patches: exact search, and a faster one that re-ranks a shortlist."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError, MemoryBankError
from fedvad.memory.bank import FloatArray
from fedvad.memory.distances import TILE, row_argmin, squared_norms

if TYPE_CHECKING:
    import torch

__all__ = ["FAST_UP_TO", "SHORTLIST", "NeighbourIndex", "SearchMode"]

SearchMode = Literal["exact", "fast"]
SHORTLIST = 4  # vectors measured for one neighbour; twice as many as wanted for more
FAST_UP_TO = 6  # neighbours
_FAST_FROM = 1000  # vectors; below, re-ranking costs more than it saves
_AXES_FROM = 2000  # vectors whose principal components stand for those of the memory


class NeighbourIndex:
    """Search over memory vectors.

    Parameters
    ----------
    vectors : (m, d) float32 array
        Memory vectors, m >= 1.
    mode : {"exact", "fast"}, default="exact"
        `exact` compares every patch with every vector. `fast` compares them in the leading
        principal components of the memory (what a vector keeps outside these enters as its energy)
        and measures the best few of the k best vectors of each of several random groups: the
        distances returned are true distances to real vectors, only rarely not to the nearest one.
        For small memories, few dimensions or more than 6 neighbours `fast` is exact.
    principal : int, default=96
        Number of principal components of `fast`.
    seed : int, default=0
        Of the groups and the components.

    Raises
    ------
    MemoryBankError
        For an empty memory.
    ConfigError
        For an unknown mode.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.memory.neighbours import NeighbourIndex
    >>> index = NeighbourIndex(np.array([[0.0], [1.0], [5.0]], np.float32))
    >>> distances, rows = index.query(np.array([[4.0]]), k=2)
    >>> distances.tolist(), rows.tolist()
    ([[1.0, 3.0]], [[2, 1]])
    >>> index.without(np.array([2])).query(np.array([[4.0]]))[0].tolist()
    [[3.0]]
    """

    def __init__(
        self, vectors: FloatArray, *, mode: SearchMode = "exact", principal: int = 96, seed: int = 0
    ) -> None:
        import torch

        if mode not in get_args(SearchMode):
            raise ConfigError(f"unknown search mode {mode!r}; choose from {get_args(SearchMode)}")
        if len(vectors) == 0:
            raise MemoryBankError("cannot search an empty memory")
        self.mode = mode
        self._excluded: torch.Tensor | None = None
        self._hidden: torch.Tensor | None = None
        self._vectors = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
        self._norms = squared_norms(self._vectors)
        m, dim = self._vectors.shape
        self._fast = mode == "fast" and m >= _FAST_FROM and dim > 2 * principal
        if self._fast:
            generator = torch.Generator().manual_seed(seed)
            self._order = torch.randperm(m, generator=generator)
            mean = self._vectors.mean(0)
            centred = self._vectors[self._order] - mean
            axes = _principal_axes(centred[:_AXES_FROM], principal, generator)
            # |z - v|^2 - |z|^2 = |v|^2 - 2 z v is one product of [z, 1] with this matrix
            rough = torch.cat([-2 * centred @ axes, squared_norms(centred)[:, None]], 1)
            width = min(TILE[1], -(-m // SHORTLIST))
            self._groups = [group.T.contiguous() for group in torch.split(rough, width)]
            # and [z, 1] is an affine map of a patch
            self._axes = torch.nn.functional.pad(axes, (0, 1))
            self._offset = -(mean @ self._axes)
            self._offset[-1] = 1

    def query(
        self, patches: npt.NDArray[np.floating], k: int = 1
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """Ascending distances (n, k) and indices (n, k) of the k vectors nearest to (n, d) patches.

        k is cut to the number of vectors; memory is bounded whatever n is.
        """
        import torch

        k = min(k, len(self._vectors))
        points = torch.from_numpy(np.ascontiguousarray(patches, dtype=np.float32))
        distances = torch.empty(len(points), k)
        indices = torch.empty(len(points), k, dtype=torch.long)
        fast = self._fast and k <= FAST_UP_TO
        width = self._groups[0].shape[1] if fast else TILE[1]
        step = TILE[0] * TILE[1] // width
        for start in range(0, len(points), step):
            block = points[start : start + step]
            found = self._shortlist(block, k) if fast else self._closest(block, k)
            # measured from differences: no cancellation, so a stored vector is at 0
            difference = self._vectors[found] - block[:, None]
            measured = torch.linalg.vector_norm(difference, dim=2)
            if self._excluded is not None:
                measured.masked_fill_(self._excluded[found], float("inf"))
            measured, order = measured.sort(dim=1)
            distances[start : start + step] = measured[:, :k]
            indices[start : start + step] = found.gather(1, order[:, :k])
        return distances.numpy(), indices.numpy()

    def without(self, rows: npt.NDArray[np.int64]) -> NeighbourIndex:
        """The same index as if the memory had no vectors at `rows` (fewer than there are)."""
        import torch

        view = copy.copy(self)
        excluded = torch.zeros(len(self._vectors), dtype=torch.bool)
        excluded[torch.from_numpy(rows)] = True
        view._excluded = excluded
        view._norms = self._norms.masked_fill(excluded, float("inf"))
        if self._fast:
            view._hidden = excluded[self._order]
        return view

    def _closest(self, points: torch.Tensor, k: int) -> torch.Tensor:
        """Indices (n, k) of the nearest vectors."""
        import torch

        squared = torch.addmm(self._norms[None], points, self._vectors.T, alpha=-2)
        if k == 1:
            return row_argmin(squared)[:, None]
        return squared.topk(k, dim=1, largest=False).indices

    def _shortlist(self, points: torch.Tensor, k: int) -> torch.Tensor:
        """Indices (n, >= 2 k) of vectors that are probably among the k nearest."""
        import torch

        rows = torch.addmm(self._offset, points, self._axes)
        first, columns, values = 0, [], []
        buffer = torch.empty(len(points) * self._groups[0].shape[1])
        for group in self._groups:
            width = group.shape[1]
            rough = buffer[: len(points) * width].view(len(points), width)
            torch.mm(rows, group, out=rough)
            if self._hidden is not None:
                rough.index_fill_(1, self._hidden[first : first + width].nonzero()[:, 0], 1e30)
            left = min(k, width)
            while True:
                best = row_argmin(rough)[:, None]
                columns.append(best + first)
                values.append(rough.gather(1, best))
                left -= 1
                if not left:
                    break
                rough.scatter_(1, best, float("inf"))
            first += width
        count = SHORTLIST if k == 1 else 2 * k
        shortest = torch.cat(values, 1).topk(count, dim=1, largest=False).indices
        return self._order[torch.cat(columns, 1).gather(1, shortest)]


def _principal_axes(centred: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Orthonormal (d, count) axes of most of the variance, by subspace iteration."""
    import torch

    axes = torch.randn(centred.shape[1], count, generator=generator)
    for _ in range(3):
        axes = torch.linalg.qr(centred.T @ (centred @ axes)).Q
    return axes
