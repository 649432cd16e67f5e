"""Drift and shared thresholds: silent without a change, loud with one; never more alarms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvad.errors import DataError
from fedvad.evaluation.drift import drift
from fedvad.evaluation.histograms import BINS, count, threshold_of_counts
from fedvad.evaluation.thresholds import conformal_threshold


def test_the_same_distribution_is_no_drift_in_a_thousand_draws() -> None:
    rng = np.random.default_rng(0)
    found = [
        drift(rng.lognormal(0, 0.2, 128).tolist(), rng.lognormal(0, 0.2, 32)) for _ in range(1000)
    ]
    assert sum(f is not None and f.drifted for f in found) <= 3


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_a_shift_is_found_and_its_size_is_told(factor: float) -> None:
    rng = np.random.default_rng(1)
    found = drift(rng.lognormal(0, 0.2, 128).tolist(), factor * rng.lognormal(0, 0.2, 32))
    assert found is not None
    assert found.drifted
    assert found.ratio == pytest.approx(factor, rel=0.1)


def test_a_certain_but_tiny_shift_is_none_and_few_images_say_nothing() -> None:
    rng = np.random.default_rng(2)
    tiny = drift(rng.normal(10, 0.1, 500).tolist(), rng.normal(10.2, 0.1, 500))
    assert tiny is not None
    assert tiny.p < 1e-3
    assert not tiny.drifted
    assert drift([1.0] * 7, np.ones(50)) is None
    assert drift([1.0] * 50, np.ones(7)) is None


@given(
    st.lists(st.floats(0.002, 900), min_size=25, max_size=300),
    st.integers(1, 5),
    st.sampled_from([0.05, 0.1, 0.29]),
)
def test_summed_counts_give_the_threshold_of_all_scores_or_one_bin_more(
    scores: list[float], sites: int, rate: float
) -> None:
    parts = [scores[i::sites] for i in range(sites)]
    shared = threshold_of_counts(sum(map(count, parts), np.zeros(BINS, np.int64)), rate)
    exact = conformal_threshold(np.array(scores), rate)
    assert shared is not None
    assert exact.method == "conformal"
    assert exact.value <= shared.value <= exact.value * 1.0139 * (1 + 1e-9)
    assert shared.n == len(scores)


def test_too_few_scores_or_scores_beyond_the_bins_give_none() -> None:
    assert threshold_of_counts(count([1.0] * 98), 0.01) is None
    assert threshold_of_counts(count([1.0] * 99), 0.01) is not None
    assert threshold_of_counts(count([1e9] * 99), 0.01) is None
    assert threshold_of_counts(count([1e-5] * 99), 0.01) is None  # no edge of its bin is near it
    with pytest.raises(DataError):
        count([float("nan")])
