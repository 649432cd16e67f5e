"""Start a federated run on this server, follow it, fetch its result."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from fedvad.errors import ConfigError, FederationError
from fedvad.pipeline.deploy.guard import APP
from fedvad.pipeline.deploy.processes import CONNECTION, control, healthy, need_flower
from fedvad.pipeline.deploy.server import begin, read_status
from fedvad.pipeline.deploy.settings import ServerSettings
from fedvad.pipeline.progress import Progress, silent
from fedvad.pipeline.run_folder import DETECTOR_FILE

__all__ = ["launch"]

_POLL = 2.0
_STALE = 60.0
_START_SECONDS = 30.0


def launch(
    settings: ServerSettings, name: str, out: Path, *, progress: Progress = silent
) -> dict[str, Any]:
    """Run the federation `name` to its end and put the server's run folder at `out`.

    A run that was interrupted goes on behind its last round; one that is under way is followed;
    of a finished one, sites that missed the final memory get it. Raises `FederationError` with
    the reason when the run fails or the server stops.
    """
    need_flower()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} already holds something: choose another --out, or remove it")
    owner = settings.state.stat().st_uid if settings.state.exists() else None
    if os.name == "posix" and owner not in (None, os.getuid()):
        raise ConfigError(f"launch as the user of the server, who owns {settings.state} (sudo -u)")
    folder = begin(settings, name)
    if not _comes_up(settings):
        raise FederationError(
            f"no server answers for {settings.folder}: start it with `fedvad server`, on this "
            "machine, and launch again"
        )
    started = time.time()
    run_id = None
    if not _under_way(read_status(folder), started):
        told = control(settings, "run", str(APP), CONNECTION, "-c", f'name="{name}"')
        run_id = str(told["run-id"])
    status = _follow(settings, folder, run_id, started, progress)
    result = folder / "result"
    if status["state"] != "done" or not (result / DETECTOR_FILE).is_file():
        raise FederationError(f"run {name} failed: {status.get('error', 'it left no result')}")
    shutil.copytree(result, out, dirs_exist_ok=True)
    return {
        "run": str(out),
        "name": name,
        "rounds": status["rounds"],
        "missing": status.get("missing", []),
    }


def _comes_up(settings: ServerSettings) -> bool:
    """Whether the server answers, be it that it was started just now."""
    end = time.monotonic() + _START_SECONDS
    while not (up := healthy(settings)) and time.monotonic() < end:
        time.sleep(1)
    return up


def _under_way(status: dict[str, Any], now: float) -> bool:
    return status.get("state") == "running" and now - float(status["time"]) < _STALE / 4


def _follow(
    settings: ServerSettings,
    folder: Path,
    run_id: str | None,
    started: float,
    progress: Progress,
) -> dict[str, Any]:
    seen = started
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
        raise FederationError("the run was interrupted: launch again to go on")
    for run in control(settings, "list", CONNECTION, "--run-id", run_id).get("runs", []):
        if str(run.get("status", "")).startswith("finished"):
            raise FederationError(
                f"the run ended without a word ({run['status']}); see the server's log, then "
                "launch again to go on"
            )
