"""Squared Euclidean distances in blocks: the one inner loop of coreset, k-means and search."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["BLOCK_BYTES", "nearest", "squared_norms"]

BLOCK_BYTES = 64 << 20


def squared_norms(points: torch.Tensor) -> torch.Tensor:
    """Squared length (n,) of each of the (n, d) points."""
    import torch

    norms: torch.Tensor = torch.linalg.vecdot(points, points)
    return norms


def nearest(
    points: torch.Tensor,
    centres: torch.Tensor,
    *,
    points_norms: torch.Tensor | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distance (n,) and index (n,) of the nearest of (m, d) centres to each (n, d) point.

    Memory beyond the result is bounded by `block_bytes`, whatever n is.
    """
    import torch

    n, m = len(points), len(centres)
    norms = squared_norms(points) if points_norms is None else points_norms
    centre_norms = squared_norms(centres)[None]
    best = torch.empty(n, dtype=points.dtype)
    index = torch.empty(n, dtype=torch.long)
    step = max(1, block_bytes // (points.element_size() * max(m, 1)))
    transposed = centres.T
    for start in range(0, n, step):
        stop = min(n, start + step)
        block = torch.addmm(centre_norms, points[start:stop], transposed, alpha=-2)
        torch.min(block, dim=1, out=(best[start:stop], index[start:stop]))
    return (best + norms).clamp_min_(0), index
