"""On-disk cache of descriptors: a frozen backbone sees each image once, ever."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import shutil
import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError

log = logging.getLogger(__name__)
HalfArray = npt.NDArray[np.float16]
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_STALE_SECONDS = 3600
# holds entries with a digest; the folder without a number those of earlier versions, which nobody
# reads and which go first when room is needed
_FOLDER, _EARLIER = "descriptors-2", "descriptors"
_DIGEST = 32  # bytes of SHA-256 behind the values
_EXPONENT = 0x7C00  # of float16, all ones: infinity or NaN
# what np.save writes before the values of (h, w, d) float16
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<f2', 'fortran_order': False, "
    rb"'shape': \((\d{1,6}), (\d{1,6}), (\d{1,6})\), \} *\n",
    re.DOTALL,
)


def default_cache_root() -> Path:
    """`FEDVAD_CACHE`, else `XDG_CACHE_HOME`/fedvad, else ~/.cache/fedvad."""
    named = os.environ.get("FEDVAD_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedvad"


def parse_bytes(text: str) -> int:
    """Bytes of '20G', '500M', '1024' (powers of 1024); raises `ConfigError` otherwise."""
    digits = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = digits[-1:] if digits[-1:] in "KMGT" else ""
    try:
        size = int(float(digits.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError):
        size = -1
    if size < 0:
        raise ConfigError(f"not a size in bytes: {text!r}; write for example 20G or 500M")
    return size


def content_key(data: bytes) -> str:
    """Name of an image's content: BLAKE2b-160 of its file's bytes, in hex."""
    return hashlib.blake2b(data, digest_size=20).hexdigest()


@dataclass(frozen=True)
class CacheInfo:
    """What a cache holds: entries, bytes, and both per feature configuration."""

    root: str
    entries: int
    bytes: int
    max_bytes: int
    configurations: dict[str, tuple[int, int]]


class DescriptorCache:
    """float16 (h, w, d) descriptors by feature configuration and image content.

    An entry appears by an atomic rename, so that neither a second process nor kill -9 can leave
    half a file under its name. It ends with a SHA-256 over configuration, key, shape and values:
    a file that is damaged all the same, or lies under another entry's name, is named once,
    dropped and made again. So is one with another shape than wanted, NaN or infinity.
    When `max_bytes` is exceeded the least recently used entries go. A disk that refuses to write
    costs speed, never a result.
    """

    def __init__(self, root: Path, *, max_bytes: int = 20 << 30) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._total: int | None = None
        self._writable = True
        self._named: set[Path] = set()

    def _path(self, configuration: str, key: str) -> Path:
        return self.root / _FOLDER / configuration / key[:2] / f"{key}.npy"

    def get(
        self, configuration: str, key: str, shape: tuple[int | None, ...] | None = None
    ) -> HalfArray | None:
        """The entry, or None. Not memory-mapped: a stream holds more entries than open files.

        shape: the (h, w, d) that it must have, None for any.
        """
        path = self._path(configuration, key)
        try:
            array = _read(path, configuration, key)
            if shape is not None and any(
                wanted not in (None, side) for side, wanted in zip(array.shape, shape, strict=True)
            ):
                raise ValueError(f"its shape is {array.shape}, not {shape}")
        except OSError:  # absent, or out of reach for now: no sign of damage
            return None
        except ValueError as error:
            if path not in self._named:  # a read-only cache gives it again and again
                log.warning("dropping damaged cache entry %s: %s", path, error)
                self._named.add(path)
            _remove(path)
            return None
        with suppress(OSError):  # a read-only cache is still worth reading
            os.utime(path)  # marks it as used, for the eviction
        return array

    def put(self, configuration: str, key: str, descriptors: HalfArray) -> None:
        """Store an entry; on a full or read-only disk, warn once and continue without storing.

        Values that are not finite are never stored.
        """
        if not self._writable or not _is_finite(descriptors):
            return
        path = self._path(configuration, key)
        temporary = path.with_name(f".{key}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)  # they tell of images
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                content = io.BytesIO()
                np.save(content, np.ascontiguousarray(descriptors), allow_pickle=False)
                file.write(content.getbuffer())
                file.write(_digest(configuration, key, content.getbuffer()))
            temporary.replace(path)
        except FileNotFoundError:  # another process cleared the cache at this moment
            return
        except OSError as error:
            _remove(temporary)
            with self._lock:
                if self._writable:
                    log.warning(
                        "the cache %s cannot be written (%s); continuing without it",
                        self.root,
                        error,
                    )
                self._writable = False
            return
        with self._lock:
            if self._total is None:
                self._sweep()
                self._total = sum(size for _, _, size in self._entries())
            else:
                self._total += descriptors.nbytes + 128 + _DIGEST
            if self._total > self.max_bytes:
                self._total = self._evict()

    def info(self) -> CacheInfo:
        """Count what is there."""
        per: dict[str, tuple[int, int]] = {}
        for path, _, size in self._entries():
            name = path.parent.parent.name
            if path.parents[2].name == _EARLIER:
                name += " (of an earlier fedvad)"
            entries, total = per.get(name, (0, 0))
            per[name] = (entries + 1, total + size)
        return CacheInfo(
            str(self.root),
            sum(n for n, _ in per.values()),
            sum(b for _, b in per.values()),
            self.max_bytes,
            per,
        )

    def clear(self) -> int:
        """Remove every entry; returns the bytes freed."""
        freed = sum(size for _, _, size in self._entries())
        for folder in (_FOLDER, _EARLIER):
            shutil.rmtree(self.root / folder, ignore_errors=True)
        self._total = 0
        return freed

    def _entries(self) -> list[tuple[Path, float, int]]:
        found = []
        folders = (self.root / _EARLIER, self.root / _FOLDER)
        for path in chain.from_iterable(folder.glob("*/*/*.npy") for folder in folders):
            try:
                status = path.stat()
            except OSError:  # another process evicted it meanwhile
                continue
            found.append((path, status.st_mtime, status.st_size))
        return found

    def _evict(self) -> int:
        """Drop the least recently used entries down to 90 % of the budget; returns what is left."""
        entries = sorted(
            self._entries(), key=lambda entry: (entry[0].parents[2].name == _FOLDER, entry[1])
        )
        total = sum(size for _, _, size in entries)
        for path, _, size in entries:
            if total <= 0.9 * self.max_bytes:
                break
            _remove(path)
            total -= size
        return total

    def _sweep(self) -> None:
        """Drop what killed writers left; by the files' own clock, which may be a server's."""
        newest = max((used for _, used, _ in self._entries()), default=0.0)
        for leftover in (self.root / _FOLDER).glob("*/*/.*.tmp"):
            with suppress(OSError):
                if newest - leftover.stat().st_mtime > _STALE_SECONDS:
                    leftover.unlink(missing_ok=True)


def _read(path: Path, configuration: str, key: str) -> HalfArray:
    """An entry, read only; raises ValueError for anything else.

    `np.load` parses the header as Python, which threads of Python 3.11 cannot do at the same time
    (python/cpython#106905).
    """
    data = path.read_bytes()
    header = _HEADER.match(data)
    if header is None:
        raise ValueError("not descriptors")
    height, width, dim = map(int, header.groups())
    end = header.end() + 2 * height * width * dim
    if len(data) != end + _DIGEST:
        raise ValueError(f"{len(data)} bytes instead of {end + _DIGEST}")
    if _digest(configuration, key, memoryview(data)[:end]) != data[end:]:
        raise ValueError("its content was changed, or it is the entry of another image")
    array = np.frombuffer(data, np.dtype("<f2"), height * width * dim, header.end())
    if not _is_finite(array):
        raise ValueError("it holds NaN or infinity")
    return array.reshape(height, width, dim)


def _digest(configuration: str, key: str, content: memoryview) -> bytes:
    """SHA-256: with the instructions that processors have for it, faster than BLAKE2b."""
    found = hashlib.sha256(f"{configuration}/{key}\0".encode())
    found.update(content)
    return found.digest()


def _is_finite(values: HalfArray) -> bool:
    """Ten times as fast as `np.isfinite` on float16."""
    bits = np.ascontiguousarray(values, np.float16).view(np.uint16)
    return bits.size == 0 or int((bits & 0x7FFF).max()) < _EXPONENT


def _remove(path: Path) -> None:
    with suppress(OSError):  # gone already, read-only, or in use (Windows)
        path.unlink()
