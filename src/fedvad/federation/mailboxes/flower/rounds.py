"""The mailbox over Flower: rounds with sites that may be slow, gone, late or wrong.

Imports nothing of Flower: `Links` is all it needs, and tests give it links without a network.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from fedvad.errors import ArtefactError, ConfigError, FederationError
from fedvad.federation.ledger import Ledger, RoundEntry
from fedvad.federation.mailboxes.flower.messages import Instruction, Reply
from fedvad.federation.mailboxes.inprocess import Schedule
from fedvad.federation.mailboxes.state import load_state, save_state
from fedvad.federation.payload import Payload
from fedvad.federation.server import Missing, Server
from fedvad.federation.vote import ExchangeFor

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
class WaitPolicy:
    """How long a server waits, and with how few answers it continues.

    deadline: seconds of a round, from its begin to the last answer. quorum: answers that a round
    needs, or all of them where fewer sites take part. retry: seconds without an answer after which
    a site is asked again, doubled each time (a site answers the same twice, so that is harmless).
    missing: whether the last memory of a site without an answer stays in the merge.
    """

    deadline: float = 3600.0
    quorum: int = 1
    retry: float = 300.0
    missing: Missing = "keep"


def gather(
    links: Links,
    sites: Sequence[str],
    instruction_for: Callable[[str], Instruction],
    patience: WaitPolicy,
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
                soon = clock() + patience.retry / 10
                again_at[site] = min(again_at.get(site, soon), soon)
            elif answer.round == instruction_for(site).round:
                replies[site] = answer
                log.info(
                    "round %d: %s answered, %d of %d in",
                    *(answer.round, site, len(replies), len(sites)),
                )
            else:
                log.info("ignored a late answer of %s to round %d", site, answer.round)
        pending = [site for site in sites if site not in replies]
        if not pending or clock() >= end:
            return replies, {site: reasons[site] for site in pending}, asked
        present = links.connected()
        for site in pending:
            if site in present and clock() >= again_at.get(site, 0.0):
                log.info("asking %s%s", site, " again" if asked[site] else "")
                links.ask(site, instruction_for(site))
                again_at[site] = clock() + patience.retry * 2 ** asked[site]
                asked[site] += 1
                reasons[site] = f"no answer within the deadline of {patience.deadline:g} s"
        if on_wait is not None:
            on_wait(pending)
        links.wait()


class RemoteRounds:
    """Rounds of one federation; state on disk after each, so that a killed server continues.

    sites: names of those that take part. names: all with which the federation began, if some have
    left; a site's position among them sets its seed. exchange_for, features, max_bytes: see
    `Server`, which has no images here. federation, config: see `Instruction`. facts: by site, what
    it said with its last accepted answer.
    """

    def __init__(
        self,
        links: Links,
        sites: Sequence[str],
        schedule: Schedule,
        patience: WaitPolicy,
        exchange_for: ExchangeFor,
        *,
        federation: str,
        config: str,
        state_dir: Path,
        names: Sequence[str] | None = None,
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
        self.server = Server(
            exchange_for=exchange_for,
            features=features,
            quorum=patience.quorum,
            missing=patience.missing,
            max_bytes=max_bytes,
        )
        self.template = Instruction(
            "round", federation=federation, sites=tuple(sorted(names or sites)), config=config
        )
        self.state_dir = state_dir
        self.clock = clock
        self.on_wait = on_wait
        self.on_round = on_round
        self.facts: dict[str, dict[str, object]] = {}

    @property
    def ledger(self) -> Ledger:
        """Costs of all rounds."""
        return self.server.ledger

    def run(self) -> Payload:
        """All rounds from where the state stands; returns the final message of the server.

        Raises `FederationError` when a round does not reach its quorum in time; the rounds
        before it are kept, and running again continues from there.
        """
        state = load_state(self.state_dir)
        if state is not None:
            self.server.restore(state)
            log.info("going on after round %d", state.round)
        for round_ in range(self.server.round + 1, self.schedule.rounds + 1):
            self._round(round_)
        if self.server.merged is None:
            raise ArtefactError(f"{self.state_dir} holds no round to continue from")
        return self.server.merged

    def hand_out(self, final: Payload, sites: Iterable[str]) -> tuple[dict[str, Reply], set[str]]:
        """Give sites the final message; their answers, and who did not get it in time."""
        order = replace(
            self.template, kind="finish", round=final.manifest.round, payload=final.to_bytes()
        )
        replies, missing, asked = self._gather(sorted(sites), lambda site: order, order.round)
        self.server.handed_out(asked)
        return replies, set(missing) | self._refused(replies, "the final memory")

    def tell(self, facts: Mapping[str, dict[str, Any]], round_: int) -> tuple[set[str], set[str]]:
        """Send each site its part of `facts`; who took it, and who did not, in time or at all."""
        order = replace(self.template, kind="threshold", round=round_)
        replies, missing, _ = self._gather(
            sorted(facts), lambda site: replace(order, facts=facts[site]), round_
        )
        refused = self._refused(replies, "the threshold")
        return set(replies) - refused, set(missing) | refused

    def images_of(self, site: str) -> int | None:
        """How many normal images a site said that it has; None before its first upload."""
        held = self.server.held()
        return held[site].manifest.n_images if site in held else None

    def _refused(self, replies: Mapping[str, Reply], what: str) -> set[str]:
        refused = {site for site, reply in replies.items() if reply.refusal}
        for site in sorted(refused):
            log.warning("%s did not take %s: %s", site, what, replies[site].refusal)
        return refused

    def _gather(
        self, sites: Sequence[str], instruction_for: Callable[[str], Instruction], round_: int
    ) -> tuple[dict[str, Reply], dict[str, str], dict[str, int]]:
        tell = None if self.on_wait is None else partial(self.on_wait, round_)
        return gather(
            self.links, sites, instruction_for, self.patience, clock=self.clock, on_wait=tell
        )

    def _round(self, round_: int) -> None:
        server = self.server
        down, held = server.open(round_), server.held()
        names = self.schedule.participants(round_, self.sites)

        def order(site: str) -> Instruction:
            last = held[site].manifest.round if site in held else 0
            return replace(self.template, round=round_, held=last, payload=down)

        log.info("round %d of %d: %s", round_, self.schedule.rounds, ", ".join(names))
        with server.ledger.phase("local"):
            replies, missing, asked = self._gather(names, order, round_)
        for name, reason in missing.items():
            server.refuse(name, reason)
        receipts = []
        for name, reply in sorted(replies.items()):
            if reply.site != name:
                server.refuse(name, f"the node of {name} claims to be {reply.site[:50]!r}")
            elif reply.refusal:
                server.refuse(name, f"refused by the site: {reply.refusal[:2000]}")
            else:
                receipts.append(server.receive(name, reply.payloads))
        try:
            server.close(
                names, bytes_down={name: n * len(down) for name, n in asked.items() if n}
            )  # fmt: skip
        except FederationError as error:
            raise FederationError(
                f"{error}. What was computed is kept: fix the cause and launch again"
            ) from error
        for receipt in receipts:
            if receipt.accepted:
                self.facts[receipt.site] = replies[receipt.site].facts
        # before the state: a round that counts is not asked for the facts of it again
        if self.on_round is not None:
            self.on_round(server.ledger.rounds[-1])
        save_state(self.state_dir, server.state())
