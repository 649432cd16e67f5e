"""The week and the changes of watches at work, for a page that asks again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from fedvad.evaluation.change import Change
from fedvad.serving.watch.log import follow_log
from fedvad.serving.watch.state import CHANGED_FILE, WEEK, change_watch, read_settings, replay

Shown = TypeVar("Shown")
Day = dict[str, int]  # images, stopped, unreadable


class Line:
    """What the log of one watch folder says; `read` takes in what came since the last call.

    change: see `evaluation.change`. days: the last seven that had images, by date. All of it is
    what `drift_state` and `week_rows` give, which read the whole log each time.
    """

    def __init__(self, folder: Path) -> None:
        """Raises `ArtefactError` for a folder without a watch."""
        self.folder = folder
        self._bytes = self._number = 0
        self._begin()

    def read(self) -> None:
        """Take in the new rows; raises `ArtefactError` for a damaged log."""
        if read_settings(self.folder) != self.settings:  # the watch compares from the start
            self._begin()
        for row, end in follow_log(self.folder, after=(self._bytes, self._number)):
            self._bytes, self._number = end, row["number"]
            replay(self._watch, self.settings, [row])
            self._count(row)

    @property
    def change(self) -> Change:
        """What changed so far."""
        return self._watch.change()

    @property
    def picture(self) -> Path | None:
        """Where images before and after the last change are, if anything changed."""
        path = self.folder / CHANGED_FILE
        return path if self.change["changed"] and path.is_file() else None

    def _begin(self) -> None:
        self.settings = read_settings(self.folder)
        self._watch = change_watch(self.folder, self.settings)
        self._bytes, self._number = 0, 0
        self.days: dict[date, Day] = {}
        self._broken: dict[str, date] = {}

    def _count(self, row: dict[str, Any]) -> None:
        day = date.fromisoformat(row["time"][:10])
        counts = self.days.setdefault(day, {"images": 0, "stopped": 0, "unreadable": 0})
        counts["images"] += 1
        counts["stopped"] += bool(row["anomalous"])
        before = self._broken.pop(row["path"], None)
        if row["error"] is not None:
            counts["unreadable"] += 1
            self._broken[row["path"]] = day
        if before in self.days:  # it was looked at while somebody still wrote it
            self.days[before]["images"] -= 1
            self.days[before]["unreadable"] -= 1
        for old in [d for d in self.days if d <= max(self.days) - timedelta(WEEK)]:
            del self.days[old]
            self._broken = {path: d for path, d in self._broken.items() if d != old}


class Lines:
    """Several watch folders; safe to use from several threads."""

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        """Raises `ArtefactError` for a folder without a watch."""
        self._lines = [Line(folder) for folder in folders]
        self._lock = Lock()

    def read(self, show: Callable[[int, Line], Shown]) -> list[Shown]:
        """`show` of each with its number, as it is now; raises `ArtefactError` for damaged logs."""
        with self._lock:
            for line in self._lines:
                line.read()
            return [show(number, line) for number, line in enumerate(self._lines)]
