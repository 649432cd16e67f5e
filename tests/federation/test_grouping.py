"""Groups of alike sites from their summaries."""

from __future__ import annotations

import numpy as np
import pytest

from fedvad.errors import ConfigError, DataError
from fedvad.federation.grouping import find_groups, inlier_shares, summarise_site


def site(mean: float, seed: int, n: int = 40) -> np.ndarray:
    return mean + np.random.default_rng(seed).normal(size=(n, 60))


def test_two_populations_of_four_sites_are_two_groups_in_any_order() -> None:
    images = {f"{kind}{i}": site(4.0 * (kind == "b"), i) for i in range(4) for kind in "ab"}
    wanted = [[f"{kind}{i}" for i in range(4)] for kind in "ab"]
    for names in (sorted(images), sorted(images, reverse=True)):
        summaries = {name: summarise_site(images[name]) for name in names}
        assert find_groups(sorted(names), inlier_shares(summaries)) == wanted


def test_a_site_that_nobody_accepts_is_alone() -> None:
    images = {"a": site(0, 0), "b": site(0, 1), "other": site(5, 2)}
    summaries = {name: summarise_site(found) for name, found in images.items()}
    assert find_groups(sorted(images), inlier_shares(summaries)) == [["a", "b"], ["other"]]


def test_acceptance_is_mutual() -> None:
    """A broad site finds everything normal; that alone joins nobody to it."""
    shares = np.array([[0.9, 0.9], [0.2, 0.9]])  # most of b's images look odd to a
    assert find_groups(["a", "b"], shares) == [["a"], ["b"]]
    shares = np.array([[0.9, 0.7], [0.7, 0.9]])
    assert find_groups(["a", "b"], shares) == [["a", "b"]]
    assert find_groups(["a", "b"], shares, tolerance=0.2) == [["a"], ["b"]]


def test_a_chain_is_one_group() -> None:
    shares = np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.9], [0.1, 0.9, 1.0]])
    assert find_groups(["a", "b", "c"], shares) == [["a", "b", "c"]]


def test_a_summary_holds_moments_of_few_directions() -> None:
    images = site(0, 0, n=200)
    summary, projected = summarise_site(images)
    assert summary.nbytes == 8 * (32 + 32 * 33 // 2 + 2) < 5000
    assert projected.shape == (200, 32)
    np.testing.assert_allclose(summary.mean, projected.mean(axis=0))
    # nine in ten of new images of the same kind are within the limit
    fresh = np.random.default_rng(9).normal(size=(2000, 60))
    directions = np.random.default_rng([0, 60]).normal(size=(60, 32)) / np.sqrt(32)
    assert summary.share_within(fresh @ directions) == pytest.approx(0.9, abs=0.06)


def test_too_few_images_and_wrong_tolerances_are_refused() -> None:
    with pytest.raises(DataError, match="8 normal images or more, not 7"):
        summarise_site(site(0, 0, n=7))
    with pytest.raises(ConfigError, match="tolerance"):
        find_groups(["a"], np.ones((1, 1)), tolerance=1.0)
