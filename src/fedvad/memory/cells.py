"""An inverted file: memory vectors in cells, of which a patch is compared with the nearest few."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedvad.memory.distances import TILE, row_argmin, squared_norms

if TYPE_CHECKING:
    import torch

__all__ = ["LARGEST_K", "THOROUGH", "USUAL", "CellIndex", "Effort", "principal_axes"]


class Effort(NamedTuple):
    """How far to look for one neighbour: cells looked into, vectors kept of each, and how many of
    all these are measured; for k neighbours k times the latter two.
    """

    probes: int
    kept: int
    measured: int


USUAL = Effort(3, 1, 3)
THOROUGH = Effort(12, 4, 16)
LARGEST_K = 6
_SMALLEST_CELL = LARGEST_K * THOROUGH.kept  # vectors
_ITERATIONS = 6
_LEARNED_FROM = 64  # vectors per cell
_AXES_FROM = 2000  # vectors whose principal components stand for those of the memory
_HIDDEN = 1e30  # squared length of a vector that must not be found


class CellIndex:
    """Shortlists for nearest-neighbour search in (m, d) float32 vectors, 24 or more.

    k-means puts the vectors into about sqrt(m) / 2 cells; a patch is compared with every vector of
    the few cells whose centres are nearest, so that its work grows with sqrt(m). Patches that look
    into the same cell are compared in one matrix product, several times as fast as going through
    the cells patch by patch. All of it happens in the `principal` leading principal components of
    the memory; what a vector keeps outside these enters as its energy.

    What is learned is summed in float64, so that the cells are the same for any number of threads.
    Source: inverted files as in Jegou et al. 2011; search by cell instead of by patch is ours.
    """

    def __init__(self, vectors: torch.Tensor, *, principal: int = 96, seed: int = 0) -> None:
        import torch

        m, dim = vectors.shape
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(m, generator=generator)
        # distances are differences of squared lengths: short vectors keep them accurate
        mean = vectors.double().mean(0)
        centred = vectors.double() - mean
        axes = principal_axes(centred[drawn[:_AXES_FROM]], min(principal, dim), generator)
        points = centred @ axes
        count = max(1, round(m**0.5 / 2))
        centres = _lloyd(points[drawn[: _LEARNED_FROM * count]], count)
        centres, label = _settled(points, centres)
        self.order = torch.argsort(label, stable=True)
        """(m,) indices of the vectors, cell by cell."""
        self.sizes: list[int] = torch.bincount(label, minlength=len(centres)).tolist()
        # |z - v|^2 - |z|^2 = |v|^2 - 2 z v is one product of [z, 1] with a column
        columns = torch.cat([-2 * points, squared_norms(centred)[:, None]], 1)[self.order].float()
        self.columns = [cell.T.contiguous() for cell in torch.split(columns, self.sizes)]
        centre_columns = torch.cat([-2 * centres, squared_norms(centres)[:, None]], 1)
        self.centres = centre_columns.T.float().contiguous()
        # and [z, 1] is an affine map of a patch
        self.axes = torch.nn.functional.pad(axes, (0, 1)).float()
        self.offset = torch.nn.functional.pad(-(mean @ axes), (0, 1), value=1.0).float()

    def shortlist(
        self,
        patches: torch.Tensor,
        k: int,
        effort: Effort = USUAL,
        hidden: Mapping[int, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Indices (n, >= k) of vectors that are probably among the k nearest to (n, d) patches.

        k: 1 to `LARGEST_K`. hidden: what `hiding` gives.
        """
        import torch

        probes, kept = min(effort.probes, len(self.sizes)), k * effort.kept
        measured = k * effort.measured
        ranked = probes * kept > measured
        rows = torch.addmm(self.offset, patches, self.axes)
        near = (rows @ self.centres).topk(probes, dim=1, largest=False).indices
        cell_of, pairs = near.reshape(-1).sort(stable=True)
        rows = rows[pairs // probes]
        found = np.empty((len(pairs), kept), np.int64)
        values = np.empty((len(pairs), kept), np.float32)
        first = start = 0
        for cell, count in enumerate(torch.bincount(cell_of, minlength=len(self.sizes)).tolist()):
            columns = self.columns[cell] if hidden is None else hidden.get(cell, self.columns[cell])
            width = columns.shape[1]
            step = max(1, TILE[0] * TILE[1] // width)
            for at in range(start, start + count, step):
                end = min(at + step, start + count)
                rough = (rows[at:end] @ columns).numpy()
                each = np.arange(end - at)
                for i in range(kept):
                    best = rough.argmin(1)
                    found[at:end, i] = best + first
                    if ranked:
                        values[at:end, i] = rough[each, best]
                    if i + 1 < kept:
                        rough[each, best] = np.inf
            start += count
            first += width
        back = torch.empty_like(pairs)
        back[pairs] = torch.arange(len(pairs))
        shortlist = torch.from_numpy(found)[back].view(len(patches), -1)
        if ranked:
            rough_values = torch.from_numpy(values)[back].view(len(patches), -1)
            best_of_all = rough_values.topk(measured, dim=1, largest=False)
            shortlist = shortlist.gather(1, best_of_all.indices)
        return self.order[shortlist]

    def hiding(self, excluded: torch.Tensor) -> dict[int, torch.Tensor]:
        """For `shortlist`: columns that keep vectors of the (m,) bool mask from being found, for
        each cell that holds some.
        """
        import torch

        changed = {}
        for cell, mask in enumerate(torch.split(excluded[self.order], self.sizes)):
            if bool(mask.any()):
                changed[cell] = self.columns[cell].clone()
                changed[cell][-1, mask] = _HIDDEN
        return changed


def _lloyd(points: torch.Tensor, count: int) -> torch.Tensor:
    """At most `count` centres by Lloyd's iterations from the first of the (m, d) points."""
    import torch

    centres = points[:count]
    for _ in range(_ITERATIONS):
        label = _nearest(points, centres)
        size = torch.bincount(label, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, label, points)
        centres = (sums / size.clamp_min(1)[:, None])[size > 0]
    return centres


def _settled(points: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The centres (c, d) with at least `_SMALLEST_CELL` of the (m, d) points, and labels (m,)."""
    import torch

    while True:
        label = _nearest(points, centres)
        size = torch.bincount(label, minlength=len(centres))
        enough = size >= _SMALLEST_CELL
        if len(centres) == 1 or bool(enough.all()):
            return centres, label
        centres = centres[enough] if bool(enough.any()) else centres[:1]


def _nearest(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    import torch

    return row_argmin(torch.addmm(squared_norms(centres), points, centres.T, alpha=-2))


def principal_axes(centred: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Orthonormal (d, count) axes of most of the variance, by subspace iteration."""
    import torch

    axes = torch.randn(centred.shape[1], count, generator=generator, dtype=centred.dtype)
    for _ in range(3):
        axes = torch.linalg.qr(centred.T @ (centred @ axes)).Q
    return axes
