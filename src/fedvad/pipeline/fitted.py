"""What `train` gives to a method, and what every method gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fedvad.data.folders import Site
from fedvad.detectors.base import Detector
from fedvad.evaluation.sites import SiteResult
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger
from fedvad.pipeline.config import Reference, TrainConfig
from fedvad.pipeline.progress import Progress

__all__ = ["Fitted", "Job", "Run"]


class Run(Protocol):
    """What every kind of run can do; see `TrainedRun` and `StudentRun`."""

    @property
    def sites(self) -> Mapping[str, Any]:
        """What is each site's own, by name."""
        ...

    @property
    def features(self) -> FeatureConfig:
        """Of the images it was trained on."""
        ...

    @property
    def method(self) -> str:
        """As `--method` names it."""
        ...

    @property
    def data(self) -> str:
        """Fingerprint of the images, by which a split of them is recognised."""
        ...

    @property
    def reference(self) -> Reference:
        """What scores at a site unless said otherwise."""
        ...

    def detector(
        self, site: str | None, extractor: FeatureExtractor, reference: Reference | None = None
    ) -> Detector:
        """The detector of a site; of one that never trained (or None) what all sites share."""
        ...

    def threshold(self, site: str | None, reference: Reference | None = None) -> Threshold | None:
        """A site's threshold; for an unknown site the median of the known ones."""
        ...

    def save(self, folder: Path) -> None:
        """Write the run's file into `folder`; raises `StorageError`."""
        ...


@dataclass(frozen=True, eq=False)
class Job:
    """A training to be done.

    out: takes the configuration, once the images are known to be good, and the state of each
    round, from which `resume` goes on. data: fingerprint of the images. stack: closes what must
    outlive the training until everything is scored.
    """

    sites: Sequence[Site]
    config: TrainConfig
    extractor: FeatureExtractor
    out: Path
    resume: bool
    data: str
    ledger: Ledger
    stack: ExitStack
    progress: Progress


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained run, with calibration done.

    n_images: by site, normal images that could be read. unreadable: why others could not. compare:
    from the run's results to those of each baseline asked for. own_normals: see `Calibration`.
    """

    run: Run
    n_images: Mapping[str, int]
    unreadable: Sequence[str]
    compare: Callable[[Sequence[SiteResult]], dict[str, list[SiteResult]]]
    own_normals: Mapping[str, Any] = field(default_factory=dict)
