"""False alarms that were answered at one site become rows of the memory that all sites share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedvad.errors import ConfigError
from fedvad.memory.bank import FloatArray, MemoryBank, concatenate
from fedvad.memory.origin import Origin, Source
from fedvad.runs.answers import Answer, AnswerValues
from fedvad.runs.config import TrainConfig
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.renewal import last_round, merge_again

__all__ = ["normals_of", "shared", "unshared"]


def shared(run: TrainedRun, config: TrainConfig) -> tuple[TrainedRun, dict[str, int]]:
    """The run after a round in which each site sends the patches of its answered false alarms.

    They join its memory as rows of that round, and all memories are merged again with the defence
    of the training; thresholds stay. Returns the number of new rows by site, too. Raises
    `ConfigError` where no answer is left to share.
    """
    round_, most = last_round(run) + 1, config.rows(run.memory.dim)
    sites, rows = dict(run.sites), {}
    for name, site in run.sites.items():
        new = [a for a in site.answers if _is_normal(a) and not a.values.shared]
        if new and len(site.bank):
            joined = _rows(name, new, round_, most)
            bank = concatenate([site.bank, joined]).rescaled(site.bank.total_weight)
            marked = [_marked(a, round_) if a in new else a for a in site.answers]
            sites[name] = replace(site, bank=bank, answers=tuple(marked))
            rows[name] = len(joined)
    if not rows:
        raise ConfigError("no false alarm was answered that other sites have not got yet")
    return merge_again(replace(run, sites=sites), config), rows


def unshared(run: TrainedRun, config: TrainConfig, site: str, values: AnswerValues) -> TrainedRun:
    """The run without the rows that `shared` made of an answer, merged again; as it is if none."""
    bank = run.sites[site].bank
    if not values.shared or bank.origin is None:
        return run
    made = [s.image == values.image and s.round >= values.shared for s in bank.origin.sources]
    gone = np.array(made)[bank.origin.source]
    kept = bank.take(~gone).rescaled(bank.total_weight)
    sites = {**run.sites, site: replace(run.sites[site], bank=kept)}
    return merge_again(replace(run, sites=sites), config)


def _is_normal(answer: Answer) -> bool:
    """Whether an answer says that an image is normal, and counts."""
    return answer.values.verdict == "normal" and len(answer.vectors) > 0


def _marked(answer: Answer, round_: int) -> Answer:
    return replace(answer, values=answer.values.model_copy(update={"shared": round_}))


def _rows(site: str, answers: Sequence[Answer], round_: int, most: int) -> MemoryBank:
    """The patches of answers as rows of as many rounds as their number needs."""
    vectors = np.concatenate([answer.vectors for answer in answers])
    images = [a.values.image for a in answers for _ in range(len(a.vectors))]
    sources = [Source(site, round_ + i // most, image) for i, image in enumerate(images)]
    origin = Origin.of(sources, np.arange(len(sources)))
    return replace(MemoryBank.of_patches(vectors), origin=origin)


def normals_of(folder: Path, site: str) -> dict[str, FloatArray]:
    """Patches of the answered false alarms of a site in a run folder, by digest of the image.

    Raises `ConfigError` for a run that does not have the site, `ArtefactError`.
    """
    run = TrainedRun.load(folder)
    if site not in run.sites:
        raise ConfigError(f"{folder} has no site {site}, but {sorted(run.sites)}")
    found: dict[str, list[FloatArray]] = {}
    for answer in run.sites[site].answers:
        if _is_normal(answer):
            found.setdefault(answer.values.image, []).append(answer.vectors)
    return {image: np.concatenate(parts) for image, parts in found.items()}
