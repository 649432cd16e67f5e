"""Slices of DICOM and NIfTI files as 8-bit images; the extra `medical` brings their readers.

Of a DICOM file only the tags listed here are parsed: none that names a person, a date or a place
is ever read, and no text of a file reaches a message.

Grey values become 8 bit in this order: rescale slope and intercept (or the modality table), then
the first window of the file (linear, exact or sigmoid). Without a window, values stored in 8 bits
stay as they are, and deeper ones are spread from the least to the greatest value of the whole
file, so that its slices stay comparable. MONOCHROME1 is inverted. Colour is RGB, or YBR, which is
converted; palettes are refused. In a NIfTI file `cal_min` and `cal_max` are the window.

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

from fedvad.data.bounds import check_pixels
from fedvad.data.depth import to_8_bit
from fedvad.data.frames import pick_frame
from fedvad.errors import DataError, ImageError

__all__ = ["count", "grey_or_rgb", "stored"]

_Array = npt.NDArray[Any]
_MAX_BYTES = 1 << 30  # of an unpacked volume
_DEFLATED = b"1.2.840.10008.1.2.1.99"
# All that is ever parsed of a DICOM file.
_TAGS = [
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "VOILUTSequence", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
]  # fmt: skip
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def count(file: BinaryIO, form: str, name: str) -> int:
    """How many images an open DICOM or NIfTI file says it holds, from its header.

    Raises `ImageError` for what is not such a file, for several axes beyond three, and where the
    extra `medical` is not installed.
    """
    file.seek(0)
    with _errors(name, form):
        if form == "NIFTI":
            return _Volume(file.read(_NIFTI_HEAD * 8), name).slices
        return int(_dicom(file, name).get("NumberOfFrames") or 1)


def grey_or_rgb(
    data: bytes, name: str, frame: int | None, max_pixels: int
) -> npt.NDArray[np.uint8]:
    """One image of a DICOM or NIfTI file: uint8 (H, W) grey or (H, W, 3) RGB.

    frame: its number, from 1; None for a file of one. Raises `ImageError`.
    """
    form = "DICOM" if data[128:132] == b"DICM" else "NIFTI"
    with _errors(name, form):
        if form == "DICOM":
            place, dataset = _open_dicom(data, name, frame, max_pixels)
            return _dicom_image(dataset, place, name)
        volume = _Volume(data, name, max_pixels)
        return volume.grey(pick_frame(range(volume.slices), frame, name))


def stored(data: bytes, name: str, frame: int | None, max_pixels: int) -> _Array:
    """The values of one image as they are stored, (H, W): for masks and label maps.

    Raises `ImageError`, also for colour.
    """
    form = "DICOM" if data[128:132] == b"DICM" else "NIFTI"
    with _errors(name, form):
        if form == "DICOM":
            place, dataset = _open_dicom(data, name, frame, max_pixels)
            values = _pixels(dataset, place)
        else:
            volume = _Volume(data, name, max_pixels)
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


def _dicom(file: BinaryIO, name: str, *, pixels: bool = False) -> Any:
    from pydicom import dcmread

    # pydicom would unpack it whole, however much that is
    start = file.read() if isinstance(file, BytesIO) else file.read(1 << 16)
    if _DEFLATED in start:
        raise ImageError(f"{name}: is deflated DICOM: save it uncompressed")
    file.seek(0)
    tags = [*_TAGS, "PixelData"] if pixels else _TAGS
    return dcmread(file, stop_before_pixels=not pixels, specific_tags=tags)


def _open_dicom(data: bytes, name: str, frame: int | None, max_pixels: int) -> tuple[int, Any]:
    """The place of a frame, and its file's tags and pixels, checked."""
    dataset = _dicom(BytesIO(data), name, pixels=True)
    if "PixelData" not in dataset:
        raise ImageError(f"{name}: is DICOM without pixels (a report, a structure, floats)")
    kind = str(dataset.get("PhotometricInterpretation"))
    if kind not in _GREY + _COLOUR:
        shown = kind if kind == "PALETTE COLOR" else "unknown colours"
        raise ImageError(f"{name}: is DICOM in {shown}: save it as MONOCHROME2 or RGB")
    if int(dataset.get("SamplesPerPixel", 1)) != (1 if kind in _GREY else 3):
        raise ImageError(f"{name}: is DICOM whose samples do not fit its colours")
    check_pixels(int(dataset.Columns), int(dataset.Rows), name, max_pixels)
    frames = int(dataset.get("NumberOfFrames") or 1)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        from pydicom.pixels import get_decoder

        if not get_decoder(syntax).is_available:
            raise ImageError(
                f"{name}: is DICOM compressed as {syntax.name}, for which pydicom has no plug-in "
                "here: pip install pylibjpeg pylibjpeg-libjpeg, or save it uncompressed"
            )
    return pick_frame(range(frames), frame, name), dataset


def _pixels(dataset: Any, place: int) -> _Array:
    from pydicom.pixels import pixel_array

    values: _Array = np.asarray(pixel_array(dataset, index=place))
    return values


def _dicom_image(dataset: Any, place: int, name: str) -> npt.NDArray[np.uint8]:
    values = _pixels(dataset, place)
    bits = int(dataset.BitsStored)
    if values.ndim == 3:
        return to_8_bit(values, bits)
    window = _window(dataset, place, name)
    if window is None and bits <= 8 and not int(dataset.PixelRepresentation):
        grey = to_8_bit(values, bits)
    elif window is None:
        every = range(int(dataset.get("NumberOfFrames") or 1))
        ends = [_ends(_rescaled(dataset, _pixels(dataset, i), i)) for i in every]
        low, high = min(a for a, _ in ends), max(b for _, b in ends)
        grey = _spread(_rescaled(dataset, values, place), low, high)
    else:
        grey = window(_rescaled(dataset, values, place))
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _found(dataset: Any, place: int, group: str, key: str) -> Any:
    """A tag of a frame: of itself, of all frames, or of the file."""
    per = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for item in (*per[place : place + 1], *shared[:1]):
        for inner in (item.get(group) or [])[:1]:
            if inner.get(key) not in (None, ""):
                return inner.get(key)
    return dataset.get(key)


def _number(value: Any) -> float | None:
    """The first number of a tag, or None."""
    if value is None or value == "":
        return None
    first = (
        value[0]
        if not isinstance(value, str | int | float) and hasattr(value, "__len__")
        else value
    )
    number = float(first)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _rescaled(dataset: Any, values: _Array, place: int) -> npt.NDArray[np.float64]:
    group = "PixelValueTransformationSequence"
    slope = _number(_found(dataset, place, group, "RescaleSlope"))
    intercept = _number(_found(dataset, place, group, "RescaleIntercept"))
    if dataset.get("ModalityLUTSequence"):
        from pydicom.pixels import apply_modality_lut

        return np.asarray(apply_modality_lut(values, dataset), np.float64)
    return values.astype(np.float64) * (1 if slope is None else slope) + (intercept or 0)


def _window(dataset: Any, place: int, name: str) -> Any:
    """The first window as a function to uint8, by DICOM PS3.3 C.11.2.1; None without one."""
    group = "FrameVOILUTSequence"
    centre = _number(_found(dataset, place, group, "WindowCenter"))
    width = _number(_found(dataset, place, group, "WindowWidth"))
    kind = str(_found(dataset, place, group, "VOILUTFunction") or "LINEAR")
    if centre is None or width is None:
        if dataset.get("VOILUTSequence"):
            raise ImageError(f"{name}: is DICOM with a VOI table but no window: save it windowed")
        return None
    if width <= 0 or (kind == "LINEAR" and width < 1):
        raise ImageError(f"{name}: is DICOM with a window of width {width:g}")
    if kind == "SIGMOID":
        return lambda x: _bytes(255 / (1 + np.exp(np.clip(-4 * (x - centre) / width, -700, 700))))
    if kind == "LINEAR_EXACT":
        return lambda x: _bytes(((x - centre) / width + 0.5) * 255)
    if kind != "LINEAR":
        raise ImageError(f"{name}: is DICOM with a window of an unknown function")
    if width == 1:
        return lambda x: _bytes(np.where(x > centre - 0.5, 255.0, 0.0))
    return lambda x: _bytes(((x - (centre - 0.5)) / (width - 1) + 0.5) * 255)


def _ends(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise DataError("holds no finite value")
    return float(finite.min()), float(finite.max())


def _spread(values: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.uint8]:
    return _bytes((values - low) / (high - low) * 255 if high > low else np.zeros(values.shape))


def _bytes(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    made: npt.NDArray[np.uint8] = np.nan_to_num(np.clip(values, 0, 255)).round().astype(np.uint8)
    return made


_NIFTI_HEAD = 544  # of version 2; version 1 has 352


class _Volume:
    """The slices of a NIfTI file, or of its first bytes as long as only the header is asked for."""

    def __init__(self, data: bytes, name: str, max_pixels: int | None = None) -> None:
        import nibabel
        from nibabel.orientations import io_orientation

        packed = data[:2] == b"\x1f\x8b"
        head = _unpacked(data, _NIFTI_HEAD) if packed else data[:_NIFTI_HEAD]
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
            ends = [self._scaled(end) for end in _ends(self._raw().astype(np.float64))]
            low, high = min(ends), max(ends)
        return _spread(self._scaled(values.astype(np.float64)), low, high)

    def _scaled(self, values: Any) -> Any:
        return values if self._slope is None else values * self._slope + self._inter


def _unpacked(data: bytes, size: int) -> bytes:
    """The first `size` bytes of gzip data, or fewer where it ends before."""
    unpacker = zlib.decompressobj(wbits=31)
    return unpacker.decompress(data, size)
