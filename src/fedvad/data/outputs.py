"""Inputs are sacred: checks made before any work that no output is written over what is read."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from fedvad.errors import ConfigError, StorageError

# Keyword of the tEXt chunk that every PNG of ours carries, so that no listing takes it for an
# image to score, wherever it lies.
PNG_MARK = "fedvad"
OWN_PNG = f"tEXt{PNG_MARK}\0".encode()
_ENDINGS = {OWN_PNG: ".png", b"%PDF": ".pdf"}  # of files of ours that others open by their name
_HEAD = 1024  # bytes; our chunk comes before the pixels


def real(path: Path) -> Path:
    """Absolute path without links and "..", also of a file that does not exist yet.

    A link in a loop, or a folder that may not be entered, stays as it is.
    """
    return Path(os.path.realpath(path))


def folded(path: Path | str) -> str:
    """A name as file systems compare it that ignore case and composition (é as one or two)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold())


def guard_file(
    target: Path,
    option: str,
    *,
    reads: Iterable[Path] = (),
    folders: Iterable[Path] = (),
    own: bytes = b"",
) -> None:
    """Raise `ConfigError` unless `target` may be written, `StorageError` if the disk refuses.

    reads: files that this call reads; the target must be none of them, through links, relative
    paths and other case too. folders: folders that hold or lead to its images (see
    `holding_folders`); the target must not lie directly in one, where a later call would read it.
    own: bytes near the beginning of each such file of ours; one without them is the user's and
    stays. option: what the user wrote the target behind, for the message.
    """
    places, nodes = {folded(real(target)), folded(_entry(target))}, _nodes([target])
    for path in reads:
        if (
            folded(real(path)) in places
            or folded(_entry(path)) in places
            or not nodes.isdisjoint(_nodes([path]))
        ):
            raise ConfigError(
                f"{option} {target} would be written over {path}, which is read: choose "
                "another file"
            )
    if target.is_dir():
        raise ConfigError(f"{option} {target} is a folder: add the name of a file")
    if target.is_file() and own not in _head(target):
        raise ConfigError(
            f"{option} {target} exists, and fedvad did not write it: choose another "
            "file, or remove it"
        )
    ending = _ENDINGS.get(own, "")
    if not target.name.lower().endswith(ending):
        raise ConfigError(f"{option} {target} would hold {ending[1:].upper()}: end it in {ending}")
    holder = _among(_entry(target).parent, folders)
    if holder is not None:
        raise ConfigError(
            f"{option} {target} would lie among the images in {holder} and be read as one later: "
            "choose a place outside"
        )
    check_writable(target.parent, option)


def check_writable(folder: Path, option: str) -> None:
    """Raise `StorageError` when no file can be made in `folder`, which need not exist yet.

    Tried with an unnamed file in the folder or the nearest one above it: permissions alone tell
    little on network drives and read-only disks.
    """
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise StorageError(
            f"cannot write to {folder}: {error.strerror or error}; choose another {option}"
        ) from error


def guard_folder(out: Path, option: str, *, folders: Iterable[Path]) -> None:
    """Raise `ConfigError` when `out` is one of the `folders` that hold or lead to images."""
    holder = _among(out, folders)
    if holder is not None:
        raise ConfigError(
            f"{option} {out} is the folder of the images in {holder}: outputs would lie among "
            f"them; choose another folder, for example {_beside(out)}"
        )


def holding_folders(roots: Iterable[Path], files: Iterable[Path]) -> set[Path]:
    """Real folders that hold `files`, those between them and the root above, and these roots.

    A file below none of the roots adds its own folder alone.
    """
    tops = {real(root) for root in roots if root.is_dir()}
    found, seen = set(tops), set[Path]()
    for parent in {path.parent for path in files}:
        folder = real(parent)
        between: list[Path] = []
        for above in (folder, *folder.parents):
            if above in seen or above in tops:
                found.update(between)
                break
            between.append(above)
        else:
            between = [folder]
        found.update(between)
        found.add(folder)
        seen.update(between)
    # what a link in these folders stands for is no less an image
    found |= {real(path).parent for path in files if path.is_symlink()}
    return found


def is_own_png(path: Path) -> bool:
    """Whether a file is a PNG that fedvad wrote; False for one that cannot be read."""
    head = _head(path)
    return head.startswith(b"\x89PNG") and OWN_PNG in head


def _head(path: Path) -> bytes:
    """The first bytes of a regular file; none of a pipe, which would block for ever."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(_HEAD)
    except (OSError, ValueError):
        return b""


def _entry(path: Path) -> Path:
    """The directory entry itself: a link is not followed, the folders above it are."""
    return real(path.parent) / path.name


def _nodes(paths: Iterable[Path]) -> set[tuple[int, int]]:
    found = set()
    for path in paths:
        try:
            status = path.stat()
        except (OSError, ValueError):
            continue
        found.add((status.st_dev, status.st_ino))
    return found


def _among(folder: Path, folders: Iterable[Path]) -> Path | None:
    place, nodes = folded(real(folder)), _nodes([folder])
    for other in folders:
        if folded(real(other)) == place or not nodes.isdisjoint(_nodes([other])):
            return other
    return None


def _beside(out: Path) -> Path:
    place = real(out)
    return place.with_name(f"{place.name}-fedvad")
