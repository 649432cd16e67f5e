"""A run of students on disk: weights that all sites share, and what each has of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.data.checked import check_finite, parse_values
from fedvad.detectors.artefact import feature_identity, write_arrays
from fedvad.detectors.base import Detector
from fedvad.detectors.registry import detector_class
from fedvad.detectors.student import StudentDetector
from fedvad.distill.parameters import under
from fedvad.errors import ArtefactError, ConfigError
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.pipeline.config import Reference
from fedvad.pipeline.run_folder import DETECTOR_FILE, middle
from fedvad.pipeline.run_values import StudentRunValues, threshold_from

__all__ = ["KIND", "StudentModel", "StudentRun"]

KIND = "student run"
Arrays = dict[str, npt.NDArray[Any]]
_OWN = re.compile(r"site\d+/")


@dataclass(frozen=True, eq=False)
class StudentModel:
    """What is a site's own: batch statistics of its images, scale and thresholds of its scores.

    own: by name, see `StudentDetector.own_values`. n_images: normal images it trained on.
    """

    buffers: Arrays
    own: dict[str, Any]
    thresholds: dict[str, Threshold] = field(default_factory=dict)
    n_images: int = 0


@dataclass(frozen=True, eq=False)
class StudentRun:
    """The result of training students at sites and averaging them; see `TrainedRun` for memories.

    shared: the averaged parameters, under the names of `StudentDetector.state`. values: what
    `from_state` needs besides.
    """

    shared: Arrays
    values: dict[str, Any]
    sites: dict[str, StudentModel]
    features: FeatureConfig
    method: str
    data: str = ""

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
            own = {key: values[key] for key in detector.own_values}
            sites[name] = StudentModel(buffers, own, {}, images[name])
        features = next(iter(detectors.values())).extractor.config
        return cls(shared, values, sites, features, method, data)

    @property
    def reference(self) -> Reference:
        """What scores at a site: the student that all have."""
        return "global"

    def detector(
        self, site: str | None, extractor: FeatureExtractor, reference: Reference | None = None
    ) -> Detector:
        """The detector of a site; of one that never trained (or None) with all sites' statistics.

        Raises `MismatchError` when the extractor gives other features, `ConfigError` for a
        reference, as there is no memory to choose.
        """
        self.features.check_same(extractor.config, "this run")
        _no_reference(reference)
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

    def threshold(self, site: str | None, reference: Reference | None = None) -> Threshold | None:
        """A site's threshold; for an unknown site the median of the known ones."""
        _no_reference(reference)
        if site in self.sites:
            return self.sites[site].thresholds.get("global")
        known = [t for m in self.sites.values() for t in m.thresholds.values()]
        return middle(known)

    def save(self, folder: Path) -> None:
        """Write `detector.safetensors` into `folder`; raises `StorageError`."""
        arrays = dict(self.shared)
        sites = []
        for i, (name, model) in enumerate(sorted(self.sites.items())):
            arrays |= {f"site{i}/{n}": a for n, a in model.buffers.items()}
            thresholds = {k: asdict(t) for k, t in model.thresholds.items()}
            told = {"name": name, "n_images": model.n_images, "own": model.own}
            sites.append(told | {"thresholds": thresholds})
        values = {
            "kind": KIND,
            "method": self.method,
            "data": self.data,
            "features": self.features.identity(),
            "student": self.values,
            "sites": sites,
        }
        write_arrays(folder / DETECTOR_FILE, arrays, values)

    @classmethod
    def from_arrays(cls, arrays: Arrays, values: dict[str, Any], path: Path) -> StudentRun:
        """What `save` wrote, as `read_arrays` gives it; raises `ArtefactError`."""
        told = parse_values(StudentRunValues, values, str(path))
        check_finite(arrays, values, str(path))
        sites = {}
        try:
            for i, site in enumerate(told.sites):
                thresholds = {str(k): threshold_from(t) for k, t in site.thresholds.items()}
                buffers = under(f"site{i}/", arrays)
                sites[site.name] = StudentModel(buffers, site.own, thresholds, site.n_images)
            first = next(iter(sites.values())).buffers
            for name, model in sites.items():
                if _shapes(model.buffers) != _shapes(first):
                    raise ArtefactError(f"site {name!r} has other batch statistics than the first")
            owners = {n.split("/")[0] for n in arrays if _OWN.match(n)}
            if extra := owners - {f"site{i}" for i in range(len(sites))}:
                raise ArtefactError(f"the arrays of {min(extra)!r} belong to no site")
        except ArtefactError as error:
            raise ArtefactError(f"{path} is incomplete or damaged: {error}") from error
        return cls(
            shared={n: a for n, a in arrays.items() if not _OWN.match(n)},
            values=told.student,
            sites=sites,
            features=feature_identity(values, path),
            method=told.method,
            data=told.data,
        )

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


def _no_reference(reference: Reference | None) -> None:
    if reference not in (None, "global"):
        raise ConfigError(
            f"reference {reference!r} chooses a memory, and this run has a student: leave it away"
        )
