"""Size and orientation of an image file from its header, without decoding a pixel."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class Header:
    """height, width: in pixels, upright as the image is decoded. turned: its EXIF orientation is
    not that of the stored pixels; sideways: it is turned by a quarter. grey: it has no colours.
    deep: its values have 16 bits.
    """

    height: int
    width: int
    turned: bool = False
    sideways: bool = False
    grey: bool = False
    deep: bool = False


def read_header(path: Path) -> Header | None:
    """The header of an image file; None where it has none that is known, or cannot be read."""
    if not path.is_file():  # a pipe would block for ever
        return None
    try:
        with warnings.catch_warnings():
            # nothing is decoded, so a huge image does no harm here
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
                grey = image.mode[0] in "1LIF" and image.mode != "LAB"
                deep = ";16" in str(image.tile)  # as "RGB;16B", for which no mode stands
                # Pillow decodes a whole PNG to look for EXIF data after the pixels
                known = image.format != "PNG" or "exif" in image.info
                turn = image.getexif().get(_ORIENTATION_TAG, 1) if known else 1
    except Exception:  # damaged in any way: whoever decodes it will say how
        return None
    if not isinstance(turn, int) or not 1 <= turn <= 8:
        turn = 1
    if turn >= 5:
        width, height = height, width
    return Header(height, width, turned=turn != 1, sideways=turn >= 5, grey=grey, deep=deep)
