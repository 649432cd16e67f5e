"""Codecs: error bounds, sizes as promised, nothing malformed gets through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedvad.errors import PayloadError
from fedvad.federation.codecs import (
    Precision,
    decode,
    downlink_precision,
    encode,
    overhead_bytes,
    packed,
    rounding,
    row_bytes,
    unpacked,
)
from fedvad.federation.payload import Payload, bank_arrays, bank_from
from tests.helpers import make_bank, upload

ALL: tuple[Precision, ...] = ("float32", "float16", "int8", "int5", "pca", "pq")
TABLES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.integers(1, 20)),
    elements=st.floats(-6e4, 6e4, width=32, allow_subnormal=False),
)


def features(rows: int = 300, dim: int = 40, seed: int = 0) -> np.ndarray:
    """Non-negative and of low rank, as features are, with a little noise."""
    rng = np.random.default_rng(seed)
    signal = np.abs(rng.normal(size=(rows, 6))) @ np.abs(rng.normal(size=(6, dim)))
    return np.asarray(signal + 0.01 * np.abs(rng.normal(size=(rows, dim))), dtype=np.float32)


BITS = pytest.mark.parametrize(("precision", "largest"), [("int8", 255), ("int5", 31)])


@BITS
@given(table=TABLES)
@example(table=np.ones((1, 2), np.float32))  # a power of two, which would be one byte too many
def test_integers_err_by_half_a_step_at_most_and_only_once(
    precision: Precision, largest: int, table: np.ndarray
) -> None:
    once = rounding(precision)(table)
    top = np.abs(table).max(axis=1)
    steps = np.where((table < 0).any(axis=1), largest // 2, largest)
    # a power of two as scale may be up to twice as coarse as the best scale
    assert (np.abs(once - table) <= (top / steps)[:, None] + 1e-30).all()
    assert np.array_equal(rounding(precision)(once), once)


@BITS
@given(table=TABLES, row=st.integers(0, 11))
def test_integers_code_each_row_by_itself(
    precision: Precision, largest: int, table: np.ndarray, row: int
) -> None:
    row %= len(table)
    code = rounding(precision)
    assert np.array_equal(code(table)[row], code(table[row : row + 1])[0])


def test_int5_travels_in_less_than_its_bits() -> None:
    rows = features(400, 96)
    sent = Payload(upload().manifest, encode(rows, "int5"))
    data = sent.to_bytes()
    assert len(data) < 400 * (96 * 5 / 8 + 2) + 1000
    read = Payload.from_bytes(data)
    assert read.rows == 400
    assert all(np.array_equal(read.arrays[name], sent.arrays[name]) for name in sent.arrays)


@pytest.mark.parametrize("change", ["short", "long", "damaged", "wide", "huge", "none", "twice"])
def test_malformed_deflated_rows_are_refused(change: str) -> None:
    arrays = packed(encode(features(10, 16), "int5"))
    deflated = arrays["vectors.deflated"]
    changed: dict[str, dict[str, Any]] = {
        "short": {"vectors.deflated": deflated[:-3]},
        "long": {"vectors.deflated": np.append(deflated, np.uint8(0))},
        "damaged": {"vectors.deflated": deflated[::-1]},
        "wide": {"vectors.length": np.array([17], np.int32)},
        "huge": {"vectors.length": np.array([2**31 - 1], np.int32)},
        "none": {"vectors.length": np.array([0], np.int32)},
        "twice": {"vectors": np.zeros((10, 16), np.uint8)},
    }
    with pytest.raises(PayloadError):
        unpacked(arrays | changed[change])


@pytest.mark.parametrize("precision", ALL)
@pytest.mark.parametrize("dim", [1, 7, 40])
def test_messages_take_the_bytes_that_budgets_reckon_with(precision: Precision, dim: int) -> None:
    vectors = features(50, dim)
    taken = sum(array.nbytes for array in encode(vectors, precision).values())
    promised = 50 * row_bytes(precision, dim) + overhead_bytes(precision, dim)
    assert promised <= taken <= promised + 4
    assert decode(encode(vectors, precision)).shape == vectors.shape


def test_each_codec_errs_as_little_as_it_can() -> None:
    vectors = features()
    error = {
        p: np.linalg.norm(rounding(p)(vectors) - vectors) / np.linalg.norm(vectors) for p in ALL
    }
    assert error["float32"] == 0
    assert error["float16"] < 3e-4 < error["int8"] < 3e-3
    assert error["int8"] < error["int5"] < 0.025
    assert error["pca"] < 6e-3  # rank 6 of the 10 directions it keeps
    assert error["pq"] < 0.03
    few = np.repeat(features(20), 5, axis=0).astype(np.float16).astype(np.float32)
    assert np.array_equal(rounding("pq")(few), few)  # no more kinds than a codebook holds


def test_pca_keeps_the_plane_that_the_rows_lie_in() -> None:
    rng = np.random.default_rng(1)
    flat = (rng.normal(size=(200, 2)) @ rng.normal(size=(2, 8)) + 5).astype(np.float32)
    assert np.abs(rounding("pca")(flat) - flat).max() < 0.1 < flat.std()


def test_the_same_rows_give_the_same_bytes() -> None:
    for precision in ALL:
        first, second = (encode(features(), precision) for _ in range(2))
        assert all(np.array_equal(first[name], second[name]) for name in first)


def test_what_is_handed_back_adds_no_error() -> None:
    for precision in ALL:
        decoded = rounding(precision)(features())
        again = rounding(downlink_precision(precision))(decoded)
        assert np.abs(again - decoded).max() <= np.abs(decoded).max() * 2**-11


@pytest.mark.parametrize("precision", ALL)
def test_a_bank_survives_a_message(precision: Precision) -> None:
    bank = make_bank(30, seed=3)
    sent = Payload(upload().manifest, bank_arrays(bank, precision))
    read = bank_from(Payload.from_bytes(sent.to_bytes()))
    assert np.array_equal(read.vectors, rounding(precision)(bank.vectors))
    np.testing.assert_allclose(read.weights, bank.weights, rtol=1e-6)


def _broken(precision: Precision) -> list[dict[str, Any]]:
    arrays = encode(features(10, 16), precision)
    without = [{k: v for k, v in arrays.items() if k != gone} for gone in arrays]
    shorter = [arrays | {name: array[:-1]} for name, array in arrays.items() if name != "vectors"]
    retyped = [arrays | {name: array.astype(np.int64)} for name, array in arrays.items()]
    flat = [arrays | {"vectors": arrays["vectors"].ravel()}]
    return [*without, *shorter, *retyped, *flat, arrays | {"vectors.more": np.zeros(1)}]


@pytest.mark.parametrize("precision", ["int8", "int5", "pca", "pq"])
def test_malformed_arrays_are_refused(precision: Precision) -> None:
    cases = _broken(precision)
    assert len(cases) >= 7
    for arrays in cases:
        with pytest.raises(PayloadError):
            decode(arrays)


def test_a_small_message_cannot_ask_for_a_huge_table() -> None:
    arrays = {
        "vectors": np.zeros((100_000, 1), np.uint8),
        "vectors.scale": np.zeros(100_000, np.int16),
        "vectors.basis": np.zeros((1, 100_000), np.float16),
        "vectors.mean": np.zeros(100_000, np.float16),
    }
    with pytest.raises(PayloadError, match="more than"):
        decode(arrays)


def test_scales_out_of_range_are_refused() -> None:
    arrays = encode(features(3, 4), "int8")
    arrays["vectors.scale"][0] = 2 * 101
    with pytest.raises(PayloadError, match="scales"):
        decode(arrays)
