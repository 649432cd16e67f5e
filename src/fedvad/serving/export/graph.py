"""A detector as one torch module: uint8 images in; score, map and decision out."""

from __future__ import annotations

from functools import singledispatch

import numpy as np
import torch
from torch.nn import functional

from fedvad.detectors.base import Detector
from fedvad.detectors.feddymem import MemoryDetector
from fedvad.detectors.generator import Generator
from fedvad.detectors.scoring import (
    _CFA_NEIGHBOURS,
    _PATCHCORE_NEIGHBOURS,
    ScoringConfig,
    distance_scale,
)
from fedvad.distill.graphs import smoothed
from fedvad.memory.bank import FloatArray, MemoryBank
from fedvad.memory.neighbours import NeighbourIndex
from fedvad.serving.export.search import CellSearch, compact, make_search

__all__ = ["ExportNet", "Head", "MemoryHead", "export_net"]


class Head(torch.nn.Module):
    """The last part of a graph: the image score of a map, and a decision.

    grid: (h, w) of the map. count: of its highest cells, whose mean is the score. threshold: the
    highest normal score; None leaves the decision out.
    """

    def __init__(self, grid: tuple[int, int], count: int, threshold: float | None) -> None:
        super().__init__()
        self.grid, self.count = grid, count
        self.decides = threshold is not None
        if threshold is not None:
            self.register_buffer("threshold", torch.tensor(_below(threshold)))

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(b, h, w) maps to score (b,), map (b, h, w) and, if it decides, bool (b,)."""
        return self.decided(self.score(maps), maps)

    def score(self, maps: torch.Tensor) -> torch.Tensor:
        """(b,) mean of the highest cells of (b, h, w) maps."""
        return maps.flatten(1).topk(self.count, dim=1).values.mean(1)

    def decided(self, score: torch.Tensor, maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs of the graph."""
        if not self.decides:
            return score, maps
        # not `score > threshold`: what cannot be scored (NaN) must not pass as normal
        return score, maps, ~(score <= self.get_buffer("threshold"))


class MemoryHead(Head):
    """What `MemoryScorer` does, for a batch: generator, search, map, smoothing, score, decision.

    threshold: see `Head`. scale: as of `MemoryScorer`.
    """

    def __init__(
        self,
        bank: MemoryBank,
        generator: Generator,
        config: ScoringConfig,
        *,
        grid: tuple[int, int],
        threshold: float | None = None,
        scale: FloatArray | None = None,
    ) -> None:
        super().__init__(grid, config.count(grid[0] * grid[1]), threshold)
        self.config = config
        self.searched_again = config.searched_again(grid[0] * grid[1])
        neighbours = _CFA_NEIGHBOURS if config.map == "cfa" else 1
        self.search = make_search(bank.vectors, neighbours, config.search)
        self.has_generator = not generator.is_identity
        if self.has_generator:
            self.register_buffer("weight", torch.from_numpy(generator.weight.copy()))
            self.register_buffer("bias", torch.from_numpy(generator.bias.copy()))
        scale = distance_scale(bank, config) if scale is None else scale
        self.scales = scale is not None
        if scale is not None:
            self.register_buffer("scale", torch.from_numpy(scale))
        self.isolates = config.map == "patchcore" and len(bank) > 1
        if self.isolates:
            # a memory does not change any more: the neighbours of its vectors are looked up
            _, around = NeighbourIndex(bank.vectors).query(bank.vectors, _PATCHCORE_NEIGHBOURS)
            self.register_buffer("around", torch.from_numpy(around))
            self.register_buffer("vectors", compact(torch.from_numpy(bank.vectors.copy())))

    def forward(self, descriptors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(b, h, w, d) descriptors to score (b,), map (b, h, w) and, if it decides, bool (b,)."""
        patches = _rounded(descriptors).reshape(-1, descriptors.shape[3])
        if self.has_generator:
            patches = patches + functional.linear(
                patches, self.get_buffer("weight"), self.get_buffer("bias")
            )
        if isinstance(self.search, CellSearch):
            quick, thorough = self.search(patches)
            rough = self._map(*quick).flatten(1)
            high = rough >= rough.topk(self.searched_again, dim=1).values[:, -1:]
            distances, indices = (
                torch.where(high.reshape(-1, 1), after, before)
                for before, after in zip(quick, thorough, strict=True)
            )
        else:
            distances, indices = self.search(patches)
        map_ = self._map(distances, indices)
        score = self.score(map_)
        if self.isolates:
            cells = distances[:, 0].reshape(-1, self.grid[0] * self.grid[1])
            score = score * self._isolation(patches, cells, indices[:, 0])
        return self.decided(score, map_)

    def _map(self, distances: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        values = distances[:, 0]
        if self.config.map == "cfa":
            values = values / torch.exp(distances[:, :1] - distances).sum(1)
        if self.scales:
            values = values / self.get_buffer("scale")[indices[:, 0]]
        return smoothed(values.reshape(-1, *self.grid), self.config.smooth)

    def _isolation(
        self, patches: torch.Tensor, cells: torch.Tensor, nearest: torch.Tensor
    ) -> torch.Tensor:
        """Factor (b,) of `MemoryScorer._isolation` for the worst of (b, cells) patches."""
        distance, worst = cells.max(1, keepdim=True)
        dim = patches.shape[1]
        each = patches.reshape(-1, cells.shape[1], dim)
        patch = each.gather(1, worst[:, :, None].expand(-1, -1, dim))
        vector = nearest.reshape(-1, cells.shape[1]).gather(1, worst)[:, 0]
        around = self.get_buffer("vectors")[self.get_buffer("around")[vector]].float()
        support = torch.linalg.vector_norm(around - patch, dim=2)
        # the nearest vector is among its own neighbours, so this sum is at least its share
        return 1 - 1 / torch.exp(support - distance).sum(1)


class ExportNet(torch.nn.Module):
    """A network and a head; exporters see them as `network` and `head`.

    quantises: whether the network may be in int8.
    """

    def __init__(self, network: torch.nn.Module, head: Head, *, quantises: bool = True) -> None:
        super().__init__()
        self.network = network
        self.head = head
        self.quantises = quantises
        self.outputs = ("score", "map", "anomalous") if head.decides else ("score", "map")

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(b, S, S, 3) uint8 RGB to score (b,), map (b, h, w) and, if it decides, bool (b,)."""
        out: tuple[torch.Tensor, ...] = self.head(self.network(images))
        return out


@singledispatch
def export_net(detector: Detector, threshold: float | None) -> ExportNet:
    """The graph of a fitted detector; raises `ConfigError` for one that has none.

    threshold: see `Head`.
    """
    network = detector.map_net()
    side = detector.extractor.config.image_size
    with torch.inference_mode():
        height, width = network(torch.zeros(1, side, side, 3, dtype=torch.uint8)).shape[1:]
    head = Head((height, width), detector.top_count(height * width), threshold)
    # a map of distances is a difference of two nets: what int8 makes of it was never measured
    return ExportNet(network, head, quantises=False)


@export_net.register
def _(detector: MemoryDetector, threshold: float | None) -> ExportNet:
    scorer, network = detector.scorer, detector.extractor.network
    assert detector.generator_ is not None
    head = MemoryHead(
        scorer.bank, detector.generator_, detector.scoring, grid=network.grid,
        threshold=threshold, scale=scorer.scale,
    )  # fmt: skip
    return ExportNet(network, head)


def _rounded(values: torch.Tensor) -> torch.Tensor:
    """float32 rounded to the 11 significant bits of float16, which the pipeline keeps of them.

    In float32 arithmetic (Dekker 1971), because OpenVINO drops a cast there and back; without it
    a shortlist now and then finds another vector. Where a device computes in fewer bits the trick
    fails, and values stay as they are.
    """
    shifted = values * (2.0**13 + 1)
    rounded = shifted - (shifted - values)
    return torch.where((rounded - values).abs() <= values.abs() * 2.0**-10, rounded, values)


def _below(threshold: float) -> np.float32:
    """The largest float32 <= threshold: float32 scores exceed either or neither of the two."""
    value = np.float32(threshold)
    return value if float(value) <= threshold else np.nextafter(value, np.float32(-np.inf))
