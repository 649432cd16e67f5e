"""The detector of sums: how far a patch lies from the mean, by the covariance of all sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from fedvad.data.bounds import MAX_BAD
from fedvad.data.folders import ImageSet
from fedvad.detectors.base import (
    Arrays,
    Detector,
    NormalFeatures,
    Pictures,
    Scores,
    Values,
    score_stream,
)
from fedvad.detectors.scoring import ScoringConfig
from fedvad.detectors.sums.gaussian import Gaussian, SumsScorer
from fedvad.detectors.sums.site import SumsConfig, gaussian_of
from fedvad.detectors.sums.statistics import Space
from fedvad.errors import ConfigError
from fedvad.features.extractor import FeatureExtractor
from fedvad.half import to_float
from fedvad.memory.bank import FloatArray

if TYPE_CHECKING:
    import torch

_SCORING, _CONFIG = ScoringConfig(), SumsConfig()


@dataclass(kw_only=True, eq=False, repr=False)
class SumsDetector(Detector):
    """Scores by the Mahalanobis distance of projected patches, whole or by part of the image.

    space_, gaussian_: what was learned. Source: PaDiM (Defard et al. 2021) with one covariance for
    many places and images of bounded influence, which is ours.
    """

    name: ClassVar[str] = "sums"

    config: SumsConfig = _CONFIG
    scoring: ScoringConfig = _SCORING
    max_bad: float = MAX_BAD

    def __post_init__(self) -> None:
        self.space_: Space | None = None
        self.gaussian_: Gaussian | None = None
        self._scorer: SumsScorer | None = None

    def with_sums(self, space: Space, gaussian: Gaussian) -> Self:
        """Adopt sums made elsewhere."""
        self.space_, self.gaussian_, self._scorer = space, gaussian, None
        return self

    def fit(self, images: ImageSet) -> Self:
        """See `Detector.fit`; of one place alone, so without noise."""
        paths = [item.path for item in images if item.label == 0]
        features = NormalFeatures(
            self.extractor, paths, max_bad=self.max_bad, where=f"{self.name} training set"
        )
        features.warm_up()
        dim = self.extractor.grid[2]
        space = Space.of(dim, self.config.dimensions, self.config.grid, self.seed)
        return self.with_sums(space, gaussian_of(space, features))

    @property
    def scorer(self) -> SumsScorer:
        """What scores by the sums; raises `ConfigError` before there are any."""
        if self.space_ is None or self.gaussian_ is None:
            raise ConfigError(f"{self.name} has learned nothing yet: call fit() first")
        if self._scorer is None:
            self._scorer = SumsScorer(self.space_, self.gaussian_, self.scoring)
        return self._scorer

    def score(self, images: Sequence[Path], on_image: Callable[[], None] | None = None) -> Scores:
        """See `Detector.score`."""
        return score_stream(self.extractor, self.scorer, lambda x: x, images, on_image)

    def ready(self) -> None:
        """See `Detector.ready`."""
        _ = self.scorer

    def facts(self) -> dict[str, Any]:
        """See `Detector.facts`."""
        space = self.scorer.space
        return {
            "scoring": {key: asdict(self.scoring)[key] for key in ("smooth", "top", "top_cells")},
            "sums": {"dimensions": space.size, "grid": space.grid},
        }

    def score_pixels(self, images: Pictures) -> Iterator[tuple[float, FloatArray]]:
        """See `Detector.score_pixels`."""
        for descriptors in self.extractor.describe(images):
            yield self.scorer.score(to_float(descriptors))

    def map_net(self) -> torch.nn.Module:
        """See `Detector.map_net`."""
        from fedvad.detectors.sums.net import SumsMaps

        return SumsMaps(self.extractor.network, self.scorer)

    def top_count(self, cells: int) -> int:
        """See `Detector.top_count`."""
        return self.scoring.count(cells)

    def state(self) -> tuple[Arrays, Values]:
        """See `Detector.state`."""
        scorer = self.scorer
        assert self.gaussian_ is not None
        arrays, values = gaussian_arrays(scorer.space, self.gaussian_)
        facts = {"scoring": asdict(self.scoring), "config": asdict(self.config), "seed": self.seed}
        return arrays, facts | {"sums": values}

    @classmethod
    def from_state(cls, arrays: Arrays, values: Values, *, extractor: FeatureExtractor) -> Self:
        """See `Detector.from_state`."""
        detector = cls(
            extractor=extractor,
            config=SumsConfig(**values["config"]),
            scoring=ScoringConfig.from_values(values["scoring"]),
            seed=values["seed"],
        )
        return detector.with_sums(*gaussian_back(arrays, values["sums"]))


def gaussian_arrays(space: Space, gaussian: Gaussian) -> tuple[Arrays, Values]:
    """Space and averages as named arrays and JSON values, for a file."""
    arrays: Arrays = {
        "projection": space.projection, "mean": gaussian.mean, "scatter": gaussian.scatter
    }  # fmt: skip
    facts = {"images": gaussian.images, "bound": gaussian.bound, "noise": gaussian.noise}
    return arrays, facts | {"grid": space.grid}


def gaussian_back(arrays: Arrays, values: Values) -> tuple[Space, Gaussian]:
    """What `gaussian_arrays` was given.

    Raises KeyError or ValueError for arrays that are missing or do not fit together.
    """
    space = Space(arrays["projection"], int(values["grid"]))
    mean, scatter = arrays["mean"], arrays["scatter"]
    triangle = space.size * (space.size + 1) // 2
    if (
        space.projection.dtype != np.float32
        or {mean.dtype, scatter.dtype} != {np.dtype(np.float64)}
        or mean.shape != (space.cells, space.size)
        or scatter.shape != (space.cells, triangle)
    ):
        raise ValueError("its sums do not fit together")
    images, bound, noise = int(values["images"]), float(values["bound"]), float(values["noise"])
    if images < 1 or not bound > 0 or noise < 0:
        raise ValueError(f"its sums are of {images} images, with bound {bound} and noise {noise}")
    return space, Gaussian(mean, scatter, images, bound, noise)
