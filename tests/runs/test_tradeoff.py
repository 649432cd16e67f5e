"""What other false-alarm rates would stop and catch."""

from pathlib import Path

import numpy as np
import pytest

from fedvad.data.folders import ImageItem, ImageSet
from fedvad.detectors.base import Scores
from fedvad.evaluation.histograms import count, threshold_of_counts
from fedvad.evaluation.results import Counts
from fedvad.evaluation.sites import SiteResult, evaluate_site
from fedvad.evaluation.thresholds import Threshold, conformal_threshold
from fedvad.runs.tradeoff import RATES, tradeoff


def result_of(name: str, limit: Threshold | None) -> SiteResult:
    """Good images that score 0.905 and 2, defects that score 0.995 and 3."""
    test = ImageSet(
        tuple(
            ImageItem(Path(f"{label}{i}.png"), label, ("good", "cut")[label], None)
            for label in (0, 1)
            for i in range(2)
        )
    )
    scores = Scores(np.array([0.905, 2, 0.995, 3]), np.zeros((4, 2, 2), np.float32), np.arange(4))
    return evaluate_site(name, test, scores, limit, image_size=32, pixel_metrics=False)


LIMIT = conformal_threshold(np.arange(1, 1001) / 1000, 0.01)


def test_counts_of_all_sites_at_the_thresholds_of_each_rate() -> None:
    limits = {"alder": LIMIT, "birch": LIMIT}
    found = tradeoff([result_of("alder", LIMIT), result_of("birch", LIMIT)], limits)
    assert [at.target_fpr for at in found] == list(RATES)
    # thresholds 0.999, 0.991, 0.951 and 0.901
    assert [at.counts.stopped for at in found] == [2, 2, 2, 4]
    assert [at.counts.caught for at in found] == [2, 4, 4, 4]
    assert found[0].counts == Counts(good=4, stopped=2, defects=4, caught=2)


@pytest.mark.parametrize(
    "limit", [None, Threshold(0.9, 100, "given", 0.01), threshold_of_counts(count([1.0] * 99), 0.1)]
)
def test_nothing_is_said_where_a_site_keeps_no_scores_or_all_share_one(
    limit: Threshold | None,
) -> None:
    results = [result_of("alder", LIMIT), result_of("birch", limit)]
    assert tradeoff(results, {"alder": LIMIT, "birch": limit}) == []
    assert tradeoff([], {"alder": LIMIT}) == []
