from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from fedvad.errors import ConfigError
from fedvad.memory.coreset import CandidateSampler, k_center


def blobs(n: int, dim: int = 16, *, centres: int = 30, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(centres, dim)) * 3
    return (means[rng.integers(centres, size=n)] + rng.normal(size=(n, dim))).astype(np.float32)


def plain_greedy(points: np.ndarray, m: int, first: int | None, initial=None) -> list[int]:
    exact = points.astype(np.float64)
    chosen = [] if first is None else [first]
    centres = exact[chosen] if initial is None else initial.astype(np.float64)
    distances = np.min([((exact - centre) ** 2).sum(1) for centre in centres], axis=0)
    while len(chosen) < m:
        farthest = int(distances.argmax())
        if distances[farthest] == 0:
            break
        chosen.append(farthest)
        distances = np.minimum(distances, ((exact - exact[farthest]) ** 2).sum(1))
    return chosen


def seeded_first(n: int, seed: int) -> int:
    return int(torch.randint(n, (1,), generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [200, 513, 3000])
def test_choice_is_that_of_the_plain_greedy_loop(n, seed):
    points = blobs(n, seed=seed)
    found = k_center(points, 150, seed=seed)
    assert found.indices.tolist() == plain_greedy(points, 150, seeded_first(n, seed))


@pytest.mark.parametrize("seed", range(4))
def test_choice_goes_on_from_initial_centres_like_the_plain_loop(seed):
    points, initial = blobs(2000, seed=seed), blobs(40, centres=5, seed=seed + 50)
    found = k_center(points, 120, seed=seed, initial=initial)
    assert found.indices.tolist() == plain_greedy(points, 120, None, initial)
    both = np.concatenate([initial, points[found.indices]]).astype(np.float64)
    gaps = np.linalg.norm(points[:, None] - both[None], axis=2).min(1)
    np.testing.assert_allclose(found.distances, gaps, atol=2e-2)
    assert found.radius == pytest.approx(gaps.max(), rel=1e-4)


def test_of_many_points_that_tie_none_is_taken_that_an_initial_centre_covers():
    """Corners of a cube, whose distances are whole numbers: more than the pool holds tie."""
    half = np.random.default_rng(0).integers(0, 2, (1500, 12)) - 0.5
    points = np.concatenate([half, -half]).astype(np.float32)  # of mean 0, so nothing rounds
    initial, near = points[:40], points[:3]
    found = k_center(points, 200, seed=1, initial=initial, near=near)
    assert found.indices.tolist() == plain_greedy(points, 200, None, initial)


@pytest.mark.parametrize("seed", range(3))
def test_ties_break_to_the_lower_index_beyond_the_pool(seed):
    # a small integer lattice: thousands of equal distances, each point many times over
    points = np.random.default_rng(seed).integers(0, 4, size=(2500, 4)).astype(np.float32)
    found = k_center(points, 300, seed=seed)
    expected = plain_greedy(points, 300, seeded_first(len(points), seed))
    distinct = len(np.unique(points, axis=0))
    assert len(found.indices) == min(300, distinct) == len(expected)
    # among exact ties rounding decides, so compare what greedy guarantees: the radius after each
    for m in (5, 20, 80, 200):
        lazy, plain = points[found.indices[:m]], points[expected[:m]]
        radii = [
            np.linalg.norm(points[:, None] - centres[None], axis=2).min(1).max()
            for centres in (lazy, plain)
        ]
        assert radii[0] <= radii[1] * 1.25


def test_equal_points_tie_to_the_lowest_index():
    corners = np.array([[0, 0], [10, 0], [0, 10.5], [10, 10.5]], np.float32)
    points = np.tile(corners, (300, 1))  # 300 copies of each: more ties than the pool holds
    first = seeded_first(len(points), 0)
    found = k_center(points, 9, seed=0).indices
    assert found[0] == first
    assert len(found) == 4
    assert sorted(i % 4 for i in found) == [0, 1, 2, 3]
    assert all(i < 4 for i in found[1:])


@pytest.mark.parametrize("dim", [8, 384])
def test_duplicates_are_never_chosen_twice(dim):
    distinct = np.random.default_rng(0).uniform(size=(60, dim)).astype(np.float32) + 5
    points = np.tile(distinct, (30, 1))
    found = k_center(points, 500, seed=1)
    assert len(found.indices) == 60
    assert sorted(i % 60 for i in found.indices) == list(range(60))
    assert found.radius == 0
    nothing = k_center(points, 5, seed=1, initial=distinct)
    assert len(nothing.indices) == 0
    assert nothing.radius == 0


@pytest.mark.parametrize("seed", range(8))
def test_radius_is_at_most_twice_the_optimum(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(11, 2)).astype(np.float32)
    between = np.linalg.norm(points[:, None] - points[None], axis=2)
    for m in (1, 2, 3, 4):
        best = min(between[:, list(c)].min(1).max() for c in combinations(range(11), m))
        assert best - 1e-5 <= k_center(points, m, seed=seed).radius <= 2 * best + 1e-5


def test_m_beyond_n_takes_every_point_once():
    points = blobs(40)
    for m in (40, 41, 1000):
        found = k_center(points, m, seed=3)
        assert sorted(found.indices.tolist()) == list(range(40))
        assert found.radius == 0


def test_radius_falls_with_m_and_choices_are_nested():
    points = blobs(1500)
    found = [k_center(points, m, seed=5) for m in (1, 10, 100, 700)]
    radii = [coreset.radius for coreset in found]
    assert radii == sorted(radii, reverse=True)
    assert radii[-1] < 0.7 * radii[0]
    for small, large in pairwise(found):
        np.testing.assert_array_equal(small.indices, large.indices[: len(small.indices)])


def test_same_seed_same_choice_and_input_is_left_alone():
    points = blobs(1000)
    before = points.copy()
    first, again = (k_center(points, 50, seed=9, projection=8) for _ in range(2))
    np.testing.assert_array_equal(first.indices, again.indices)
    np.testing.assert_array_equal(points, before)
    assert first.indices[0] != k_center(points, 50, seed=10).indices[0]


def test_projection_still_covers():
    points = blobs(3000, dim=256, centres=60)

    def radius(indices: np.ndarray) -> float:
        return max(
            float(np.linalg.norm(points[indices] - point, axis=1).min()) for point in points[::7]
        )

    exact = radius(k_center(points, 100, seed=0).indices)
    projected = radius(k_center(points, 100, seed=0, projection=64).indices)
    random = radius(np.random.default_rng(0).permutation(3000)[:60])
    assert projected <= 1.1 * exact
    assert random > 1.3 * projected


def test_empty_requests_are_refused():
    with pytest.raises(ConfigError, match="at least one"):
        k_center(blobs(5), 0, seed=0)
    with pytest.raises(ConfigError, match="points"):
        k_center(np.zeros((0, 3), np.float32), 2, seed=0)


def sample(n_images=20, grid=(8, 8), dim=4, *, fraction=0.25, max_bytes=1 << 20, seed=0):
    sampler = CandidateSampler(
        n_images=n_images,
        patches_per_image=grid[0] * grid[1],
        dim=dim,
        fraction=fraction,
        max_bytes=max_bytes,
        seed=seed,
    )
    cells = np.arange(grid[0] * grid[1], dtype=np.float16).reshape(*grid, 1)
    for image in range(n_images):
        sampler.add(np.concatenate([cells, np.full((*grid, dim - 1), image, np.float16)], axis=2))
    return sampler.result()


def test_every_image_gives_the_same_number_of_distinct_patches():
    rows = sample()
    assert rows.dtype == np.float32
    assert np.unique(rows[:, 1], return_counts=True)[1].tolist() == [16] * 20
    assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.parametrize("max_bytes", [64, 100, 1000, 4000, 100_000])
def test_byte_budget_holds_however_many_images_come(max_bytes):
    rows = sample(max_bytes=max_bytes)
    assert 0.5 * min(max_bytes, 20 * 16 * 16) < rows.nbytes <= max_bytes
    assert len(np.unique(rows[:, 1])) == min(20, max_bytes // 16)


def test_positions_are_uniform():
    counts = np.bincount(sample(600, fraction=0.2)[:, 0].astype(int), minlength=64)
    # drawn without replacement within an image, so chi-square is conservative
    assert stats.chisquare(counts).pvalue > 1e-3
    assert counts.reshape(8, 8).sum(0).min() > 0.9 * counts.sum() / 8


def test_sample_depends_on_the_seed_only():
    np.testing.assert_array_equal(sample(seed=4), sample(seed=4))
    assert not np.array_equal(sample(seed=4), sample(seed=5))


def test_sampler_refuses_what_it_was_not_made_for():
    with pytest.raises(ConfigError, match="fraction"):
        sample(fraction=0)
    with pytest.raises(ConfigError, match="hold no patch"):
        sample(max_bytes=15)
    sampler = CandidateSampler(
        n_images=1, patches_per_image=4, dim=2, fraction=1, max_bytes=999, seed=0
    )
    sampler.add(np.zeros((2, 2, 2), np.float16))
    with pytest.raises(ConfigError, match="made for 1"):
        sampler.add(np.zeros((2, 2, 2), np.float16))
