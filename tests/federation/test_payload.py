"""Messages: exact bytes, and nothing but PayloadError for whatever else arrives."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedvad.errors import FederationError, PayloadError
from fedvad.federation.exchange.memory import MemoryExchange
from fedvad.federation.payload import SCHEMA, Manifest, Payload, bank_arrays, bank_from
from tests.helpers import make_bank, raw_message, upload

GOOD = upload().to_bytes()
META = upload().manifest.model_dump()


def _server() -> MemoryExchange:
    return MemoryExchange(features="feature-key", dim=6)


def _swallow(data: bytes) -> None:
    """A server's whole way with a message: parse, accept, merge; only PayloadError may come."""
    server = _server()
    server.accept(upload("other"))
    with suppress(PayloadError):
        server.accept(Payload.from_bytes(data))
    bank_from(Payload.from_bytes(server.merge(1).to_bytes()))


def test_round_trip_is_exact() -> None:
    payload = upload(site="Linie 3 · Süd ✓")
    again = Payload.from_bytes(payload.to_bytes())
    assert again.manifest == payload.manifest
    assert again.arrays.keys() == payload.arrays.keys()
    for name, array in payload.arrays.items():
        assert again.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(again.arrays[name], array)


def test_equal_payloads_have_equal_bytes() -> None:
    payload = upload()
    reordered = Payload(payload.manifest, dict(reversed(payload.arrays.items())))
    strided = Payload(
        payload.manifest,
        {k: np.repeat(v, 2, axis=0)[::2] for k, v in payload.arrays.items()},
    )
    assert reordered.to_bytes() == strided.to_bytes() == GOOD
    assert Payload.from_bytes(GOOD).to_bytes() == GOOD
    assert upload(round_=2).to_bytes() != GOOD


@pytest.mark.parametrize("coverage", [None, 0.0, 2.5, float("inf")])
def test_every_coverage_survives(coverage: float | None) -> None:
    payload = upload(kind="global", site="", coverage=coverage)
    assert Payload.from_bytes(payload.to_bytes()).manifest.coverage == coverage


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_a_bank_passes_through(precision: Any) -> None:
    bank = make_bank()
    read = bank_from(Payload(upload().manifest, bank_arrays(bank, precision)))
    np.testing.assert_array_equal(read.vectors, bank.vectors)
    np.testing.assert_allclose(read.weights, bank.weights, rtol=1e-6)
    np.testing.assert_allclose(read.spread, bank.spread, rtol=1e-3)


@given(st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    with pytest.raises(PayloadError):
        Payload.from_bytes(data)


@given(st.integers(0, 2**64 - 1), st.binary(max_size=100))
def test_random_header_lengths(length: int, rest: bytes) -> None:
    with pytest.raises(PayloadError):
        Payload.from_bytes(struct.pack("<Q", length) + rest)


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=6))
def test_flipped_bytes(changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for position, value in changes:
        data[position] = value
    _swallow(bytes(data))


@given(st.integers(0, len(GOOD)), st.integers(0, len(GOOD)), st.binary(max_size=30))
def test_cut_and_spliced_messages(start: int, stop: int, middle: bytes) -> None:
    _swallow(GOOD[:start] + middle + GOOD[stop:])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(_JSON)
def test_any_json_as_header_or_manifest(value: Any) -> None:
    for header in (value, {"__metadata__": value}, {"__metadata__": {"fedvad": value}}):
        with pytest.raises(PayloadError):
            Payload.from_bytes(raw_message(header))
    text = json.dumps(value)
    with pytest.raises(PayloadError):
        Payload.from_bytes(raw_message({"__metadata__": {"fedvad": text}}))


@given(st.sampled_from(sorted(META)), _JSON | st.integers() | st.just(10**400))
def test_any_value_of_a_manifest_field(field: str, value: Any) -> None:
    header: dict[str, Any] = {"__metadata__": {"fedvad": json.dumps(META | {field: value})}}
    offset = 0
    body = b""
    for name, array in sorted(upload().arrays.items()):
        stop = offset + array.nbytes
        dtype = {"float16": "F16", "float32": "F32"}[str(array.dtype)]
        header[name] = {
            "dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, stop],
        }  # fmt: skip
        offset, body = stop, body + array.tobytes()
    _swallow(raw_message(header, body))


@pytest.mark.parametrize(
    "dtype",
    ["BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "BF16", "I32", "U32", "I64", "U64",
     "C64", "F4", "Q7", ""],
)  # fmt: skip
def test_other_types_of_numbers(dtype: str) -> None:
    size = 8
    header = {
        "__metadata__": {"fedvad": json.dumps(META)},
        "vectors": {"dtype": dtype, "shape": [1, 1], "data_offsets": [0, size]},
    }
    for bytes_ in (1, 2, 4, 8):
        header["vectors"]["data_offsets"] = [0, bytes_]
        with pytest.raises(PayloadError):
            bank_from(Payload.from_bytes(raw_message(header, bytes(bytes_))))


def _changed(**arrays: Any) -> Payload:
    return Payload(upload().manifest, {**upload().arrays, **arrays})


@pytest.mark.parametrize(
    "payload",
    [
        _changed(extra=np.zeros(3, np.float32)),
        _changed(images=np.zeros((4, 6), np.float16)),
        Payload(upload().manifest, {}),
        Payload(upload().manifest, {"vectors": np.zeros((2, 6), np.float16)}),
        _changed(vectors=np.zeros((9, 6), np.int32)),
        _changed(vectors=np.zeros((8, 6), np.float16)),
        _changed(vectors=np.zeros((9, 6, 1), np.float16)),
        _changed(vectors=np.zeros((9, 0), np.float16)),
        _changed(vectors=np.array(1.0, np.float32)),
        _changed(weights=np.array(1.0, np.float32)),
        _changed(vectors=np.full((9, 6), np.inf, np.float16)),
        _changed(vectors=np.full((9, 6), np.nan, np.float32)),
        _changed(vectors=np.full((9, 6), 1e300)),
        _changed(weights=np.full(9, -1, np.float32)),
        _changed(weights=np.zeros(9, np.float32)),
        _changed(weights=np.full(9, np.nan, np.float32)),
        _changed(spread=np.full(9, -1, np.float16)),
        _changed(spread=np.zeros((9, 1), np.float16)),
    ],
)
def test_arrays_that_are_no_bank(payload: Payload) -> None:
    received = Payload.from_bytes(payload.to_bytes())
    with pytest.raises(PayloadError):
        bank_from(received)
    with pytest.raises(PayloadError):
        _server().accept(received)


def test_another_schema_is_named() -> None:
    data = Payload(upload().manifest.model_copy(update={"schema_version": 99}), {}).to_bytes()
    with pytest.raises(PayloadError, match=f"schema 99, this fedvad speaks {SCHEMA}"):
        Payload.from_bytes(data)


def test_unknown_manifest_fields_are_named() -> None:
    text = json.dumps(META | {"image_paths": ["a.png"]})
    with pytest.raises(PayloadError, match="image_paths"):
        Payload.from_bytes(raw_message({"__metadata__": {"fedvad": text}}))


def test_limits_are_checked_before_anything_is_parsed() -> None:
    with pytest.raises(PayloadError, match="exceeds the limit"):
        Payload.from_bytes(GOOD, max_bytes=len(GOOD) - 1)
    assert Payload.from_bytes(GOOD, max_bytes=len(GOOD))
    with pytest.raises(PayloadError, match="rows exceeds"):
        bank_from(upload(), max_rows=8)
    for length in (1 << 16 | 1, 1 << 40, (1 << 64) - 1):
        with pytest.raises(PayloadError, match="header claims"):
            Payload.from_bytes(struct.pack("<Q", length) + b"{" * 70_000)
    nested = b"[" * 60_000
    with pytest.raises(PayloadError):
        Payload.from_bytes(struct.pack("<Q", len(nested)) + nested)


def test_payload_errors_are_federation_errors() -> None:
    assert issubclass(PayloadError, FederationError)
    assert PayloadError.exit_code == 4


def test_manifests_hold_their_limits() -> None:
    for wrong in ({"round": 0}, {"n_images": -1}, {"site": "x" * 256}, {"n_patches": 1 << 60}):
        with pytest.raises(ValidationError):
            Manifest(**(META | wrong))
    assert Manifest(**(META | {"site": "x" * 255}))
