"""The mailbox within one process: rounds over its sites, every message serialised for real."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fedvad.errors import ArtefactError, ConfigError, FederationError, FedvadError, join_names
from fedvad.federation.exchange.base import Exchange, Member
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.state import RunState, load_state, save_state
from fedvad.federation.payload import Payload
from fedvad.federation.server import Server

log = logging.getLogger(__name__)
State = TypeVar("State", bound=Member)


@dataclass(frozen=True)
class Schedule:
    """Who takes part when.

    rounds: their number. participation: share of the sites drawn per round (at least one).
    joins: first round of a site that is not there from the start. first: number of the first
    round, for those that follow rounds of another kind.
    """

    rounds: int = 2
    participation: float = 1.0
    joins: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    first: int = 1

    @property
    def last(self) -> int:
        """Number of the last round."""
        return self.first + self.rounds - 1

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"a run needs at least one round, got {self.rounds}")
        if not 0 < self.participation <= 1:
            raise ConfigError(f"participation must lie in (0, 1], got {self.participation}")

    def participants(self, round_: int, sites: list[str]) -> list[str]:
        """Names of this round's sites, sorted; raises `ConfigError` for an unknown joiner."""
        unknown = sorted(set(self.joins) - set(sites))
        if unknown:
            raise ConfigError(
                f"--join names unknown sites {join_names(unknown)}; there are {join_names(sites)}"
            )
        present = sorted(s for s in sites if self.joins.get(s, 1) <= round_)
        count = math.ceil(self.participation * len(present) - 1e-9)
        rng = np.random.default_rng([self.seed, round_])
        return sorted(rng.permutation(present)[:count].tolist())


def run_rounds(
    exchange: Exchange[State],
    sites: Mapping[str, State],
    schedule: Schedule,
    *,
    ledger: Ledger,
    state_dir: Path | None = None,
    resume: bool = False,
    after: tuple[int, Payload] | None = None,
    jobs: int = 1,
    on_step: Callable[[int, str], None] | None = None,
    on_round: Callable[[int, Payload], None] | None = None,
) -> Payload:
    """Run all rounds and return the last global memory.

    After each round everything needed to continue is written to `state_dir`; with `resume` the run
    continues after the last complete round; with `after`, a round and its global memory, it
    continues after that, with the same exchange and any of its sites. Results do not depend on
    `jobs` or on the order of sites. A refused upload is logged, entered in the ledger, and the
    round continues without it.

    Raises `ConfigError` when no round follows `after`, `FederationError` when no site contributed
    to a round and nothing was merged before.
    """
    first = schedule.first if after is None else after[0] + 1
    if first > schedule.last:
        raise ConfigError(f"nothing follows round {first - 1} in {schedule.rounds} rounds")
    # a round without any answer continues with what the server has
    server = Server(exchange, ledger=ledger, quorum=0)
    server.merged = None if after is None else after[1]
    state = load_state(state_dir) if resume and state_dir is not None else None
    if state is not None and state_dir is not None:
        _check_resumable(state, exchange, sites, ledger)
        server.restore(state)
        first = state.round + 1
        for name, site in sites.items():
            if name in state.sites:
                _restore(site, state.sites[name], name, state_dir)
        log.info("resuming after round %d", state.round)
    for round_ in range(first, schedule.last + 1):
        names = schedule.participants(round_, list(sites))
        merged = _one_round(server, {n: sites[n] for n in names}, round_, jobs, on_step)
        if on_round is not None:
            on_round(round_, merged)
        if state_dir is not None:
            kept = {name: site.snapshot() for name, site in sites.items()}
            save_state(state_dir, server.state(kept))
    if server.merged is None:
        raise FederationError("no round was run")
    server.handed_out(dict.fromkeys(sites, 1))
    return server.merged


def _restore(site: Member, arrays: Mapping[str, npt.NDArray[Any]], name: str, folder: Path) -> None:
    try:
        site.restore(arrays)
    except (KeyError, FedvadError) as error:
        raise ArtefactError(
            f"the state of {name} in {folder} is damaged ({error}): remove {folder} and train again"
        ) from error


def _check_resumable(
    state: RunState,
    exchange: Exchange[State],
    sites: Mapping[str, State],
    ledger: Ledger,
) -> None:
    """Raise `ConfigError` when the stored rounds had other features, options or images."""
    images, options = ledger.images, state.ledger.options
    if options and options != ledger.options:
        raise ConfigError(
            "the state of the interrupted run is of another configuration: it was copied here from "
            "another run; restore its own, or begin again in another folder"
        )
    if state.merged.manifest.features != exchange.features:
        raise ConfigError(
            "the interrupted run used other features (backbone weights?): give the same ones, or "
            "begin again in another folder"
        )
    changed = sorted(set(sites) ^ set(state.sites)) or sorted(
        name for name, sent in state.server.items()
        if name in sites and sent.manifest.n_patches != sites[name].n_patches
    ) or sorted(
        name for name, digest in state.ledger.images.items() if images.get(name, digest) != digest
    )  # fmt: skip
    if changed:
        raise ConfigError(
            f"the training images changed since the interrupted run (sites {join_names(changed)}): "
            "restore them, or begin again in another folder"
        )


def _one_round(
    server: Server,
    sites: Mapping[str, State],
    round_: int,
    jobs: int,
    on_step: Callable[[int, str], None] | None,
) -> Payload:
    down = server.open(round_)
    received = Payload.from_bytes(down) if down else None
    exchange = server.exchange
    assert exchange is not None

    def step(name: str) -> bytes:
        sent = exchange.site_step(sites[name], received, round_).to_bytes()
        if on_step is not None:
            on_step(round_, name)
        return sent

    with server.ledger.phase("local"), _workers(max(1, jobs)) as pool:
        messages = dict(zip(sites, pool.map(step, sites), strict=True))
    for name, message in messages.items():
        server.receive(name, [message])
    return server.close(
        list(sites),
        bytes_down=dict.fromkeys(sites, len(down)),
        spreads={name: site.spread for name, site in sites.items() if site.spread is not None},
    )


@contextmanager
def _workers(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that share the cores: without a limit each would start as many as there are."""
    import torch

    threads = torch.get_num_threads()
    share = max(1, threads // jobs)
    try:
        with ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
