"""One process at a time works on a folder; the next is refused, and leftovers are swept."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fedvad.errors import InUseError, StorageError

log = logging.getLogger(__name__)

LOCK_FILE = ".fedvad.lock"
# as `write_atomically` names what it has not finished
_UNFINISHED = re.compile(r"\.[0-9a-f]{12}\.tmp")
_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_TRIES = 100
_AT = 1 << 30  # Windows: the locked byte, behind all that is written into the file


@contextmanager
def only_one(folder: Path, *, private: bool = False) -> Iterator[None]:
    """Work on `folder`, which is made if need be, as the only process that does.

    The lock ends with its process, however that ends. Unfinished files that a killed process left
    in the folder are removed. The lock file goes at the end, and so does the folder if it was made
    here and nothing came into it. On a disk that keeps no locks (some network drives) a warning
    says so and the work continues. private: if it is made here, no other user can read it.
    Raises `InUseError` when another process, or thread, works on the folder, `StorageError`
    when the folder cannot be written.
    """
    made = not folder.exists()
    path = folder / LOCK_FILE
    file = _hold(folder, path, 0o700 if private else 0o777)
    try:
        sweep(folder)
        yield
    finally:
        # POSIX: while it is held, as nobody else may have locked what goes. Windows removes no open
        # file, and none that another process has opened since.
        if os.name != "posix":
            file.close()
        with suppress(OSError):
            path.unlink(missing_ok=True)
        file.close()
        if made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def sweep(folder: Path) -> int:
    """Remove unfinished files below `folder` that killed processes left; returns their number.

    Only for a folder on which nobody else works.
    """
    count = 0
    for path in folder.rglob(".*.tmp"):
        if _UNFINISHED.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            with suppress(OSError):
                path.unlink()
                count += 1
    if count:
        log.info("%s: removed %d unfinished files of an interrupted run", folder, count)
    return count


def _hold(folder: Path, path: Path, mode: int) -> IO[str]:
    """The open, locked file; by its name nobody else can open another one."""
    # no link: what it leads to would be emptied
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    for _ in range(_TRIES):
        try:
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
            file = os.fdopen(os.open(path, flags, 0o644), "r+", encoding="utf-8")
        except FileNotFoundError as error:  # its holder removed the folder meanwhile
            refused = error
            continue
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
        try:
            _lock(file)
        except OSError as error:
            if error.errno in _TAKEN:
                file.close()
                raise InUseError(
                    f"{folder} is in use: {_holder(path)} works on it now. Wait until that ends, "
                    "or choose another folder"
                ) from error
            log.warning(
                "the disk of %s keeps no locks (%s): make sure that no second process works on it",
                folder, error.strerror or error,
            )  # fmt: skip
            return file
        if os.name == "posix" and not _is(file, path):  # its holder removed it meanwhile
            file.close()
            continue
        with suppress(OSError):  # a full disk: who holds it is a courtesy
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        return file
    if not folder.exists():
        raise StorageError(f"cannot write {folder}: {refused.strerror}") from refused
    raise InUseError(f"{folder} is in use by processes that start and stop: try again")


def _lock(file: IO[str]) -> None:
    """Raises `OSError`, with one of `_TAKEN` when somebody else holds it."""
    if os.name == "posix":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        file.seek(_AT)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]


def _is(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(200).strip() or "another process"
    except OSError:
        return "another process"
