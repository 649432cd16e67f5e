"""Read folders in MVTec's layout into sites: names of files only, no image is opened here."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from fedvad.data.formats import IMAGE_SUFFIXES, image_suffix
from fedvad.data.frames import frames_of, split_frame, stem_of
from fedvad.errors import DataError

__all__ = ["ImageItem", "ImageSet", "Site", "read_images", "read_set", "read_sites"]

_GOOD = frozenset({"good", "ok", "normal"})
_TEST_SHARE = 5  # of a set without a split of its own, every fifth normal image is for testing
_LAYOUT = """expected one set, or a folder of such sets (one per site):
  train/good/*.png                       normal images to learn from (also train/ok, train/normal)
  test/good/*.png                        normal images to test on (optional)
  test/<defect>/*.png                    anomalous images (optional)
  ground_truth/<defect>/<name>_mask.png  their masks (optional)
or a class of VisA (Data/Images, with ../split_csv/1cls.csv), or Br35H (no/, yes/)"""


@dataclass(frozen=True)
class ImageItem:
    """One image file: label 0 normal, 1 anomalous; `defect` is the name of its kind."""

    path: Path
    label: int
    defect: str
    mask: Path | None


@dataclass(frozen=True)
class ImageSet(Sequence[ImageItem]):
    """An immutable, ordered set of image files, decoded by nobody yet."""

    items: tuple[ImageItem, ...]

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> ImageItem: ...
    @overload
    def __getitem__(self, index: slice) -> ImageSet: ...
    def __getitem__(self, index: int | slice) -> ImageItem | ImageSet:
        return ImageSet(self.items[index]) if isinstance(index, slice) else self.items[index]

    def __add__(self, other: ImageSet) -> ImageSet:
        return ImageSet(self.items + other.items) if isinstance(other, ImageSet) else NotImplemented

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, in order."""
        return tuple(item.path for item in self.items)

    @property
    def labels(self) -> np.ndarray:
        """Labels as int64 (n,): 0 normal, 1 anomalous."""
        return np.array([item.label for item in self.items], dtype=np.int64)

    @property
    def defects(self) -> tuple[str, ...]:
        """The kind of each image, in order: "good" or the name of its defect folder."""
        return tuple(item.defect for item in self.items)

    @property
    def has_masks(self) -> bool:
        """Whether there are anomalous images and all have masks; a normal one's is empty."""
        masks = [item.mask for item in self.items if item.label]
        return bool(masks) and None not in masks

    def subset(self, indices: Iterable[int] | np.ndarray) -> ImageSet:
        """The images at `indices`, in that order."""
        return ImageSet(tuple(self.items[int(index)] for index in indices))


@dataclass(frozen=True)
class Site:
    """A named place with its own images: normal ones to learn from, and a test set."""

    name: str
    train: ImageSet
    test: ImageSet


def read_sites(root: Path, *, allow_empty_train: bool = False) -> list[Site]:
    """Read `root` as one set (it has `train/`) or as a folder of sets, one per site.

    Sites come in natural order (line2 before line10). With `allow_empty_train`, for evaluation at
    places that did not train, a set with only `test/` is a site too. Raises `DataError` naming
    a missing folder, a layout in which no site is found, or a site without normal training image.
    """
    root = Path(root)
    if not _is_dir(root):
        raise DataError(f"{root}: {'is not a folder' if _exists(root) else 'no such folder'}")
    if _is_dir(root / "train") or _is_visa(root) or _is_br35h(root):
        return [read_set(root, allow_empty_train=allow_empty_train)]
    # A sub-folder with test/ alone counts, so that its missing train/ is told, not passed over.
    folders = [
        f
        for f in _folders(root)
        if _is_dir(f / "train") or _is_dir(f / "test") or _is_visa(f) or _is_br35h(f)
    ]
    if folders:
        folders.sort(key=_natural)
        return [read_set(folder, allow_empty_train=allow_empty_train) for folder in folders]
    if _is_dir(root / "test"):
        return [read_set(root, allow_empty_train=allow_empty_train)]
    raise DataError(f"{root}: no image set found.\n{_LAYOUT}\nfound: {_found(root)}")


def read_set(root: Path, name: str | None = None, *, allow_empty_train: bool = False) -> Site:
    """Read one set in MVTec's layout as a site, named by its folder unless `name` is given.

    MPDD, BTAD and many more have that layout; a class of VisA is read by its `1cls.csv`, Br35H by
    its folders `no` and `yes`. Normal folders may be called good, ok or normal. Files are sorted
    by name, normals first; hidden files and other suffixes are ignored. A mask is any image in
    `ground_truth/<defect>` called `<stem>_mask` or `<stem>`. A broken link with an image's name
    stays in the set: reading it later reports it. Raises `DataError` naming the site when it has
    no normal training image, unless `allow_empty_train`.
    """
    root = Path(root)
    name = name or root.name or root.resolve().name or "site"
    if not _is_dir(root / "train"):
        if _is_visa(root):
            return _read_visa(root, name)
        if _is_br35h(root):
            return _read_br35h(root, name)
    train = [
        ImageItem(path, 0, "good", None)
        for folder in _folders(root / "train")
        if folder.name.casefold() in _GOOD
        for path in _images(folder)
    ]
    if not train and not allow_empty_train:
        raise DataError(
            f"site {name!r} ({root}) has no normal training image.\n{_LAYOUT}\n"
            f"found: {_found(root)}; in train/: {_found(root / 'train')}"
        )
    normal: list[ImageItem] = []
    anomalous: list[ImageItem] = []
    for folder in _folders(root / "test"):
        if folder.name.casefold() in _GOOD:
            normal += [ImageItem(path, 0, "good", None) for path in _images(folder)]
            continue
        masks = _masks(root / "ground_truth" / folder.name)
        for path in _images(folder):
            mask = masks.get(_key(stem_of(path, "_mask"))) or masks.get(_key(stem_of(path)))
            anomalous.append(ImageItem(path, 1, folder.name, mask))
    return Site(name, ImageSet(tuple(train)), ImageSet(tuple(normal + anomalous)))


def _is_visa(folder: Path) -> bool:
    return _is_dir(folder / "Data" / "Images" / "Normal")


def _is_br35h(folder: Path) -> bool:
    return _is_dir(folder / "no") and _is_dir(folder / "yes")


def _read_visa(root: Path, name: str) -> Site:
    """A class of VisA, divided as its authors' one-class protocol says."""
    table = root.resolve().parent / "split_csv" / "1cls.csv"
    wanted = root.resolve().name
    parts: dict[str, list[ImageItem]] = {"train": [], "test": []}
    try:
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["object"] == wanted:
                    normal = row["label"] == "normal"
                    mask = None if normal or not row["mask"] else table.parents[1] / row["mask"]
                    parts[row["split"]].append(
                        ImageItem(
                            table.parents[1] / row["image"],
                            int(not normal),
                            "good" if normal else "anomaly",
                            mask,
                        )
                    )
    except OSError as error:
        raise DataError(
            f"site {name!r}: {root} is a class of VisA, whose split is read from {table}: "
            f"{error.strerror}"
        ) from error
    except (KeyError, TypeError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is not VisA's table of images: {error!r}") from error
    train = tuple(item for item in parts["train"] if item.label == 0)
    if not train:
        raise DataError(f"site {name!r}: {table} names no normal training image of {wanted!r}")
    test = sorted(parts["test"], key=lambda item: item.label)
    return Site(name, ImageSet(train), ImageSet(tuple(test)))


def _read_br35h(root: Path, name: str) -> Site:
    """Br35H has no split: of its images without tumour every fifth is for testing."""
    normals = _images(root / "no")
    train = [path for i, path in enumerate(normals) if i % _TEST_SHARE]
    if not train:
        raise DataError(f"site {name!r} ({root}) has too few images in no/: {len(normals)}")
    test = [ImageItem(path, 0, "good", None) for path in normals[::_TEST_SHARE]]
    test += [ImageItem(path, 1, "tumour", None) for path in _images(root / "yes")]
    return Site(name, ImageSet(tuple(ImageItem(p, 0, "good", None) for p in train)),
                ImageSet(tuple(test)))  # fmt: skip


def read_images(paths: Iterable[Path]) -> list[Path]:
    """Expand files and folders to image files, each once, in the order given.

    Folders are searched recursively, sorted by name, hidden entries and other suffixes left out;
    a file named outright is kept whatever its suffix. Raises `DataError` when a path does not
    exist or no image is found.
    """
    given = [path if isinstance(path, Path) else Path(path) for path in paths]  # of Picture, too
    found: dict[Path, None] = {}
    for path in given:
        if _is_dir(path):
            found.update(dict.fromkeys(_walk(path)))
        elif _exists(path):
            found.update(dict.fromkeys(frames_of(path)))
        elif _exists(split_frame(path)[0]):
            found[path] = None
        else:
            raise DataError(f"{path}: no such file or folder")
    if not found:
        where = ", ".join(map(str, given)) or "no path was given"
        raise DataError(f"no image found ({where}); looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    return list(found)


def _walk(top: Path) -> list[Path]:
    """Images at any depth below `top`; each real folder once, so links in a loop end."""
    found: list[Path] = []
    seen: set[str] = set()
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        found += _images(folder)
        waiting += reversed(_folders(folder))
    return found


def _entries(folder: Path) -> list[tuple[Path, bool]]:
    """Visible entries sorted by name, with whether each is a folder; none if `folder` is none."""
    if not _is_dir(folder):
        return []
    try:
        with os.scandir(folder) as entries:  # no stat per file: folders may be on slow shares
            found = [(folder / e.name, _is_dir(e)) for e in entries if not e.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}") from error
    return sorted(found)


def _folders(folder: Path) -> list[Path]:
    return [path for path, is_dir in _entries(folder) if is_dir]


def _images(folder: Path) -> list[Path]:
    return [
        image
        for path, is_dir in _entries(folder)
        if not is_dir and image_suffix(path)
        for image in frames_of(path)
    ]


def _masks(folder: Path) -> dict[str, Path]:
    masks: dict[str, Path] = {}
    for path in sorted(_images(folder), key=lambda path: path.suffix.lower() != ".png"):
        masks.setdefault(_key(stem_of(path)), path)  # several of one stem: PNG, then by name
    return masks


def _key(stem: str) -> str:
    # One name may be composed differently (é as one or two code points) by the tools and file
    # systems that images and masks went through.
    return unicodedata.normalize("NFC", stem)


def _natural(path: Path) -> tuple[list[str | int], str]:
    # re.split with a group alternates text and digits, so like is compared with like.
    pieces = re.split(r"([0-9]+)", path.name.casefold())
    return [int(p) if i % 2 else p for i, p in enumerate(pieces)], path.name


def _is_dir(path: Path | os.DirEntry[str]) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a link to itself, or a folder above that may not be entered
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise DataError(f"{path}: cannot be looked at: {error.strerror or error}") from error


def _found(folder: Path) -> str:
    entries = [f"{path.name}/" if is_dir else path.name for path, is_dir in _entries(folder)]
    more = f", … ({len(entries)} in all)" if len(entries) > 8 else ""
    return (", ".join(entries[:8]) + more) or "nothing"
