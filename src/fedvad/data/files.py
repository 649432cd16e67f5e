"""Files of several processes: nobody ever sees half of one, and one at a time holds a lock."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedvad.errors import StorageError


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step, making its folder.

    Raises `StorageError` when the disk refuses; an earlier file of that name then stays as it was.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another "
            "folder, then continue (a training with --resume)"
        ) from error


@contextmanager
def locked(path: Path, *, otherwise: Exception | None = None) -> Iterator[None]:
    """Hold the lock of a file, made if need be; other processes wait, or get `otherwise` raised.

    A lock ends with its process, however that ends. Windows has none of the kind: there it holds
    nobody up. Raises `StorageError` where the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("w")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    with opened as file:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if otherwise is None else fcntl.LOCK_NB))
            except OSError as error:
                if otherwise is None:
                    raise
                raise otherwise from error
        yield
