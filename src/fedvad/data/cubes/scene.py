"""A hyperspectral scene: its cube of bands, what is known of it, and three bands as a picture."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedvad.errors import ConfigError, DataError

Cube = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Norm = Literal["global_minmax", "band_minmax", "band_std", "none"]
NORMS: tuple[str, ...] = get_args(Norm)


@dataclass(frozen=True, eq=False)
class Scene:
    """One hyperspectral image, with its ground truth where that is known.

    Parameters
    ----------
    name : str
        In tables and messages.
    cube : (h, w, bands) float32 array
        Values as the file has them: digital numbers, radiance or reflectance.
    mask : (h, w) bool array, default=None
        Anomalous pixels.
    wavelengths : (bands,) float array, default=None
        In the unit of the file, usually nanometres.

    Raises
    ------
    DataError
        For another shape, values that are not finite, or a mask or wavelengths that do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.data.cubes.scene import Scene
    >>> Scene("field", np.zeros((4, 5, 3), np.float32)).cube.shape
    (4, 5, 3)
    """

    name: str
    cube: NDArray[np.float32]
    mask: Mask | None = None
    wavelengths: NDArray[np.float64] | None = field(default=None)

    def __post_init__(self) -> None:
        check_cube(self.cube, self.name)
        height, width, bands = self.cube.shape
        if self.mask is not None and self.mask.shape != (height, width):
            turned = " (it would fit if transposed)" if self.mask.T.shape == (height, width) else ""
            raise DataError(
                f"{self.name}: the mask is {self.mask.shape}, the cube {height} x {width}"
                f"{turned}: give the mask of this cube"
            )
        if self.wavelengths is not None and self.wavelengths.shape != (bands,):
            raise DataError(
                f"{self.name}: {self.wavelengths.size} wavelengths for {bands} bands: fix the "
                "header"
            )

    def with_mask(self, mask: Mask) -> Scene:
        """The same scene with this ground truth."""
        return replace(self, mask=mask)


def check_cube(cube: Cube, name: str = "cube") -> None:
    """Raise `DataError` for what is no finite (h, w, bands) array of floats.

    >>> check_cube(np.zeros((2, 2)))
    Traceback (most recent call last):
        ...
    fedvad.errors.DataError: cube: has shape (2, 2), not (height, width, bands)
    """
    if cube.ndim != 3 or 0 in cube.shape:
        raise DataError(f"{name}: has shape {cube.shape}, not (height, width, bands)")
    if cube.dtype.kind != "f":
        raise DataError(f"{name}: holds {cube.dtype}; give floats: cube.astype('float32')")
    if not np.isfinite([cube.min(), cube.max()]).all():
        where = np.argwhere(~np.isfinite(cube))
        raise DataError(
            f"{name}: {len(where)} values are NaN or infinite, the first at row, column, band "
            f"{tuple(where[0].tolist())}: fill or crop them first"
        )


def normalised(cube: Cube, norm: Norm = "global_minmax") -> NDArray[np.float64]:
    """A cube in the range that detectors with distances and networks expect.

    RX needs none: it is the same for any scaling of bands.

    Parameters
    ----------
    cube : (h, w, bands) float array
    norm : {"global_minmax", "band_minmax", "band_std", "none"}, default="global_minmax"
        The range of all values to [0, 1], that of each band to [0, 1], each band to zero mean and
        unit variance, or nothing. Constant values become 0.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.data.cubes.scene import normalised
    >>> normalised(np.array([[[2.0, 4.0], [3.0, 6.0]]])).tolist()
    [[[0.0, 0.5], [0.25, 1.0]]]
    """
    check_cube(cube)
    values = cube.astype(np.float64)
    if norm == "none":
        return values
    if norm not in NORMS:
        raise ConfigError(f"norm is {norm!r}; choose from {', '.join(NORMS)}")
    axes = None if norm == "global_minmax" else (0, 1)
    if norm == "band_std":
        low, span = values.mean(axes), values.std(axes)
    else:
        low, span = values.min(axes), np.ptp(values, axes)
    scaled: NDArray[np.float64] = (values - low) / np.where(span > 0, span, 1.0)
    return scaled


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
