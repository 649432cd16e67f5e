"""A ResNet thin enough for machines without a GPU, made from a large one by `fedvad distill`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedvad.errors import ConfigError


@dataclass(frozen=True)
class TinyConfig:
    """Channels after the stem, channels of each stage, channels within its blocks, and blocks.

    Stage i has stride 4 * 2^i. The defaults were chosen by measuring: four times as many images
    per second as ResNet-18, and as near to it as that allows.
    """

    stem: int = 16
    widths: tuple[int, ...] = (32, 64, 128)
    inner: tuple[int, ...] = (32, 64, 96)
    depths: tuple[int, ...] = (1, 2, 2)

    def __post_init__(self) -> None:
        numbers = (self.stem, *self.widths, *self.inner)
        if not 1 <= len(self.widths) == len(self.inner) == len(self.depths) <= 4:
            raise ConfigError(
                "tiny needs one width, one inner width and one depth for each of 1 to 4 stages"
            )
        if not all(type(n) is int and 1 <= n <= 1024 for n in numbers):
            raise ConfigError(f"tiny takes channels from 1 to 1024, not {numbers}")
        if not all(type(n) is int and 1 <= n <= 16 for n in self.depths):
            raise ConfigError(f"tiny takes 1 to 16 blocks per stage, not {self.depths}")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> TinyConfig:
        """From a file's table, whose lists become tuples; raises `ConfigError`."""
        try:
            found: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in options.items()
            }
            return cls(**found)
        except TypeError as error:
            raise ConfigError(f"tiny takes stem, widths, inner and depths: {error}") from error


class TinyNet(nn.Module):
    """RGB (b, 3, S, S) to the maps of the stages `taps`; later stages are left out.

    A ResNet of basic blocks (He et al. 2016) whose channels within and between blocks are free.
    """

    def __init__(self, config: TinyConfig, taps: Sequence[int]) -> None:
        super().__init__()
        self.taps = tuple(taps)
        self.stem = Unit(3, config.stem, 7, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        channels = config.stem
        self.stages = nn.ModuleList()
        stages = list(zip(config.widths, config.inner, config.depths, strict=True))
        for i, (width, inner, depth) in enumerate(stages[: max(taps) + 1]):
            blocks = []
            for j in range(depth):
                blocks.append(Block(channels, inner, width, 2 if i and not j else 1))
                channels = width
            self.stages.append(nn.Sequential(*blocks))

    def blocks(self) -> list[list[Block]]:
        """The blocks of each stage."""
        stages = [list(stage.children()) for stage in self.stages]
        return [[b for b in blocks if isinstance(b, Block)] for blocks in stages]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (b, c, h, w) of the taps, finest first."""
        x = self.pool(torch.relu(self.stem(x)))
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.taps:
                maps.append(x)
        return maps


class Unit(nn.Module):
    """A convolution that keeps the grid but for its stride, and batch normalisation."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (b, outputs, h, w)."""
        maps: Tensor = self.norm(self.conv(x))
        return maps


class Block(nn.Module):
    """Two 3 x 3 convolutions, and a 1 x 1 convolution beside them where shapes change."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = Unit(inputs, inner, 3, stride)
        self.second = Unit(inner, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else Unit(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (b, outputs, h, w)."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))
