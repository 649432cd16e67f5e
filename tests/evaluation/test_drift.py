"""Drift and shared thresholds: as few false alarms as promised, and a change is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvad.errors import DataError
from fedvad.evaluation.drift import RankTest, ShareTest, drift
from fedvad.evaluation.histograms import BINS, count, threshold_of_counts
from fedvad.evaluation.thresholds import conformal_threshold


@pytest.fixture(scope="module")
def quiet() -> list[tuple[RankTest, ShareTest]]:
    """Tests that watched 400 streams of 60 images without a change."""
    found = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        ranks = RankTest(rng.lognormal(0, 0.2, 40).tolist(), seed=seed)
        share = ShareTest(0.1)
        for score in rng.lognormal(0, 0.2, 60):
            ranks.add(score)
            share.add(rng.random() < 0.1)
        found.append((ranks, share))
    return found


@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_without_a_change_no_more_alarms_than_promised(
    quiet: list[tuple[RankTest, ShareTest]], alpha: float
) -> None:
    for kind in (0, 1):
        assert sum(both[kind].peak >= 1 / alpha for both in quiet) <= alpha * len(quiet)


@pytest.mark.parametrize("factor", [0.7, 1.4])
@pytest.mark.parametrize("before", [0, 200])
def test_a_shift_is_found_within_some_tens_of_images(factor: float, before: int) -> None:
    delays = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        test = RankTest(rng.lognormal(0, 0.2, 60).tolist(), seed=seed)
        for score in rng.lognormal(0, 0.2, before):
            test.add(score)
        count = 0
        while test.peak < 100:
            test.add(factor * rng.lognormal(0, 0.2))
            count += 1
            assert count < 100
        delays.append(count)
    assert np.median(delays) <= 20


def test_of_many_values_a_sample_is_kept_and_the_promise_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedvad.evaluation.drift._SAMPLE", 200)
    alarms = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        test = RankTest(rng.lognormal(0, 0.2, 40).tolist(), seed=seed)
        for score in rng.lognormal(0, 0.2, 1000):
            test.add(score)
        assert len(test._sorted) == 200
        alarms += test.peak >= 100
    assert alarms == 0
    while test.peak < 100:  # and a shift is still found
        test.add(1.4 * rng.lognormal(0, 0.2))
    assert test._n < 1100


def test_twice_the_share_of_stopped_images_is_found() -> None:
    rng = np.random.default_rng(0)
    test, count = ShareTest(0.1), 0
    while test.peak < 100:
        test.add(rng.random() < 0.3)
        count += 1
    assert count <= 60


def test_equal_values_are_no_change_and_another_constant_is_one() -> None:
    test = RankTest([0.0] * 40)
    for _ in range(100):
        test.add(0.0)
    assert test.peak < 20
    for _ in range(20):
        test.add(1.0)
    assert test.peak > 100


def test_the_figures_of_an_evaluation_say_how_far_normal_scores_moved() -> None:
    rng = np.random.default_rng(1)
    then = rng.lognormal(0, 0.2, 128).tolist()
    moved = drift(then, 1.4 * rng.lognormal(0, 0.2, 32))
    assert moved is not None
    assert moved.drifted
    assert moved.p <= 0.01
    assert moved.ratio == pytest.approx(1.4, rel=0.1)
    stayed = drift(then, rng.lognormal(0, 0.2, 32))
    assert stayed is not None
    assert not stayed.drifted
    tiny = drift(rng.normal(10, 0.1, 500).tolist(), rng.normal(10.2, 0.1, 500))
    assert tiny is not None
    assert tiny.p <= 0.01  # certain, and of no use to anybody
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
    assert exact.value <= shared.value <= exact.value * 10 ** (6 / BINS) * (1 + 1e-9)
    assert shared.n == len(scores)


def test_too_few_scores_or_scores_beyond_the_bins_give_none() -> None:
    assert threshold_of_counts(count([1.0] * 98), 0.01) is None
    assert threshold_of_counts(count([1.0] * 99), 0.01) is not None
    assert threshold_of_counts(count([1e9] * 99), 0.01) is None
    assert threshold_of_counts(count([1e-5] * 99), 0.01) is None  # no edge of its bin is near it
    with pytest.raises(DataError):
        count([float("nan")])
