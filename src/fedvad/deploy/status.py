"""Where a deployment stands, as its server's folder knows it: sites, runs, refusals."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fedvad.deploy.follow import describe
from fedvad.deploy.keys import online_keys
from fedvad.deploy.processes import DATABASE, healthy, is_running
from fedvad.deploy.server import read_status, site_keys
from fedvad.deploy.settings import ServerSettings
from fedvad.errors import FedvadError
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.state import load_state

log = logging.getLogger(__name__)


def overview(settings: ServerSettings) -> dict[str, Any]:
    """What `fedvad status` shows.

    server: `running`, `starting` or `stopped`. connected: names of sites that can be reached now;
    None where nodes have no names (`insecure`) or the server is not running. runs: by name, with
    state, round of rounds, a line in words, and refusals by round and site.
    """
    up = healthy(settings)
    connected = None
    if up and not settings.insecure:
        keys = site_keys(settings)
        online = online_keys(settings.state / DATABASE)
        connected = sorted(name for key, name in keys.items() if key in online)
    folders = sorted(path for path in (settings.state / "runs").glob("*") if path.is_dir())
    return {
        "server": "running" if up else "starting" if is_running(settings) else "stopped",
        "sites": sorted(settings.sites),
        "connected": connected,
        "runs": {folder.name: _run(folder) for folder in folders},
    }


def _run(folder: Path) -> dict[str, Any]:
    status = read_status(folder)
    return {
        "state": status.get("state", "not begun"),
        "round": status.get("round", 0),
        "rounds": status.get("rounds", 0),
        "says": describe(status),
        "refused": {entry.round: entry.rejected for entry in _ledger(folder).rounds},
    }


def _ledger(folder: Path) -> Ledger:
    """Rounds that are closed; none while there are none, or they cannot be read."""
    try:
        state = load_state(folder / "state")
    except FedvadError as error:
        log.warning("%s", error)
        state = None
    return Ledger() if state is None else state.ledger
