"""Nearest memory vectors as torch modules that a graph exporter can follow."""

from __future__ import annotations

import numpy as np
import torch

from fedvad.memory.bank import FloatArray
from fedvad.memory.cells import THOROUGH, USUAL, CellIndex, Effort
from fedvad.memory.neighbours import FAST_UP_TO, NeighbourIndex, SearchMode

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

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """The vectors (..., d) at indices (...)."""
        chunks = [self.get_buffer(f"vectors{i}") for i in range(len(self._chunks))]
        return torch.cat(chunks)[indices].float()


class CellSearch(torch.nn.Module):
    """The shortlists of a `CellIndex`, from its own constants: it finds the same vectors.

    A graph of fixed shapes compares every patch with every vector and keeps, of each cell, the
    best; only those of the cells that the index looks into count.
    """

    def __init__(self, vectors: FloatArray, cells: CellIndex, k: int) -> None:
        super().__init__()
        self._k = k
        self._starts = [0, *np.cumsum(cells.sizes[:-1]).tolist()]
        for i, columns in enumerate(cells.columns):
            self.register_buffer(f"cell{i}", columns)
        self.register_buffer("centres", cells.centres)
        self.register_buffer("axes", cells.axes)
        self.register_buffer("offset", cells.offset)
        self.register_buffer("order", cells.order)
        self.register_buffer("vectors", compact(torch.from_numpy(vectors)))

    def forward(self, patches: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What `ExactSearch.forward` gives, with the usual effort and with the thorough one.

        Distances are true ones, not always to the nearest vector.
        """
        rows = torch.addmm(self.get_buffer("offset"), patches, self.get_buffer("axes"))
        kept = self._k * max(USUAL.kept, THOROUGH.kept)
        values, places = [], []
        for i, start in enumerate(self._starts):
            best = (rows @ self.get_buffer(f"cell{i}")).topk(kept, dim=1, largest=False)
            values.append(best.values)
            places.append(best.indices + start)
        value, place = torch.cat(values, 1), torch.cat(places, 1)
        probes = min(max(USUAL.probes, THOROUGH.probes), len(self._starts))
        near = (rows @ self.get_buffer("centres")).topk(probes, dim=1, largest=False).indices
        return [self._nearest(patches, near, value, place, effort) for effort in (USUAL, THOROUGH)]

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """The vectors (..., d) at indices (...)."""
        return self.get_buffer("vectors")[indices].float()

    def _nearest(
        self,
        patches: torch.Tensor,
        near: torch.Tensor,
        value: torch.Tensor,
        place: torch.Tensor,
        effort: Effort,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kept = self._k * effort.kept
        # the best of each cell lie side by side: OpenVINO gathers along one axis only
        width = value.shape[1] // len(self._starts)
        columns = torch.arange(kept, device=near.device)
        columns = (near[:, : effort.probes, None] * width + columns).flatten(1)
        rough, shortlist = value.gather(1, columns), place.gather(1, columns)
        measured = self._k * effort.measured
        if min(effort.probes, near.shape[1]) * kept > measured:
            best = rough.topk(measured, dim=1, largest=False)
            shortlist = shortlist.gather(1, best.indices)
        found = self.get_buffer("order")[shortlist]
        return _closest(_measured(patches, self.get_buffer("vectors"), found), found, self._k)


def make_search(vectors: FloatArray, k: int, mode: SearchMode) -> ExactSearch | CellSearch:
    """The search that `NeighbourIndex` does for k neighbours among (m, d) vectors."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    cells = NeighbourIndex(vectors, mode=mode).cells
    if cells is not None and k <= FAST_UP_TO:
        return CellSearch(vectors, cells, k)
    return ExactSearch(vectors, k)


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
