"""Merging the memories of all sites into the global memory, and whether it covers them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from fedvad.errors import ConfigError, MemoryBankError
from fedvad.memory.bank import FloatArray, MemoryBank, concatenate
from fedvad.memory.coreset import k_center
from fedvad.memory.distances import nearest, squared_norms
from fedvad.memory.kmeans import weighted_kmeans

__all__ = ["COVERAGE_WARNING", "MergeMode", "coverage", "merge_banks"]

MergeMode = Literal["concat", "kmeans", "kcenter", "average"]
COVERAGE_WARNING = 3.0


def merge_banks(
    banks: Mapping[str, MemoryBank], *, mode: MergeMode, size: int | None, seed: int
) -> MemoryBank:
    """Merge one bank per site (keyed by site name) into a global memory of at most `size` rows.

    `concat` keeps every row (and ignores `size`), `kmeans` merges by weighted k-means (FedDyMem's
    server step), `kcenter` keeps the rows that cover all others best and gives each the weight of
    the rows nearest to it. `average` (ignores `size`) takes the weighted mean of the sites' first
    rows, of their second rows and so on: prototypes that mean the same everywhere, such as one per
    patch position (FedProto, Tan et al. 2022). Total weight is conserved; sites are taken in the
    order of their names and rows in a canonical order, so the order of arrival changes nothing.

    Raises `ConfigError` on an unknown mode or a missing size, `MemoryBankError` without any bank or
    when banks to average differ in their number of rows.
    """
    if mode not in get_args(MergeMode):
        raise ConfigError(f"unknown merge mode {mode!r}; choose from {get_args(MergeMode)}")
    if not banks:
        raise MemoryBankError("no site memory to merge")
    if mode == "average":
        return _average([banks[name] for name in sorted(banks)])
    everything = concatenate([banks[name] for name in sorted(banks)])
    if mode == "concat":
        return everything
    if size is None:
        raise ConfigError(f"merge mode {mode!r} needs a memory size")
    if len(everything) <= size:
        return everything
    if mode == "kmeans":
        return weighted_kmeans(everything, size, seed=seed)
    return _k_center_merge(everything, size, seed)


def _average(banks: Sequence[MemoryBank]) -> MemoryBank:
    """Row-wise weighted mean; spread holds the spread inside the sites and that between them."""
    counts = sorted({len(bank) for bank in banks})
    if len(counts) > 1:
        raise MemoryBankError(
            f"merge 'average' needs as many rows from every site, got {counts}: use reduce "
            "'position', or another merge mode"
        )
    weights = np.stack([bank.weights for bank in banks])
    share = (weights / weights.sum(0))[:, :, None]
    vectors = np.stack([bank.vectors for bank in banks]).astype(np.float64)
    mean = (share * vectors).sum(0)
    between = ((vectors - mean) ** 2).sum(2, keepdims=True)
    inside = np.stack([bank.spread for bank in banks]).astype(np.float64)[:, :, None] ** 2
    variance = (share * (inside + between)).sum(0)[:, 0]
    return MemoryBank(mean.astype(np.float32), weights.sum(0), np.sqrt(variance).astype(np.float32))


def _k_center_merge(bank: MemoryBank, size: int, seed: int) -> MemoryBank:
    import torch

    bank = bank.canonical()
    chosen = k_center(bank.vectors, size, seed=seed).indices
    points = torch.from_numpy(bank.vectors)
    squared, label = nearest(points, points[chosen])
    kept, cell = np.unique(label.numpy(), return_inverse=True)
    weights = np.bincount(cell, bank.weights).astype(np.float64)
    scatter = bank.weights * (bank.spread.astype(np.float64) ** 2 + squared.numpy())
    variance = np.bincount(cell, scatter) / weights
    return MemoryBank(bank.vectors[chosen[kept]], weights, np.sqrt(variance).astype(np.float32))


def coverage(
    uploads: FloatArray, memory: FloatArray, *, max_rows: int = 4000, seed: int = 0
) -> float:
    """How far the worst-covered upload lies from the memory, in units of uploads' own spacing.

    The largest distance of an (n, d) upload to the (k, d) memory over the median distance between
    an upload and its nearest other upload (on a seeded sample of `max_rows` of them). Above
    `COVERAGE_WARNING` some normal mode is missing from the memory and will raise false alarms.
    Source: FedDyMem specification, section 4.
    """
    import torch

    if len(uploads) < 2 or len(memory) == 0:
        return 0.0 if len(memory) else float("inf")
    points = torch.from_numpy(uploads)
    reference = torch.from_numpy(memory)
    # measured from differences: no cancellation, so uploads that are in the memory are at 0
    closest = reference[nearest(points, reference)[1]]
    worst = float(torch.linalg.vector_norm(points - closest, dim=1).max())
    rows = np.random.default_rng(seed).permutation(len(uploads))[:max_rows]
    sample = points[np.sort(rows)]
    norms = squared_norms(sample)
    gaps = torch.empty(len(sample))
    for start in range(0, len(sample), 1024):
        block = norms[start : start + 1024, None] + norms[None]
        block.addmm_(sample[start : start + 1024], sample.T, alpha=-2)
        inside = torch.arange(len(block))
        block[inside, inside + start] = float("inf")
        gaps[start : start + 1024] = block.amin(1)
    spacing = float(gaps.clamp_min(0).sqrt().median())
    return worst / spacing if spacing > 0 else (0.0 if worst == 0 else float("inf"))
