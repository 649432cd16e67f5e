"""A site leaves a federation by files: the server merges again without what it sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fedvad._version import __version__
from fedvad.data.files import write_atomically
from fedvad.data.locks import only_one
from fedvad.data.sealed import sha256_of
from fedvad.errors import ConfigError, join_names
from fedvad.federation.exchange.sums import has_sums
from fedvad.federation.exchange.weights import has_weights
from fedvad.federation.mailboxes.state import RunState, load_state, save_state
from fedvad.federation.payload import Payload, bank_from
from fedvad.federation.server import Server
from fedvad.federation.signed import read_private_key
from fedvad.federation.vote import ExchangeFor
from fedvad.runs.guards import guard_output_file
from fedvad.runs.receipt import ForgetReceipt, now, receipt_bytes
from fedvad.verbs.bank_server import forgotten_sites, read_federation, save_forgotten


def forget_site(
    site: str, state_dir: Path, key: Path, out: Path, *, receipt: Path | None = None
) -> dict[str, Any]:
    """The server's round without a site: merge what the others sent, write the signed memory.

    The sites take it as any other; in their next round they send what it covers worst. Files of the
    site are refused from now on, see `merge_uploads`. After a kill the same command ends it.
    receipt: where to write the signed statement. Raises `ConfigError` for a site of which the
    server holds nothing, the only one, or weights of students, in which no site's part can be told
    from another's; `ArtefactError` for a damaged state.
    """
    with only_one(state_dir):
        signing = read_private_key(key)
        for target, option in ((out, "--out"), (receipt, "--receipt")):
            guard_output_file(
                target, option, others=[key, *state_dir.glob("**/*")], own=signing.beginning
            )
        state = load_state(state_dir)
        server, merged, facts = without_site(
            state, site, lambda upload: read_federation(state_dir).exchange_for(upload)
        )
        assert state is not None  # `without_site` saw to it
        signed = signing.sign(merged.to_bytes())
        statement = ForgetReceipt(
            **facts, file=out.name, after=sha256_of(signed),
            before=sha256_of(signing.sign(state.merged.to_bytes())),
        )  # fmt: skip
        # the state last: until then the same command does the same once more
        if receipt is not None:
            write_atomically(receipt, receipt_bytes(statement, signing))
        write_atomically(out, signed)
        save_forgotten(state_dir, forgotten_sites(state_dir) | {site})
        save_state(state_dir, server.state())
    return {
        **statement.model_dump(),
        "path": str(out),
        "round": merged.manifest.round,
        "receipt": None if receipt is None else str(receipt),
    }


def without_site(
    state: RunState | None, site: str, exchange_for: ExchangeFor
) -> tuple[Server, Payload, dict[str, Any]]:
    """A server after the round in which a site leaves, its message, and the facts of a receipt.

    Raises `ConfigError` as `forget_site` does.
    """
    held = {} if state is None else dict(state.server)
    if state is None or site not in held:
        raise ConfigError(f"the server holds nothing of {site!r}, it has {join_names(held)}")
    if has_weights(held[site]) or has_sums(held[site]):
        raise ConfigError(
            "this federation has weights of students or sums, in which no site's part can be "
            "told from another's: train again without the site"
        )
    left = {name: payload for name, payload in held.items() if name != site}
    if not left:
        raise ConfigError(f"{site} is the only site: remove what the server keeps instead")
    server = Server(exchange_for(next(iter(left.values()))), quorum=0)
    server.restore(replace(state, server=left))
    server.open(state.round + 1)
    merged = server.close([])
    server.ledger.forget(site)
    facts = {
        "date": now(),
        "site": site,
        "image": None,
        "sites_left": sorted(left),
        "rows_removed": {site: held[site].rows, "global": _rows_of(state.merged, site)},
        "rows_now": {"global": merged.rows} | {n: p.rows for n, p in sorted(left.items())},
        "repaired": False,
        "thresholds": "of the memory before",
        "version": __version__,
    }
    return server, merged, facts


def _rows_of(merged: Payload, site: str) -> int:
    origin = bank_from(merged).origin
    return 0 if origin is None else int((origin.share_of(site) > 0).sum())
