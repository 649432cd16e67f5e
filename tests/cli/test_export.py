"""`fedvad export`: one JSON document, exit codes, and a sentence for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import run_main

Run = tuple[Path, dict[str, Any]]
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def test_json_is_the_manifest_and_its_folder(
    trained: Run, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    flags = ("--format", "openvino", "--site", "cedar", "--reference", "union", "--out", tmp_path)
    assert run_main(monkeypatch, "export", trained[0], *flags, "--json", "--quiet") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("\n") == 1
    reported = json.loads(captured.out)
    assert reported.pop("folder") == str(tmp_path)
    assert reported == json.loads((tmp_path / "model.xml.json").read_text())
    assert (reported["site"], reported["reference"], reported["int8"]) == ("cedar", "union", None)


def test_people_learn_where_it_is_and_how_to_try_it(
    trained: Run, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    pytest.importorskip("onnxruntime")
    assert run_main(monkeypatch, "export", trained[0], "--out", tmp_path) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / "model.onnx") in out
    assert "any site, threshold" in out
    assert f"python {tmp_path / 'example.py'} {tmp_path / 'model.onnx'} IMAGE..." in out


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--site", "oak"), 2, "known sites: alder, birch, cedar"),
        (("--format", "tflite"), 2, "onnx or openvino"),
        (("--int8",), 2, "--data"),
        (("--reference", "everything"), 2, "global, local or union"),
        (("--int8", "--data", "/nowhere"), 2, "filter bank"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_exit_code(
    flags: tuple[str, ...],
    code: int,
    says: str,
    trained: Run,
    tmp_path: Path,
    monkeypatch: Patch,
    capsys: Capture,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    flags = ("--format", "openvino", *flags)
    assert run_main(monkeypatch, "export", trained[0], "--out", tmp_path / "out", *flags) == code
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
