"""A detector as one torch module: uint8 images in; score, map and decision out."""

from __future__ import annotations

from functools import singledispatch

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fedvad.data.views import Tiling
from fedvad.detectors.base import Detector
from fedvad.detectors.memory.feddymem import MemoryDetector
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.scoring import (
    _CFA_NEIGHBOURS,
    _CLEARLY,
    _PATCHCORE_NEIGHBOURS,
    _TINY,
    ScoringConfig,
    distance_scale,
)
from fedvad.detectors.student.graphs import smoothed
from fedvad.errors import ConfigError
from fedvad.memory.bank import FloatArray, MemoryBank
from fedvad.memory.neighbours import NeighbourIndex
from fedvad.serving.export.search import CellSearch, make_search


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

    threshold: see `Head`. inside: (h, w) cells of the region of interest, None for all. scale,
    columns: as of `MemoryScorer`.
    """

    def __init__(
        self,
        bank: MemoryBank,
        generator: Generator,
        config: ScoringConfig,
        *,
        grid: tuple[int, int],
        inside: npt.NDArray[np.bool_] | None = None,
        threshold: float | None = None,
        scale: FloatArray | None = None,
        columns: FloatArray | None = None,
    ) -> None:
        inside_cells = np.ones(grid, np.bool_) if inside is None else inside
        super().__init__(grid, config.count(int(inside_cells.sum())), threshold)
        self.config = config
        self.looks_everywhere = inside is None or bool(inside.all())
        self.register_buffer("inside", torch.from_numpy(inside_cells.astype(np.float32)))
        self.searched_again = config.searched_again(int(inside_cells.sum()))
        neighbours = _CFA_NEIGHBOURS if config.map == "cfa" else 1
        self.search = make_search(bank.vectors, neighbours, config.search)
        self.has_generator = not generator.is_identity
        if self.has_generator:
            self.register_buffer("weight", torch.from_numpy(generator.weight.copy()))
            self.register_buffer("bias", torch.from_numpy(generator.bias.copy()))
        scale = distance_scale(bank, config) if scale is None else scale
        factors = [] if scale is None else list(scale.T)
        self.scales = len(factors)
        for column, factor in enumerate(factors):
            self.register_buffer(f"scale{column}", torch.from_numpy(factor.copy()))
        self.usual = max(self.count, int(inside_cells.sum()) // 2 + 1)
        self.weighs = columns is not None
        if columns is not None:
            self.register_buffer("columns", torch.from_numpy(columns.copy()))
        self.isolates = config.map == "patchcore" and len(bank) > 1
        if self.isolates:
            # a memory does not change any more: the neighbours of its vectors are looked up
            _, around = NeighbourIndex(bank.vectors).query(bank.vectors, _PATCHCORE_NEIGHBOURS)
            self.register_buffer("around", torch.from_numpy(around))

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
        if self.weighs or self.scales > 1:
            weighted = self._weighted(patches, indices[:, 0]) if self.weighs else None
            map_ = self._map(distances, indices, weighted, column=self.scales - 1)
            map_ = self._stretched(map_, score)
        if self.isolates:
            cells = distances[:, 0].reshape(-1, self.grid[0] * self.grid[1])
            if not self.looks_everywhere:
                cells = cells * self.get_buffer("inside").flatten()
            score = score * self._isolation(patches, cells, indices[:, 0])
        return self.decided(score, map_)

    def _weighted(self, patches: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
        """Distances (n,) of (n, d) patches to their nearest vectors, by the weights of columns."""
        apart = self.search.rows(nearest) - patches
        return torch.sqrt((apart * apart) @ self.get_buffer("columns"))

    def _map(
        self,
        distances: torch.Tensor,
        indices: torch.Tensor,
        weighted: torch.Tensor | None = None,
        column: int = 0,
    ) -> torch.Tensor:
        values = distances[:, 0] if weighted is None else weighted
        if self.config.map == "cfa":
            values = values / torch.exp(distances[:, :1] - distances).sum(1)
        if self.scales:
            values = values / self.get_buffer(f"scale{column}")[indices[:, 0]]
        raw = values.reshape(-1, *self.grid)
        if not self.looks_everywhere:
            raw = raw * self.get_buffer("inside")
        return self._smoothed(raw)

    def _smoothed(self, maps: torch.Tensor) -> torch.Tensor:
        """(b, h, w) maps by `smooth`: over the cells inside, of which each has at least itself."""
        cells = self.config.smooth
        if self.looks_everywhere:
            return smoothed(maps, cells)
        inside = self.get_buffer("inside")
        share = smoothed(inside[None], cells).clamp(min=1e-6)
        return smoothed(maps, cells) * inside / share

    def _stretched(self, map_: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        """What `scoring._stretched` makes of (b, h, w) maps, which are 0 outside the region."""
        highest = self.score(map_)
        rest = torch.zeros_like(score)
        if self.weighs:
            usual = map_.flatten(1).topk(self.usual, dim=1).values[:, -1]
            rest = torch.minimum(usual, _CLEARLY * torch.minimum(score, highest))
        factor = (score - rest) / (highest - rest).clamp(min=_TINY)
        rest, factor = rest[:, None, None], factor[:, None, None]
        return torch.minimum(map_, rest) + (map_ - rest).clamp(min=0) * factor

    def _isolation(
        self, patches: torch.Tensor, cells: torch.Tensor, nearest: torch.Tensor
    ) -> torch.Tensor:
        """Factor (b,) of `MemoryScorer._isolation` for the worst of (b, cells) patches."""
        distance, worst = cells.max(1, keepdim=True)
        dim = patches.shape[1]
        each = patches.reshape(-1, cells.shape[1], dim)
        patch = each.gather(1, worst[:, :, None].expand(-1, -1, dim))
        vector = nearest.reshape(-1, cells.shape[1]).gather(1, worst)[:, 0]
        around = self.search.rows(self.get_buffer("around")[vector])
        support = torch.linalg.vector_norm(around - patch, dim=2)
        # the nearest vector is among its own neighbours, so this sum is at least its share
        return 1 - 1 / torch.exp(support - distance).sum(1)


class ExportNet(torch.nn.Module):
    """A network and a head; exporters see them as `network` and `head`.

    quantises: whether the network may be in int8. tiling: where the tiles of the images lie, all of
    one size.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        head: Head,
        *,
        quantises: bool = True,
        tiling: Tiling | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.head = head
        self.quantises = quantises
        self.tiles = None if tiling is None or len(tiling) == 1 else Tiles(tiling)
        self.outputs = ("score", "map", "anomalous") if head.decides else ("score", "map")

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(b, H, W, 3) uint8 RGB to score (b,), map (b, h, w) and, if it decides, bool (b,)."""
        if self.tiles is None:
            out: tuple[torch.Tensor, ...] = self.head(self.network(images))
            return out
        out = self.head(self.tiles.joined(self.network(self.tiles(images))))
        return out


class Tiles(torch.nn.Module):
    """What `FeatureExtractor` does with an image in tiles, for images of one size."""

    def __init__(self, tiling: Tiling) -> None:
        super().__init__()
        self.tiling = tiling
        for name, axis, length in zip(("rows", "columns"), tiling.axes, tiling.shape, strict=True):
            beyond = np.pad(np.arange(length), (0, axis.length - length), mode="symmetric")
            places = [beyond[start : start + axis.tile] for start in axis.starts]
            self.register_buffer(f"{name}_pixels", torch.from_numpy(np.stack(places)))
            self.register_buffer(f"{name}_weights", torch.from_numpy(np.stack(axis.weights())))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(b, H, W, 3) images to (tiles x b, T, T, 3), first those of the first tile."""
        rows, columns = self.get_buffer("rows_pixels"), self.get_buffer("columns_pixels")
        return torch.cat([images[:, r][:, :, c] for r in rows for c in columns])

    def joined(self, found: torch.Tensor) -> torch.Tensor:
        """Descriptors (tiles x b, t, t, d) of tiles to those of images, (b, h, w, d)."""
        rows, columns = self.tiling.axes
        parts = _rounded(found).reshape(len(self.tiling), -1, *found.shape[1:])
        total: torch.Tensor | None = None
        for number in range(len(self.tiling)):
            i, j = divmod(number, len(columns.starts))
            weights = self.get_buffer("rows_weights")[i][:, None]
            weights = weights * self.get_buffer("columns_weights")[j]
            y, x = rows.place(i), columns.place(j)
            room = (0, 0, x.start, columns.total - x.stop, y.start, rows.total - y.stop)
            placed = functional.pad(_rounded(parts[number] * weights[:, :, None]), room)
            total = placed if total is None else _rounded(total + placed)
        assert total is not None
        height, width = self.tiling.grid
        return total[:, :height, :width]


@singledispatch
def export_net(detector: Detector, threshold: float | None) -> ExportNet:
    """The graph of a fitted detector; raises `ConfigError` for one that has none.

    threshold: see `Head`.
    """
    network = detector.map_net()
    side = detector.extractor.config.side
    with torch.inference_mode():
        height, width = network(torch.zeros(1, side, side, 3, dtype=torch.uint8)).shape[1:]
    head = Head((height, width), detector.top_count(height * width), threshold)
    # a map of distances is a difference of two nets: what int8 makes of it was never measured
    return ExportNet(network, head, quantises=False)


@export_net.register
def _(detector: MemoryDetector, threshold: float | None) -> ExportNet:
    scorer, extractor = detector.scorer, detector.extractor
    if scorer.negatives is not None:
        raise ConfigError(
            "the run knows confirmed defects that count at this site, which an exported model "
            "cannot hold: serve the run, or undo those answers at the sites that gave them "
            "(fedvad feedback RUN --list)"
        )
    view, network = extractor.config.view, extractor.network
    tiling = view.tiling((view.height, view.width), network.grid)
    assert detector.generator_ is not None
    head = MemoryHead(
        scorer.bank, detector.generator_, detector.scoring, grid=tiling.grid,
        inside=extractor.inside(tiling.grid), threshold=threshold, scale=scorer.scale,
        columns=scorer.columns,
    )  # fmt: skip
    return ExportNet(network, head, tiling=tiling)


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
