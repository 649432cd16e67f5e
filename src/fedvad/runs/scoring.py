"""Scoring sites' test images with a run, for training, evaluation and comparison alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedvad.data.bounds import MAX_BAD
from fedvad.data.folders import Site
from fedvad.detectors.base import Detector
from fedvad.evaluation.sites import SiteResult, evaluate_site
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.extractor import FeatureExtractor, check_bad_share
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.runs.run import Run

# of unreadable test images: training is over then, and not lost for an image that only measures
ANY_SHARE = 1.0

ForSite = Callable[[str], tuple[Detector, Threshold | None]]


def score_sites(
    run: Run,
    sites: Sequence[Site],
    extractor: FeatureExtractor,
    *,
    max_bad: float = MAX_BAD,
    progress: Progress = no_progress,
) -> list[SiteResult]:
    """Results of a run on each site that has test images."""

    def for_site(name: str) -> tuple[Detector, Threshold | None]:
        return run.detector(name, extractor), run.threshold(name)

    return score_with(for_site, sites, extractor, "scoring", max_bad, progress)


def score_with(
    for_site: ForSite,
    sites: Sequence[Site],
    extractor: FeatureExtractor,
    stage_name: str,
    max_bad: float,
    progress: Progress,
) -> list[SiteResult]:
    """Results of whatever detector `for_site` gives for each site that has test images."""
    tested = [site for site in sites if len(site.test)]
    stage = Stage(progress, stage_name, sum(len(site.test) for site in tested))
    results = []
    for site in tested:
        detector, threshold = for_site(site.name)
        scores = detector.score(site.test.paths, stage)
        check_bad_share(scores.bad, len(site.test), max_bad, f"{site.name} test set")
        results.append(
            evaluate_site(
                site.name,
                site.test,
                scores,
                threshold,
                image_size=extractor.config.view,
            )
        )
    return results
