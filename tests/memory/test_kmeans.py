from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.cluster import KMeans

from fedvad.errors import ConfigError
from fedvad.memory.bank import MemoryBank
from fedvad.memory.kmeans import _lloyd, kmeans_plus_plus, weighted_kmeans


def blobs(n: int = 900, dim: int = 5, centres: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(centres, dim)) * 6
    return (means[rng.integers(centres, size=n)] + rng.normal(size=(n, dim))).astype(np.float32)


def weighted_bank(points: np.ndarray, seed: int = 0) -> MemoryBank:
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 6, len(points)).astype(float)
    return MemoryBank(points, weights, rng.uniform(0, 1, len(points)).astype(np.float32))


def inertia(points: np.ndarray, weights: np.ndarray, centres: np.ndarray) -> float:
    gaps = ((points[:, None].astype(np.float64) - centres[None]) ** 2).sum(2).min(1)
    return float(gaps @ weights)


@pytest.mark.parametrize("seed", range(3))
def test_integer_weights_are_duplicated_rows_from_the_same_start(seed):
    points = blobs(seed=seed)
    times = np.random.default_rng(seed).integers(1, 5, len(points))
    start = torch.from_numpy(points[:: len(points) // 12][:12].copy())
    loss, label = _lloyd(
        torch.from_numpy(points), torch.from_numpy(times.astype(float)), start, 100, 1e-4
    )
    repeated = np.repeat(points, times, axis=0)
    ones = torch.ones(len(repeated), dtype=torch.float64)
    again, copies = _lloyd(torch.from_numpy(repeated), ones, start, 100, 1e-4)
    assert loss == pytest.approx(again, rel=1e-6)
    np.testing.assert_array_equal(np.repeat(label.numpy(), times), copies.numpy())


@pytest.mark.parametrize("k", [5, 12, 40])
def test_inertia_is_as_good_as_scikit_learns(k):
    bank = weighted_bank(blobs())
    ours = inertia(bank.vectors, bank.weights, weighted_kmeans(bank, k, seed=0).vectors)
    reference = KMeans(k, n_init=3, random_state=0).fit(bank.vectors, sample_weight=bank.weights)
    assert ours <= 1.04 * reference.inertia_


def test_vectors_weights_and_spread_describe_the_rows_they_stand_for():
    bank = weighted_bank(blobs())
    merged = weighted_kmeans(bank, 12, seed=1)
    assert len(merged) == 12
    assert merged.total_weight == pytest.approx(bank.total_weight)
    label = ((bank.vectors[:, None] - merged.vectors[None]) ** 2).sum(2).argmin(1)
    for i in range(12):
        rows = bank.take(label == i)
        assert merged.weights[i] == rows.total_weight
        mean = rows.weights @ rows.vectors / rows.total_weight
        np.testing.assert_allclose(merged.vectors[i], mean, atol=1e-4)
        scatter = ((rows.vectors - mean) ** 2).sum(1) + rows.spread.astype(float) ** 2
        rms = np.sqrt(rows.weights @ scatter / rows.total_weight)
        assert merged.spread[i] == pytest.approx(rms, rel=1e-4)


@pytest.mark.parametrize("k", [900, 901, 5000])
def test_enough_room_returns_the_rows(k):
    bank = weighted_bank(blobs())
    assert weighted_kmeans(bank, k, seed=0) is bank


def test_order_of_rows_is_irrelevant_to_the_bit():
    bank = weighted_bank(np.round(blobs()))  # with equal vectors of different weights
    reference = weighted_kmeans(bank, 20, seed=3)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(bank))
        shuffled = weighted_kmeans(bank.take(order), 20, seed=3)
        np.testing.assert_array_equal(shuffled.vectors, reference.vectors)
        np.testing.assert_array_equal(shuffled.weights, reference.weights)
        np.testing.assert_array_equal(shuffled.spread, reference.spread)
    assert not np.array_equal(weighted_kmeans(bank, 20, seed=4).vectors, reference.vectors)


def test_cells_far_from_the_origin_are_as_good():
    bank = weighted_bank(blobs() + 2000)
    ours = inertia(bank.vectors, bank.weights, weighted_kmeans(bank, 12, seed=0).vectors)
    reference = KMeans(12, n_init=3, random_state=0).fit(
        bank.vectors.astype(np.float64), sample_weight=bank.weights
    )
    assert ours <= 1.04 * reference.inertia_


def test_empty_cells_are_refilled_where_the_loss_is():
    points = torch.tensor([[0.0], [0.1], [10], [10.1], [50], [50.1]])
    start = torch.tensor([[0.0], [500.0], [600.0]])  # two centres that nothing is nearest to
    loss, label = _lloyd(points, torch.ones(6).double(), start, 100, 1e-4)
    # 50.1 lies farthest, then 10.1; one pair is left to the mean of the first cell at most
    assert label.tolist() == [label[0]] * 2 + [label[2]] * 2 + [label[4]] * 2
    assert len(set(label.tolist())) == 3
    assert loss == pytest.approx(0.015, abs=0.01)


@pytest.mark.parametrize("dim", [2, 64])
@pytest.mark.parametrize("distinct", [1, 2, 7])
def test_fewer_distinct_rows_than_k_give_just_those(distinct, dim):
    rows = np.random.default_rng(0).uniform(1, 2, size=(distinct, dim)).astype(np.float32)
    bank = weighted_bank(np.tile(rows, (20, 1)))
    merged = weighted_kmeans(bank, 15, seed=0)
    assert len(merged) == distinct
    assert merged.total_weight == pytest.approx(bank.total_weight)
    gaps = np.abs(merged.vectors[:, None] - rows[None]).max(2).min(1)
    assert gaps.max() < 1e-6


def test_a_heavy_row_gets_a_cell_of_its_own():
    points = np.linspace(0, 1, 50, dtype=np.float32)[:, None]
    weights = np.ones(50)
    weights[30] = 1e6
    merged = weighted_kmeans(MemoryBank(points, weights, np.zeros(50)), 3, seed=0)
    assert np.abs(merged.vectors - points[30]).min() < 1e-3


def test_tempered_weights_give_a_rare_row_a_mean_of_its_own():
    rows = np.array([[0.0], [1.0], [10.0]], np.float32)
    bank = MemoryBank(rows, np.array([1000.0, 3000.0, 1.0]), np.zeros(3))

    def means(temper: float) -> list[list[float]]:
        merged = weighted_kmeans(bank, 2, seed=0, temper=temper)
        return sorted(np.column_stack([merged.vectors, merged.weights, merged.spread]).tolist())

    # by patches the rare row is averaged away; by rows it stays, and still stands for one patch
    merged = [[0, 1000, 0], [1 + 9 / 3001, 3001, 9 / 3001**0.5]]
    np.testing.assert_allclose(means(1.0), merged, atol=1e-3)
    np.testing.assert_allclose(means(0.0), [[0.5, 4000, 0.5], [10, 1, 0]], atol=1e-6)
    # by square roots 1000 and 3000 weigh 1 to 3 ** 0.5
    assert means(0.5)[0][0] == pytest.approx(3**0.5 / (1 + 3**0.5), rel=1e-5)
    for temper in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="exponent in"):
            weighted_kmeans(bank, 2, seed=0, temper=temper)


def test_no_cells_are_refused():
    with pytest.raises(ConfigError, match="k >= 1"):
        weighted_kmeans(weighted_bank(blobs()), 0, seed=0)


def test_seeding_in_batches_samples_the_exact_distribution():
    points = np.array([[0, 0], [1, 0], [3, 1], [0, 4], [5, 5]], np.float64)
    weights = np.array([1, 2, 1, 0.5, 0.2])
    gaps = ((points[:, None] - points[None]) ** 2).sum(2)
    expected = {}
    for i in range(5):
        for j in set(range(5)) - {i}:
            second = weights[j] * gaps[i, j] / (weights @ gaps[i])
            left = weights * np.minimum(gaps[i], gaps[j])
            for k in set(range(5)) - {i, j}:
                expected[i, j, k] = weights[i] / weights.sum() * second * left[k] / left.sum()
    assert sum(expected.values()) == pytest.approx(1)
    generator = torch.Generator().manual_seed(0)
    data, mass = torch.from_numpy(points).float(), torch.from_numpy(weights)
    draws = 2000
    counts = dict.fromkeys(expected, 0)
    for _ in range(draws):
        counts[tuple(kmeans_plus_plus(data, mass, 3, generator).tolist())] += 1
    often = [key for key, p in expected.items() if p * draws >= 5]
    seen = [counts[key] for key in often] + [draws - sum(counts[key] for key in often)]
    wanted = [expected[key] * draws for key in often]
    wanted.append(draws - sum(wanted))
    assert stats.chisquare(seen, wanted).pvalue > 1e-3


def test_seeds_are_distinct_rows():
    points = torch.from_numpy(np.tile(blobs(60), (4, 1)))
    found = kmeans_plus_plus(
        points, torch.ones(240).double(), 100, torch.Generator().manual_seed(0)
    )
    assert len(found) == 60
    assert len(np.unique(points[found].numpy(), axis=0)) == 60


def test_projection_only_helps_to_find_the_cells():
    rng = np.random.default_rng(0)
    centres = 6 * rng.normal(size=(12, 40))
    label = rng.integers(0, 12, 600)
    bank = MemoryBank.of_patches((centres[label] + rng.normal(size=(600, 40))).astype(np.float32))
    merged = weighted_kmeans(bank, 12, seed=0, projection=16)
    means = np.stack([bank.vectors[label == i].mean(0) for i in range(12)])
    gaps = np.linalg.norm(merged.vectors[:, None] - means[None], axis=2)
    np.testing.assert_allclose(gaps.min(0), 0, atol=1e-4)
    assert merged.total_weight == 600
