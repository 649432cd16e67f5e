"""ENVI's raw cubes: a text header and a file of values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvad.data.cubes.names import values_beside
from fedvad.errors import DataError

_TYPES = {1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 12: "u2", 13: "u4", 14: "i8", 15: "u8"}
# the axes of the file, as places of lines, samples and bands
_AXES = {"bsq": (1, 2, 0), "bil": (0, 2, 1), "bip": (0, 1, 2)}
_MAX_HEADER = 1 << 24


def read_header(text: str) -> dict[str, str]:
    """The entries of an ENVI header, keys in lower case, lists without their braces.

    >>> read_header("ENVI\\nbands = 3\\nwavelength = {400,\\n 500, 600}\\n")["wavelength"]
    '400, 500, 600'
    """
    found = re.findall(r"^\s*([^=;\n{}]+?)\s*=\s*(\{[^}]*\}|[^\n]*)", text, re.MULTILINE)
    return {key.lower(): " ".join(value.strip(" \t\r{}").split()) for key, value in found}


def read_envi(header: Path, *, max_values: int) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
    """Cube (h, w, bands) in the type of the file, and its wavelengths where the header has them.

    header: the .hdr file; the values lie beside it, under its name without ".hdr" or with .img,
    .dat, .raw, .bin, .bsq, .bil or .bip. Raises `DataError` for a header that lacks something or
    does not fit the file, complex values, or more than `max_values` of them.
    """
    try:
        if header.stat().st_size > _MAX_HEADER:
            raise DataError(f"{header}: is no ENVI header: it is too large for one")
        text = header.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{header}: cannot be read: {error.strerror or error}") from error
    if not text.lstrip().startswith("ENVI"):
        raise DataError(f"{header}: is no ENVI header: it does not begin with ENVI")
    entries = read_header(text)

    def number(key: str, default: int | None = None) -> int:
        value = entries.get(key, "" if default is None else str(default))
        try:
            return int(value)
        except ValueError as error:
            raise DataError(f"{header}: '{key}' is no whole number but '{value}'") from error

    shape = number("lines"), number("samples"), number("bands")
    kind, interleave = number("data type"), entries.get("interleave", "bsq").lower()
    offset, large_first = number("header offset", 0), number("byte order", 0) == 1
    if kind not in _TYPES or interleave not in _AXES or min(*shape, offset + 1) < 1:
        raise DataError(
            f"{header}: data type {kind}, interleave {interleave}, size {shape} is not read: save "
            "it as real numbers, in bsq, bil or bip"
        )
    count = shape[0] * shape[1] * shape[2]
    if count > max_values:
        raise DataError(f"{header}: claims {count} values, over the limit of {max_values}: crop it")
    dtype = np.dtype(_TYPES[kind]).newbyteorder(">" if large_first else "<")
    axes = _AXES[interleave]
    stored = [0, 0, 0]
    for axis, place in enumerate(axes):
        stored[place] = shape[axis]
    file = values_beside(header)
    try:
        if file.stat().st_size < offset + count * dtype.itemsize:
            raise DataError(f"{file}: is shorter than {header.name} says: copy both again")
        values = np.fromfile(file, dtype, count, offset=offset).reshape(stored).transpose(axes)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    return values, _wavelengths(entries, header)


def _wavelengths(entries: dict[str, str], header: Path) -> NDArray[np.float64] | None:
    if not entries.get("wavelength"):
        return None
    try:
        return np.array([float(value) for value in entries["wavelength"].split(",")])
    except ValueError as error:
        raise DataError(
            f"{header}: its wavelengths are not numbers: correct or remove them"
        ) from error
