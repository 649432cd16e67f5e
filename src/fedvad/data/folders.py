"""Read a folder of images into sites, in any known layout, and account for every file in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedvad.data.frames import split_frame
from fedvad.data.labels import LabelNames
from fedvad.data.layouts import Layout, layout_of
from fedvad.data.layouts.base import left_over
from fedvad.data.listing import Folder, natural, scan
from fedvad.data.masks import is_mask_folder
from fedvad.data.reading import DataReading, SiteReading, Skipped
from fedvad.data.sets import ImageItem, ImageSet, Site
from fedvad.errors import DataError

__all__ = [
    "ImageItem",
    "ImageSet",
    "Site",
    "holds_sets",
    "read_data",
    "read_one",
    "read_set",
    "read_sites",
]

_LAYOUT = (
    "Expected [<site>/]train/good/*.png, with test/good, test/<defect> and "
    "ground_truth/<defect>/<name>_mask.png where there are any, or another layout of "
    "docs/own-data.md."
)
_RESOLUTION = "realiad_"


def read_data(
    root: Path, names: LabelNames | None = None, *, allow_empty_train: bool = False
) -> DataReading:
    """Read `root` as one set or as a folder of sets, one per site, and account for every file.

    names: which folders hold normal images or defects, beyond `good`. Sites come in natural order
    (line2 before line10). With `allow_empty_train`, for evaluation at places that did not train, a
    set without normal training images is a site too. No image is opened, but for the masks of
    KolektorSDD, which are its labels.

    Raises `DataError` naming a missing folder, a layout in which no site is found, a site without
    normal training image, or a folder whose label has to be given.
    """
    names = names or LabelNames()
    top = scan(Path(root), cubes=names.cubes)
    found = _sets_in(top, names)
    if not found:
        why = f"{_deeper(top, names)}{_cubes(top)}"
        raise DataError(f"{root}: no image set found{why}.\n{_LAYOUT}\nfound: {_found(top)}")
    parts = []
    for folder, layout in sorted(found, key=lambda pair: natural(pair[0].path)):
        name = folder.path.name or folder.path.resolve().name or "site"
        parts.append(_read(folder, layout, name, names, allow_empty_train=allow_empty_train))
    outside = () if found[0][0] is top else _outside(top, [folder for folder, _ in found], names)
    reading = DataReading(Path(root), tuple(parts), outside)
    return reading.noted(_unused(top, names, reading.sites))


def holds_sets(root: Path, names: LabelNames | None = None) -> bool:
    """Whether a folder is a set of a known layout or holds some; `DataError` if it is no folder."""
    names = names or LabelNames()
    return bool(_sets_in(scan(Path(root), cubes=names.cubes), names))


def read_sites(
    root: Path, names: LabelNames | None = None, *, allow_empty_train: bool = False
) -> list[Site]:
    """The sites of `read_data`, for callers that show no reading of their own."""
    return read_data(root, names, allow_empty_train=allow_empty_train).sites


def read_set(
    root: Path,
    name: str | None = None,
    names: LabelNames | None = None,
    *,
    allow_empty_train: bool = False,
) -> Site:
    """Read one set as a site, named by its folder unless `name` is given; see `read_data`."""
    return read_one(root, name, names, allow_empty_train=allow_empty_train).sites[0]


def read_one(
    root: Path,
    name: str | None = None,
    names: LabelNames | None = None,
    *,
    allow_empty_train: bool = False,
) -> DataReading:
    """The reading of one set, where `read_data` would also take a folder of sets."""
    names = names or LabelNames()
    top = scan(Path(root), cubes=names.cubes)
    name = name or top.path.name or top.path.resolve().name or "site"
    layout = layout_of(top, names)
    if layout is None:
        raise _no_normals(top, name)
    part = _read(top, layout, name, names, allow_empty_train=allow_empty_train)
    return DataReading(Path(root), (part,)).noted(_unused(top, names, [part.site]))


def _read(
    folder: Folder, layout: Layout, name: str, names: LabelNames, *, allow_empty_train: bool
) -> SiteReading:
    part = layout.read(folder, name, names)
    if not len(part.site.train) and not allow_empty_train:
        raise _no_normals(folder, name)
    return part


def _no_normals(folder: Folder, name: str) -> DataError:
    train = folder.child("train", "training")
    loose = [] if train is None else train.images()
    if train is not None and loose:
        advice = (
            f"{len(loose)} images lie in {train.path.name}/ itself: move them to "
            f"{train.path.name}/good"
        )
    else:
        inside = "" if train is None else f"; in {train.path.name}/: {_found(train)}"
        advice = f"{_LAYOUT}\nfound: {_found(folder)}{inside}"
    where = f"{folder.path}{_cubes(folder)}"
    return DataError(f"site {name!r} ({where}) has no normal training image.\n{advice}")


def _sets_in(top: Folder, names: LabelNames) -> list[tuple[Folder, Layout]]:
    """The folder itself where it is a set, else the sets directly inside."""
    own = layout_of(top, names)
    if own is not None and (top.child("train", "training", "no") or not top.child("test")):
        return [(top, own)]
    inner = [f for f in top.usable() if f.path.name.casefold() != "test"]
    inner = [f for f in inner if not is_mask_folder(f.path.name, of_set=True)]
    found = [(f, layout) for f in inner if (layout := layout_of(f, names)) is not None]
    if found:
        return found
    if own is not None:
        return [(top, own)]
    resolutions = [f for f in top.usable() if f.path.name.casefold().startswith(_RESOLUTION)]
    resolutions = [f for f in resolutions if f.holds_images()]
    if len(resolutions) > 1:
        shown = ", ".join(folder.path.name for folder in resolutions)
        raise DataError(f"{top.path} holds the same images several times ({shown}): give one of "
                        "these folders")  # fmt: skip
    return _sets_in(resolutions[0], names) if resolutions else []


def _outside(top: Folder, sets: Sequence[Folder], names: LabelNames) -> tuple[Skipped, ...]:
    """What lies beside the sites."""
    why = {
        folder.path: "a folder of sets, to be given by itself"
        if any(layout_of(inner, names) for inner in folder.usable())
        else "no set of a known layout"
        for folder in top.usable()
        if not any(s is folder or s.path.is_relative_to(folder.path) for s in sets)
    }
    read = {path for one in sets for folder in one.walk() for path in folder.files}
    return left_over(top, read, why)


def _unused(top: Folder, names: LabelNames, sites: Sequence[Site]) -> list[str]:
    """Names that were given and that no folder has, and files that could not be left out."""
    there = {folder.path.name.casefold() for folder in top.walk()}
    tested = {path for site in sites for path in site.test.paths}
    options = [("--good", name) for name in names.good]
    options += [("--defect", name) for name in names.defect]
    return [
        f"{option} {name}: no folder has that name"
        for option, name in options
        if name.casefold() not in there
    ] + [
        f"--leave-out {file}: no normal training image in {top.path} is called so"
        for file in names.left_out
        if not split_frame(top.path / file)[0].is_file() or top.path / file in tested
    ]


def _deeper(top: Folder, names: LabelNames) -> str:
    """Where a set lies further down than it is looked for; "" when none does."""
    for folder in top.usable():
        if inner := next((f for f in folder.usable() if layout_of(f, names)), None):
            return f"; one lies deeper, in {inner.path}: give {folder.path}"
    loose = [folder for folder in top.usable() if folder.images()]
    if loose:
        name = loose[0].path.name
        return (
            f"; {name} holds {len(loose[0].images())} images but no train/good folder: move images "
            f"of good parts to {name}/train/good"
            + (f", and likewise in {len(loose) - 1} more folders" if len(loose) > 1 else "")
        )
    if top.images():
        return f"; {len(top.images())} images lie in it without a label: move them to train/good"
    return ""


def _cubes(top: Folder) -> str:
    """That cubes take another backbone, where there are some and nobody asked for them."""
    return "; it holds cubes of bands, for --backbone spectral" if top.holds_cubes() else ""


def _found(folder: Folder) -> str:
    entries = [f"{f.path.name}/" for f in folder.usable()]
    entries = sorted(entries + [p.name for p in folder.files if not p.name.startswith(".")])
    more = f", … ({len(entries)} in all)" if len(entries) > 8 else ""
    return (", ".join(entries[:8]) + more) or "nothing"
