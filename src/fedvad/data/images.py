"""Decode image files safely: a usable array, or one `ImageError` that names file and reason.

Files come from cameras, shared drives and USB sticks, so every byte is treated as hostile.
The format is told by the first bytes and handed straight to that Pillow decoder, not to
`PIL.Image.open`: no other decoder is ever tried, the size in the header is judged before a pixel
is decoded, and neither `PIL.Image.MAX_IMAGE_PIXELS` nor the (thread-unsafe) warning filters have
to be touched. Embedded colour profiles are ignored.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from fedvad.errors import ConfigError, DataError, ImageError, StorageError

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "check_rgb",
    "decode_rgb",
    "read_bytes",
    "read_mask",
    "read_rgb",
    "resize_rgb",
]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 100_000_000

# A file is read whole before it is decoded; nothing sane under MAX_PIXELS is larger than this.
_MAX_BYTES = 1 << 30
_ORIENTATION_TAG = 0x0112
_DECODERS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
    (b"BM", BmpImageFile),
    (b"II*\x00", TiffImageFile),
    (b"MM\x00*", TiffImageFile),
    (b"II+\x00", TiffImageFile),
    (b"MM\x00+", TiffImageFile),
    (b"RIFF", WebPImageFile),
)

# Each scan of a JPEG costs a pass over all blocks, whatever its length; progressive files have ten.
_SCAN, _MAX_SCANS = b"\xff\xda", 100


def read_rgb(path: Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read one image file as uint8 (H, W, 3): `read_bytes`, then `decode_rgb`.

    Raises `ImageError` as those two do.
    """
    return decode_rgb(read_bytes(path), str(path), max_pixels=max_pixels)


def read_bytes(path: Path) -> bytes:
    """Read the bytes of one image file, so that they can be hashed and decoded from one read.

    Raises `ImageError` when the file is missing, unreadable, not a regular file (a pipe would
    block for ever) or larger than 1 GiB, `StorageError` when too many files are open.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path}: is not a regular file")
        if status.st_size > _MAX_BYTES:
            raise ImageError(f"{path}: is {status.st_size} bytes large, over {_MAX_BYTES}")
        return path.read_bytes()
    except (OSError, ValueError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise StorageError(
                f"{path}: too many files are open, which says nothing about the image: raise the "
                "limit (ulimit -n), or lower --jobs"
            ) from error
        raise ImageError(f"{path}: cannot be read: {_reason(error)}") from error


def decode_rgb(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode the bytes of a PNG, JPEG, BMP, TIFF or WebP file to uint8 (H, W, 3).

    The EXIF orientation is applied; of several frames the first is taken. Transparency (alpha,
    palette, colour key) is composited over white, as a viewer or paper shows it. Deep grey becomes
    8 bit by fixed steps: 16 bit by 1/257; 32-bit integers and floats by the smallest range that
    holds the image's largest value: 0..1 (floats only), 0..255, 0..65535 or 0..2^32-1 (floats may
    lie a quarter above, as interpolation leaves them, and are cut off); negatives and NaN become 0.
    `name` is used in messages only.

    Raises `ImageError` naming the file and the reason: empty, not such an image, corrupt,
    truncated, more than `max_pixels` pixels or 100 scans of a JPEG (known before any is decoded),
    or out of memory.
    """
    with _decoded(data, name, max_pixels) as (image, orientation):
        return _orient(_rgb(image), orientation)


def check_rgb(image: np.ndarray) -> None:
    """Raise `DataError` for anything but a uint8 (H, W, 3) image with at least one pixel."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(f"expected a uint8 (H, W, 3) image, not {image.dtype} {image.shape}")


def resize_rgb(image: np.ndarray, size: int) -> np.ndarray:
    """Squash a uint8 (H, W, 3) image to uint8 (size, size, 3), bilinear with antialias.

    The whole image is kept, its aspect ratio is not. An image of that size already is returned
    as it is, not copied. Raises `ConfigError` for size < 1, `DataError` for any other array.
    """
    if size < 1:
        raise ConfigError(f"image size must be at least 1, not {size}")
    check_rgb(image)
    if image.shape[:2] == (size, size):
        return image
    small = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.array(small)


def read_mask(path: Path, size: int | None, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a ground-truth mask as bool (size, size), or (H, W) for None; True is anomalous.

    Any stored value but zero counts (label maps with 1, 2, … work, at 8, 16 or 32 bit), black and
    fully transparent pixels do not. In a JPEG the value must pass 127, since compression leaves
    faint rings around every edge. Resized by nearest neighbour. Raises `ImageError` as `read_rgb`
    does, `ConfigError` for size < 1.
    """
    if size is not None and size < 1:
        raise ConfigError(f"mask size must be at least 1, not {size}")
    with _decoded(read_bytes(path), str(path), max_pixels) as (image, orientation):
        mask = _orient(_nonzero(image), orientation)
    if size is None:
        return mask
    rows, columns = ((2 * np.arange(size) + 1) * side // (2 * size) for side in mask.shape)
    return np.ascontiguousarray(mask[np.ix_(rows, columns)])


@contextmanager
def _decoded(data: bytes, name: str, max_pixels: int) -> Iterator[tuple[ImageFile, int]]:
    """Open and decode; what goes wrong here or in the block leaves as ImageError."""
    try:
        if not data:
            raise ImageError(f"{name}: is empty")
        with _decoder(data, name)(BytesIO(data)) as image:
            if isinstance(image, JpegImageFile) and data.count(_SCAN) > _MAX_SCANS:
                raise ImageError(f"{name}: is a JPEG of more than {_MAX_SCANS} scans")
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(
                    f"{name}: is {width} × {height} pixels large, over the limit of {max_pixels}"
                )
            image.load()
            yield image, _orientation(image)
    except ImageError:
        raise
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error,
    # KeyError, OverflowError, DecompressionBombError, …: a closed list would be wrong.
    except Exception as error:
        raise ImageError(f"{name}: cannot be decoded: {_reason(error)}") from error


def _decoder(data: bytes, name: str) -> type[ImageFile]:
    for magic, decoder in _DECODERS:
        if data.startswith(magic):
            return decoder
    raise ImageError(f"{name}: is not a PNG, JPEG, BMP, TIFF or WebP image")


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _orientation(image: ImageFile) -> int:
    """EXIF orientation 1..8. (Pillow's TIFF decoder turns the pixels and drops the tag itself.)"""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata around sound pixels: the image is still of use
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (H, W) or (H, W, C) pixels upright, by the EXIF orientation of the stored ones."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _rgb(image: ImageFile) -> np.ndarray:
    if _is_deep(image):
        return np.repeat(_grey8(image)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return np.array(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
    return np.array(image.convert("RGB"))  # np.array, not asarray: the caller may write to it


def _nonzero(image: ImageFile) -> np.ndarray:
    pixels: np.ndarray
    if _is_deep(image):
        pixels = np.asarray(image)
    elif image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        pixels = rgba[:, :, :3].max(axis=2) * (rgba[:, :, 3] > 0)
    else:
        pixels = np.asarray(image.convert("RGB")).max(axis=2)
    found: np.ndarray = pixels > 127 if image.format == "JPEG" else pixels != 0
    return found


def _is_deep(image: ImageFile) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


_OVERSHOOT = 1.25


def _grey8(image: ImageFile) -> np.ndarray:
    """Deep grey to uint8 (H, W), by the steps that `decode_rgb` documents."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    finite = values[np.isfinite(values)]
    top = float(finite.max()) if finite.size else 0.0
    if image.mode == "F":  # interpolation goes a little beyond the range of what it began with
        top /= _OVERSHOOT
    if image.format == "PNG":  # Pillow < 11 opens 16-bit PNG in mode I, however dark it is
        scale = 1 / 257
    elif image.mode == "F" and top <= 1:
        scale = 255.0
    elif top <= 255:
        scale = 1.0
    elif top <= 65535:
        scale = 1 / 257
    else:
        scale = 255 / (2**32 - 1)
    scaled = np.nan_to_num(np.maximum(values, 0) * scale, nan=0.0, posinf=255.0)
    grey: np.ndarray = np.clip(scaled, 0, 255).round().astype(np.uint8)
    return grey
