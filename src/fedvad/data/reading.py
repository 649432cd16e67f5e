"""What was read of a data folder, what was not and why: the reading that every verb shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvad.data.sets import Site

_HEAD = ["folder", "images", "read as", "why"]
_ROWS = 40


@dataclass(frozen=True)
class Label:
    """One folder that was read. folder: relative to the data; part: "train" or "test".

    rule: why its images got this label; notable: whether something was guessed on the way.
    """

    folder: str
    part: str
    label: str
    images: int
    rule: str
    notable: bool = False


@dataclass(frozen=True)
class Skipped:
    """Files that were not read, by folder and reason.

    example: one of them; files: their number; images: how many are called like images. notable:
    whether they may be missed (a note of the set's authors, for example, is not).
    """

    folder: str
    reason: str
    files: int
    images: int
    example: str
    notable: bool = True


@dataclass(frozen=True)
class SiteReading:
    """One site, the layout that it was read in, its folders, and what a reader should know."""

    site: Site
    layout: str
    labels: tuple[Label, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataReading:
    """A whole data folder: its sites in natural order, and what lies outside of them."""

    root: Path
    parts: tuple[SiteReading, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def sites(self) -> list[Site]:
        """The sites, in order."""
        return [part.site for part in self.parts]

    @property
    def notable(self) -> bool:
        """Whether anything was omitted or guessed, or is otherwise worth a look."""
        everything = [*self.skipped, *(s for part in self.parts for s in part.skipped)]
        return (
            bool(self.notes)
            or any(skipped.notable for skipped in everything)
            or any(part.notes or any(label.notable for label in part.labels) for part in self.parts)
        )

    def noted(self, notes: Iterable[str]) -> DataReading:
        """Also with these notes on all the data."""
        return DataReading(self.root, self.parts, self.skipped, (*self.notes, *notes))

    def to_json(self) -> dict[str, Any]:
        """JSON values: by site what was read and what not, with counts; no absolute path."""
        return {
            "complete": not self.notable,
            "sites": {part.site.name: _site_json(part) for part in self.parts},
            "not_read": [vars(skipped) for skipped in self.skipped],
            "notes": list(self.notes),
        }

    def summary(self) -> str:
        """One line on what was omitted or guessed; "" when nothing was."""
        if not self.notable:
            return ""
        skipped = [s for s in self._all_skipped() if s.notable]
        parts = [f"{s.files} in {s.folder} ({s.reason})" for s in skipped[:3]]
        if len(skipped) > 3:
            parts.append(f"{sum(s.files for s in skipped[3:])} more")
        notes = [*self.notes, *(n for part in self.parts for n in part.notes)]
        text = f"files not read: {', '.join(parts)}" if parts else ""
        if notes:
            text += ("; " if text else "") + notes[0]
            text += f" (and {len(notes) - 1} more notes)" if len(notes) > 1 else ""
        return text or self._guessed()

    def _guessed(self) -> str:
        guesses = [label for part in self.parts for label in part.labels if label.notable]
        widest = max(guesses, key=lambda label: len(label.rule))
        return f"{widest.images} images of {widest.folder} are {widest.part} images: {widest.rule}"

    def _all_skipped(self) -> list[Skipped]:
        return [s for part in self.parts for s in part.skipped] + list(self.skipped)


def _site_json(part: SiteReading) -> dict[str, Any]:
    return {
        "layout": part.layout,
        "train": len(part.site.train),
        "test": len(part.site.test),
        "read": [vars(label) for label in part.labels],
        "not_read": [vars(skipped) for skipped in part.skipped],
        "notes": list(part.notes),
    }


def data_table(data: Mapping[str, Any], *, guesses_only: bool = False) -> list[list[str]]:
    """Rows of the JSON form as a table for people: what each folder was read as, and why.

    guesses_only: of the folders that were read only those whose label was guessed. The first row is
    the header; masks have a row where they were counted. Of very many folders only the first are
    shown, and a last row says how many more there are.
    """
    rows: list[list[str]] = []
    unread: list[list[str]] = []
    for name, site in data.get("sites", {}).items():
        rows += [
            [label["folder"], str(label["images"]), f"{label['part']}: {label['label']}",
             label["rule"]]
            for label in site["read"]
            if label.get("notable") or not guesses_only
        ]  # fmt: skip
        if (masks := site.get("masks")) and masks["of"]:
            images = f"with {masks['images']} of {masks['of']} defective images"
            rows.append([f"masks of {name}", str(masks["files"]), "paired", images])
        unread += _unread(site["not_read"])
        unread += [["(note)", "", "", note] for note in site["notes"]]
    unread += _unread(data.get("not_read", []))
    unread += [["(note)", "", "", note] for note in data.get("notes", [])]
    return [list(_HEAD), *_first(rows), *_first(unread)]


def _unread(skipped: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [
        [s["folder"], str(s["files"]), "not read", f"{s['reason']}, for example {s['example']}"]
        for s in skipped
        if s["notable"]
    ]


def _first(rows: list[list[str]]) -> list[list[str]]:
    if len(rows) <= _ROWS:
        return rows
    return [*rows[:_ROWS], ["…", "", "", f"{len(rows) - _ROWS} more rows; --json has all"]]
