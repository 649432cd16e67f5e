"""Greedy k-center coreset: the m patches that leave no normal patch far from the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError
from fedvad.memory.bank import FloatArray
from fedvad.memory.distances import nearest, pairwise, squared_norms

if TYPE_CHECKING:
    import torch

__all__ = ["CandidateSampler", "Coreset", "k_center"]

_POOL = 512


@dataclass(frozen=True, eq=False)
class Coreset:
    """What `k_center` chose, measured in the projection where there is one.

    indices: (m,) rows of the points, in the order chosen.
    labels: (n,) for each point the position in `indices` of the nearest chosen one.
    distances: (n,) to that one.
    radius: the largest distance of a point to its nearest centre, initial centres included (what
        k-center minimises).
    """

    indices: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    distances: FloatArray
    radius: float


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
    selects and measures in a seeded random projection to that many dimensions (faster; squared
    distances there are unbiased). Ties break towards the lower index; duplicates are never chosen
    twice, so fewer than m (with `initial` even none) come back when no other points are left.

    The result is that of the plain greedy loop: centres come from a pool of the farthest points,
    and distances of all others, which can only shrink, are refreshed in one matrix product when
    the pool falls to the best of them.

    Raises `ConfigError` when m < 1 or there are no points. Source: Gonzalez 1985; PatchCore, Roth
    et al. 2022, sec. 3.2; the lazy pool is ours.
    """
    import torch

    if m < 1:
        raise ConfigError(f"a coreset needs at least one vector, got {m}")
    n, dim = points.shape
    if n == 0:
        raise ConfigError("a coreset needs points to choose from")
    generator = torch.Generator().manual_seed(seed)
    data = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32))
    start = None
    if initial is not None and len(initial):
        start = torch.from_numpy(np.ascontiguousarray(initial, dtype=np.float32))
    # distances are differences of squared lengths: short vectors keep them accurate
    mean = data.mean(0)
    if projection is not None and projection < dim:
        matrix = torch.randn(dim, projection, generator=generator) / projection**0.5
        offset = -(mean @ matrix)
        data = torch.addmm(offset, data, matrix)
        start = None if start is None else torch.addmm(offset, start, matrix)
    else:
        data = data - mean
        start = None if start is None else start - mean
    search = _Traversal(data, start, generator)
    while len(search.chosen) < m:
        new = search.farthest(m - len(search.chosen))
        if not new:  # every point lies on a centre: all that remain are duplicates
            break
        search.add(new)
    radius = float(search.distances.max().sqrt())
    return Coreset(
        np.asarray(search.chosen, dtype=np.int64),
        search.label.numpy(),
        search.own.sqrt().numpy(),
        radius,
    )


class _Traversal:
    """Squared distances of all points during a traversal.

    own: to the nearest chosen point, which `label` says; given: to the nearest initial centre.
    """

    def __init__(
        self, data: torch.Tensor, initial: torch.Tensor | None, generator: torch.Generator
    ) -> None:
        import torch

        self.data = data
        self.norms = squared_norms(data)
        self.chosen: list[int] = []
        self.own = torch.full((len(data),), float("inf"))
        self.label = torch.zeros(len(data), dtype=torch.long)
        if initial is None:
            self.given = self.own.clone()
            self.add([int(torch.randint(len(data), (1,), generator=generator))])
        else:
            self.given, _ = nearest(data, initial, points_norms=self.norms)

    @property
    def distances(self) -> torch.Tensor:
        """To the nearest centre of either kind."""
        return self.own.minimum(self.given)

    def add(self, new: list[int]) -> None:
        """Make points centres and refresh all distances to them in one product."""
        import torch

        distances, index = nearest(self.data, self.data[new], points_norms=self.norms)
        distances[new] = 0.0
        index[new] = torch.arange(len(new))
        nearer = distances < self.own
        self.label = torch.where(nearer, index + len(self.chosen), self.label)
        self.own = torch.minimum(self.own, distances)
        self.chosen += new

    def farthest(self, wanted: int) -> list[int]:
        """The next centres of the greedy traversal, at most `wanted`, none if all are covered."""
        import torch

        distances = self.distances
        top, pool = torch.topk(distances, min(_POOL + 1, len(distances)))
        limit = float(top[-1]) if len(distances) > _POOL else 0.0
        # all points farther than the limit, and none that ties with one left outside
        pool = pool[top > limit].sort().values
        if len(pool):
            picks = _greedy_in_pool(
                self.data[pool], self.norms[pool], distances[pool], limit, wanted
            )
            found: list[int] = pool[picks].tolist()
            return found
        return [int(distances.numpy().argmax())] if limit > 0 else []


def _greedy_in_pool(
    members: torch.Tensor, norms: torch.Tensor, distances: torch.Tensor, bound: float, wanted: int
) -> list[int]:
    """Greedy picks among the members while the farthest of them is farther than `bound`."""
    between = pairwise(members, norms).numpy()
    left = distances.numpy()
    picks: list[int] = []
    while len(picks) < wanted:
        farthest = int(left.argmax())
        if left[farthest] <= bound:
            break
        picks.append(farthest)
        np.minimum(left, between[farthest], out=left)
    return picks


class CandidateSampler:
    """Uniform sample of patches from a stream of images, in a bounded number of bytes.

    Every image contributes the same number of patches at seeded uniform positions, so that no
    image and no place is favoured (a regular stride drops whole columns and costs accuracy). Where
    `max_bytes` does not even hold one patch per image, a seeded choice of the images gives one.
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
        affordable = max_bytes // (4 * dim)
        if affordable < 1:
            raise ConfigError(f"{max_bytes} bytes of candidates hold no patch of {dim} values")
        self._rng = np.random.default_rng(seed)
        self._takes = np.ones(n_images, dtype=np.bool_)
        if affordable < n_images:
            self._takes[self._rng.permutation(n_images)[affordable:]] = False
        wanted = max(1, round(fraction * patches_per_image))
        self.per_image = max(1, min(wanted, affordable // max(n_images, 1)))
        self._rows = np.empty((int(self._takes.sum()) * self.per_image, dim), np.float32)
        self._images = 0
        self._filled = 0

    def add(self, descriptors: npt.NDArray[np.float16]) -> None:
        """Take this sampler's share of one image's (h, w, d) descriptors.

        Raises `ConfigError` for more images than announced.
        """
        if self._images == len(self._takes):
            raise ConfigError(f"the sampler was made for {self._images} images")
        self._images += 1
        if not self._takes[self._images - 1]:
            return
        patches = descriptors.reshape(-1, descriptors.shape[-1])
        take = min(self.per_image, len(patches))
        rows = np.sort(self._rng.choice(len(patches), take, replace=False))
        self._rows[self._filled : self._filled + take] = patches[rows]
        self._filled += take

    def result(self) -> FloatArray:
        """The sampled patches, (rows, d) float32, in the order of the images."""
        return self._rows[: self._filled]
