"""Merging the memories of all sites into the global memory, and whether it covers them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError, MemoryBankError, check_choice, join_names
from fedvad.memory.bank import (
    FloatArray,
    LazyBanks,
    MemoryBank,
    concatenate,
    joined_origin,
    rows_at,
)
from fedvad.memory.coreset import k_center
from fedvad.memory.distances import nearest, squared_norms
from fedvad.memory.kmeans import weighted_kmeans

if TYPE_CHECKING:
    import torch

__all__ = [
    "COVERAGE_WARNING",
    "MergeMode",
    "coverage",
    "merge_banks",
    "merged_parts",
    "sampled_rows",
]

# k-means takes at most this many rows at once; more are merged in a tree
_AT_ONCE = 20_000
_GROUP: dict[str, int] = {"restarts": 1, "max_iterations": 4, "projection": 64}
_TOP: dict[str, int] = {"restarts": 1, "max_iterations": 20}
_PROJECTION = 64  # as at the sites
_ALL_PAIRS = 1_000_000_000  # of rows and centres measured in full

MergeMode = Literal["concat", "kmeans", "kcenter", "average"]
COVERAGE_WARNING = 3.0


def merge_banks(
    banks: Mapping[str, MemoryBank],
    *,
    mode: MergeMode,
    size: int | None,
    seed: int,
    temper: float = 1.0,
) -> MemoryBank:
    """Merge one bank per site into a global memory.

    Total weight is conserved. Sites are taken in the order of their names and rows in a canonical
    order, so the order of arrival changes nothing.

    Parameters
    ----------
    banks : mapping of str to MemoryBank
        By name of the site; at least one.
    mode : {"concat", "kmeans", "kcenter", "average"}
        `concat` keeps every row up to `size` of them, and is `kcenter` beyond. `kmeans` merges by
        weighted k-means (FedDyMem's server step; more than 20 000 rows in a tree, whose inertia was
        within 10 % of the whole's). `kcenter` keeps the rows that cover all others best and gives
        each the weight of the rows nearest to it (of very many rows: nearest in the projection in
        which they were chosen). `average` takes the weighted mean of the sites' first rows, of
        their second rows and so on: prototypes that mean the same everywhere, such as one per patch
        position (FedProto, Tan et al. 2022).
    size : int or None
        Most rows of the result; None, without a limit, with `concat` only. `average` ignores it.
    seed : int
        Of k-means and k-center.
    temper : float, default=1.0
        Exponent of the rows' weights in k-means, see `weighted_kmeans`.

    Raises
    ------
    ConfigError
        For an unknown mode, or a missing size.
    MemoryBankError
        Without any bank, or when banks to average differ in their number of rows.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.memory.bank import MemoryBank
    >>> from fedvad.memory.merge import merge_banks
    >>> sites = {
    ...     "alder": MemoryBank.of_patches(np.array([[0.0], [1.0]], np.float32)),
    ...     "birch": MemoryBank.of_patches(np.array([[9.0], [10.0]], np.float32)),
    ... }
    >>> merge_banks(sites, mode="concat", size=None, seed=0).vectors[:, 0].tolist()
    [0.0, 1.0, 9.0, 10.0]
    >>> merge_banks(sites, mode="kmeans", size=2, seed=0).weights.tolist()
    [2.0, 2.0]
    """
    return concatenate(list(merged_parts(banks, mode=mode, size=size, seed=seed, temper=temper)))


def merged_parts(
    banks: Mapping[str, MemoryBank],
    *,
    mode: MergeMode,
    size: int | None,
    seed: int,
    temper: float = 1.0,
) -> Collection[MemoryBank]:
    """`merge_banks` in one part or several, one after another: every bank is one where all rows are
    kept. Of `LazyBanks`, few are in memory at a time.
    """
    check_choice("merge mode", mode, MergeMode)
    if not banks:
        raise MemoryBankError("no site memory to merge")
    banks = LazyBanks(banks, banks.__getitem__)
    if mode == "average":
        return [_average(banks)]
    total = sum(map(len, banks.values()))
    if size is None and mode != "concat":
        raise ConfigError(f"merge mode {mode!r} needs a memory size")
    if size is None or total <= size:
        return banks.values()
    if mode == "kmeans":
        return [_kmeans_tree(banks, size, seed, temper)]
    return [_k_center_merge(banks, size, seed)]


def _kmeans_tree(
    banks: Mapping[str, MemoryBank], size: int, seed: int, temper: float
) -> MemoryBank:
    """k-means of groups of sites, then of their means: time and memory linear in the rows."""
    groups: list[list[str]] = [[]]
    rows = total = 0
    for name, bank in banks.items():
        if groups[-1] and rows + len(bank) > max(_AT_ONCE, 4 * size):
            groups.append([])
            rows = 0
        groups[-1].append(name)
        rows += len(bank)
        total += len(bank)
    # too few rows, or banks too large to be grouped
    if total <= _AT_ONCE or len(groups) in (1, len(banks)):
        top = {} if total <= _AT_ONCE else _TOP
        rows_of_all = concatenate(list(banks.values()))
        return weighted_kmeans(rows_of_all, size, seed=seed, temper=temper, **top)
    merged = [
        weighted_kmeans(
            concatenate([banks[name] for name in group]),
            size,
            seed=seed * 1009 + i,
            temper=temper,
            **_GROUP,
        )
        for i, group in enumerate(groups)
    ]
    return _kmeans_tree({f"{i:09}": bank for i, bank in enumerate(merged)}, size, seed, temper)


def _average(banks: Mapping[str, MemoryBank]) -> MemoryBank:
    """Row-wise weighted mean; spread holds the spread inside the sites and that between them."""
    counts = sorted({len(bank) for bank in banks.values()})
    if len(counts) > 1:
        raise MemoryBankError(
            f"merge 'average' needs as many rows from every site, got {join_names(counts)}: use "
            "reduce 'position', or another merge mode"
        )
    weights = np.stack([bank.weights for bank in banks.values()])
    shares = (weights / weights.sum(0))[:, :, None]
    first = next(iter(banks.values()))
    mean, variance = np.zeros(first.vectors.shape), np.zeros(counts[0])
    for share, bank in zip(shares, banks.values(), strict=True):
        mean += share * bank.vectors.astype(np.float64)
    for share, bank in zip(shares, banks.values(), strict=True):
        between = ((bank.vectors.astype(np.float64) - mean) ** 2).sum(1)
        variance += share[:, 0] * (bank.spread.astype(np.float64) ** 2 + between)
    origin = joined_origin(banks.values())
    place = np.tile(np.arange(counts[0]), len(banks))
    return MemoryBank(
        mean.astype(np.float32),
        weights.sum(0),
        np.sqrt(variance).astype(np.float32),
        None if origin is None else origin.cells(place, weights.reshape(-1)),
    )


def _k_center_merge(banks: Mapping[str, MemoryBank], size: int, seed: int) -> MemoryBank:
    """k-center of all rows, of which only random projections are held together."""
    import torch

    matrix = None
    if (dim := next(iter(banks.values())).dim) > _PROJECTION:
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(dim, _PROJECTION, generator=generator) / _PROJECTION**0.5
    total, start = sum(map(len, banks.values())), 0
    points = np.empty((total, min(dim, _PROJECTION)), np.float32)
    weight, inside = np.empty(total), np.empty(total, np.float32)
    for bank in banks.values():
        own, start = slice(start, start + len(bank)), start + len(bank)
        vectors = torch.from_numpy(bank.vectors)
        points[own] = (vectors if matrix is None else vectors @ matrix).numpy()
        weight[own], inside[own] = bank.weights, bank.spread
    # rows that are equal in all of this may change places
    order = np.lexsort((inside, weight, *points.T[1::-1]))
    points = points[order]
    coreset = k_center(points, size, seed=seed)
    del points
    centres = rows_at(banks, order[coreset.indices])
    label = np.empty(len(order), np.int64)
    label[order] = coreset.labels
    squared, label = _assigned(banks, torch.from_numpy(centres.vectors), label)
    kept, cell = np.unique(label, return_inverse=True)
    cell, weight = cell[order], weight[order]
    size_of = np.bincount(cell, weight).astype(np.float64)
    scatter = weight * (inside[order].astype(np.float64) ** 2 + squared[order])
    found = centres.take(kept)
    deviation = np.sqrt(np.bincount(cell, scatter) / size_of).astype(np.float32)
    return MemoryBank(found.vectors, size_of, deviation, found.origin)


def _assigned(
    banks: Mapping[str, MemoryBank], centres: torch.Tensor, label: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """For each row the squared distance to its centre, and which that is: of very many rows the one
    that `label` says, as the nearest of all would take most of the merge's time.
    """
    import torch

    everything = len(label) * len(centres) <= _ALL_PAIRS
    squared, start = np.empty(len(label), np.float32), 0
    for bank in banks.values():
        own, points = slice(start, start + len(bank)), torch.from_numpy(bank.vectors)
        if everything:
            distances, nearest_one = nearest(points, centres)
            label[own] = nearest_one.numpy()
        else:
            distances = (points - centres[torch.from_numpy(label[own])]).square().sum(1)
        squared[own], start = distances.numpy(), own.stop
    return squared, label


def sampled_rows(banks: Mapping[str, MemoryBank], most: int, seed: int) -> FloatArray:
    """(n, d) vectors of all rows, or of a random sample of `most` of them."""
    total = sum(map(len, banks.values()))
    chosen = np.random.default_rng([seed, 1]).permutation(total)[:most]
    return rows_at(banks, np.sort(chosen)).vectors


def coverage(
    uploads: FloatArray,
    memory: FloatArray,
    *,
    max_rows: int = 4000,
    seed: int = 0,
) -> float:
    """How far the worst-covered upload lies from the memory, in units of the uploads' own spacing.

    The largest distance of an upload to the memory over the median distance between an upload and
    its nearest other upload. Above `COVERAGE_WARNING` (3) some normal mode is missing from the
    memory and will raise false alarms.

    Parameters
    ----------
    uploads : (n, d) float32 array
        Rows of all sites, or a sample of them.
    memory : (k, d) float32 array
        Rows of the global memory.
    max_rows : int, default=4000
        The spacing is measured on a random sample of this many uploads.
    seed : int, default=0
        Of that sample.

    Returns
    -------
    float
        0 when every upload is in the memory, or for fewer than two uploads; infinite for an empty
        memory.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.memory.merge import coverage
    >>> uploads = np.array([[0.0], [1.0], [2.0], [6.0]], np.float32)
    >>> coverage(uploads, uploads), coverage(uploads, uploads[:3])
    (0.0, 4.0)

    Source: FedDyMem specification, section 4.
    """
    import torch

    if len(uploads) < 2 or len(memory) == 0:
        return 0.0 if len(memory) else float("inf")
    points = torch.from_numpy(uploads)
    middle = points.mean(0)  # of long vectors that lie close, squared lengths would cancel
    points, reference = points - middle, torch.from_numpy(memory) - middle
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
