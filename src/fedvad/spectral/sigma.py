"""HyperSIGMA's network: a branch for places, one for bands, and an enhancement between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvad.errors import ConfigError
from fedvad.spectral.attention import Block, Offsets

__all__ = ["SIZES", "Branch", "Enhancement", "SigmaNet", "SigmaSize"]


@dataclass(frozen=True)
class SigmaSize:
    """How large the network is.

    Parameters
    ----------
    dim, depth, heads : int
        Of both branches.
    points : int
        That sampling attention looks at.
    interval : int
        Every this many blocks attention is full.
    bands : int
        Spectral tokens, a square number.
    taps : tuple of int
        Blocks, counted from 1, whose tokens make the spatial map.
    width : int
        Channels of the map.
    offsets : {"ring", "near"}, default="ring"
        Of sampling attention, see `SamplingAttention`.
    drop : float, default=0.0
        Of the last block while the recipe trains, in [0, 1); blocks before it have less, in
        proportion to their depth. See `Block`.
    """

    dim: int
    depth: int
    heads: int
    points: int
    interval: int
    bands: int
    taps: tuple[int, ...]
    width: int = 128
    offsets: Offsets = "ring"
    drop: float = 0.0

    def __post_init__(self) -> None:
        if self.dim % self.heads or math.isqrt(self.bands) ** 2 != self.bands:
            raise ConfigError(
                f"dim {self.dim} must be a multiple of heads {self.heads}, and bands {self.bands} "
                "a square number"
            )
        if not self.taps or not all(1 <= tap <= self.depth for tap in self.taps):
            raise ConfigError(f"taps {self.taps} must lie in 1 to depth {self.depth}")
        if self.offsets not in ("ring", "near") or not 0 <= self.drop < 1:
            raise ConfigError(
                f"offsets is {self.offsets!r}: ring or near; drop {self.drop}: at least 0, below 1"
            )


SIZES = {
    "tiny": SigmaSize(64, 4, 4, 4, 3, 36, (1, 2, 3, 4), width=32),
    "base": SigmaSize(768, 12, 12, 8, 3, 100, (4, 6, 8, 12), drop=0.1),
    "large": SigmaSize(1024, 24, 16, 8, 6, 100, (8, 12, 16, 24), drop=0.1),
    "huge": SigmaSize(1280, 32, 16, 8, 8, 100, (11, 16, 21, 32), drop=0.1),
}


class Branch(nn.Module):
    """Tokens with a code of their place, through the blocks; full attention every `interval`."""

    def __init__(self, length: int, grid: tuple[int, int], size: SigmaSize) -> None:
        super().__init__()
        self.grid, self.size = grid, size
        self.embed = nn.Linear(length, size.dim)
        self.places = nn.Parameter(0.02 * torch.randn(1, grid[0] * grid[1], size.dim))
        self.blocks = nn.ModuleList(
            Block(
                size.dim,
                heads=size.heads,
                points=size.points,
                offsets=size.offsets,
                drop=size.drop * number / max(1, size.depth - 1),
            )
            for number in range(size.depth)
        )

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Tokens (b, n, length) to those after each block, (b, n, dim)."""
        deep, found = self.embed(tokens) + self.places, []
        for number, block in enumerate(self.blocks, 1):
            deep = block(deep, self.grid, sparse=number % self.size.interval != 0)
            found.append(deep)
        return found

    def seen(self, tokens: Tensor, kept: Tensor) -> Tensor:
        """The last tokens (b, k, dim) of those at `kept` (b, k) alone, with full attention."""
        deep: Tensor = self.embed(tokens) + self.places
        deep = deep.gather(1, kept[:, :, None].expand(-1, -1, deep.shape[2]))
        for block in self.blocks:
            deep = block(deep, self.grid, sparse=False)
        return deep


class Enhancement(nn.Module):
    """Channels of a spatial map, each strengthened by up to its double as the spectrum says.

    Parameters
    ----------
    bands, width : int
        Spectral tokens, and channels of the map.

    Examples
    --------
    >>> Enhancement(36, 8)(torch.ones(2, 8, 4, 4), torch.zeros(2, 36, 8))[0, 0, 0, 0].item()
    1.5
    """

    def __init__(self, bands: int, width: int) -> None:
        super().__init__()
        hidden = max(1, width // 4)
        self.gate = nn.Sequential(
            nn.Linear(bands, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, width, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, image: Tensor, spectrum: Tensor) -> Tensor:
        """Map (b, width, h, w) and spectral tokens (b, bands, width) to a map."""
        strengthened: Tensor = (1 + self.gate(spectrum.mean(2))[:, :, None, None]) * image
        return strengthened


class SigmaNet(nn.Module):
    """Two logits for each pixel of a square tile.

    Parameters
    ----------
    features : int
        Values of a pixel that the spatial branch sees.
    side : int
        Of a tile in pixels; each pixel is a token.
    size : SigmaSize
        See `SIZES`.
    spectral : bool, default=True
        Whether the spectral branch takes part; without it the network is SpatSIGMA.

    Examples
    --------
    >>> network = SigmaNet(20, 8, SIZES["tiny"])
    >>> network(torch.zeros(2, 20, 8, 8), torch.zeros(2, 50, 8, 8)).shape
    torch.Size([2, 2, 8, 8])

    Source: Wang et al., IEEE TPAMI 47(8), 2025, and its code for anomaly detection.
    """

    def __init__(self, features: int, side: int, size: SigmaSize, *, spectral: bool = True) -> None:
        super().__init__()
        self.size, self.side = size, side
        self.spatial = Branch(features, (side, side), size)
        self.taps = nn.ModuleList(nn.Linear(size.dim, size.width) for _ in size.taps)
        self.fuse = nn.Conv2d(size.width, size.width, 1)
        self.head = nn.Conv2d(size.width, 2, 1, bias=False)
        self.spectral: Branch | None = None
        if spectral:
            root = math.isqrt(size.bands)
            self.spectral = Branch(side * side, (root, root), size)
            self.narrow = nn.Linear(size.dim, size.width)
            self.enhance = Enhancement(size.bands, size.width)

    def pixels(self, features: Tensor) -> Tensor:
        """The spatial tokens (b, side², features) of a tile (b, features, side, side)."""
        return features.flatten(2).transpose(1, 2)

    def bands(self, spectra: Tensor) -> Tensor:
        """The spectral tokens (b, size.bands, side²): bands averaged to that number."""
        return F.adaptive_avg_pool1d(self.pixels(spectra), self.size.bands).transpose(1, 2)

    def forward(self, features: Tensor, spectra: Tensor) -> Tensor:
        """Logits (b, 2, side, side) of background and anomaly, of a tile's pixels.

        features (b, features, side, side), for the spatial branch; spectra (b, bands, side, side).
        """
        after = self.spatial(self.pixels(features))
        mixed = torch.stack(
            [tap(after[place - 1]) for place, tap in zip(self.size.taps, self.taps, strict=True)]
        ).sum(0)
        image = self.fuse(mixed.transpose(1, 2).reshape(-1, self.size.width, self.side, self.side))
        if self.spectral is not None:
            image = self.enhance(image, self.narrow(self.spectral(self.bands(spectra))[-1]))
        logits: Tensor = self.head(image)
        return logits
