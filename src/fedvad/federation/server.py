"""The server of a federation, whatever brings the messages: what is received is checked, what is
accepted is merged, and each round becomes one entry of the ledger.

A mailbox (in process, signed files, Flower) moves bytes and knows nothing of what they hold.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy.typing as npt

from fedvad.errors import FederationError, PayloadError
from fedvad.federation.exchange.base import Exchange
from fedvad.federation.ledger import Ledger, RoundEntry
from fedvad.federation.mailboxes.state import RunState
from fedvad.federation.payload import Payload
from fedvad.federation.receipt import Receipt
from fedvad.federation.vote import ExchangeFor, choose_exchange
from fedvad.mergeable import merge_by_name

__all__ = ["Missing", "Receipt", "Server"]

log = logging.getLogger(__name__)

Missing = Literal["keep", "drop"]
_MAX_BYTES = 1 << 30


class Server:
    """Rounds of one federation: `open` one, `receive` the answers, `close` it.

    Parameters
    ----------
    exchange : Exchange, optional
        What merges uploads; None where the first uploads decide, through `exchange_for`, as on a
        server that has no images. Give exactly one of the two.
    exchange_for : callable, optional
        The exchange that an upload asks for.
    features : str, optional
        Features key that uploads must have; None takes that of most of the first sites.
    ledger : Ledger, optional
        Takes the rounds' entries; a new one by default.
    quorum : int, default=1
        Sites that must be accepted to close a round, or all that take part if they are fewer.
    missing : {"keep", "drop"}, default="keep"
        Whether what a site without an answer sent before stays in the merge.
    max_bytes : int, default=1 GiB
        No longer message is parsed.

    Attributes
    ----------
    merged : Payload or None
        The last message for all sites.
    round : int
        The last round opened.

    Examples
    --------
    >>> from fedvad.federation.exchange.memory import MemoryExchange
    >>> from fedvad.federation.server import Server
    >>> server = Server(MemoryExchange(features="key", dim=6))
    >>> server.open(1)
    b''
    >>> server.receive("alder", [b"short"]).refused
    'message is truncated'
    """

    def __init__(
        self,
        exchange: Exchange[Any] | None = None,
        *,
        exchange_for: ExchangeFor | None = None,
        features: str | None = None,
        ledger: Ledger | None = None,
        quorum: int = 1,
        missing: Missing = "keep",
        max_bytes: int = _MAX_BYTES,
    ) -> None:
        if (exchange is None) == (exchange_for is None):
            raise TypeError("give either an exchange or exchange_for")
        self.exchange = exchange
        self.exchange_for = exchange_for
        self.features = features
        self.ledger = Ledger() if ledger is None else ledger
        self.quorum = quorum
        self.missing = missing
        self.merged: Payload | None = None
        self.round = 0
        self._max_bytes = max_bytes
        self._receipts: list[Receipt] = []
        self._refused: dict[str, str] = {}

    @property
    def max_bytes(self) -> int:
        """Length of the longest message that is parsed."""
        known = self._max_bytes if self.exchange is None else self.exchange.max_bytes
        return min(self._max_bytes, known)

    def open(self, round_: int) -> bytes:
        """Begin a round, or begin it again, without what it had received; returns the message for
        its sites, which is empty while nothing was merged.
        """
        self.round = round_
        self._receipts, self._refused = [], {}
        return b"" if self.merged is None else self.merged.to_bytes()

    def receive(
        self, site: str, messages: Sequence[bytes], *, label: str = "", size: int | None = None
    ) -> Receipt:
        """Take an answer of a site to the open round: all of it or nothing.

        site: who it came from, as the mailbox knows it. messages: uploads, oldest first. label:
        see `Receipt`; the site's name by default. size: bytes that travelled, if not those of the
        messages. Whether the exchange takes the answer is known when the round is closed.
        """
        length = sum(map(len, messages)) if size is None else size
        receipt = Receipt(site, label or site, length)
        with self.ledger.phase("merge"):
            try:
                if not messages:
                    raise PayloadError("the answer holds no upload")
                receipt.payloads = [self._checked(site, message) for message in messages]
            except PayloadError as error:
                self._refuse(receipt, str(error))
        self._receipts.append(receipt)
        return receipt

    def refuse(self, who: str, reason: str) -> str:
        """Enter an answer that cannot be received, or never came; returns its name in the ledger,
        which has a number where one of that name was refused before.
        """
        count, label = 1, who
        while label in self._refused:
            count += 1
            label = f"{who} ({count})"
        self._refused[label] = reason
        return label

    def close(
        self,
        sites: Sequence[str] | None = None,
        *,
        bytes_down: Mapping[str, int] | None = None,
        spreads: Mapping[str, float] | None = None,
    ) -> Payload:
        """Merge what was received, enter the round into the ledger, return the message for all.

        sites: who was to take part; None means whoever's answer is accepted. bytes_down: what was
        sent to sites for this round. spreads: see `RoundEntry.generator_spread`.

        Raises `FederationError`, after which nothing has changed, when fewer sites than the quorum
        are accepted, where the first uploads do not agree on what the federation is, and where the
        exchange cannot merge them.
        """
        with self.ledger.phase("merge"):
            before = None if self.exchange is None else dict(self.exchange.server_state())
            self._accept()
            accepted = {r.site: None for r in self._receipts if r.accepted}
            names = sorted(accepted) if sites is None else list(sites)
            quorum = self.quorum if sites is None else min(self.quorum, len(names))
            if len(accepted) < quorum or self.exchange is None:
                self._undo(before)
                raise FederationError(self._too_few(len(accepted), quorum))
            absent = set(names) - set(accepted) if self.missing == "drop" else set()
            try:
                merged = self.exchange.merge(self.round, absent)
            except FederationError:
                self._undo(before)
                raise
            last, self.merged = self.merged, merged
            drift = None if last is None else self.exchange.drift(last, self.merged)
        self.ledger.close_round(
            RoundEntry(
                round=self.round,
                sites=names,
                bytes_up=self._sums(lambda r: r.size, everyone=sites is not None),
                bytes_down=dict(bytes_down or {}),
                rows_up=self._sums(lambda r: sum(p.rows for p in r.payloads), everyone=False),
                memory_rows=self.merged.rows,
                coverage=self.merged.manifest.coverage or 0.0,
                drift=drift,
                rejected=dict(self._refused),
                distrusted=dict(self.exchange.distrusted),
                generator_spread=dict(spreads or {}),
            )
        )
        return self.merged

    def handed_out(self, times: Mapping[str, int]) -> None:
        """Add to the last round's bytes that sites fetched its merged message, so often each."""
        if self.merged is None or not self.ledger.rounds:
            return
        size, last = len(self.merged.to_bytes()), self.ledger.rounds[-1]
        more = {site: n * size for site, n in times.items()}
        last.bytes_down.update(merge_by_name([last.bytes_down, more]))

    def held(self) -> Mapping[str, Payload]:
        """What the server has of each site; empty before the first round is closed."""
        state = {} if self.exchange is None else self.exchange.server_state()
        return {site: payload for site, payload in state.items() if site}

    def state(self, sites: Mapping[str, Mapping[str, npt.NDArray[Any]]] | None = None) -> RunState:
        """All that is needed to continue after the last closed round; sites: their own snapshots.

        Raises `FederationError` while no round is closed.
        """
        if self.exchange is None or self.merged is None:
            raise FederationError("no round was run")
        state = self.exchange.server_state()
        return RunState(self.round, self.merged, state, sites or {}, self.ledger)

    def restore(self, state: RunState) -> None:
        """Continue after the round of a `state`.

        Raises `FederationError` for one that is not of a federation that this server may run.
        """
        if self.exchange is None:
            self._settle(list(state.server.values()))
        if self.exchange is None:
            assert self.exchange_for is not None
            upload = next(iter(state.server.values()))
            try:
                why = f"its features are {self.exchange_for(upload).features}"
            except PayloadError as error:
                why = str(error)
            raise FederationError(f"the federation cannot continue from round {state.round}: {why}")
        self.exchange.restore(state.server)
        self.ledger.continue_from(state.ledger)
        self.round, self.merged = state.round, state.merged

    def _checked(self, site: str, message: bytes) -> Payload:
        """The one place where a message's claims are held against who sent it and when."""
        payload = Payload.from_bytes(message, max_bytes=self.max_bytes)
        manifest = payload.manifest
        if manifest.kind != "upload":
            raise PayloadError("it is a global memory, not the upload of a site")
        if manifest.site != site:
            raise PayloadError(f"it claims to be of site {manifest.site[:50]!r}, and is of {site}")
        if manifest.round > self.round:
            raise PayloadError(
                f"it claims to be of round {manifest.round}, but round {self.round} is merged "
                "next: the site took part in another federation, or the server's state is an old "
                "copy"
            )
        return payload

    def _accept(self) -> None:
        """Give the exchange what was received, by site and round; the first of two of a round
        that are good is taken.
        """
        waiting = [r for r in self._receipts if r.accepted]
        waiting.sort(key=lambda r: (r.site, r.first_round))
        if self.exchange is None and waiting:
            # a site counts once, with what it sent first
            self._settle(list({r.site: r.payloads[0] for r in reversed(waiting)}.values()))
        taken: dict[tuple[str, int], str] = {}
        for receipt in waiting:
            try:
                self._take(receipt, taken)
            except PayloadError as error:
                self._refuse(receipt, str(error))

    def _take(self, receipt: Receipt, taken: dict[tuple[str, int], str]) -> None:
        if self.exchange is None:
            assert self.exchange_for is not None
            key = self.exchange_for(receipt.payloads[0]).features
            raise PayloadError(f"its features are {key}, the server asks for {self.features}")
        rounds = [(receipt.site, payload.manifest.round) for payload in receipt.payloads]
        for round_ in rounds:
            if round_ in taken:
                raise PayloadError(f"duplicate: {taken[round_]} is of the same site and round")
        before = dict(self.exchange.server_state())
        try:
            for payload in receipt.payloads:
                self.exchange.accept(payload)
        except Exception as error:
            self.exchange.restore(before)
            if isinstance(error, PayloadError):
                raise
            # a fault of an exchange must not end the round of all other sites
            log.exception("the exchange failed on the upload of %s", receipt.site)
            raise PayloadError(
                f"the exchange failed on it: {type(error).__name__}: {error}"
            ) from error
        taken.update(dict.fromkeys(rounds, receipt.label))

    def _settle(self, uploads: Sequence[Payload]) -> None:
        assert self.exchange_for is not None
        self.exchange = choose_exchange(uploads, self.exchange_for, self.features)

    def _undo(self, before: dict[str, Payload] | None) -> None:
        if before is None:
            self.exchange = None
        elif self.exchange is not None:
            self.exchange.restore(before)

    def _refuse(self, receipt: Receipt, reason: str) -> None:
        site = re.escape(receipt.site)
        named = receipt.label == receipt.site or re.search(rf"site {site}(?!\w)", reason)
        receipt.refused = reason if named else f"site {receipt.site}: {reason}"
        receipt.label = self.refuse(receipt.label, receipt.refused)

    def _sums(self, number: Callable[[Receipt], int], *, everyone: bool) -> dict[str, int]:
        """A number of the answers, summed by site; without those refused unless of everyone."""
        return merge_by_name({r.site: number(r)} for r in self._receipts if everyone or r.accepted)

    def _too_few(self, accepted: int, quorum: int) -> str:
        have = "1 site" if accepted == 1 else f"{accepted} sites"
        why = "; ".join(f"{who}: {reason}" for who, reason in sorted(self._refused.items()))
        return (
            f"round {self.round} was not merged: it has uploads of {have}, the quorum is "
            f"{max(1, quorum)}" + (f". Without: {why}" if why else "")
        )
