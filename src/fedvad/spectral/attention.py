"""Sparse sampling attention: each token looks at a few places that it chooses itself."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Block", "Offsets", "SamplingAttention"]

Offsets = Literal["ring", "near"]


class SamplingAttention(nn.Module):
    """Multi-head attention of tokens on a grid, to all tokens or to `points` sampled ones.

    Sampling costs n x points in place of n². Where to sample is learned from the query.

    Parameters
    ----------
    dim : int
        Length of a token, a multiple of `heads`.
    heads, points : int
    offsets : {"ring", "near"}, default="ring"
        Where the points of each head lie at first: 1, 2, ... cells away on a ray of its own, or all
        near the query's own place.

    Examples
    --------
    >>> attend = SamplingAttention(8, heads=2, points=3)
    >>> attend(torch.zeros(1, 20, 8), (4, 5), sparse=True).shape
    torch.Size([1, 20, 8])

    Source: HyperSIGMA (Wang et al. 2025); its public code starts "near".
    """

    def __init__(self, dim: int, *, heads: int, points: int, offsets: Offsets = "ring") -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.qkv = nn.Linear(dim, 3 * dim)
        self.offsets = nn.Linear(dim, heads * points * 2)
        self.out = nn.Linear(dim, dim)
        if offsets == "near":  # as layers begin; at exactly 0 all points would move as one
            return
        nn.init.zeros_(self.offsets.weight)
        angles = torch.arange(heads) * (2 * math.pi / heads)
        rays = torch.stack([angles.cos(), angles.sin()], 1)[:, None]
        steps = torch.arange(1, points + 1)[None, :, None]
        with torch.no_grad():
            self.offsets.bias.copy_((rays * steps).flatten())

    def forward(self, tokens: Tensor, grid: tuple[int, int], *, sparse: bool) -> Tensor:
        """Tokens (b, n, dim), row by row of `grid` where sparse, to (b, n, dim)."""
        query, *others = self.qkv(tokens).chunk(3, 2)
        q, k, v = (self._split(part) for part in (query, *others))
        if not sparse:
            return self._joined(F.scaled_dot_product_attention(q, k, v))
        places = self._places(query, grid)
        k, v = (self._sampled(part, places, grid) for part in (k, v))
        weights = (q[:, :, :, None] * k).sum(-1).div(math.sqrt(q.shape[-1])).softmax(-1)
        return self._joined((weights[..., None] * v).sum(3))

    def _split(self, tokens: Tensor) -> Tensor:
        """(b, n, dim) to (b, heads, n, c)."""
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)

    def _joined(self, found: Tensor) -> Tensor:
        mixed: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return mixed

    def _places(self, query: Tensor, grid: tuple[int, int]) -> Tensor:
        """Where each query of each head samples: (b heads, n, points, 2), x and y in -1..1."""
        height, width = grid
        moved = self.offsets(query)
        moved = moved.reshape(*query.shape[:2], self.heads, self.points, 2).transpose(1, 2)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        here = torch.stack([x, y], 2).flatten(0, 1)[:, None].to(moved)
        size = torch.tensor([width, height]).to(moved)
        places: Tensor = (2 * (here + 0.5 + moved) / size - 1).flatten(0, 1)
        return places

    def _sampled(self, values: Tensor, places: Tensor, grid: tuple[int, int]) -> Tensor:
        """Values (b, heads, n, c) at the places: (b, heads, n, points, c); 0 beyond the edge."""
        maps = values.flatten(0, 1).transpose(1, 2).reshape(-1, values.shape[3], *grid)
        found = F.grid_sample(maps, places, align_corners=False).permute(0, 2, 3, 1)
        return found.reshape(*values.shape[:3], self.points, -1)


class Block(nn.Module):
    """A transformer block: normalised attention and a normalised layer pair, each added.

    Parameters
    ----------
    dim, heads, points, offsets
        See `SamplingAttention`.
    drop : float, default=0.0
        Chance that a training step leaves out what is added, of each image (stochastic depth).

    Examples
    --------
    >>> Block(8, heads=2, points=3)(torch.zeros(1, 20, 8), (4, 5), sparse=False).shape
    torch.Size([1, 20, 8])
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        points: int,
        offsets: Offsets = "ring",
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop = drop
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = SamplingAttention(dim, heads=heads, points=points, offsets=offsets)
        self.layers = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, tokens: Tensor, grid: tuple[int, int], *, sparse: bool) -> Tensor:
        """Tokens (b, n, dim) to tokens."""
        tokens = tokens + self._kept(self.attention(self.before(tokens), grid, sparse=sparse))
        changed: Tensor = tokens + self._kept(self.layers(self.between(tokens)))
        return changed

    def _kept(self, added: Tensor) -> Tensor:
        if not self.training or self.drop == 0:
            return added
        kept = torch.rand(len(added), 1, 1, device=added.device) >= self.drop
        return added * kept / (1 - self.drop)
