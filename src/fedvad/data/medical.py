"""Slices of DICOM and NIfTI files as 8-bit images; the extra `medical` brings their readers.

Of a DICOM file only the tags listed here are parsed: none that names a person, a date or a place
is ever read, and no text of a file reaches a message.

Grey values become 8 bit in this order: rescale slope and intercept (or the modality table), then
the first window of the file (linear, exact or sigmoid), or its first VOI table. Without either,
values stored in 8 bits stay as they are, and deeper ones are spread from the least to the greatest
value of the whole file, so that its slices stay comparable. MONOCHROME1 is inverted.
Colour is RGB, or YBR, which is converted; palettes are refused. In a NIfTI file `cal_min` and
`cal_max` are the window.

Every frame of a DICOM file is an image, in the order of the file. A NIfTI volume is turned to the
nearest right-anterior-superior axes by its affine; slices are cut along the third (axial), number
1 at its low end, with the first axis to the right and the second upwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fedvad.data import dicom
from fedvad.data.containers import pick_frame
from fedvad.data.nifti import HEADER, Volume
from fedvad.errors import DataError, ImageError

_Array = npt.NDArray[Any]


def count(file: BinaryIO, form: str, name: str) -> int:
    """How many images an open DICOM or NIfTI file says it holds, from its header.

    Raises `ImageError` for what is not such a file, for several axes beyond three, and where the
    extra `medical` is not installed.
    """
    file.seek(0)
    with _errors(name, form):
        if form == "NIFTI":
            return Volume(file.read(8 * HEADER), name).slices  # packed, it is hardly shorter
        return dicom.count_frames(file, name)


def grey_or_rgb(
    data: bytes, name: str, frame: int | None, max_pixels: int
) -> npt.NDArray[np.uint8]:
    """One image of a DICOM or NIfTI file: uint8 (H, W) grey or (H, W, 3) RGB.

    frame: its number, from 1; None for a file of one. Raises `ImageError`.
    """
    form = "DICOM" if data[128:132] == b"DICM" else "NIFTI"
    with _errors(name, form):
        if form == "DICOM":
            dataset, place = dicom.open_frame(data, name, frame, max_pixels)
            return dicom.image_of(dataset, place, name)
        volume = Volume(data, name, max_pixels)
        return volume.grey(pick_frame(range(volume.slices), frame, name))


def stored(data: bytes, name: str, frame: int | None, max_pixels: int) -> _Array:
    """The values of one image as they are stored, (H, W): for masks and label maps.

    Raises `ImageError`, also for colour.
    """
    form = "DICOM" if data[128:132] == b"DICM" else "NIFTI"
    with _errors(name, form):
        if form == "DICOM":
            dataset, place = dicom.open_frame(data, name, frame, max_pixels)
            values = dicom.values_of(dataset, place)
        else:
            volume = Volume(data, name, max_pixels)
            values = volume.slice(pick_frame(range(volume.slices), frame, name))
        if values.ndim != 2:
            raise ImageError(f"{name}: is a mask in colour: save it in grey")
        return values


@contextmanager
def _errors(name: str, form: str) -> Iterator[None]:
    """Any error as `ImageError`, by its type alone: its text may quote what the file holds."""
    try:
        yield
    except ImageError:
        raise
    except DataError as error:
        raise ImageError(f"{name}: {error}") from None
    except ImportError:
        raise ImageError(
            f"{name}: is {form}, whose reader is not installed: pip install 'fedvad[medical]'"
        ) from None
    except MemoryError:
        raise ImageError(f"{name}: cannot be decoded: not enough memory") from None
    except Exception as error:
        raise ImageError(
            f"{name}: cannot be decoded: damaged or unusual {form} ({type(error).__name__})"
        ) from None
