"""Where the runs of a server stand, in a line each: for its log and for whoever launched one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

from fedvad.deploy.server import read_status

log = logging.getLogger(__name__)


def describe(status: dict[str, Any]) -> str:
    """What a run's status says, in words; empty before its first round."""
    state = status.get("state")
    if state == "running":
        waiting = ", ".join(status.get("waiting", []))
        if not status.get("rounds") or not waiting:
            return ""
        return f"round {status['round']} of {status['rounds']}: waiting for {waiting}"
    if state == "failed":
        return f"failed: {status.get('error', 'no reason is known')}"
    missing = ", ".join(status.get("missing", []))
    return ("done" + (f", without {missing}" if missing else "")) if state == "done" else ""


def follow_runs(
    runs: Path, stop: Event, *, say: Callable[[str], None] = log.info, interval: float = 2.0
) -> None:
    """Say what changes in the status of each run in the folder, until stopped.

    Flower drops what the process of a run itself would log.
    """
    said = {folder: describe(read_status(folder)) for folder in runs.glob("*")}
    while not stop.wait(interval):
        for folder in sorted(runs.glob("*")):
            line = describe(read_status(folder))
            if line and line != said.get(folder):
                say(f"run {folder.name}, {line}")
            said[folder] = line or said.get(folder, "")
