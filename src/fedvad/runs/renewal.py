"""A run whose sites' memories changed after training: merged again, with thresholds found again.

The server's part is played again from the sites' own memories, whose rows know their rounds, so
no image is read, and what did not change comes out as it was.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import numpy.typing as npt

from fedvad.data.files import write_atomically
from fedvad.data.sealed import sha256_of
from fedvad.detectors.artefact import read_arrays
from fedvad.detectors.memory.answered import AnsweredPatches
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.scoring import distance_scale
from fedvad.errors import ConfigError, PayloadError, join_names
from fedvad.evaluation.histograms import count
from fedvad.evaluation.thresholds import Threshold
from fedvad.federation.defence.validation import most_defects
from fedvad.federation.payload import (
    Manifest,
    Payload,
    bank_arrays,
    bank_from,
    negatives_from,
    with_negatives,
)
from fedvad.memory.bank import FloatArray, MemoryBank, concatenate
from fedvad.memory.merge import merge_banks
from fedvad.mergeable import merge_states
from fedvad.runs.answers import rows_of
from fedvad.runs.config import Reference, TrainConfig
from fedvad.runs.memory_run import SiteMemory, TrainedRun
from fedvad.runs.plan import memory_exchange
from fedvad.runs.run_folder import BEFORE, DETECTOR_FILE
from fedvad.runs.thresholds import Counts, find_thresholds, share_threshold

log = logging.getLogger(__name__)
NewScores = Mapping[str, Mapping[Reference, npt.NDArray[np.float64]]]


def check_origin(run: TrainedRun, folder: Path) -> None:
    """Raise `ConfigError` for a run whose rows do not say which site sent them in which round."""
    banks = [run.memory, *(site.bank for site in run.sites.values() if len(site.bank))]
    if any(bank.origin is None or ("", 0, "") in bank.origin.sources for bank in banks):
        raise ConfigError(
            f"{folder} was trained by an earlier fedvad, whose rows do not record their sites: "
            "train again"
        )


def check_growing(config: TrainConfig, folder: Path | str) -> None:
    """Raise `ConfigError` for a method to whose memories no rows can be added."""
    if config.update != "grow":
        raise ConfigError(
            f"{folder} is of method {config.method}, whose rounds move every row of a memory "
            "(update 'ema'), so none can be added or removed: train again"
        )
    if config.train_generator:
        raise ConfigError(
            f"{folder} has generators that were trained against its memory: train again with the "
            "images that there are now"
        )


def last_round(run: TrainedRun) -> int:
    """The last round in which any site sent rows that the run still holds."""
    banks = [run.memory, *(site.bank for site in run.sites.values() if len(site.bank))]
    return max(_rounds_of(bank)[-1] for bank in banks)


def _rounds_of(bank: MemoryBank) -> list[int]:
    assert bank.origin is not None  # see `check_origin`
    return sorted({source.round for source in bank.origin.sources})


def merge_again(run: TrainedRun, config: TrainConfig, without: Collection[str] = ()) -> TrainedRun:
    """The run with the `merged_memory` of its sites, its scale of distances, and the defects that
    its sites share.
    """
    return merge_with_reasons(run, config, without)[0]


def merge_with_reasons(
    run: TrainedRun, config: TrainConfig, without: Collection[str] = ()
) -> tuple[TrainedRun, dict[str, str]]:
    """`merge_again`, and why sites have a part in it no longer, or without some of their rounds."""
    merged, refused = _merged(run, config, without)
    memory = bank_from(merged)
    scale = distance_scale(memory, run.scoring)
    found = [*_unheard_defects(run, without), *filter(None, [negatives_from(merged)])]
    negatives = concatenate(found) if found else None
    return replace(run, memory=memory, scale=scale, negatives=negatives), refused


def _unheard_defects(run: TrainedRun, without: Collection[str]) -> list[MemoryBank]:
    """The defects of sites whose normal rows were all thinned out, so that no merge hears them."""
    if run.negatives is None or run.negatives.origin is None or run.memory.origin is None:
        return []
    heard = {source.site for source in run.memory.origin.sources} | {*run.sites, *without}
    whose = sorted({source.site for source in run.negatives.origin.sources} - heard)
    return [run.negatives.take(run.negatives.origin.share_of(name) > 0) for name in whose]


def merged_memory(run: TrainedRun, config: TrainConfig) -> MemoryBank:
    """The memory that the server makes of the memories of a run's sites.

    With the defence, the codec and the thinning of the training. Of a run as it was trained it is
    the same memory to the bit, but for rows that a site without news repeats to be heard of.
    Raises `ConfigError` when no site has a memory, and where rows are averages over sites that the
    run has no memories of.
    """
    return bank_from(_merged(run, config, ())[0])


def _merged(
    run: TrainedRun, config: TrainConfig, without: Collection[str]
) -> tuple[Payload, dict[str, str]]:
    own = {name: site for name, site in run.sites.items() if len(site.bank)}
    patches = max(-(-_patches(site) // site.n_images) for site in own.values()) if own else 1
    sites = _elsewhere(run, patches) | own
    taking_part = sorted(set(sites) - set(without))
    if not taking_part:
        raise ConfigError("no site would be left with a memory: remove the run folder instead")
    exchange = memory_exchange(config, run.features.key(), run.memory.dim, patches)
    refused: dict[str, str] = {}
    for name in taking_part:
        for round_ in _rounds_of(sites[name].bank):
            try:
                exchange.accept(upload_of(run, config, name, sites[name], round_))
            except PayloadError as error:  # as a round of the training would continue without it
                log.warning("%s: its rows of round %d are refused: %s", name, round_, error)
                refused[name] = str(error)
    merged = exchange.merge(last_round(run))
    if exchange.verdict is not None:
        left_out = set(taking_part) - set(exchange.verdict.banks)
        refused |= {name: exchange.verdict.reasons[name] for name in left_out}
    return merged, refused


def _elsewhere(run: TrainedRun, patches: int) -> dict[str, SiteMemory]:
    """What the global memory holds of sites whose own memories are not in this run."""
    origin = run.memory.origin
    assert origin is not None
    names = {source.site for source in origin.sources} - set(run.sites)
    if names and len(origin.source) > len(origin):
        raise ConfigError(
            f"rows of this memory are averages over sites, those of {join_names(names)} among "
            "them, which only the server can take apart"
        )
    found = {}
    for name in names:
        bank = run.memory.take(origin.share_of(name) > 0)
        images = max(1, -(-round(bank.total_weight) // patches))
        found[name] = SiteMemory(bank, Generator.identity(bank.dim), n_images=images)
    return found


def _patches(site: SiteMemory) -> int:
    return round(site.bank.total_weight)


def rows_of_round(bank: MemoryBank, round_: int) -> MemoryBank:
    """The rows that were sent in a round."""
    assert bank.origin is not None  # see `check_origin`
    of_round = np.array([source.round == round_ for source in bank.origin.sources])
    return bank.take(of_round[bank.origin.source])


def upload_of(
    run: TrainedRun, config: TrainConfig, name: str, site: SiteMemory, round_: int
) -> Payload:
    """What a site sent in a round, as far as its memory still holds it."""
    rows = rows_of_round(site.bank, round_)
    manifest = Manifest(
        kind="upload",
        site=name,
        round=round_,
        mode="append" if config.update == "grow" else "replace",
        features=run.features.key(),
        generator=Generator.identity(run.memory.dim).hash(),
        n_images=site.n_images,
        n_patches=_patches(site),
    )
    sent = Payload(manifest, bank_arrays(rows.rescaled(float(_patches(site))), config.precision))
    defects = AnsweredPatches(defects=_shared_defects(run, name), share_defects=True)
    most = most_defects(config.rows(run.memory.dim))
    kept = MemoryBank.of_patches(defects.sent_defects(most, name, run.memory.dim))
    return with_negatives(sent, kept, "float32")


def _shared_defects(run: TrainedRun, name: str) -> FloatArray:
    """(k, d) patches of the defects that a site lets all sites know."""
    if name in run.sites:
        shared = [answer for answer in run.sites[name].answers if answer.values.shared]
        return rows_of(shared, "defect", run.memory.dim)
    if run.negatives is None or run.negatives.origin is None:
        return np.zeros((0, run.memory.dim), np.float32)
    return run.negatives.vectors[run.negatives.origin.share_of(name) > 0]


def bounded(bank: MemoryBank, rows: int, seed: int) -> MemoryBank:
    """At most this many rows of a site's memory: those that cover all of them best."""
    return (
        bank if len(bank) <= rows else merge_banks({"": bank}, mode="kcenter", size=rows, seed=seed)
    )


def renew_thresholds(run: TrainedRun, config: TrainConfig, new: NewScores) -> None:
    """Find the thresholds of all sites again, each for the rate that it had.

    new: by site and reference, scores (n,) of normal images that trained; they join the scores
    that the run keeps.
    """
    counts: Counts = {}
    for reference in get_args(Reference):
        scores = {}
        for name, site in run.sites.items():
            before = site.thresholds.get(reference)
            kept = () if before is None else before.scores
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
            counts[reference] = merge_states(count(own) for own in scores.values())
    if config.shared_threshold:
        share_threshold(run.sites, counts, config.target_fpr)


def _rate(before: Threshold | None, config: TrainConfig) -> float:
    return config.target_fpr if before is None else before.target_fpr


def replace_run(
    folder: Path,
    run: TrainedRun,
    *,
    keep: bool = True,
    first: Callable[[bytes], None] | None = None,
) -> Path:
    """Write a changed run in place of the one in a folder, which is kept to be taken back.

    keep: False keeps nothing of what was there, of earlier changes neither. first: is given the
    new file's bytes before they are written. Returns the file with what was there. A kill leaves
    the old run or the new one. Raises `StorageError`.
    """
    with TemporaryDirectory(dir=folder, prefix=".next-") as work:
        run.save(Path(work))
        new = (Path(work) / DETECTOR_FILE).read_bytes()
    for stale in folder.glob(".next-*"):  # of a kill
        shutil.rmtree(stale, ignore_errors=True)
    kept = folder / BEFORE.format(sha256_of(new)[:16])
    if keep:
        write_atomically(kept, (folder / DETECTOR_FILE).read_bytes())
    others = set(folder.glob(BEFORE.format("*"))) - {kept}
    if not keep:  # first: a kill must leave no rows that were to go
        for other in {*others, kept}:
            other.unlink(missing_ok=True)
    if first is not None:
        first(new)
    write_atomically(folder / DETECTOR_FILE, new)
    for other in others:
        other.unlink(missing_ok=True)
    return kept


def take_back(folder: Path) -> None:
    """Undo the last `replace_run`; raises `ConfigError` where nothing can be taken back.

    Raises `ArtefactError` where the run, or what was kept of the one before, is damaged: nothing
    is changed then.
    """
    TrainedRun.load(folder)
    now = sha256_of((folder / DETECTOR_FILE).read_bytes())
    kept = folder / BEFORE.format(now[:16])
    if not kept.is_file():
        raise ConfigError(
            f"{folder} holds nothing to take back: it was never updated, or was changed since "
            "(calibrate, feedback, forget)"
        )
    arrays, values = read_arrays(kept)
    TrainedRun.from_arrays(arrays, values, kept)
    write_atomically(folder / DETECTOR_FILE, kept.read_bytes())
    kept.unlink()
