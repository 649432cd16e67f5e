"""float16 conversions by PyTorch, which does them an order of magnitude faster than NumPy."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from fedvad.errors import DataError

HalfArray = npt.NDArray[np.float16]
_OVERFLOW = 65520.0  # the least number that rounds to infinity


def to_half(values: npt.NDArray[np.float32]) -> HalfArray:
    """float32 of any shape as float16; raises `DataError` for NaN or values beyond its range."""
    import torch

    tensor = torch.from_numpy(values)
    if tensor.numel():
        low, high = torch.aminmax(tensor)
        if not (float(low) > -_OVERFLOW and float(high) < _OVERFLOW):  # false for NaN, too
            raise DataError(f"values from {float(low)} to {float(high)} do not fit float16")
    half: HalfArray = tensor.half().numpy()
    return half


def to_float(values: HalfArray) -> npt.NDArray[np.float32]:
    """float16 of any shape, also a read-only memory map, as float32."""
    import torch

    # PyTorch takes no read-only arrays
    writable = values if values.flags.writeable else np.array(values)
    single: npt.NDArray[np.float32] = torch.from_numpy(writable).float().numpy()
    return single


def as_float32(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Contiguous float32 of any floating-point array, itself if it is that already."""
    if values.dtype == np.float16:
        return to_float(np.ascontiguousarray(values))
    return np.ascontiguousarray(values, dtype=np.float32)


def cast(
    values: npt.NDArray[np.float32], precision: Literal["float16", "float32"]
) -> npt.NDArray[np.floating]:
    """A copy in `precision`; what is beyond the range of float16 becomes infinite."""
    import torch

    cast_values: npt.NDArray[np.floating] = (
        torch.from_numpy(values).to(getattr(torch, precision), copy=True).numpy()
    )
    return cast_values
