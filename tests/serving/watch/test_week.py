"""The page of a week counts what the log holds, and fits on one sheet."""

from __future__ import annotations

import base64
import json
import shutil
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedvad
from fedvad.errors import ArtefactError, ConfigError, DataError
from fedvad.report.week_sheet import TITLE
from fedvad.serving.watch.log import WatchLog
from fedvad.serving.watch.pictures import picture_of
from fedvad.serving.watch.state import Settings, read_settings, week_rows
from tests.helpers import run_main

LAST = datetime.fromisoformat("2026-03-08T12:00:00+01:00")


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A watch of ten days: 30 images a day, one unreadable each, three stopped."""
    folder = tmp_path_factory.mktemp("line")
    Settings(
        id="w", source="/line", site="alder", limit=2.0, scores=(), normals=None, alpha=0.01,
        most_stopped=0.2,
    ).write(folder)  # fmt: skip
    rng = np.random.default_rng(0)
    thumbnail = base64.b64encode(rng.integers(0, 255, 4096, np.uint8).tobytes()).decode()
    rows: list[dict[str, Any]] = []
    for number in range(1, 301):
        day, place = divmod(number - 1, 30)
        score = None if place == 5 else 2.5 + day / 10 if place % 10 == 3 else rng.uniform(0.5, 1.5)
        time = LAST - timedelta(days=9 - day) + timedelta(minutes=place)
        rows.append({
            "number": number, "time": time.isoformat(timespec="milliseconds"),
            "path": f"/line/{number}.png", "size": 1, "modified": 1, "site": "alder",
            "score": score, "threshold": 2.0, "anomalous": None if score is None else score > 2,
            "error": f"/line/{number}.png: is broken" if score is None else None, "reason": None,
            "changed": ["light"] if number > 110 else [], "looks": {}, "thumbnail": thumbnail,
        })  # fmt: skip
    log = WatchLog(folder)
    log.append(rows)
    log.close()
    drawn = rng.integers(0, 255, (120, 260, 3), np.uint8)
    for number in (274, 284, 294):
        picture_of(folder, number).parent.mkdir(exist_ok=True)
        Image.fromarray(drawn).save(picture_of(folder, number))
    return folder


def test_the_rows_of_a_week_are_those_of_seven_days(line: Path) -> None:
    rows = week_rows(line)
    assert (len(rows), rows[0]["number"], rows[-1]["number"]) == (210, 91, 300)
    assert "looks" not in rows[0]
    before = week_rows(line, date(2026, 3, 2))
    assert (before[0]["number"], before[-1]["number"]) == (1, 120)


def test_a_page_as_pdf_and_as_html(line: Path, tmp_path: Path) -> None:
    out = tmp_path / "week.pdf"
    assert fedvad.week(line, out) == {
        "path": str(out), "first": "2026-03-02", "last": "2026-03-08", "images": 210,
        "stopped": 21, "unreadable": 7, "changed": [],
    }  # fmt: skip
    data = out.read_bytes()
    assert data.startswith(b"%PDF")
    assert TITLE.encode() in data
    assert data.count(b"/Type /Page ") == 1
    fedvad.week(line, out)  # ours may be written over
    assert out.read_bytes() == data
    page = tmp_path / "week.html"
    fedvad.week(line, page, until=date(2026, 3, 2))
    text = page.read_text()
    assert "During the week the watch reported: light (since 2026-03-02 12:20)." in text
    assert ">What changed</text>" in text  # selectable, in the page itself
    assert "alder, 2026-02-24 to 2026-03-02" in text
    assert "120 images came in; 12 were stopped (10.0%), 4 could not be read." in text


def test_the_command_and_its_mistakes(
    line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "week.html"
    words = ["week", line, "--out", out]
    assert run_main(monkeypatch, *words, "--until", "2026-03-02", "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 120
    assert run_main(monkeypatch, *words) == 0
    assert "210 images, 21 stopped, 7 unreadable" in capsys.readouterr().out
    assert ", score 3.4</text>" in out.read_text()
    with pytest.raises(ConfigError, match="must end in"):
        fedvad.week(line, tmp_path / "week.png")
    with pytest.raises(ArtefactError, match=r"fedvad watch --out"):
        fedvad.week(tmp_path, out)
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        fedvad.week(line, tmp_path / "mine.html")
    with pytest.raises(DataError, match="no image"):
        fedvad.week(line, out, until=date(2020, 1, 1))


def test_a_file_that_was_still_being_written_is_counted_once(line: Path, tmp_path: Path) -> None:
    read_settings(line).write(tmp_path)
    row = (line / "results.jsonl").read_text().splitlines()[0]
    good = json.loads(row) | {"path": "/line/slow.png"}
    bad = good | {"score": None, "anomalous": None, "error": "is cut off"}
    log = WatchLog(tmp_path)
    log.append([bad | {"number": 1}, good | {"number": 2}])
    log.close()
    found = fedvad.week(tmp_path, tmp_path / "week.html")
    assert (found["images"], found["unreadable"]) == (1, 0)


@pytest.fixture
def damaged(line: Path, tmp_path: Path) -> Path:
    """A copy of the line, to be damaged."""
    return shutil.copytree(line, tmp_path / "line")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("time", "yesterday"), ("time", None), ("score", "1.0"), ("score", True), ("path", 7),
        ("size", 1.5), ("changed", "light"), ("changed", [1]), ("error", {}), ("anomalous", 1),
        ("looks", 7), ("thumbnail", "AAAA"),
    ],
)  # fmt: skip
def test_a_row_with_a_wrong_value_is_named(
    name: str, value: Any, damaged: Path, tmp_path: Path
) -> None:
    log = damaged / "results.jsonl"
    lines = log.read_text().splitlines()
    lines[4] = json.dumps(json.loads(lines[4]) | {name: value})
    log.write_text("\n".join(lines) + "\n")
    with pytest.raises(ArtefactError, match=r"(line|row) 5 of .*damaged.*restore"):
        fedvad.week(damaged, tmp_path / "week.html")


@pytest.mark.parametrize("name", ["time", "path", "score", "error", "threshold"])
def test_a_row_that_lost_a_value_is_named(name: str, damaged: Path, tmp_path: Path) -> None:
    log = damaged / "results.jsonl"
    log.write_text(log.read_text().replace(f'"{name}"', f'"{name[:-1]}x"', 1))
    with pytest.raises(ArtefactError, match=rf"line 1 of .*{name} is missing.*restore"):
        fedvad.week(damaged, tmp_path / "week.html")


def test_a_page_does_without_pictures_that_are_damaged(
    damaged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Path(fedvad.week(damaged, tmp_path / "whole.html")["path"])
    for path in (damaged / "pictures").glob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    (damaged / "changed.png").write_bytes(b"")
    page = Path(fedvad.week(damaged, tmp_path / "week.html")["path"])
    assert page.stat().st_size < whole.stat().st_size
    assert "is damaged and left out" in caplog.text
