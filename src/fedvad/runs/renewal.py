"""A run whose sites' memories changed after training: merged again, with thresholds found again.

The server's part is played again from the sites' own memories, whose rows know their rounds, so
no image is read, and what did not change comes out as it was.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import numpy.typing as npt

from fedvad.data.files import write_atomically
from fedvad.data.sealed import sha256_of
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.scoring import distance_scale
from fedvad.errors import ConfigError, PayloadError
from fedvad.evaluation.histograms import count
from fedvad.evaluation.thresholds import Threshold
from fedvad.federation.payload import Manifest, Payload, bank_arrays, bank_from
from fedvad.memory.bank import MemoryBank
from fedvad.memory.merge import merge_banks
from fedvad.runs.config import Reference, TrainConfig
from fedvad.runs.memory_run import SiteMemory, TrainedRun
from fedvad.runs.plan import memory_exchange
from fedvad.runs.run_folder import DETECTOR_FILE
from fedvad.runs.thresholds import Counts, find_thresholds, share_threshold

__all__ = [
    "NewScores",
    "bounded",
    "check_renewable",
    "last_round",
    "merge_again",
    "renew_thresholds",
    "replace_run",
    "take_back",
]

log = logging.getLogger(__name__)
NewScores = Mapping[str, Mapping[Reference, npt.NDArray[np.float64]]]
_BEFORE = "before-{}.safetensors"


def check_renewable(run: TrainedRun, config: TrainConfig, folder: Path) -> None:
    """Raise `ConfigError` for a run whose memories cannot be taken apart by site and round."""
    if config.update != "grow":
        raise ConfigError(
            f"{folder} is of method {config.method}, whose rounds move every row of a memory "
            "(update 'ema'), so none can be added or taken away: train again"
        )
    banks = [run.memory, *(site.bank for site in run.sites.values() if len(site.bank))]
    if any(bank.origin is None for bank in banks):
        raise ConfigError(
            f"{folder} was trained by an earlier fedvad, whose rows do not know their sites: "
            "train again"
        )


def last_round(run: TrainedRun) -> int:
    """The last round in which any site sent rows."""
    return max(_rounds_of(site.bank)[-1] for site in run.sites.values() if len(site.bank))


def _rounds_of(bank: MemoryBank) -> list[int]:
    assert bank.origin is not None  # see `check_renewable`
    return sorted({source.round for source in bank.origin.sources})


def merge_again(run: TrainedRun, config: TrainConfig) -> TrainedRun:
    """The run with the memory that the server makes of its sites' memories.

    With the defence, the codec and the thinning of the training. Of a run as it was trained it is
    the same memory to the bit, but for rows that a site without news repeats to be heard of.
    Raises `ConfigError` when no site has a memory.
    """
    own = {name: site for name, site in run.sites.items() if len(site.bank)}
    if not own:
        raise ConfigError("no site of the run has a memory of its own: nothing can be merged")
    first = next(iter(own.values()))
    patches = -(-_patches(first) // first.n_images)
    exchange = memory_exchange(config, run.features.key(), run.memory.dim, patches)
    for name, site in sorted(own.items()):
        for round_ in _rounds_of(site.bank):
            try:
                exchange.accept(_upload(run, config, name, site, round_))
            except PayloadError as error:  # as a round of the training would go on without it
                log.warning("%s: its rows of round %d are refused: %s", name, round_, error)
    memory = bank_from(exchange.merge(last_round(run)))
    return replace(run, memory=memory, scale=distance_scale(memory, run.scoring))


def _patches(site: SiteMemory) -> int:
    return round(site.bank.total_weight)


def _upload(
    run: TrainedRun, config: TrainConfig, name: str, site: SiteMemory, round_: int
) -> Payload:
    """What a site sent in a round, as far as its memory still holds it."""
    origin = site.bank.origin
    assert origin is not None
    of_round = np.array([source.round == round_ for source in origin.sources])
    rows = site.bank.take(of_round[origin.source])
    manifest = Manifest(
        kind="upload",
        site=name,
        round=round_,
        mode="append",
        features=run.features.key(),
        generator=Generator.identity(run.memory.dim).hash(),
        n_images=site.n_images,
        n_patches=_patches(site),
    )
    return Payload(manifest, bank_arrays(rows.rescaled(float(_patches(site))), config.precision))


def bounded(bank: MemoryBank, rows: int, seed: int) -> MemoryBank:
    """At most so many rows of a site's memory: those that cover all of them best."""
    return (
        bank if len(bank) <= rows else merge_banks({"": bank}, mode="kcenter", size=rows, seed=seed)
    )


def renew_thresholds(
    run: TrainedRun, config: TrainConfig, new: NewScores, sites: Collection[str] = ()
) -> None:
    """Find the thresholds of all sites again, each for the rate that it had.

    new: by site and reference, scores (n,) of normal images that trained; they join the scores
    that the run keeps. sites: those whose kept scores are dropped, as `new` has all of them.
    """
    counts: Counts = {}
    for reference in get_args(Reference):
        scores = {}
        for name, site in run.sites.items():
            before = site.thresholds.get(reference)
            kept = () if before is None or name in sites else before.scores
            joined = np.array([*kept, *new.get(name, {}).get(reference, np.empty(0))])
            if len(joined):
                scores[name] = joined
        rule = "own" if reference == "local" else config.threshold_rule
        rates = {name: _rate(run.sites[name].thresholds.get(reference), config) for name in scores}
        by_rate = {rate: find_thresholds(scores, rate, rule) for rate in set(rates.values())}
        for name, rate in rates.items():
            if name in by_rate[rate]:
                run.sites[name].thresholds[reference] = by_rate[rate][name]
        if scores:
            counts[reference] = np.sum([count(own) for own in scores.values()], axis=0)
    if config.shared_threshold:
        share_threshold(run.sites, counts, config.target_fpr)


def _rate(before: Threshold | None, config: TrainConfig) -> float:
    return config.target_fpr if before is None else before.target_fpr


def replace_run(folder: Path, run: TrainedRun) -> Path:
    """Write a changed run in place of the one in a folder, which is kept to be taken back.

    Returns the file with what was there. A kill leaves the old run or the new one. Raises
    `StorageError`.
    """
    old = (folder / DETECTOR_FILE).read_bytes()
    with TemporaryDirectory(dir=folder, prefix=".next-") as work:
        run.save(Path(work))
        new = (Path(work) / DETECTOR_FILE).read_bytes()
    for stale in folder.glob(".next-*"):  # of a kill
        shutil.rmtree(stale, ignore_errors=True)
    kept = folder / _BEFORE.format(sha256_of(new)[:16])
    write_atomically(kept, old)
    write_atomically(folder / DETECTOR_FILE, new)
    for other in set(folder.glob(_BEFORE.format("*"))) - {kept}:
        other.unlink()
    return kept


def take_back(folder: Path) -> None:
    """Undo the last `replace_run`; raises `ConfigError` where nothing can be taken back."""
    now = sha256_of((folder / DETECTOR_FILE).read_bytes())
    kept = folder / _BEFORE.format(now[:16])
    if not kept.is_file():
        raise ConfigError(
            f"{folder} holds nothing to take back: it was never updated, or was changed since "
            "(calibrate, feedback, forget)"
        )
    write_atomically(folder / DETECTOR_FILE, kept.read_bytes())
    kept.unlink()
