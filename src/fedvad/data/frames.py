"""Files of several images: pages of a TIFF, frames of an animation, slices of a volume.

Each is an image of its own, called `name.tif#1`, `name.tif#2`, ... An image of a file with only
one has the file's bare name. Such a name stands wherever a path stands: in lists, results,
reports and on the command line; `read_rgb` and the feature extractor take it apart.

How many there are is read from headers alone, so that folders are listed fast.
"""

from __future__ import annotations

import re
import stat
import struct
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from fedvad.data.containers import check_count, gif_frames, pick_frame, tiff_pages
from fedvad.data.formats import FRAME_SUFFIXES, HEAD, decoder_of, format_of, image_suffix
from fedvad.errors import ImageError

__all__ = [
    "BANDS",
    "frame_path",
    "frames_in",
    "frames_of",
    "pick_frame",
    "split_frame",
    "stem_of",
]

BANDS = "#bands"  # after the name of a file of which all images are bands of one cube

_FRAME = re.compile(r"(.+)#([1-9][0-9]{0,5})", re.DOTALL)


def split_frame(path: Path) -> tuple[Path, int | None]:
    """The file of an image, and its number among those of the file; None is the only one.

    By the name alone: a name that ends in "#" and a number means that image of the file before it,
    and one that ends in "#bands" all of them as one cube.

    >>> split_frame(Path("scans/part.tif#2"))[1]
    2
    """
    if path.name.endswith(BANDS):
        return path.with_name(path.name.removesuffix(BANDS)), None
    found = _FRAME.fullmatch(path.name)
    if found is None:
        return path, None
    return path.with_name(found.group(1)), int(found.group(2))


def frame_path(file: Path, number: int) -> Path:
    """The name of image `number` of a file, counted from 1."""
    return file.with_name(f"{file.name}#{number}")


def stem_of(path: Path, more: str = "") -> str:
    """The name of an image without its suffix, with `more` and its number.

    >>> stem_of(Path("part.tif#2"), "_mask")
    'part_mask#2'
    """
    file, number = split_frame(path)
    suffix = image_suffix(file) or file.suffix
    name = file.name[: len(file.name) - len(suffix)] + more
    return name if number is None else f"{name}#{number}"


def frames_of(file: Path) -> list[Path]:
    """The names of the images in a file: its own, or one for each of several.

    Reads the headers only, and nothing of a file whose suffix stands for a single image. A file
    that cannot be read is one image; reading it later reports why. A DICOM file without pixels,
    such as a report, has none.
    """
    if image_suffix(file) not in FRAME_SUFFIXES:
        return [file]
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return [file]
        with file.open("rb") as opened:
            head = opened.read(HEAD)
            count = len(frames_in(opened, format_of(head, file.name), file.name))
    except (OSError, ValueError, ImageError):
        return [file]
    return [file] if count == 1 else [frame_path(file, n) for n in range(1, count + 1)]


def frames_in(file: BinaryIO, form: str, name: str) -> list[int]:
    """Where a decoder finds each image of an open file of that format: places counted from 0.

    Reduced copies and masks among the pages of a TIFF do not count. Raises `ImageError` for a
    damaged directory, or more than 10 000 images.
    """
    try:
        places = _places(file, form, name)
    except (struct.error, IndexError) as error:
        raise ImageError(f"{name}: cannot be decoded: its list of images is damaged") from error
    check_count(places, name)
    return list(places)


def _places(file: BinaryIO, form: str, name: str) -> Sequence[int]:
    if form == "TIFF":
        return tiff_pages(file, name)
    if form == "GIF":
        return range(gif_frames(file, name))
    if form == "DICOM" or form == "NIFTI":
        from fedvad.data import medical

        return range(medical.count(file, form, name))
    file.seek(0)
    head = file.read(1 << 16)
    # VP8X has a flag for animation; APNG a chunk, AVIF a brand. The rest are single images.
    animated = (
        (form == "WEBP" and head[12:16] == b"VP8X" and head[20] & 2)
        or (form == "PNG" and b"acTL" in head)
        or (form == "AVIF" and b"avis" in head[: int.from_bytes(head[:4], "big")])
    )
    return range(_counted_by_pillow(file, form, name) if animated else 1)


def _counted_by_pillow(file: BinaryIO, form: str, name: str) -> int:
    file.seek(0)
    try:
        with decoder_of(form, name)(BytesIO(file.read())) as image:
            return max(1, int(getattr(image, "n_frames", 1)))
    except ImageError:
        raise
    except Exception as error:  # as `images` says of Pillow's decoders
        raise ImageError(f"{name}: cannot be decoded: its list of frames is damaged") from error
