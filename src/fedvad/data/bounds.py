"""How much work an image may ask for, judged by its header and length before it is decoded."""

from __future__ import annotations

from PIL.ImageFile import ImageFile

from fedvad.errors import ImageError

__all__ = ["ANY_SIZE", "MAX_BAD", "MAX_PIXELS", "SERVICE_EXPANSION", "check_pixels", "check_work"]

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


def check_pixels(width: int, height: int, name: str, max_pixels: int) -> None:
    """Raise `ImageError` when an image has more than `max_pixels` pixels."""
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: is {width} × {height} pixels large, over the limit of {max_pixels}: make it "
            "smaller, or raise the limit (--max-pixels; of a service --max-megapixels)"
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
    if image.format == "JPEG" and (scans := data.count(_SCAN)) > min(most, _MOST_PASSES):
        raise ImageError(
            f"{name}: is a JPEG of {scans} scans, more than {min(most, _MOST_PASSES)}: save it "
            "again as a plain one"
        )
    if image.format in _DRAWN_OVER and place >= most:
        raise ImageError(
            f"{name}: is drawn over {place} frames of {width} × {height} pixels before it: split "
            "the file into images"
        )
