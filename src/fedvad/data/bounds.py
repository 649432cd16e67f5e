"""How much work an image may ask for, judged by its header and length before it is decoded."""

from __future__ import annotations

import sys
from numbers import Integral

from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from fedvad.errors import ConfigError, ImageError

MAX_BAD = 0.05  # share of a set's images that may be unreadable, by default
MAX_PIXELS = 100_000_000
ANY_SIZE = 1 << 62  # for an image that was read before, under the limit of that time
# Pixels per byte of a file that strangers may send: photographs have a hundred at most, flat
# images three hundred (PNG) to thousands, so that a tiny file could ask for the largest work.
SERVICE_EXPANSION = 200

# Passes over all pixels: scans of a JPEG, which cost one each whatever their length (encoders
# write ten, optimising ones up to sixteen), and frames of an animation, since each is drawn over
# those before it. A small image may have more, as long as it costs no more than the largest.
_PASSES, _MOST_PASSES = 16, 100
_SCAN = b"\xff\xda"
_DRAWN_OVER = ("GIF", "PNG", "WEBP", "AVIF")
# Smaller images are cheap whatever they expand to, and flat ones do so by a thousand.
_CHEAP_PIXELS = 1_000_000


def check_limit(value: object, name: str, *, least: int = 1) -> None:
    """Raise `ConfigError` for what is no whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least {least}")


def check_pixels(width: int, height: int, name: str, max_pixels: int) -> None:
    """Raise `ImageError` when an image has more than `max_pixels` pixels."""
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: is {width} × {height} pixels large, over the limit of {max_pixels}: make it "
            "smaller, or raise the limit (--max-pixels, max_pixels in a file; of a service "
            "--max-megapixels)"
        )


def check_work(
    data: bytes, image: ImageFile, place: int, name: str, max_pixels: int, expansion: int | None
) -> None:
    """Raise `ImageError` when decoding would cost more than the largest allowed image may.

    image: opened, not decoded. place: of the frame that is wanted, from 0. expansion: pixels for
    each byte of the file that an image of more than a megapixel may have; None for any.
    """
    width, height = image.size
    check_pixels(width, height, name, max_pixels)
    pixels = width * height
    if expansion is not None and pixels > max(_CHEAP_PIXELS, expansion * len(data)):
        raise ImageError(
            f"{name}: is {width} × {height} pixels large in {len(data)} bytes, more than "
            f"{expansion} pixels per byte: send it smaller"
        )
    most = _PASSES * max_pixels // max(1, pixels)
    if (scans := _scans(data, image)) > min(most, _MOST_PASSES):
        raise ImageError(
            f"{name}: is a JPEG of {scans} scans, more than {min(most, _MOST_PASSES)}: save it "
            "again as a plain one"
        )
    if image.format in _DRAWN_OVER and place >= most:
        raise ImageError(
            f"{name}: needs {place} earlier frames of {width} × {height} pixels to be decoded: "
            "split the file into single images"
        )


_COMPRESSION, _JPEG_IN_TIFF = 259, 7
_PLACES = ((273, 279), (324, 325))  # offsets and lengths of a TIFF's strips, and of its tiles


def _scans(data: bytes, image: ImageFile) -> int:
    """How often the pixels of a JPEG, or of a TIFF's page made of JPEGs, are gone over."""
    if image.format == "JPEG":
        return data.count(_SCAN)
    if not isinstance(image, TiffImageFile) or image.tag_v2.get(_COMPRESSION) != _JPEG_IN_TIFF:
        return 0
    # strips are equally large: each has one scan, and one more costs its share of the page
    scans, pieces, left = 0, 1, 4 * len(data)
    for starts, lengths in _PLACES:
        found = list(zip(image.tag_v2.get(starts, ()), image.tag_v2.get(lengths, ()), strict=False))
        pieces = max(pieces, len(found))
        for start, length in found:
            left -= length
            if left < 0:  # the same bytes again and again
                return sys.maxsize
            scans += data.count(_SCAN, start, start + length)
    return max(0, scans - pieces) // pieces + 1
