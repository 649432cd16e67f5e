"""A watch scores every image once, as `predict` does, whatever ends it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

import fedvad
from fedvad.errors import ArtefactError, ConfigError, DataError, FedvadError
from fedvad.serving.watch.log import WatchLog, read_log
from fedvad.serving.watch.recorder import _readable
from fedvad.serving.watch.seen import Seen
from fedvad.serving.watch.sources import FolderSource
from tests.helpers import run_main

Trained = tuple[Path, dict[str, Any]]
ONCE: dict[str, Any] = {"site": "alder", "once": True, "every": 0.01}


@pytest.fixture
def line(plants: Path, tmp_path: Path) -> Path:
    """A folder with three normal images and one with a defect."""
    folder = tmp_path / "line"
    shutil.copytree(plants / "alder/test/good", folder)
    shutil.copy(plants / "alder/test/cut/000.png", folder / "cut.png")
    return folder


def test_rows_are_those_of_predict_and_nothing_is_scored_twice(
    trained: Trained, line: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    rows = list(fedvad.watch(trained[0], line, out=out, **ONCE))
    expected = list(fedvad.predict(trained[0], line, site="alder"))
    for name in ("path", "score", "threshold", "anomalous", "error"):
        assert [row[name] for row in rows] == [row[name] for row in expected]
    assert [row["number"] for row in rows] == [1, 2, 3, 4]
    assert list(read_log(out)) == rows
    with (out / "results.csv").open() as table:
        cells = list(csv.DictReader(table))
    assert [float(row["score"]) for row in cells] == [row["score"] for row in rows]
    assert {row["changed"] for row in cells} == {""}
    assert len(list((out / "pictures").glob("*.png"))) == 4
    assert list(fedvad.watch(trained[0], line, out=out, **ONCE)) == []
    # a file that is written again is another image
    shutil.copy(line / "000.png", line / "cut.png")
    (again,) = fedvad.watch(trained[0], line, out=out, **ONCE)
    assert (again["number"], again["score"]) == (5, rows[0]["score"])


def test_a_renamed_file_is_the_same_image_also_after_a_restart(
    trained: Trained, line: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert len(list(fedvad.watch(trained[0], line, out=out, **ONCE))) == 4
    (line / "000.png").rename(line / "renamed.png")
    assert list(fedvad.watch(trained[0], line, out=out, **ONCE)) == []
    copy = line / "copy.png"
    shutil.copy2(line / "001.png", copy)  # with its time, but another file
    rows = list(fedvad.watch(trained[0], line, out=out, **ONCE))
    assert [row["path"] for row in rows] == [str(copy)]


def test_rows_that_nobody_asks_for_leave_the_folder_free(
    trained: Trained, line: Path, tmp_path: Path
) -> None:
    rows = fedvad.watch(trained[0], line, out=tmp_path / "out", **ONCE)
    with pytest.raises(ConfigError, match="in use"):
        fedvad.watch(trained[0], line, out=tmp_path / "out", **ONCE)
    del rows
    assert len(list(fedvad.watch(trained[0], line, out=tmp_path / "out", **ONCE))) == 4


def test_eight_bytes_of_each_image_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedvad.serving.watch.seen._RECENT", 10)
    seen = Seen()
    for number in range(0, 105, 2):
        seen.add((f"{number}.png", number, 0))
    found = [(f"{number}.png", number, 0) in seen for number in range(105)]
    assert found == [number % 2 == 0 for number in range(105)]
    assert seen._sorted.nbytes == 50 * 8


def test_an_unreadable_image_is_a_row_and_the_watch_goes_on(
    trained: Trained, line: Path, tmp_path: Path
) -> None:
    (line / "000.png").write_bytes(b"no picture")
    (line / "notes.txt").write_text("no image")
    (line / ".hidden.png").write_bytes(b"")
    rows = list(fedvad.watch(trained[0], line, out=tmp_path / "out", **ONCE))
    assert [row["error"] is None for row in rows] == [False, True, True, True]
    assert rows[0]["score"] is None
    assert "000.png" in rows[0]["error"]


def test_a_file_that_grows_is_left_until_it_stays_the_same(tmp_path: Path) -> None:
    source = FolderSource(tmp_path, settle=0.0)
    file = tmp_path / "a.png"
    file.write_bytes(b"1")
    waits = FolderSource(tmp_path, settle=60)
    assert waits.poll(set()) == []
    (found,) = source.poll(set())
    assert source.still(found)
    file.write_bytes(b"12")
    assert not source.still(found)
    (now,) = source.poll(set())
    assert now.key != found.key
    assert source.poll({now.key}) == []
    settling = FolderSource(tmp_path, settle=0.05)
    assert settling.poll(set()) == []
    threading.Event().wait(0.06)
    file.write_bytes(b"123")
    assert settling.poll(set()) == []  # it counts from the last change
    threading.Event().wait(0.06)
    assert len(settling.poll(set())) == 1


def test_a_cut_off_line_is_as_if_never_written_and_damage_is_named(
    trained: Trained, line: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    list(fedvad.watch(trained[0], line, out=out, **ONCE))
    log, table = out / "results.jsonl", out / "results.csv"
    whole, cells = log.read_bytes(), table.read_bytes()
    log.write_bytes(whole[:-20])
    table.write_bytes(cells[:-7])
    (row,) = fedvad.watch(trained[0], line, out=out, **ONCE)
    assert row["number"] == 4
    assert [r["path"] for r in read_log(out)] == [json.loads(r)["path"] for r in whole.splitlines()]
    assert len(table.read_text().splitlines()) == 5
    lines = whole.splitlines(keepends=True)
    log.write_bytes(b"".join([lines[0], *lines[2:]]))
    with pytest.raises(ArtefactError, match=r"line 2 of .* is damaged"):
        list(fedvad.watch(trained[0], line, out=out, **ONCE))


def test_a_watch_that_lost_a_file_is_not_begun_again_over_the_rest(
    trained: Trained, line: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    list(fedvad.watch(trained[0], line, out=out, **ONCE))
    whole, table = ((out / name).read_bytes() for name in ("results.jsonl", "results.csv"))
    for name, content, words in (
        ("watch.json", None, r"no watch\.json: restore"),
        ("results.jsonl", None, r"has 0 rows and results\.csv, its copy, 4: restore"),
        ("results.jsonl", b"", "has 0 rows"),
        ("results.jsonl", whole[: len(whole) // 2], "has [12] rows"),
    ):
        shutil.rmtree(tmp_path / "lost", ignore_errors=True)
        lost = shutil.copytree(out, tmp_path / "lost")
        (lost / name).unlink()
        if content is not None:
            (lost / name).write_bytes(content)
        with pytest.raises(ArtefactError, match=words):
            list(fedvad.watch(trained[0], line, out=lost, **ONCE))
        assert (lost / "results.csv").read_bytes() == table
    (lost / "results.csv").write_bytes(b"a,b\n" * 9 + b"\0\xff")  # somebody's
    with pytest.raises(ArtefactError, match=r"changed results\.csv yourself, remove that"):
        list(fedvad.watch(trained[0], line, out=lost, **ONCE))
    (lost / "results.csv").unlink()
    assert len(list(fedvad.watch(trained[0], line, out=lost, **ONCE))) > 0


def test_every_row_is_on_the_disk_before_it_is_given(
    trained: Trained, line: Path, tmp_path: Path
) -> None:
    out, stop = tmp_path / "out", threading.Event()
    rows = fedvad.watch(trained[0], line, out=out, site="alder", every=0.01, stop=stop)
    first = next(rows)
    assert first in list(read_log(out))
    with pytest.raises(ConfigError, match="in use"):
        fedvad.watch(trained[0], line, out=out, **ONCE)
    stop.set()
    assert len(list(rows)) == 3  # the batch that was under way
    assert list(fedvad.watch(trained[0], line, out=out, **ONCE)) == []


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"site": "elm"}, ConfigError, "known sites"),
        ({"alpha": 1.0}, ConfigError, "alpha"),
        ({"every": 0}, ConfigError, "every"),
        ({"webhook": "ftp://here"}, ConfigError, "--webhook"),
        ({"source": "nowhere"}, DataError, "no such folder"),
        ({"out": "inside"}, ConfigError, "folder"),
        ({"normals": "few"}, DataError, "30 or more"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_scored(
    trained: Trained, line: Path, tmp_path: Path, options: dict[str, Any],
    error: type[FedvadError], words: str,
) -> None:  # fmt: skip
    given: dict[str, Any] = ONCE | {"source": line, "out": tmp_path / "out"} | options
    if given["out"] == "inside":
        given["out"] = line / "out"
    if "normals" in given:
        given["normals"] = line
    with pytest.raises(error, match=words):
        fedvad.watch(trained[0], **given)
    assert not (tmp_path / "out/results.jsonl").exists()


def test_a_new_file_is_read_once(
    trained: Trained, line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[str] = Counter()
    really = Path.read_bytes

    def read(path: Path) -> bytes:
        reads[path.name] += path.parent == line
        return really(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    rows = list(fedvad.watch(trained[0], line, out=tmp_path / "out", **ONCE))
    assert {reads[Path(row["path"]).name] for row in rows} == {1}
    assert all(row["file"] for row in rows)


def test_normals_that_cannot_be_read_are_counted(
    line: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = sorted(line.glob("*.png"))[0]
    paths = [tmp_path / f"{i:02}.png" for i in range(32)]
    for path in paths:
        shutil.copy(good, path)
    for path in paths[:2]:
        path.write_bytes(b"")
    assert len(list(_readable(paths))) == 30
    assert f"2 of 32 images of --normals cannot be read: {paths[0]}" in caplog.text
    paths[2].write_bytes(b"")
    with pytest.raises(DataError, match=r"3 of 32 .*00.png.*01.png.*\nMend or replace them: 30 or"):
        list(_readable(paths))


def test_a_folder_holds_one_watch(trained: Trained, line: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    list(fedvad.watch(trained[0], line, out=out, **ONCE))
    with pytest.raises(ConfigError, match="holds the watch of site alder"):
        list(fedvad.watch(trained[0], line, out=out, **(ONCE | {"site": "birch"})))


def test_what_changed_is_reported_with_a_picture_and_again_after_a_restart(
    trained: Trained, plants: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line, out, usual = tmp_path / "line", tmp_path / "out", tmp_path / "usual"
    rng = np.random.default_rng(0)

    def photographs(folder: Path, count: int, blur: float) -> None:
        folder.mkdir(exist_ok=True)
        whole = Image.open(plants / "alder/train/good/000.png").resize((96, 96))
        first = len(list(folder.iterdir()))
        for i in range(first, first + count):
            x, y = rng.integers(0, 32, 2)
            part = whole.crop((x, y, x + 64, y + 64)).filter(ImageFilter.GaussianBlur(blur))
            part.save(folder / f"{i:03d}.png")

    photographs(usual, 30, 0)
    photographs(line, 20, 0)
    options = ONCE | {"normals": usual, "threshold": 9.0}
    rows = list(fedvad.watch(trained[0], line, out=out, **options))
    assert rows[-1]["changed"] == []
    photographs(line, 12, 2)
    rows = list(fedvad.watch(trained[0], line, out=out, **options))
    assert "focus" in rows[-1]["changed"]
    assert rows[0]["changed"] == []
    assert Image.open(out / "changed.png").width > 1000
    assert "Changed since" in caplog.text
    state = fedvad.drift_state(out)
    assert state["changed"] == rows[-1]["changed"]
    assert state["images"] == 32
    # another threshold is another watch to compare
    list(fedvad.watch(trained[0], line, out=out, **(options | {"threshold": 8.0})))
    assert fedvad.drift_state(out)["images"] == 0
    assert len(list((out / "before").iterdir())) == 6  # those of then are gone


def test_the_pictures_of_a_day_are_those_of_its_highest_scores(tmp_path: Path) -> None:
    from fedvad.serving.watch.pictures import DayPictures, picture_of

    kept = DayPictures(tmp_path)
    (tmp_path / "pictures").mkdir()
    for number in range(1, 41):
        if kept.add(number, "2026-01-01", float(min(number, 30 * (number < 30)))):
            picture_of(tmp_path, number).touch()
    numbers = sorted(int(path.stem) for path in (tmp_path / "pictures").iterdir())
    assert numbers == list(range(10, 30))  # of equal scores the first stays


def test_the_command_says_each_row_and_its_sum(
    trained: Trained,
    line: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    (line / "broken.png").write_bytes(b"")
    words = [
        "watch",
        trained[0],
        line,
        "--site",
        "alder",
        "--out",
        out,
        "--once",
        "--every",
        "0.01",
    ]
    assert run_main(monkeypatch, *words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("5 images, ")
    assert printed[-1].endswith(f" stopped, 1 unreadable; log in {out}")
    assert sum(row.startswith("unreadable") for row in printed) == 1
    shutil.copy(line / "000.png", line / "new.png")
    assert run_main(monkeypatch, *words, "--json") == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (row["number"], "looks" in row) == (6, False)


def test_a_log_on_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = WatchLog(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FedvadError, match="No space left"):
        log.append([{"number": 1}])
    log.close()
