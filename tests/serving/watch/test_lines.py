"""What the page shows of a watch is what the log says, however often it is asked."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import fedvad
from fedvad.errors import ArtefactError
from fedvad.serving.watch.lines import Line, Lines
from fedvad.serving.watch.log import WatchLog
from fedvad.serving.watch.state import Settings, week_rows

BEGIN = datetime.fromisoformat("2026-03-01T12:00:00+01:00")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    settings = Settings(
        id="w", source="/line", site="alder", limit=2.0, scores=(1.0,) * 40, normals=None,
        alpha=0.01, most_stopped=0.1,
    )  # fmt: skip
    settings.write(tmp_path)
    return tmp_path


def rows(first: int, count: int, **changes: Any) -> list[dict[str, Any]]:
    """One row an hour; `thumbnail` is that of a black picture."""
    return [
        {
            "number": number, "time": (BEGIN + timedelta(hours=number)).isoformat(),
            "path": f"/line/{number}.png", "size": 1, "modified": 1, "site": "alder",
            "score": 1.0, "threshold": 2.0, "anomalous": False, "error": None, "reason": None,
            "changed": [], "looks": {}, "thumbnail": "A" * 5460 + "AA==",
        } | changes
        for number in range(first, first + count)
    ]  # fmt: skip


def log(folder: Path, some: list[dict[str, Any]]) -> None:
    opened = WatchLog(folder)
    opened.append(some)
    opened.close()


def test_new_rows_are_added_and_the_week_moves_on(folder: Path) -> None:
    log(folder, rows(1, 30))
    line = Line(folder)
    line.read()
    assert [counts["images"] for counts in line.days.values()] == [11, 19]
    broken = {"score": None, "anomalous": None, "error": "is cut off"}
    log(folder, [*rows(31, 1, **broken), *rows(32, 1, path="/line/31.png"), *rows(33, 7)])
    log(folder, rows(40, 200, score=3.0, anomalous=True))
    line.read()
    week = week_rows(folder)
    assert sum(counts["images"] for counts in line.days.values()) == len(week)
    assert sum(counts["stopped"] for counts in line.days.values()) == len(week) == 156
    assert line.change == fedvad.drift_state(folder)
    assert line.change["changed"] == ["product"]
    line.read()
    assert line.change["images"] == 238


def test_a_file_that_was_still_being_written_is_counted_once(folder: Path) -> None:
    broken = {"score": None, "anomalous": None, "error": "is cut off"}
    log(folder, [*rows(1, 1, **broken), *rows(2, 1, path="/line/1.png"), *rows(3, 1, **broken)])
    line = Line(folder)
    line.read()
    assert list(line.days.values()) == [{"images": 2, "stopped": 0, "unreadable": 1}]


def test_a_watch_that_compares_from_the_start_is_read_from_the_start(folder: Path) -> None:
    log(folder, rows(1, 20, score=3.0, anomalous=True))
    line = Line(folder)
    line.read()
    assert line.change["changed"] == ["product"]
    line.settings.model_copy(update={"since": 21}).write(folder)
    line.read()
    assert (line.change["changed"], line.change["images"]) == ([], 0)
    assert sum(counts["images"] for counts in line.days.values()) == 20


def test_a_folder_without_a_watch_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"fedvad watch --out"):
        Lines([tmp_path])
