"""The method whose sites send sums over their images, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fedvad.detectors.base import Detector, NormalFeatures
from fedvad.detectors.calibration import choose_images
from fedvad.detectors.sums.detector import SumsDetector
from fedvad.detectors.sums.gaussian import Gaussian, SumsScorer
from fedvad.detectors.sums.site import SumsConfig, SumsSite, gaussian_of
from fedvad.detectors.sums.statistics import Space
from fedvad.errors import ConfigError, DataError
from fedvad.evaluation.sites import site_threshold
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.exchange.base import Exchange
from fedvad.federation.exchange.sums import (
    ROUNDS,
    SumsExchange,
    gaussian_from,
    largest_upload,
    start_of,
    sums_for,
)
from fedvad.federation.mailboxes.inprocess import Schedule
from fedvad.federation.payload import Payload
from fedvad.half import to_float
from fedvad.runs.config import COMMON_OPTIONS, TrainConfig
from fedvad.runs.data import warm_up
from fedvad.runs.method import Alone, Baseline, Method, Sites, Trained
from fedvad.runs.options_sums import SUMS_OPTIONS
from fedvad.runs.phases import Phase
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.runs.run import Run, SiteModel
from fedvad.runs.sums_run import SumsRun
from fedvad.runs.thresholds import Calibration, calibrate_shared


class SumsMethod(Method):
    """Sites send sums, which the server adds up. See `Method`.

    members: the sites, each with its images' features.
    """

    options: ClassVar[frozenset[str]] = (
        COMMON_OPTIONS | SUMS_OPTIONS | {"delta", "top_cells", "calibration_images"}
    )

    members: dict[str, SumsSite]
    _gaussian: Gaussian | None = None

    def __init__(self, config: TrainConfig, extractor: FeatureExtractor) -> None:
        super().__init__(config, extractor)
        self.check_remote(config)
        self.space = Space.of(extractor.grid[2], config.dimensions, config.grid, config.seed)

    @classmethod
    def check_rows(cls, config: TrainConfig, where: str) -> None:
        """See `Method.check_rows`."""
        raise ConfigError(
            f"{where}: {config.method} has sums, and only memories travel this way; choose another "
            "method"
        )

    @classmethod
    def check_remote(cls, config: TrainConfig) -> None:
        """See `Method.check_remote`; what it cannot do, it cannot do in one place either."""
        if config.rounds != ROUNDS:
            raise ConfigError(
                f"sums take {ROUNDS} rounds (keys, means, scatters), not {config.rounds}: omit "
                "rounds"
            )
        if config.participation < 1 or config.join:
            raise ConfigError(
                "sums need every site in every round: omit participation and join, or choose "
                "another --method"
            )
        if config.defence != "none":
            raise ConfigError(
                "a sum does not show which site spoilt it, so there is no defence: omit it, or "
                "choose another --method"
            )
        if config.epsilon is not None and (
            config.threshold_rule == "federated" or config.shared_threshold
        ):
            raise ConfigError(
                "epsilon bounds what the sums reveal, and scores of normal images that leave a "
                "site for its threshold would reveal more: use threshold_rule 'own' without "
                "shared_threshold"
            )

    @classmethod
    def max_upload(cls, config: TrainConfig, max_weight_bytes: int) -> int:
        """See `Method.max_upload`."""
        return largest_upload(config.grid, config.dimensions)

    @classmethod
    def exchange_for(cls, config: TrainConfig, upload: Payload) -> Exchange[Any]:
        """See `Method.exchange_for`."""
        return sums_for(upload)

    @classmethod
    def check_merged(cls, merged: Payload) -> None:
        """See `Method.check_merged`."""
        sums_for(merged)

    @classmethod
    def run_of_server(cls, config: TrainConfig, merged: Payload, features: FeatureConfig) -> Run:
        """See `Method.run_of_server`."""
        space = Space.of(int(merged.arrays["form"][1]), config.dimensions, config.grid, config.seed)
        return _run(config, space, gaussian_from(merged, space), {}, features, "")

    def read(self, sites: Sites, progress: Progress = no_progress, alone: Alone = None) -> None:
        """See `Method.read`."""
        features = warm_up(sites, self.extractor, self.config.max_bad, progress)
        self._note(features)
        self.take(features)

    def take(self, features: Mapping[str, NormalFeatures]) -> None:
        """See `Method.take`."""
        view = self.extractor.config.view
        if self.config.grid > 1 and view.varies:
            raise ConfigError(
                "grid sums place by place, so all images need the same cells: use an --image-size "
                "such as 256 or 256x512"
            )
        self.n_images = {name: len(own) for name, own in features.items()}
        self.members = {name: SumsSite(own, self.space) for name, own in features.items()}

    def phases(self) -> Iterable[Phase]:
        """See `Method.phases`."""
        config = _sums(self.config)
        exchange = SumsExchange(
            features=self.extractor.config.key(), config=config, size=self.space.size,
            dim=len(self.space.projection), start=start_of(self.space, config),
        )  # fmt: skip
        yield Phase("", exchange, self.members, Schedule(ROUNDS), self._end, self.config.jobs)

    def run(self, data: str = "") -> SumsRun:
        """See `Method.run`."""
        assert self._gaussian is not None  # rounds were run
        sites = {name: SiteModel(n_images=n) for name, n in self.n_images.items()}
        features = self.extractor.config
        return _run(self.config, self.space, self._gaussian, sites, features, data)

    def _end(self, merged: Payload) -> None:
        self._gaussian = gaussian_from(merged, self.space)

    def calibration(self, run: Run, progress: Progress) -> Calibration:
        """See `Method.calibration`: each image by the sums of all others, exactly."""
        assert isinstance(run, SumsRun)
        chosen = {
            name: choose_images(len(able), self.config.calibration_images, self.config.seed)
            for name, site in self.members.items()
            if (able := site.features.witnesses())
        }
        stage = Stage(progress, "thresholds", sum(map(len, chosen.values())))
        scores = {}
        for name, site in self.members.items():
            able = site.features.witnesses()
            asked = site.features.subset([able[i] for i in chosen[name]])
            own = "scatter" in site.sent
            scores[name] = self._unseen(run.gaussian, asked, own, stage)
        return calibrate_shared(run, scores, self.config)

    def baseline(
        self, name: Baseline, progress: Progress = no_progress
    ) -> Mapping[str, Trained] | None:
        """See `Method.baseline`; without noise, as nothing leaves its place."""
        features = {site: member.features for site, member in self.members.items()}
        if name == "local":
            made = {site: gaussian_of(self.space, own) for site, own in features.items()}
        elif name == "pooled":
            made = dict.fromkeys(features, gaussian_of(self.space, *features.values()))
        else:
            raise ConfigError(f"{self.config.method} has sums and no generator to omit")
        return {
            site: Trained(self._detector(own), partial(self._threshold, own, features[site]))
            for site, own in made.items()
        }

    def downlink_bytes(self, detector: Detector) -> int:
        """See `Method.downlink_bytes`."""
        arrays, _ = detector.state()
        return arrays["mean"].nbytes + arrays["scatter"].nbytes

    def close(self) -> None:
        """See `Method.close`; nothing is."""

    def _detector(self, gaussian: Gaussian) -> SumsDetector:
        detector = SumsDetector(
            extractor=self.extractor, config=_sums(self.config), scoring=self.config.scoring()
        )
        return detector.with_sums(self.space, gaussian)

    def _threshold(self, gaussian: Gaussian, features: NormalFeatures) -> Threshold | None:
        limit = self.config.calibration_images
        able = features.witnesses()
        asked = [able[i] for i in choose_images(len(able), limit, self.config.seed)]
        scores = self._unseen(gaussian, features.subset(asked), own=True)
        return site_threshold(scores.tolist(), self.config.target_fpr)

    def _unseen(
        self, gaussian: Gaussian, features: NormalFeatures, own: bool, stage: Any = None
    ) -> npt.NDArray[np.float64]:
        """Scores of a site's images, each by the sums without it and its near copies.

        own: whether the images are in the sums.
        """
        scores, scoring = [], self.config.scoring()
        for descriptors, copies in features.with_copies():
            gone = (descriptors, *copies) if own else ()
            try:
                left = gaussian.without(
                    [self.space.points(to_float(each)) for each in gone], self.space
                )
            except DataError:  # it and its copies are all images there are
                continue
            scores.append(SumsScorer(self.space, left, scoring).score(to_float(descriptors))[0])
            if stage is not None:
                stage()
        return np.asarray(scores, np.float64)


def _sums(config: TrainConfig) -> SumsConfig:
    return SumsConfig(
        dimensions=config.dimensions, grid=config.grid, epsilon=config.epsilon,
        delta=config.delta, secure=config.masks,
    )  # fmt: skip


def _run(
    config: TrainConfig,
    space: Space,
    gaussian: Gaussian,
    sites: dict[str, SiteModel],
    features: FeatureConfig,
    data: str,
) -> SumsRun:
    return SumsRun(space, gaussian, config.scoring(), sites, features, config.method, data)
