"""Progress without a terminal."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedvad.cli.common import StageLines
from fedvad.errors import DataError
from fedvad.runs.progress import Stage
from tests.helpers import run_main

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def test_a_line_per_stage_and_signs_of_life() -> None:
    said: list[str] = []
    now = [0.0]
    lines = StageLines(said.append, heartbeat=15, clock=lambda: now[0])
    stage = Stage(lines, "features", 3)
    stage()
    now[0] = 14
    lines.beat()
    assert said == []
    now[0] = 16
    lines.beat()
    lines.beat()
    stage()
    now[0] = 34.4
    stage()
    now[0] = 60
    lines.beat()
    Stage(lines, "scoring local", 1)()
    lines("images of the demo", 0, 1)
    now[0] = 80
    lines.beat()
    lines("images of the demo", 1, 1)
    Stage(lines, "nothing", 0)
    assert [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in said] == [
        "features: 1 of 3, 16 s so far",
        "features: 3 images, 34 s",
        "still working",
        "scoring local: 1 image, 0 s",
        "images of the demo: 20 s so far",
        "images of the demo: 20 s",
    ]


def test_the_thread_ends_with_the_work() -> None:
    said: list[str] = []
    with StageLines(said.append, heartbeat=0.01) as lines:
        lines("features", 0, 2)
        while not said:
            pass
    count = len(said)
    assert "features: 0 of 2" in said[0]
    assert not lines._thread.is_alive()
    assert len(said) == count


@pytest.fixture(params=["SIGTERM", "SIGHUP"])
def _scoring(request: pytest.FixtureRequest, monkeypatch: Patch) -> Iterator[None]:
    sent = getattr(signal, request.param)
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored, and so it stays

    def predict(*_: Any, progress: Any, **__: Any) -> Any:
        Stage(progress, "scoring", 1)()
        yield {"path": "x", "score": 1.0, "threshold": None, "anomalous": None, "overlay": None,
               "error": None, "reason": "no threshold"}  # fmt: skip
        assert signal.getsignal(sent) is signal.default_int_handler  # or it would kill
        signal.raise_signal(sent)

    monkeypatch.setattr("fedvad.verbs.predict.predict", predict)
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.mark.usefixtures("_scoring")
@pytest.mark.parametrize("flags", [(), ("--quiet",)])
def test_signals_are_an_interruption_and_quiet_is_taken_behind_the_verb(
    flags: tuple[str, ...], monkeypatch: Patch, capsys: Capture
) -> None:
    assert run_main(monkeypatch, "predict", "run", "image", *flags) == 130
    said = capsys.readouterr()
    assert said.out.startswith("scored")  # what was printed stays
    assert "interrupted" in said.err
    assert ("scoring: 1 image" in said.err) == (not flags)


def test_names_stay_on_their_line(monkeypatch: Patch, capsys: Capture) -> None:
    """A line break in a name made two lines of one image; an escape could colour the terminal."""
    row = {"path": "a\nb\x1b[31m.png", "score": 1.0, "threshold": 2.0, "anomalous": False,
           "overlay": None, "error": None, "reason": None}  # fmt: skip
    bad = row | {"error": "c\nd.png: is empty"}
    monkeypatch.setattr("fedvad.verbs.predict.predict", lambda *_, **__: iter([row, bad]))
    assert run_main(monkeypatch, "predict", "run", "image") == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == r"normal     1 <= 2  a\nb\x1b[31m.png"
    assert lines[1] == r"unreadable  c\nd.png: is empty"
    assert len(lines) == 3

    def refuse(*_: Any, **__: Any) -> Any:
        raise DataError("e\x1b[31m.png: no such file\nor folder")

    monkeypatch.setattr("fedvad.verbs.predict.predict", refuse)
    assert run_main(monkeypatch, "predict", "run", "image") == 3
    assert capsys.readouterr().err == "error: e\\x1b[31m.png: no such file\nor folder\n"


def test_verbs_that_write_one_file_refuse_what_they_read(
    trained: tuple[Path, dict[str, Any]], plants: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    run = trained[0]
    image = plants / "alder/test/good/000.png"
    for target, *words in (
        (run / "detector.safetensors", "report", run, "--out"),
        (image, "report", run, "--out"),
        (image, "evaluate", run, plants, "--heatmaps"),
        (plants / "alder/heat.png", "evaluate", run, plants, "--heatmaps"),
        (run / "config.json", "evaluate", run, plants, "--heatmaps"),
        (image, "gallery", plants, "--out"),
        (image, "plan", plants / "birch", "--out"),
        (plants / "gallery.png", "gallery", plants, "--out"),
        (plants / "alder/train", "train", plants, "--out"),
        (plants, "export", run, "--int8", "--data", plants, "--out"),
        (plants / "alder", "bench", "quick", "--data", plants, "--out"),
    ):
        before = target.read_bytes() if target.is_file() else None
        assert run_main(monkeypatch, *words, target) == 2, words
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith(("error: --out", "error: --heatmaps")), said
        assert (target.read_bytes() if target.is_file() else None) == before


def test_a_run_does_not_replace_files_of_the_users(
    plants: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    (tmp_path / "report.html").write_text("mine")
    assert run_main(monkeypatch, "train", plants, "--out", tmp_path) == 2
    assert "holds report.html" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("width", ["0", "1"])
def test_a_width_of_nothing_does_not_leave_out_the_text(
    plants: Path, monkeypatch: Patch, capsys: Capture, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert run_main(monkeypatch, "inspect", plants / "alder") == 0
    assert "train/good" in capsys.readouterr().out
