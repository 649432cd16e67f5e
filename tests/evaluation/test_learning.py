"""Whether a held-out loss still falls, on curves whose end is known."""

from __future__ import annotations

import numpy as np
import pytest

from fedvad.evaluation.learning import still_falling

STEPS = list(range(50, 1050, 50))


def test_a_curve_that_settles_is_finished_and_one_that_falls_by_a_power_is_not() -> None:
    steps = np.array(STEPS, float)
    assert still_falling(STEPS, (0.2 + np.exp(-steps / 60)).tolist()) is None
    fall = still_falling(STEPS, (3 * steps**-0.5).tolist())
    assert fall == pytest.approx(1 - 0.5**0.5, abs=0.04)
    assert still_falling(STEPS, (1 - steps / 2000).tolist()) == pytest.approx(0.31, abs=0.03)


def test_noise_a_jump_and_a_rise_are_no_fall() -> None:
    noise = 0.3 * (1 + 0.03 * np.random.default_rng(0).standard_normal(20))
    assert still_falling(STEPS, noise.tolist()) is None
    jump = [0.3] * 20
    jump[8] = 3.0  # one bad measurement before the middle
    assert still_falling(STEPS, jump) is None
    assert still_falling(STEPS, np.linspace(0.3, 0.5, 20).tolist()) is None


def test_measurements_may_lie_apart_and_few_say_nothing() -> None:
    assert still_falling([3, 6], [2.0, 1.0]) is None
    assert still_falling([], []) is None
    assert still_falling([1, 2, 4, 8, 1000], [1.0, 0.9, 0.8, 0.7, 0.1]) is not None
