"""Deep pixels to 8 bit, by one rule for files, arrays, services and exported examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.errors import DataError

# What values may span that come without a stated number of bits; floats may also span 0..1.
_RANGES = (255.0, 65535.0, 2.0**32 - 1)
_OVERSHOOT = 0.25  # interpolation leaves floats a little beyond the range that they began with
_LEAST = 1 / 16  # of a range; below it the picture would be nearly black, so the guess is wrong


def to_8_bit(values: npt.NDArray[Any], bits: int | None = None) -> npt.NDArray[np.uint8]:
    """Values of any number type and shape as uint8, never by what other images hold.

    bits: what the file or type says of its range: 8 bits or fewer and 16 bits are scaled by
    255 / (2^bits - 1), rounded. None, for floats and 32-bit integers, which say nothing: the
    smallest of 0..1 (floats only), 0..255, 0..65535 and 0..2^32-1 that holds the largest value.

    Floats may pass a range by a quarter of it at either end and are cut off there; NaN and -inf
    become 0, inf becomes 255. Raises `DataError` where the range would be a mere guess: values
    further below 0, no finite value at all, or a largest value that passes one range but does not
    reach a sixteenth of the next (4095, as of 12-bit cameras; 1.5).
    """
    if values.dtype == np.bool_:
        return np.where(values, np.uint8(255), np.uint8(0))
    if bits is not None:
        if values.size and values.min() < 0:
            raise DataError(_negative(float(values.min())))
        top = 2**bits - 1
        if values.size and values.max() > top:
            raise DataError(f"holds values up to {values.max()}, beyond its {bits} bits")
        if bits == 8:
            return values.astype(np.uint8)
        # in whole numbers, so that every platform rounds alike
        made: npt.NDArray[np.uint8] = ((values.astype(np.uint32) * 255 + top // 2) // top).astype(
            np.uint8
        )
        return made
    floats = np.issubdtype(values.dtype, np.floating)
    low, high = ends_of(values)
    top_ = _range_of(high, floats)
    if low < -_OVERSHOOT * top_:
        raise DataError(_negative(low))
    scaled = np.nan_to_num(np.maximum(values, 0) * (255.0 / top_), nan=0.0, posinf=255.0)
    made = np.clip(scaled, 0, 255).round().astype(np.uint8)
    return made


def _range_of(high: float, floats: bool) -> float:
    ranges = (1.0, *_RANGES) if floats else _RANGES
    allowed = 1 + _OVERSHOOT if floats else 1.0
    for place, top in enumerate(ranges):
        if high <= top * allowed:
            if place and high < top * _LEAST:
                break
            return top
    raise DataError(
        f"holds values up to {high:.6g}, and their range is unknown: scale them to "
        "0..255 or 0..65535 (floats also 0..1), all images in the same way"
    )


def _negative(low: float) -> str:
    return (
        f"holds values down to {low:.6g}: shift and scale them to 0..255 or 0..65535 (floats also "
        "0..1), all images alike"
    )


def ends_of(values: npt.NDArray[Any]) -> tuple[float, float]:
    """The least and the greatest finite value; raises `DataError` where there is none."""
    finite = values if values.dtype.kind in "iu" else values[np.isfinite(values)]
    if not finite.size:
        raise DataError("holds no finite value")
    return float(finite.min()), float(finite.max())


def spread(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Values as uint8: `low` becomes 0, `high` 255, what lies beyond is cut off."""
    return in_bytes((values - low) / (high - low) * 255 if high > low else np.zeros(values.shape))


def in_bytes(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Values of 0..255 as uint8, rounded; NaN becomes 0."""
    made: npt.NDArray[np.uint8] = np.nan_to_num(np.clip(values, 0, 255)).round().astype(np.uint8)
    return made
