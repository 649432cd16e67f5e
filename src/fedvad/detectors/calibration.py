"""Scores of a site's own normal images as if they had not been trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.scoring import MemoryScorer
from fedvad.half import HalfArray, to_float
from fedvad.memory.bank import FloatArray
from fedvad.memory.cells import principal_axes
from fedvad.memory.distances import nearest

# Share of its length. What another engine, device or order of sums does to a patch is below 0.0003
# of it, to its int8 form below 0.01; the nearest patch of another image was never within 0.02. The
# codecs themselves move a patch further: look for its coded form.
SAME = 0.01
_AXES = 8
_AXES_FROM = 2000  # rows


class RowLookup:
    """Finds which rows of a memory are patches of a given image, whatever engine described it.

    A row is one when a patch lies within a hundredth of its length; only rows that are as near
    in the memory's first eight principal components are compared in full. Source: ours.
    """

    def __init__(self, vectors: FloatArray) -> None:
        import torch
        from scipy.spatial import cKDTree

        drawn = np.random.default_rng(0).permutation(len(vectors))[:_AXES_FROM]
        sample = torch.from_numpy(vectors[drawn]).double()
        # orthonormal: no distance grows
        axes = principal_axes(
            sample - sample.mean(0), min(vectors.shape[1], _AXES), torch.Generator().manual_seed(0)
        )
        self._axes = axes.float().numpy()
        self._vectors = vectors
        self._tree = cKDTree(vectors @ self._axes)

    def rows_of(self, patches: FloatArray) -> npt.NDArray[np.int64]:
        """Indices of the memory rows that are one of the (n, d) patches, ascending."""
        import torch

        reach = SAME * np.linalg.norm(patches, axis=1)
        # a little more: the projection rounds, too
        near = self._tree.query_ball_point(patches @ self._axes, 1.01 * reach)
        rows = np.unique(np.fromiter(chain.from_iterable(near), np.int64))
        if len(rows) == 0:
            return rows
        squared, patch = nearest(
            torch.from_numpy(self._vectors[rows]), torch.from_numpy(np.ascontiguousarray(patches))
        )
        own: npt.NDArray[np.int64] = rows[squared.numpy() <= reach[patch.numpy()] ** 2]
        return own


def choose_images(count: int, limit: int, seed: int) -> list[int]:
    """At most `limit` of `count` image positions, seeded, ascending."""
    chosen = np.random.default_rng(seed).permutation(count)[:limit]
    return sorted(chosen.tolist())


class UnseenScorer:
    """Scores a site's normal images against a memory as if it did not know them.

    With `leave_one_out` each image is scored against the memory without the rows that are its own
    patches, which is how the memory of all other images scores it, up to the choice of their
    rows; no normal image is lost to the memory. `stored` says how the memory holds (n, d) patches,
    where it does not hold them as they are. Without, the images must not have been used for
    the memory at all. Source: ours.
    """

    def __init__(
        self,
        scorer: MemoryScorer,
        *,
        leave_one_out: bool,
        stored: Callable[[FloatArray], FloatArray] | None = None,
    ) -> None:
        self._scorer = scorer
        self._stored = stored
        self._lookup = RowLookup(scorer.bank.vectors) if leave_one_out else None

    def score(
        self, descriptors: FloatArray, generator: Generator, *, copies: Sequence[HalfArray] = ()
    ) -> float | None:
        """Score of an image's (h, w, d) descriptors; None where it alone makes up the memory.

        copies: descriptors of its near copies, whose rows are its own, too.
        """
        exclude = None
        if self._lookup is not None:
            every = [descriptors, *map(to_float, copies)]
            patches = np.concatenate([each.reshape(-1, each.shape[-1]) for each in every])
            patches = patches[~np.isnan(patches[:, 0])]  # those in the region of interest
            if self._stored is not None:
                patches = self._stored(patches)
            exclude = self._lookup.rows_of(generator(patches))
            if len(exclude) == len(self._scorer.bank):
                return None
        return self._scorer.score(generator(descriptors), exclude=exclude)[0]


def held_out_scores(
    features: NormalFeatures | Sequence[HalfArray],
    scorer: MemoryScorer,
    generator: Generator,
    *,
    leave_one_out: bool,
    stored: Callable[[FloatArray], FloatArray] | None = None,
    on_image: Callable[[], None] | None = None,
) -> Sequence[float]:
    """Image scores by an `UnseenScorer`, of those images that have one.

    Rows of near copies of an image are its own: they would vouch for it.
    """
    if len(features) == 0:  # building the lookup of a large memory takes a while
        return []
    unseen = UnseenScorer(scorer, leave_one_out=leave_one_out, stored=stored)
    scores: list[float] = []
    each: Iterable[tuple[HalfArray, Sequence[HalfArray]]] = (
        features.with_copies()
        if isinstance(features, NormalFeatures)
        else ((descriptors, ()) for descriptors in features)
    )
    for descriptors, copies in each:
        score = unseen.score(to_float(descriptors), generator, copies=copies)
        if score is not None:
            scores.append(score)
        if on_image is not None:
            on_image()
    return scores
