"""What lies in a folder: names only, links followed without loops, and what is never data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedvad.data.cubes.names import cubes_of, is_cube, is_stack
from fedvad.data.formats import image_suffix, unread_reason
from fedvad.data.frames import frames_of
from fedvad.data.output_folder import INDEX_FILES, outputs_in
from fedvad.errors import DataError


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Folders that operating systems, storage boxes, archives and editors leave behind.
_SYSTEM = _set(
    "@eadir __macosx #recycle @recycle recycler recycled recycle.bin $recycle.bin lost+found "
    "#snapshot @tmp @sharebin @recently-snapshot __pycache__ thumbnails thumbs .ipynb_checkpoints "
    ".thumbnails .appledouble .trashes .spotlight-v100 .fseventsd .git .svn"
) | {"system volume information"}
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_DOCUMENTS = _set(
    ".txt .md .rst .csv .tsv .json .jsonl .xml .yaml .yml .toml .ini .log .pdf .html .htm .py "
    ".ipynb .doc .docx .xls .xlsx .ods .odt .bib .cff .sha256 .md5 .sh .bat"
)
_DOCUMENT_NAMES = frozenset({"readme", "license", "licence", "copying", "notice", "changelog"})


UNLISTED = "cannot be listed"
_URL = re.compile(r"[a-z][a-z0-9+-]+:/[^/]", re.IGNORECASE)  # a path keeps one slash of two


@dataclass(eq=False)
class Folder:
    """One folder of a scanned tree.

    root: the folder that was scanned; parts: names below it. real: its path with links resolved.
    barred: why nothing in it counts as data ("system folder", "hidden", ...); None where it does.
    files and folders: sorted by name, hidden ones included. no_pixels: files with an image's name
    and no image inside (reports in DICOM), once `images` has looked. outputs: pictures that
    `predict` wrote, here or below; they are no data. cubes: whether cubes of bands count as images.
    """

    path: Path
    root: Path
    parts: tuple[str, ...]
    real: str
    barred: str | None = None
    files: list[Path] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)
    no_pixels: list[Path] = field(default_factory=list)
    cubes: bool = False
    outputs: frozenset[Path] = frozenset()
    _images: list[Path] | None = None

    def child(self, *names: str) -> Folder | None:
        """The folder called one of `names`: exactly, else in another case."""
        usable = self.usable()
        for name in names:
            for folder in usable:
                if folder.path.name == name:
                    return folder
        folded = {name.casefold() for name in names}
        return next((f for f in usable if f.path.name.casefold() in folded), None)

    def usable(self) -> list[Folder]:
        """Folders directly inside that may hold data."""
        return [folder for folder in self.folders if folder.barred is None]

    def images(self) -> list[Path]:
        """Images directly inside, by the names of their files, none of them hidden.

        A file of several is listed as `name#1`, `name#2`, ...; only their headers are read.
        """
        if self._images is None:
            self._images = []
            for path in self._candidates():
                found = cubes_of(path) if self.cubes else frames_of(path)
                self._images += found
                if not found:
                    self.no_pixels.append(path)
        return self._images

    def walk(self) -> Iterator[Folder]:
        """This folder and all below it, parents first, in order of name."""
        yield self
        for folder in self.folders:
            yield from folder.walk()

    def holds_images(self) -> bool:
        """Whether an image lies at any depth, outside barred folders."""
        return any(self._candidates()) or any(f.holds_images() for f in self.usable())

    def holds_cubes(self) -> bool:
        """Whether there are cubes at any depth that nobody asked to read."""
        return not self.cubes and any(
            is_cube(path) for folder in self.walk() for path in (folder.path, *folder.files)
        )

    def _candidates(self) -> Iterator[Path]:
        return (
            path
            for path in self.files
            if (is_image(path) or (self.cubes and is_cube(path))) and path not in self.outputs
        )


def scan(root: Path, *, cubes: bool = False) -> Folder:
    """The tree of folders and files below `root`; no file is opened or looked at.

    cubes: whether cubes of bands count as images, and folders called `.bands` as files of them.
    Links to folders are followed, but not to a folder that holds the link itself, nor, within a
    folder that was linked to, to one that was seen before. Raises `DataError` when `root` is not
    a folder or cannot be listed; a folder further down that cannot is barred.
    """
    if not is_folder(root):
        raise DataError(f"{root}: is not a folder") if exists(root) else missing(root, "folder")
    top = Folder(root, root, (), os.path.realpath(root), cubes=cubes)
    seen: set[str] = set()
    _fill(top, (top.real,), seen, linked=False)
    if top.barred is not None:
        raise DataError(f"{root}: {top.barred}")
    return top


def _fill(folder: Folder, above: tuple[str, ...], seen: set[str], *, linked: bool) -> None:
    seen.add(folder.real)
    try:
        with os.scandir(folder.path) as entries:  # no stat per file: shares may be slow
            found = [(e.name, is_folder(e), e.is_symlink()) for e in entries]
    except OSError as error:
        folder.barred = f"{UNLISTED}: {error.strerror or error}"
        return
    if any(name == INDEX_FILES[0] for name, _, _ in found):
        folder.outputs |= outputs_in(folder.path)
    for name, is_dir, is_link in sorted(found):
        path = folder.path / name
        if not is_dir or (folder.cubes and is_stack(name)):
            folder.files.append(path)
            continue
        real = os.path.realpath(path) if is_link else f"{folder.real.rstrip(os.sep)}{os.sep}{name}"
        barred = folder.barred or folder_reason(name)
        child = Folder(path, folder.root, (*folder.parts, name), real, barred, cubes=folder.cubes)
        child.outputs = folder.outputs
        folder.folders.append(child)
        if is_link and any(_within(place, real) for place in above):
            child.barred = "link to a folder above it"
        elif is_link and linked and real in seen:
            child.barred = "link to a folder that is read elsewhere"
        else:
            _fill(child, (*above, real), seen, linked=linked or is_link)


def _within(place: str, folder: str) -> bool:
    return place == folder or place.startswith(folder.rstrip(os.sep) + os.sep)


def folder_reason(name: str) -> str | None:
    """Why nothing in a folder counts as data, by its name alone; else None."""
    folded = name.casefold()
    if folded in _SYSTEM or folded.startswith(".trash"):
        return "system folder"
    return "hidden" if name.startswith(".") else None


def is_image(path: Path) -> bool:
    """Whether a file is called like an image and is not hidden."""
    return image_suffix(path) is not None and not path.name.startswith(".")


def file_reason(path: Path) -> tuple[str, bool] | None:
    """Why a file is no image, by its name alone, and whether a reader wants to know; else None."""
    name = path.name
    if name.casefold() in _SYSTEM_FILES:
        return "system file", False
    suffix = path.suffix.lower()
    if name.startswith("."):
        return "hidden", image_suffix(path) is not None
    if image_suffix(path) is not None:
        return None
    if suffix in _DOCUMENTS or path.stem.casefold() in _DOCUMENT_NAMES:
        return "document", False
    if why := unread_reason(path):
        return f"{suffix} {why}", True
    return (f"unknown suffix {suffix}" if suffix else "no suffix"), True


def natural(path: Path) -> tuple[list[str | int], str]:
    """Key that sorts line2 before line10."""
    # re.split with a group alternates text and digits, so like is compared with like.
    pieces = re.split(r"([0-9]+)", path.name.casefold())
    return [int(p) if i % 2 else p for i, p in enumerate(pieces)], path.name


def is_folder(path: Path | os.DirEntry[str]) -> bool:
    """Whether a path is a folder that can be looked at."""
    try:
        return path.is_dir()
    except OSError:  # a link to itself, or a folder above that may not be entered
        return False


def missing(path: Path, what: str) -> DataError:
    """That there is no `what` at a path, and why, where its spelling says so.

    >>> str(missing(Path("https://example.org/a.png"), "file"))
    'https://example.org/a.png: URLs are not read: download it and give its path'
    """
    if _URL.match(str(path)):
        url = str(path).replace(":/", "://", 1)
        return DataError(f"{url}: URLs are not read: download it and give its path")
    if str(path).startswith("~"):
        mend = ": ~ is not expanded here, give the whole path"
    elif "\\" in str(path) and os.sep == "/":
        mend = ": write the path with / here, not with \\"
    elif any(letter in str(path) for letter in "*?["):
        mend = ": patterns are not expanded here, give the folder or single files"
    else:
        mend = ""
    return DataError(f"{path}: no such {what}{mend}")


def exists(path: Path) -> bool:
    """Whether a path exists; raises `DataError` when that cannot be found out."""
    try:
        return path.exists()
    except OSError as error:
        raise DataError(f"{path}: cannot be looked at: {error.strerror or error}") from error
