"""VisA as its authors give it: <class>/Data/Images/{Normal,Anomaly}, split_csv/1cls.csv."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path

from fedvad.data.labels import LabelNames
from fedvad.data.layouts.base import Draft, Group, every_fifth
from fedvad.data.layouts.listed import inside
from fedvad.data.listing import Folder
from fedvad.data.reading import SiteReading
from fedvad.data.sets import ImageItem
from fedvad.data.texts import read_text
from fedvad.errors import DataError


def is_visa(folder: Folder, names: LabelNames) -> bool:
    """Whether a folder is a class of VisA."""
    return _images(folder, "Normal") is not None


def read_visa(folder: Folder, name: str, names: LabelNames) -> SiteReading:
    """Read a class as the authors' one-class protocol divides it.

    Without their table, every fifth normal image is for testing, and the reading says so. Raises
    `DataError` for a table that is damaged or does not name this class.
    """
    draft = Draft(folder, "VisA", names)
    where = Path(folder.real)
    table = where.parent / "split_csv" / "1cls.csv"
    if table.is_file():
        _by_table(draft, name, table, where.name)
    else:
        _by_folders(draft, name)
        draft.notes.append(
            f"{table.parent.name}/{table.name} is not beside the class: every fifth normal image "
            "is for testing, which is not VisA's own split"
        )
    draft.note_masks()
    return draft.finish(name)


def _images(folder: Folder, kind: str) -> Folder | None:
    data = folder.child("Data")
    images = None if data is None else data.child("Images")
    return None if images is None else images.child(kind)


def _by_table(draft: Draft, name: str, table: Path, wanted: str) -> None:
    top = table.parents[1]
    rows = []
    try:
        for row in csv.DictReader(StringIO(read_text(table), newline="")):
            if row["object"] == wanted:
                mask = inside(top, row["mask"]) if row["mask"] else None
                image = inside(top, row["image"])
                rows.append((row["split"], row["label"] == "normal", image, mask))
        unknown = {split for split, *_ in rows} - {"train", "test"}
        if unknown:
            raise KeyError(*sorted(unknown))
    except OSError as error:
        raise DataError(f"site {name!r}: {table}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"{table} is not VisA's table of images: {error!r}") from error
    if not any(split == "train" and normal for split, normal, *_ in rows):
        raise DataError(f"site {name!r}: {table} names no normal training image of {wanted!r}")
    # The class may be reached by a link: files are named as the caller names the folder.
    moved = {top / wanted: draft.top.path}
    for split, normal, listed, its_mask in rows:
        image = _moved(listed, moved)
        mask = None if its_mask is None else _moved(its_mask, moved)
        item = ImageItem(image, int(not normal), "good" if normal else "anomaly",
                         None if normal else mask)  # fmt: skip
        if split == "train" and normal:
            draft.train.append(item)
        elif split == "test":
            (draft.normal if normal else draft.defective).append(item)
        else:
            draft.why[image] = "not good: only normal images are learned from"
        if mask is not None:
            draft.masks.add(mask)
    rule = "split_csv/1cls.csv"
    for kind, part, images in (
        ("Normal", "train", draft.train), ("Normal", "test", draft.normal),
    ):  # fmt: skip
        draft.label(draft.top.path / "Data/Images" / kind, part, len(images), rule)
    draft.label(
        draft.top.path / "Data/Images/Anomaly", "test", len(draft.defective), rule,
        defect="anomaly",
    )  # fmt: skip


def _moved(path: Path, places: dict[Path, Path]) -> Path:
    for old, new in places.items():
        if path.is_relative_to(old):
            return new / path.relative_to(old)
    return path


def _by_folders(draft: Draft, name: str) -> None:
    normal, anomaly = _images(draft.top, "Normal"), _images(draft.top, "Anomaly")
    assert normal is not None
    train, test = every_fifth([path for _, path in draft.images_of(normal, good=True)])
    if not train:
        raise DataError(f"site {name!r} ({normal.path}) has too few images: {len(test)}")
    draft.train += [ImageItem(path, 0, "good") for path in train]
    draft.label(normal.path, "train", len(train), "VisA's folder of normal images")
    draft.label(normal.path, "test", len(test), "VisA's folder of normal images")
    groups = [Group(None, [((), path) for path in test])]
    if anomaly is not None:
        data = draft.top.child("Data")
        masks = None if data is None else data.child("Masks")
        own = None if masks is None else masks.child("Anomaly") or masks
        found = draft.images_of(anomaly, good=False)
        groups.append(
            Group("anomaly", found, [((), p) for p in own.images()] if own is not None else [])
        )
        draft.label(
            anomaly.path, "test", len(found), "VisA's folder of anomalies", defect="anomaly"
        )
    draft.add_test(groups)
