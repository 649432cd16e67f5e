"""From distances to a memory to an anomaly map and an image score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from fedvad.data.checked import strictly
from fedvad.errors import ConfigError, check_choice
from fedvad.memory.bank import FloatArray, MemoryBank
from fedvad.memory.density import density_scale, row_gaps
from fedvad.memory.neighbours import NeighbourIndex, SearchMode

MapMode = Literal["nn1", "cfa", "patchcore", "spread"]
_CFA_NEIGHBOURS = 3
_PATCHCORE_NEIGHBOURS = 9
_SPREAD_PRIOR = 10.0
_UNBOUNDED = 1 << 30
_RAISED = 3.0
_TINY = 1e-12
_CLEARLY = 0.9
_FINE_ENOUGH = 64 * 64  # cells; with still finer ones a layer sees the grain rather than the part


@dataclass(frozen=True)
class ScoringConfig:
    """How a memory scores.

    map: `nn1` distance to the nearest vector; `cfa` that distance times the softmin share of the
        nearest among 3; `patchcore` nn1 with the image score re-weighted by how isolated the
        nearest vector of the worst patch is; `spread` the distance in units of the nearest
        vector's own dispersion.
    density: exponent in [0, 1] of the nearest vector's distance to its own neighbours in the
        memory, by which every distance is divided (see `memory.density`); 0 is off.
    map_density: largest exponent with which this is done in the map, in [0, 1]: a smaller one
        outlines defects better, a larger one ranks images better. Such a map is then multiplied by
        what makes the mean of its highest cells the image score. Ours.
    finer_map: whether each layer's part of a squared distance counts in the map by its number of
        cells, up to 4096 of them: of two layers, the coarser one a quarter of the finer one. This
        outlines defects better, while images are ranked better by both alike. Of such a map, only
        cells above the median are then moved, by a multiple of their distance from it. Ours.
    density_neighbours: number of these neighbours, at least 1.
    smooth: side of the mean filter over the map, in cells (1 is none).
    top: share of the cells, the highest ones, whose mean is the image score; 0 takes the maximum.
    top_cells: number of cells at most that this share takes, at least 1, so that a larger image
        does not dilute a defect of the same size in pixels.
    search: `fast` or `exact` nearest neighbours.
    """

    map: MapMode = "nn1"
    density: float = 0.75
    map_density: float = 0.5
    finer_map: bool = True
    density_neighbours: int = 5
    smooth: int = 3
    top: float = 0.03
    top_cells: int = 32
    search: SearchMode = "fast"

    def __post_init__(self) -> None:
        check_choice("map mode", self.map, MapMode)
        for name in ("density", "map_density"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"{name} must be an exponent in [0, 1], got {getattr(self, name)}"
                )
        if self.density_neighbours < 1:
            raise ConfigError(
                f"density_neighbours must be at least 1, got {self.density_neighbours}"
            )
        if self.smooth < 1 or self.smooth % 2 == 0:
            raise ConfigError(f"smoothing needs an odd number of cells, got {self.smooth}")
        if not 0 <= self.top <= 1:
            raise ConfigError(f"top must be a share of the cells in [0, 1], got {self.top}")
        if self.top_cells < 1:
            raise ConfigError(f"top_cells must be at least 1, got {self.top_cells}")

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """What `asdict` gave, read from a file; older files lack what they scored without.

        Raises `ArtefactError` for what is no such thing.
        """
        before = {"density": 0.0, "map_density": 1.0, "finer_map": False, "top_cells": _UNBOUNDED}
        return strictly(cls, {**before, **values}, "the scoring")

    def column_weights(self, shares: FloatArray, cells: int) -> FloatArray | None:
        """Weight of each descriptor value in the map's squared distances; None for all alike.

        shares: (d,), see `DescriptorNet`. cells: of the map.
        """
        weights = np.minimum(1, shares * max(1, cells / _FINE_ENOUGH))
        return weights.astype(np.float32) if self.finer_map and (weights != 1).any() else None

    def count(self, cells: int) -> int:
        """Number of the highest cells, of a map of `cells`, whose mean is the image score."""
        return min(max(1, round(self.top * cells)), self.top_cells)

    def searched_again(self, cells: int) -> int:
        """Number of the highest cells, of a map of this many, that `fast` searches thoroughly.

        Twice those of the image score, and at least an eighth: the others hardly ever reach it,
        because a thorough search only lowers a distance.
        """
        return min(cells, max(2 * self.count(cells), cells // 8))


class MemoryScorer:
    """Scores descriptors against one memory bank. Raises `MemoryBankError` for an empty one.

    scale: what `distance_scale` gives, where it is known already. negatives: (k, d) patches of
    confirmed defects; a patch that is nearer to one of them than to the memory scores higher, by
    the ratio of the two distances, at most threefold (ours). columns: (d,) what
    `ScoringConfig.column_weights` gives.
    """

    def __init__(
        self,
        bank: MemoryBank,
        config: ScoringConfig,
        *,
        scale: FloatArray | None = None,
        negatives: FloatArray | None = None,
        columns: FloatArray | None = None,
    ) -> None:
        self.config = config
        self.bank = bank
        self._index = NeighbourIndex(bank.vectors, mode=config.search)
        self.scale = distance_scale(bank, config) if scale is None else scale
        self.negatives = None if negatives is None else NeighbourIndex(negatives)
        self.columns = columns

    def score(
        self, descriptors: FloatArray, *, exclude: npt.NDArray[np.int64] | None = None
    ) -> tuple[float, FloatArray]:
        """Image score and smoothed (h, w) map of one image's (h, w, d) descriptors.

        Cells of NaN, outside the region of interest, are not scored: the map has 0 there.

        `exclude` (r,) names memory rows to leave out, fewer than there are.
        """
        index = self._index if exclude is None else self._index.without(exclude)
        inside = ~np.isnan(descriptors[:, :, 0])
        patches = descriptors[inside]
        if len(patches) == 0:
            return math.nan, np.zeros(inside.shape, np.float32)
        k = _CFA_NEIGHBOURS if self.config.map == "cfa" else 1
        distances, indices = index.query(patches, k)
        defects = None if self.negatives is None else self.negatives.query(patches)[0][:, 0]
        count = self.config.count(len(patches))
        map_ = self._map(distances, indices, inside, defects)
        if index.cells is not None:
            high = _highest(map_[inside], self.config.searched_again(len(patches)))
            distances[high], indices[high] = index.query(patches[high], k, thorough=True)
            map_ = self._map(distances, indices, inside, defects)
        score = mean_of_highest(map_[inside], count)
        if self.columns is not None or (self.scale is not None and self.scale.shape[1] > 1):
            weighted = None
            if self.columns is not None:
                apart = patches - self.bank.vectors[indices[:, 0]]
                weighted = np.sqrt(np.square(apart, out=apart) @ self.columns)
            map_ = self._map(distances, indices, inside, defects, weighted, column=-1)
            rest = 0.0 if weighted is None else _usual(map_[inside], count)
            map_ = _stretched(map_, rest, mean_of_highest(map_[inside], count), score)
        if self.config.map == "patchcore":
            worst = int(distances[:, 0].argmax())
            score *= self._isolation(
                index, patches[worst], float(distances[worst, 0]), int(indices[worst, 0])
            )
        return score, map_

    def _map(
        self,
        distances: FloatArray,
        indices: npt.NDArray[np.int64],
        inside: npt.NDArray[np.bool_],
        defects: FloatArray | None = None,
        weighted: FloatArray | None = None,
        column: int = 0,
    ) -> FloatArray:
        """Smoothed (h, w) map of (n, k) ascending distances and the vectors they are to.

        inside: (h, w), the n cells that are scored; the map has 0 elsewhere. defects: (n,)
        distances to the nearest confirmed defect. weighted: (n,) to map in place of the nearest
        distances. column: of the scale.
        """
        values = distances[:, 0] if weighted is None else weighted
        if self.config.map == "cfa":
            values = values * _softmin_share(distances)
        if self.scale is not None:
            values = values / self.scale[indices[:, 0], column]
        if defects is not None:
            nearest = np.maximum(distances[:, 0], _TINY)
            raised = nearest / np.clip(defects, nearest / _RAISED, nearest)
            values = np.asarray(values * raised, np.float32)
        raw = np.zeros(inside.shape, np.float32)
        raw[inside] = values
        return smooth(raw, self.config.smooth, inside)

    def _isolation(
        self, index: NeighbourIndex, patch: FloatArray, distance: float, nearest: int
    ) -> float:
        """1 - softmax weight of the nearest vector among its own 9 nearest (PatchCore, eq. 7)."""
        vectors = self.bank.vectors
        gaps, around = index.query(vectors[nearest : nearest + 1], _PATCHCORE_NEIGHBOURS)
        around = around[np.isfinite(gaps)]  # not the excluded ones
        if len(around) == 1:  # a single vector has nothing to be isolated from
            return 1.0
        support = np.linalg.norm(vectors[around] - patch, axis=1)
        # distances of 10-50 overflow exp: subtract the largest first
        top = max(float(support.max()), distance)
        return float(1 - np.exp(distance - top) / np.exp(support - top).sum())


def distance_scale(bank: MemoryBank, config: ScoringConfig) -> FloatArray | None:
    """Factors by which the distance to each vector of a memory is divided; None is 1.

    (m, 2): in the image score, and in the map; (m, 1) where they are the same.
    """
    scale: FloatArray | None = None
    if config.map == "spread":
        scale = _relative_spread(bank)[:, None]
    if config.density:
        gaps = row_gaps(bank.vectors, config.density_neighbours)
        exponents = dict.fromkeys((config.density, min(config.density, config.map_density)))
        density = np.stack([density_scale(gaps, exponent) for exponent in exponents], 1)
        scale = density if scale is None else scale * density
    return scale


def smooth(map_: FloatArray, cells: int, inside: npt.NDArray[np.bool_] | None = None) -> FloatArray:
    """Mean over cells x cells of an (h, w) map; at the border over the cells that exist.

    inside: (h, w), the cells that count; the map must be 0 in the others, and stays it.
    """
    if cells == 1:
        return map_
    from scipy.ndimage import uniform_filter

    counted = np.ones_like(map_) if inside is None else inside.astype(map_.dtype)
    share = uniform_filter(counted, cells, mode="constant")
    out: FloatArray = uniform_filter(map_, cells, mode="constant") / np.where(counted, share, 1)
    return out * counted


def image_score(map_: FloatArray, top: float) -> float:
    """Mean of the highest share `top` of an (h, w) map, of at least one cell."""
    return mean_of_highest(map_, max(1, round(top * map_.size)))


def mean_of_highest(map_: FloatArray, count: int) -> float:
    """Mean of the `count` >= 1 highest cells of an (h, w) map."""
    flat = map_.reshape(-1)
    return float(np.partition(flat, flat.size - count)[-count:].mean())


def _usual(cells: FloatArray, count: int) -> float:
    """Median of (n,) cells, or the `count`-th highest where this is lower."""
    place = len(cells) - max(count, len(cells) // 2 + 1)
    return float(np.partition(cells, place)[place])


def _stretched(map_: FloatArray, rest: float, highest: float, score: float) -> FloatArray:
    """The map with what it has above `rest` multiplied such that `highest` becomes `score`.

    `rest` is lowered to what is clearly below both, so that a flat map is stretched as a whole.
    """
    rest = min(rest, _CLEARLY * min(score, highest))
    above = np.maximum(map_ - rest, 0) * ((score - rest) / max(highest - rest, _TINY))
    stretched: FloatArray = np.minimum(map_, rest) + above
    return stretched


def _highest(map_: FloatArray, count: int) -> npt.NDArray[np.bool_]:
    """Mask (h * w,) of the `count` >= 1 highest cells, and of those that equal the last of them."""
    flat = map_.reshape(-1)
    highest: npt.NDArray[np.bool_] = flat >= np.partition(flat, flat.size - count)[-count]
    return highest


def upsample(maps: FloatArray, size: tuple[int, int]) -> FloatArray:
    """(n, h, w) maps bilinearly resized to (n, *size) pixels."""
    import torch

    resized: npt.NDArray[np.float32] = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[:, None], size, mode="bilinear", align_corners=False
    )[:, 0].numpy()
    return resized


def _softmin_share(distances: FloatArray) -> FloatArray:
    """Softmin weight of the nearest among (n, k) ascending distances (CFA)."""
    share: FloatArray = 1 / np.exp(distances[:, :1] - distances).sum(1)
    return share


def _relative_spread(bank: MemoryBank) -> FloatArray:
    """Spread of each vector relative to the bank's, 1 where a vector knows nothing of its own.

    A vector that stands for few patches has no dispersion worth the name (a single patch has
    0), so its variance is shrunk towards the bank's by a prior of ten patches; a bank without any
    spread scores like `nn1`. The square root keeps wide cells from hiding defects. Ours.
    """
    variance = bank.spread.astype(np.float64) ** 2
    overall = float((variance * bank.weights).sum() / bank.total_weight)
    if overall == 0:
        return np.ones(len(bank), np.float32)
    shrunk = (variance * bank.weights + _SPREAD_PRIOR * overall) / (bank.weights + _SPREAD_PRIOR)
    return np.asarray((shrunk / overall) ** 0.25, dtype=np.float32)
