"""Dual modelling: a student with a normality and an abnormality branch, and a head that fuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedvad.detectors.student.branches import PaSTeNet, STFPMNet, build_net, reinitialise
from fedvad.detectors.student.dmdd.options import DualConfig
from fedvad.detectors.student.dmdd.perception import Perception
from fedvad.detectors.student.graphs import MapNet, smoothed
from fedvad.detectors.student.loss import Combine, combine_maps, level_maps
from fedvad.detectors.student.rd.net import Shape, build_reverse, conv, tap_shapes


class Decoupler(nn.Module):
    """Features of one level, widened and split: half for each of two branches of equal capacity.

    layers, factor: see `DualConfig`; the widened channels are even. Source: arXiv 2408.03888 (1 x 1
    convolutions that expand, then two branches); the number of layers is inferred.
    """

    def __init__(self, channels: int, *, layers: int = 2, factor: float = 1.0) -> None:
        super().__init__()
        self.share = max(1, round(factor * channels / 2))
        widths = [channels, *[2 * self.share] * layers]
        self.widen = nn.Sequential(*(conv(a, b, kernel=1) for a, b in pairwise(widths)))
        self.normality, self.abnormality = (
            nn.Sequential(conv(self.share, channels, kernel=1), nn.Conv2d(channels, channels, 1))
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normality and abnormality features, (b, c, h, w) each, of (b, c, h, w)."""
        wide = self.widen(x)
        return self.normality(wide[:, : self.share]), self.abnormality(wide[:, self.share :])


class DualStudent(nn.Module):
    """All that is trained, and averaged over sites: initial student, decouplers and fusion head.

    base: gives maps of the given shapes (c, h, w), of whatever it reads. Equal seeds give equal
    weights.
    """

    def __init__(
        self, base: nn.Module, shapes: Sequence[Shape], config: DualConfig, *, seed: int
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # layers draw weights of their own when made
            decouplers = nn.ModuleList(
                Decoupler(shape[0], layers=config.layers, factor=config.factor) for shape in shapes
            )
            head = Perception(shapes, config.head_input, config.head_channels)
        self.base, self.decouplers, self.head = base, decouplers, head
        reinitialise(nn.ModuleList([decouplers, head]), seed)
        head.begin()

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Normality and abnormality features, one (b, c, h, w) of each per level."""
        maps = self.base(inputs)
        both = [decouple(m) for decouple, m in zip(self.decouplers, maps, strict=True)]
        return [n for n, _ in both], [a for _, a in both]


class DualNet(STFPMNet):
    """A teacher, and a dual student that is given the teacher's maps."""

    reads_maps: ClassVar[bool] = True
    student: DualStudent

    def compared(
        self, teacher: list[Tensor], z: Tensor | list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See `PaSTeNet.compared`; the student's maps are those of the normality branch."""
        return teacher, self.branches(teacher, z)[0]

    def branches(
        self, teacher: list[Tensor], z: Tensor | list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Features of both branches; z: what the student reads if not the teacher's maps."""
        features: tuple[list[Tensor], list[Tensor]]
        features = self.student(teacher if self.reads_maps else z)
        return features

    def maps(self, x: Tensor, combine: Combine) -> Tensor:
        """(b, 3, h, w) of normalised images, on the head's grid: distances of the normality and
        of the abnormality branch, combined over the levels, and the head's probabilities.
        """
        teacher = self.teacher(x)
        normality, abnormality = self.branches(teacher, x)
        head = self.student.head
        distances = [
            combine_maps(level_maps(teacher, found), head.grid, combine)
            for found in (normality, abnormality)
        ]
        return torch.stack([*distances, head(teacher, normality, abnormality)], 1)


class DualImageNet(DualNet):
    """A dual student that is given the image."""

    reads_maps: ClassVar[bool] = False


class DualMapNet(MapNet):
    """Pixels to the three maps (b, 3, h, w) of a dual net, see `DualNet.maps`."""

    net: DualNet

    def forward(self, images: Tensor) -> Tensor:
        """The maps of (b, S, S, 3) uint8 images."""
        return self.net.maps(self.normalise(images), self.combine)


class FusedMaps(nn.Module):
    """The maps (b, h, w) of one source of scores, of the three of a `DualMapNet`.

    source: `seg` is the head's, `maps` the distances' sum, `mix` the mean of both in units of
    `parts`. smooth: of the distances, in cells.
    """

    def __init__(
        self, maps: DualMapNet, source: str, parts: Mapping[str, float], smooth: int
    ) -> None:
        super().__init__()
        self.maps, self.source, self.parts, self.smooth = maps, source, dict(parts), smooth

    def forward(self, images: Tensor) -> Tensor:
        """The maps of (b, S, S, 3) uint8 images."""
        stack: Tensor = self.maps(images)
        if self.source == "seg":
            return stack[:, 2]
        summed: Tensor = smoothed(stack[:, 0] + stack[:, 1], self.smooth)
        if self.source == "maps":
            return summed
        return (stack[:, 2] / self.parts["seg"] + summed / self.parts["maps"]) / 2


def build_dual(
    network: nn.Module,
    given: Sequence[int],
    layers: Sequence[int],
    config: DualConfig,
    *,
    image_size: int,
    seed: int,
) -> DualNet:
    """A frozen copy of a tapped backbone, and its dual student, untrained.

    network: images (b, 3, S, S) to one map per layer in `given`. layers: those to distil.
    image_size: S. Raises `ConfigError` for layers that are not given, maps that are too small for
    a decoder, or a backbone that is no chain of layers for an encoder.
    """
    net: PaSTeNet
    if config.student == "decoder":
        net = build_reverse(
            network, given, layers, image_size=image_size, width=config.width, seed=seed
        )
    else:
        net = build_net(network, layers, bootstrap=-1, seed=seed)
    shapes = tap_shapes(net.teacher, image_size)
    student = DualStudent(net.student, shapes, config, seed=seed)
    kind = DualNet if config.student == "decoder" else DualImageNet
    return kind(net.teacher, student)
