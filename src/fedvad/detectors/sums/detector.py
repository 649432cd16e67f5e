"""The detector of sums: how far a patch lies from the mean, by the covariance of all sites."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from fedvad.data.folders import ImageSet
from fedvad.detectors.base import Arrays, Values
from fedvad.detectors.patches import PatchDetector
from fedvad.detectors.scoring import ScoringConfig
from fedvad.detectors.sums.gaussian import Gaussian, SumsScorer
from fedvad.detectors.sums.site import SumsConfig, gaussian_of
from fedvad.detectors.sums.statistics import Space
from fedvad.errors import ConfigError
from fedvad.features.extractor import FeatureExtractor

if TYPE_CHECKING:
    import torch


_CONFIG = SumsConfig()


@dataclass(kw_only=True, eq=False, repr=False)
class SumsDetector(PatchDetector):
    """Scores by the Mahalanobis distance of projected patches, whole or by part of the image.

    space_, gaussian_: what was learned. Source: PaDiM (Defard et al. 2021) with one covariance for
    many places and images of bounded influence, which is ours.
    """

    name: ClassVar[str] = "sums"

    config: SumsConfig = _CONFIG

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
        dim = self.extractor.grid[2]
        space = Space.of(dim, self.config.dimensions, self.config.grid, self.seed)
        return self.with_sums(space, gaussian_of(space, self._features(images)))

    @property
    def scorer(self) -> SumsScorer:
        """What scores by the sums; raises `ConfigError` before there are any."""
        if self.space_ is None or self.gaussian_ is None:
            raise ConfigError(f"{self.name} has learned nothing yet: call fit() first")
        if self._scorer is None:
            self._scorer = SumsScorer(self.space_, self.gaussian_, self.scoring)
        return self._scorer

    def facts(self) -> dict[str, Any]:
        """See `Detector.facts`."""
        space = self.scorer.space
        return {
            "scoring": {key: asdict(self.scoring)[key] for key in ("smooth", "top", "top_cells")},
            "sums": {"dimensions": space.size, "grid": space.grid},
        }

    def map_net(self) -> torch.nn.Module:
        """See `Detector.map_net`."""
        from fedvad.detectors.sums.net import SumsMaps

        return SumsMaps(self.extractor.network, self.scorer)

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
