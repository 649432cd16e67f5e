"""Merging the memories of all sites into the global memory, and whether it covers them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError, MemoryBankError, check_choice
from fedvad.memory.bank import FloatArray, MemoryBank, concatenate
from fedvad.memory.coreset import Coreset, k_center
from fedvad.memory.distances import nearest, squared_norms
from fedvad.memory.kmeans import weighted_kmeans

__all__ = ["COVERAGE_WARNING", "MergeMode", "coverage", "merge_banks"]

# k-means takes at most this many rows at once; more are merged in a tree
_AT_ONCE = 20_000
_GROUP: dict[str, int] = {"restarts": 1, "max_iterations": 4, "projection": 64}
_TOP: dict[str, int] = {"restarts": 1, "max_iterations": 20}
_PROJECTION = 64  # as at the sites
_ALL_PAIRS = 1_000_000_000  # of rows and centres measured in full
_BLOCK = 1 << 14

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
    check_choice("merge mode", mode, MergeMode)
    if not banks:
        raise MemoryBankError("no site memory to merge")
    if mode == "average":
        return _average([banks[name] for name in sorted(banks)])
    ordered = [banks[name] for name in sorted(banks)]
    total = sum(len(bank) for bank in ordered)
    if mode == "concat" and (size is None or total <= size):
        return concatenate(ordered)
    if size is None:
        raise ConfigError(f"merge mode {mode!r} needs a memory size")
    if total <= size:
        return concatenate(ordered)
    if mode == "kmeans":
        return _kmeans_tree(ordered, size, seed, temper)
    return _k_center_merge(concatenate(ordered), size, seed)


def _kmeans_tree(ordered: Sequence[MemoryBank], size: int, seed: int, temper: float) -> MemoryBank:
    """k-means of groups of sites, then of their means: time and memory linear in the rows."""
    if sum(map(len, ordered)) <= _AT_ONCE:
        return weighted_kmeans(concatenate(ordered), size, seed=seed, temper=temper)
    groups: list[list[MemoryBank]] = [[]]
    for bank in ordered:
        if groups[-1] and sum(map(len, groups[-1])) + len(bank) > max(_AT_ONCE, 4 * size):
            groups.append([])
        groups[-1].append(bank)
    if len(groups) == 1 or len(groups) == len(ordered):  # too few, or too large to be grouped
        return weighted_kmeans(concatenate(ordered), size, seed=seed, temper=temper, **_TOP)
    merged = [
        weighted_kmeans(concatenate(group), size, seed=seed * 1009 + i, temper=temper, **_GROUP)
        for i, group in enumerate(groups)
    ]
    return _kmeans_tree(merged, size, seed, temper)


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
    origin, place = concatenate(banks).origin, np.tile(np.arange(counts[0]), len(banks))
    return MemoryBank(
        mean.astype(np.float32),
        weights.sum(0),
        np.sqrt(variance).astype(np.float32),
        None if origin is None else origin.cells(place, weights.reshape(-1)),
    )


def _k_center_merge(bank: MemoryBank, size: int, seed: int) -> MemoryBank:
    bank = bank.canonical()
    coreset = k_center(bank.vectors, size, seed=seed, projection=_PROJECTION)
    squared, label = _assigned(bank.vectors, coreset)
    kept, cell = np.unique(label, return_inverse=True)
    weights = np.bincount(cell, bank.weights).astype(np.float64)
    scatter = bank.weights * (bank.spread.astype(np.float64) ** 2 + squared)
    variance = np.bincount(cell, scatter) / weights
    found = bank.take(coreset.indices[kept])
    return MemoryBank(found.vectors, weights, np.sqrt(variance).astype(np.float32), found.origin)


def _assigned(
    vectors: FloatArray, coreset: Coreset
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """For each row its centre, and the squared distance to it; of very many the centre that is
    nearest in the projection, since the nearest of all would take most of the merge's time.
    """
    import torch

    points = torch.from_numpy(vectors)
    if len(vectors) * len(coreset.indices) <= _ALL_PAIRS:
        squared, label = nearest(points, points[torch.from_numpy(coreset.indices)])
        return squared.numpy(), label.numpy()
    centres = coreset.indices[coreset.labels]
    squared = torch.empty(len(vectors))
    for start in range(0, len(vectors), _BLOCK):
        rows = points[torch.from_numpy(centres[start : start + _BLOCK])]
        squared[start : start + _BLOCK] = (points[start : start + _BLOCK] - rows).square().sum(1)
    return squared.numpy(), coreset.labels


def coverage(
    uploads: FloatArray,
    memory: FloatArray,
    *,
    max_rows: int = 4000,
    max_uploads: int = 20_000,
    seed: int = 0,
) -> float:
    """How far the worst-covered upload lies from the memory, in units of the uploads' own spacing.

    The largest distance of an upload to the memory over the median distance between an upload and
    its nearest other upload. Above `COVERAGE_WARNING` (3) some normal mode is missing from the
    memory and will raise false alarms.

    Parameters
    ----------
    uploads : (n, d) float32 array
        Rows of all sites.
    memory : (k, d) float32 array
        Rows of the global memory.
    max_rows : int, default=4000
        The spacing is measured on a random sample of this many uploads.
    max_uploads : int, default=20000
        Of more uploads, everything is measured on a random sample of this many.
    seed : int, default=0
        Of both samples.

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
    if len(uploads) > max_uploads:
        chosen = np.random.default_rng([seed, 1]).permutation(len(uploads))[:max_uploads]
        uploads = uploads[np.sort(chosen)]
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
