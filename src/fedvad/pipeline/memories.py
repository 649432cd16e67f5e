"""Memories of sites over all rounds, merged: what `train` does for FedDyMem and PatchCore."""

from __future__ import annotations

from collections.abc import Mapping

from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.memory_site import MemorySite
from fedvad.detectors.scoring import distance_scale
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.codecs import compact, handed_back, rounding
from fedvad.federation.payload import Payload, bank_from
from fedvad.federation.runners.inprocess import run_rounds
from fedvad.half import cast
from fedvad.memory.bank import MemoryBank
from fedvad.pipeline.compare import compare
from fedvad.pipeline.config import TrainConfig
from fedvad.pipeline.data import Watcher, warm_up
from fedvad.pipeline.fitted import Fitted, Job
from fedvad.pipeline.memory_run import SiteMemory, TrainedRun
from fedvad.pipeline.plan import memory_sites, plan, sampling_ahead, split_held_out
from fedvad.pipeline.progress import Stage
from fedvad.pipeline.run_folder import write_config
from fedvad.pipeline.thresholds import calibrate, share_threshold

__all__ = ["fit_memories", "wire_exact"]


def fit_memories(job: Job) -> Fitted:
    """Read each site's images once, run all rounds, calibrate; see `train`.

    Raises `ConfigError`, `DataError`, `FederationError`.
    """
    config, extractor, ledger, progress = job.config, job.extractor, job.ledger, job.progress
    with ledger.phase("features"):
        exchange, schedule = plan(config, extractor)
        members: dict[str, MemorySite] = {}

        def watch(unread: Mapping[str, NormalFeatures]) -> Mapping[str, Watcher]:
            members.update(memory_sites(config, unread, extractor.grid[2]))
            return sampling_ahead(config, members)

        features = warm_up(job.sites, extractor, config.max_bad, progress, watch)
    ledger.images_computed = warmed_up = extractor.computed
    write_config(job.out, config)
    fitting, held_out = split_held_out(features, config)
    for name, member in members.items():  # which images fit is known only now
        member.features = fitting[name]
    rounds = Stage(progress, "rounds", config.rounds * len(members))
    merged = run_rounds(
        exchange,
        members,
        schedule,
        ledger=ledger,
        state_dir=job.out / "state",
        resume=job.resume,
        jobs=config.jobs,
        on_step=lambda round_, site: rounds(),
    )
    run = _assemble(config, extractor, merged, members, job.data)
    with ledger.phase("calibrate"):
        calibration = calibrate(run, held_out, extractor, config, progress)
        if config.shared_threshold:
            share_threshold(run.sites, calibration.counts, config.target_fpr)
    ledger.images_computed += extractor.computed - warmed_up
    return Fitted(
        run=run,
        n_images={name: len(own) for name, own in features.items()},
        unreadable=[reason for own in features.values() for reason in own.bad],
        compare=lambda results: compare(
            config, run, job.sites, fitting, held_out, results, extractor, progress=progress
        ),
        own_normals=calibration.own_normals,
    )


def _assemble(
    config: TrainConfig,
    extractor: FeatureExtractor,
    merged: Payload,
    members: Mapping[str, MemorySite],
    data: str,
) -> TrainedRun:
    models = {
        name: SiteMemory(wire_exact(site.bank, config), site.generator, n_images=len(site.features))
        for name, site in members.items()
    }
    memory = bank_from(merged)
    return TrainedRun(
        memory=memory,
        sites=models,
        scoring=config.scoring(),
        reference=config.reference,
        features=extractor.config,
        method=config.method,
        data=data,
        scale=distance_scale(memory, config.scoring()),
    )


def wire_exact(bank: MemoryBank, config: TrainConfig) -> MemoryBank:
    """The bank as it reads after a round trip, so that saved and live detectors score alike."""
    precision = handed_back(config.precision)
    vectors = rounding(precision)(bank.vectors)
    return MemoryBank(vectors, bank.weights, cast(bank.spread, compact(precision)))
