"""A small plain-convolution backbone for machines without a GPU, to be trained by distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedvad.errors import ConfigError

__all__ = ["TinyConfig", "TinyNet"]


@dataclass(frozen=True)
class TinyConfig:
    """Channels after the stem, channels of each stage, and residual blocks in each.

    A stage halves the grid: stage i has stride 4 * 2^i. The defaults were chosen by measuring:
    dense 3 x 3 convolutions use a CPU's arithmetic better than depthwise ones, and what a stage
    at stride 16 costs in bytes it saves in time.
    """

    stem: int = 16
    widths: tuple[int, ...] = (32, 64, 128)
    depths: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        numbers = (self.stem, *self.widths)
        if not 1 <= len(self.widths) <= 4 or len(self.depths) != len(self.widths):
            raise ConfigError("tiny needs one width and one depth for each of 1 to 4 stages")
        if not all(type(n) is int and 1 <= n <= 1024 for n in numbers):
            raise ConfigError(f"tiny takes channels from 1 to 1024, not {numbers}")
        if not all(type(n) is int and 0 <= n <= 16 for n in self.depths):
            raise ConfigError(f"tiny takes 0 to 16 blocks per stage, not {self.depths}")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> TinyConfig:
        """From a file's table, whose lists become tuples; raises `ConfigError`."""
        try:
            found: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in options.items()
            }
            return cls(**found)
        except TypeError as error:
            raise ConfigError(f"tiny takes stem, widths and depths: {error}") from error


class TinyNet(nn.Module):
    """RGB (b, 3, S, S) to the maps of the stages `taps`; later stages are left out.

    3 x 3 convolutions with batch normalisation throughout, basic residual blocks (He et al. 2016)
    without their shortcuts' projections: a stage begins with a plain convolution of stride 2.
    """

    def __init__(self, config: TinyConfig, taps: Sequence[int]) -> None:
        super().__init__()
        self.taps = tuple(taps)
        self.stem = _unit(3, config.stem, 2)
        channels = config.stem
        self.stages = nn.ModuleList()
        for width, depth in list(zip(config.widths, config.depths, strict=True))[: max(taps) + 1]:
            blocks = [_Block(width) for _ in range(depth)]
            self.stages.append(nn.Sequential(_unit(channels, width, 2), *blocks))
            channels = width

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (b, c, h, w) of the taps, finest first."""
        x = self.stem(x)
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.taps:
                maps.append(x)
        return maps


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _unit(channels, channels)
        self.second = _unit(channels, channels)[:-1]

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return torch.relu(x + self.second(self.first(x)))


def _unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
