"""Photometric jitter: the same picture under other light, for a student to imitate as well."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

VIEWS = 3  # of each image, besides itself


def jittered(
    pixels: npt.NDArray[np.uint8], strength: float, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """An image (S, S, 3) with its brightness and its contrast each scaled by 1 +- `strength`.

    Contrast is scaled around the image's mean; both factors are drawn evenly. Ours.
    """
    light, contrast = 1 + strength * rng.uniform(-1, 1, 2)
    values = pixels.astype(np.float32)
    mean = values.mean((0, 1), keepdims=True)
    moved = light * (mean + contrast * (values - mean))
    result: npt.NDArray[np.uint8] = np.clip(np.rint(moved), 0, 255).astype(np.uint8)
    return result
