"""Which files and folders are cubes, where a data folder holds cubes in place of pictures."""

from __future__ import annotations

from pathlib import Path

from fedvad.data.formats import image_suffix
from fedvad.data.frames import BANDS, frames_of, split_frame
from fedvad.errors import DataError

CUBE_SUFFIXES = frozenset({".mat", ".npy", ".npz", ".hdr"})
_STACK = ".bands"  # of a folder of images, one band each
_VALUES = (".img", ".dat", ".raw", ".bin", ".bsq", ".bil", ".bip", "")  # of ENVI


def is_cube(path: Path) -> bool:
    """Whether a path is called like a cube: never so where a data folder holds pictures.

    >>> is_cube(Path("field.npy")), is_cube(Path("scan.tif#bands")), is_cube(Path("scan.tif"))
    (True, True, False)
    """
    return path.suffix.lower() in CUBE_SUFFIXES or is_stack(path.name) or path.name.endswith(BANDS)


def is_stack(name: str) -> bool:
    """Whether a folder of this name is one cube: images of one size, which are its bands."""
    return name.lower().endswith(_STACK) and not name.startswith(".")


def cubes_of(file: Path) -> list[Path]:
    """The one cube of a file; an image of a single page keeps its name (a mask, or a picture)."""
    if is_cube(file):
        return [file]
    return [file] if len(frames_of(file)) == 1 else [file.with_name(file.name + BANDS)]


def files_of(cube: Path) -> list[Path]:
    """All files that a cube is read from; raises `DataError` where one is missing."""
    file = split_frame(cube)[0]
    try:
        if file.is_dir():
            inside = [p for p in file.iterdir() if image_suffix(p) and not p.name.startswith(".")]
            return sorted(inside)
    except OSError as error:
        raise DataError(f"{file}: cannot be listed: {error.strerror or error}") from error
    return [file, values_beside(file)] if file.suffix.lower() == ".hdr" else [file]


def values_beside(header: Path) -> Path:
    """The file of values of an ENVI header, its ending in any case of letters.

    Raises `DataError` where there is none.
    """
    for suffix in _VALUES:
        for file in dict.fromkeys(map(header.with_suffix, (suffix, suffix.upper()))):
            if file != header and file.is_file():
                return file
    raise DataError(f"{header}: there is no file of values beside it (.img, .dat, .raw, ...)")
