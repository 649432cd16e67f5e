"""Three bands of a scene as a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedvad.data.cubes.scene import Scene

_RED_GREEN_BLUE = (640.0, 550.0, 460.0)  # nm


def false_colour(scene: Scene) -> NDArray[np.uint8]:
    """A scene as the eye would see it, or nearly: uint8 (h, w, 3).

    With wavelengths that include red, green and blue (in nm, or in µm where all are below 100)
    these are shown, else the means of the upper, middle and lower third of the bands. Each is
    stretched from its 1 % to its 99 % quantile.

    >>> cube = np.linspace(0, 1, 60, dtype=np.float32).reshape(4, 5, 3)
    >>> false_colour(Scene("ramp", cube))[0, 0].tolist()
    [0, 0, 0]
    """
    waves = scene.wavelengths
    if waves is not None and waves.max() < 100:
        waves = waves * 1000
    if waves is not None and waves.min() <= _RED_GREEN_BLUE[2] < _RED_GREEN_BLUE[0] <= waves.max():
        planes = [scene.cube[:, :, int(np.abs(waves - wave).argmin())] for wave in _RED_GREEN_BLUE]
    else:
        thirds = np.array_split(np.arange(scene.cube.shape[2]), 3)
        # a scene of one or two bands has them in more than one colour
        planes = [scene.cube[:, :, third if third.size else thirds[0]].mean(2) for third in thirds]
        planes = planes[::-1]
    picture = np.stack(planes, axis=2).astype(np.float64)
    low, high = np.quantile(picture, [0.01, 0.99], axis=(0, 1))
    unit = np.clip((picture - low) / np.where(high > low, high - low, 1.0), 0, 1)
    return np.asarray(np.rint(255 * unit), np.uint8)
