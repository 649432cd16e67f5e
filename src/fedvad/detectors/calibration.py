"""Scores of a site's own normal images as if they had not been trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.generator import Generator
from fedvad.detectors.scoring import MemoryScorer, ScoringConfig
from fedvad.half import to_float, to_half
from fedvad.memory.bank import FloatArray, MemoryBank

__all__ = ["RowLookup", "choose_images", "held_out_scores"]


_MINUS_ZERO = 0x8000  # bits of -0.0 in float16


class RowLookup:
    """Finds which rows of a memory are patches of a given image, by their float16 values."""

    def __init__(self, vectors: FloatArray) -> None:
        words = -(-vectors.shape[1] // 4)
        self._factors = np.random.default_rng(0).integers(1, 2**63, words, dtype=np.uint64) | 1
        hashes = self._hash(vectors.astype(np.float16))
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def rows_of(self, patches: npt.NDArray[np.float16]) -> npt.NDArray[np.int64]:
        """Indices of the memory rows that equal one of the (n, d) patches."""
        wanted = np.unique(self._hash(patches))
        low = np.searchsorted(self._sorted, wanted, "left")
        high = np.searchsorted(self._sorted, wanted, "right")
        hits = [self._order[a:b] for a, b in zip(low, high, strict=True) if b > a]
        return np.sort(np.concatenate(hits)) if hits else np.zeros(0, np.int64)

    def _hash(self, rows: npt.NDArray[np.float16]) -> npt.NDArray[np.uint64]:
        bits = np.ascontiguousarray(rows).view(np.uint16)
        words = np.zeros((len(rows), 4 * len(self._factors)), np.uint16)
        # -0.0 and 0.0 are the same value with other bits
        np.copyto(words[:, : rows.shape[1]], bits, where=bits != _MINUS_ZERO)
        hashes: npt.NDArray[np.uint64] = (words.view(np.uint64) * self._factors).sum(1)
        return hashes


def choose_images(count: int, limit: int, seed: int) -> list[int]:
    """At most `limit` of `count` image positions, seeded, ascending."""
    chosen = np.random.default_rng(seed).permutation(count)[:limit]
    return sorted(chosen.tolist())


def held_out_scores(
    features: NormalFeatures,
    bank: MemoryBank,
    generator: Generator,
    scoring: ScoringConfig,
    *,
    leave_one_out: bool,
    stored: Callable[[FloatArray], FloatArray] | None = None,
    on_image: Callable[[], None] | None = None,
) -> Sequence[float]:
    """Image scores of a site's normal images against a memory that does not know them.

    With `leave_one_out` each image is scored against the memory without the rows that are its own
    patches, which is how the memory of all other images scores it, up to the choice of their
    rows; no normal image is lost to the memory. `stored` says how the memory holds (n, d) patches,
    where it does not hold them as they are. Without, the images must not have been used for
    the memory at all. An image that alone makes up the memory is left out. Source: ours.
    """
    if len(features) == 0:  # building the index of a large memory takes a while
        return []
    scorer = MemoryScorer(bank, scoring)
    lookup = RowLookup(bank.vectors) if leave_one_out else None
    scores: list[float] = []
    for descriptors in features:
        exclude = None
        if lookup is not None:
            patches = descriptors.reshape(-1, descriptors.shape[-1])
            if stored is not None:
                patches = to_half(stored(to_float(patches)))
            exclude = lookup.rows_of(patches)
            if len(exclude) == len(bank):
                continue
        score, _ = scorer.score(generator(to_float(descriptors)), exclude=exclude)
        scores.append(score)
        if on_image is not None:
            on_image()
    return scores
