"""MVTec's layout and its kin: train/good, test/<defect>, ground_truth/<defect>.

MVTec AD, MVTec LOCO AD, MVTec AD 2, BTAD, MPDD and most sets that were converted for anomaly
detection are of this kind.
"""

from __future__ import annotations

from fedvad.data.labels import LabelNames
from fedvad.data.layouts.base import Draft, Group
from fedvad.data.listing import Folder
from fedvad.data.masks import BESIDE, Placed, is_mask_folder, masks_of
from fedvad.data.reading import SiteReading
from fedvad.data.sets import ImageItem
from fedvad.errors import DataError

_TRAIN = ("train", "training")
_TEST = ("test", "test_public", "testing")
_VALIDATION = ("validation", "val", "valid")


def is_split(folder: Folder, names: LabelNames) -> bool:
    """Whether a folder is divided into train and test, or at least holds one of the two."""
    return folder.child(*_TRAIN, *_TEST) is not None


def read_split(folder: Folder, name: str, names: LabelNames) -> SiteReading:
    """Read one set; raises `DataError` where a folder's label has to be asked for."""
    train, test = folder.child(*_TRAIN), folder.child(*_TEST)
    layout = _layout(folder, train, test)
    if layout == "BTAD":
        names = names.with_good("ok")
    draft = Draft(folder, layout, names)
    validation = folder.child(*_VALIDATION)
    _ask(draft, name, [part for part in (train, validation, test) if part is not None])
    if train is not None:
        _read_good(draft, train, "train", "not good: only normal images are learned from")
    if validation is not None:
        _read_good(
            draft, validation, "train", "defects outside test/ are not used", joined=True
        )  # fmt: skip
    if test is not None:
        _read_test(draft, test)
    for part in folder.usable():
        if part.path.name.casefold().startswith("test_private"):
            draft.why[part.path] = "its images have no labels: nothing to measure with"
    draft.note_masks()
    return draft.finish(name)


def _layout(folder: Folder, train: Folder | None, test: Folder | None) -> str:
    def kinds(part: Folder | None) -> set[str]:
        found = [] if part is None else part.usable()
        return {f.path.name.casefold() for f in found if not is_mask_folder(f.path.name)}

    if test is not None and test.path.name.casefold() == "test_public":
        return "MVTec AD 2"
    if kinds(train) == {"ok"} and "ko" in kinds(test) <= {"ok", "ko"}:
        return "BTAD"
    if kinds(test) & {"logical_anomalies", "structural_anomalies"}:
        return "MVTec LOCO AD"
    return "MVTec AD"


def _ask(draft: Draft, name: str, parts: list[Folder]) -> None:
    """Stop where a folder is called as if its images were normal, and nobody said so."""
    doubtful = [
        folder
        for part in parts
        for folder in part.usable()
        if not is_mask_folder(folder.path.name)
        and folder.holds_images()
        and draft.names.rule(folder.path.name) is None
    ]
    if doubtful:
        which = ", ".join(draft.relative(folder.path) for folder in doubtful)
        one = doubtful[0].path.name
        raise DataError(
            f"site {name!r}: {which} may hold normal images, but only folders called good do so "
            f"unasked.\nIf they are normal give --good {one} (configuration key good), if they are "
            f"defective --defect {one}."
        )


def _read_good(
    draft: Draft, part: Folder, where: str, otherwise: str, *, joined: bool = False
) -> None:
    for folder in part.usable():
        if is_mask_folder(folder.path.name):
            continue
        good, rule = draft.names.rule(folder.path.name) or (False, "")
        if not good:
            draft.why[folder.path] = otherwise
            continue
        found = draft.images_of(folder, good=True)
        draft.train += [ImageItem(path, 0, "good") for _, path in found]
        if joined:
            rule += ": joined to the training images"
        _note(draft, folder, where, len(found), rule, None, notable=joined)
    for path in part.images():
        draft.why[path] = f"loose in {part.path.name}/: move it to {part.path.name}/good"


def _read_test(draft: Draft, test: Folder) -> None:
    roots = _mask_roots(draft.top, test)
    groups = []
    kinds = [folder.path.name for folder in test.usable()]
    for folder in test.usable():
        if is_mask_folder(folder.path.name) or masks_of(folder.path.name, kinds):
            continue
        good, rule = draft.names.rule(folder.path.name) or (False, "")
        images = draft.images_of(folder, good=good)
        defect = None if good else folder.path.name
        _note(draft, folder, "test", len(images), rule, defect)
        masks = [m for root in roots if (own := root.child(folder.path.name)) for m in _files(own)]
        beside = [f for f in test.usable() if masks_of(f.path.name, [folder.path.name])]
        masks += [m for other in beside for m in _files(other)]
        masks += [m for inner in folder.walk() if _holds_masks(inner) for m in _files(inner)]
        masks += [
            ((), path)
            for path, why in draft.why.items()
            if why == BESIDE and path.is_relative_to(folder.path)
        ]
        groups.append(Group(defect, images, masks))
    for path in test.images():
        draft.why[path] = f"loose in {test.path.name}/: move it to {test.path.name}/<defect>"
    draft.add_test(groups, [((), path) for root in roots for path in root.images()])


def _note(
    draft: Draft, folder: Folder, part: str, images: int, rule: str, defect: str | None,
    *, notable: bool = False,
) -> None:  # fmt: skip
    if draft.nested:
        rule += f"; also from sub-folders ({draft.nested})"
    draft.label(
        folder.path, part, images, rule, defect=defect, notable=notable or bool(draft.nested)
    )


def _mask_roots(top: Folder, test: Folder) -> list[Folder]:
    outside = [f for f in top.usable() if is_mask_folder(f.path.name, of_set=True)]
    outside += [inner for f in outside if (inner := f.child(*_TEST)) is not None]
    return outside + [f for f in test.usable() if is_mask_folder(f.path.name)]


def _files(folder: Folder) -> list[Placed]:
    """All images below a folder, with the names of the folders between."""
    found: list[Placed] = [((), path) for path in folder.images()]
    for child in folder.usable():
        found += [((child.path.name, *parts), path) for parts, path in _files(child)]
    return found


def _holds_masks(folder: Folder) -> bool:
    return folder.barred is None and is_mask_folder(folder.path.name)
