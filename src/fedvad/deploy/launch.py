"""Start a federated run on this server, follow it, fetch its result."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedvad.deploy.changes import more_rounds
from fedvad.deploy.follow import describe
from fedvad.deploy.guard import APP
from fedvad.deploy.keys import check_certificate
from fedvad.deploy.processes import (
    CONNECTION,
    control,
    healthy,
    is_running,
    local_address,
    need_flower,
)
from fedvad.deploy.server import begin, read_status
from fedvad.deploy.settings import ServerSettings
from fedvad.errors import ConfigError, FederationError
from fedvad.runs.progress import Progress, no_progress

log = logging.getLogger(__name__)
_POLL = 2.0
_STALE = 60.0
_START_SECONDS = 60.0  # until its process holds its lock: Python is slow to import
_READY_SECONDS = 600.0


def launch(
    settings: ServerSettings,
    name: str,
    out: Path,
    *,
    more: int = 0,
    progress: Progress = no_progress,
    note: Callable[[str], None] = log.info,
) -> dict[str, Any]:
    """Run the federation `name` to its end and put the server's run folder at `out`.

    A run that was interrupted continues after its last round; one that is under way is followed;
    of a finished one, sites that missed the final memory get it. more: rounds that a finished run
    makes in addition. `note` hears what is waited for:
    the server while it starts, sites by name. Raises `FederationError` with
    the reason when the run fails or the server stops.
    """
    need_flower()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} already holds something: choose another --out, or remove it")
    owner = settings.state.stat().st_uid if settings.state.exists() else None
    if os.name == "posix" and owner not in (None, os.getuid()):
        raise ConfigError(f"launch as the user of the server, who owns {settings.state} (sudo -u)")
    if not settings.insecure:
        check_certificate(settings.folder)  # else the server would never seem to answer
    folder = begin(settings, name)
    if not _comes_up(settings, note):
        raise FederationError(
            f"no server answers for {settings.folder}: start it with `fedvad server`, on this "
            "machine, and launch again"
        )
    if more:
        more_rounds(settings, name, more)
    started = time.time()
    run_id = None
    if not _under_way(read_status(folder), started):
        answer = control(settings, "run", str(APP), CONNECTION, "-c", f'name="{name}"')
        run_id = str(answer["run-id"])
    status = _follow(settings, folder, run_id, started, progress, note)
    result = folder / "result"
    if status["state"] != "done" or not (result / "results.json").is_file():
        raise FederationError(f"run {name} failed: {status.get('error', 'it left no result')}")
    shutil.copytree(result, out, dirs_exist_ok=True)
    return {
        "run": str(out),
        "name": name,
        "rounds": status["rounds"],
        "missing": status.get("missing", []),
    }


def _comes_up(settings: ServerSettings, note: Callable[[str], None]) -> bool:
    """Whether the server answers; one whose process runs is waited for while it starts."""
    began = time.monotonic()
    said = ""
    while not healthy(settings):
        starting = is_running(settings)
        if time.monotonic() - began > (_READY_SECONDS if starting else _START_SECONDS):
            return False
        state = "is starting" if starting else "is not running yet"
        if state != said:
            note(f"the server at {local_address(settings)} {state}: waiting for it")
            said = state
        time.sleep(1)
    return True


def _under_way(status: dict[str, Any], now: float) -> bool:
    return status.get("state") == "running" and now - float(status["time"]) < _STALE / 4


def _follow(
    settings: ServerSettings,
    folder: Path,
    run_id: str | None,
    started: float,
    progress: Progress,
    note: Callable[[str], None],
) -> dict[str, Any]:
    seen, said = started, ""
    while True:
        status = read_status(folder)
        fresh = float(status.get("time", 0.0)) >= started
        if run_id is None or fresh:
            if status.get("state") in ("done", "failed"):
                return status
            seen = max(seen, float(status.get("time", 0.0)))
            rounds = int(status.get("rounds", 0))
            if rounds:
                progress("rounds", max(0, int(status["round"]) - 1), rounds)
                where = describe(status)
                if where and where != said:
                    note(where)
                    said = where
        if time.time() - seen > _STALE:
            _check_alive(settings, run_id)
            seen = time.time()
        time.sleep(_POLL)


def _check_alive(settings: ServerSettings, run_id: str | None) -> None:
    """Raise `FederationError` when nobody works on the run any more."""
    if not healthy(settings):
        raise FederationError(
            "the server stopped. What was computed is kept: start it and launch again"
        )
    if run_id is None:
        raise FederationError("the run was interrupted: launch again to continue")
    for run in control(settings, "list", CONNECTION, "--run-id", run_id).get("runs", []):
        if str(run.get("status", "")).startswith("finished"):
            raise FederationError(
                f"the run ended without a result ({run['status']}); see the server's log, then "
                "launch again to continue"
            )
