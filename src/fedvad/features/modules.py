"""The torch modules around a backbone: taps, and the whole way from pixels to descriptors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

__all__ = ["BlockTaps", "DescriptorNet", "Taps"]


class Taps(torch.nn.Module):
    """Some of the maps that a network returns as a list."""

    def __init__(self, network: torch.nn.Module, taps: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.taps = tuple(taps)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Maps (b, c, h, w) of the taps, in their order."""
        maps = self.network(x)
        return [maps[i] for i in self.taps]


class BlockTaps(torch.nn.Module):
    """Outputs of chosen blocks of a timm EfficientNet; blocks beyond the last are dropped."""

    def __init__(self, network: torch.nn.Module, taps: Sequence[int]) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = network.conv_stem, network.bn1
        self.blocks = torch.nn.ModuleList(list(network.blocks)[: max(taps) + 1])  # type: ignore[arg-type]
        self.taps = tuple(taps)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Maps (b, c, h, w) of the taps, in their order."""
        x = self.bn1(self.conv_stem(x))  # type: ignore[operator]
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                maps.append(x)
        return maps


class DescriptorNet(torch.nn.Module):
    """uint8 images in, patch descriptors out: one graph for every engine and export.

    Each tap is averaged over pool x pool cells, resized bilinearly to the finest grid, and
    concatenated. Source: PatchCore, Roth et al. 2022, sec. 3.1.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        pool: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.pool = pool
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(1, 3, 1, 1)))
        self.register_buffer("shift", -(torch.tensor(mean) / torch.tensor(std)).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(b, S, S, 3) uint8 RGB to (b, h, w, d) float32 descriptors."""
        x = images.permute(0, 3, 1, 2).float() * self.scale + self.shift
        maps = [self._smooth(m) for m in self.network(x)]
        height, width = maps[0].shape[-2:]
        for m in maps[1:]:
            height, width = max(height, m.shape[-2]), max(width, m.shape[-1])
        resized = [
            m
            if m.shape[-2:] == (height, width)
            else functional.interpolate(m, (height, width), mode="bilinear", align_corners=False)
            for m in maps
        ]
        return torch.cat(resized, 1).permute(0, 2, 3, 1)

    def _smooth(self, m: torch.Tensor) -> torch.Tensor:
        if self.pool == 1:
            return m
        return functional.avg_pool2d(m, self.pool, stride=1, padding=self.pool // 2)
