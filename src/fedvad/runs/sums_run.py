"""A run of sums: what all sites share is all there is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Self

from fedvad.detectors.scoring import ScoringConfig
from fedvad.detectors.sums.detector import SumsDetector, gaussian_arrays, gaussian_back
from fedvad.detectors.sums.gaussian import Gaussian
from fedvad.detectors.sums.site import SumsConfig
from fedvad.detectors.sums.statistics import Space
from fedvad.errors import ArtefactError
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.runs.config import Reference
from fedvad.runs.run import Arrays, Parts, Run, RunValues, SiteModel, SiteValues


class _RunValues(RunValues):
    kind: Literal["sums run"]
    scoring: dict[str, Any]
    sums: dict[str, float]
    sites: list[SiteValues]


@dataclass(frozen=True, eq=False)
class SumsRun(Run):
    """Averages over the images of all sites; see `Run`."""

    kind: ClassVar[str] = "sums run"
    described: ClassVar[type[RunValues]] = _RunValues
    holds: ClassVar[str] = "sums and no memory"

    space: Space
    gaussian: Gaussian
    scoring: ScoringConfig
    sites: dict[str, SiteModel]
    features: FeatureConfig
    method: str
    data: str = ""
    reference: Reference = field(default="global", init=False)

    def detector(
        self, site: str | None, extractor: FeatureExtractor, reference: Reference | None = None
    ) -> SumsDetector:
        """See `Run.detector`; the same at every site."""
        self.features.check_same(extractor.config, "this run")
        self.chosen_reference(site, reference)
        if extractor.grid[2] != len(self.space.projection):
            raise ArtefactError(
                f"this run is damaged: its sums are of {len(self.space.projection)} values a "
                f"patch, the features have {extractor.grid[2]}; train again"
            )
        config = SumsConfig(dimensions=self.space.size, grid=self.space.grid)
        detector = SumsDetector(extractor=extractor, config=config, scoring=self.scoring)
        return detector.with_sums(self.space, self.gaussian)

    def _shared_arrays(self) -> Arrays:
        return gaussian_arrays(self.space, self.gaussian)[0]

    def _shared_values(self) -> dict[str, Any]:
        return {
            "scoring": asdict(self.scoring),
            "features": self.features.identity(),
            "sums": gaussian_arrays(self.space, self.gaussian)[1],
        }

    @classmethod
    def _assembled(cls, parts: Parts) -> Self:
        shared, about, _, thresholds, features = parts
        if strange := set(shared) - {"projection", "mean", "scatter"}:
            raise ArtefactError(f"array {min(strange)!r} belongs to no site")
        try:
            space, gaussian = gaussian_back(shared, about.sums)
        except ValueError as error:
            raise ArtefactError(str(error)) from error
        sites = {
            site.name: SiteModel(thresholds=limits, n_images=site.n_images)
            for site, limits in zip(about.sites, thresholds, strict=True)
        }
        scoring = ScoringConfig.from_values(about.scoring)
        return cls(space, gaussian, scoring, sites, features, about.method, about.data)

    @classmethod
    def _must_be_finite(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {"sums": values.get("sums")}
