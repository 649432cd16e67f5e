"""What was answered at one site counts at all: false alarms become rows of the memory that all
sites share, and confirmed defects raise scores where a site's own normals do not speak against it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedvad.detectors.memory.answered import AnsweredPatches
from fedvad.errors import ConfigError, join_names
from fedvad.memory.bank import FloatArray, MemoryBank, concatenate
from fedvad.memory.origin import Origin, Source
from fedvad.runs.answers import Answer, AnswerValues, rows_of
from fedvad.runs.config import TrainConfig
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.renewal import check_growing, last_round, merge_again, merge_with_reasons

log = logging.getLogger(__name__)


class Shared(NamedTuple):
    """What `shared` did, by site: patches that went to all sites, and why others did not."""

    normals: dict[str, int]
    defects: dict[str, int]
    refused: dict[str, str]


def check_sharing(config: TrainConfig, folder: Path | str) -> None:
    """Raise `ConfigError` where patches of answers cannot join memories, or may not leave."""
    check_growing(config, folder)
    if config.min_count > 1:
        raise ConfigError(
            f"every row that {folder} shares is an average over {config.min_count} images "
            "(min_count), which single patches of answered images are not: train again without "
            "min_count to share them"
        )


def shared(
    run: TrainedRun, config: TrainConfig, *, with_defects: bool = False
) -> tuple[TrainedRun, Shared]:
    """The run after a round in which each site sends the patches of its answered false alarms.

    They join its memory as rows of that round, and all memories are merged again with the defence
    of the training; thresholds stay. A site that the defence would leave out because of them keeps
    them to itself. with_defects: the patches of confirmed defects go to all sites, too. Raises
    `ConfigError` where no answer is left to share, and where all of them are refused.
    """
    round_, most = last_round(run) + 1, config.rows(run.memory.dim)
    sites, done = {}, Shared({}, {}, {})
    for name, site in run.sites.items():
        new = [a for a in site.answers if len(a.vectors) and not a.values.shared and len(site.bank)]
        normals = [a for a in new if a.values.verdict == "normal"]
        defects = [a for a in new if a.values.verdict == "defect"] if with_defects else []
        if not (normals or defects):
            continue
        bank = site.bank
        if normals:
            joined = _rows(name, normals, round_, most)
            bank = concatenate([bank, joined]).rescaled(bank.total_weight)
            done.normals[name] = len(joined)
        if defects:
            done.defects[name] = sum(len(answer.vectors) for answer in defects)
        going = [*normals, *defects]
        answers = tuple(_marked(a, round_) if a in going else a for a in site.answers)
        sites[name] = replace(site, bank=bank, answers=answers)
    if not sites:
        what = "nothing was answered" if with_defects else "no false alarm was answered"
        raise ConfigError(f"{what} that other sites have not got yet")
    after, refused = merge_with_reasons(replace(run, sites={**run.sites, **sites}), config)
    for name in sites.keys() & refused.keys():
        done.refused[name] = refused[name]
        for counts in (done.normals, done.defects):
            counts.pop(name, None)
        del sites[name]
    if not sites:
        why = "; ".join(f"{name}: {reason}" for name, reason in done.refused.items())
        raise ConfigError(f"nothing was shared, as the merge refuses it. {why}")
    if done.refused:
        after = merge_again(replace(run, sites={**run.sites, **sites}), config)
    return after, done


def unshared(run: TrainedRun, config: TrainConfig, site: str, values: AnswerValues) -> TrainedRun:
    """The run without what sharing an answer made of it, merged again; as it is if nothing.

    A memory that cannot be taken apart here keeps the answer's patches, with a warning.
    """
    if not values.shared:
        return run
    bank = without_shared(run.sites[site].bank, values)
    left = replace(run, sites={**run.sites, site: replace(run.sites[site], bank=bank)})
    try:
        return merge_again(left, config)
    except ConfigError as error:
        log.warning("the memory of all sites keeps what %s shared: %s", site, error)
        return left


def without_shared(bank: MemoryBank, values: AnswerValues) -> MemoryBank:
    """A site's memory without the rows that `shared` made of an answer, of the same weight."""
    if not values.shared or values.verdict != "normal" or bank.origin is None:
        return bank
    made = [s.image == values.image and s.round >= values.shared for s in bank.origin.sources]
    return bank.take(~np.array(made)[bank.origin.source]).rescaled(bank.total_weight)


def _marked(answer: Answer, round_: int) -> Answer:
    return replace(answer, values=answer.values.model_copy(update={"shared": round_}))


def _rows(site: str, answers: Sequence[Answer], round_: int, most: int) -> MemoryBank:
    """The patches of answers as rows of as many rounds as their number needs."""
    vectors = np.concatenate([answer.vectors for answer in answers])
    images = [a.values.image for a in answers for _ in range(len(a.vectors))]
    sources = [Source(site, round_ + i // most, image) for i, image in enumerate(images)]
    origin = Origin.of(sources, np.arange(len(sources)))
    return replace(MemoryBank.of_patches(vectors), origin=origin)


def answered_at(folder: Path, site: str, *, share_defects: bool = False) -> AnsweredPatches:
    """What was answered at a site of a run folder, for its next round.

    share_defects: whether patches of confirmed defects may leave the site. Raises `ConfigError` for
    a run that does not have the site, `ArtefactError`.
    """
    run = TrainedRun.load(folder)
    if site not in run.sites:
        raise ConfigError(f"{folder} has no site {site}, but {join_names(run.sites)}")
    answers = run.sites[site].answers
    normals: dict[str, list[FloatArray]] = {}
    for answer in answers:
        if answer.values.verdict == "normal" and len(answer.vectors):
            normals.setdefault(answer.values.image, []).append(answer.vectors)
    return AnsweredPatches(
        {image: np.concatenate(parts) for image, parts in normals.items()},
        rows_of(answers, "defect", run.memory.dim),
        share_defects,
    )
