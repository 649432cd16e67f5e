"""Squared Euclidean distances in blocks: the one inner loop of coreset, k-means and search."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = [
    "TILE",
    "columns_of",
    "extended",
    "nearest",
    "nearest_column",
    "pairwise",
    "row_argmin",
    "squared_norms",
    "without_rounding",
]

# points by centres at a time: their distances stay in a core's cache while they are compared
TILE = 256, 2048
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


def extended(points: torch.Tensor) -> torch.Tensor:
    """[p, 1] (n, d + 1) of the (n, d) points."""
    import torch

    return torch.cat([points, points.new_ones(len(points), 1)], 1)


def columns_of(centres: torch.Tensor) -> torch.Tensor:
    """[-2 c, |c|^2] (d + 1, m) of the (m, d) centres; its product with [p, 1] compares them."""
    import torch

    return torch.cat([-2 * centres, squared_norms(centres)[:, None]], 1).T.contiguous()


def nearest_column(rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest value (n,) and its index (n,) in each row of the product of `extended` points
    (n, d + 1) and `columns_of` centres (d + 1, m), which is |p - c|^2 - |p|^2.

    Ties go to the lower index. Memory beyond the result is bounded whatever n is.
    """
    import torch

    n, m = len(rows), columns.shape[1]
    best = torch.full((n,), float("inf"), dtype=rows.dtype)
    index = torch.zeros(n, dtype=torch.long)
    step = TILE[0] * TILE[1] // max(1, min(m, TILE[1]))
    buffer = torch.empty(min(n, step) * min(m, TILE[1]), dtype=rows.dtype)
    tiles = [(s, columns[:, s : s + TILE[1]]) for s in range(0, m, TILE[1])]
    for start in range(0, n, step):
        block = rows[start : start + step]
        best_here, index_here = best[start : start + step], index[start : start + step]
        for first, tile in tiles:
            out = buffer[: len(block) * tile.shape[1]].view(len(block), tile.shape[1])
            torch.mm(block, tile, out=out)
            column = row_argmin(out)
            value = out.gather(1, column[:, None])[:, 0]
            nearer = value < best_here
            torch.where(nearer, column + first, index_here, out=index_here)
            torch.where(nearer, value, best_here, out=best_here)
    return best, index


def nearest(points: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distance (n,) and index (n,) of the nearest of (m, d) centres to each (n, d) point.

    Distances that differ from 0 by rounding only are 0. Ties go to the lower index. Memory beyond
    the result is bounded by the size of the two arguments.
    """
    best, index = nearest_column(extended(points), columns_of(centres))
    return without_rounding(best, squared_norms(points)), index


def without_rounding(values: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """Squared distances (n,) of `nearest_column` values, 0 where rounding is all that is left."""
    squared = values + norms
    return squared.masked_fill_(squared <= _ROUNDING * norms, 0)
