"""What `train` gives to a method, and what every method gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvad.data.folders import Site
from fedvad.evaluation.sites import SiteResult
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger
from fedvad.pipeline.config import TrainConfig
from fedvad.pipeline.progress import Progress
from fedvad.pipeline.run import Run

__all__ = ["Fitted", "Job"]


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
