"""Real-IAD, whose images are listed with their labels in one JSON file per class."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from fedvad.data.labels import LabelNames
from fedvad.data.layouts.base import Draft
from fedvad.data.listing import Folder
from fedvad.data.reading import SiteReading
from fedvad.data.sets import ImageItem
from fedvad.data.texts import read_text
from fedvad.errors import DataError


def is_real_iad(folder: Folder, names: LabelNames) -> bool:
    """Whether a folder holds OK and NG, and a JSON file of its name lists their images."""
    both = folder.child("OK") is not None and folder.child("NG") is not None
    return both and _table(folder) is not None


def read_real_iad(folder: Folder, name: str, names: LabelNames) -> SiteReading:
    """Read a class as its list divides it; raises `DataError` for a list that is damaged."""
    table = _table(folder)
    assert table is not None
    draft = Draft(folder, "Real-IAD", names)
    try:
        listed = json.loads(read_text(table))
        normal = listed["meta"].get("normal_class", "OK")
        rows = {
            part: [_row(folder.path, entry) for entry in listed.get(part, [])]
            for part in ("train", "test")
        }
    except OSError as error:
        raise DataError(f"site {name!r}: {table}: {error.strerror}") from error
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise DataError(f"{table} is not a list of Real-IAD: {error!r}") from error
    there = {path for part in folder.walk() for path in part.files}
    missing = 0
    for part, entries in rows.items():
        for kind, image, mask in entries:
            if image not in there:
                missing += 1
                continue
            if mask is not None:
                draft.masks.add(mask)
            if kind == normal:
                item = ImageItem(image, 0, "good")
                (draft.train if part == "train" else draft.normal).append(item)
            elif part == "train":
                draft.why[image] = "not good: only normal images are learned from"
            else:
                draft.defective.append(ImageItem(image, 1, kind, mask if mask in there else None))
    if missing:
        draft.notes.append(f"{missing} images that {table.name} lists are not there")
    for where, part, images in (
        ("OK", "train", draft.train), ("OK", "test", draft.normal),
    ):  # fmt: skip
        draft.label(folder.path / where, part, len(images), table.name)
    for kind in sorted({item.defect for item in draft.defective}):
        count = sum(item.defect == kind for item in draft.defective)
        draft.label(folder.path / "NG" / kind, "test", count, table.name, defect=kind)
    draft.note_masks()
    return draft.finish(name)


def inside(top: Path, name: str) -> Path:
    """A path that a list of a set gives, below `top`; raises `DataError` for any other."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0] == "/":
        raise DataError(f"{name!r} is listed, which is no path below {top}")
    return top.joinpath(*parts)


def _row(top: Path, entry: dict[str, Any]) -> tuple[str, Path, Path | None]:
    """Label, image and mask of one entry, whose paths are relative to the class."""
    mask = entry.get("mask_path")
    return (
        str(entry["anomaly_class"]),
        inside(top, entry["image_path"]),
        inside(top, mask) if mask else None,
    )


def _table(folder: Folder) -> Path | None:
    """The list of a class: beside it, or where Real-IAD's archives put it."""
    place = Path(folder.real)
    file = f"{place.name}.json"
    for top in (place, place.parent, place.parent.parent):
        for inner in ("realiad_jsons/realiad_jsons", "realiad_jsons/jsons", "realiad_jsons", "."):
            if (top / inner / file).is_file():
                return top / inner / file
    return None
