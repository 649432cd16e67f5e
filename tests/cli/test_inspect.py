"""`fedvad inspect` on the terminal: short for people, whole with --json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedvad.cli.inspect import _brief
from tests.helpers import run_main


def test_long_values_are_shortened() -> None:
    assert _brief([0.5, 1, 2.25, 3, 4]) == "5 numbers from 0.5 to 4"
    assert _brief([2, 3]) == [2, 3]
    assert _brief(list("abcdefghijklmn"))[-2:] == ["l", "... 2 more: --json shows all"]
    shown = _brief({str(i): [i] for i in range(15)})
    assert len(shown) == 13
    assert shown["... 3 more"] == "--json shows all"


def test_a_run_fits_on_few_pages_and_json_has_all_of_it(
    trained: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "inspect", trained[0]) == 0
    assert len(capsys.readouterr().out.splitlines()) < 150
    assert run_main(monkeypatch, "inspect", trained[0], "--json") == 0
    reported = json.loads(capsys.readouterr().out)
    assert len(reported["sites"][0]["thresholds"]["global"]["scores"]) == 6
