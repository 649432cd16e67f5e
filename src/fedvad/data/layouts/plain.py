"""A folder of normal images and folders of defects, without a split: good/ and bad/, OK/ and NG/.

Br35H is one of them (no/ and yes/).
"""

from __future__ import annotations

from fedvad.data.labels import LabelNames
from fedvad.data.layouts.base import Draft, Group, every_fifth
from fedvad.data.listing import Folder
from fedvad.data.masks import is_mask_folder, masks_of
from fedvad.data.reading import SiteReading
from fedvad.data.sets import ImageItem
from fedvad.errors import DataError

_FIFTH = "every fifth normal image is for testing, the set has no split"


def is_plain(folder: Folder, names: LabelNames) -> bool:
    """Whether a sub-folder with images is called good, named as such, or looks like it."""
    parts = _with_images(folder)
    sets = any(part.child("train", "test", "Data") for part in parts)
    return not sets and any(_may_be_good(part, names) for part in parts)


def is_br35h(folder: Folder, names: LabelNames) -> bool:
    """Whether a folder holds `no` and `yes`, as Br35H does."""
    return folder.child("no") is not None and folder.child("yes") is not None


def read_plain(folder: Folder, name: str, names: LabelNames) -> SiteReading:
    """Read one set; raises `DataError` where a folder's label has to be asked for."""
    parts = _with_images(folder)
    doubtful = [p for p in parts if names.rule(p.path.name) is None]
    if doubtful:
        shown = ", ".join(p.path.name for p in parts)
        one = doubtful[0].path.name
        raise DataError(
            f"site {name!r}: which of its folders ({shown}) hold normal images?\n"
            f"Give --good {one} (configuration key good) if {one} does, else --defect {one}; or "
            "rename it: train/good, test/good, test/<defect>."
        )
    return _read(folder, name, names, "folders of labels", {})


def read_br35h(folder: Folder, name: str, names: LabelNames) -> SiteReading:
    """Read Br35H: of its images without a tumour every fifth is for testing."""
    draft = Draft(folder, "Br35H", names)
    for part in folder.usable():
        if part.path.name.casefold() not in ("no", "yes"):
            draft.why[part.path] = "its images have no labels"
    return _read(folder, name, names.with_good("no"), "Br35H", {"yes": "tumour"}, draft)


def _read(
    folder: Folder, name: str, names: LabelNames, layout: str, kinds: dict[str, str],
    draft: Draft | None = None,
) -> SiteReading:  # fmt: skip
    draft = draft or Draft(folder, layout, names)
    parts = folder.usable() if layout == "Br35H" else _with_images(folder)
    groups = []
    for part in parts:
        if part.path in draft.why:
            continue
        good, rule = names.rule(part.path.name) or (False, "")
        if layout == "Br35H":
            rule = "Br35H"
        images = draft.images_of(part, good=good)
        rule += f"; also from sub-folders ({draft.nested})" if draft.nested else ""
        if not good:
            defect = kinds.get(part.path.name.casefold(), part.path.name)
            masks = [
                ((), path)
                for root in folder.usable()
                if is_mask_folder(root.path.name, of_set=True)
                for path in (root.child(part.path.name) or root).images()
            ]
            masks += [((), path) for own in _masks_beside(folder, part) for path in own.images()]
            groups.append(Group(defect, images, masks))
            draft.label(
                part.path, "test", len(images), rule, defect=defect, notable=bool(draft.nested)
            )
            continue
        train, test = every_fifth([path for _, path in images])
        if not train:
            raise DataError(
                f"site {name!r} ({folder.path}) has too few images in {part.path.name}/: "
                f"{len(images)}"
            )
        draft.train += [ImageItem(path, 0, "good") for path in train]
        groups.append(Group(None, [((), path) for path in test]))
        notable = layout != "Br35H" or bool(draft.nested)
        draft.label(part.path, "train", len(train), rule, notable=notable)
        draft.label(part.path, "test", len(test), f"{rule}; {_FIFTH}", notable=notable)
    draft.add_test(groups)
    draft.note_masks()
    return draft.finish(name)


def _with_images(folder: Folder) -> list[Folder]:
    beside = [part.path.name for part in folder.usable()]
    return [
        part
        for part in folder.usable()
        if not is_mask_folder(part.path.name, of_set=True)
        and not masks_of(part.path.name, beside)
        and part.holds_images()
    ]


def _masks_beside(folder: Folder, part: Folder) -> list[Folder]:
    """Folders called bad_mask, beside bad."""
    return [f for f in folder.usable() if masks_of(f.path.name, [part.path.name])]


def _may_be_good(part: Folder, names: LabelNames) -> bool:
    rule = names.rule(part.path.name)
    return rule is None or rule[0]
