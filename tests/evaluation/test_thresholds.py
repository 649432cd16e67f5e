from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from fedvad.errors import ConfigError, DataError
from fedvad.evaluation.thresholds import (
    Threshold,
    achieved,
    conformal_threshold,
    images_needed,
    promise,
    promise_in_words,
)


def test_conformal_rank_by_hand():
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 100.0))  # 1 ... 99
    assert conformal_threshold(scores, 0.01) == Threshold(99.0, 99, "conformal", 0.01)
    assert conformal_threshold(scores, 0.05).value == 95.0
    assert conformal_threshold(scores, 0.29).value == 71.0  # 72 if (n + 1)(1 - alpha) ran in floats
    assert conformal_threshold(scores, 0.5).value == 50.0
    assert conformal_threshold(scores[:19], 0.05).method == "conformal"
    assert conformal_threshold(scores[:18], 0.05).method == "log-normal-tail"


@pytest.mark.parametrize(("n", "target"), [(99, 0.01), (50, 0.05), (19, 0.05), (200, 0.013)])
def test_conformal_rate_is_met_on_average_whatever_the_distribution(n, target):
    rng = np.random.default_rng(n)
    rates = []
    for _ in range(1500):
        # Uniform ranks are the general case: the rate of a threshold u is exactly 1 - u.
        found = conformal_threshold(rng.random(n), target)
        assert found.method == "conformal"
        rates.append(1 - found.value)
    slack = 4 * np.std(rates) / np.sqrt(len(rates))
    assert target - 1 / (n + 1) - slack <= np.mean(rates) <= target + slack


@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.0])
@pytest.mark.parametrize(("n", "target"), [(5, 0.01), (25, 0.01), (60, 0.01), (10, 0.05)])
def test_tail_rate_on_log_normal_scores(sigma, n, target):
    rng = np.random.default_rng(n)
    rates = []
    for _ in range(400):
        found = conformal_threshold(rng.lognormal(2.0, sigma, n), target)
        assert found.method == "log-normal-tail"
        rates.append(stats.norm.sf((np.log(found.value) - 2.0) / sigma))
    assert 0.5 * target <= np.mean(rates) <= 1.5 * target


def test_tail_bound_by_hand():
    scores = np.exp([1.0, 2.0, 3.0])  # mean 2, s 1
    expected = np.exp(2 + stats.t.ppf(0.95, 2) * np.sqrt(4 / 3))
    assert conformal_threshold(scores, 0.05).value == pytest.approx(expected)
    found = conformal_threshold([-1.0, 0.0, 1.0], 0.05)
    assert found.method == "normal-tail"
    assert found.value == pytest.approx(stats.t.ppf(0.95, 2) * np.sqrt(4 / 3))


def test_a_copy_of_a_training_image_does_not_silence_the_alarm():
    scores = np.random.default_rng(0).lognormal(0, 0.1, 25)
    clean = conformal_threshold(scores, 0.01).value
    for low in (0.0, 1e-9):
        scores[0] = low
        found = conformal_threshold(scores, 0.01)
        assert found.method == "log-normal-tail"
        assert clean / 1.1 < found.value < 4 * clean


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=60),
    st.floats(0.001, 0.5),
)
@example([1.0, 1.0, 2.0], 0.24)  # whose bound lies below the largest
def test_thresholds_are_finite_and_a_tail_is_never_below_the_largest_score(scores, target):
    found = conformal_threshold(scores, target)
    assert np.isfinite(found.value)
    assert found.n == len(scores)
    if found.method == "conformal":
        assert found.value in scores
        assert achieved(scores, np.zeros(len(scores)), found)[0] <= target
    else:
        assert found.value >= max(scores)
        assert achieved(scores, np.zeros(len(scores)), found) == (0.0, None)


def test_scaling_the_scores_scales_the_threshold():
    scores = np.random.default_rng(0).gamma(9, size=25)
    one, ten = conformal_threshold(scores, 0.01), conformal_threshold(10 * scores, 0.01)
    assert ten.value == pytest.approx(10 * one.value)


def test_equal_scores_are_their_own_threshold():
    assert conformal_threshold(np.full(5, 0.3), 0.01).value == pytest.approx(0.3)
    assert conformal_threshold(np.zeros(5), 0.01).value == 0.0


def test_extreme_scores_stay_finite():
    assert np.isfinite(conformal_threshold([1e-300, 1.0, 1e300], 0.001).value)


def test_achieved_by_hand():
    scores, labels = [1.0, 2.0, 3.0, 2.0, 4.0], [0, 0, 0, 1, 1]
    assert achieved(scores, labels, 2.0) == (1 / 3, 1 / 2)  # a score at the threshold passes
    assert achieved(scores, labels, Threshold(0.0, 3, "conformal", 0.5)) == (1.0, 1.0)
    assert achieved([1.0], [0], 2.0) == (0.0, None)
    assert achieved([1.0], [1], 2.0) == (None, 0.0)
    assert achieved([], [], 2.0) == (None, None)
    # float32 scores are not compared with a limit rounded onto them
    assert achieved(np.array([0.1], np.float32), [1], 0.1) == (None, 1.0)


@pytest.mark.parametrize("target", [0.0, -0.1, 0.51, 1.0, float("nan")])
def test_bad_target_is_refused(target):
    with pytest.raises(ConfigError, match="target_fpr"):
        conformal_threshold(np.arange(10.0), target)


def test_bad_scores_are_refused():
    with pytest.raises(DataError, match="hold out at least 3"):
        conformal_threshold([1.0, 2.0], 0.1)
    with pytest.raises(DataError, match="NaN"):
        conformal_threshold([1.0, 2.0, np.nan], 0.1)


def test_importing_the_room_loads_neither_scipy_nor_scikit_learn_nor_torch():
    names = ", ".join(
        f"fedvad.evaluation.{name}" for name in ("metrics", "aupro", "bootstrap", "thresholds")
    )
    code = f"import sys, {names}; print(sorted({{'scipy', 'sklearn', 'torch'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_promise_by_hand():
    assert promise(24).rate == pytest.approx(1 - 0.05 ** (1 / 24))
    # order statistics: the rate above the k-th of n scores is Beta(n - k + 1, k)
    assert promise(99, 4).rate == pytest.approx(stats.beta.ppf(0.95, 5, 95))
    assert promise(5, 5).rate == 1
    assert promise(0).rate == 1
    for needed in (images_needed(0.01, 0.95), images_needed(0.05, 0.95)):
        target = 0.01 if needed == 299 else 0.05
        assert promise(needed).rate <= target < promise(needed - 1).rate
    assert (images_needed(0.01), images_needed(0.05), images_needed(0.05, 0.95)) == (99, 19, 59)
    with pytest.raises(ConfigError, match="confidence"):
        promise(24, confidence=1)
    with pytest.raises(ConfigError, match="25 of 24"):
        promise(24, 25)


@pytest.mark.parametrize(("n", "rank"), [(24, 24), (60, 58)])
def test_a_promise_is_kept_as_often_as_it_says(n, rank):
    rng = np.random.default_rng(n)
    limits = np.sort(rng.random((4000, n)), axis=1)[:, rank - 1]
    kept = np.mean(1 - limits <= promise(n, n - rank).rate)
    assert kept == pytest.approx(0.95, abs=0.015)


def test_a_threshold_promises_what_its_scores_allow():
    scores = tuple(np.linspace(1, 2, 24))
    assert Threshold(2.5, 24, "federated", 0.01, scores).promise == promise(24)
    assert Threshold(1.99, 24, "federated", 0.01, scores).promise == promise(24, 1)
    assert Threshold(2.5, 24, "conformal", 0.01).promise is None


def test_a_promise_in_words():
    assert promise_in_words(promise(24), 0.01) == (
        "24 normal images promise at most 11.7 % false alarms with 95 % confidence; to promise 1 % "
        "takes 99 images on average, 299 with 95 % confidence."
    )
