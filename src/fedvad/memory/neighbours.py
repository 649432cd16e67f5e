"""Nearest memory vectors of patches: exact search, and a faster one that re-ranks a shortlist."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError, MemoryBankError
from fedvad.memory.bank import FloatArray
from fedvad.memory.distances import BLOCK_BYTES, squared_norms

if TYPE_CHECKING:
    import torch

__all__ = ["NeighbourIndex", "SearchMode"]

SearchMode = Literal["exact", "fast"]
_GROUPS = 64
_FAST_FROM = 1000  # vectors; below, the shortlist costs more than it saves
_FAST_UP_TO = 8  # neighbours
_FAST_BLOCK = 64  # patches; their rough distances stay in the processor's cache
_AXES_FROM = 2000  # vectors whose principal components stand for those of the memory


class NeighbourIndex:
    """Search over (m, d) memory vectors.

    `exact` compares every patch with every vector. `fast` compares them in the `principal`
    leading principal components of the memory (what vectors keep outside these enters as its
    energy), keeps the best vector of each of 64 random groups, and measures the 3 + 2 k best of
    those: the distances returned are true distances to real vectors, only rarely not to the
    nearest one. For small memories, few dimensions or many neighbours `fast` is exact.

    Raises `MemoryBankError` for an empty memory, `ConfigError` for an unknown mode.
    """

    def __init__(
        self, vectors: FloatArray, *, mode: SearchMode = "exact", principal: int = 48, seed: int = 0
    ) -> None:
        import torch

        if mode not in get_args(SearchMode):
            raise ConfigError(f"unknown search mode {mode!r}; choose from {get_args(SearchMode)}")
        if len(vectors) == 0:
            raise MemoryBankError("cannot search an empty memory")
        self.mode = mode
        self._excluded: torch.Tensor | None = None
        self._vectors = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
        self._norms = squared_norms(self._vectors)
        m, dim = self._vectors.shape
        self._fast = mode == "fast" and m >= _FAST_FROM and dim > 2 * principal
        if self._fast:
            generator = torch.Generator().manual_seed(seed)
            # vector number j of the shuffled memory is in group j % _GROUPS; the last row of
            # groups is filled up with vectors too far away to be found
            padding = -m % _GROUPS
            self._order = torch.randperm(m, generator=generator)
            mean = self._vectors.mean(0)
            centred = self._vectors[self._order] - mean
            self._axes = _principal_axes(centred[:_AXES_FROM], principal, generator)
            self._offset = mean @ self._axes
            # |z - v|^2 = |z|^2 - 2 z v + |v|^2 as one product of [z, |z|^2, 1] and this matrix
            rough = torch.empty(principal + 2, m + padding)
            rough[:principal, :m] = -2 * (centred @ self._axes).T
            rough[principal] = 1
            rough[principal + 1, :m] = squared_norms(centred)
            rough[:principal, m:] = 0
            rough[principal + 1, m:] = 1e30
            self._rough = rough
            self._order = torch.nn.functional.pad(self._order, (0, padding))
            rows = rough.shape[1] // _GROUPS
            self._low_bits = (1 << (rows - 1).bit_length()) - 1
            self._row = torch.arange(rows, dtype=torch.int32).repeat_interleave(_GROUPS)

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
        fast = self._fast and k <= _FAST_UP_TO
        step = _FAST_BLOCK if fast else max(1, BLOCK_BYTES // (4 * len(self._vectors)))
        for start in range(0, len(points), step):
            block = points[start : start + step]
            found = self._shortlist(block, 3 + 2 * k) if fast else self._closest(block, k)
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
            # too far away to be found, like the padding
            view._rough = self._rough.clone()
            view._rough[-1].masked_fill_(excluded[self._order], 1e30)
        return view

    def _closest(self, points: torch.Tensor, k: int) -> torch.Tensor:
        """Indices (n, k) of the nearest vectors."""
        import torch

        squared = torch.addmm(self._norms[None], points, self._vectors.T, alpha=-2)
        if k == 1:  # NumPy's is several times faster than PyTorch's
            return torch.from_numpy(squared.numpy().argmin(1))[:, None]
        return squared.topk(k, dim=1, largest=False).indices

    def _shortlist(self, points: torch.Tensor, count: int) -> torch.Tensor:
        """Indices (n, count) of vectors that are probably among the nearest."""
        import torch

        reduced = torch.addmm(-self._offset, points, self._axes)
        ones = torch.ones(len(points), 1)
        rough = torch.cat([reduced, squared_norms(reduced)[:, None], ones], 1) @ self._rough
        # The minimum over each group and where it lies, in one fast reduction: floats >= 0 order
        # like their bits, so the lowest bits can carry the row.
        packed = rough.view(torch.int32).bitwise_and_(~self._low_bits).bitwise_or_(self._row)
        best = packed.view(len(points), -1, _GROUPS).amin(1)
        best, group = best.topk(count, dim=1, largest=False, sorted=False)
        return self._order[best.bitwise_and_(self._low_bits).long() * _GROUPS + group]


def _principal_axes(centred: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Orthonormal (d, count) axes of most of the variance, by subspace iteration."""
    import torch

    axes = torch.randn(centred.shape[1], count, generator=generator)
    for _ in range(3):
        axes = torch.linalg.qr(centred.T @ (centred @ axes)).Q
    return axes
