"""Where watched images come from: a folder that fills."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedvad.data.frames import frames_of, split_frame
from fedvad.data.listing import folder_reason, is_image
from fedvad.data.masks import is_mask_folder
from fedvad.data.outputs import is_own_png, real
from fedvad.errors import DataError
from fedvad.serving.watch.seen import Key

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Arrived:
    """An image that can be scored.

    name: in the log. size, modified: of its file, in bytes and nanoseconds; 0 without a file.
    image: its path, or pixels (H, W, 3) in RGB.
    """

    name: str
    size: int
    modified: int
    image: Path | npt.NDArray[np.uint8]

    @property
    def key(self) -> Key:
        """What makes it the same image at the next start."""
        return self.name, self.size, self.modified


class Source(Protocol):
    """Gives images as they come."""

    name: str
    pause: float  # seconds between two polls

    @property
    def ended(self) -> bool:
        """Whether nothing will come any more, after a poll that gave nothing."""
        ...

    def poll(self, done: Container[Key]) -> list[Arrived]:
        """The images that can be scored now and are not in `done`; returns at once."""
        ...

    def still(self, arrived: Arrived) -> bool:
        """Whether what was read just now is all there is of the image."""
        ...

    def close(self) -> None:
        """Let go of devices."""
        ...


class FolderSource:
    """Images at any depth below a folder, as `predict` finds them.

    A file is ready when its size and time have stayed the same for `settle` seconds. One that is
    written again under its name is another image; one that is renamed is not. With `once` it ends
    when all that is there is done.
    """

    def __init__(self, folder: Path, *, settle: float, once: bool = False) -> None:
        """Raises `DataError` when the folder is not there."""
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
        self._folder, self._settle, self._once = real(folder), settle, once
        self.name, self.pause = str(self._folder), settle
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}  # and since when, until ready
        self._ready: dict[Path, tuple[int, int]] = {}
        self._said: set[str] = set()

    @property
    def ended(self) -> bool:
        """See `Source`."""
        return self._once and not self._seen

    def poll(self, done: Container[Key]) -> list[Arrived]:
        """See `Source`; files of the same folder come in order of their names."""
        found, now = [], time.monotonic()
        seen, ready = {}, {}
        for path, stamp in self._files():
            if self._ready.get(path) == stamp:
                ready[path] = stamp
                continue
            before, since = self._seen.get(path, (stamp, now))
            if before != stamp:
                since = now
            if now - since < self._settle:
                seen[path] = (stamp, since)
                continue
            if path.suffix.lower() == ".png" and is_own_png(path):
                self._say(f"{path} is a picture that fedvad wrote: it is not scored")
            else:
                images = [Arrived(str(image), *stamp, image) for image in frames_of(path)]
                new = [image for image in images if image.key not in done]
                new = self._unknown(path, new, done) if new else []
                found += new
                if new:
                    seen[path] = (stamp, since)  # until its rows are in the log
                    continue
            ready[path] = stamp
        self._seen, self._ready = seen, ready
        return found

    def _unknown(self, path: Path, new: list[Arrived], done: Container[Key]) -> list[Arrived]:
        """Those that were not scored when the file had another name."""
        stamp = new[0].size, new[0].modified
        if renamed(*stamp) not in done:  # no file of this size and time was
            return new
        try:
            data = path.read_bytes()
        except OSError:  # gone, or not to be read: its row says so
            return new
        unknown = [one for one in new if renamed(*stamp, file_of(one.name, data)) not in done]
        if len(unknown) < len(new):
            log.info("%s was scored under another name: it is not scored again", path)
        return unknown

    def still(self, arrived: Arrived) -> bool:
        """See `Source`: whether the file is as it was when it was found."""
        file, _ = split_frame(Path(arrived.name))
        return _stamp(file) == (arrived.size, arrived.modified)

    def close(self) -> None:
        """Nothing is open."""

    def _files(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        """Image files and their size and time, once each, folder by folder."""
        waiting, walked = [self._folder], set()
        while waiting:
            folder = waiting.pop()
            if (real := os.path.realpath(folder)) in walked:
                continue
            walked.add(real)
            try:
                with os.scandir(folder) as entries:
                    inside = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:  # a share that comes back
                self._say(f"{folder} cannot be listed ({error.strerror or error}): trying again")
                continue
            self._said = {said for said in self._said if not said.startswith(f"{folder} cannot")}
            below = []
            for entry in inside:
                path = folder / entry.name
                if entry.is_dir():
                    if folder_reason(entry.name) is None and not is_mask_folder(entry.name):
                        below.append(path)
                    else:
                        self._say(f"{path} is a folder of masks or of the system: not watched")
                elif not is_image(path):
                    self._say(f"{path} is no image, and neither are others like it", path.suffix)
                elif stamp := _stamp(path):
                    yield path, stamp
            waiting += reversed(below)

    def _say(self, text: str, kind: str | None = None) -> None:
        """Warn once, or once for each kind of file."""
        said = text if kind is None else f"files {kind}"
        if said not in self._said:
            self._said.add(said)
            log.warning("%s", text)


def renamed(size: int, modified: int, file: str = "") -> Key:
    """What makes a renamed file the same image; without `file`, what says that one may be."""
    return "", size, modified, file


def file_of(name: str, data: bytes) -> str:
    """What stays of an image when its file is renamed: number and content; "" of one that is gone.

    Either alone is not enough: a number is used again for another file, and two photographs may be
    the same to the byte. name: of the image in the log; data: the bytes of its file.
    """
    file, _ = split_frame(Path(name))
    try:
        number = file.stat().st_ino
    except OSError:
        return ""
    return f"{number:x}-{sha256(data).hexdigest()[:16]}{name.removeprefix(str(file))}"


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of change of a file; None when it is gone, or no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None
