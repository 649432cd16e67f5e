"""Which image files `predict` is to score: what was given, what was found below, what was not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from fedvad.data.images import IMAGE_SUFFIXES
from fedvad.data.output_folder import INDEX_FILES
from fedvad.data.outputs import folded, is_own_png, real
from fedvad.errors import DataError

__all__ = ["Listed", "Listing", "list_images"]

_MASKS = frozenset(
    {"ground_truth", "groundtruth", "ground-truth", "ground truth", "gt", "mask", "masks"}
)
_MASK_ENDINGS = ("_mask", "_gt", "_label")
_THUMBNAILS = frozenset({"@eadir", "__macosx", "thumbnails", "thumbs", "_thumbs"})
_RUN = ("config.json", "detector.safetensors")
_OWN = frozenset({"export", "gallery", "state", "tables"})  # folders in a run folder
_WORDS = {
    "own": "outputs of fedvad",
    "runs": "run folders (their own files)",
    "masks": "ground-truth masks",
    "thumbnails": "folders of thumbnails",
    "hidden": "hidden files and folders",
    "other": "files of other kinds",
    "again": "repetitions of files given more than once",
}


@dataclass(frozen=True)
class Listed:
    """An image file, and its name (without suffix) below the place where outputs are mirrored."""

    path: Path
    name: PurePath


@dataclass(frozen=True)
class Listing:
    """Image files, each once, and how many entries were left out for which reason."""

    images: tuple[Listed, ...]
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def paths(self) -> list[Path]:
        """The files, in order."""
        return [image.path for image in self.images]

    def left_out_words(self) -> str:
        """For people, "3 outputs of fedvad, 2 ground-truth masks"; "" when nothing was."""
        return ", ".join(
            f"{self.left_out[key]} {words}" for key, words in _WORDS.items() if self.left_out[key]
        )


def list_images(paths: Iterable[Path]) -> Listing:
    """Expand files and folders to image files, each once, in the order given.

    A file named outright is kept, whatever it is. Folders are searched at any depth, sorted by
    name. Left out there, and counted: what fedvad wrote (marked PNG files, run folders),
    ground-truth masks (folders named ground_truth, gt or masks; `x_mask` beside `x`), thumbnails,
    hidden entries, other suffixes. A folder named outright is searched whatever its name.
    Outputs mirror the one folder given; of several, their names come first. Raises `DataError`
    when a path does not exist or no image is found.
    """
    given = [Path(path) for path in paths]
    tops = [path for path in given if _is_dir(path)]
    left_out: Counter[str] = Counter()
    found: dict[tuple[Path, str], Listed] = {}
    for path in given:
        if not (path in tops or _exists(path)):
            raise DataError(f"{path}: no such file or folder")
        if path not in tops:
            images = [Listed(path, PurePath(path.stem))]
        else:
            images = _walk(path, real(path).name if len(given) > 1 else "", left_out)
        for image in images:
            key = (real(image.path.parent), image.path.name)
            left_out["again"] += key in found
            found.setdefault(key, image)
    listing = Listing(tuple(found.values()), left_out)
    if not found:
        where = ", ".join(map(str, given)) or "no path was given"
        besides = listing.left_out_words()
        raise DataError(
            f"no image found ({where}); looked for {', '.join(sorted(IMAGE_SUFFIXES))}"
            + (f"; left out: {besides} (a file named outright is always scored)" if besides else "")
        )
    return listing


def _walk(top: Path, prefix: str, left_out: Counter[str]) -> list[Listed]:
    """Images at any depth below `top`; each real folder once, so links in a loop end."""
    found: list[Listed] = []
    seen: set[Path] = set()
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        if (place := real(folder)) in seen:
            continue
        seen.add(place)
        entries = _entries(folder)
        files = {path.name for path, is_dir in entries if not is_dir}
        if all(name in files for name in _RUN):  # the demo keeps its data in one
            left_out["runs"] += 1
            entries = [(path, True) for path, is_dir in entries if is_dir and path.name not in _OWN]
        stems = {folded(PurePath(name).stem) for name in files}
        below = []
        for path, is_dir in entries:
            reason = _folder_reason(path, left_out) if is_dir else _file_reason(path, stems)
            if reason:
                left_out[reason] += reason != "counted"
            elif is_dir:
                below.append(path)
            else:
                found.append(Listed(path, prefix / path.relative_to(top).with_suffix("")))
        waiting += reversed(below)
    return found


def _folder_reason(folder: Path, left_out: Counter[str]) -> str:
    name = folder.name.casefold()
    if name.startswith("."):
        return "hidden"
    if name in _THUMBNAILS:
        return "thumbnails"
    if name in _MASKS:
        left_out["masks"] += sum(
            PurePath(file).suffix.lower() in IMAGE_SUFFIXES
            for _, _, files in os.walk(folder)
            for file in files
        )
        return "counted"
    return ""


def _file_reason(path: Path, stems: set[str]) -> str:
    if path.name in INDEX_FILES:
        return "index"
    if path.name.startswith("."):
        return "hidden"
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return "other"
    stem = folded(path.stem)
    if any(stem.endswith(end) and stem.removesuffix(end) in stems for end in _MASK_ENDINGS):
        return "masks"
    return "own" if path.suffix.lower() == ".png" and is_own_png(path) else ""


def _entries(folder: Path) -> list[tuple[Path, bool]]:
    """All entries sorted by name, with whether each is a folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted((folder / entry.name, _is_dir(entry)) for entry in entries)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}") from error


def _is_dir(path: Path | os.DirEntry[str]) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a link to itself, or a folder above that may not be entered
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists() or path.is_symlink()  # reading a broken link says what it is
    except OSError as error:
        raise DataError(f"{path}: cannot be looked at: {error.strerror or error}") from error
