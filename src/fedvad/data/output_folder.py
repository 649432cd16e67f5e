"""A folder of outputs, one set of files per image, in which no call replaces another's."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath

from fedvad.data.files import locked
from fedvad.data.outputs import folded, guard_file, guard_folder, is_own_png
from fedvad.errors import ConfigError, StorageError

INDEX_FILES = _INDEX_FILE, _LOCK_FILE = ".fedvad-outputs.jsonl", ".fedvad-outputs.lock"
_MAX_NAME = 200  # bytes of a name without its ending; file systems end at 255


class OutputFolder:
    """Gives out names below a folder: to one owner always the same, to two never one.

    An owner is a text, such as an image's real path with the hash of its bytes. Who owns which
    name is kept in `_INDEX_FILE` there, one JSON object a line, written before the files are. A
    file that nobody owns is the user's and stays. Names are compared as file systems do that
    ignore case and composition. Several processes may share a folder.
    """

    def __init__(self, folder: Path, option: str, *, inputs: Iterable[Path] = ()) -> None:
        """inputs: folders that hold or lead to images, in which nothing may be written.

        Raises `ConfigError` when `folder` is one of them or a file, `StorageError` when the disk
        refuses.
        """
        self._inputs = tuple(inputs)
        self._option = option
        guard_folder(folder, option, folders=self._inputs)
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{option} {folder} is a file: choose a folder")
        self.folder = folder
        self._owners: dict[str, str] = {}  # by folded file name
        self._names: dict[tuple[str, tuple[str, ...]], PurePath] = {}
        self._read = 0
        self._allowed: set[Path] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _INDEX_FILE).touch()
        except OSError as error:
            raise StorageError(
                f"cannot write to {folder}: {error.strerror or error}; choose another {option}"
            ) from error

    def claim(self, owner: str, wanted: PurePath, endings: Sequence[str]) -> Path:
        """The path, without ending, at which `owner` may write files with these endings.

        That is `wanted` below the folder, or the first of wanted-1, wanted-2, ... of which no
        file is another owner's or the user's; a name too long for a file system is cut and gets
        a hash. Raises `ConfigError` when it would lie among images, `StorageError`.
        """
        key = (owner, tuple(endings))
        wanted = PurePath(*(_fitting(part) for part in wanted.parts))
        try:
            with locked(self.folder / _LOCK_FILE):
                self._refresh()
                if key not in self._names or not self._free(owner, self._names[key], endings):
                    name, count = wanted, 0
                    while not self._free(owner, name, endings):
                        count += 1
                        name = wanted.with_name(f"{wanted.name}-{count}")
                    self._keep(owner, name, endings)
        except OSError as error:
            raise StorageError(
                f"cannot write to {self.folder}: {error.strerror or error}"
            ) from error
        place = self.folder / self._names[key]
        if place.parent not in self._allowed:
            guard_file(place, self._option, folders=self._inputs)
            self._allowed.add(place.parent)
        return place

    def _free(self, owner: str, name: PurePath, endings: Sequence[str]) -> bool:
        for ending in endings:
            file = self.folder / f"{name}{ending}"
            holder = self._owners.get(folded(f"{name}{ending}"))
            if holder is None and os.path.lexists(file):
                return False
            if holder not in (None, owner):
                return False
            # the user may have put a picture in the place of ours
            if ending == ".png" and os.path.lexists(file) and not is_own_png(file):
                return False
        return True

    def _keep(self, owner: str, name: PurePath, endings: Sequence[str]) -> None:
        line = json.dumps({"name": str(name), "endings": list(endings), "of": owner})
        with (self.folder / _INDEX_FILE).open("ab") as file:
            file.write(f"\n{line}\n".encode())  # the line before may be torn
        self._refresh()

    def _refresh(self) -> None:
        """Take in what was added to the index, also by others; a torn line is nobody's."""
        with (self.folder / _INDEX_FILE).open("rb") as file:
            file.seek(self._read)
            added = file.read()
        self._read += len(added)
        for owner, name, endings in _entries(added):
            self._owners |= {folded(f"{name}{ending}"): owner for ending in endings}
            self._names[owner, endings] = PurePath(name)


def outputs_in(folder: Path) -> set[Path]:
    """Pictures below `folder` that it was given out for, as far as they are still ours."""
    try:
        known = (folder / _INDEX_FILE).read_bytes()
    except OSError:
        return set()
    files = {folder / f"{name}{end}" for _, name, ends in _entries(known) for end in ends}
    return {file for file in files if is_own_png(file)}


def _entries(data: bytes) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Owner, name and endings by line of an index; a line that is damaged is left out."""
    for line in data.splitlines():
        try:
            entry = json.loads(line)
            name, endings, owner = entry["name"], tuple(entry["endings"]), entry["of"]
            if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
                continue
            "".join((owner, *endings))  # a TypeError where they are no texts
        except (ValueError, KeyError, TypeError):
            continue
        yield owner, name, endings


def _fitting(part: str) -> str:
    data = os.fsencode(part)
    if len(data) <= _MAX_NAME:
        return part
    short = data[: _MAX_NAME - 13].decode("utf-8", "ignore")
    return f"{short}-{hashlib.sha256(data).hexdigest()[:12]}"
