"""Methods that merge memories of patches: FedDyMem and PatchCore."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fedvad.detectors.base import Detector, NormalFeatures
from fedvad.detectors.calibration import RowLookup, held_out_scores
from fedvad.detectors.memory.feddymem import MemoryDetector, PatchCore
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.memory.site import MemorySite
from fedvad.errors import PayloadError
from fedvad.evaluation.sites import site_threshold
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.config import FeatureConfig
from fedvad.federation.codecs import downlink_precision, plain_dtype, rounding
from fedvad.federation.defence.validation import Limits
from fedvad.federation.exchange.base import Exchange
from fedvad.federation.exchange.memory import kind_of
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.inprocess import run_rounds
from fedvad.federation.payload import Payload, bank_from, negatives_from
from fedvad.half import cast
from fedvad.memory.bank import MemoryBank
from fedvad.runs.config import TrainConfig
from fedvad.runs.data import Watcher, warm_up
from fedvad.runs.memory_run import SiteMemory, TrainedRun, memory_detector
from fedvad.runs.method import Alone, Baseline, Method, Sites, Trained
from fedvad.runs.phases import Phase
from fedvad.runs.plan import memory_exchange, memory_sites, plan, sampling_ahead, split_held_out
from fedvad.runs.progress import Progress, no_progress
from fedvad.runs.run import Run
from fedvad.runs.thresholds import Calibration, calibrate

_Memories = Mapping[str, tuple[MemoryBank, Generator]]


class MemoryMethod(Method):
    """Sites send rows of their memories; the server merges them. See `Method`.

    members: the sites. fitting, held_out: images that they learn from, and calibrate on.
    """

    options: ClassVar[frozenset[str]] = frozenset(TrainConfig.model_fields) - {"student"}

    members: dict[str, MemorySite]
    fitting: dict[str, NormalFeatures]
    held_out: dict[str, NormalFeatures]
    _memory: MemoryBank | None = None
    _negatives: MemoryBank | None = None

    @classmethod
    def check_rows(cls, config: TrainConfig, where: str) -> None:
        """See `Method.check_rows`; there are some."""

    @classmethod
    def check_remote(cls, config: TrainConfig) -> None:
        """See `Method.check_remote`; all of it can."""

    @classmethod
    def max_upload(cls, config: TrainConfig, max_weight_bytes: int) -> int:
        """See `Method.max_upload`."""
        return Limits(upload_bytes=config.upload_bytes).max_bytes

    @classmethod
    def exchange_for(cls, config: TrainConfig, upload: Payload) -> Exchange[Any]:
        """See `Method.exchange_for`."""
        return memory_exchange(config, *kind_of(upload))

    @classmethod
    def check_merged(cls, merged: Payload) -> None:
        """See `Method.check_merged`."""
        bank, negatives = bank_from(merged), negatives_from(merged)
        if negatives is not None and negatives.dim != bank.dim:
            raise PayloadError(f"its patches of defects have {negatives.dim} values each")

    @classmethod
    def own_rows(cls, sent: Payload, merged: Payload) -> int | None:
        """See `Method.own_rows`."""
        return len(RowLookup(bank_from(merged).vectors).rows_of(bank_from(sent).vectors))

    def read(self, sites: Sites, progress: Progress = no_progress, alone: Alone = None) -> None:
        """See `Method.read`; every image passes the backbone once."""
        self._plan = plan(self.config, self.extractor)

        def watch(unread: Mapping[str, NormalFeatures]) -> Mapping[str, Watcher]:
            dim = self.extractor.grid[2]
            self.members = memory_sites(self.config, unread, dim, *(alone or ()))
            # a process that makes one round samples for no other
            return {} if alone else sampling_ahead(self.config, self.members)

        features = warm_up(sites, self.extractor, self.config.max_bad, progress, watch)
        self._note(features)
        self.fitting, self.held_out = split_held_out(features, self.config)
        for name, member in self.members.items():  # which images fit is known only now
            member.features = self.fitting[name]

    def take(self, features: Mapping[str, NormalFeatures]) -> None:
        """See `Method.take`."""
        self._plan = plan(self.config, self.extractor)
        self.n_images = {name: len(own) for name, own in features.items()}
        self.fitting, self.held_out = dict(features), {}
        self.members = self._fresh(self.config)

    def phases(self) -> Iterable[Phase]:
        """See `Method.phases`."""
        exchange, schedule = self._plan
        yield Phase("", exchange, self.members, schedule, self._end, self.config.jobs)

    @classmethod
    def run_of_server(cls, config: TrainConfig, merged: Payload, features: FeatureConfig) -> Run:
        """See `Method.run_of_server`."""
        alone = config.model_copy(update={"reference": "global"})
        return TrainedRun.of(bank_from(merged), {}, alone, features)

    def round_detector(self, merged: Payload) -> Detector | None:
        """See `Method.round_detector`; there is none where sites train generators of their own."""
        return None if self.config.train_generator else self._detector(bank_from(merged))

    def run(self, data: str = "") -> TrainedRun:
        """See `Method.run`."""
        memory = self._memory
        assert memory is not None  # rounds were run
        sites = {
            name: SiteMemory(
                wire_exact(site.bank, self.config), site.generator, n_images=len(site.features)
            )
            for name, site in self.members.items()
        }
        run = TrainedRun.of(memory, sites, self.config, self.extractor.config, data)
        return replace(run, negatives=self._negatives)

    def _end(self, merged: Payload) -> None:
        self._memory, self._negatives = bank_from(merged), negatives_from(merged)

    def calibration(self, run: Run, progress: Progress) -> Calibration:
        """See `Method.calibration`."""
        assert isinstance(run, TrainedRun)
        return calibrate(run, self.held_out, self.extractor, self.config, progress)

    def baseline(
        self, name: Baseline, progress: Progress = no_progress
    ) -> Mapping[str, Trained] | None:
        """See `Method.baseline`; the pooled one is a PatchCore as large as the global memory."""
        if name == "identity" and not self.config.train_generator:
            return None
        makers = {"local": self._local, "pooled": self._pooled, "identity": self._identity}
        memories = makers[name]()
        travelled = name == "identity"
        # sites with one memory share its index and density
        shared = {id(bank): self._detector(bank, own) for bank, own in memories.values()}
        detectors = {site: shared[id(bank)] for site, (bank, _) in memories.items()}
        return {
            site: Trained(detector, partial(self._threshold, site, detector, travelled))
            for site, detector in detectors.items()
        }

    def unseen_scores(
        self,
        detector: Detector,
        normals: Sequence[Path],
        where: str,
        on_image: Callable[[], None] | None = None,
    ) -> npt.NDArray[np.float64]:
        """See `Method.unseen_scores`; the images may have been trained on, under another name
        too, and then their own patches must not be their measure.
        """
        if not self.config.keeps_patches:
            return super().unseen_scores(detector, normals, where, on_image)
        assert isinstance(detector, MemoryDetector)
        assert detector.generator_ is not None
        features = NormalFeatures(self.extractor, normals, max_bad=self.config.max_bad, where=where)
        features.warm_up()
        return np.asarray(
            held_out_scores(
                features.subset(features.witnesses()),
                detector.scorer,
                detector.generator_,
                leave_one_out=True,
                stored=self.config.stored_form(),
                on_image=on_image,
            )
        )

    def new_threshold(
        self, detector: Detector, normals: Sequence[Path], where: str
    ) -> Threshold | None:
        """See `Method.new_threshold`; there is none where the images may have been trained on and
        their own rows cannot be told from others.
        """
        if not self.config.keeps_patches and self.config.split is not None:
            return None
        return super().new_threshold(detector, normals, where)

    def downlink_bytes(self, detector: Detector) -> int:
        """See `Method.downlink_bytes`: vectors in float16."""
        assert isinstance(detector, MemoryDetector)
        assert detector.bank_ is not None
        return detector.bank_.vectors.nbytes // 2

    def close(self) -> None:
        """See `Method.close`; nothing is."""

    def _detector(self, bank: MemoryBank, generator: Generator | None = None) -> MemoryDetector:
        made = memory_detector(self.config.method, self.extractor, self.config.scoring())
        return made.with_memory(bank, generator)

    def _threshold(self, site: str, detector: MemoryDetector, travelled: bool) -> Threshold | None:
        """travelled: whether the rows of its memory were coded on their way."""
        assert detector.generator_ is not None
        alone = self.config.calibration_mode == "leave-one-out"
        scores = held_out_scores(
            self.held_out[site], detector.scorer, detector.generator_, leave_one_out=alone,
            stored=self.config.stored_form() if travelled else None,
        )  # fmt: skip
        return site_threshold(list(scores), self.config.target_fpr)

    def _fresh(self, config: TrainConfig) -> dict[str, MemorySite]:
        return memory_sites(config, self.fitting, self.extractor.grid[2])

    def _local(self) -> _Memories:
        """Each site's memory after all rounds without exchange."""
        members = self._fresh(self.config)
        for site in members.values():
            for round_ in range(1, self.config.rounds + 1):
                site.update(round_, site.bank if len(site.bank) else None)
        return {
            name: (site.generator.embedded(site.bank), site.generator)
            for name, site in members.items()
        }

    def _pooled(self) -> _Memories:
        """One k-center memory over the images of all sites, the same for each."""
        config = self.config
        sent = config.rows(self.extractor.grid[2]) * config.rounds * len(self.fitting)
        detector = PatchCore(
            extractor=self.extractor,
            rows=len(self._memory) if self._memory else min(sent, config.memory_rows or sent),
            # as many looks at its patches as the sites get over all rounds
            candidates=config.candidates,
            projection=config.projection,
            scoring=config.scoring(),
            seed=config.seed,
        ).fit_features(*(self.fitting[name] for name in sorted(self.fitting)))
        assert detector.bank_ is not None
        assert detector.generator_ is not None
        return dict.fromkeys(self.fitting, (detector.bank_, detector.generator_))

    def _identity(self) -> _Memories:
        """The global memory of the same federation, whose generators are not trained."""
        config = self.config.model_copy(update={"train_generator": False})
        exchange, schedule = plan(config, self.extractor)
        merged = bank_from(run_rounds(exchange, self._fresh(config), schedule, ledger=Ledger()))
        return dict.fromkeys(self.fitting, (merged, Generator.identity(merged.dim)))


def wire_exact(bank: MemoryBank, config: TrainConfig) -> MemoryBank:
    """The bank as it reads after a round trip, so that saved and live detectors score alike."""
    precision = downlink_precision(config.precision)
    vectors = rounding(precision)(bank.vectors)
    return replace(bank, vectors=vectors, spread=cast(bank.spread, plain_dtype(precision)))
