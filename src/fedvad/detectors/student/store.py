"""What training reads again and again, computed once: in memory up to a budget, else on disk."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fedvad.errors import DataError, StorageError


class RowStore:
    """Rows of one shape and type, appended once and then taken in any order.

    Up to `budget` bytes for `capacity` rows lie in memory; a larger store is a file in a
    temporary folder of its own that goes with the object, read through a memory map.
    """

    def __init__(
        self, capacity: int, shape: Sequence[int], dtype: npt.DTypeLike, *, budget: int
    ) -> None:
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.capacity = capacity
        self._count = 0
        self._file: BinaryIO | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._rows: npt.NDArray[Any]
        if capacity * math.prod(self.shape) * self.dtype.itemsize <= budget:
            self._rows = np.empty((capacity, *self.shape), self.dtype)
            return
        # Written as a file, not through the map: a full disk then is an error and not a signal.
        self._folder = tempfile.TemporaryDirectory(prefix="fedvad-", ignore_cleanup_errors=True)
        self._file = (Path(self._folder.name) / "rows").open("wb+")
        self._rows = np.empty((0, *self.shape), self.dtype)

    def __len__(self) -> int:
        return self._count

    @property
    def on_disk(self) -> bool:
        """Whether the rows lie in a file."""
        return self._file is not None

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Add (k, *shape) rows; raises `DataError` beyond the capacity or for another shape or
        type, `StorageError` when the disk refuses.
        """
        fits = rows.shape[1:] == self.shape and rows.dtype == self.dtype
        if not fits or self._count + len(rows) > self.capacity:
            raise DataError(
                f"{rows.dtype} rows {rows.shape} do not fit after {self._count} in a store of "
                f"{self.capacity} {self.dtype} rows {self.shape}"
            )
        if self._file is None:
            self._rows[self._count : self._count + len(rows)] = rows
        else:
            try:
                self._file.write(np.ascontiguousarray(rows).tobytes())
                self._file.flush()
            except OSError as error:
                raise StorageError(
                    f"cannot write {self._file.name}: {error.strerror or error}; free some space "
                    "or let TMPDIR name a folder on a larger disk"
                ) from error
        self._count += len(rows)

    def take(self, indices: npt.ArrayLike) -> npt.NDArray[Any]:
        """A copy (k, *shape) of the rows at `indices`."""
        if self._file is not None and len(self._rows) != self._count:
            shape = (self._count, *self.shape)
            self._rows = np.memmap(self._file, self.dtype, "r", shape=shape)
        taken: npt.NDArray[Any] = np.array(self._rows[: self._count][np.asarray(indices)])
        return taken

    def close(self) -> None:
        """Give memory and disk back; the store is empty afterwards."""
        self._rows = np.empty((0, *self.shape), self.dtype)
        self._count = self.capacity = 0
        if self._file is not None and self._folder is not None:
            self._file.close()
            self._folder.cleanup()
            self._file = None
