"""Methods that average the weights of students: STFPM, PaSTe, reverse distillation and others."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fedvad.data.folders import ImageItem, ImageSet, Site
from fedvad.data.view_choice import USUAL_SIZE
from fedvad.detectors.base import Detector, NormalFeatures
from fedvad.detectors.student.detector import StudentDetector
from fedvad.detectors.student.parameters import parameters_of, under
from fedvad.detectors.student.site import StudentSite
from fedvad.errors import ConfigError, PayloadError
from fedvad.evaluation.sites import site_threshold
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.extractor import FeatureExtractor
from fedvad.features.names import is_backbone_file
from fedvad.federation.exchange.averages import weights_for
from fedvad.federation.exchange.base import Exchange
from fedvad.federation.ledger import Ledger
from fedvad.federation.payload import Payload
from fedvad.runs.config import COMMON_OPTIONS, TrainConfig, at_size
from fedvad.runs.method import Alone, Baseline, Method, Sites, Trained
from fedvad.runs.phases import Phase
from fedvad.runs.plan import robust
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.runs.run import Run
from fedvad.runs.student_run import StudentRun
from fedvad.runs.students import (
    all_rounds,
    averaged,
    make_student,
    prepare_sites,
    student_class,
    student_detectors,
    student_phases,
)
from fedvad.runs.thresholds import Calibration, calibrate_shared

log = logging.getLogger(__name__)
_SHORT = 2  # minutes of a training that nobody is warned of

_LAYERS = {"resnet": (1, 2, 3), "mcunet": (6, 10, 14)}


class StudentMethod(Method):
    """Sites send the weights of their students; the server averages them. See `Method`.

    members: the sites, with all that is frozen computed.
    """

    options: ClassVar[frozenset[str]] = COMMON_OPTIONS | {"student"}
    sends_weights: ClassVar[bool] = True

    def __init__(self, config: TrainConfig, extractor: FeatureExtractor) -> None:
        super().__init__(config, extractor)
        self.members: dict[str, StudentSite] = {}

    @classmethod
    def layers(cls, backbone: str) -> tuple[int, ...] | None:
        """See `Method.layers`: levels of the papers, where a memory takes fewer."""
        if is_backbone_file(backbone):
            return None
        return next((taps for name, taps in _LAYERS.items() if backbone.startswith(name)), None)

    @classmethod
    def viewed(cls, config: TrainConfig) -> TrainConfig:
        """See `Method.viewed`: a square; raises `ConfigError` for another view."""
        if config.image_size == "auto":
            return at_size(config, USUAL_SIZE)
        return at_size(config, config.features().side)

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

    @classmethod
    def check_remote(cls, config: TrainConfig) -> None:
        """See `Method.check_remote`: not what needs all sites in every round, or averages more than
        one thing.
        """
        if student_class(config).parts != ("student",):
            raise ConfigError(
                f"{config.method} averages more than its student, which works in one place only: "
                "use `fedvad train`, or another --method"
            )
        if config.student.algorithm == "scaffold" or config.student.wsa:
            raise ConfigError(
                "scaffold and wsa need a server that knows the common start and gets an answer "
                "from every site: use them with `fedvad train`, or choose fedavg, fedprox or moon "
                "without wsa"
            )

    @classmethod
    def max_upload(cls, config: TrainConfig, max_weight_bytes: int) -> int:
        """See `Method.max_upload`."""
        return max_weight_bytes

    @classmethod
    def exchange_for(cls, config: TrainConfig, upload: Payload) -> Exchange[Any]:
        """See `Method.exchange_for`; the mean is that of `fedvad train`, to the bit."""
        return weights_for(upload, config.student.algorithm, defence=robust(config))

    @classmethod
    def check_merged(cls, merged: Payload) -> None:
        """See `Method.check_merged`."""
        weights_for(merged)
        if not all(np.isfinite(array).all() for array in merged.arrays.values()):
            raise PayloadError("its weights hold values that are no numbers")

    @contextmanager
    def member(
        self, site: Site, index: int, round_: int, progress: Progress
    ) -> Iterator[tuple[Exchange[Any], Any]]:
        """See `Method.member`; raises `ConfigError` for a student beyond `max_weight_bytes`."""
        start = make_student(self.config, self.extractor).starts()["student"]
        size = sum(array.nbytes for array in parameters_of(start).values())
        if size > self.max_weight_bytes:
            raise ConfigError(
                f"the student of {self.config.method} has {size} bytes of weights, and a message "
                f"may hold {self.max_weight_bytes}: raise max_weight_bytes, or choose a smaller "
                "student"
            )
        with super().member(site, index, round_, progress) as found:
            yield found

    def read(self, sites: Sites, progress: Progress = no_progress, alone: Alone = None) -> None:
        """See `Method.read`."""
        self._images = {site.name: site.train for site in sites}
        first = 0 if alone is None else alone[0]
        self.members = prepare_sites(
            self._images, self.config, self.extractor, progress, first=first
        )
        self.n_images = {name: member.n_images for name, member in self.members.items()}
        self.unreadable = [reason for member in self.members.values() for reason in member.bad]
        self.copies = {name: own.copies for name, own in self.members.items() if own.copies}
        self.images_read = sum(self.n_images.values())
        if alone is None:
            self._say_how_long()

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

    def calibration(self, run: Run, progress: Progress) -> Calibration:
        """See `Method.calibration`; no site has a student of its own to compare with."""
        scores = {
            name: detector.score(self.members[name].unseen).image
            for name, detector in self._live.items()
        }
        return calibrate_shared(run, scores, self.config)

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

    def _say_how_long(self) -> None:
        """Log how long training will take by a step that is measured, unless it is short."""
        config, member = self.config, next(iter(self.members.values()))
        steps = config.rounds * (member.config.steps or 0)
        each = member.seconds_per_step()
        # pooled training has as many steps as all sites together
        trainings = len(self.members) * (1 + len({"local", "pooled"} & set(config.compare)))
        minutes = trainings * steps * each / 60
        if minutes < _SHORT:
            return
        takes = f"{minutes:.0f} min" if minutes < 180 else f"{minutes / 60:.0f} h"
        log.warning(
            "training %s takes about %s: %d steps of %.2g s for %d student%s (sites and "
            "comparisons); --student-steps 50 for each of %d rounds is a short try",
            config.method, takes, steps, each, trainings, "s" * (trainings > 1), config.rounds,
        )  # fmt: skip

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
        steps = make_student(config, self.extractor).train.steps
        assert steps is not None  # of a round
        options = config.student.model_copy(update={"steps": steps * len(self.members)})
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
