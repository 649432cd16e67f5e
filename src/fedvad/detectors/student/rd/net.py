"""Reverse distillation: a student that rebuilds the teacher's maps from their narrow summary."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedvad.detectors.student.branches import STFPMNet, check_layers, reinitialise
from fedvad.errors import ConfigError
from fedvad.features.modules import Taps

__all__ = [
    "Bottleneck",
    "Decoder",
    "ReverseNet",
    "ReverseStudent",
    "build_reverse",
    "conv",
    "resized",
    "tap_shapes",
    "tapped",
]

Shape = tuple[int, int, int]
_NARROWEST = 8
_SQUEEZED_FROM = 4


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch norm beside a shortcut (He et al. 2016, basic block)."""

    def __init__(self, before: int, after: int, *, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(b, after, h / stride, w / stride), rounded up, of (b, before, h, w)."""
        return torch.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """Maps of all taps to one embedding: brought to the coarsest grid, joined, halved again.

    A tap goes through as many strided 3 x 3 convolutions as bring it nearest to the coarsest grid,
    and is resized for the rest, so strides may differ by any factor. The grid is halved only if
    that leaves 2 x 2 cells or more.
    Source: Deng and Li 2022, section 3.2; the resizing, and the 1 x 1 convolution of a tap that
    needs no stride, are ours.
    """

    def __init__(self, shapes: Sequence[Shape], widths: Sequence[int], channels: int) -> None:
        super().__init__()
        deep = max(widths)
        self.grid = min(shape[1] for shape in shapes), min(shape[2] for shape in shapes)
        self.ways = nn.ModuleList(
            self._way(shape, width, deep) for shape, width in zip(shapes, widths, strict=True)
        )
        stride = 2 if min(self.grid) >= _SQUEEZED_FROM else 1
        self.join = Residual(deep * len(shapes), channels, stride=stride)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(b, channels, h', w') of one (b, c, h, w) per tap."""
        ways = [way(m) for way, m in zip(self.ways, maps, strict=True)]
        return self.join(torch.cat([resized(m, self.grid) for m in ways], 1))  # type: ignore[no-any-return]

    def _way(self, shape: Shape, width: int, deep: int) -> nn.Sequential:
        halvings = round(math.log2(shape[1] / self.grid[0]))
        if not halvings:
            return conv(shape[0], deep, kernel=1)
        widths = [shape[0], *[width] * (halvings - 1), deep]
        return nn.Sequential(*(conv(widths[i], widths[i + 1], stride=2) for i in range(halvings)))


class Decoder(nn.Module):
    """The embedding to maps of the taps' shapes, from the coarsest to the finest.

    A level is a convolution on the coarser grid, bilinear resizing, a residual block, and a 1 x 1
    convolution without an activation: taps of mobile networks have negative values, too.
    Source: Deng and Li 2022, section 3.1, where a mirrored ResNet enlarges by transposed
    convolutions; this lighter form is ours.
    """

    def __init__(self, shapes: Sequence[Shape], widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.sizes = [(shape[1], shape[2]) for shape in shapes]
        self.order = sorted(range(len(shapes)), key=lambda i: self.sizes[i])
        enter, blocks, heads = [], [], []
        for i in self.order:
            enter.append(conv(channels, widths[i]))
            blocks.append(Residual(widths[i], widths[i]))
            heads.append(nn.Conv2d(widths[i], shapes[i][0], 1))
            channels = widths[i]
        self.enter, self.blocks = nn.ModuleList(enter), nn.ModuleList(blocks)
        self.heads = nn.ModuleList(heads)

    def forward(self, embedding: Tensor) -> list[Tensor]:
        """One (b, c, h, w) per tap, in the order of the taps."""
        maps: dict[int, Tensor] = {}
        x = embedding
        for i, enter, block, head in zip(
            self.order, self.enter, self.blocks, self.heads, strict=True
        ):
            x = block(resized(enter(x), self.sizes[i]))
            maps[i] = head(x)
        return [maps[i] for i in range(len(maps))]


class ReverseStudent(nn.Module):
    """Bottleneck and decoder for maps of the given shapes (c, h, w); equal seeds, equal weights.

    width: hidden channels of a level in shares of its tap's, 8 at least; the embedding has twice
    those of the widest level. Raises `ConfigError` for no tap, a map of one cell, or a width that
    is not positive.
    """

    def __init__(self, shapes: Sequence[Shape], *, width: float = 1.0, seed: int) -> None:
        super().__init__()
        if not shapes or min(min(shape[1:]) for shape in shapes) < 2:
            raise ConfigError(
                f"reverse distillation needs maps of 2 x 2 cells or more, got {list(shapes)}; "
                "choose earlier layers or larger images"
            )
        if not (math.isfinite(width) and width > 0):
            raise ConfigError(f"width must be a positive share of the taps' channels, not {width}")
        widths = [max(_NARROWEST, round(width * shape[0])) for shape in shapes]
        channels = 2 * max(widths)
        with torch.random.fork_rng(devices=[]):  # layers draw weights of their own when made
            self.bottleneck = Bottleneck(shapes, widths, channels)
            self.decoder = Decoder(shapes, widths, channels)
        reinitialise(self, seed)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What is rebuilt of the teacher's maps, one (b, c, h, w) of the same shape each."""
        rebuilt: list[Tensor] = self.decoder(self.bottleneck(maps))
        return rebuilt


class ReverseNet(STFPMNet):
    """Teacher and a student that is given the teacher's maps, not the image."""

    reads_maps: ClassVar[bool] = True

    def compared(
        self, teacher: list[Tensor], z: Tensor | list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See `PaSTeNet.compared`; z is not looked at."""
        return teacher, self.student(teacher)


def build_reverse(
    network: nn.Module,
    given: Sequence[int],
    layers: Sequence[int],
    *,
    image_size: int,
    width: float = 1.0,
    seed: int,
) -> ReverseNet:
    """A frozen copy of a tapped backbone, and its student, untrained.

    network, given, layers: see `tapped`. image_size: S. Raises `ConfigError` for a layer that is
    not given, or maps that are too small.
    """
    teacher = tapped(network, given, layers)
    student = ReverseStudent(tap_shapes(teacher, image_size), width=width, seed=seed)
    return ReverseNet(teacher, student)


def tapped(network: nn.Module, given: Sequence[int], layers: Sequence[int]) -> Taps:
    """A copy of a backbone that gives the maps of some layers, from the finest on.

    network: images (b, 3, S, S) to one map (b, c, h, w) per layer in `given`, in that order.
    layers: those to distil. Raises `ConfigError` for a layer that is not given.
    """
    check_layers(layers, given)
    return Taps(copy.deepcopy(network), [list(given).index(n) for n in sorted(set(layers))]).eval()


def tap_shapes(teacher: nn.Module, image_size: int) -> list[Shape]:
    """(c, h, w) of the maps that a teacher gives of images of this size."""
    device = next((p.device for p in teacher.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        maps = teacher(torch.zeros(1, 3, image_size, image_size, device=device))
    return [(int(m.shape[1]), int(m.shape[2]), int(m.shape[3])) for m in maps]


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (b, c, h, w) bilinearly resized to (b, c, *size), where they are of another size."""
    # sizes are compared as numbers, for a traced graph holds one way alone
    if (int(x.shape[2]), int(x.shape[3])) == size:
        return x
    return functional.interpolate(x, size, mode="bilinear", align_corners=False)


def conv(
    before: int, after: int, *, kernel: int = 3, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """A convolution that keeps the grid but for its stride, batch norm, and ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )
