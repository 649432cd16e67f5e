"""The in-process runner: rounds over sites in this process, every byte serialised for real."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedvad.detectors.memory_site import MemorySite
from fedvad.errors import ConfigError, FederationError, PayloadError
from fedvad.federation.exchange.memory import MemoryExchange
from fedvad.federation.ledger import Ledger, RoundEntry
from fedvad.federation.payload import Payload, bank_from
from fedvad.federation.runners.state import RunState, load_state, save_state
from fedvad.memory.distances import nearest
from fedvad.memory.merge import COVERAGE_WARNING

__all__ = ["Schedule", "run_rounds"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """Who takes part when.

    rounds: their number. participation: share of the sites drawn per round (at least one).
    joins: first round of a site that is not there from the start.
    """

    rounds: int = 2
    participation: float = 1.0
    joins: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"a run needs at least one round, got {self.rounds}")
        if not 0 < self.participation <= 1:
            raise ConfigError(f"participation must lie in (0, 1], got {self.participation}")

    def participants(self, round_: int, sites: list[str]) -> list[str]:
        """Names of this round's sites, sorted; raises `ConfigError` for an unknown joiner."""
        unknown = sorted(set(self.joins) - set(sites))
        if unknown:
            raise ConfigError(f"--join names unknown sites {unknown}; there are {sorted(sites)}")
        present = sorted(s for s in sites if self.joins.get(s, 1) <= round_)
        count = math.ceil(self.participation * len(present) - 1e-9)
        rng = np.random.default_rng([self.seed, round_])
        return sorted(rng.permutation(present)[:count].tolist())


def run_rounds(
    exchange: MemoryExchange,
    sites: Mapping[str, MemorySite],
    schedule: Schedule,
    *,
    ledger: Ledger,
    state_dir: Path | None = None,
    resume: bool = False,
    jobs: int = 1,
    on_step: Callable[[int, str], None] | None = None,
    on_round: Callable[[int, Payload], None] | None = None,
) -> Payload:
    """Run all rounds and return the last global memory.

    After each round everything needed to go on is written to `state_dir`; with `resume` the run
    continues behind the last complete round. Results do not depend on `jobs` or on the order of
    sites. A refused upload is logged, entered in the ledger, and the round goes on without it.

    Raises `FederationError` when no site contributed to a round and nothing was merged before.
    """
    incoming: Payload | None = None
    first = 1
    if resume and state_dir is not None:
        state = load_state(state_dir)
        if state is not None:
            _check_resumable(state, exchange, sites)
            incoming, first = state.merged, state.round + 1
            exchange.restore(state.server)
            ledger.continue_from(state.ledger)
            for name, site in sites.items():
                if name in state.sites:
                    site.bank, site.generator = state.sites[name]
            log.info("resuming behind round %d", state.round)
    for round_ in range(first, schedule.rounds + 1):
        names = schedule.participants(round_, list(sites))
        incoming = _one_round(
            exchange, {n: sites[n] for n in names}, incoming, round_, ledger, jobs, on_step
        )
        if on_round is not None:
            on_round(round_, incoming)
        if state_dir is not None:
            banks = {name: (site.bank, site.generator) for name, site in sites.items()}
            save_state(
                state_dir, RunState(round_, incoming, exchange.server_state(), banks, ledger)
            )
    if incoming is None:
        raise FederationError("no round was run")
    final = len(incoming.to_bytes())
    last = ledger.rounds[-1].bytes_down
    last.update({name: last.get(name, 0) + final for name in sites})
    return incoming


def _check_resumable(
    state: RunState, exchange: MemoryExchange, sites: Mapping[str, MemorySite]
) -> None:
    """Raise `ConfigError` when the stored rounds were run with other features or images."""
    if state.merged.manifest.features != exchange.features:
        raise ConfigError(
            "the interrupted run used other features (backbone weights?): give the same ones, or "
            "start anew in another folder"
        )
    changed = sorted(set(sites) ^ set(state.sites)) or sorted(
        name for name, sent in state.server.items()
        if sent.manifest.n_patches != sites[name].n_patches
    )  # fmt: skip
    if changed:
        raise ConfigError(
            f"the training images changed since the interrupted run (sites {changed}): restore "
            "them, or start anew in another folder"
        )


def _one_round(
    exchange: MemoryExchange,
    sites: Mapping[str, MemorySite],
    incoming: Payload | None,
    round_: int,
    ledger: Ledger,
    jobs: int,
    on_step: Callable[[int, str], None] | None,
) -> Payload:
    down = incoming.to_bytes() if incoming is not None else b""

    received = Payload.from_bytes(down) if down else None

    def step(name: str) -> bytes:
        sent = exchange.site_step(sites[name], received, round_).to_bytes()
        if on_step is not None:
            on_step(round_, name)
        return sent

    with ledger.phase("local"), _workers(max(1, jobs)) as pool:
        messages = dict(zip(sites, pool.map(step, sites), strict=True))
    entry = RoundEntry(
        round=round_,
        sites=list(sites),
        bytes_up={name: len(message) for name, message in messages.items()},
        bytes_down={name: len(down) for name in sites},
        rows_up={},
        memory_rows=0,
        coverage=0.0,
    )
    with ledger.phase("merge"):
        for name, message in messages.items():
            try:
                payload = Payload.from_bytes(message)
                claims = payload.manifest.site, payload.manifest.round
                if claims != (name, round_):
                    raise PayloadError(f"{name} sent what claims to be of (site, round) {claims}")
                exchange.accept(payload)
                entry.rows_up[name] = len(payload.arrays["vectors"])
            except PayloadError as error:
                log.warning("round %d: refused %s: %s", round_, name, error)
                entry.rejected[name] = str(error)
        merged = exchange.merge(round_)
    entry.memory_rows = len(merged.arrays["vectors"])
    entry.coverage = merged.manifest.coverage or 0.0
    entry.drift = None if incoming is None else _drift(incoming, merged)
    entry.generator_spread = {
        name: site.training[-1].spread[-1] for name, site in sites.items() if site.training
    }
    if entry.coverage > COVERAGE_WARNING:
        log.warning(
            "round %d: coverage %.1f is above %.0f: the global memory misses some normal mode "
            "and will raise false alarms; use more rows (--memory-rows) or --merge concat",
            round_, entry.coverage, COVERAGE_WARNING,
        )  # fmt: skip
    ledger.rounds.append(entry)
    return merged


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


def _drift(before: Payload, after: Payload, max_rows: int = 500) -> float:
    """Mean distance of (a sample of) the new memory's rows to the old memory."""
    import torch

    old, new = bank_from(before).vectors, bank_from(after).vectors
    rows = np.random.default_rng(0).permutation(len(new))[:max_rows]
    distances, _ = nearest(torch.from_numpy(new[np.sort(rows)]), torch.from_numpy(old))
    return float(distances.sqrt().mean())
