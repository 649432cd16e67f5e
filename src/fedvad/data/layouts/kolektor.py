"""KolektorSDD and KolektorSDD2, whose masks lie beside the images and decide their labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedvad.data.images import read_mask
from fedvad.data.labels import LabelNames
from fedvad.data.layouts.base import Draft, every_fifth
from fedvad.data.listing import Folder
from fedvad.data.reading import SiteReading
from fedvad.data.sets import ImageItem
from fedvad.errors import DataError, ImageError

_RULE = "its mask is empty (normal) or not (defective)"


def is_sdd(folder: Folder, names: LabelNames) -> bool:
    """Whether the sub-folders are parts (kos01, ...) of images with a label file each."""
    return any(part.path.name.casefold().startswith("kos") and _pairs(part, "_label")
               for part in folder.usable())  # fmt: skip


def is_sdd2(folder: Folder, names: LabelNames) -> bool:
    """Whether train or test hold images that all have a mask called <name>_GT beside them."""
    parts = [part for name in ("train", "test") if (part := folder.child(name))]
    return bool(parts) and all(
        2 * len(_pairs(part, "_gt")) == len(part.images()) > 0 for part in parts
    )


def read_sdd(folder: Folder, name: str, names: LabelNames) -> SiteReading:
    """Read KolektorSDD: every fifth normal image is for testing, and all defective ones."""
    draft = Draft(folder, "KolektorSDD", names)
    normal: list[tuple[Path, Path]] = []
    for part in folder.usable():
        good, bad = _divided(draft, _pairs(part, "_label"))
        normal += good
        draft.defective += bad
    masks = dict(normal)
    train, test = every_fifth(list(masks))
    draft.train += [ImageItem(path, 0, "good") for path in train]
    draft.normal += [ImageItem(path, 0, "good", masks[path]) for path in test]
    rule = f"{_RULE}; every fifth normal image is for testing"
    return _finish(draft, name, rule, folder.path, folder.path)


def read_sdd2(folder: Folder, name: str, names: LabelNames) -> SiteReading:
    """Read KolektorSDD2, by its own split; defective training images are not used."""
    draft = Draft(folder, "KolektorSDD2", names)
    train, test = folder.child("train"), folder.child("test")
    if train is not None:
        good, bad = _divided(draft, _pairs(train, "_gt"))
        draft.train += [ImageItem(path, 0, "good") for path, _ in good]
        for item in bad:
            draft.why[item.path] = "not good: only normal images are learned from"
    if test is not None:
        good, bad = _divided(draft, _pairs(test, "_gt"))
        draft.normal += [ImageItem(path, 0, "good", mask) for path, mask in good]
        draft.defective += bad
    top = folder.path
    return _finish(draft, name, _RULE, top / "train", top / "test")


def _finish(draft: Draft, name: str, rule: str, train: Path, test: Path) -> SiteReading:
    if not draft.train and not draft.normal:
        raise DataError(f"site {name!r} ({draft.top.path}): no image has an empty mask")
    draft.label(train, "train", len(draft.train), rule)
    draft.label(test, "test", len(draft.normal), rule)
    draft.label(test, "test", len(draft.defective), rule, defect="defect")
    return draft.finish(name)


def _pairs(folder: Folder, ending: str) -> dict[Path, Path]:
    """Image and mask by the ending of the mask's name."""
    images = folder.images()
    masks = {
        path.stem[: -len(ending)]: path
        for path in images
        if path.stem.casefold().endswith(ending)
    }  # fmt: skip
    return {path: masks[path.stem] for path in images if path.stem in masks}


def _divided(
    draft: Draft, pairs: Mapping[Path, Path]
) -> tuple[list[tuple[Path, Path]], list[ImageItem]]:
    """Normal images with their masks, and defective ones: whose mask marks anything."""
    normal, defective = [], []
    for image, mask in pairs.items():
        draft.masks.add(mask)
        try:
            marked = read_mask(mask).any()
        except ImageError as error:
            draft.why[image] = "its mask, which is its label, cannot be read"
            draft.notes.append(str(error))
            continue
        if marked:
            defective.append(ImageItem(image, 1, "defect", mask))
        else:
            normal.append((image, mask))
    return normal, defective
