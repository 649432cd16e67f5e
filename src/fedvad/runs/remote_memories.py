"""Memories of sites on machines of their own: rows of features travel; see `remote.Remote`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedvad.data.folders import Site
from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.calibration import RowLookup
from fedvad.detectors.memory.site import MemorySite
from fedvad.detectors.scoring import distance_scale
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.defence.validation import Limits
from fedvad.federation.exchange.base import Exchange
from fedvad.federation.exchange.memory import kind_of
from fedvad.federation.payload import Payload, bank_from
from fedvad.runs.bank_state import SiteState
from fedvad.runs.config import TrainConfig
from fedvad.runs.data import warm_up
from fedvad.runs.memory_run import SiteMemory, TrainedRun
from fedvad.runs.method_memory import wire_exact
from fedvad.runs.plan import memory_exchange, plan, site_seed, split_held_out
from fedvad.runs.progress import Progress
from fedvad.runs.thresholds import Calibration, calibrate

__all__ = ["MemoryRemote"]


class MemoryRemote:
    """Memories: rows of features travel; see `Remote`."""

    def __init__(self, config: TrainConfig, max_weight_bytes: int) -> None:
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
    ) -> tuple[TrainedRun, Calibration]:
        """See `Remote.run`."""
        config = self.config
        features, held_out = self._features(site, extractor, progress)
        own = MemorySite(features[site.name], config.memory(extractor.grid[2]), seed=0)
        if state.kept:
            own.restore(state.kept)
        memory, bank = bank_from(merged), wire_exact(own.bank, config)
        run = TrainedRun(
            memory=memory,
            sites={site.name: SiteMemory(bank, own.generator, n_images=state.n_images)},
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
