"""A server's log says where its runs stand, by names of sites."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from fedvad.deploy.follow import describe, follow_runs

RUNNING: dict[str, Any] = {"state": "running", "round": 1, "rounds": 2, "waiting": ["alder"]}


@pytest.mark.parametrize(
    ("status", "line"),
    [
        ({}, ""),
        ({"state": "running", "round": 0, "rounds": 0, "waiting": []}, ""),
        (RUNNING, "round 1 of 2: waiting for alder"),
        ({"state": "done", "missing": []}, "done"),
        ({"state": "done", "missing": ["birch"]}, "done, without birch"),
        ({"state": "failed", "error": "too few"}, "failed: too few"),
    ],
)
def test_a_status_in_words(status: dict[str, Any], line: str) -> None:
    assert describe(status) == line


def test_what_changes_is_said_once(tmp_path: Path) -> None:
    class Clock(Event):
        """Changes the status of the run each time that it is waited for."""

        steps = iter([RUNNING, RUNNING, RUNNING | {"waiting": []}, RUNNING, {"state": "done"}])

        def wait(self, timeout: float | None = None) -> bool:
            step = next(self.steps, None)
            if step is not None:
                (tmp_path / "new").mkdir(exist_ok=True)
                (tmp_path / "new/status.json").write_text(json.dumps(step))
            return step is None

    (tmp_path / "old").mkdir()
    (tmp_path / "old/status.json").write_text(json.dumps({"state": "done"}))
    said: list[str] = []
    follow_runs(tmp_path, Clock(), say=said.append)
    assert said == ["run new, round 1 of 2: waiting for alder", "run new, done"]
