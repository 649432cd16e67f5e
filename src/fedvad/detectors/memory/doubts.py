"""Which of a site's normal images are unlike all others: defects may be among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.calibration import RowLookup
from fedvad.detectors.memory.site import FedDyMemConfig, MemorySite
from fedvad.detectors.scoring import MemoryScorer
from fedvad.half import to_float
from fedvad.memory.bank import FloatArray

_FAR = 2.5  # robust standard deviations of the logarithm of the scores; chosen on mtd


@dataclass(frozen=True, eq=False)
class Doubt:
    """A doubtful normal image.

    index: its place among the features. times: its score in multiples of the median image's.
    map: (h, w), where it is unlike the others.
    """

    index: int
    times: float
    map: FloatArray


def doubts(
    features: NormalFeatures,
    config: FedDyMemConfig,
    *,
    seed: int,
    on_image: Callable[[], None] | None = None,
) -> list[Doubt]:
    """The images that a memory of all others finds hard to explain, the hardest first.

    Parameters
    ----------
    features : NormalFeatures
        Of one site; with fewer than three images nothing can be said.
    config : FedDyMemConfig
        Of the memory, of real patches, which one round fills.
    seed : int
        Of the memory.
    on_image : callable, default=None
        Called after each image.

    Scores divide by the local density (`ScoringConfig.density`), as the local outlier factor does.
    Source: SoftPatch (Jiang et al. 2022), which weighs patches down by that factor; ours shows
    images to a person instead, and leaves each out of the memory that judges it.
    """
    bank = MemorySite(features, config, seed=seed).update(1, None)
    scorer = MemoryScorer(bank, config.scoring)
    lookup = RowLookup(bank.vectors)
    scores, maps = [], []
    for descriptors in features:
        patches = to_float(descriptors.reshape(-1, descriptors.shape[-1]))
        own = lookup.rows_of(patches[~np.isnan(patches[:, 0])])
        if len(own) == len(bank):
            return []
        score, map_ = scorer.score(to_float(descriptors), exclude=own)
        scores.append(score)
        maps.append(map_)
        if on_image is not None:
            on_image()
    values = np.array(scores)
    return [Doubt(int(i), float(values[i] / np.median(values)), maps[i]) for i in doubtful(values)]


def doubtful(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Positions of outlying scores (n,), the highest first.

    Those whose logarithm is more than 2.5 robust standard deviations (1.48 times the median
    absolute deviation) above the median; none among fewer than three.

    Examples
    --------
    >>> import numpy as np
    >>> doubtful(np.array([1.0, 9.0, 1.1, 0.9, 1.2, 5.0])).tolist()
    [1, 5]
    """
    if len(scores) < 3:
        return np.zeros(0, np.int64)
    logs = np.log(np.maximum(scores, 1e-12))
    apart = logs - np.median(logs)
    far = apart > _FAR * max(1.4826 * float(np.median(np.abs(apart))), 1e-6)
    order = np.argsort(-scores)
    found: npt.NDArray[np.int64] = order[far[order]]
    return found
