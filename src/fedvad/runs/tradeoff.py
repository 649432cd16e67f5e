"""What other false-alarm rates than the wanted one would stop and catch, without training again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedvad.evaluation.histograms import SUMMED_COUNTS
from fedvad.evaluation.results import AtRate
from fedvad.evaluation.sites import SiteResult, counted
from fedvad.evaluation.thresholds import Threshold
from fedvad.mergeable import merge_states
from fedvad.runs.thresholds import retarget

RATES = (0.002, 0.01, 0.05, 0.1)


def tradeoff(results: Sequence[SiteResult], limits: Mapping[str, Threshold | None]) -> list[AtRate]:
    """Test images stopped and caught, over all sites, for each of `RATES`.

    Each rate has thresholds of its own, found as those of the training from the scores of the
    held-out normal images that they keep; test images choose nothing. Empty where a site has no
    such scores, or one threshold serves all sites.

    limits: present thresholds of the run's sites. results: of sites, each of which has one.
    """
    tested = [result for result in results if len(result.test)]
    if any(limit is not None and limit.method == SUMMED_COUNTS for limit in limits.values()):
        return []
    rows = []
    for rate in RATES:
        found = retarget(limits, rate)
        each = [counted(result, found.get(result.name)) for result in tested]
        if not each or None in each:
            return []
        rows.append(AtRate(target_fpr=rate, counts=merge_states(filter(None, each))))
    return rows
