"""The whole ways of a student and its teacher, from uint8 pixels on, as an engine runs them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedvad.detectors.student.branches import PaSTeNet
from fedvad.detectors.student.loss import Combine, combine_maps, level_maps
from fedvad.errors import ConfigError
from fedvad.features.extractor import FeatureExtractor

__all__ = [
    "MapNet",
    "Normalise",
    "ScaledMaps",
    "TargetNet",
    "normalise_of",
    "normaliser",
    "smoothed",
]


class Normalise(nn.Module):
    """uint8 RGB images (b, S, S, 3) to float32 (b, 3, S, S): x * scale + shift per channel."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.detach().clone(), persistent=False)
        self.register_buffer("shift", shift.detach().clone(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """The network's input."""
        x = images.permute(0, 3, 1, 2).float()
        return x * self.get_buffer("scale") + self.get_buffer("shift")


def normaliser(extractor: FeatureExtractor) -> Normalise:
    """What an extractor does to pixels before its network, on its device."""
    network = extractor.network
    normalise = Normalise(network.get_buffer("scale"), network.get_buffer("shift"))
    return normalise.to(extractor.config.device)


def normalise_of(mean: Sequence[float], std: Sequence[float]) -> Normalise:
    """By mean and spread of RGB scaled to 0..1, as backbones state them."""
    spread, centre = (torch.tensor(v).view(1, 3, 1, 1) for v in (std, mean))
    return Normalise(1 / (255 * spread), -centre / spread)


class TargetNet(nn.Module):
    """Pixels to all that training needs of an image, in one row (b, n) float32.

    The row holds the shared feature, if there is a trunk, then the teacher's maps. It holds
    copies, so that an engine may move it to its device.
    """

    def __init__(self, net: PaSTeNet, normalise: Normalise, image_size: int) -> None:
        super().__init__()
        self.normalise = copy.deepcopy(normalise)
        self.trunk, self.teacher = copy.deepcopy(net.trunk), copy.deepcopy(net.teacher)
        self.has_trunk = len(list(net.trunk.children())) > 0
        device = self.normalise.get_buffer("scale").device
        with torch.inference_mode():
            blank = torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8, device=device)
            self.shapes = [tuple(m.shape[1:]) for m in self._parts(blank)]

    def forward(self, images: Tensor) -> Tensor:
        """Rows of (b, S, S, 3) uint8 images."""
        return torch.cat([m.flatten(1) for m in self._parts(images)], 1)

    def continued(self, shared: Tensor) -> Tensor:
        """Rows of images whose shared feature (b, c, h, w) is known; there must be a trunk."""
        maps: list[Tensor] = self.teacher(shared)
        return torch.cat([m.flatten(1) for m in [shared, *maps]], 1)

    @property
    def length(self) -> int:
        """Values per image."""
        return sum(math.prod(shape) for shape in self.shapes)

    def split(self, rows: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """Rows (b, n) as the shared feature (None without a trunk) and the teacher's maps."""
        parts = torch.split(rows, [math.prod(shape) for shape in self.shapes], 1)
        maps = [p.reshape(-1, *shape) for p, shape in zip(parts, self.shapes, strict=True)]
        return (maps[0], maps[1:]) if self.has_trunk else (None, maps)

    def _parts(self, images: Tensor) -> list[Tensor]:
        z = self.trunk(self.normalise(images))
        maps: list[Tensor] = self.teacher(z)
        return [z, *maps] if self.has_trunk else maps


class MapNet(nn.Module):
    """Pixels to the combined anomaly map (b, h, w) on the grid of the finest level.

    It holds a copy of the net, in eval mode. Raises `ConfigError` when the backbone refuses
    images of this size.
    """

    def __init__(
        self, net: PaSTeNet, normalise: Normalise, image_size: int, combine: Combine
    ) -> None:
        super().__init__()
        self.net, self.normalise = copy.deepcopy(net), copy.deepcopy(normalise)
        # weights lie otherwise after training than after loading, and sums in another order differ
        for parameter in self.net.parameters():
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        self.combine = combine
        self.eval().requires_grad_(False)
        device = self.normalise.get_buffer("scale").device
        try:
            with torch.inference_mode():
                blank = torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8, device=device)
                maps, _ = self.net(self.normalise(blank))
        except (AssertionError, RuntimeError, ValueError) as error:  # as timm's models refuse
            raise ConfigError(f"images of {image_size} pixels do not fit: {error}") from error
        self.grid = max(int(m.shape[2]) for m in maps), max(int(m.shape[3]) for m in maps)

    def forward(self, images: Tensor) -> Tensor:
        """The map of (b, S, S, 3) uint8 images; see `combine_maps`."""
        teacher, student = self.net(self.normalise(images))
        return combine_maps(level_maps(teacher, student), self.grid, self.combine)


class ScaledMaps(nn.Module):
    """The maps of a net over a scale, smoothed: what a student's scores are read from.

    maps: uint8 images (b, S, S, 3) to (b, h, w). smooth: side of the mean filter, in cells.
    """

    def __init__(self, maps: nn.Module, scale: float, smooth: int) -> None:
        super().__init__()
        self.maps, self.scale, self.smooth = maps, scale, smooth

    def forward(self, images: Tensor) -> Tensor:
        """The maps of (b, S, S, 3) uint8 images."""
        return smoothed(self.maps(images) / self.scale, self.smooth)


def smoothed(maps: Tensor, cells: int) -> Tensor:
    """Mean over cells x cells of (b, h, w) maps; at the border over the cells that exist."""
    if cells == 1:
        return maps
    return nn.functional.avg_pool2d(
        maps[:, None], cells, stride=1, padding=cells // 2, count_include_pad=False
    )[:, 0]
