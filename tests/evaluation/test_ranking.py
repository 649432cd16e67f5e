"""Ranks, fronts and sentences against hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvad.errors import DataError
from fedvad.evaluation.bootstrap import Interval, mean_paired_gain, mean_paired_gain_of_runs
from fedvad.evaluation.ranking import gain_over, mean_ranks, pareto_front, statement


def test_ranks_share_ties_and_need_shared_sets() -> None:
    values = {
        "a": {"x": 0.9, "y": 0.8},
        "b": {"x": 0.9, "y": 0.7},
        "c": {"x": 0.5, "y": 0.9, "z": 1.0},
    }
    assert mean_ranks(values) == {"a": 1.75, "b": 2.25, "c": 2.0}
    assert mean_ranks({"a": {"x": 1.0}, "b": {"y": 1.0}}) == {}
    assert mean_ranks({}) == {}


def test_front_by_hand() -> None:
    points = {"free": (0, 0.8), "dear": (9, 0.9), "worse": (9, 0.7), "twin": (9, 0.9)}
    assert pareto_front(points) == {"free", "dear", "twin"}


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_nothing_outside_the_front_is_undominated(points: list[tuple[int, int]]) -> None:
    named = {str(i): (float(c), float(q)) for i, (c, q) in enumerate(points)}
    front = pareto_front(named)
    assert front
    for name, (cost, quality) in named.items():
        dominated = any(
            named[f][0] <= cost and named[f][1] >= quality and named[f] != (cost, quality)
            for f in front
        )
        assert dominated == (name not in front)


def test_statement_follows_the_intervals() -> None:
    gains = {
        "a": Interval(0.1, 0.05, 0.2),
        "b": Interval(-0.1, -0.2, -0.05),
        "c": Interval(0.0, -0.1, 0.1),
        "d": None,
    }
    assert statement("ours", "theirs", gains) == (
        "ours beats theirs on 1 of 3 (a); loses to theirs on 1 of 3 (b); "
        "is not distinguishable from theirs on 1 of 3 (c)."
    )
    assert statement("ours", "theirs", {"d": None}) == "ours and theirs share no set with labels."


def _site(seed: int, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(40) % 2
    ours = rng.normal(size=40) + shift * labels
    return ours, rng.normal(size=40), labels


def test_one_run_is_the_plain_bootstrap_and_equal_runs_do_not_narrow_it() -> None:
    sites = [_site(0, 1.0), _site(1, 2.0)]
    one = mean_paired_gain(sites, seed=3)
    assert mean_paired_gain_of_runs([sites] * 4, seed=3) == pytest.approx(one)
    with pytest.raises(DataError):
        mean_paired_gain_of_runs([])


def test_runs_are_averaged() -> None:
    first, second = [_site(0, 1.0)], [_site(5, 3.0)]
    both = mean_paired_gain_of_runs([first, second])
    apart = [mean_paired_gain(run).gain for run in (first, second)]
    assert both.gain == pytest.approx(np.mean(apart))


def test_gain_needs_the_same_images_and_both_classes() -> None:
    run = {"a": {"scores": [0.1, 0.9], "labels": [0, 1]}}
    worse = {"a": {"scores": [0.9, 0.1], "labels": [0, 1]}}
    found = gain_over([run], [worse])
    assert found is not None
    assert found.gain == 1.0
    assert gain_over([run], [{"a": {"scores": [0.1, 0.9], "labels": [1, 0]}}]) is None
    normal = {"a": {"scores": [0.1, 0.9], "labels": [0, 0]}}
    assert gain_over([normal], [normal]) is None
