from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from fedvad.memory.bank import MemoryBank, concatenate
from fedvad.memory.density import density_scale, holds, row_gaps


def bank_of(vectors: np.ndarray) -> MemoryBank:
    return MemoryBank.of_patches(np.asarray(vectors, np.float32))


def test_gaps_are_those_of_scikit_learn():
    vectors = np.random.default_rng(0).normal(size=(1500, 200)).astype(np.float32)
    expected = NearestNeighbors(n_neighbors=6).fit(vectors).kneighbors(vectors)[0][:, 1:].mean(1)
    np.testing.assert_allclose(row_gaps(vectors, 5), expected, rtol=1e-5)


def test_equal_rows_make_nothing_denser():
    vectors = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    own = vectors[10:20]
    gaps = row_gaps(np.concatenate([vectors, own, own]))
    np.testing.assert_array_equal(gaps[:50], row_gaps(vectors))
    np.testing.assert_array_equal(gaps[50:60], gaps[10:20])


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_rows(count):
    vectors = np.arange(count, dtype=np.float32)[:, None]
    gaps = row_gaps(vectors)
    assert gaps.shape == (count,)
    if count == 2:
        assert gaps.tolist() == [1, 1]
    assert np.isfinite(density_scale(gaps, 0.5)).all()


def test_scale_is_one_in_the_middle_and_bounded_below():
    gaps = np.array([0, 1, 1, 1, 100], np.float32)
    np.testing.assert_allclose(density_scale(gaps, 1), [0.05, 1, 1, 1, 100])
    np.testing.assert_allclose(density_scale(gaps, 0), 1)
    assert density_scale(np.zeros(3, np.float32), 1).tolist() == [1, 1, 1]


def test_scale_does_not_depend_on_the_order_of_rows():
    vectors = np.random.default_rng(2).normal(size=(200, 8)).astype(np.float32)
    order = np.random.default_rng(3).permutation(200)
    scale = density_scale(row_gaps(vectors), 0.5)
    np.testing.assert_array_equal(density_scale(row_gaps(vectors[order]), 0.5), scale[order])


def test_holds():
    vectors = np.random.default_rng(5).normal(size=(30, 3)).astype(np.float32)
    bank = bank_of(vectors)
    assert holds(bank, bank_of(vectors[3:9]))
    assert holds(bank, MemoryBank.empty(3))
    assert not holds(bank, concatenate([bank, bank_of(vectors[:1] + 1)]))
