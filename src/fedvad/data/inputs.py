"""Which image files `predict` is to score: what was given, what was found below, what was not."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from fedvad.data.cubes.names import CUBE_SUFFIXES, cubes_of, is_cube, is_stack
from fedvad.data.formats import IMAGE_SUFFIXES
from fedvad.data.frames import frames_of, split_frame, stem_of
from fedvad.data.listing import exists, folder_reason, is_folder, is_image, missing
from fedvad.data.masks import BESIDE, companions, is_mask_folder, masks_of
from fedvad.data.output_folder import INDEX_FILES
from fedvad.data.outputs import is_own_png, real
from fedvad.errors import DataError

log = logging.getLogger(__name__)

_RUN = ("config.json", "detector.safetensors")
_OWN = frozenset({"export", "gallery", "state", "tables"})  # folders in a run folder
_WORDS = {  # of one, of several
    "own": ("output of fedvad", "outputs of fedvad"),
    "runs": ("run folder (its own files)", "run folders (their own files)"),
    "masks": ("ground-truth mask", "ground-truth masks"),
    "thumbnails": ("thumbnail or folder of the system", "thumbnails and folders of the system"),
    "hidden": ("hidden file or folder", "hidden files and folders"),
    "other": ("file of another kind", "files of other kinds"),
    "again": ("repetition of a file", "repetitions of files given more than once"),
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
            f"{count} {words[count > 1]}"
            for key, words in _WORDS.items()
            if (count := self.left_out[key])
        )


def list_images(paths: Iterable[Path], *, cubes: bool = False) -> Listing:
    """Expand files and folders to image files, each once, in the order given.

    A file named outright is kept, whatever it is. Folders are searched at any depth, sorted by
    name. Left out there, and counted: what fedvad wrote (marked PNG files, run folders),
    ground-truth masks (folders named ground_truth, gt or masks; `x_mask` beside `x`), thumbnails,
    hidden entries, other suffixes. A folder named outright is searched whatever its name.
    cubes: images are cubes of bands, see `cubes.names`.
    Outputs mirror the one folder given; of several, their names come first. Raises `DataError`
    when a path does not exist or no image is found.
    """
    given = [path if isinstance(path, Path) else Path(path) for path in paths]  # of Picture, too
    tops = [p for p in given if is_folder(p) and not (cubes and is_stack(p.name))]
    left_out: Counter[str] = Counter()
    found: dict[tuple[Path, str], Listed] = {}
    for path in given:
        if path in tops:
            images = _walk(path, real(path).name if len(given) > 1 else "", left_out, cubes)
        elif exists(path) or path.is_symlink():  # reading a broken link says what it is
            named = (cubes_of(path) if cubes else frames_of(path)) or [path]
            images = [Listed(image, PurePath(stem_of(image))) for image in named]
        elif exists(split_frame(path)[0]):
            images = [Listed(path, PurePath(stem_of(path)))]
        else:
            raise missing(path, "file or folder")
        for image in images:
            key = (real(image.path.parent), image.path.name)
            left_out["again"] += key in found
            found.setdefault(key, image)
    listing = Listing(tuple(found.values()), left_out)
    if not found:
        where = ", ".join(map(str, given)) or "no path was given"
        besides = listing.left_out_words()
        wanted = {*CUBE_SUFFIXES, ".tif", ".bands"} if cubes else IMAGE_SUFFIXES
        raise DataError(
            f"no image found ({where}); looked for {', '.join(sorted(wanted))}"
            + (f"; left out: {besides} (a file named outright is always scored)" if besides else "")
        )
    return listing


def read_images(paths: Iterable[Path], *, cubes: bool = False) -> list[Path]:
    """The files of `list_images`; what was left out is logged as one line."""
    listing = list_images(paths, cubes=cubes)
    if left_out := listing.left_out_words():
        log.warning("not taken as images: %s", left_out)
    return listing.paths


def _walk(top: Path, prefix: str, left_out: Counter[str], cubes: bool) -> list[Listed]:
    """Images at any depth below `top`; each real folder once, so links in a loop end."""
    found: list[Listed] = []
    seen: set[Path] = set()
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        if (actual := real(folder)) in seen:
            continue
        seen.add(actual)
        entries = _entries(folder, cubes)
        files = {path.name for path, is_dir in entries if not is_dir}
        if all(name in files for name in _RUN):  # the demo keeps its data in one
            left_out["runs"] += 1
            entries = [(path, True) for path, is_dir in entries if is_dir and path.name not in _OWN]
        beside = companions(path for path, is_dir in entries if not is_dir and is_image(path))
        below = []
        folders = [path.name for path, is_dir in entries if is_dir]
        for path, is_dir in entries:
            if is_dir:
                reason = _folder_reason(path, folders, left_out)
            else:
                reason = _file_reason(path, beside, cubes)
            if reason:
                left_out[reason] += reason != "counted"
            elif is_dir:
                below.append(path)
            else:
                place = PurePath(prefix, path.parent.relative_to(top))
                images = cubes_of(path) if cubes else frames_of(path)
                left_out["other"] += not images
                found += [Listed(image, place / stem_of(image)) for image in images]
        waiting += reversed(below)
    return found


def _folder_reason(folder: Path, beside: Sequence[str], left_out: Counter[str]) -> str:
    barred = folder_reason(folder.name)
    if barred:
        return "hidden" if barred == "hidden" else "thumbnails"
    if is_mask_folder(folder.name) or masks_of(folder.name, beside):
        left_out["masks"] += sum(
            is_image(Path(file)) for _, _, files in os.walk(folder) for file in files
        )
        return "counted"
    return ""


def _file_reason(path: Path, beside: Mapping[Path, str], cubes: bool) -> str:
    if path.name in INDEX_FILES:
        return "index"
    if path.name.startswith("."):
        return "hidden"
    if not is_image(path) and not (cubes and is_cube(path)):
        return "other"
    if path in beside:
        return "masks" if beside[path] == BESIDE else "thumbnails"
    return "own" if path.suffix.lower() == ".png" and is_own_png(path) else ""


def _entries(folder: Path, cubes: bool) -> list[tuple[Path, bool]]:
    """All entries sorted by name, with whether each is a folder (and no cube)."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (folder / entry.name, is_folder(entry) and not (cubes and is_stack(entry.name)))
                for entry in entries
            )
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}") from error
