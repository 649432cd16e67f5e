"""Greedy k-center coreset: the m patches that leave no normal patch far from the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError
from fedvad.half import to_float
from fedvad.memory.bank import FloatArray
from fedvad.memory.distances import (
    columns_of,
    extended,
    nearest_column,
    pairwise,
    squared_norms,
    without_rounding,
)

if TYPE_CHECKING:
    import torch

__all__ = ["CandidateSampler", "Coreset", "k_center"]

_POOL = 512
_SETTLE = 1024  # points measured against more of the initial centres at a time


@dataclass(frozen=True, eq=False)
class Coreset:
    """What `k_center` chose, measured in the projection where there is one.

    Attributes
    ----------
    indices : (m,) int64 array
        Rows of the points, in the order in which they were chosen.
    labels : (n,) int64 array
        For each point the position in `indices` of the nearest chosen one.
    distances : (n,) float32 array
        Distance of each point to that one.
    radius : float
        Largest distance of a point to its nearest centre, initial centres included: what k-center
        minimises.
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
    near: FloatArray | None = None,
    projection: int | None = None,
) -> Coreset:
    """Choose m of n points by greedy farthest-first traversal.

    Parameters
    ----------
    points : (n, d) float32 array
        Points to choose from, n >= 1.
    m : int
        Number of points to choose, at least 1. Duplicates are never chosen twice, so fewer are
        returned (with `initial` even none) when no other points are left.
    seed : int
        Of the first point and of the projection.
    initial : (c, d) float32 array, default=None
        Centres from which the traversal continues: the m new points are those which `initial`
        covers worst. Without it, the traversal starts at a random point.
    near : (b, d) float32 array, default=None
        A few more initial centres that lie close to most points. All points are measured against
        these, and against the many of `initial` only when they would be chosen otherwise.
    projection : int, default=None
        Number of dimensions of a random projection in which points are chosen and measured
        (faster; squared distances there are unbiased). None, or d or more, measures all.

    Returns
    -------
    Coreset
        The result of the plain greedy loop, ties towards the lower index: centres are taken from a
        pool of the farthest points, and distances of all others, which can only shrink, are
        refreshed in one matrix product when the pool falls to the best of them.

    Raises
    ------
    ConfigError
        When m < 1 or there are no points.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.memory.coreset import k_center
    >>> points = np.array([[0.0], [1.0], [10.0], [11.0]], np.float32)
    >>> chosen = k_center(points, 1, seed=0, initial=points[:1])
    >>> chosen.indices.tolist(), chosen.radius
    ([3], 1.0)

    Source: Gonzalez 1985; PatchCore, Roth et al. 2022, section 3.2; the lazy pool is ours.
    """
    import torch

    if m < 1:
        raise ConfigError(f"a coreset needs at least one vector, got {m}")
    n, dim = points.shape
    if n == 0:
        raise ConfigError("a coreset needs points to choose from")
    generator = torch.Generator().manual_seed(seed)
    data = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32))
    given = [
        torch.from_numpy(np.ascontiguousarray(centres, dtype=np.float32))
        for centres in (near, initial)
        if centres is not None and len(centres)
    ]
    # distances are differences of squared lengths: short vectors keep them accurate
    mean = data.mean(0)
    if projection is not None and projection < dim:
        matrix = torch.randn(dim, projection, generator=generator) / projection**0.5
        offset = -(mean @ matrix)
        data = torch.addmm(offset, data, matrix)
        given = [torch.addmm(offset, centres, matrix) for centres in given]
    else:
        data = data - mean
        given = [centres - mean for centres in given]
    search = _Traversal(data, given, generator)
    while len(search.chosen) < m:
        new = search.farthest(m - len(search.chosen))
        if not new:  # every point lies on a centre: all that remain are duplicates
            break
        search.add(new)
    radius = float(search.top(1)[0][0].sqrt())
    return Coreset(
        np.asarray(search.chosen, dtype=np.int64),
        search.label.numpy(),
        search.own.sqrt().numpy(),
        radius,
    )


class _Traversal:
    """Squared distances of all points during a traversal.

    own: to the nearest chosen point, which `label` says; given: to the nearest initial centre of
    the first `measured` blocks of them, so an upper bound until all are measured.
    """

    def __init__(
        self, data: torch.Tensor, given: list[torch.Tensor], generator: torch.Generator
    ) -> None:
        import torch

        self.data = data
        self.rows = extended(data)
        self.norms = squared_norms(data)
        self.chosen: list[int] = []
        self.own = torch.full((len(data),), float("inf"))
        self.label = torch.zeros(len(data), dtype=torch.long)
        self.given = self.own.clone()
        self.blocks = [columns_of(centres) for centres in given]
        self.measured = torch.zeros(len(data), dtype=torch.long)
        if self.blocks:
            self.measure(torch.arange(len(data)), 0)
        else:
            self.add([int(torch.randint(len(data), (1,), generator=generator))])

    def measure(self, rows: torch.Tensor, block: int) -> None:
        """Bound the distances of points, measured against all blocks before, by one more."""
        values, _ = nearest_column(self.rows[rows], self.blocks[block])
        distances = without_rounding(values, self.norms[rows])
        self.given[rows] = distances.minimum(self.given[rows])
        self.measured[rows] = block + 1

    def add(self, new: list[int]) -> None:
        """Make points centres and refresh all distances to them in one product."""
        import torch

        values, index = nearest_column(self.rows, columns_of(self.data[new]))
        distances = without_rounding(values, self.norms)
        distances[new] = 0.0
        index[new] = torch.arange(len(new))
        nearer = distances < self.own
        self.label = torch.where(nearer, index + len(self.chosen), self.label)
        self.own = torch.minimum(self.own, distances)
        self.chosen += new

    def top(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances and indices of the `count` farthest points; those are fully measured."""
        import torch

        while True:
            distances = self.own.minimum(self.given)
            far, rows = torch.topk(distances, min(max(count, _SETTLE), len(distances)))
            progress = self.measured[rows]
            if bool((progress[:count] == len(self.blocks)).all()):
                return far[:count], rows[:count]
            for block in range(1, len(self.blocks)):
                waiting = rows[progress == block]
                if len(waiting):
                    self.measure(waiting, block)

    def farthest(self, wanted: int) -> list[int]:
        """The next centres of the greedy traversal, at most `wanted`, none if all are covered."""
        top, pool = self.top(_POOL + 1)
        limit = float(top[-1]) if len(self.data) > _POOL else 0.0
        # all points farther than the limit, and none that ties with one left outside
        pool = pool[top > limit].sort().values
        if len(pool):
            distances = self.own[pool].minimum(self.given[pool])
            picks = _greedy_in_pool(self.data[pool], self.norms[pool], distances, limit, wanted)
            found: list[int] = pool[picks].tolist()
            return found
        if limit <= 0:
            return []
        ties = int((self.own.minimum(self.given) == limit).sum())
        self.top(ties)  # measures them all: some may be nearer to other initial centres
        return [int(self.own.minimum(self.given).numpy().argmax())]


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

    Every image contributes the same number of patches, or all of fewer, at uniform random
    positions, so that no image and no place is favoured (a regular stride drops whole columns and
    costs accuracy). Where `max_bytes` does not even hold one patch per image, a random choice of
    the images gives one.

    Parameters
    ----------
    n_images : int
        Number of images that will be added.
    patches_per_image : int
        Number of patches of an image, h x w.
    dim : int
        Length of a descriptor.
    fraction : float
        Share of the patches to keep, in (0, 1].
    max_bytes : int
        Most bytes of the sample as float32, at least 4 x dim.
    seed : int
        Of the positions.

    Raises
    ------
    ConfigError
        For a fraction outside (0, 1], or fewer bytes than one patch takes.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.memory.coreset import CandidateSampler
    >>> sampler = CandidateSampler(
    ...     n_images=2, patches_per_image=12, dim=5, fraction=0.5, max_bytes=1_000_000, seed=0
    ... )
    >>> for image in np.ones((2, 3, 4, 5), np.float16):
    ...     sampler.add(image)
    >>> sampler.result().shape, sampler.images().tolist()
    ((12, 5), [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
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
        self._rows = np.empty((int(self._takes.sum()) * self.per_image, dim), np.float16)
        self._images = 0
        self._filled = 0
        self._taken: list[int] = []

    @property
    def n_images(self) -> int:
        """Images that the sampler was made for."""
        return len(self._takes)

    @property
    def complete(self) -> bool:
        """Whether all of them have come."""
        return self._images == len(self._takes)

    @property
    def nbytes(self) -> int:
        """Bytes that the sampled rows take while they wait as float16."""
        return self._rows.nbytes

    def add(self, descriptors: npt.NDArray[np.float16]) -> None:
        """Take this sampler's share of one image's (h, w, d) descriptors; NaN cells are no patches.

        Raises `ConfigError` for more images than announced.
        """
        if self._images == len(self._takes):
            raise ConfigError(f"the sampler was made for {self._images} images")
        self._images += 1
        if not self._takes[self._images - 1]:
            return
        patches = np.asarray(descriptors).reshape(-1, descriptors.shape[-1])
        inside = np.flatnonzero(~np.isnan(patches[:, 0]))
        take = min(self.per_image, len(inside))
        self._taken.append(take)
        rows = inside[np.sort(self._rng.choice(len(inside), take, replace=False))]
        self._rows[self._filled : self._filled + take] = patches[rows]
        self._filled += take

    def images(self) -> npt.NDArray[np.int64]:
        """(rows,) number of the image, from 0, that each row of `result` is of."""
        return np.repeat(np.flatnonzero(self._takes)[: len(self._taken)], self._taken)

    def result(self) -> FloatArray:
        """The sampled patches, (rows, d) float32, in the order of the images."""
        return to_float(self._rows[: self._filled])
