"""What a TIFF stores, by its directory: values that Pillow takes for others, or not at all."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2, TiffImageFile

_BITS, _COMPRESSION, _CHANNELS, _FORMAT = 258, 259, 277, 339
_UNSIGNED, _SIGNED = 1, 2
_KINDS = {1: "integers", 2: "signed integers", 3: "floats", 5: "complex integers", 6: "complex"}
_PACKED = {
    33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA",
    50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
_SAVE = "save it as grey or RGB of 8 or 16 bits, compressed by LZW or not at all"


def stored_type(image: Image.Image) -> type[np.int8 | np.uint32] | None:
    """The type of grey integers that Pillow reads with the wrong sign; None for all others.

    Those are signed ones of 8 bits, which it takes for unsigned, and unsigned ones of 32. Their
    bits are right. Looks at the directory of a TIFF alone, not at its pixels.
    """
    if not isinstance(image, TiffImageFile):
        return None
    tags = image.tag_v2
    kind = (image.mode, tags.get(_BITS, (0,))[0], tags.get(_FORMAT, (_UNSIGNED,))[0])
    if kind == ("L", 8, _SIGNED):
        return np.int8
    if kind == ("I", 32, _UNSIGNED):
        return np.uint32
    return None


def why_unread(data: bytes) -> str | None:
    """Why the first page of a TIFF cannot be decoded, and how to save it; None if that is unknown.

    data: the whole file, of which Pillow refused a page.
    """
    try:
        tags = ImageFileDirectory_v2(data[: 16 if b"+" in data[2:4] else 8])
        file = BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        bits, kind = tags.get(_BITS, (1,)), tags.get(_FORMAT, (_UNSIGNED,))[0]
        packed, channels = tags.get(_COMPRESSION, 1), tags.get(_CHANNELS, 1)
    except Exception:  # damaged, too: then that is the reason
        return None
    if packed in _PACKED or packed not in COMPRESSION_INFO:
        return f"is a TIFF compressed by {_PACKED.get(packed, f'method {packed}')}: {_SAVE}"
    if kind not in _KINDS or not isinstance(channels, int):
        return None
    many = f"{channels} channels of " if channels > 1 else ""
    return f"is a TIFF of {many}{bits[0]}-bit {_KINDS[kind]}, which is not read: {_SAVE}"
