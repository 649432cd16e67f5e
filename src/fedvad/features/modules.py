"""The torch modules around a backbone: taps, and the whole way from pixels to descriptors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional


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


class Headed(torch.nn.Module):
    """A network whose every map goes through a 1 x 1 convolution without bias."""

    def __init__(self, network: torch.nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        with torch.inference_mode():
            maps = network.eval()(torch.zeros(1, 3, 64, 64))
        self.heads = torch.nn.ModuleList(
            torch.nn.Conv2d(m.shape[1], c, 1, bias=False)
            for m, c in zip(maps, channels, strict=True)
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """One map (b, c, h, w) per head, in their order."""
        return [head(m) for head, m in zip(self.heads, self.network(x), strict=True)]


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
        image_size: int | tuple[int, int],
    ) -> None:
        super().__init__()
        self.network = network
        self.pool = pool
        # sizes are settled here, because a traced graph cannot compare them
        sides = (image_size, image_size) if isinstance(image_size, int) else image_size
        with torch.inference_mode():
            shapes = [m.shape for m in network(torch.zeros(1, len(mean), *sides))]
        self.grid = max(int(s[2]) for s in shapes), max(int(s[3]) for s in shapes)
        self.dim = sum(int(s[1]) for s in shapes)
        self._resize = [tuple(s[2:]) != self.grid for s in shapes]
        own = [np.full(s[1], s[2] * s[3] / (self.grid[0] * self.grid[1])) for s in shapes]
        self.shares = np.concatenate(own).astype(np.float32)
        """(d,) cells of the layer that each value is of, as a share of the cells of the finest."""
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(1, -1, 1, 1)))
        self.register_buffer("shift", -(torch.tensor(mean) / torch.tensor(std)).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(b, H, W, 3) uint8 RGB, or float32 cubes, to (b, h, w, d) float32 descriptors."""
        x = images.permute(0, 3, 1, 2).float() * self.get_buffer("scale") + self.get_buffer("shift")
        maps = [self._smooth(m) for m in self.network(x)]
        resized = [
            functional.interpolate(m, self.grid, mode="bilinear", align_corners=False)
            if other
            else m
            for m, other in zip(maps, self._resize, strict=True)
        ]
        return torch.cat(resized, 1).permute(0, 2, 3, 1)

    def _smooth(self, m: torch.Tensor) -> torch.Tensor:
        if self.pool == 1:
            return m
        return functional.avg_pool2d(m, self.pool, stride=1, padding=self.pool // 2)
