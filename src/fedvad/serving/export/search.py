"""Nearest memory vectors as torch modules that a graph exporter can follow."""

from __future__ import annotations

import numpy as np
import torch

from fedvad.memory.bank import FloatArray
from fedvad.memory.neighbours import FAST_UP_TO, SHORTLIST, NeighbourIndex, SearchMode

__all__ = ["ExactSearch", "FastSearch", "compact", "make_search"]

# memory vectors compared at a time: the distances of 1024 patches to them take 16 MB
_CHUNK = 4096


class ExactSearch(torch.nn.Module):
    """Every patch against every one of (m, d) float32 vectors, a chunk of them at a time."""

    def __init__(self, vectors: FloatArray, k: int) -> None:
        super().__init__()
        self._k = min(k, len(vectors))
        # first vector and number of neighbours of each chunk: sizes are settled before a trace
        self._chunks: list[tuple[int, int]] = []
        for i, start in enumerate(range(0, len(vectors), _CHUNK)):
            chunk = torch.from_numpy(vectors[start : start + _CHUNK])
            self._chunks.append((start, min(k, len(chunk))))
            self.register_buffer(f"vectors{i}", compact(chunk))
            self.register_buffer(f"norms{i}", torch.linalg.vecdot(chunk, chunk))

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ascending distances (n, k) and indices (n, k) of the vectors nearest to (n, d)."""
        distances, indices = [], []
        for i, (start, count) in enumerate(self._chunks):
            vectors, norms = self.get_buffer(f"vectors{i}"), self.get_buffer(f"norms{i}")
            # turned, then cast: NNCF (3.4) stumbles over a cast of a stored tensor
            squared = torch.addmm(norms, -2 * patches, vectors.T.float())
            found = squared.topk(count, dim=1, largest=False).indices
            distances.append(_measured(patches, vectors, found))
            indices.append(found + start)
        return _closest(torch.cat(distances, 1), torch.cat(indices, 1), self._k)


class FastSearch(torch.nn.Module):
    """The shortlists of a `NeighbourIndex`, from its own constants: it finds the same vectors."""

    def __init__(self, index: NeighbourIndex, k: int) -> None:
        super().__init__()
        self._k = k
        self._shortlist = SHORTLIST if k == 1 else 2 * k
        self._groups: list[tuple[int, int]] = []
        first = 0
        for i, group in enumerate(index._groups):
            self.register_buffer(f"group{i}", group)
            self._groups.append((first, min(k, group.shape[1])))
            first += group.shape[1]
        self.register_buffer("axes", index._axes)
        self.register_buffer("offset", index._offset)
        self.register_buffer("order", index._order)
        self.register_buffer("vectors", compact(index._vectors))

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ExactSearch.forward`; distances are true ones, rarely not to the nearest vector."""
        rows = torch.addmm(self.get_buffer("offset"), patches, self.get_buffer("axes"))
        values, columns = [], []
        for i, (first, count) in enumerate(self._groups):
            best = (rows @ self.get_buffer(f"group{i}")).topk(count, dim=1, largest=False)
            values.append(best.values)
            columns.append(best.indices + first)
        short = torch.cat(values, 1).topk(self._shortlist, dim=1, largest=False).indices
        found = self.get_buffer("order")[torch.cat(columns, 1).gather(1, short)]
        return _closest(_measured(patches, self.get_buffer("vectors"), found), found, self._k)


def make_search(vectors: FloatArray, k: int, mode: SearchMode) -> torch.nn.Module:
    """The search that `NeighbourIndex` does for k neighbours among (m, d) vectors."""
    index = NeighbourIndex(vectors, mode=mode)
    if index._fast and k <= FAST_UP_TO:
        return FastSearch(index, k)
    return ExactSearch(np.ascontiguousarray(vectors, dtype=np.float32), k)


def compact(values: torch.Tensor) -> torch.Tensor:
    """The same numbers as float16 where that loses nothing, as it does for rows of real patches."""
    half = values.half()
    return half if torch.equal(half.float(), values) else values


def _measured(patches: torch.Tensor, vectors: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Distances (n, k) of (n, d) patches to the found (n, k) vectors.

    From differences, as in `NeighbourIndex`: no cancellation, so a stored vector is at 0.
    """
    distances: torch.Tensor = torch.linalg.vector_norm(
        vectors[found].float() - patches[:, None], dim=2
    )
    return distances


def _closest(
    distances: torch.Tensor, indices: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k smallest distances of each row, ascending, with their indices."""
    best = distances.topk(k, dim=1, largest=False, sorted=True)
    return best.values, indices.gather(1, best.indices)
