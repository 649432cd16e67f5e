"""What a method means where every site is on a machine of its own: by file, or over a network.

One object per family of methods says what travels, what a site does in a round, and what run
folder it makes in the end; servers and sites of both mailboxes call it and know no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from fedvad.data.folders import Site
from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.calibration import RowLookup
from fedvad.detectors.memory_site import MemorySite
from fedvad.detectors.scoring import distance_scale
from fedvad.errors import ConfigError
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.defence.validation import Limits
from fedvad.federation.exchange.base import Exchange
from fedvad.federation.exchange.memory import kind_of
from fedvad.federation.payload import Payload, bank_from
from fedvad.pipeline.bank_state import SiteState
from fedvad.pipeline.config import TrainConfig
from fedvad.pipeline.data import warm_up
from fedvad.pipeline.memories import wire_exact
from fedvad.pipeline.plan import memory_exchange, plan, site_seed, split_held_out
from fedvad.pipeline.progress import Progress
from fedvad.pipeline.run_folder import SiteModel, TrainedRun
from fedvad.pipeline.student_run import StudentRun
from fedvad.pipeline.thresholds import Calibration, calibrate

__all__ = ["MAX_WEIGHT_BYTES", "Remote", "remote"]

# of one message of weights, unless a server or site says otherwise
MAX_WEIGHT_BYTES = 200_000_000


class Remote(Protocol):
    """A family of methods, of which each site and the server have a part.

    config: the federation's, with a site's own ways where it is a site's.
    """

    config: TrainConfig

    @property
    def max_bytes(self) -> int:
        """Length of the longest upload that a server should read before it knows any."""
        ...

    def exchange_for(self, upload: Payload) -> Exchange[Any]:
        """The server's exchange, from an upload; raises `PayloadError` for one of other kind."""
        ...

    def check(self, merged: Payload) -> None:
        """Raise `PayloadError` when a global message does not hold what sites take."""
        ...

    def member(
        self, site: Site, index: int, extractor: FeatureExtractor, round_: int, progress: Progress
    ) -> AbstractContextManager[tuple[Exchange[Any], Any]]:
        """A site's exchange and its `Member` before a round, with its images read."""
        ...

    def own_rows(self, sent: Payload, merged: Payload) -> int | None:
        """How many rows of an upload are in a global memory; None where nothing is kept apart."""
        ...

    def run(
        self,
        state: SiteState,
        site: Site,
        merged: Payload,
        extractor: FeatureExtractor,
        data: str,
        progress: Progress,
    ) -> tuple[TrainedRun | StudentRun, Calibration]:
        """The site's run from the final message, with thresholds from its own normal images, and
        what those said. state: the site's, after its last round. data: the images' fingerprint.
        """
        ...


class MemoryRemote:
    """Memories: rows of features travel; see `Remote`."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    @property
    def max_bytes(self) -> int:
        """See `Remote.max_bytes`."""
        return Limits(upload_bytes=self.config.upload_bytes).max_bytes

    def exchange_for(self, upload: Payload) -> Exchange[Any]:
        """See `Remote.exchange_for`."""
        return memory_exchange(self.config, *kind_of(upload))

    def check(self, merged: Payload) -> None:
        """See `Remote.check`."""
        bank_from(merged)

    @contextmanager
    def member(
        self, site: Site, index: int, extractor: FeatureExtractor, round_: int, progress: Progress
    ) -> Iterator[tuple[Exchange[Any], MemorySite]]:
        """See `Remote.member`."""
        exchange, _ = plan(self.config, extractor)
        fitting, _ = self._features(site, extractor, progress)
        yield (
            exchange,
            MemorySite(
                fitting[site.name],
                self.config.memory(extractor.grid[2]),
                seed=site_seed(self.config.seed, index),
                rounds=round_,  # each process makes one round: nothing is sampled ahead
            ),
        )

    def own_rows(self, sent: Payload, merged: Payload) -> int | None:
        """See `Remote.own_rows`."""
        return len(RowLookup(bank_from(merged).vectors).rows_of(bank_from(sent).vectors))

    def run(
        self,
        state: SiteState,
        site: Site,
        merged: Payload,
        extractor: FeatureExtractor,
        data: str,
        progress: Progress,
    ) -> tuple[TrainedRun | StudentRun, Calibration]:
        """See `Remote.run`."""
        config = self.config
        features, held_out = self._features(site, extractor, progress)
        own = MemorySite(features[site.name], config.memory(extractor.grid[2]), seed=0)
        if state.kept:
            own.restore(state.kept)
        memory, bank = bank_from(merged), wire_exact(own.bank, config)
        run = TrainedRun(
            memory=memory,
            sites={site.name: SiteModel(bank, own.generator, {}, state.n_images)},
            scoring=config.scoring(),
            reference=config.reference,
            features=extractor.config,
            method=config.method,
            data=data,
            scale=distance_scale(memory, config.scoring()),
        )
        return run, calibrate(run, held_out, extractor, config, progress)

    def _features(
        self, site: Site, extractor: FeatureExtractor, progress: Progress
    ) -> tuple[dict[str, NormalFeatures], dict[str, NormalFeatures]]:
        """Normal images to fit on and to calibrate on."""
        features = warm_up([site], extractor, self.config.max_bad, progress)
        return split_held_out(features, self.config)


def remote(
    config: TrainConfig,
    *,
    allow_weights: bool,
    consent: str,
    max_weight_bytes: int = MAX_WEIGHT_BYTES,
) -> Remote:
    """The part of a method that sites and servers on machines of their own need.

    allow_weights: whether weights of a network trained on images may travel. consent: how to say
    so, for the error. max_weight_bytes: of one message with weights.

    Raises `ConfigError` for a method that does not travel, or may not.
    """
    if not config.has_student:
        return MemoryRemote(config)
    if not allow_weights:
        raise ConfigError(
            f"{config.method} trains a student at each site and sends its weights, which were "
            "made from the site's images and can hold more of them than a memory's rows do.\n"
            f"If that may leave the site, say so: {consent}"
        )
    from fedvad.pipeline.remote_students import StudentRemote

    return StudentRemote(config, max_weight_bytes)
