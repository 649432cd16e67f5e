"""Images of DICOM files; of a file only the tags listed here are parsed, none about a person."""

from __future__ import annotations

import math
from collections.abc import Callable
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fedvad.data.bounds import check_pixels
from fedvad.data.containers import pick_frame
from fedvad.data.depth import ends_of, in_bytes, spread, to_8_bit
from fedvad.errors import ImageError

_Array = npt.NDArray[Any]
_Window = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.uint8]]
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_TAGS = [
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "VOILUTSequence", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
]  # fmt: skip
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def count_frames(file: BinaryIO, name: str) -> int:
    """How many frames an open file says it holds; 0 for a report or another file without pixels."""
    dataset = _dataset(file, name)
    return int(dataset.get("NumberOfFrames") or 1) if "Rows" in dataset else 0


def _dataset(file: BinaryIO, name: str, *, pixels: bool = False) -> Any:
    from pydicom import dcmread

    # pydicom would unpack it whole, however much that is
    start = file.read() if isinstance(file, BytesIO) else file.read(1 << 16)
    if _DEFLATED in start:
        raise ImageError(f"{name}: is deflated DICOM: save it uncompressed")
    file.seek(0)
    tags = [*_TAGS, "PixelData"] if pixels else _TAGS
    return dcmread(file, stop_before_pixels=not pixels, specific_tags=tags)


def open_frame(data: bytes, name: str, frame: int | None, max_pixels: int) -> tuple[Any, int]:
    """The tags and pixels of a file, checked, and the place of one of its frames.

    Raises `ImageError` for what is not read, and what pydicom raises for damaged files.
    """
    dataset = _dataset(BytesIO(data), name, pixels=True)
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
    return dataset, pick_frame(range(frames), frame, name)


def values_of(dataset: Any, place: int) -> _Array:
    """Stored values of a frame: (H, W), or (H, W, 3) in RGB."""
    from pydicom.pixels import pixel_array

    values: _Array = np.asarray(pixel_array(dataset, index=place))
    return values


def image_of(dataset: Any, place: int, name: str) -> npt.NDArray[np.uint8]:
    """A frame as uint8 (H, W), or (H, W, 3) RGB, by the rules of `medical`."""
    values = values_of(dataset, place)
    bits = int(dataset.BitsStored)
    if values.ndim == 3:
        return to_8_bit(values, bits)
    window = _window(dataset, place, name)
    if window is None and bits <= 8 and not int(dataset.PixelRepresentation):
        grey = to_8_bit(values, bits)
    elif window is None:
        every = range(int(dataset.get("NumberOfFrames") or 1))
        ends = [ends_of(_rescaled(dataset, values_of(dataset, i), i)) for i in every]
        low, high = min(a for a, _ in ends), max(b for _, b in ends)
        grey = spread(_rescaled(dataset, values, place), low, high)
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
    several = hasattr(value, "__len__") and not isinstance(value, str)
    number = float(value[0] if several else value)
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


def _window(dataset: Any, place: int, name: str) -> _Window | None:
    """The first window or table as a function to uint8, by DICOM PS3.3 C.11.2; None without."""
    group = "FrameVOILUTSequence"
    centre = _number(_found(dataset, place, group, "WindowCenter"))
    width = _number(_found(dataset, place, group, "WindowWidth"))
    kind = str(_found(dataset, place, group, "VOILUTFunction") or "LINEAR")
    if centre is None or width is None:
        return _table(dataset) if dataset.get("VOILUTSequence") else None
    if width <= 0 or (kind == "LINEAR" and width < 1):
        raise ImageError(f"{name}: is DICOM with a window of width {width:g}")
    if kind == "SIGMOID":
        return lambda x: in_bytes(255 / (1 + np.exp(np.clip(-4 * (x - centre) / width, -700, 700))))
    if kind == "LINEAR_EXACT":
        return lambda x: in_bytes(((x - centre) / width + 0.5) * 255)
    if kind != "LINEAR":
        raise ImageError(f"{name}: is DICOM with a window of an unknown function")
    if width == 1:
        return lambda x: in_bytes(np.where(x > centre - 0.5, 255.0, 0.0))
    return lambda x: in_bytes(((x - (centre - 0.5)) / (width - 1) + 0.5) * 255)


def _table(dataset: Any) -> _Window:
    """The first VOI table as a function to uint8, by DICOM PS3.3 C.11.2.1.1."""
    from pydicom.pixels import apply_voi

    top = 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
    return lambda x: in_bytes(apply_voi(np.rint(x).astype(np.int64), dataset) * (255 / top))
