"""What changes a run that a deployment has made: a site leaves it, or it makes more rounds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fedvad.data.files import locked, write_atomically
from fedvad.data.sealed import sha256_of
from fedvad.deploy.server import (
    LEAVING,
    LEFT,
    REPORTED,
    RESULT,
    ROUNDS,
    STATE,
    read_record,
    rounds_of,
    write_record,
)
from fedvad.deploy.settings import ServerSettings
from fedvad.errors import ConfigError
from fedvad.federation.mailboxes.state import load_state, save_state
from fedvad.federation.signed import read_private_key
from fedvad.runs.config import TrainConfig
from fedvad.runs.families import method_class
from fedvad.runs.guards import guard_output_file
from fedvad.runs.receipt import ForgetReceipt, receipt_bytes
from fedvad.verbs.bank_forget import without_site


def forget_site(
    settings: ServerSettings, name: str, site: str, key: Path, receipt: Path
) -> dict[str, Any]:
    """Take a site out of run `name`: a round without it, of which the others hear at a launch.

    The server asks the site nothing any longer. key: private key that signs the receipt. After a
    kill the same command ends it. Raises `ConfigError` while the run is under way, for a site of
    which the server holds nothing, and as `bank_forget.without_site` does.
    """
    folder = _run(settings, name)
    with _alone(folder, name):
        signing = read_private_key(key)
        guard_output_file(
            receipt, "--receipt", others=[key, *folder.glob("**/*")], own=signing.beginning
        )
        record = read_record(folder)
        if record.get(LEAVING, site) != site:
            raise ConfigError(f"finish it first: fedvad deploy forget {record[LEAVING]}")
        state = load_state(folder / STATE)
        # of a kill between the last two steps
        done = LEAVING in record and state is not None and site not in state.server
        facts: dict[str, Any] = {"site": site}
        if not done:
            config = TrainConfig.model_validate(record["config"])
            exchange_for = partial(method_class(config.method).exchange_for, config)
            server, merged, facts = without_site(state, site, exchange_for)
            assert state is not None  # `without_site` saw to it
            write_record(folder, record | {LEAVING: site})  # until the end no run continues
            statement = ForgetReceipt(
                **facts, file="global.safetensors", before=sha256_of(state.merged.to_bytes()),
                after=sha256_of(merged.to_bytes()),
            )  # fmt: skip
            write_atomically(receipt, receipt_bytes(statement, signing))
            shutil.rmtree(folder / RESULT, ignore_errors=True)
            save_state(folder / STATE, server.state())
            facts = statement.model_dump()
        record.pop(LEAVING, None)
        record.get(REPORTED, {}).pop(site, None)
        left = sorted({*record.get(LEFT, []), site})
        # everybody is to hear of it, and the round without the site has a number
        changes = {LEFT: left, ROUNDS: rounds_of(record) + 1, "finished": {}}
        write_record(folder, record | changes)
    return {"name": name, **facts, "receipt": str(receipt)}


def more_rounds(settings: ServerSettings, name: str, more: int) -> None:
    """Let a finished run make more rounds, which read the sites' folders as they are then.

    Raises `ConfigError` for a run that is not finished or under way, and for a method with a fixed
    number of rounds.
    """
    folder = _run(settings, name)
    with _alone(folder, name):
        record = read_record(folder)
        state = load_state(folder / STATE)
        made, total = 0 if state is None else state.round, rounds_of(record)
        if made < total:
            raise ConfigError(
                f"run {name} has made {made} of its {total} rounds: launch it without --more first"
            )
        config = TrainConfig.model_validate(record["config"])
        method_class(config.method).check_remote(config.model_copy(update={"rounds": total + more}))
        write_record(folder, record | {ROUNDS: total + more, "finished": {}})


def _run(settings: ServerSettings, name: str) -> Path:
    folder = settings.run(name)
    if not folder.is_dir():
        raise ConfigError(f"this server has no run {name}: fedvad status lists those that it has")
    return folder


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    with locked(folder / "lock", otherwise=ConfigError(f"run {name} is under way: let it end")):
        yield
