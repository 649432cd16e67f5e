"""Slices of NIfTI volumes, packed or not, by the rules of `medical`."""

from __future__ import annotations

import math
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.data.bounds import check_pixels
from fedvad.data.depth import ends_of, spread
from fedvad.errors import ImageError

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
