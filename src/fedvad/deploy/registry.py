"""Which keys a server's Flower knows: exactly those in its folder, settled before it listens."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def sync_keys(database: Path, keys: Mapping[bytes, str]) -> None:
    """Register the public keys (PEM, with the names of their sites) that are new, lock out others.

    Flower's own command for it needs a running server and a process per key. A key that was
    locked out stays so in this database: its site needs a new one.
    """
    from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID

    state = _state(database)
    known = {bytes(node.public_key): node for node in state.get_node_info()}
    for key, node in known.items():
        if key not in keys and node.status != "unregistered":
            state.delete_node(node.owner_aid, node.node_id)
            log.warning("locked out a site whose key is no longer in the folder")
    for key, name in keys.items():
        if key not in known:
            state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, HEARTBEAT_DEFAULT_INTERVAL)
        elif known[key].status == "unregistered":
            log.error("the key of %s was locked out earlier: the site needs a new one", name)


def online_keys(database: Path) -> set[bytes]:
    """Public keys (PEM) of the nodes that are connected; none where there is no database yet."""
    if not database.is_file():
        return set()
    return {bytes(node.public_key) for node in _state(database).get_node_info(statuses=["online"])}


def _state(database: Path) -> Any:
    from flwr.superlink.config_loader import (
        get_federation_manager,
        get_objectstore_linkstate_factories,
    )

    _, factory = get_objectstore_linkstate_factories(str(database), get_federation_manager())
    return factory.state()
