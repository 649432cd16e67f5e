"""A run of students: weights that all sites share, and what each has of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedvad.detectors.base import Detector
from fedvad.detectors.registry import detector_class
from fedvad.detectors.student.detector import StudentDetector
from fedvad.detectors.student.parameters import under
from fedvad.errors import ArtefactError
from fedvad.evaluation.results import LearningCurve
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.runs.config import Reference
from fedvad.runs.run import Arrays, Parts, Run, RunValues, SiteModel, SiteValues


class _SiteValues(SiteValues):
    own: dict[str, Any]


class _RunValues(RunValues):
    kind: Literal["student run"]
    student: dict[str, Any]
    sites: list[_SiteValues] = Field(min_length=1)


@dataclass(frozen=True, eq=False)
class StudentModel(SiteModel):
    """Batch statistics of a site's images, and what its scores are divided by.

    own: by name, see `StudentDetector.own_values`.
    """

    buffers: Arrays
    own: dict[str, Any]

    def arrays(self) -> Arrays:
        """See `SiteModel.arrays`."""
        return self.buffers

    def values(self) -> dict[str, Any]:
        """See `SiteModel.values`."""
        return {"own": self.own}


@dataclass(frozen=True, eq=False)
class StudentRun(Run):
    """One student, and each site's statistics; see `Run`.

    shared: the averaged parameters, under the names of `StudentDetector.state`. values: what
    `from_state` needs besides.
    """

    kind: ClassVar[str] = "student run"
    described: ClassVar[type[RunValues]] = _RunValues
    holds: ClassVar[str] = "a student and no memory"

    shared: Arrays
    values: dict[str, Any]
    sites: dict[str, StudentModel]
    features: FeatureConfig
    method: str
    data: str = ""
    reference: Reference = field(default="global", init=False)

    @classmethod
    def of(
        cls,
        detectors: Mapping[str, StudentDetector],
        images: Mapping[str, int],
        *,
        method: str,
        data: str = "",
    ) -> StudentRun:
        """From the sites' detectors, which have one student, and their numbers of images."""
        sites: dict[str, StudentModel] = {}
        shared: Arrays = {}
        values: dict[str, Any] = {}
        for name, detector in detectors.items():
            arrays, values = detector.state()
            buffers = under("buffers/", arrays)
            shared = {n: a for n, a in arrays.items() if not n.startswith("buffers/")}
            own = {key: values.pop(key) for key in detector.own_values}
            sites[name] = StudentModel(buffers, own, n_images=images[name])
        features = next(iter(detectors.values())).extractor.config
        return cls(shared, values, sites, features, method, data)

    def learning(self) -> dict[str, LearningCurve]:
        """See `Run.learning`; an earlier version of fedvad kept no curves."""
        logs = {name: model.own.get("log") for name, model in self.sites.items()}
        return {
            name: LearningCurve(at=log["at"], loss=log["loss"], held_out=log["validation"])
            for name, log in logs.items()
            if log and log.get("at") and len(log["at"]) == len(log["validation"])
        }

    def detector(
        self, site: str | None, extractor: FeatureExtractor, reference: Reference | None = None
    ) -> Detector:
        """See `Run.detector`; for a site that never trained, with the statistics of all."""
        self.features.check_same(extractor.config, "this run")
        self.chosen_reference(site, reference)
        model = self.sites.get(site) if site is not None else None
        buffers = self._mixed() if model is None else model.buffers
        arrays = self.shared | {f"buffers/{n}": a for n, a in buffers.items()}
        made = detector_class(self.method)
        try:
            by_scale = sorted(self.sites.values(), key=lambda m: float(m.own["scale"]))
            own = (model or by_scale[len(by_scale) // 2]).own
            return made.from_state(arrays, self.values | own, extractor=extractor)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"this run's student is incomplete or damaged: {error}") from error

    def _shared_arrays(self) -> Arrays:
        return dict(self.shared)

    def _shared_values(self) -> dict[str, Any]:
        return {"features": self.features.identity(), "student": self.values}

    @classmethod
    def _assembled(cls, parts: Parts) -> Self:
        shared, described, own, thresholds, features = parts
        sites = {}
        for site, buffers, limits in zip(described.sites, own, thresholds, strict=True):
            if _shapes(buffers) != _shapes(own[0]):
                raise ArtefactError(f"site {site.name!r} has other batch statistics than the first")
            sites[site.name] = StudentModel(
                buffers, site.own, thresholds=limits, n_images=site.n_images
            )
        return cls(shared, described.student, sites, features, described.method, described.data)

    @classmethod
    def _must_be_finite(cls, values: dict[str, Any]) -> dict[str, Any]:
        return values

    def _mixed(self) -> Arrays:
        """Batch statistics of all sites' images together: mean and variance of the mixture."""
        models = list(self.sites.values())
        shares = np.array([m.n_images for m in models], np.float64)
        shares = shares / shares.sum() if shares.sum() else np.full(len(models), 1 / len(models))

        def mean(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
            stacked = np.stack(arrays).astype(np.float64)
            return np.tensordot(shares, stacked, 1)

        mixed: Arrays = {}
        for name in models[0].buffers:
            own = [m.buffers[name].astype(np.float64) for m in models]
            value = mean(own)
            if name.endswith("running_var"):
                means = [m.buffers[name.removesuffix("var") + "mean"] for m in models]
                squares = mean(
                    [v + np.square(c, dtype=np.float64) for v, c in zip(own, means, strict=True)]
                )
                value = squares - mean(means) ** 2
            mixed[name] = value.astype(models[0].buffers[name].dtype)
        return mixed


def _shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}
