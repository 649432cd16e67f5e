"""Pictures in memory (arrays, tensors, PIL images, bytes of files) to RGB, by one rule."""

from __future__ import annotations

from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedvad.data.bounds import MAX_PIXELS, check_pixels
from fedvad.data.depth import to_8_bit
from fedvad.data.frames import split_frame
from fedvad.data.images import decode_rgb, read_bytes, rgb_of_pil
from fedvad.data.pictures import Picture
from fedvad.errors import DataError, ImageError

# Also a torch tensor, which has no name here.
ImageLike = str | PathLike[str] | bytes | bytearray | npt.NDArray[Any] | Image.Image
Pixels = npt.NDArray[np.uint8]
_CHANNELS = (1, 3, 4)
_TAKEN = (
    "give a path, the bytes of an image file, a PIL image, an array (H, W), (H, W, 1), (H, W, 3) "
    "or (H, W, 4), or a torch tensor"
)
_RAW = (bytes, bytearray, memoryview)


def is_image(value: object) -> bool:
    """Whether `value` is a single image, and no list of images."""
    single = (str, PathLike, *_RAW, np.ndarray, np.generic, Image.Image)
    # an open file is refused as one image, not line by line
    return isinstance(value, single) or _is_tensor(value) or hasattr(value, "read")


def as_path(image: object, name: str, *, max_pixels: int = MAX_PIXELS) -> Path:
    """The path of an image file as it is; anything else as a `Picture` of that name.

    Raises `DataError` as `to_rgb`; what cannot be decoded raises when it is read, as a file would.
    """
    if isinstance(image, str) and not image:  # it would mean the folder one is in
        raise DataError(f"{name}: is an empty path")
    if isinstance(image, str | PathLike):
        return Path(image) if not isinstance(image, Picture) else image
    try:
        return Picture.of(name, to_rgb(image, name, max_pixels=max_pixels))
    except ImageError as error:
        return Picture.of(name, str(error))


def to_rgb(
    image: object,
    name: str | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    max_expansion: int | None = None,
) -> Pixels:
    """Any image as uint8 (H, W, 3) RGB, by the rules of `decode_rgb`.

    image: a path; the bytes of an image file; a PIL image (turned by its EXIF orientation); an
    array or a torch tensor of bool, whole numbers or floats. Channels are grey, RGB or RGBA, never
    BGR as of OpenCV: give `array[:, :, ::-1]`. Alpha is composited over white. Arrays have
    channels last. Tensors may have them first, as torch does: where both ends could be channels,
    the first are. Deep values become 8 bit by `depth.to_8_bit`; 16 bits are full range.
    name: in messages; None means the path, or "image". max_pixels, max_expansion: see `decode_rgb`.

    Raises `DataError` for anything of another type or shape, `ImageError` for one image that
    cannot be read or whose range of values cannot be known.
    """
    if isinstance(image, str | PathLike):
        path = Path(image)
        return decode_rgb(
            read_bytes(path),
            name or str(path),
            frame=split_frame(path)[1],
            max_pixels=max_pixels,
            max_expansion=max_expansion,
        )
    name = name or "image"
    if isinstance(image, _RAW):
        return decode_rgb(bytes(image), name, max_pixels=max_pixels, max_expansion=max_expansion)
    if isinstance(image, Image.Image):
        check_pixels(*image.size, name, max_pixels)
        return rgb_of_pil(image, name)
    if _is_tensor(image):
        array = _channels_last(_numpy_of(image, name), name)
    elif isinstance(image, np.ma.MaskedArray):
        raise DataError(f"{name}: is a masked array: give array.filled(value), with a value to see")
    elif isinstance(image, np.ndarray):
        array = np.asarray(image)  # a matrix never has one dimension less
    else:
        raise DataError(f"{name}: is of type {type(image).__name__}, not an image: {_TAKEN}")
    _check_shape(array, name)
    check_pixels(array.shape[1], array.shape[0], name, max_pixels)
    try:
        pixels = to_8_bit(array, _bits(array.dtype))
    except DataError as error:
        raise ImageError(f"{name}: {error}") from error
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    if pixels.shape[2] == 4:
        return rgb_of_pil(Image.fromarray(pixels), name)
    return np.ascontiguousarray(pixels)


def _is_tensor(value: object) -> TypeGuard[Any]:
    # by name: who gives a tensor has loaded torch already, and nobody else need wait for it
    return type(value).__module__.split(".")[0] == "torch" and hasattr(value, "detach")


def _numpy_of(tensor: Any, name: str) -> npt.NDArray[Any]:
    try:
        plain = tensor.detach().cpu()
        if plain.is_floating_point():
            plain = plain.float()  # numpy has no bfloat16
        array: npt.NDArray[Any] = plain.numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantised, or without values
        raise DataError(f"{name}: is a tensor that NumPy cannot take: {error}") from error
    return array


def _channels_last(array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    if array.ndim == 3 and array.shape[0] in _CHANNELS:
        return array.transpose(1, 2, 0)
    return array


def _check_shape(array: npt.NDArray[Any], name: str) -> None:
    shape = array.shape
    if array.ndim == 4:
        raise DataError(f"{name}: is a batch of shape {shape}: give a list of its images")
    if array.ndim not in (2, 3) or 0 in shape:
        raise DataError(f"{name}: has shape {shape}, which is no image: {_TAKEN}")
    if array.ndim == 3 and shape[2] not in _CHANNELS:
        if shape[0] in _CHANNELS:
            raise DataError(
                f"{name}: has shape {shape}, channels first: give array.transpose(1, 2, 0)"
            )
        raise DataError(f"{name}: has {shape[2]} channels; grey has 1, RGB 3, RGBA 4")
    if array.dtype.kind not in "buif":
        raise DataError(f"{name}: holds {array.dtype}, not numbers: {_TAKEN}")


def _bits(dtype: np.dtype[Any]) -> int | None:
    return 8 * dtype.itemsize if dtype.kind in "ui" and dtype.itemsize <= 2 else None


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """The content of a .npy file."""
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
