"""The loss and the maps, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedvad.detectors.student.loss import combine_maps, cosine_loss, level_maps
from fedvad.errors import ConfigError

# at four positions: equal direction, right angle, opposite, 45 degrees
TEACHER = torch.tensor([[[[1.0, 2.0], [3.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]])
STUDENT = torch.tensor([[[[5.0, 0.0], [-1.0, 1.0]], [[0.0, 4.0], [0.0, 1.0]]]])
BY_HAND = torch.tensor([[[0.0, 1.0], [2.0, 1 - math.sqrt(0.5)]]])


def _draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_level_is_one_minus_the_cosine_at_each_position() -> None:
    torch.testing.assert_close(level_maps([TEACHER], [STUDENT])[0], BY_HAND)


def test_the_loss_is_the_sum_over_all_levels_of_the_mean_over_positions() -> None:
    second = (_draw(0, 1, 3, 1, 1), _draw(1, 1, 3, 1, 1))
    cosine = float(torch.cosine_similarity(*second, dim=1))
    loss = cosine_loss([TEACHER, second[0]], [STUDENT, second[1]])
    expected = (0 + 1 + 2 + 1 - math.sqrt(0.5)) / 4 + (1 - cosine)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_every_level_reaches_the_student() -> None:
    """Not the last one alone, and the first one normalised as well."""
    teacher = [_draw(i, 2, 4, 3, 3) for i in range(3)]
    student = [_draw(9 + i, 2, 4, 3, 3).requires_grad_() for i in range(3)]
    cosine_loss(teacher, student).backward()  # type: ignore[no-untyped-call]
    for level in student:
        assert level.grad is not None
        assert float(level.grad.norm()) > 0
        # a loss of directions has no gradient along the feature itself
        along = (level.grad * level.detach()).sum(1)
        assert float(along.abs().max()) < 1e-6


def test_the_mean_does_not_depend_on_the_batch() -> None:
    one, four = [TEACHER], [TEACHER.repeat(4, 1, 1, 1)]
    s_one, s_four = [STUDENT], [STUDENT.repeat(4, 1, 1, 1)]
    assert float(cosine_loss(four, s_four)) == pytest.approx(float(cosine_loss(one, s_one)))


def test_equal_features_cost_nothing_and_scale_does_not_matter() -> None:
    maps = [_draw(3, 2, 5, 4, 4)]
    assert float(cosine_loss(maps, maps)) == 0
    assert float(cosine_loss(maps, [1000 * maps[0]])) == pytest.approx(0, abs=1e-6)


def test_positions_without_a_feature_stay_finite() -> None:
    student = torch.zeros(1, 4, 2, 2, requires_grad=True)
    for teacher in (torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)):
        loss = cosine_loss([teacher], [student])
        loss.backward()  # type: ignore[no-untyped-call]
        assert math.isfinite(loss.item())
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()
    assert cosine_loss([torch.zeros(1, 4, 2, 2)], [student]).item() == 0
    assert cosine_loss([torch.ones(1, 4, 2, 2)], [student]).item() == pytest.approx(0.5)


def test_a_loss_without_levels_or_with_another_number_of_them_is_refused() -> None:
    with pytest.raises(ConfigError, match="level"):
        cosine_loss([], [])
    with pytest.raises(ValueError):
        cosine_loss([TEACHER], [])


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 5))
def test_maps_lie_between_zero_and_two(seed: int, channels: int, side: int) -> None:
    map_ = level_maps(
        [_draw(seed, 2, channels, side, side)], [_draw(seed + 1, 2, channels, side, side)]
    )[0]
    assert map_.shape == (2, side, side)
    assert float(map_.min()) >= 0
    assert float(map_.max()) <= 2 + 1e-5


def test_product_is_the_geometric_mean_and_orders_as_the_product() -> None:
    levels = [_draw(i, 3, 4, 4).abs() + 0.01 for i in range(3)]
    combined = combine_maps(levels, (4, 4), "product")
    product = levels[0] * levels[1] * levels[2]
    torch.testing.assert_close(combined, product ** (1 / 3))
    np.testing.assert_array_equal(combined.flatten().argsort(), product.flatten().argsort())
    torch.testing.assert_close(
        combine_maps(levels, (4, 4), "sum"), levels[0] + levels[1] + levels[2]
    )


def test_coarse_levels_are_resized_bilinearly() -> None:
    fine, coarse = torch.ones(1, 4, 4), torch.tensor([[[1.0, 3.0], [1.0, 3.0]]])
    combined = combine_maps([fine, coarse], (4, 4), "sum")
    torch.testing.assert_close(combined[0, 0], torch.tensor([2.0, 2.5, 3.5, 4.0]))


def test_tiny_products_do_not_vanish() -> None:
    levels = [torch.full((1, 2, 2), 1e-13)] * 3
    assert float(combine_maps(levels, (2, 2), "product").max()) == pytest.approx(1e-13, rel=1e-3)
