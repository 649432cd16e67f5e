"""How many images a TIFF or GIF holds, found by walking its blocks by hand, and which is meant.

That must neither decode an image nor let a hostile file choose how long it takes, and a TIFF's
pages must be distinguished from the reduced copies and masks that it keeps beside them.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fedvad.errors import ImageError

MAX_FRAMES = 10_000  # of any file
_MAX_TAGS = 200_000  # of all directories of a TIFF

_SUBFILE, _OLD_SUBFILE, _PHOTOMETRIC, _DESCRIPTION, _DEPTH = 254, 255, 262, 270, 32997
_REDUCED, _TRANSPARENCY, _OLD_REDUCED, _MASK = 1, 4, 2, 4
_SHORT = 3
_TEXT = 4096  # as much of a description as says whether it describes a stack


def tiff_pages(file: BinaryIO, name: str) -> list[int]:
    """Places, in the chain of directories, of the pages of a TIFF or BigTIFF.

    Raises `ImageError` for volumes, for stacks of which the chain names a part only (as ImageJ
    writes beyond 4 GB), and for chains of absurd length; `struct.error` for damaged ones.
    """
    file.seek(0)
    head = file.read(16)
    kind = _Kind(end="<" if head[:2] == b"II" else ">", big=b"+" in head[2:4])
    (offset,) = struct.unpack_from(kind.number, head, 8 if kind.big else 4)
    full: list[int] = []
    seen: set[int] = set()
    tags = 0
    text = b""
    while offset and offset not in seen:  # a chain that bites its own tail ends there
        seen.add(offset)
        file.seek(offset)
        (count,) = struct.unpack(kind.count, file.read(struct.calcsize(kind.count)))
        tags += count
        if tags > _MAX_TAGS or len(seen) > MAX_FRAMES:
            raise ImageError(f"{name}: is a TIFF of too many pages or entries: split the file")
        body = file.read(count * kind.entry + kind.width)
        (offset,) = struct.unpack_from(kind.number, body, count * kind.entry)
        found = _values(kind, body, count)
        if found.get(_DEPTH, 1) > 1:
            raise ImageError(
                f"{name}: is a TIFF volume of depth {found[_DEPTH]}: save its slices as pages"
            )
        if len(seen) == 1 and _DESCRIPTION in found:
            file.seek(found[_DESCRIPTION])
            text = file.read(_TEXT)
        reduced = found.get(_SUBFILE, 0) & (_REDUCED | _TRANSPARENCY)
        reduced = reduced or found.get(_OLD_SUBFILE) == _OLD_REDUCED
        if not reduced and found.get(_PHOTOMETRIC) != _MASK:
            full.append(len(seen) - 1)
    if _hides_more(text, len(seen)):
        raise ImageError(
            f"{name}: is a stack, and its TIFF directory lists only a part of it: save its images "
            "as pages or as single files"
        )
    return full or list(range(max(1, len(seen))))


@dataclass(frozen=True)
class _Kind:
    """Byte order and widths of a TIFF's numbers."""

    end: str
    big: bool

    @property
    def number(self) -> str:
        return self.end + ("Q" if self.big else "I")

    @property
    def count(self) -> str:
        return self.end + ("Q" if self.big else "H")

    @property
    def width(self) -> int:
        return 8 if self.big else 4

    @property
    def entry(self) -> int:
        return 20 if self.big else 12


def _values(kind: _Kind, body: bytes, count: int) -> dict[int, int]:
    """The few entries that matter; of a text, where it stands."""
    found = {}
    for at in range(0, count * kind.entry, kind.entry):
        tag, type_ = struct.unpack_from(f"{kind.end}HH", body, at)
        if tag in (_SUBFILE, _OLD_SUBFILE, _PHOTOMETRIC, _DEPTH):
            form = kind.end + ("H" if type_ == _SHORT else "I")
            (found[tag],) = struct.unpack_from(form, body, at + 4 + kind.width)
        elif tag == _DESCRIPTION:
            (length,) = struct.unpack_from(kind.number, body, at + 4)
            (where,) = struct.unpack_from(kind.number, body, at + 4 + kind.width)
            if length > kind.width:  # a shorter one stands in the entry itself
                found[tag] = where
    return found


def _hides_more(text: bytes, pages: int) -> bool:
    if text.startswith(b"ImageJ="):
        images = re.search(rb"\bimages=([0-9]{1,9})", text)
        return images is not None and int(images.group(1)) > pages
    return text.startswith(b"{") and re.search(rb'"truncated": *true', text) is not None


_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B
_MAX_STRAY = 10_000  # bytes between blocks


def gif_frames(file: BinaryIO, name: str) -> int:
    """How many frames a GIF holds; of a file that is cut off, those that begin.

    Raises `ImageError` for more than 10 000, or for a later frame that reaches beyond the first
    and the screen (its size would be unknown until it is decoded).
    """
    file.seek(0)
    data = file.read()
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _colours(flags)
    count = stray = 0
    while at < len(data) and data[at] != _TRAILER:
        if data[at] == _IMAGE:
            left, top, wide, high, flags = struct.unpack_from("<HHHHB", data, at + 1)
            if count and (left + wide > width or top + high > height):
                raise ImageError(f"{name}: is a GIF of which a frame is larger than the picture")
            width, height = max(width, left + wide), max(height, top + high)
            count += 1
            if count > MAX_FRAMES:
                raise ImageError(f"{name}: holds more than {MAX_FRAMES} images: split the file")
            at += 11 + _colours(flags)
        elif data[at] == _EXTENSION:
            at += 2
        else:
            at, stray = at + 1, stray + 1  # decoders skip them, too
            if stray > _MAX_STRAY:
                raise ImageError(f"{name}: cannot be decoded: it is a damaged GIF")
            continue
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return max(1, count)


def _colours(flags: int) -> int:
    """Bytes of the colour table that follows."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


_PIXELS = (b"IDAT", b"fdAT")


def check_png(data: bytes, name: str) -> None:
    """Raise `ImageError` where the pixels of a PNG do not have the checksum that is stored.

    Pillow checks that of other chunks only, so that a file whose second half became zeros would
    be a picture that is half black.
    """
    whole, at = memoryview(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            return  # cut off, as the decoder says
        own = int.from_bytes(data[end : end + 4], "big")
        if data[at + 4 : at + 8] in _PIXELS and zlib.crc32(whole[at + 4 : end]) != own:
            raise ImageError(f"{name}: is a damaged PNG, by its checksum: copy or save it again")
        at = end + 4


def check_count(places: Sequence[int], name: str) -> None:
    """Raise `ImageError` for more images than are read of a file."""
    if len(places) > MAX_FRAMES:
        raise ImageError(f"{name}: holds more than {MAX_FRAMES} images: split the file")


def pick_frame(places: Sequence[int], number: int | None, name: str) -> int:
    """The place of image `number` among `places`; raises `ImageError` if there is no such.

    Without a number the file must hold one image, as the others would be lost in silence.
    """
    check_count(places, name)
    if number is None and len(places) > 1:
        raise ImageError(
            f"{name}: holds {len(places)} images (pages, frames or slices), and only one can be "
            f"meant: split the file, or name one as {Path(name).name}#1"
        )
    if number is not None and number > len(places):
        raise ImageError(f"{name}: there is no image {number}; the file holds {len(places)}")
    return places[(number or 1) - 1]
