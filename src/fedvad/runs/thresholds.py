"""Thresholds of a trained run: each site's own, or one for all from sums of counts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.data.contents import described
from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.calibration import UnseenScorer
from fedvad.evaluation.federated import federated_thresholds
from fedvad.evaluation.histograms import count, threshold_of_counts
from fedvad.evaluation.sites import site_threshold
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.extractor import FeatureExtractor
from fedvad.half import to_float
from fedvad.mergeable import merge_states
from fedvad.runs.config import Reference, ThresholdRule, TrainConfig
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.progress import Progress, Stage
from fedvad.runs.run import Run, SiteModel

log = logging.getLogger(__name__)
Scores = npt.NDArray[np.float64]
Counts = dict[Reference, npt.NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the held-out normal images said.

    own_normals: by site, about joining: the median of their scores with the site's own memory and
    with the reference, and the share of them that came nearer. counts: by reference, (1000,) of
    all scores, summed over sites; see `evaluation.histograms`. images: their number.
    """

    own_normals: dict[str, Any] = field(default_factory=dict)
    counts: Counts = field(default_factory=dict)
    images: int = 0


def calibrate(
    run: TrainedRun,
    held_out: Mapping[str, NormalFeatures],
    extractor: FeatureExtractor,
    config: TrainConfig,
    progress: Progress,
) -> Calibration:
    """Fill in each site's thresholds, for the run's reference set and for its own memory."""
    # the global ones also serve sites and images that never trained
    references: dict[Reference, None] = dict.fromkeys((run.reference, "local", "global"))
    stage = Stage(progress, "thresholds", len(references) * sum(map(len, held_out.values())))
    found = Calibration(images=sum(map(len, held_out.values())))
    scores: dict[Reference, dict[str, Scores]] = {reference: {} for reference in references}

    def unseen(name: str | None, reference: Reference) -> UnseenScorer:
        return UnseenScorer(
            run.detector(name, extractor, reference).scorer,
            leave_one_out=config.calibration_mode == "leave-one-out",
            stored=config.stored_form(),
        )

    # one for all sites that see the memory alike
    shared = unseen(None, "global")
    for name, model in run.sites.items():
        scorers = {
            reference: shared
            if reference == "global" and not model.embeds
            else unseen(name, reference)
            for reference in references
            # a site without rows of its own took part in no round
            if reference != "local" or len(model.bank)
        }
        own: dict[Reference, list[float]] = {reference: [] for reference in scorers}
        for descriptors, copies in held_out[name].with_copies():
            patches = to_float(descriptors)
            for reference, scorer in scorers.items():
                score = scorer.score(patches, model.generator, copies=copies)
                if score is not None:
                    own[reference].append(score)
                stage()
        for reference, values in own.items():
            scores[reference][name] = np.asarray(values)
    if config.threshold_rule == "federated" and len(run.sites) < 2:
        log.info("thresholds from this site's own scores: those of other sites are not here")
    for reference, by_site in scores.items():
        if by_site:
            found.counts[reference] = merge_states(map(count, by_site.values()))
        # a memory of one's own is what a site would have alone, and so is its threshold
        rule: ThresholdRule = "own" if reference == "local" else config.threshold_rule
        thresholds = find_thresholds(by_site, config.target_fpr, rule)
        for name, threshold in thresholds.items():
            run.sites[name].thresholds[reference] = threshold
        if reference == run.reference:
            for name in sorted(set(by_site) - set(thresholds)):
                log.warning(
                    "%s: too few normal images for a threshold (%s)",
                    name, described(held_out[name].paths),
                )  # fmt: skip
    for name in run.sites:
        ours, alone = scores[run.reference].get(name), scores["local"].get(name)
        if ours is not None and alone is not None and len(ours) == len(alone) and len(ours):
            found.own_normals[name] = {
                "median_alone": float(np.median(alone)),
                "median_federated": float(np.median(ours)),
                "share_nearer": float(np.mean(ours < alone)),
            }
    return found


def calibrate_shared(run: Run, scores: Mapping[str, Scores], config: TrainConfig) -> Calibration:
    """Fill in the thresholds of a run in which no site has a memory of its own.

    scores: by site, (n,) of held-out normal images.
    """
    found = find_thresholds(scores, config.target_fpr, config.threshold_rule)
    for name, model in run.sites.items():
        if name in found:
            model.thresholds["global"] = found[name]
        else:
            log.warning("%s: too few normal images for a threshold", name)
    counts = merge_states([count([]), *map(count, scores.values())])
    return Calibration(counts={"global": counts}, images=sum(map(len, scores.values())))


def find_thresholds(
    scores: Mapping[str, Scores], target_fpr: float, rule: ThresholdRule
) -> dict[str, Threshold]:
    """Thresholds by site from held-out normal scores (n,); none where there are fewer than three.

    rule: "federated" learns from the scores of all sites, "own" from a site's alone.
    """
    if rule == "federated":
        return federated_thresholds(scores, target_fpr)
    own = {name: site_threshold(values.tolist(), target_fpr) for name, values in scores.items()}
    return {name: threshold for name, threshold in own.items() if threshold is not None}


def retarget(limits: Mapping[str, Threshold | None], target_fpr: float) -> dict[str, Threshold]:
    """Thresholds for another rate, by the rule of the present ones and from the scores they keep.

    A site whose threshold keeps no scores gets none.
    """
    known = {name: limit for name, limit in limits.items() if limit is not None and limit.scores}
    federated = any(limit.method.startswith("federated") for limit in known.values())
    scores = {name: np.asarray(limit.scores) for name, limit in known.items()}
    return find_thresholds(scores, target_fpr, "federated" if federated else "own")


def share_threshold(sites: Mapping[str, SiteModel], counts: Counts, target_fpr: float) -> None:
    """Give all sites the threshold of the summed counts, but for their own memories alone."""
    for reference, summed in counts.items():
        if reference == "local":
            continue
        shared = threshold_of_counts(summed, target_fpr)
        if shared is None:
            log.warning(
                "no shared threshold (%s): %d normal images are too few, or their scores lie "
                "beyond the range that is counted; each site keeps its own",
                reference, summed.sum(),
            )  # fmt: skip
            continue
        for model in sites.values():
            before = model.thresholds.get(reference)
            scores = () if before is None else before.scores
            model.thresholds[reference] = replace(shared, scores=scores)
