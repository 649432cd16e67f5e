"""Maps as blocks, and memories that answer a block with a mixture of their items."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_EPS = 1e-12


def divide(maps: Tensor, rows: int, columns: int, depth: int = 1) -> Tensor:
    """Maps (b, c, h, w) as blocks (b, depth * rows * columns, d), by channels, rows and columns.

    c must be a multiple of depth; h and w are filled up with zeros to multiples of rows and
    columns. d = c / depth * ceil(h / rows) * ceil(w / columns).
    """
    channels, height, width = (int(n) for n in maps.shape[1:])
    tall, wide = -(-height // rows), -(-width // columns)
    filled = functional.pad(maps, (0, wide * columns - width, 0, tall * rows - height))
    parts = filled.reshape(-1, depth, channels // depth, rows, tall, columns, wide)
    order = parts.permute(0, 1, 3, 5, 2, 4, 6)
    return order.reshape(-1, depth * rows * columns, channels // depth * tall * wide)


def assemble(
    blocks: Tensor, shape: tuple[int, int, int], rows: int, columns: int, depth: int = 1
) -> Tensor:
    """The maps (b, *shape) that `divide` gave these blocks of."""
    channels, height, width = shape
    tall, wide = -(-height // rows), -(-width // columns)
    parts = blocks.reshape(-1, depth, rows, columns, channels // depth, tall, wide)
    order = parts.permute(0, 1, 4, 2, 5, 3, 6)
    filled = order.reshape(-1, channels, rows * tall, columns * wide)
    return filled[:, :, :height, :width]


def address(
    queries: Tensor, items: Tensor, *, temperature: float, shrink: float, cosine: bool = True
) -> Tensor:
    """(b, q, n) weights of n items (n, d) for queries (b, q, d); they sum to 1.

    Softmax of cosines (or of dot products) over the temperature; weights of at most `shrink` become
    0 and the others are scaled to sum to 1. Where none is left, the nearest item has all of it.
    Source: Gong et al. 2019 (MemAE), equations 4 and 7; the last rule is ours.
    """
    if cosine:
        queries, items = (functional.normalize(x, dim=-1) for x in (queries, items))
    weights = torch.softmax(queries @ items.T / temperature, -1)
    if not shrink:
        return weights
    over = torch.relu(weights - shrink)
    kept = over * weights / ((weights - shrink).abs() + _EPS)
    nearest = (weights == weights.amax(-1, keepdim=True)).to(weights.dtype)
    kept = torch.where(kept.sum(-1, keepdim=True) > 0, kept, nearest)
    return kept / kept.sum(-1, keepdim=True)


def entropy(weights: Tensor) -> Tensor:
    """Mean entropy in nats of weights (..., n) that sum to 1; a scalar."""
    return -(weights * (weights + _EPS).log()).sum(-1).mean()


def perplexity(weights: Tensor) -> float:
    """How many of n items are in use, from 1 to n, by the mean weight (n,) of each."""
    return float(entropy(weights / weights.sum()).exp())


class BlockMemory(nn.Module):
    """Items for the blocks of maps of one shape (c, h, w); all positions share them."""

    def __init__(self, shape: tuple[int, int, int], divisions: int, depth: int, items: int) -> None:
        super().__init__()
        self.shape, self.depth = shape, depth
        self.rows, self.columns = (min(divisions, side) for side in shape[1:])
        sides = -(-shape[1] // self.rows), -(-shape[2] // self.columns)
        length = shape[0] // depth * sides[0] * sides[1]
        self.items = nn.Parameter(torch.zeros(items, length))

    def weights(self, maps: Tensor, *, temperature: float, shrink: float) -> Tensor:
        """(b, q, n) of the items for each block of maps (b, c, h, w); see `address`."""
        queries = divide(maps, self.rows, self.columns, self.depth)
        share = shrink / len(self.items)
        return address(queries, self.items, temperature=temperature, shrink=share)

    def recall(self, weights: Tensor) -> Tensor:
        """Maps (b, c, h, w) put together from the items with such weights."""
        return assemble(weights @ self.items, self.shape, self.rows, self.columns, self.depth)
