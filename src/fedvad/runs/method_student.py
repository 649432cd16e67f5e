"""Methods that average the weights of students: STFPM, PaSTe, reverse distillation and others."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from fedvad.data.folders import ImageItem, ImageSet, Site
from fedvad.detectors.base import Detector, NormalFeatures
from fedvad.detectors.student.detector import StudentDetector
from fedvad.detectors.student.parameters import under
from fedvad.detectors.student.site import StudentSite
from fedvad.errors import ConfigError
from fedvad.evaluation.histograms import count
from fedvad.evaluation.sites import site_threshold
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger
from fedvad.runs.config import STUDENT_OPTIONS, TrainConfig
from fedvad.runs.method import Baseline, Method, Trained
from fedvad.runs.phases import Phase
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.runs.run import Run
from fedvad.runs.student_run import StudentRun
from fedvad.runs.students import (
    all_rounds,
    averaged,
    prepare_sites,
    student_class,
    student_detectors,
    student_phases,
)
from fedvad.runs.thresholds import find_thresholds, share_threshold

__all__ = ["StudentMethod"]

log = logging.getLogger(__name__)


class StudentMethod(Method):
    """Sites send the weights of their students; the server averages them. See `Method`.

    members: the sites, with all that is frozen computed.
    """

    sends: ClassVar[Literal["memory rows", "weights"]] = "weights"
    options: ClassVar[frozenset[str]] = frozenset(STUDENT_OPTIONS)

    def __init__(self, config: TrainConfig, extractor: FeatureExtractor) -> None:
        super().__init__(config, extractor)
        self.members: dict[str, StudentSite] = {}

    @classmethod
    def rounds(cls, config: TrainConfig) -> int:
        """See `Method.rounds`; parts are trained one after another."""
        return all_rounds(config)

    @classmethod
    def check_rows(cls, config: TrainConfig, where: str) -> None:
        """See `Method.check_rows`."""
        raise ConfigError(
            f"{where}: {config.method} has a student, and only memories travel this way; choose "
            "another method, or train in one place with `fedvad train`"
        )

    def read(self, sites: Sequence[Site], progress: Progress = no_progress) -> None:
        """See `Method.read`."""
        self._images = {site.name: site.train for site in sites}
        self.members = prepare_sites(self._images, self.config, self.extractor, progress)
        self.n_images = {name: member.n_images for name, member in self.members.items()}
        self.unreadable = [reason for member in self.members.values() for reason in member.bad]
        self.copies = {name: own.copies for name, own in self.members.items() if own.copies}
        self.images_read = sum(self.n_images.values())

    def take(self, features: Mapping[str, NormalFeatures]) -> None:
        """See `Method.take`; the images are read again, as a student needs other features."""

        def images(paths: Iterable[Path]) -> ImageSet:
            return ImageSet(tuple(ImageItem(path, 0, "good", None) for path in paths))

        none = ImageSet(())
        self.read([Site(name, images(own.paths), none) for name, own in features.items()])

    @property
    def phase_names(self) -> Sequence[str]:
        """See `Method.phase_names`."""
        return student_class(self.config).parts

    def phases(self) -> Iterable[Phase]:
        """See `Method.phases`: one for each part of a student."""
        return student_phases(self.members, self.config, self.extractor)

    def run(self, data: str = "") -> StudentRun:
        """See `Method.run`."""
        self._live = student_detectors(self.members, self.config, self.extractor)
        return StudentRun.of(self._live, self.n_images, method=self.config.method, data=data)

    def calibrate(self, run: Run, progress: Progress = no_progress) -> dict[str, Any]:
        """See `Method.calibrate`; no site has a student of its own to compare with."""
        config = self.config
        scores = {
            name: detector.score(self.members[name].unseen).image
            for name, detector in self._live.items()
        }
        found = find_thresholds(scores, config.target_fpr, config.threshold_rule)
        for name, model in run.sites.items():
            if name in found:
                model.thresholds["global"] = found[name]
            else:
                log.warning("%s: too few normal images for a threshold", name)
        if config.shared_threshold:
            summed = sum((count(own) for own in scores.values()), count([]))
            share_threshold(run.sites, {"global": summed}, config.target_fpr)
        return {}

    def baseline(
        self, name: Baseline, progress: Progress = no_progress
    ) -> Mapping[str, Trained] | None:
        """See `Method.baseline`; the pooled student takes as many steps as all sites together."""
        config = self.config.model_copy(
            update={"participation": 1.0, "join": {}, "defence": "none"}
        )
        sites = len(self.members) if name == "local" else 1
        stage = Stage(progress, f"rounds {name}", all_rounds(config) * sites)
        if name == "local":
            return {site: self._alone(site, config, stage) for site in self.members}
        if name == "pooled":
            return dict.fromkeys(self.members, self._pooled(config, stage))
        raise ConfigError(f"{config.method} has a student and no generator to compare it without")

    def downlink_bytes(self, detector: Detector) -> int:
        """See `Method.downlink_bytes`: the student's parameters in float32."""
        return sum(array.nbytes for array in under("student/", detector.state()[0]).values())

    def close(self) -> None:
        """See `Method.close`."""
        for member in self.members.values():
            member.close()

    def _alone(self, name: str, config: TrainConfig, stage: Stage) -> Trained:
        member = self.members[name]
        if len(student_class(config).parts) == 1:
            return self._trained(name, member, config, stage)
        # an earlier part of the federation's has changed what the site's student learns from
        used = prepare_sites({name: self._images[name]}, config, self.extractor)[name]
        used.seed = member.seed
        try:
            return self._trained(name, used, config, stage)
        finally:
            used.close()

    def _pooled(self, config: TrainConfig, stage: Stage) -> Trained:
        options = config.student
        if options.steps is not None:
            options = options.model_copy(update={"steps": options.steps * len(self.members)})
        config = config.model_copy(update={"student": options})
        everything = ImageSet(tuple(item for own in self._images.values() for item in own))
        whole = prepare_sites({"all": everything}, config, self.extractor)["all"]
        try:
            return self._trained("all", whole, config, stage)
        finally:
            whole.close()

    def _trained(self, name: str, site: StudentSite, config: TrainConfig, stage: Stage) -> Trained:
        made = averaged({name: site}, config, self.extractor, ledger=Ledger(), stage=stage)[name]
        return Trained(made, partial(self._threshold, made, site.unseen))

    def _threshold(self, detector: StudentDetector, unseen: list[Path]) -> Threshold | None:
        return site_threshold(detector.score(unseen).image.tolist(), self.config.target_fpr)
