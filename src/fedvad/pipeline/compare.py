"""The baselines that tell whether federation paid: alone, pooled, and without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedvad.data.folders import Site
from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.calibration import held_out_scores
from fedvad.detectors.feddymem import FedDyMem, MemoryDetector, PatchCore
from fedvad.detectors.generator import Generator
from fedvad.evaluation.sites import SiteResult, site_threshold
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger
from fedvad.federation.payload import bank_from
from fedvad.federation.runners.inprocess import run_rounds
from fedvad.memory.bank import MemoryBank
from fedvad.pipeline.config import TrainConfig
from fedvad.pipeline.memory_run import TrainedRun
from fedvad.pipeline.plan import memory_sites, plan
from fedvad.pipeline.progress import Progress
from fedvad.pipeline.scoring import ANY_SHARE, score_with

__all__ = ["compare", "local_banks", "pooled_banks"]

_Banks = dict[str, tuple[MemoryBank, Generator]]


def compare(
    config: TrainConfig,
    run: TrainedRun,
    sites: Sequence[Site],
    fitting: Mapping[str, NormalFeatures],
    held_out: Mapping[str, NormalFeatures],
    main: Sequence[SiteResult],
    extractor: FeatureExtractor,
    *,
    progress: Progress,
) -> dict[str, list[SiteResult]]:
    """Results of each baseline in `config.compare`, on the same images with the same scoring.

    local: each site runs the same detector without exchange. pooled: one k-center PatchCore over
    all sites' images, with as many vectors as the global memory. identity: the same federation
    with an untrained generator; where the method trains none, it is the method itself.
    """
    makers: dict[str, Any] = {
        "local": lambda: local_banks(config, fitting, extractor.grid[2]),
        "pooled": lambda: pooled_banks(config, len(run.memory), fitting, extractor),
        "identity": lambda: _identity(config, fitting, extractor),
    }
    done: dict[str, list[SiteResult]] = {}
    for name in config.compare:
        if name == "identity" and not config.train_generator:
            done[name] = list(main)
            continue
        banks: _Banks = makers[name]()

        def for_site(site: str, banks: _Banks = banks) -> tuple[MemoryDetector, Threshold | None]:
            bank, generator = banks[site]
            detector = FedDyMem(extractor=extractor, scoring=run.scoring)
            detector.with_memory(bank, generator)
            scores = held_out_scores(
                held_out[site],
                detector.scorer,
                generator,
                leave_one_out=config.calibration_mode == "leave-one-out",
            )
            return detector, site_threshold(scores, config.target_fpr)

        done[name] = score_with(for_site, sites, extractor, f"scoring {name}", ANY_SHARE, progress)
    return done


def local_banks(config: TrainConfig, fitting: Mapping[str, NormalFeatures], dim: int) -> _Banks:
    """Each site's memory after all rounds without exchange; `dim` values per descriptor."""
    banks: _Banks = {}
    for name, site in memory_sites(config, fitting, dim).items():
        for round_ in range(1, config.rounds + 1):
            site.update(round_, site.bank if len(site.bank) else None)
        banks[name] = (site.bank, site.generator)
    return banks


def pooled_banks(
    config: TrainConfig,
    rows: int,
    fitting: Mapping[str, NormalFeatures],
    extractor: FeatureExtractor,
) -> _Banks:
    """One k-center memory of `rows` vectors over the images of all sites, the same for each."""
    detector = PatchCore(
        extractor=extractor,
        rows=rows,
        # as many looks at its patches as the sites get over all rounds
        candidates=config.candidates,
        projection=config.projection,
        scoring=config.scoring(),
        seed=config.seed,
    ).fit_features(*(fitting[name] for name in sorted(fitting)))
    assert detector.bank_ is not None
    assert detector.generator_ is not None
    return dict.fromkeys(fitting, (detector.bank_, detector.generator_))


def _identity(
    config: TrainConfig, fitting: Mapping[str, NormalFeatures], extractor: FeatureExtractor
) -> _Banks:
    untrained = config.model_copy(update={"train_generator": False})
    exchange, schedule = plan(untrained, extractor)
    dim = extractor.grid[2]
    members = memory_sites(untrained, fitting, dim)
    merged = bank_from(run_rounds(exchange, members, schedule, ledger=Ledger()))
    return dict.fromkeys(fitting, (merged, Generator.identity(dim)))
