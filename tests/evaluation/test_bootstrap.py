from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedvad.data.folders import ImageItem, ImageSet
from fedvad.errors import ConfigError, DataError
from fedvad.evaluation import bootstrap
from fedvad.evaluation.bootstrap import Interval, mean_paired_gain, paired_gain
from fedvad.evaluation.sites import SiteResult, gains


def site(seed, n=200, lift_a=1.5, lift_b=0.8):
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 3 == 0).astype(int)
    common = rng.normal(size=n)
    noise = rng.normal(size=(2, n))
    a, b = common + noise + labels * np.array([[lift_a], [lift_b]])
    return a.astype(np.float32), np.round(b, 1).astype(np.float32), labels


def test_gain_is_the_difference_of_aurocs_and_lies_inside():
    for seed in range(5):
        a, b, labels = site(seed, n=60)
        interval = paired_gain(a, b, labels, n=200)
        expected = roc_auc_score(labels, a) - roc_auc_score(labels, b)
        assert interval.gain == pytest.approx(expected, abs=1e-12)
        assert interval.low < interval.gain < interval.high


def test_equals_a_resampling_done_by_hand():
    a, b, labels = site(3, n=30)
    rng = np.random.default_rng([7, 0])
    hit, miss = np.flatnonzero(labels), np.flatnonzero(1 - labels)
    drawn_hit = hit[rng.integers(0, hit.size, (50, hit.size))]
    drawn_miss = miss[rng.integers(0, miss.size, (50, miss.size))]
    gains = []
    for rows in np.hstack([drawn_hit, drawn_miss]):
        gains.append(roc_auc_score(labels[rows], a[rows]) - roc_auc_score(labels[rows], b[rows]))
    interval = paired_gain(a, b, labels, n=50, seed=7, level=0.9)
    assert (interval.low, interval.high) == pytest.approx(np.quantile(gains, [0.05, 0.95]))


def test_equal_ranks_give_a_zero_width_interval():
    a, _, labels = site(0)
    assert paired_gain(a, a, labels) == Interval(0.0, 0.0, 0.0)
    assert paired_gain(a, np.exp(a.astype(float)), labels) == Interval(0.0, 0.0, 0.0)


def test_swapping_the_two_turns_the_interval_round():
    a, b, labels = site(0)
    one, other = paired_gain(a, b, labels), paired_gain(b, a, labels)
    assert (other.gain, other.low, other.high) == pytest.approx((-one.gain, -one.high, -one.low))


def test_one_seed_one_answer():
    a, b, labels = site(0)
    assert paired_gain(a, b, labels, seed=4) == paired_gain(a, b, labels, seed=4)
    assert paired_gain(a, b, labels, seed=4) != paired_gain(a, b, labels, seed=5)


def test_higher_level_is_wider_and_a_tiny_level_still_holds_the_gain():
    a, b, labels = site(1)
    narrow, wide = (paired_gain(a, b, labels, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high
    tiny = paired_gain(a, b, labels, level=1e-6)
    assert tiny.low <= tiny.gain <= tiny.high


def test_blocks_do_not_change_the_answer(monkeypatch):
    a, b, labels = site(2)
    whole = paired_gain(a, b, labels, n=50)
    monkeypatch.setattr(bootstrap, "_BLOCK", 500)
    assert paired_gain(a, b, labels, n=50) == whole


def test_interval_covers_the_true_gain_about_as_often_as_it_says():
    from scipy.stats import norm

    # both score = common + noise + lift * label, so AUROC = Phi(lift / 2)
    truth = norm.cdf(1.5 / 2) - norm.cdf(0.8 / 2)
    covered = 0
    for seed in range(150):
        found = paired_gain(*site(seed, n=120), n=200, level=0.9)
        covered += found.low <= truth <= found.high
    assert 0.82 <= covered / 150 <= 0.97


def test_mean_over_sites():
    sites = [site(seed, n=80) for seed in range(4)]
    single = [paired_gain(*one) for one in sites]
    mean = mean_paired_gain(sites)
    assert mean.gain == pytest.approx(np.mean([one.gain for one in single]))
    assert mean.low < mean.gain < mean.high
    # independent sites: the mean varies about half as much as one of four sites
    widths = np.array([one.high - one.low for one in single])
    expected = np.sqrt(np.mean(widths**2) / 4)
    assert mean.high - mean.low == pytest.approx(expected, rel=0.15)


def test_is_fast():
    a, b, labels = site(0)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        paired_gain(a, b, labels, n=1000)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.5


def test_bad_input_is_refused():
    a, b, labels = site(0)
    with pytest.raises(DataError, match="site 1 has images of one class"):
        mean_paired_gain([(a, b, labels), (a, b, labels * 0)])
    with pytest.raises(DataError, match="no site"):
        mean_paired_gain([])
    with pytest.raises(DataError, match="one label per score"):
        paired_gain(a, b[:-1], labels)
    with pytest.raises(ConfigError, match="resample"):
        paired_gain(a, b, labels, n=0)
    with pytest.raises(ConfigError, match="level"):
        paired_gain(a, b, labels, level=95)


def test_gains_pair_the_images_that_both_could_read() -> None:
    def result(seen: list[int], scores: list[float]) -> SiteResult:
        items = tuple(ImageItem(Path(f"{i}.png"), int(i >= 4), "", None) for i in seen)
        nothing: dict[str, Any] = dict.fromkeys(
            ("threshold", "average_precision", "oracle_f1", "pixel_auroc", "aupro", "fpr", "recall")
        )
        return SiteResult(
            "a", ImageSet(items), np.array(scores), np.zeros((len(seen), 1, 1), np.float32),
            image_auroc=1.0, **nothing,
        )  # fmt: skip

    ours = result([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    # as many images, but others: the same scores where both could read
    theirs = result([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6])
    found = gains([ours], [theirs], seed=0)
    assert found is not None
    assert (found.mean.low, found.mean.high) == (0, 0)
    assert gains([ours], [result([0, 1, 2], [0, 1, 2])], seed=0) is None
