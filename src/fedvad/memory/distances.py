"""Squared Euclidean distances in blocks: the one inner loop of coreset, k-means and search."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["BLOCK_BYTES", "nearest", "pairwise", "row_argmin", "squared_norms"]

# larger blocks are allocated anew by the system each time, page by page
BLOCK_BYTES = 16 << 20
# |p|^2 + |c|^2 - 2 p c of equal points is off by a share of |p|^2 (float32: up to 2.4e-6 seen)
_ROUNDING = 5e-6


def squared_norms(points: torch.Tensor) -> torch.Tensor:
    """Squared length (n,) of each of the (n, d) points."""
    import torch

    norms: torch.Tensor = torch.linalg.vecdot(points, points)
    return norms


def row_argmin(rows: torch.Tensor) -> torch.Tensor:
    """Column (n,) of the first smallest value of each row; NumPy is ten times as fast here."""
    import torch

    return torch.from_numpy(rows.numpy().argmin(1))


def pairwise(points: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """Squared distances (n, n) between few (n, d) points; 0 where they differ by rounding only."""
    squared = norms[:, None] + norms[None] - 2 * points @ points.T
    return squared.masked_fill_(squared <= _ROUNDING * norms[:, None], 0)


def nearest(
    points: torch.Tensor,
    centres: torch.Tensor,
    *,
    points_norms: torch.Tensor | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distance (n,) and index (n,) of the nearest of (m, d) centres to each (n, d) point.

    Distances that differ from 0 by rounding only are 0. Memory beyond the result is bounded by
    `block_bytes`, whatever n is.
    """
    import torch

    n, m = len(points), len(centres)
    norms = squared_norms(points) if points_norms is None else points_norms
    best = torch.empty(n, dtype=points.dtype)
    index = torch.empty(n, dtype=torch.long)
    step = max(1, min(n, block_bytes // (points.element_size() * max(m, 1))))
    # |p - c|^2 - |p|^2 is one product of [p, 1] and [-2 c, |c|^2]: no second pass over the block
    columns = torch.cat([-2 * centres, squared_norms(centres)[:, None]], 1).T
    rows = torch.cat([points, points.new_ones(n, 1)], 1)
    buffer = torch.empty(step, m, dtype=points.dtype)
    for start in range(0, n, step):
        stop = min(n, start + step)
        block = torch.mm(rows[start:stop], columns, out=buffer[: stop - start])
        index[start:stop] = row_argmin(block)
        best[start:stop] = block.gather(1, index[start:stop, None])[:, 0]
    best += norms
    return best.masked_fill_(best <= _ROUNDING * norms, 0), index
