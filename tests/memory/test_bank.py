from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvad.errors import MemoryBankError
from fedvad.memory.bank import MemoryBank, concatenate


def bank_of(rows: int, dim: int = 4, seed: int = 0) -> MemoryBank:
    rng = np.random.default_rng(seed)
    return MemoryBank(
        rng.normal(size=(rows, dim)).astype(np.float32),
        rng.uniform(0.1, 9, rows),
        rng.uniform(0, 2, rows).astype(np.float32),
    )


@pytest.mark.parametrize(
    ("vectors", "weights", "spread", "message"),
    [
        (np.zeros(3), np.ones(3), np.zeros(3), r"must be \(m, d\)"),
        (np.zeros((3, 0)), np.ones(3), np.zeros(3), r"must be \(m, d\)"),
        (np.zeros((3, 2)), np.ones(2), np.zeros(3), "as many weights"),
        (np.zeros((3, 2)), np.ones((3, 1)), np.zeros(3), "as many weights"),
        (np.zeros((3, 2)), np.ones(3), np.zeros(4), "as many weights"),
        (np.full((3, 2), np.nan), np.ones(3), np.zeros(3), "vectors contain NaN"),
        (np.full((3, 2), 1e39), np.ones(3), np.zeros(3), "vectors contain NaN or infinity"),
        (np.zeros((3, 2)), [1, np.inf, 1], np.zeros(3), "weights contain NaN"),
        (np.zeros((3, 2)), np.ones(3), [0, np.nan, 0], "spread contain NaN"),
        (np.zeros((3, 2)), [1, -1, 1], np.zeros(3), "weights must be positive"),
        (np.zeros((3, 2)), [1, 0, 1], np.zeros(3), "weights must be positive"),
        (np.zeros((3, 2)), np.ones(3), [0, -1, 0], "spread must not be negative"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_broken_banks_are_refused_by_name(vectors, weights, spread, message):
    with pytest.raises(MemoryBankError, match=message):
        MemoryBank(vectors, weights, spread)


def test_arrays_get_the_promised_types():
    bank = MemoryBank(np.ones((2, 3), np.float16)[:, ::-1], [1, 2], np.zeros(2))
    assert (bank.vectors.dtype, bank.weights.dtype, bank.spread.dtype) == (
        np.float32,
        np.float64,
        np.float32,
    )
    assert bank.vectors.flags.c_contiguous
    assert (len(bank), bank.dim, bank.total_weight) == (2, 3, 3.0)


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_concatenation_keeps_rows_order_and_weight(sizes, seed):
    banks = [bank_of(rows, seed=seed + i) for i, rows in enumerate(sizes)]
    merged = concatenate(banks)
    assert len(merged) == sum(sizes)
    assert merged.total_weight == pytest.approx(sum(bank.total_weight for bank in banks))
    start = 0
    for bank in banks:
        np.testing.assert_array_equal(merged.vectors[start : start + len(bank)], bank.vectors)
        np.testing.assert_array_equal(merged.spread[start : start + len(bank)], bank.spread)
        start += len(bank)


def test_concatenation_needs_one_length():
    with pytest.raises(MemoryBankError, match=r"got 3, 4$"):
        concatenate([bank_of(2, 4), bank_of(2, 3)])
    with pytest.raises(MemoryBankError):
        concatenate([])


def test_take_selects_rows_by_number_and_by_mask():
    bank = bank_of(5)
    taken = bank.take(np.array([3, 1]))
    np.testing.assert_array_equal(taken.vectors, bank.vectors[[3, 1]])
    np.testing.assert_array_equal(taken.weights, bank.weights[[3, 1]])
    np.testing.assert_array_equal(bank.take(bank.weights > 3).spread, bank.spread[bank.weights > 3])


def test_rescaling_changes_weights_in_proportion():
    bank = bank_of(5)
    scaled = bank.rescaled(70.0)
    assert scaled.total_weight == pytest.approx(70)
    np.testing.assert_allclose(scaled.weights / bank.weights, 70 / bank.total_weight)
    assert len(MemoryBank.empty(3).rescaled(70.0)) == 0


def test_patches_become_rows_of_weight_one():
    bank = MemoryBank.of_patches(np.ones((4, 2), np.float32))
    assert bank.weights.tolist() == [1.0] * 4
    assert bank.spread.tolist() == [0.0] * 4


def test_canonical_order_forgets_the_present_order_even_among_equal_vectors():
    bank = bank_of(40)
    bank = MemoryBank(np.round(bank.vectors), bank.weights, np.round(bank.spread))
    bank = concatenate([bank, MemoryBank(bank.vectors, bank.weights[::-1], bank.spread)])
    reference = bank.canonical()
    assert reference.total_weight == pytest.approx(bank.total_weight)
    for seed in range(5):
        shuffled = bank.take(np.random.default_rng(seed).permutation(len(bank))).canonical()
        np.testing.assert_array_equal(shuffled.vectors, reference.vectors)
        np.testing.assert_array_equal(shuffled.weights, reference.weights)
        np.testing.assert_array_equal(shuffled.spread, reference.spread)
