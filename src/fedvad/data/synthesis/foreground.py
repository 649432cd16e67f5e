"""Where the object is: defects belong on it, not on the table that it lies on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from fedvad.data.synthesis.config import SynthesisConfig
from fedvad.errors import ConfigError

# The object is found on a small picture: its noise is averaged away, and it takes no time.
_SMALL = 128
_HOLE = 0.05  # of the object's area; a larger one is a hole of the object itself, as in a nut
# Of Gaussian grey levels, as of an even surface, the best two sides explain 2/pi = 0.64 of the
# variance; of the screws and hazelnuts of MVTec AD 0.74 and more.
_CLEAR = 0.7
_LEAST = 0.01  # an object smaller than this share of the image is none


def find_foreground(image: NDArray[np.uint8], config: SynthesisConfig) -> NDArray[np.bool_]:
    """The object as bool (H, W) on an image uint8 (H, W, 3), by `config.foreground`; never empty.

    The grey image, shrunk to 128 pixels at most, is cut at the threshold. With side `auto` the
    object is the side with the smaller share of the pixels along the image's border, since the
    background surrounds it; if both have half, the smaller side. A pixel goes with the majority of
    its 3 x 3 neighbours, and holes of less than 5 % of the object are filled (highlights, slots).

    The whole image is the foreground if the object covers less than 1 % of it or `min_pixels`, and
    with `otsu` if bright and dark explain less than 70 % of the variance of the grey levels, as on
    an even surface. Raises `ConfigError` when a function returns anything but bool (H, W).
    Source: Otsu (1979); all else is ours.
    """
    height, width = image.shape[:2]
    if config.foreground == "none":
        return np.ones((height, width), dtype=np.bool_)
    if callable(config.foreground):
        found = np.asarray(config.foreground(image))
        if found.shape != (height, width) or found.dtype != np.bool_:
            raise ConfigError(
                f"the foreground function must return bool {(height, width)}, "
                f"not {found.dtype} {found.shape}"
            )
    else:
        found = _by_threshold(image, config)
    if found.sum() < max(_LEAST * found.size, config.min_pixels):
        return np.ones((height, width), dtype=np.bool_)
    return found


def otsu_threshold(grey: NDArray[np.uint8]) -> int:
    """The grey level 0 to 254 that divides uint8 values best: those above it are bright.

    It has the largest variance between the two sides; of equals the middle. Source: Otsu (1979).
    """
    counts = np.bincount(grey.ravel(), minlength=256).astype(np.float64)
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    first = np.cumsum(counts * np.arange(256))
    total = first[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (first[:-1] / below - (total - first[:-1]) / above) ** 2
    between = np.nan_to_num(between, nan=-1.0)
    best = np.flatnonzero(between == between.max())
    return int(best[len(best) // 2])


def _by_threshold(image: NDArray[np.uint8], config: SynthesisConfig) -> NDArray[np.bool_]:
    height, width = image.shape[:2]
    scale = min(1.0, _SMALL / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(image).convert("L").resize(size, Image.Resampling.BOX)
    grey = np.asarray(small)
    if config.foreground == "otsu":
        bright = grey > otsu_threshold(grey)
        if not _is_clear(grey, bright):
            return np.ones((height, width), dtype=np.bool_)
    else:
        bright = grey > config.foreground
    if config.side == "auto":
        wanted = bright if _is_object(bright) else ~bright
    else:
        wanted = bright if config.side == "bright" else ~bright
    smooth = ndimage.uniform_filter(wanted.astype(np.float32), 3, mode="nearest")
    clean = Image.fromarray(_filled(smooth > 0.5).astype(np.uint8) * 255)
    found: NDArray[np.bool_] = (
        np.asarray(clean.resize((width, height), Image.Resampling.BILINEAR)) > 127
    )
    return found


def _is_clear(grey: NDArray[np.uint8], bright: NDArray[np.bool_]) -> bool:
    """Whether the two sides explain enough of the variance of the grey levels."""
    share = float(bright.mean())
    if share in (0.0, 1.0):
        return False
    apart = float(grey[bright].mean() - grey[~bright].mean())
    return share * (1 - share) * apart**2 >= _CLEAR * float(grey.var())


def _filled(side: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The side with its small holes."""
    parts, _ = ndimage.label(~side)
    sizes = np.bincount(parts.ravel())
    edge = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    small = sizes < _HOLE * side.sum()
    small[edge] = False
    filled: NDArray[np.bool_] = side | small[parts]
    return filled


def _is_object(side: NDArray[np.bool_]) -> bool:
    """Whether this side fills less of the border than the other."""
    border = np.concatenate([side[0], side[-1], side[1:-1, 0], side[1:-1, -1]]).mean()
    return bool(border < 0.5 or (border == 0.5 and side.mean() <= 0.5))
