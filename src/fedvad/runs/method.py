"""What a method of training is: one interface, and a class for each family of methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import numpy.typing as npt

from fedvad.data.folders import Site
from fedvad.detectors.base import Detector, NormalFeatures
from fedvad.errors import ConfigError
from fedvad.evaluation.sites import SiteResult, site_threshold
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor, check_bad_share
from fedvad.federation.exchange.base import Exchange
from fedvad.federation.ledger import Ledger
from fedvad.federation.payload import Payload
from fedvad.runs.config import TrainConfig
from fedvad.runs.families import method_class
from fedvad.runs.phases import Phase, run_phases
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.runs.run import Arrays, Run, SiteModel
from fedvad.runs.scoring import ANY_SHARE, score_with
from fedvad.runs.thresholds import Calibration, share_threshold

# of one message of weights, unless a server or site says otherwise
MAX_WEIGHT_BYTES = 200_000_000

Baseline = Literal["local", "pooled", "identity"]
Sites = Sequence[Site]
Alone = tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class Trained:
    """A detector of a site, and how its threshold is found: from normal images it has not seen."""

    detector: Detector
    threshold: Callable[[], Threshold | None]


class Method(ABC):
    """A method with its options, and the sites that it trains.

    First `read` or `take` gives it the normal images of the sites. Then `phases` says what travels
    between them, round by round, and `run` what came of it; `train` does both in this process.
    `calibrate` finds the thresholds of the run, and `baseline` trains what it is compared with.
    `close` gives back what was kept for training.

    Where sites are on machines of their own (by file, or over a network), each calls `member` for
    a round and `run_at` in the end; their server calls `max_upload`, `exchange_for` and
    `check_merged`, and has no images.

    options: names of the options in `TrainConfig` that mean something to it, `COMMON_OPTIONS`
    among them. sends_weights: whether a site sends weights of a network that it trained: only
    where that is allowed, and in place of those it sent before. n_images: by site, normal images
    that could be read. unreadable: why others could not. copies: by site, near copies among its
    normal images, which calibrate nothing. images_read: how often an image passed the backbone
    meanwhile. max_weight_bytes: of weights that a site on its own machine sends at once.
    """

    options: ClassVar[frozenset[str]]
    sends_weights: ClassVar[bool] = False

    def __init__(self, config: TrainConfig, extractor: FeatureExtractor) -> None:
        self.config = config
        self.extractor = extractor
        self.n_images: dict[str, int] = {}
        self.unreadable: list[str] = []
        self.copies: dict[str, int] = {}
        self.images_read = 0
        self.max_weight_bytes = MAX_WEIGHT_BYTES

    @classmethod
    def layers(cls, backbone: str) -> tuple[int, ...] | None:
        """Layers of a backbone that describe a patch unless given; None for its own default."""
        return None

    @classmethod
    def viewed(cls, config: TrainConfig) -> TrainConfig:
        """With the size at which it reads images, where that does not follow from the images."""
        return config

    @classmethod
    def rounds(cls, config: TrainConfig) -> int:
        """All rounds that a configuration asks for."""
        return config.rounds

    @classmethod
    @abstractmethod
    def check_rows(cls, config: TrainConfig, where: str) -> None:
        """Raise `ConfigError` where memory rows are needed and the method has none."""

    @classmethod
    @abstractmethod
    def check_remote(cls, config: TrainConfig) -> None:
        """Raise `ConfigError` for what cannot be trained by sites on machines of their own."""

    @classmethod
    @abstractmethod
    def max_upload(cls, config: TrainConfig, max_weight_bytes: int) -> int:
        """Length of the longest upload that a server should read before it knows any."""

    @classmethod
    @abstractmethod
    def exchange_for(cls, config: TrainConfig, upload: Payload) -> Exchange[Any]:
        """The server's exchange, from an upload; raises `PayloadError` for one of other kind."""

    @classmethod
    @abstractmethod
    def check_merged(cls, merged: Payload) -> None:
        """Raise `PayloadError` when a global message does not hold what sites take."""

    @classmethod
    def own_rows(cls, sent: Payload, merged: Payload) -> int | None:
        """How many rows of an upload are in a global memory; None where nothing is kept apart."""
        return None

    @abstractmethod
    def read(self, sites: Sites, progress: Progress = no_progress, alone: Alone = None) -> None:
        """Read the sites' normal images; raises `ConfigError`, `DataError`.

        alone: of one site on a machine of its own, its position among all and the round to come.
        """

    def _note(self, features: Mapping[str, NormalFeatures]) -> None:
        """Keep what the first pass over the sites' images showed."""
        self.n_images = {name: len(own) for name, own in features.items()}
        self.unreadable = [reason for own in features.values() for reason in own.bad]
        self.images_read = self.extractor.computed
        self.copies = {
            name: len(own) - len(own.witnesses()) for name, own in features.items() if own.copies
        }

    @abstractmethod
    def take(self, features: Mapping[str, NormalFeatures]) -> None:
        """In place of `read`, by site: features whose first pass is over. All are trained on."""

    @property
    def phase_names(self) -> Sequence[str]:
        """Names of `phases`, before any of them is made."""
        return ("",)

    @abstractmethod
    def phases(self) -> Iterable[Phase]:
        """What travels between the sites that were read, in the order in which it is trained."""

    @abstractmethod
    def run(self, data: str = "") -> Run:
        """What came of the rounds so far, without thresholds; data: fingerprint of the images."""

    @classmethod
    def run_of_server(cls, config: TrainConfig, merged: Payload, features: FeatureConfig) -> Run:
        """The run that a server without images has: what all sites share, with no site in it.

        Raises `ConfigError` where what scores needs something of a site.
        """
        raise ConfigError(f"{config.method} cannot score without a site's part")

    def round_detector(self, merged: Payload) -> Detector | None:
        """What scores at every site alike after a round, where the method has such a detector."""
        return None

    def train(
        self,
        ledger: Ledger,
        *,
        data: str = "",
        state_dir: Path | None = None,
        resume: bool = False,
        on_round: Callable[[int, Detector], None] | None = None,
        progress: Progress = no_progress,
    ) -> Run:
        """Run all rounds in this process; see `run` and `run_phases`.

        on_round: is given the `round_detector` of each round that has one.
        """

        def after_round(round_: int, merged: Payload) -> None:
            if on_round is not None and (found := self.round_detector(merged)) is not None:
                on_round(round_, found)

        run_phases(
            self.phases(),
            self.phase_names,
            ledger=ledger,
            state_dir=state_dir,
            resume=resume,
            stage=Stage(progress, "rounds", self.rounds(self.config) * len(self.n_images)),
            on_round=after_round,
        )
        return self.run(data)

    @contextmanager
    def member(
        self, site: Site, index: int, round_: int, progress: Progress
    ) -> Iterator[tuple[Exchange[Any], Any]]:
        """A site's exchange and its `Member` before a round, with its images read.

        index: its position among the names of all sites.
        """
        with self._at_site(site, index, round_, progress) as phase:
            yield phase.exchange, phase.members[site.name]

    def run_at(
        self,
        site: Site,
        merged: Payload,
        data: str,
        progress: Progress,
        *,
        index: int,
        kept: Arrays,
        n_images: int,
    ) -> tuple[Run, Calibration]:
        """The site's run from the final message, with thresholds from its own normal images, and
        what those said.

        data: as for `run`. index: as for `member`. kept: the `snapshot` of its member after its
        last round, empty if it made none. n_images: normal images that it was made from.
        """
        with self._at_site(site, index, 1, progress) as phase:
            if kept:
                phase.members[site.name].restore(kept)
            phase.end(merged)
            run = self.run(data)
            own = cast(dict[str, SiteModel], run.sites)
            own[site.name] = replace(own[site.name], n_images=n_images)
            return run, self.calibration(run, progress)

    @contextmanager
    def _at_site(self, site: Site, index: int, round_: int, progress: Progress) -> Iterator[Phase]:
        self.read([site], progress, alone=(index, round_))
        try:
            yield next(iter(self.phases()))
        finally:
            self.close()

    def calibrate(self, run: Run, progress: Progress = no_progress) -> dict[str, Any]:
        """Fill in the thresholds of the run's sites; returns by site what joining changed for its
        own normal images, see `thresholds.Calibration.own_normals`.
        """
        found = self.calibration(run, progress)
        if self.config.shared_threshold:
            share_threshold(run.sites, found.counts, self.config.target_fpr)
        return found.own_normals

    @abstractmethod
    def calibration(self, run: Run, progress: Progress) -> Calibration:
        """Fill in each site's thresholds from the normal scores; one for all is not shared yet."""

    @abstractmethod
    def baseline(
        self, name: Baseline, progress: Progress = no_progress
    ) -> Mapping[str, Trained] | None:
        """By site what the method is compared with; None where that is the method itself.

        local: each site trains without exchange. pooled: one detector of all sites' images.
        identity: the same federation with an untrained generator. Raises `ConfigError` for what
        makes no sense.
        """

    def unseen_scores(
        self,
        detector: Detector,
        normals: Sequence[Path],
        where: str,
        on_image: Callable[[], None] | None = None,
    ) -> npt.NDArray[np.float64]:
        """Scores (n,) of a site's normal images as those of images that trained nothing."""
        scores = detector.score(normals, on_image)
        check_bad_share(scores.bad, len(normals), self.config.max_bad, where)
        return scores.image

    def new_threshold(
        self, detector: Detector, normals: Sequence[Path], where: str
    ) -> Threshold | None:
        """A threshold for a site that never trained, from normal images of its own."""
        scores = self.unseen_scores(detector, normals, where)
        return site_threshold(scores.tolist(), self.config.target_fpr)

    @abstractmethod
    def downlink_bytes(self, detector: Detector) -> int:
        """Bytes that a site gets where the detector was trained elsewhere."""

    @abstractmethod
    def close(self) -> None:
        """Give back what was kept for training."""


def remote(config: TrainConfig, *, allow_weights: bool, consent: str) -> type[Method]:
    """The class of a configuration's method, by which sites and a server work by file or over a
    network.

    allow_weights: whether weights of a network trained on images may travel. consent: how to say
    so, for the error.

    Raises `ConfigError` for a method that does not travel, or may not.
    """
    kind = method_class(config.method)
    if kind.sends_weights and not allow_weights:
        raise ConfigError(
            f"{config.method} trains a student at each site and sends its weights, which were "
            "made from the site's images and can reveal more of them than the rows of a memory.\n"
            f"If they may leave the site, say so: {consent}"
        )
    kind.check_remote(config)
    return kind


def make_method(config: TrainConfig, extractor: FeatureExtractor) -> Method:
    """The method of a configuration, which has no sites yet."""
    return method_class(config.method)(config, extractor)


def compare(
    method: Method, sites: Sequence[Site], results: Sequence[SiteResult], progress: Progress
) -> dict[str, list[SiteResult]]:
    """Results of each baseline in the configuration, on the same images with the same scoring.

    results: those of the method itself.
    """
    done: dict[str, list[SiteResult]] = {}
    for name in method.config.compare:
        made = method.baseline(cast(Baseline, name), progress)
        if made is None:
            done[name] = list(results)
            continue
        done[name] = score_with(
            lambda site, made=made: (made[site].detector, made[site].threshold()),  # type: ignore[misc]
            sites, method.extractor, f"scoring {name}", ANY_SHARE, progress,
        )  # fmt: skip
    return done
