"""Nearest memory vectors of patches: exact search, and a faster one through cells."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from fedvad.errors import MemoryBankError, check_choice
from fedvad.memory.bank import FloatArray
from fedvad.memory.cells import LARGEST_K, THOROUGH, USUAL, CellIndex
from fedvad.memory.distances import TILE, row_argmin, squared_norms

if TYPE_CHECKING:
    import torch

__all__ = ["FAST_FROM", "FAST_UP_TO", "NeighbourIndex", "SearchMode"]

SearchMode = Literal["exact", "fast"]
FAST_FROM = 1000  # vectors; below, exact search takes no longer
FAST_UP_TO = LARGEST_K  # neighbours


class NeighbourIndex:
    """Search over memory vectors.

    Parameters
    ----------
    vectors : (m, d) float32 array
        Memory vectors, m >= 1.
    mode : {"exact", "fast"}, default="exact"
        `exact` compares every patch with every vector. `fast` compares it with those of the
        nearest cells only (see `CellIndex`): the distances returned are true distances to real
        vectors, now and then not to the nearest one. Below 1000 vectors and for more than 6
        neighbours `fast` is exact.
    seed : int, default=0
        Of the cells.

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

    def __init__(self, vectors: FloatArray, *, mode: SearchMode = "exact", seed: int = 0) -> None:
        import torch

        check_choice("search mode", mode, SearchMode)
        if len(vectors) == 0:
            raise MemoryBankError("cannot search an empty memory")
        self.mode = mode
        self._vectors = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
        self._norms = squared_norms(self._vectors)
        self._excluded: torch.Tensor | None = None
        self._hidden: dict[int, torch.Tensor] | None = None
        self.cells: CellIndex | None = None
        """What `fast` searches in; None where the search is exact for any number of neighbours."""
        if mode == "fast" and len(vectors) >= FAST_FROM:
            self.cells = CellIndex(self._vectors, seed=seed)

    def query(
        self, patches: npt.NDArray[np.floating], k: int = 1, *, thorough: bool = False
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """Ascending distances (n, k) and indices (n, k) of the k vectors nearest to (n, d) patches.

        k is cut to the number of vectors; memory is bounded whatever n is. `thorough` has `fast`
        look into more cells, for patches whose distance matters.
        """
        import torch

        k = min(k, len(self._vectors))
        points = torch.from_numpy(np.ascontiguousarray(patches, dtype=np.float32))
        distances = torch.empty(len(points), k)
        indices = torch.empty(len(points), k, dtype=torch.long)
        cells = self.cells if k <= FAST_UP_TO else None
        effort = THOROUGH if thorough else USUAL
        step = TILE[0] * TILE[1] // (TILE[1] if cells is None else 128)
        for start in range(0, len(points), step):
            block = points[start : start + step]
            if cells is None:
                found = self._closest(block, k)
            else:
                found = cells.shortlist(block, k, effort, self._hidden)
            measured, found = self._measured(block, found, k)
            if cells is not None and self._excluded is not None:
                # too few vectors are left in the cells looked into
                short = measured.isinf().any(1)
                if bool(short.any()):
                    rest = block[short]
                    measured[short], found[short] = self._measured(rest, self._closest(rest, k), k)
            distances[start : start + step] = measured
            indices[start : start + step] = found
        return distances.numpy(), indices.numpy()

    def without(self, rows: npt.NDArray[np.int64]) -> NeighbourIndex:
        """The same index as if the memory had no vectors at `rows` (fewer than there are)."""
        import torch

        view = copy.copy(self)
        excluded = torch.zeros(len(self._vectors), dtype=torch.bool)
        excluded[torch.from_numpy(rows)] = True
        view._excluded = excluded
        view._norms = self._norms.masked_fill(excluded, float("inf"))
        if self.cells is not None and len(excluded) - int(excluded.sum()) >= FAST_FROM:
            view._hidden = self.cells.hiding(excluded)
        else:
            view.cells = None
        return view

    def _measured(
        self, points: torch.Tensor, found: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ascending distances (n, k) of (n, d) points to the nearest k of the found vectors, and
        which these are; inf to excluded ones.
        """
        import torch

        # from differences: no cancellation, so a stored vector is at 0
        apart = self._vectors[found].sub_(points[:, None])
        measured = torch.linalg.vector_norm(apart, dim=2)
        if self._excluded is not None:
            measured.masked_fill_(self._excluded[found], float("inf"))
        measured, order = measured.sort(dim=1)
        return measured[:, :k], found.gather(1, order[:, :k])

    def _closest(self, points: torch.Tensor, k: int) -> torch.Tensor:
        """Indices (n, k) of the nearest vectors."""
        import torch

        squared = torch.addmm(self._norms[None], points, self._vectors.T, alpha=-2)
        if k == 1:
            return row_argmin(squared)[:, None]
        return squared.topk(k, dim=1, largest=False).indices
