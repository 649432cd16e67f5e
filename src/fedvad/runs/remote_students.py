"""Students of sites on machines of their own: weights travel, and each site's statistics stay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fedvad.data.folders import Site
from fedvad.detectors.registry import detector_class
from fedvad.detectors.student.detector import StudentDetector
from fedvad.detectors.student.parameters import load_parameters, parameters_of, under
from fedvad.detectors.student.site import StudentSite
from fedvad.errors import ConfigError, PayloadError
from fedvad.evaluation.histograms import count
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.exchange.base import Exchange
from fedvad.federation.exchange.weights import WeightExchange, WeightSite, weights_for
from fedvad.federation.payload import Payload
from fedvad.runs.bank_state import SiteState
from fedvad.runs.config import TrainConfig
from fedvad.runs.plan import robust, site_seed
from fedvad.runs.progress import Progress
from fedvad.runs.student_run import StudentRun
from fedvad.runs.students import make_student, prepare_sites
from fedvad.runs.thresholds import Calibration, find_thresholds

__all__ = ["StudentRemote"]


class StudentRemote:
    """See `remote.Remote`; the mean of all sites' weights is that of `fedvad train`, to the bit.

    max_bytes: the most that one message may hold. Raises `ConfigError` for what needs all sites in
    every round, or more than one thing to average.
    """

    def __init__(self, config: TrainConfig, max_bytes: int) -> None:
        self.config = config
        self.max_bytes = max_bytes
        options = config.student
        method = detector_class(config.method)
        if not issubclass(method, StudentDetector) or method.parts != ("student",):
            raise ConfigError(
                f"{config.method} averages more than its student, which works in one place only: "
                "use `fedvad train`, or another --method"
            )
        if options.algorithm == "scaffold" or options.wsa:
            raise ConfigError(
                "scaffold and wsa need a server that knows the common start and hears of every "
                "site: use them with `fedvad train`, or choose fedavg, fedprox or moon without wsa"
            )

    def exchange_for(self, upload: Payload) -> Exchange[Any]:
        """See `Remote.exchange_for`."""
        return weights_for(upload, defence=robust(self.config))

    def check(self, merged: Payload) -> None:
        """See `Remote.check`."""
        weights_for(merged)
        if not all(np.isfinite(array).all() for array in merged.arrays.values()):
            raise PayloadError("its weights hold values that are no numbers")

    @contextmanager
    def member(
        self, site: Site, index: int, extractor: FeatureExtractor, round_: int, progress: Progress
    ) -> Iterator[tuple[Exchange[Any], WeightSite]]:
        """See `Remote.member`."""
        config = self.config
        initial = parameters_of(make_student(config, extractor).starts()["student"])
        exchange = WeightExchange(
            features=extractor.config.key(), initial=initial, config=config.student.terms(), sites=1
        )
        size = sum(array.nbytes for array in initial.values())
        if size > self.max_bytes:
            raise ConfigError(
                f"the student of {config.method} has {size} bytes of weights, and a message may "
                f"hold {self.max_bytes}: raise max_weight_bytes, or choose a smaller student"
            )
        with self._prepared(site, index, extractor, progress) as own:
            yield exchange, _weight_site(site.name, own, extractor)

    def own_rows(self, sent: Payload, merged: Payload) -> int | None:
        """See `Remote.own_rows`: weights are averaged."""
        return None

    def run(
        self,
        state: SiteState,
        site: Site,
        merged: Payload,
        extractor: FeatureExtractor,
        data: str,
        progress: Progress,
    ) -> tuple[StudentRun, Calibration]:
        """See `Remote.run`."""
        config, name = self.config, site.name
        with self._prepared(site, state.index, extractor, progress) as own:
            load_parameters(own.part("student").student, under("weight/", merged.arrays))
            own.end("student")
            detector = make_student(config, extractor).with_net(own.net, own.unseen)
            scores = np.asarray(detector.score(own.unseen).image)
            images = {name: own.n_images}
        run = StudentRun.of({name: detector}, images, method=config.method, data=data)
        found = find_thresholds({name: scores}, config.target_fpr, config.threshold_rule)
        if name in found:
            run.sites[name].thresholds["global"] = found[name]
        return run, Calibration(counts={"global": count(scores)}, images=len(scores))

    @contextmanager
    def _prepared(
        self, site: Site, index: int, extractor: FeatureExtractor, progress: Progress
    ) -> Iterator[StudentSite]:
        own = prepare_sites({site.name: site.train}, self.config, extractor, progress)[site.name]
        own.seed = site_seed(self.config.seed, index)
        try:
            yield own
        finally:
            own.close()


def _weight_site(name: str, own: StudentSite, extractor: FeatureExtractor) -> WeightSite:
    height, width, _ = extractor.grid
    patches = own.n_images * height * width
    return WeightSite(
        name, own.part("student"), n_images=own.n_images, n_patches=patches, seed=own.seed
    )
