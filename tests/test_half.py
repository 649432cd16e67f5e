"""float16 conversions agree with NumPy's, only faster."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedvad.errors import DataError
from fedvad.half import as_float32, cast, to_float, to_half

singles = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3), elements=st.floats(width=32))


@given(singles)
def test_cast_is_astype(values: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(cast(values, "float16"), values.astype(np.float16))
    same = cast(values, "float32")
    np.testing.assert_array_equal(same, values)
    assert not np.shares_memory(same, values)


@given(hnp.arrays(np.float16, hnp.array_shapes(max_dims=3)))
def test_to_float_is_exact_and_takes_read_only_arrays(values: np.ndarray) -> None:
    expected = values.astype(np.float32)
    values.setflags(write=False)
    for found in (to_float(values), as_float32(values)):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


def test_as_float32_keeps_what_is_float32_already() -> None:
    values = np.ones((2, 3), np.float32)
    assert as_float32(values) is values
    assert as_float32(values.T).flags.c_contiguous


@pytest.mark.parametrize("bad", [np.nan, np.inf, 7e4, -7e4])
def test_to_half_refuses_what_does_not_fit(bad: float) -> None:
    with pytest.raises(DataError, match="float16"):
        to_half(np.array([1.0, bad], np.float32))
