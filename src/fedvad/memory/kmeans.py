"""Weighted k-means with exact k-means++ seeding, for memories of many sites."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedvad.errors import ConfigError
from fedvad.memory.bank import MemoryBank
from fedvad.memory.distances import nearest, pairwise, squared_norms

if TYPE_CHECKING:
    import torch

__all__ = ["kmeans_plus_plus", "weighted_kmeans"]

_PROPOSALS = 256


def weighted_kmeans(
    bank: MemoryBank,
    k: int,
    *,
    seed: int,
    restarts: int = 3,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    projection: int | None = None,
    temper: float = 1.0,
) -> MemoryBank:
    """Merge the vectors of a bank into at most k weighted means; total weight is conserved.

    Best of `restarts` seeded runs by weighted inertia. Rows are first put into a canonical order,
    so the order in which sites arrive does not matter. Spread combines the spread within the merged
    rows and their distance to the mean.

    Parameters
    ----------
    bank : MemoryBank
        Of m rows. A bank of at most k rows is returned unchanged.
    k : int
        Number of means, at least 1.
    seed : int
        Of the seeding and the projection.
    restarts : int, default=3
        Number of runs, at least 1.
    max_iterations : int, default=100
        Most iterations of a run.
    tolerance : float, default=1e-4
        A run stops when inertia falls by less than this share.
    projection : int, default=None
        Find the cells in a random projection to this many dimensions; means and spread are exact
        all the same.
    temper : float, default=1.0
        Exponent, in [0, 1], of the rows' weights in finding and averaging the cells: 1 counts every
        patch alike, 0 every row, so that rows of rare patches keep means of their own. The weights
        of the result are sums of the rows' own.

    Raises
    ------
    ConfigError
        When k < 1, or for a temper outside [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.memory.bank import MemoryBank
    >>> from fedvad.memory.kmeans import weighted_kmeans
    >>> bank = MemoryBank.of_patches(np.array([[0.0], [2.0], [10.0], [12.0]], np.float32))
    >>> means = weighted_kmeans(bank, 2, seed=0)
    >>> sorted(means.vectors[:, 0].tolist()), means.weights.tolist(), means.spread.tolist()
    ([1.0, 11.0], [2.0, 2.0], [1.0, 1.0])

    Source: Lloyd 1982; Arthur & Vassilvitskii 2007; Boutsidis et al. 2010 for projections.
    """
    import torch

    if k < 1:
        raise ConfigError(f"k-means needs k >= 1, got {k}")
    if not 0 <= temper <= 1:
        raise ConfigError(f"weights are tempered by an exponent in [0, 1], got {temper}")
    if len(bank) <= k:
        return bank
    bank = bank.canonical()
    exact = torch.from_numpy(bank.vectors).double()
    # distances are differences of squared lengths: short vectors keep them accurate
    points = (exact - exact.mean(0)).float()
    if projection is not None and projection < bank.dim:
        generator = torch.Generator().manual_seed(seed)
        points = points @ torch.randn(bank.dim, projection, generator=generator)
    weights = torch.from_numpy(bank.weights**temper)
    best: tuple[float, torch.Tensor] | None = None
    for restart in range(restarts):
        generator = torch.Generator().manual_seed(seed * 1009 + restart)
        centres = points[kmeans_plus_plus(points, weights, k, generator)]
        run = _lloyd(points, weights, centres, max_iterations, tolerance)
        if best is None or run[0] < best[0]:
            best = run
    assert best is not None
    _, label = best
    # a cell that ended empty, or was never seeded for want of distinct rows, is left out
    _, label = torch.unique(label, return_inverse=True)
    cells = int(label.max()) + 1
    size = torch.zeros(cells, dtype=torch.float64).index_add_(0, label, weights)
    sums = torch.zeros(cells, bank.dim, dtype=torch.float64)
    means = sums.index_add_(0, label, exact * weights[:, None]) / size[:, None]
    if temper != 1:  # what a mean stands for is counted in patches all the same
        weights = torch.from_numpy(bank.weights)
        size = torch.zeros_like(size).index_add_(0, label, weights)
    scatter = torch.from_numpy(bank.spread).double().square()
    scatter += (exact - means[label]).square().sum(1)
    variance = torch.zeros_like(size).index_add_(0, label, weights * scatter) / size
    origin = None if bank.origin is None else bank.origin.cells(label.numpy(), bank.weights)
    return MemoryBank(means.float().numpy(), size.numpy(), variance.sqrt().float().numpy(), origin)


def kmeans_plus_plus(
    points: torch.Tensor, weights: torch.Tensor, k: int, generator: torch.Generator
) -> torch.Tensor:
    """Indices of k-means++ seeds.

    Exact D^2 sampling in batches: proposals are drawn from the distribution before the batch and
    each is accepted with probability (its distance now) / (its distance then), which is rejection
    sampling from the current distribution.

    Parameters
    ----------
    points : (n, d) float32 tensor
    weights : (n,) float64 tensor
        Weights > 0 of the points.
    k : int
        Number of seeds; fewer are returned only when fewer distinct points exist.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    (<= k,) int64 tensor

    Examples
    --------
    >>> import torch
    >>> from fedvad.memory.kmeans import kmeans_plus_plus
    >>> points = torch.tensor([[0.0], [0.0], [5.0]])
    >>> generator = torch.Generator().manual_seed(0)
    >>> seeds = kmeans_plus_plus(points, torch.ones(3).double(), 3, generator)
    >>> sorted(points[seeds, 0].tolist())
    [0.0, 5.0]

    Source: Arthur & Vassilvitskii 2007; the batching is ours.
    """
    import torch

    norms = squared_norms(points)
    first = int(torch.multinomial(weights, 1, generator=generator))
    chosen = [first]
    distances, _ = nearest(points, points[first : first + 1])
    while len(chosen) < k:
        mass = weights * distances
        if float(mass.sum()) <= 0:
            break
        proposals = torch.multinomial(mass, _PROPOSALS, replacement=True, generator=generator)
        coins = torch.rand(_PROPOSALS, generator=generator).numpy()
        between = pairwise(points[proposals], norms[proposals]).numpy()
        then = distances[proposals].numpy()
        now = then.copy()
        order = proposals.tolist()
        new: list[int] = []
        for i, point in enumerate(order):
            if len(chosen) + len(new) == k:
                break
            if coins[i] * then[i] < now[i]:  # never for one taken before: it is at 0
                new.append(point)
                np.minimum(now, between[i], out=now)
        refreshed, _ = nearest(points, points[new])
        torch.minimum(distances, refreshed, out=distances)
        distances[new] = 0.0
        chosen += new
    return torch.tensor(chosen)


def _lloyd(
    points: torch.Tensor,
    weights: torch.Tensor,
    centres: torch.Tensor,
    max_iterations: int,
    tolerance: float,
) -> tuple[float, torch.Tensor]:
    """Lloyd iterations; returns weighted inertia and (n,) labels."""
    import torch

    k = len(centres)
    weighted = points.double() * weights[:, None]
    previous = float("inf")
    for _ in range(max_iterations):
        distances, label = nearest(points, centres)
        losses = weights * distances
        inertia = float(losses.sum())
        size = torch.zeros(k, dtype=torch.float64).index_add_(0, label, weights)
        sums = torch.zeros(centres.shape, dtype=torch.float64).index_add_(0, label, weighted)
        empty = size == 0
        centres = (sums / size.clamp_min(1e-300)[:, None]).float()
        if bool(empty.any()):
            # an empty cell restarts where the memory is represented worst
            for cell in empty.nonzero()[:, 0]:
                centres[cell] = points[losses.argmax()]
                gaps, _ = nearest(points, centres[cell][None])
                losses = torch.minimum(losses, weights * gaps)
        elif previous - inertia <= tolerance * inertia:
            break
        previous = inertia
    distances, label = nearest(points, centres)
    return float((weights * distances).sum()), label
