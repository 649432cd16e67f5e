from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from fedvad.errors import ConfigError, MemoryBankError
from fedvad.memory.cells import LARGEST_K, CellIndex, Effort
from fedvad.memory.neighbours import NeighbourIndex


def memory_and_patches(m: int, n: int = 1024, dim: int = 384, seed: int = 0):
    """Clusters in a space of decaying variances, positive on the whole: like a backbone's."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(dim, dim)))[0] / np.arange(1, dim + 1)[:, None]
    centres = 3 * rng.normal(size=(300, dim))

    def draw(count: int, noise: float) -> np.ndarray:
        rows = centres[rng.integers(300, size=count)] + noise * rng.normal(size=(count, dim))
        return (rows @ axes + 0.5).astype(np.float32)

    return draw(m, 1.0), draw(n, 1.0)


def brute_force(vectors, patches, k):
    found = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(vectors.astype(np.float64))
    return found.kneighbors(patches.astype(np.float64))


@pytest.mark.parametrize("k", [1, 3, 9])
def test_exact_search_is_brute_force(k):
    vectors, patches = memory_and_patches(700, 300, 48)
    distances, indices = NeighbourIndex(vectors).query(patches, k)
    expected, rows = brute_force(vectors, patches, k)
    np.testing.assert_array_equal(indices, rows)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
    assert (distances.dtype, indices.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("m", [2000, 7500])
def test_fast_search_finds_nearly_all_and_measures_truly(m, k):
    vectors, patches = memory_and_patches(m)
    index = NeighbourIndex(vectors, mode="fast")
    expected, rows = brute_force(vectors, patches, k)
    usual, _ = index.query(patches, k)
    assert (usual >= expected * (1 - 1e-5)).all()
    assert (usual[:, 0] / expected[:, 0]).mean() < 1.06
    distances, indices = index.query(patches, k, thorough=True)
    true = np.linalg.norm(vectors[indices] - patches[:, None], axis=2)
    np.testing.assert_allclose(distances, true, rtol=1e-5)
    assert (np.diff(distances, axis=1) >= 0).all()
    assert all(len(set(row)) == k for row in indices.tolist())
    assert (indices[:, 0] == rows[:, 0]).mean() >= 0.98
    assert (distances[:, 0] / expected[:, 0]).mean() < 1.002
    assert (distances / expected).mean() < 1.01


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_stored_vector_is_at_distance_zero(mode):
    vectors, _ = memory_and_patches(2000, 1)
    distances, indices = NeighbourIndex(vectors * 30 + 7, mode=mode).query(vectors * 30 + 7)
    np.testing.assert_array_equal(indices[:, 0], np.arange(2000))
    assert (distances == 0).all()


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_k_is_cut_to_the_memory_and_beyond_six_is_exact(mode):
    vectors, patches = memory_and_patches(5, 20, 16)
    distances, indices = NeighbourIndex(vectors, mode=mode).query(patches, 8)
    assert distances.shape == indices.shape == (20, 5)
    assert (np.sort(indices, axis=1) == np.arange(5)).all()
    vectors, patches = memory_and_patches(1200, 50)
    _, indices = NeighbourIndex(vectors, mode=mode).query(patches, 7)
    np.testing.assert_array_equal(indices, brute_force(vectors, patches, 7)[1])


def test_fast_is_exact_where_it_would_not_pay():
    vectors, patches = memory_and_patches(999, 100)
    _, indices = NeighbourIndex(vectors, mode="fast").query(patches)
    np.testing.assert_array_equal(indices, brute_force(vectors, patches, 1)[1])


@pytest.mark.parametrize("k", [1, 2, 4, 6])
@pytest.mark.parametrize("m", [1000, 1001, 1023])
def test_rows_are_of_the_memory_and_differ(m, k):
    vectors, patches = memory_and_patches(m, 200)
    index = NeighbourIndex(vectors, mode="fast")
    for points in (patches, np.zeros_like(patches), np.full_like(patches, 1e6)):
        distances, indices = index.query(points, k)
        assert indices.min() >= 0
        assert indices.max() < m
        assert all(len(set(row)) == k for row in indices.tolist())
        np.testing.assert_allclose(
            distances, np.linalg.norm(vectors[indices] - points[:, None], axis=2), rtol=1e-4
        )


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("k", [1, 3])
def test_left_out_vectors_are_never_found(mode, k):
    vectors, _ = memory_and_patches(2001, 1)
    index = NeighbourIndex(vectors, mode=mode)
    rows = np.arange(0, 2001, 2)
    distances, indices = index.without(rows).query(vectors[:200], k, thorough=True)
    assert (indices % 2 == 1).all()
    np.testing.assert_array_equal(indices[1::2, 0], np.arange(1, 200, 2))
    kept = vectors[1::2]
    expected, _ = brute_force(kept, vectors[:200], k)
    assert (distances[::2] / expected[::2]).mean() < 1.01
    if mode == "exact":
        np.testing.assert_allclose(distances, expected, atol=1e-4)
    # the index itself is left as it was
    assert (index.query(vectors[:200])[0] == 0).all()
    # and even when few vectors remain
    few = np.arange(5, 2001)
    distances, indices = index.without(few).query(vectors[100:110], k)
    assert indices.max() < 5
    np.testing.assert_allclose(distances, brute_force(vectors[:5], vectors[100:110], k)[0])


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_blocks_do_not_change_the_answer(mode):
    vectors, patches = memory_and_patches(1500, 900)
    index = NeighbourIndex(vectors, mode=mode)
    distances, indices = index.query(patches.astype(np.float16))
    assert index.query(patches[:0])[0].shape == (0, 1)
    for start in range(0, 900, 450):
        part, rows = index.query(patches[start : start + 450].astype(np.float16))
        np.testing.assert_allclose(part, distances[start : start + 450], rtol=1e-5)
        assert (rows == indices[start : start + 450]).mean() > 0.999


@settings(max_examples=25)
@given(
    m=st.integers(2 * LARGEST_K, 400),
    k=st.integers(1, LARGEST_K),
    distinct=st.integers(1, 400),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_with_all_cells_it_is_the_exact_search(m, k, distinct, seed, data):
    rng = np.random.default_rng(seed)
    # often with copies, so that cells end empty
    vectors = rng.normal(size=(distinct, 8))[rng.integers(distinct, size=m)].astype(np.float32)
    patches = rng.normal(size=(20, 8)).astype(np.float32)
    cells = CellIndex(torch.from_numpy(vectors))
    assert sorted(cells.order.tolist()) == list(range(m))
    assert sum(cells.sizes) == m
    assert len(cells.sizes) == 1 or min(cells.sizes) >= 2 * LARGEST_K
    hidden = np.zeros(m, bool)
    hidden[data.draw(st.lists(st.integers(0, m - 1), max_size=m - k))] = True
    found = cells.shortlist(
        torch.from_numpy(patches),
        k,
        Effort(probes=len(cells.sizes), kept=1, measured=1),
        cells.hiding(torch.from_numpy(hidden)),
    ).numpy()
    assert all(len(set(row)) == k for row in found.tolist())
    distances = np.sort(np.linalg.norm(vectors[found] - patches[:, None], axis=2), axis=1)
    expected, _ = brute_force(vectors[~hidden], patches, k)
    np.testing.assert_allclose(distances, expected, rtol=1e-4, atol=1e-4)


def test_cells_and_answers_do_not_depend_on_threads_and_batches():
    vectors, patches = memory_and_patches(3000)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            index = NeighbourIndex(vectors, mode="fast")
            whole = index.query(patches)
            parts = [index.query(patches[i : i + 100]) for i in range(0, len(patches), 100)]
            found.append((index.cells.order.numpy(), *whole))
            for one, of_parts in zip(whole, zip(*parts, strict=True), strict=True):
                np.testing.assert_array_equal(one, np.concatenate(of_parts))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)


def test_wrong_requests_are_refused():
    with pytest.raises(ConfigError, match="unknown search mode"):
        NeighbourIndex(np.ones((2, 2), np.float32), mode="slow")  # type: ignore[arg-type]
    with pytest.raises(MemoryBankError, match="empty memory"):
        NeighbourIndex(np.zeros((0, 2), np.float32))
