"""Which patches of an answered image count, and what an answer changes in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedvad.detectors.calibration import SAME
from fedvad.errors import ConfigError
from fedvad.half import to_float
from fedvad.memory.bank import FloatArray
from fedvad.memory.coreset import k_center
from fedvad.memory.negatives import more_like
from fedvad.memory.neighbours import NeighbourIndex
from fedvad.runs.answers import Answer, AnswerValues, Verdict, as_held, rows_of
from fedvad.runs.config import TrainConfig
from fedvad.runs.memory_run import SiteMemory, TrainedRun
from fedvad.runs.run import Run

Box = tuple[int, int, int, int]
_SHARE = 8  # of an image's patches that an answer keeps at most: one in eight


def chosen_patches(
    descriptors: npt.NDArray[np.float16],
    map_: FloatArray,
    verdict: Verdict,
    limit: float | None,
    cells: npt.NDArray[np.bool_],
    site: SiteMemory,
    known: FloatArray,
    config: TrainConfig,
) -> FloatArray:
    """The patches of an image that an answer keeps, (k, d) in the space of the memory.

    Of a false alarm those that the memory covers worst; of a defect those that score highest,
    where they exceed the site's threshold, and at least those that make the image's score.

    Parameters
    ----------
    descriptors : (h, w, d) float16 array
        Of the image; NaN outside the region of interest.
    map_ : (h, w) float32 array
        Its anomaly map.
    verdict : {"normal", "defect"}
    limit : float or None
        The site's threshold.
    cells : (h, w) bool array
        Those that the answer is about.
    site : SiteMemory
    known : (m, d) float32 array
        Rows of the memory that scored, as the site's generator embeds them.
    config : TrainConfig

    Raises
    ------
    ConfigError
        Where no patch is left to keep.
    """
    inside = cells & ~np.isnan(descriptors[:, :, 0])
    if not inside.any():
        raise ConfigError("region holds no patch of the image, or lies outside what is looked at")
    found = to_float(descriptors[inside])
    patches = site.generator(found)
    kept = found if site.raw else patches
    values, most = map_[inside], max(1, map_.size // _SHARE)
    if verdict == "defect":
        count = max(config.scoring().count(map_.size), int((values > (limit or np.inf)).sum()))
        return kept[np.argsort(-values, kind="stable")[: min(count, most)]]
    defects = site.embedded(rows_of(site.answers, "defect", patches.shape[1]))
    normal = ~more_like(defects, known, patches)
    patches, kept = patches[normal], kept[normal]
    if len(patches) == 0:
        raise ConfigError(
            "every patch of this image is more like a confirmed defect than like anything normal: "
            "undo that answer first"
        )
    chosen = k_center(patches, most, seed=config.seed, initial=known, projection=config.projection)
    if len(chosen.indices) == 0:
        raise ConfigError("the memory holds every patch of this image already")
    return kept[chosen.indices]


def next_number(run: TrainedRun) -> int:
    """Of the next answer of a run."""
    numbers = [a.values.number for site in run.sites.values() for a in site.answers]
    return max(numbers, default=0) + 1


def answered(run: TrainedRun, site: str, values: AnswerValues, vectors: FloatArray) -> TrainedRun:
    """The run with one more answer; raises `ConfigError` where one on the image still counts."""
    model = run.sites[site]
    for given in (answer.values for answer in model.answers):
        if given.image == values.image and given.region == values.region and not given.undone:
            raise ConfigError(
                f"answer {given.number} calls this {given.verdict} already; undo that answer to "
                "change it"
            )
    return _with(run, site, [*model.answers, Answer(values, vectors)])


def keep_answers(before: Path, after: Path) -> None:
    """Let what was answered in one run folder count in the one that takes its place.

    Answers of which the other sites have patches since are marked as shared in their round.
    """
    old, new = Run.load(before), Run.load(after)
    if not (isinstance(old, TrainedRun) and isinstance(new, TrainedRun)):
        return
    for name in new.sites.keys() & old.sites.keys():
        if old.sites[name].answers:
            new = _with(new, name, [_sent(a, name, new) for a in old.sites[name].answers])
            new.save(after)


def _sent(answer: Answer, site: str, run: TrainedRun) -> Answer:
    """An answer, with the round in which a site sent patches of it for a run's memories."""
    bank = run.sites[site].bank if answer.values.verdict == "normal" else run.negatives
    rounds: list[int] = []
    if bank is not None and bank.origin is not None and len(bank) and len(answer.vectors):
        held = as_held(answer.vectors)
        distances, nearest = NeighbourIndex(bank.vectors).query(held)
        same = distances[:, 0] <= SAME * np.linalg.norm(held, axis=1)
        sent = bank.origin.take(nearest[same, 0]).sources
        rounds = [s.round for s in sent if s.site == site and s.image in ("", answer.values.image)]
    values = answer.values.model_copy(update={"shared": min(rounds, default=0)})
    return replace(answer, values=values)


def undone(run: TrainedRun, number: int, date: str) -> tuple[TrainedRun, str, AnswerValues]:
    """The run without an answer that counted, its site, and its values.

    Raises `ConfigError` for a number that there is not, or that was undone before.
    """
    for site, model in run.sites.items():
        for i, answer in enumerate(model.answers):
            if answer.values.number != number or answer.values.undone:
                continue
            given = answer.values.model_copy(update={"undone": date, "rows": 0})
            left = list(model.answers)
            left[i] = Answer(given, answer.vectors[:0])
            return _with(run, site, left), site, given
    raise ConfigError(
        f"no answer {number} counts in this run: it was undone, or there is none of that number"
    )


def _with(run: TrainedRun, site: str, answers: Sequence[Answer]) -> TrainedRun:
    changed = replace(run.sites[site], answers=tuple(answers))
    return replace(run, sites={**run.sites, site: changed})
