"""Decode image files safely: a usable array, or one `ImageError` that names file and reason.

Files come from cameras, shared drives and USB sticks, so every byte is treated as hostile.
The format is found by the first bytes and handed straight to that Pillow decoder, not to
`PIL.Image.open`: no other decoder is ever tried, the size in the header and the work that it
implies are judged before a pixel is decoded, and neither `PIL.Image.MAX_IMAGE_PIXELS` nor the
(thread-unsafe) warning filters have to be touched. Embedded colour profiles are ignored.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from fedvad.data import medical
from fedvad.data.bounds import MAX_PIXELS, check_pixels, check_work
from fedvad.data.containers import check_png
from fedvad.data.depth import to_8_bit
from fedvad.data.formats import HEAD, IMAGE_SUFFIXES, decoder_of, format_of
from fedvad.data.frames import frames_in, pick_frame, split_frame
from fedvad.data.pictures import Picture
from fedvad.data.tiff_values import stored_type, why_unread
from fedvad.errors import ConfigError, DataError, ImageError, StorageError

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "check_rgb",
    "decode_rgb",
    "read_bands",
    "read_bytes",
    "read_mask",
    "read_rgb",
    "reason_of",
    "resize_rgb",
    "rgb_of_pil",
]

# A file is read whole before it is decoded; nothing sane under MAX_PIXELS is larger than this.
_MAX_BYTES = 1 << 30
_ORIENTATION_TAG = 0x0112
_MEDICAL = ("DICOM", "NIFTI")


def read_rgb(path: Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read one image as uint8 (H, W, 3): `read_bytes`, then `decode_rgb`.

    path: a file of one image, or the name of one of several (`scan.tif#2`, see `frames`), or a
    `Picture`. Raises `ImageError` as those two do.
    """
    if isinstance(path, Picture):
        pixels = path.rgb()
        check_pixels(pixels.shape[1], pixels.shape[0], str(path), max_pixels)
        return pixels
    frame = split_frame(path)[1]
    return decode_rgb(read_bytes(path), str(path), frame=frame, max_pixels=max_pixels)


def read_bytes(path: Path) -> bytes:
    """Read the bytes of an image's file, so that they can be hashed and decoded from one read.

    Of an image among several (`scan.tif#2`) these are the bytes of the whole file. Raises
    `ImageError` when the file is missing, unreadable, not a regular file (a pipe would block for
    ever) or larger than 1 GiB, `StorageError` when too many files are open.
    """
    file = split_frame(path)[0]
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path}: is not a regular file")
        if status.st_size > _MAX_BYTES:
            raise ImageError(f"{path}: is {status.st_size} bytes large, over {_MAX_BYTES}")
        return file.read_bytes()
    except (OSError, ValueError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise StorageError(
                f"{path}: too many files are open, which says nothing about the image: raise the "
                "limit (ulimit -n), or lower --jobs"
            ) from error
        raise ImageError(f"{path}: cannot be read: {reason_of(error)}") from error


def decode_rgb(
    data: bytes,
    name: str,
    *,
    frame: int | None = None,
    max_pixels: int = MAX_PIXELS,
    max_expansion: int | None = None,
) -> np.ndarray:
    """Decode the bytes of an image file to uint8 (H, W, 3) RGB.

    PNG, JPEG, BMP, TIFF, WebP, GIF, AVIF, PGM/PPM/PBM; DICOM and NIfTI with the extra `medical`
    (see `medical` for window and axes). The EXIF orientation is applied. Transparency (alpha,
    palette, colour key) is composited over white, as a viewer or paper shows it. Deep grey becomes
    8 bit by `depth.to_8_bit`, which looks at no other image.

    data: the whole file. name: of the image, in messages only. frame: number of the image among
    those of the file, from 1; None for a file of one image only. max_pixels: the most pixels, and
    with them the most work, that the header may ask for. max_expansion: pixels per byte of an
    image beyond a megapixel, for services; None for no such limit.

    Raises `ImageError` naming the file and the reason: empty, no such image, several images but
    no number, corrupt, truncated, larger or costlier than the limits (known before any pixel is
    decoded), or out of memory.
    """
    if data and format_of(data[:HEAD], name) in _MEDICAL:
        return _repeated(medical.grey_or_rgb(data, name, frame, max_pixels))
    with _decoded(data, name, max_pixels, frame, max_expansion) as (image, orientation):
        return _orient(_rgb(image), orientation)


def rgb_of_pil(image: Image.Image, name: str) -> np.ndarray:
    """The frame that a PIL image shows as uint8 (H, W, 3), by the steps of `decode_rgb`.

    Raises `ImageError` as that does.
    """
    with _as_image_error(name):
        image.load()
        return _orient(_rgb(image), _orientation(image))


def check_rgb(image: np.ndarray) -> None:
    """Raise `DataError` for anything but a uint8 (H, W, 3) image with at least one pixel."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(f"expected a uint8 (H, W, 3) image, not {image.dtype} {image.shape}")


def resize_rgb(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Squash a uint8 (H, W, 3) image to `size`, (height, width) or a side, bilinear with antialias.

    The whole image is kept, its aspect ratio is not. An image of that size already is returned
    as it is, not copied. Raises `ConfigError` for size < 1, `DataError` for any other array.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ConfigError(f"image size must be at least 1, not {size}")
    check_rgb(image)
    if image.shape[:2] == (height, width):
        return image
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.array(small)


def read_mask(path: Path, *, max_pixels: int = 10 * MAX_PIXELS) -> np.ndarray:
    """Read a ground-truth mask as bool (H, W); True is anomalous.

    Any stored value but zero counts (label maps with 1, 2, … work, at 8, 16 or 32 bit), black and
    fully transparent pixels do not. In a JPEG the value must pass 127, since compression leaves
    faint rings around every edge. It may be as large as its image, whose limit may have been
    raised. Raises `ImageError` as `read_rgb` does.
    """
    data, name, frame = read_bytes(path), str(path), split_frame(path)[1]
    if data and format_of(data[:HEAD], name) in _MEDICAL:
        mask: np.ndarray = medical.stored(data, name, frame, max_pixels) != 0
        return mask
    with _decoded(data, name, max_pixels, frame) as (image, orientation):
        return _orient(_nonzero(image), orientation)


def read_bands(path: Path, *, max_pixels: int = MAX_PIXELS) -> list[np.ndarray]:
    """The values of all images of a file as stored, each (H, W): grey is one, colour three of them.

    For files whose pages are bands of one scene; nothing is scaled to 8 bits, and no orientation
    applied. Raises `ImageError` as `read_rgb`.
    """
    data, name = read_bytes(path), str(path)
    form = format_of(data[:HEAD], name)
    if form in _MEDICAL:
        raise ImageError(f"{name}: is {form}, whose slices are not bands of one scene")
    places = frames_in(BytesIO(data), form, name)
    bands: list[np.ndarray] = []
    with _decoded(data, name, max_pixels, 1 if len(places) > 1 else None) as (image, _):
        for place in places:
            image.seek(place)
            check_work(data, image, place, name, max_pixels, None)
            image.load()
            if _is_deep(image):
                bands.append(_deep(image)[0])
            elif image.mode in ("1", "L"):
                bands.append(np.array(image.convert("L")))
            else:
                bands += np.moveaxis(np.array(image.convert("RGB")), 2, 0)
    return bands


@contextmanager
def _decoded(
    data: bytes,
    name: str,
    max_pixels: int,
    frame: int | None = None,
    max_expansion: int | None = None,
) -> Iterator[tuple[ImageFile, int]]:
    """Open and decode; what goes wrong here or in the block leaves as ImageError."""
    with _as_image_error(name):
        if not data:
            raise ImageError(f"{name}: is empty")
        form = format_of(data[:HEAD], name)
        if form == "PNG":
            check_png(data, name)
        place = pick_frame(frames_in(BytesIO(data), form, name), frame, name)
        with _opened(data, form, name) as image:
            check_work(data, image, place, name, max_pixels, max_expansion)
            if place:
                image.seek(place)
                # a page of a TIFF has a size of its own
                check_work(data, image, place, name, max_pixels, max_expansion)
            image.load()
            yield image, _orientation(image)


def _opened(data: bytes, form: str, name: str) -> ImageFile:
    try:
        return decoder_of(form, name)(BytesIO(data))
    except (SyntaxError, KeyError) as error:  # Pillow's words for what it has no decoder for
        if form == "TIFF" and (why := why_unread(data)):
            raise ImageError(f"{name}: {why}") from error
        raise


@contextmanager
def _as_image_error(name: str) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except DataError as error:  # what `to_8_bit` cannot scale
        raise ImageError(f"{name}: {error}") from error
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error,
    # KeyError, OverflowError, DecompressionBombError, …: a closed list would be wrong.
    except Exception as error:
        raise ImageError(f"{name}: cannot be decoded: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Why a file cannot be read, on one line."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _orientation(image: Image.Image) -> int:
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


def _rgb(image: Image.Image) -> np.ndarray:
    if _is_deep(image):
        values, bits = _deep(image)
        return _repeated(to_8_bit(values, bits))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return np.array(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
    return np.array(image.convert("RGB"))  # np.array, not asarray: the caller may write to it


def _repeated(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def _nonzero(image: Image.Image) -> np.ndarray:
    pixels: np.ndarray
    if _is_deep(image):
        pixels = _deep(image)[0]
    elif image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        pixels = rgba[:, :, :3].max(axis=2) * (rgba[:, :, 3] > 0)
    else:
        pixels = np.asarray(image.convert("RGB")).max(axis=2)
    found: np.ndarray = pixels > 127 if image.format in ("JPEG", "AVIF") else pixels != 0
    return found


def _is_deep(image: Image.Image) -> bool:
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    return deep or stored_type(image) is not None


_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def _deep(image: Image.Image) -> tuple[npt.NDArray[Any], int | None]:
    """Values of deep grey, and the bits that the file says they have; None for 32."""
    values = np.asarray(image)
    bits: int | None = None
    if isinstance(image, TiffImageFile):
        stored = image.tag_v2.get(_BITS, (0,))[0]
        # 16 signed bits, too: their brightest is mid-grey, like that of the same values unsigned
        bits = stored if stored in (8, 12, 16) else None
        values = values if (own := stored_type(image)) is None else values.view(own)
        if bits and values.dtype == np.uint16 and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            values = (2**bits - 1) - values  # which Pillow does for 8 bits only
    elif image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        bits = None if image.mode == "F" else 16  # in mode I by some versions of Pillow
    return values, bits
