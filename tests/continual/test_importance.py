"""Important features: by hand, and what training on them alone moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedvad.continual.importance import (
    conflicts,
    feature_importance,
    most_important,
    ranges_overlap,
    task_map,
)
from fedvad.detectors.student.loss import cosine_loss

CROSS = np.array([[3.0, 1], [3, -1], [-3, 1], [-3, -1]])  # variances 9 and 1


def test_importance_is_loading_times_variance_of_the_components_kept() -> None:
    np.testing.assert_allclose(feature_importance(CROSS, kept=0.8), [9, 0], atol=1e-9)
    np.testing.assert_allclose(feature_importance(CROSS, kept=0.95), [9, 1], atol=1e-9)
    turned = CROSS @ (np.array([[1, 1], [-1, 1]]) / np.sqrt(2))
    np.testing.assert_allclose(feature_importance(turned, kept=0.8), [9 / 2**0.5] * 2)


def test_every_position_has_an_analysis_of_its_own() -> None:
    features = np.random.default_rng(0).normal(size=(9, 2, 3, 5))
    found = feature_importance(features)
    assert found.shape == (2, 3, 5)
    np.testing.assert_allclose(found[1, 2], feature_importance(features[:, 1, 2]))


def test_constant_features_are_of_no_importance() -> None:
    np.testing.assert_array_equal(feature_importance(np.ones((4, 3))), [0, 0, 0])


@pytest.mark.parametrize(("share", "count"), [(1.0, 6), (0.5, 3), (0.01, 1)])
def test_the_most_important_are_chosen(share: float, count: int) -> None:
    importance = np.array([[3.0, 1, 5], [2, 9, 4]])
    chosen = most_important(importance, share)
    assert chosen.sum() == count
    assert chosen[1, 1]
    assert importance[chosen].min() > np.max(importance[~chosen], initial=0)


def test_ranges_overlap_where_they_share_a_third() -> None:
    first = np.array([[0.0, 0, 0], [1, 1, 1]])
    other = np.array([[0.5, 0.9, 0.2], [1.5, 2, 0.6]])
    # in common over both together: 0.5 / 1.5, 0.1 / 2, 0.4 / 1
    assert ranges_overlap(first, other) == pytest.approx(2 / 3)
    assert conflicts({"a": first, "b": other, "c": first})["a", "c"] == 1


def test_tasks_far_apart_stay_apart_in_the_plane() -> None:
    rng = np.random.default_rng(1)
    features = {"a": rng.normal(size=(12, 6)), "b": rng.normal(size=(12, 6)) + 40}
    points = task_map(features, seed=0)
    np.testing.assert_array_equal(points["a"], task_map(features, seed=0)["a"])
    apart = np.linalg.norm(points["a"].mean(0) - points["b"].mean(0))
    assert apart > 2 * np.linalg.norm(points["a"] - points["a"].mean(0), axis=1).mean()


def test_a_masked_loss_moves_the_features_chosen_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(2, 4, 3, 3, generator=generator) for _ in range(2))
    whole = cosine_loss([teacher], [student])
    assert float(cosine_loss([teacher], [student], masks=[torch.ones(4, 3, 3)])) == float(whole)
    mask = torch.zeros(4, 3, 3)
    mask[1, 2, 0] = 36  # 1 / share
    t, s = (m / m.norm(dim=1, keepdim=True) for m in (teacher, student))
    wanted = 0.5 * ((t - s)[:, 1, 2, 0] ** 2).sum() * 36 / (2 * 9)
    student.requires_grad_()
    loss = cosine_loss([teacher], [student], masks=[mask])
    assert float(loss.detach()) == pytest.approx(float(wanted), rel=1e-5)
    loss.backward()
    assert student.grad is not None
    moved = student.grad.abs().sum((0, 1)) > 0
    assert moved.nonzero().tolist() == [[2, 0]]
