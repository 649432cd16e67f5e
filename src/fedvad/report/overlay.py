"""Heat maps laid over photographs, outlines of ground truth, and PNG files written in one step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvad.data.files import write_atomically
from fedvad.data.images import check_rgb
from fedvad.data.outputs import PNG_MARK
from fedvad.errors import ConfigError, DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

Pixels = NDArray[np.uint8]

# Perceptually uniform and safe for colour-blind eyes. Not inferno or magma: they start at black,
# and where the map rises a little above `low` they would darken the photograph like a shadow.
_COLOURS = "plasma"
# Outlines: of the ground truth, of what a detector found, and of the rim around either.
LINE, FOUND, _RIM = (0, 229, 255), (255, 253, 240), (10, 25, 35)


def heatmap_overlay(
    image: Pixels,
    map: NDArray[np.floating[Any]],
    *,
    low: float,
    high: float,
    strength: float = 0.55,
) -> Pixels:
    """Photograph uint8 (H, W, 3) with its anomaly map (h, w) over it: uint8 (H, W, 3).

    The map is enlarged bilinearly to (H, W). Its opacity rises linearly from 0 at `low`, where the
    photograph stays as it is to the last bit, to `strength` at `high` and beyond; the colour rises
    with it. With low == high, values clearly above both (a thousandth) get full strength.
    Raises ConfigError for low > high, a bound that is not finite or strength outside [0, 1],
    DataError for unfit arrays, NaN or infinity.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ConfigError(f"the display range is [{low}, {high}]; give two finite, rising numbers")
    if not 0 <= strength <= 1:
        raise ConfigError(f"strength is {strength}; it must lie in [0, 1], for example 0.55")
    check_rgb(image)
    span = (high - low) or max(1e-3 * abs(low), 1e-12)
    level = np.clip(
        (enlarged(map, image.shape[0], image.shape[1]).astype(np.float64) - low) / span, 0, 1
    )
    colours = _palette()[np.rint(level * 255).astype(np.uint8)]
    opacity = (strength * level)[:, :, None]
    mixed = image * (1 - opacity) + colours * opacity
    blended: Pixels = np.rint(mixed).astype(np.uint8)
    return blended


def middle(map: NDArray[np.floating[Any]]) -> float:
    """Median of an anomaly map (h, w), of the cells in its region of interest: others are 0."""
    scored = map[map != 0]
    return float(np.median(scored)) if scored.size else 0.0


def map_range(normal_maps: Iterable[ArrayLike]) -> tuple[float, float]:
    """Common display range (low, high) of a site's maps (h, w), from its normal images only.

    Cells of 0 lie outside the region of interest and are left out, unless there are no others. With
    m the median and q the 99.9 % quantile of all normal pixels: low = m + 0.4 (q - m)
    and high = m + 1.6 (q - m). Below `low` lies ordinary texture (95 to 97 % of normal pixels on
    magnetic tiles); q, which one normal pixel in a thousand exceeds, gets half the full strength.
    It moves and scales with the maps, so negative scores work too, and no anomalous image, however
    extreme, changes how the others look; its own range may differ (`own_range`). Always
    low < high, also for constant maps. Raises DataError for no map, an empty one, NaN or
    infinity.
    """
    maps = [np.asarray(values, dtype=np.float64).ravel() for values in normal_maps]
    every = np.concatenate(maps or [np.empty(0)])
    pixels = every[every != 0] if every.any() else every
    if not pixels.size:
        raise DataError("no normal map to take a display range from: give at least one")
    if not np.isfinite(pixels).all():
        raise DataError("a normal map holds NaN or infinity; fix the detector")
    median, top = (float(value) for value in np.quantile(pixels, [0.5, 0.999]))
    # Rounding noise of a constant map must not be stretched over the whole range of colours.
    tail = max(top - median, 1e-3 * abs(median), 1e-12)
    return median + 0.4 * tail, median + 1.6 * tail


def own_range(map: NDArray[np.floating[Any]], low: float, high: float) -> tuple[float, float]:
    """Display range of one image's map (h, w), narrowed to where a strong defect is strongest.

    Patches around a hole see a part of it, so that far more than the hole exceeds `high`. Where
    the map rises above `high`, both ends rise, `low` by a quarter of the excess and `high` by four
    fifths of it: full colour then hugs the defect, and a second one of a third of its height still
    shows. A map that stays below `high`, such as almost every normal one, keeps the range. The
    shares were chosen by eye, on maps of the demo: a hole's bright spot shrinks from 9 times its
    area to 2.5 times. Source: ours.

    Parameters
    ----------
    map : (h, w) float array
        Finite.
    low, high : float
        The range of all maps of a site, low <= high.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.report.overlay import own_range
    >>> own_range(np.array([[0.5, 0.9]]), 0.25, 1.0)
    (0.25, 1.0)
    >>> own_range(np.array([[0.5, 3.5]]), 0.25, 1.0)
    (0.875, 3.0)
    """
    excess = max(0.0, float(map.max()) - high)
    return low + 0.25 * excess, high + 0.8 * excess


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """One-pixel boundary (H, W) bool of a mask (H, W) bool: its pixels with a neighbour outside.

    Neighbours are the four nearest; beyond the image's edge counts as outside, so that the
    outline of a region cut off by the edge is closed. Raises DataError for anything else.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise DataError(f"a mask must be bool (H, W), not {mask.dtype} {mask.shape}")
    wide = np.pad(mask, 1)
    inner = wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    border: NDArray[np.bool_] = mask & ~inner
    return border


def draw_outline(
    photograph: Pixels, mask: NDArray[np.bool_], colour: tuple[int, int, int] = LINE
) -> Pixels:
    """Photograph uint8 (H, W, 3) with a line around a mask (H, W), clear of it, and a dark rim.

    The photograph itself is returned when the mask is empty, else a copy.
    """
    from scipy.ndimage import binary_dilation

    if not mask.any():
        return photograph
    near = np.asarray(binary_dilation(mask, iterations=2), dtype=np.bool_)
    far = np.asarray(binary_dilation(near), dtype=np.bool_)
    drawn = photograph.copy()
    drawn[far & ~near] = _RIM
    drawn[outline(near)] = colour
    return drawn


def save_png(path: Path, image: Pixels) -> None:
    """Write uint8 (H, W, 3) as a PNG file, replacing `path` in one step.

    Raises DataError for any other array, StorageError when the disk refuses.
    """
    from PIL import Image

    check_rgb(image)
    write_atomically(path, marked_png(Image.fromarray(image), "picture"))


def marked_png(image: Image.Image, kind: str, **texts: str) -> bytes:
    """The bytes of a PNG that says it is fedvad's, so that no listing takes it for an input.

    kind: what it shows; texts: further entries of its metadata.
    """
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    for key, text in ({PNG_MARK: kind} | texts).items():
        about.add_text(key, text)
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=about)
    return buffer.getvalue()


def plot_png(figure: Figure) -> bytes:
    """The bytes of a plot as a PNG that says it is fedvad's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={PNG_MARK: "plot"})
    return buffer.getvalue()


def fitted(image: Pixels, longest: float) -> Pixels:
    """The image with `longest` pixels along its longer side."""
    from PIL import Image

    scale = longest / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def in_a_row(pictures: Sequence[Image.Image], width: int, left: int, step: int) -> Image.Image:
    """A white strip of a sheet, `width` pixels wide: pictures from `left` on, each `step` on."""
    from PIL import Image

    strip = Image.new("RGB", (width, max(picture.height for picture in pictures)), "#FFFFFF")
    for column, picture in enumerate(pictures):
        strip.paste(picture, (left + column * step, 0))
    return strip


def stacked(strips: Sequence[Image.Image]) -> Image.Image:
    """A sheet of strips of one width, one below the other, with a margin at its foot."""
    from PIL import Image

    height = sum(strip.height for strip in strips)
    sheet = Image.new("RGB", (strips[0].width, height + 24), "#FFFFFF")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def enlarged(values: NDArray[np.floating[Any]], height: int, width: int) -> NDArray[np.float32]:
    """A map (h, w) at the size of its photograph: float32 (height, width), bilinear.

    Raises DataError for an unfit array, NaN or infinity.
    """
    from PIL import Image

    cells = np.asarray(values, dtype=np.float32)
    if cells.ndim != 2 or 0 in cells.shape:
        raise DataError(f"an anomaly map must have shape (h, w), not {cells.shape}")
    if not np.isfinite(cells).all():
        raise DataError("the anomaly map holds NaN or infinity; fix the detector")
    picture = Image.fromarray(cells).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture, dtype=np.float32)


def _palette() -> NDArray[np.float64]:
    """The colours (256, 3), 0 ... 255."""
    import matplotlib

    colours = matplotlib.colormaps[_COLOURS](np.arange(256))[:, :3] * 255
    return np.asarray(colours, dtype=np.float64)
