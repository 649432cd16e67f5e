"""Forgetting of a matrix made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fedvad.continual.forgetting import (
    absolute_forgetting,
    average,
    backward_transfer,
    relative_forgetting,
    summarise_matrix,
)

NAN = float("nan")
R = np.array([[0.8, 0.9, NAN], [0.4, 0.6, NAN], [0.6, 0.3, 0.5]])


def test_by_hand() -> None:
    assert average(R, 1) == pytest.approx(0.5)
    assert average(R, 2) == pytest.approx(1.4 / 3)
    # task 0: 1 - 0.6 / 0.8; task 1: 1 - 0.3 / 0.6, or / 0.9 from before it was learned
    assert relative_forgetting(R, 2) == pytest.approx((0.25 + 0.5) / 2)
    assert relative_forgetting(R, 2, from_learned=False) == pytest.approx((0.25 + 2 / 3) / 2)
    assert absolute_forgetting(R, 2) == pytest.approx((0.2 + 0.3) / 2)
    assert backward_transfer(R, 2) == pytest.approx((-0.2 - 0.3) / 2)


def test_a_gain_is_no_forgetting_but_shows_in_the_absolute_figure() -> None:
    gained = np.array([[0.5, NAN], [0.7, 0.9]])
    assert relative_forgetting(gained, 1) == 0
    assert absolute_forgetting(gained, 1) == pytest.approx(-0.2)
    assert backward_transfer(gained, 1) == pytest.approx(0.2)


def test_nothing_to_say_of_one_task_or_of_figures_that_were_never_there() -> None:
    assert relative_forgetting(np.array([[0.5]]), 0) is None
    unmasked = np.array([[NAN, NAN], [NAN, 0.5]])  # task 0 has no masks
    assert relative_forgetting(unmasked, 1) is None
    assert average(unmasked, 0) is None
    assert average(unmasked, 1) == 0.5
    zero = np.array([[0.0, NAN], [0.0, 0.5]])
    assert relative_forgetting(zero, 1) is None


def test_the_summary_is_of_the_last_row() -> None:
    found = summarise_matrix(R)
    assert found.curve == pytest.approx((0.8, 0.5, 1.4 / 3))
    assert found.average == found.curve[-1]
    assert found.relative == relative_forgetting(R, 2)
    assert found.relative_all == relative_forgetting(R, 2, from_learned=False)
