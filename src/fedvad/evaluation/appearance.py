"""Simple figures of a whole photograph, to say what changed: light, focus, colour, position."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["KINDS", "appearance", "mean_picture", "placement", "thumbnail"]

# what a change of each figure means
KINDS = {
    "brightness": "light",
    "contrast": "light",
    "sharpness": "focus",
    "red": "colour",
    "blue": "colour",
    "across": "position",
    "down": "position",
    "likeness": "product",
}
_SIDE = 64  # of the pictures that are laid upon one another
_COARSE, _FINE = 16, 4
_LITTLE = 1e-9

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


def thumbnail(pixels: Pixels) -> Pixels:
    """Grey values (64, 64) of a photograph uint8 (H, W, 3), for `mean_picture`.

    >>> from fedvad.evaluation.appearance import thumbnail
    >>> thumbnail(np.full((100, 200, 3), 7, np.uint8)).shape
    (64, 64)
    """
    return _reduced(Image.fromarray(pixels).convert("L"), _SIDE, _SIDE)


def mean_picture(thumbnails: Iterable[Pixels]) -> Floats:
    """The mean (64, 64) of thumbnails, each at mean 0 and spread 1.

    >>> from fedvad.evaluation.appearance import mean_picture
    >>> drawn = np.arange(4096, dtype=np.uint8).reshape(64, 64)
    >>> float(mean_picture([drawn, 255 - drawn]).round(6).max())
    0.0
    """
    mean: Floats = np.mean([_standard(each.astype(np.float64)) for each in thumbnails], axis=0)
    return mean


def appearance(pixels: Pixels) -> dict[str, float]:
    """What a photograph looks like, as figures that each answer to one kind of change.

    Parameters
    ----------
    pixels : (H, W, 3) uint8 array
        RGB.

    Returns
    -------
    dict
        brightness: mean grey value, 0 to 255. contrast: spread of a coarse picture over its mean.
        sharpness: mean step between neighbouring pixels over that at a quarter of the size, so
        that light and contrast cancel. red, blue: share of each in the colour.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.appearance import appearance
    >>> found = appearance(np.full((32, 32, 3), (120, 60, 60), np.uint8))
    >>> found["brightness"], found["contrast"], found["red"]
    (78.0, 0.0, 0.5)

    Source: ours.
    """
    picture = Image.fromarray(pixels)
    grey = picture.convert("L")
    coarse = _reduced(grey, _COARSE, _COARSE).astype(np.float64)
    fine = np.asarray(grey)
    quarter = _reduced(grey, *(max(1, side // _FINE) for side in fine.shape[::-1]))
    colours = np.asarray(picture.resize((_COARSE, _COARSE), Image.Resampling.BOX), np.float64)
    red, _, blue = colours.mean(axis=(0, 1)) / max(float(colours.mean()) * 3, _LITTLE)
    return {
        "brightness": float(coarse.mean()),
        "contrast": float(coarse.std() / max(float(coarse.mean()), 1.0)),
        "sharpness": (_step(fine) + 0.1) / (_step(quarter) + 0.1),
        "red": float(red),
        "blue": float(blue),
    }


def placement(thumbnail: Pixels, mean: npt.NDArray[np.floating]) -> dict[str, float]:
    """Where a picture lies, against the mean picture of others, and how like it it is there.

    Parameters
    ----------
    thumbnail : (64, 64) uint8 array
        Of `thumbnail`.
    mean : (64, 64) float array
        Of `mean_picture`, made from other images than this one.

    Returns
    -------
    dict
        across, down: by which part of its width and height it lies away, from -0.5 to 0.5.
        likeness: correlation of what lies upon one another then, in [-1, 1].

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.appearance import mean_picture, placement, thumbnail
    >>> picture = np.zeros((64, 64, 3), np.uint8)
    >>> picture[20:40, 16:32] = 200
    >>> mean = mean_picture([thumbnail(picture)])
    >>> found = placement(thumbnail(np.roll(picture, 8, axis=1)), mean)
    >>> found["across"], found["down"]
    (0.125, 0.0)

    Source: phase correlation, Kuglin and Hines (1975).
    """
    small, other = _standard(thumbnail.astype(np.float64)), np.asarray(mean, np.float64)
    down, across = _displacement(small, other)
    return {
        "across": across / _SIDE,
        "down": down / _SIDE,
        "likeness": _likeness(small, other, down, across),
    }


def _reduced(grey: Image.Image, width: int, height: int) -> Pixels:
    return np.asarray(grey.resize((width, height), Image.Resampling.BOX))


def _standard(values: Floats) -> Floats:
    centred: Floats = values - values.mean()
    return centred / max(float(centred.std()), _LITTLE)


def _step(grey: Pixels) -> float:
    """Mean absolute difference of neighbours."""
    values = grey.astype(np.int16)
    steps = [np.abs(np.diff(values, axis=axis)) for axis in (0, 1)]
    return float(np.mean([each.mean() if each.size else 0.0 for each in steps]))


def _displacement(picture: Floats, mean: Floats) -> tuple[int, int]:
    """Rows and columns, from -32 to 31, by which `picture` lies away from `mean`."""
    product = np.fft.rfft2(picture) * np.conj(np.fft.rfft2(mean))
    peak = np.fft.irfft2(product / np.maximum(np.abs(product), _LITTLE), s=picture.shape)
    row, column = np.unravel_index(int(peak.argmax()), peak.shape)
    half = _SIDE // 2
    return (int(row) + half) % _SIDE - half, (int(column) + half) % _SIDE - half


def _likeness(picture: Floats, mean: Floats, down: int, across: int) -> float:
    """Correlation of the parts that lie upon one another."""
    ours = picture[max(down, 0) : _SIDE + min(down, 0), max(across, 0) : _SIDE + min(across, 0)]
    theirs = mean[max(-down, 0) : _SIDE + min(-down, 0), max(-across, 0) : _SIDE + min(-across, 0)]
    return float((_standard(ours) * _standard(theirs)).mean())
