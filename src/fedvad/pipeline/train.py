"""`train`: from a folder of sites to a run folder, with everything measured on the way."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.memory_site import MemorySite
from fedvad.errors import ArtefactError, ConfigError
from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.codecs import compact, handed_back, rounding
from fedvad.federation.ledger import Ledger
from fedvad.federation.payload import Payload, bank_from
from fedvad.federation.runners.inprocess import run_rounds
from fedvad.federation.runners.state import clear_state
from fedvad.half import cast
from fedvad.memory.bank import MemoryBank
from fedvad.pipeline.compare import compare
from fedvad.pipeline.config import TrainConfig
from fedvad.pipeline.data import Watcher, fingerprint, load_sites, warm_up
from fedvad.pipeline.outputs import write_outputs
from fedvad.pipeline.plan import check_join, memory_sites, plan, sampling_ahead, split_held_out
from fedvad.pipeline.progress import Progress, Stage, silent
from fedvad.pipeline.run_folder import (
    DETECTOR_FILE,
    SiteModel,
    TrainedRun,
    read_config,
    write_config,
)
from fedvad.pipeline.scoring import score_sites
from fedvad.pipeline.thresholds import calibrate, share_threshold

__all__ = ["train", "wire_exact"]

log = logging.getLogger(__name__)
# what may differ between an interrupted run and its --resume
_FREE_ON_RESUME = {"jobs", "compare", "weights", "engine", "device"}


def train(
    data: Path,
    out: Path,
    config: TrainConfig,
    *,
    cache: DescriptorCache | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train a federated detector on the sites of `data`, write the run folder, return results.

    The returned dictionary is what `--json` prints and `results.json` holds. State is kept after
    every round, so that an interrupted run goes on with `resume`. Raises `ConfigError`,
    `DataError`, `FederationError` (see `fedvad.errors`).
    """
    _prepare(out, config, resume)
    sites = load_sites(data, config.split, config.seed)
    check_join(config, [site.name for site in sites])
    ledger = Ledger()
    with ledger.phase("features"):
        extractor = FeatureExtractor(config.features(), cache)
        exchange, schedule = plan(config, extractor)
        members: dict[str, MemorySite] = {}

        def watch(unread: Mapping[str, NormalFeatures]) -> Mapping[str, Watcher]:
            members.update(memory_sites(config, unread, extractor.grid[2]))
            return sampling_ahead(config, members)

        features = warm_up(sites, extractor, config.max_bad, progress, watch)
    ledger.images_computed = warmed_up = extractor.computed
    write_config(out, config)
    fitting, held_out = split_held_out(features, config)
    for name, member in members.items():  # which images fit is known only now
        member.features = fitting[name]
    rounds = Stage(progress, "rounds", config.rounds * len(members))
    merged = run_rounds(
        exchange,
        members,
        schedule,
        ledger=ledger,
        state_dir=out / "state",
        resume=resume,
        jobs=config.jobs,
        on_step=lambda round_, site: rounds(),
    )
    run = _assemble(config, extractor, merged, members, fingerprint(data))
    with ledger.phase("calibrate"):
        calibration = calibrate(run, held_out, extractor, config, progress)
        if config.shared_threshold:
            share_threshold(run, calibration.counts, config.target_fpr)
    run.save(out)
    with ledger.phase("score"):
        results = score_sites(run, sites, extractor, max_bad=config.max_bad, progress=progress)
        comparisons = compare(
            config, run, sites, fitting, held_out, results, extractor, progress=progress
        )
    ledger.images_computed += extractor.computed - warmed_up
    summary = write_outputs(
        out, config, run, results, comparisons, ledger, features, calibration.own_normals
    )
    clear_state(out / "state")
    return summary


def _prepare(out: Path, config: TrainConfig, resume: bool) -> None:
    if resume:
        if (out / "config.json").is_file():
            before, now = read_config(out).model_dump(), config.model_dump()
            changed = [k for k in now if k not in _FREE_ON_RESUME and before[k] != now[k]]
            if changed:
                raise ConfigError(
                    f"--resume needs the configuration that {out} was started with; different: "
                    + ", ".join(f"{k} ({before[k]!r}, now {now[k]!r})" for k in changed)
                )
        return
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: choose another --out")
    if (out / "config.json").exists():
        try:
            read_config(out)
        except ArtefactError as error:
            raise ConfigError(f"{out} holds something else: choose another --out") from error
    if (out / DETECTOR_FILE).exists() or (out / "state").exists():
        raise ConfigError(
            f"{out} already holds a run: choose another --out, remove it, or go on with --resume"
        )


def _assemble(
    config: TrainConfig,
    extractor: FeatureExtractor,
    merged: Payload,
    members: Mapping[str, MemorySite],
    data: str,
) -> TrainedRun:
    models = {
        name: SiteModel(wire_exact(site.bank, config), site.generator, {}, len(site.features))
        for name, site in members.items()
    }
    return TrainedRun(
        memory=bank_from(merged),
        sites=models,
        scoring=config.scoring(),
        reference=config.reference,
        features=extractor.config,
        method=config.method,
        data=data,
    )


def wire_exact(bank: MemoryBank, config: TrainConfig) -> MemoryBank:
    """The bank as it reads after a round trip, so that saved and live detectors score alike."""
    precision = handed_back(config.precision)
    vectors = rounding(precision)(bank.vectors)
    return MemoryBank(vectors, bank.weights, cast(bank.spread, compact(precision)))
