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

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fedvad.data import dicom
from fedvad.data.bounds import check_pixels
from fedvad.data.containers import pick_frame
from fedvad.data.depth import ends_of, spread
from fedvad.errors import DataError, ImageError

_Array = npt.NDArray[Any]
_MAX_BYTES = 1 << 30  # of an unpacked volume
HEADER = 544  # of version 2; version 1 has 352


class Volume:
    """The slices of a NIfTI file, or of its first bytes as long as only the header is asked for."""

    def __init__(self, data: bytes, name: str, max_pixels: int | None = None) -> None:
        import nibabel
        from nibabel.orientations import io_orientation

        packed = data[:2] == b"\x1f\x8b"
        head = _unpacked(data, HEADER) if packed else data[:HEADER]
        if head[344:348] == b"n+1\0":
            header: Any = nibabel.Nifti1Header.from_fileobj(BytesIO(head), check=False)
        elif head[4:8] == b"n+2\0":
            header = nibabel.Nifti2Header.from_fileobj(BytesIO(head), check=False)
        else:
            raise ImageError(f"{name}: is a packed file, but not NIfTI: unpack it")
        shape = tuple(int(n) for n in header.get_data_shape())
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise ImageError(
                f"{name}: is NIfTI of shape {shape}: save a file for each volume of three axes"
            )
        self._shape = (*shape, 1)[:3]
        self._dtype = header.get_data_dtype()
        if self._dtype.kind not in "iuf":
            raise ImageError(f"{name}: is NIfTI of {self._dtype}: save it as grey numbers")
        self._slope, self._inter = header.get_slope_inter()
        self._window = (float(header["cal_min"]), float(header["cal_max"]))
        oriented = int(header["qform_code"]) > 0 or int(header["sform_code"]) > 0
        axes = np.array([[0, 1], [1, 1], [2, 1]], float)
        self._turn = io_orientation(header.get_best_affine()) if oriented else axes
        across = {int(to): n for n, (to, _) in zip(self._shape, self._turn, strict=True)}
        self.slices = across[2]
        if max_pixels is None:
            return
        check_pixels(across[0], across[1], name, max_pixels)
        start = int(header.get_data_offset())
        size = start + math.prod(self._shape) * self._dtype.itemsize
        if size > _MAX_BYTES:
            raise ImageError(f"{name}: is {size} bytes large, over {_MAX_BYTES}: split the volume")
        self._data = _unpacked(data, size) if packed else data
        if len(self._data) < size:
            raise ImageError(f"{name}: cannot be decoded: truncated")
        self._start = start

    def _raw(self) -> _Array:
        flat = np.frombuffer(self._data, self._dtype, math.prod(self._shape), self._start)
        return flat.reshape(self._shape, order="F")

    def slice(self, place: int) -> _Array:
        """Stored values of a slice, (H, W), upright."""
        from nibabel.orientations import apply_orientation

        turned = apply_orientation(self._raw(), self._turn)
        values: _Array = np.asarray(turned)[:, :, place].T[::-1]
        return values

    def grey(self, place: int) -> npt.NDArray[np.uint8]:
        """A slice as uint8 (H, W)."""
        values = self.slice(place)
        scaled = self._slope is not None and (self._slope, self._inter) != (1, 0)
        low, high = self._window
        if not high > low:
            if self._dtype == np.uint8 and not scaled:
                return values.astype(np.uint8)
            ends = [self._scaled(end) for end in ends_of(self._raw())]
            low, high = min(ends), max(ends)
        return spread(self._scaled(values.astype(np.float64)), low, high)

    def _scaled(self, values: Any) -> Any:
        return values if self._slope is None else values * self._slope + self._inter


def _unpacked(data: bytes, size: int) -> bytes:
    """The first `size` bytes of gzip data, or fewer where it ends before."""
    unpacker = zlib.decompressobj(wbits=31)
    return unpacker.decompress(data, size)


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
