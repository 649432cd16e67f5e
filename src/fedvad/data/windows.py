"""Grey values of any range to 8 bit between two ends, as windows of medical images do."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.errors import DataError


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
