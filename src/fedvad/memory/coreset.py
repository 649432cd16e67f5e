"""Greedy k-center coreset: the m patches that leave no normal patch far from the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError
from fedvad.memory.bank import FloatArray
from fedvad.memory.distances import nearest, squared_norms

if TYPE_CHECKING:
    import torch

__all__ = ["CandidateSampler", "Coreset", "k_center"]

_POOL = 512


@dataclass(frozen=True, eq=False)
class Coreset:
    """What `k_center` chose.

    indices: (m,) rows of the points, in the order chosen.
    distances: (n,) distance of every point to its nearest centre, initial ones included.
    """

    indices: npt.NDArray[np.int64]
    distances: FloatArray

    @property
    def radius(self) -> float:
        """The largest distance of a point to its nearest centre (what k-center minimises)."""
        return float(self.distances.max(initial=0.0))


def k_center(
    points: FloatArray,
    m: int,
    *,
    seed: int,
    initial: FloatArray | None = None,
    projection: int | None = None,
) -> Coreset:
    """Choose m of the (n, d) points by greedy farthest-first traversal.

    With `initial` (c, d) centres the traversal goes on from them, so that the m new points are
    those which `initial` covers worst; without, it starts at a seeded random point. `projection`
    selects in a seeded random projection to that many dimensions (faster; the radius is then
    measured there). Ties break towards the lower index; duplicates are never chosen twice.

    The result is that of the plain greedy loop: centres come from a pool of the farthest points,
    and distances of all others, which can only shrink, are refreshed in one matrix product when
    the pool falls below the best of them.

    Raises `ConfigError` when m < 1. Source: Gonzalez 1985; PatchCore, Roth et al. 2022, sec. 3.2;
    the lazy pool is ours.
    """
    import torch

    if m < 1:
        raise ConfigError(f"a coreset needs at least one vector, got {m}")
    n, dim = points.shape
    generator = torch.Generator().manual_seed(seed)
    data = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32))
    start = None if initial is None or len(initial) == 0 else torch.from_numpy(initial)
    if projection is not None and projection < dim:
        matrix = torch.randn(dim, projection, generator=generator) / projection**0.5
        data = data @ matrix
        start = None if start is None else start @ matrix
    norms = squared_norms(data)
    chosen: list[int] = []
    if start is not None:
        distances, _ = nearest(data, start, points_norms=norms)
    else:
        first = int(torch.randint(n, (1,), generator=generator))
        chosen.append(first)
        distances, _ = nearest(data, data[first : first + 1], points_norms=norms)
        distances[first] = 0.0
    target = min(m, n)
    while len(chosen) < target:
        top, pool = torch.topk(distances, min(_POOL + 1, n))
        bound = float(top[-1]) if n > _POOL else -1.0
        new = _greedy_in_pool(data, norms, pool[:_POOL], top[:_POOL], bound, target - len(chosen))
        if not new:  # every point lies on a centre: all that remain are duplicates
            break
        chosen += new
        refreshed, _ = nearest(data, data[new], points_norms=norms)
        torch.minimum(distances, refreshed, out=distances)
        distances[new] = 0.0
    return Coreset(np.asarray(chosen, dtype=np.int64), distances.sqrt_().numpy())


def _greedy_in_pool(
    data: torch.Tensor,
    norms: torch.Tensor,
    pool: torch.Tensor,
    pool_distances: torch.Tensor,
    bound: float,
    wanted: int,
) -> list[int]:
    """Greedy picks within the pool while its farthest point is surely the farthest of all."""
    members = data[pool].numpy()
    lengths = norms[pool].numpy()
    between = lengths[:, None] + lengths[None] - 2 * members @ members.T
    distances = pool_distances.numpy().copy()
    picks: list[int] = []
    while len(picks) < wanted:
        j = int(distances.argmax())
        if distances[j] <= 0 or (picks and distances[j] < bound):
            break
        picks.append(int(pool[j]))
        np.minimum(distances, between[j], out=distances)
        distances[j] = -1.0
    return picks


class CandidateSampler:
    """Uniform sample of patches from a stream of images, in a bounded number of bytes.

    Every image contributes the same number of patches at seeded uniform positions, so that no
    image and no place is favoured (a regular stride drops whole columns and costs accuracy).
    """

    def __init__(
        self,
        *,
        n_images: int,
        patches_per_image: int,
        dim: int,
        fraction: float,
        max_bytes: int,
        seed: int,
    ) -> None:
        if not 0 < fraction <= 1:
            raise ConfigError(f"candidate fraction must lie in (0, 1], got {fraction}")
        affordable = max_bytes // (4 * dim * max(n_images, 1))
        self.per_image = max(1, min(round(fraction * patches_per_image), affordable))
        self._rng = np.random.default_rng(seed)
        self._rows: list[FloatArray] = []

    def add(self, descriptors: npt.NDArray[np.float16]) -> None:
        """Take this sampler's share of one image's (h, w, d) descriptors."""
        patches = descriptors.reshape(-1, descriptors.shape[-1])
        take = min(self.per_image, len(patches))
        rows = np.sort(self._rng.choice(len(patches), take, replace=False))
        self._rows.append(patches[rows].astype(np.float32))

    def result(self) -> FloatArray:
        """The sampled patches, (rows, d) float32, in the order of the images."""
        return np.concatenate(self._rows)
