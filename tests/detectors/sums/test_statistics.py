"""What one image can change: found by brute force, and held against the bound."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from fedvad.detectors.scoring import ScoringConfig
from fedvad.detectors.sums.gaussian import Gaussian, SumsScorer
from fedvad.detectors.sums.statistics import Space, image_mean, image_scatter, unpacked_scatter

PLAIN = ScoringConfig(smooth=1, top=0.0)


def _images(seed: int) -> list[np.ndarray]:
    """Ordinary images, and the most extreme ones: flat, of one axis each, huge, tiny, striped."""
    rng = np.random.default_rng(seed)
    flat = [np.broadcast_to(axis, (4, 4, 6)).astype(np.float32) for axis in np.eye(6)]
    striped = np.where(np.arange(4)[:, None, None] % 2, np.eye(6)[0], -np.eye(6)[0])
    return [
        *rng.normal(size=(12, 4, 4, 6)).astype(np.float32), *flat, *(-f for f in flat),
        1e4 * flat[0], 1e-4 * flat[1], np.broadcast_to(striped, (4, 4, 6)).astype(np.float32),
    ]  # fmt: skip


@pytest.mark.parametrize(("dimensions", "grid"), [(6, 1), (3, 1), (4, 2)])
def test_one_image_in_place_of_another_never_changes_a_sum_beyond_the_bound(
    dimensions: int, grid: int
) -> None:
    space = Space.of(6, dimensions, grid)
    images = [space.points(image) for image in _images(0)]
    centre = np.random.default_rng(1).normal(size=(space.cells, space.size))
    means = [image_mean(*image, space) for image in images]
    scatters = [image_scatter(*image, space, centre, 0.7) for image in images]
    changes = [(np.linalg.norm(a - b), 2.0) for a, b in product(means, means)]
    changes += [(np.linalg.norm(a - b), 0.7 * 2**0.5) for a, b in product(scatters, scatters)]
    assert all(change <= bound + 1e-9 for change, bound in changes)
    if (dimensions, grid) == (6, 1):  # and the bound of the means is met
        assert max(change for change, bound in changes if bound == 2.0) > 1.99


def test_the_bound_of_scatters_is_met_by_images_along_different_axes() -> None:
    space = Space.of(6, 6)
    one, two = (
        image_scatter(*space.points(np.broadcast_to(axis, (4, 4, 6))), space, np.zeros((1, 6)), 0.5)
        for axis in np.eye(6)[:2]
    )
    assert np.linalg.norm(one - two) == pytest.approx(0.5 * 2**0.5)


def test_patches_have_length_one_on_average_and_distances_are_kept() -> None:
    rng = np.random.default_rng(0)
    space = Space.of(300, 100)
    points, _ = space.points(rng.normal(size=(20, 20, 300)).astype(np.float32))
    assert np.linalg.norm(points, axis=1).mean() == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(space.projection.T @ space.projection, 3 * np.eye(100), atol=1e-5)


def test_patches_outside_the_region_and_parts_of_the_image() -> None:
    image = np.ones((4, 4, 6), np.float32)
    image[0] = np.nan
    points, cells = Space.of(6, 6, 2).points(image)
    assert len(points) == 12
    assert cells.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]


def test_triangles_hold_the_covariance() -> None:
    rng = np.random.default_rng(0)
    space = Space.of(6, 6)
    points, cells = space.points(rng.normal(size=(8, 8, 6)))
    mean = points.mean(0, keepdims=True)
    packed = image_scatter(points, cells, space, mean, 9.0)
    np.testing.assert_allclose(unpacked_scatter(packed, 6)[0], np.cov(points.T, bias=True))
    assert np.linalg.norm(packed) == pytest.approx(np.linalg.norm(np.cov(points.T, bias=True)))


def test_scores_are_mahalanobis_distances_and_noise_quiets_what_drowns_in_it() -> None:
    rng = np.random.default_rng(0)
    space = Space.of(6, 6)
    image = rng.normal(size=(40, 40, 6)) * [9, 9, 9, 9, 9, 1] + [0, 0, 0, 0, 9, 9]
    points, cells = space.points(image)
    mean = image_mean(points, cells, space)
    scatter = image_scatter(points, cells, space, mean, 9.0)
    exact = SumsScorer(space, Gaussian(mean, scatter, 5), PLAIN)
    noisy = SumsScorer(space, Gaussian(mean, scatter, 5, noise=0.05), PLAIN)
    _, map_ = exact.score(image)
    assert np.mean(map_**2) == pytest.approx(1, abs=0.1)
    quiet = noisy.score(image)[1]
    assert np.mean(quiet) < 0.8 * np.mean(map_)


@pytest.mark.parametrize("gone", [[2], [0, 2, 4]])
def test_images_are_taken_out_exactly(gone: list[int]) -> None:
    space = Space.of(6, 4)
    images = [space.points(image) for image in _images(3)[:5]]
    means = np.stack([image_mean(*image, space) for image in images])
    centre = means.mean(0)
    scatters = np.stack([image_scatter(*image, space, centre, 0.3) for image in images])
    left = Gaussian(centre, scatters.mean(0), 5, 0.3).without([images[i] for i in gone], space)
    others = [i for i in range(5) if i not in gone]
    np.testing.assert_allclose(left.mean, means[others].mean(0), atol=1e-12)
    np.testing.assert_allclose(left.scatter, scatters[others].mean(0), atol=1e-12)
    assert left.images == len(others)
