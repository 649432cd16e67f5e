"""The server's loop over rounds with sites that may be slow, gone, late or wrong.

Knows nothing of Flower: `Links` is all it needs, and tests give it links without a network.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Protocol

from fedvad.errors import ArtefactError, ConfigError, FederationError, PayloadError
from fedvad.federation.exchange.memory import MemoryExchange, kind_of
from fedvad.federation.ledger import Ledger, RoundEntry
from fedvad.federation.payload import Payload, bank_from
from fedvad.federation.runners.flower.messages import Instruction, Reply
from fedvad.federation.runners.inprocess import Schedule
from fedvad.federation.runners.state import RunState, load_state, save_state

__all__ = ["Links", "Patience", "RemoteRounds", "gather"]

log = logging.getLogger(__name__)


class Links(Protocol):
    """How a server reaches its sites, by name."""

    def connected(self) -> set[str]:
        """Sites that can be reached now."""
        ...

    def ask(self, site: str, instruction: Instruction) -> None:
        """Send an instruction; the answer comes with a later `collect`."""
        ...

    def collect(self) -> Iterable[tuple[str, Reply | str]]:
        """Answers that came since the last call; text for one that never will, saying why."""
        ...

    def forget(self) -> None:
        """Let no answer to what was asked so far come any more."""
        ...

    def wait(self) -> None:
        """Let a little time pass."""
        ...


@dataclass(frozen=True)
class Patience:
    """How long a server waits, and with how few answers it goes on.

    deadline: seconds of a round, from its begin to the last answer. quorum: answers that a round
    needs, or all of them where fewer sites take part. retry: seconds without an answer after which
    a site is asked again, doubled each time (a site answers the same twice, so that is harmless).
    missing: whether the last memory of a site without an answer stays in the merge.
    """

    deadline: float = 3600.0
    quorum: int = 1
    retry: float = 300.0
    missing: Literal["keep", "drop"] = "keep"


def gather(
    links: Links,
    sites: Sequence[str],
    instruction_for: Callable[[str], Instruction],
    patience: Patience,
    *,
    clock: Callable[[], float] = monotonic,
    on_wait: Callable[[Sequence[str]], None] | None = None,
) -> tuple[dict[str, Reply], dict[str, str], dict[str, int]]:
    """Ask every site, and again after a crash or restart, until all answered or time is up.

    Returns the answers, reasons of those without one, and how often each site was asked.
    """
    replies: dict[str, Reply] = {}
    reasons = dict.fromkeys(sites, "not connected")
    asked = dict.fromkeys(sites, 0)
    again_at: dict[str, float] = {}
    end = clock() + patience.deadline
    links.forget()  # a late answer to another question could pass for one to these
    while True:
        for site, answer in links.collect():
            if site not in asked or site in replies:
                continue
            if isinstance(answer, str):
                log.warning("%s: %s", site, answer)
                reasons[site] = answer
                again_at[site] = min(again_at[site], clock() + patience.retry / 10)
            elif answer.round == instruction_for(site).round:
                replies[site] = answer
                log.info("%s answered: %d of %d sites", site, len(replies), len(sites))
            else:
                log.info("%s: a late answer of round %d is of no use now", site, answer.round)
        pending = [site for site in sites if site not in replies]
        if not pending or clock() >= end:
            return replies, {site: reasons[site] for site in pending}, asked
        present = links.connected()
        for site in pending:
            if site in present and clock() >= again_at.get(site, 0.0):
                log.info("%s is asked%s", site, " again" if asked[site] else "")
                links.ask(site, instruction_for(site))
                again_at[site] = clock() + patience.retry * 2 ** asked[site]
                asked[site] += 1
                reasons[site] = f"no answer within the deadline of {patience.deadline:g} s"
        if on_wait is not None:
            on_wait(pending)
        links.wait()


class RemoteRounds:
    """Rounds of one federation; state on disk after each, so that a killed server goes on.

    sites: all names of the federation. federation, config: see `Instruction`. exchange_for: makes
    the exchange from features key, row length and patches per image, which most of the first
    uploads settle, as the server has no backbone.
    """

    def __init__(
        self,
        links: Links,
        sites: Sequence[str],
        schedule: Schedule,
        patience: Patience,
        exchange_for: Callable[[str, int, int], MemoryExchange],
        *,
        federation: str,
        config: str,
        state_dir: Path,
        features: str | None = None,
        max_bytes: int = 1 << 28,
        clock: Callable[[], float] = monotonic,
        on_wait: Callable[[int, Sequence[str]], None] | None = None,
        on_round: Callable[[RoundEntry], None] | None = None,
    ) -> None:
        if not 1 <= patience.quorum <= len(sites):
            raise ConfigError(f"a quorum of {patience.quorum} of {len(sites)} sites is impossible")
        self.links = links
        self.sites = sorted(sites)
        self.schedule = schedule
        self.patience = patience
        self.exchange_for = exchange_for
        self.template = Instruction(
            "round", federation=federation, sites=tuple(self.sites), config=config
        )
        self.state_dir = state_dir
        self.features = features
        self.max_bytes = max_bytes
        self.clock = clock
        self.on_wait = on_wait
        self.on_round = on_round
        self.ledger = Ledger()
        self.exchange: MemoryExchange | None = None
        self.told: dict[str, dict[str, object]] = {}

    def run(self) -> Payload:
        """All rounds from where the state stands; returns the final global memory.

        Raises `FederationError` when a round does not reach its quorum in time; the rounds
        before it are kept, and running again goes on from there.
        """
        state = load_state(self.state_dir)
        incoming: Payload | None = None
        first = 1
        if state is not None:
            self.exchange = self.exchange_for(*self._settle([[p] for p in state.server.values()]))
            self.exchange.restore(state.server)
            self.ledger.continue_from(state.ledger)
            incoming, first = state.merged, state.round + 1
            log.info("going on behind round %d", state.round)
        for round_ in range(first, self.schedule.rounds + 1):
            incoming = self._round(round_, incoming)
        if incoming is None:
            raise ArtefactError(f"{self.state_dir} holds no round to go on from")
        return incoming

    def hand_out(self, final: Payload, sites: Iterable[str]) -> tuple[dict[str, Reply], set[str]]:
        """Give sites the final memory; their answers, and who did not get it in time."""
        data = final.to_bytes()
        order = replace(
            self.template, kind="finish", round=final.manifest.round, payload=data
        )  # fmt: skip
        replies, missing, asked = self._gather(sorted(sites), lambda site: order, order.round)
        refused = {site for site, reply in replies.items() if reply.refusal}
        if self.ledger.rounds:
            entry = self.ledger.rounds[-1]
            for site, times in asked.items():
                entry.bytes_down[site] = entry.bytes_down.get(site, 0) + times * len(data)
            for site in sorted(refused):
                log.warning("%s did not take the final memory: %s", site, replies[site].refusal)
        return replies, set(missing) | refused

    def tell(
        self, told: dict[str, Any], round_: int, sites: Iterable[str]
    ) -> tuple[set[str], set[str]]:
        """Tell sites the counts of all; who took them, and who did not, in time or at all."""
        order = replace(self.template, kind="threshold", round=round_, told=told)
        replies, missing, _ = self._gather(sorted(sites), lambda site: order, round_)
        refused = {site for site, reply in replies.items() if reply.refusal}
        for site in sorted(refused):
            log.warning("%s did not take the threshold: %s", site, replies[site].refusal)
        return set(replies) - refused, set(missing) | refused

    def images_of(self, site: str) -> int | None:
        """How many normal images a site said that it has; None before its first upload."""
        held = {} if self.exchange is None else self.exchange.server_state()
        return held[site].manifest.n_images if site in held else None

    def _gather(
        self, sites: Sequence[str], instruction_for: Callable[[str], Instruction], round_: int
    ) -> tuple[dict[str, Reply], dict[str, str], dict[str, int]]:
        tell = None if self.on_wait is None else partial(self.on_wait, round_)
        return gather(
            self.links, sites, instruction_for, self.patience, clock=self.clock, on_wait=tell
        )

    def _round(self, round_: int, incoming: Payload | None) -> Payload:
        down = b"" if incoming is None else incoming.to_bytes()
        names = self.schedule.participants(round_, self.sites)
        held = {} if self.exchange is None else self.exchange.server_state()

        def order(site: str) -> Instruction:
            last = held[site].manifest.round if site in held else 0
            return replace(self.template, round=round_, held=last, payload=down)

        log.info("round %d of %d: %s", round_, self.schedule.rounds, ", ".join(names))
        with self.ledger.phase("local"):
            replies, missing, asked = self._gather(names, order, round_)
        entry = RoundEntry(
            round=round_, sites=names, bytes_up={}, rows_up={}, memory_rows=0, coverage=0.0,
            bytes_down={name: times * len(down) for name, times in asked.items() if times},
            rejected=dict(missing),
        )  # fmt: skip
        with self.ledger.phase("merge"):
            uploads = self._parse(replies, entry)
            accepted = self._accept(uploads, entry)
            quorum = min(self.patience.quorum, len(names))  # where not all sites take part
            if len(accepted) < quorum or self.exchange is None:
                raise FederationError(
                    f"round {round_} has uploads of {len(accepted)} sites, the quorum is "
                    f"{quorum}. Without: "
                    + "; ".join(f"{n}: {r}" for n, r in sorted(entry.rejected.items()))
                    + ". What was computed is kept: mend the cause and launch again"
                )
            merged = self._merge(round_, set(names) - set(accepted))
        entry.memory_rows = self.exchange.rows(merged)
        entry.coverage = merged.manifest.coverage or 0.0
        entry.drift = None if incoming is None else self.exchange.drift(incoming, merged)
        entry.distrusted = dict(self.exchange.distrusted)
        self.ledger.close_round(entry)
        for name in accepted:
            self.told[name] = replies[name].told
        # before the state: a round that counts is not asked for what was told in it again
        if self.on_round is not None:
            self.on_round(entry)
        save_state(
            self.state_dir,
            RunState(round_, merged, self.exchange.server_state(), {}, self.ledger),
        )
        return merged

    def _parse(self, replies: Mapping[str, Reply], entry: RoundEntry) -> dict[str, list[Payload]]:
        """Uploads that are what they claim to be, by site; the others are entered as rejected."""
        uploads: dict[str, list[Payload]] = {}
        for name, reply in sorted(replies.items()):
            try:
                if reply.site != name:
                    raise PayloadError(f"the node of {name} claims to be {reply.site[:50]!r}")
                if reply.refusal:
                    raise PayloadError(f"refused by the site: {reply.refusal[:2000]}")
                entry.bytes_up[name] = sum(map(len, reply.payloads))
                if not reply.payloads:
                    raise PayloadError("the answer holds no upload")
                payloads = [Payload.from_bytes(p, max_bytes=self.max_bytes) for p in reply.payloads]
                for payload in payloads:
                    manifest = payload.manifest
                    if manifest.site != name or not 1 <= manifest.round <= entry.round:
                        raise PayloadError(
                            f"{name} sent what claims to be of (site, round) "
                            f"{(manifest.site[:50], manifest.round)}"
                        )
                    bank_from(payload)
                uploads[name] = payloads
            except PayloadError as error:
                entry.rejected[name] = str(error)
        return uploads

    def _accept(self, uploads: Mapping[str, list[Payload]], entry: RoundEntry) -> list[str]:
        if self.exchange is None and uploads:
            self.exchange = self.exchange_for(*self._settle(list(uploads.values())))
        accepted = []
        for name, payloads in uploads.items():
            assert self.exchange is not None
            before = dict(self.exchange.server_state())
            try:
                for payload in payloads:
                    self.exchange.accept(payload)
            except PayloadError as error:
                self.exchange.restore(before)  # all of an answer or nothing of it
                entry.rejected[name] = str(error)
                continue
            entry.rows_up[name] = sum(map(self.exchange.rows, payloads))
            accepted.append(name)
        return accepted

    def _settle(self, uploads: Sequence[Sequence[Payload]]) -> tuple[str, int, int]:
        """What the federation is: that of most sites among those with the features demanded."""
        firsts = [payloads[0] for payloads in uploads]
        votes = Counter(
            kind for kind in map(kind_of, firsts) if self.features in (None, kind[0])
        ).most_common(2)
        if not votes:
            raise FederationError(f"no upload has the features {self.features} of the server")
        if len(votes) > 1 and votes[0][1] == votes[1][1]:
            shown = ", ".join(f"{k} ({d} values, {p} patches)" for (k, d, p), _ in votes)
            raise FederationError(
                f"the sites have different features, as many of them {shown}: backbone, weights, "
                "image size or layers differ; name the one meant as `features` in server.toml"
            )
        return votes[0][0]

    def _merge(self, round_: int, missing: set[str]) -> Payload:
        assert self.exchange is not None
        if self.patience.missing == "keep":
            return self.exchange.merge(round_)
        everything = dict(self.exchange.server_state())
        self.exchange.restore({n: p for n, p in everything.items() if n not in missing})
        try:
            return self.exchange.merge(round_)
        finally:
            self.exchange.restore(everything)
