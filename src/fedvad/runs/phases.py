"""The rounds of a method: one phase, or several where parts are trained one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedvad.federation.exchange.base import Exchange
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.inprocess import Schedule, run_rounds
from fedvad.federation.mailboxes.state import has_state, load_state
from fedvad.federation.payload import Payload
from fedvad.runs.progress import Stage


@dataclass(frozen=True, eq=False)
class Phase:
    """What travels, between whom, and when.

    name: of the folder that keeps its state; "" for a method of one phase. end: takes what the
    rounds gave, before the next phase begins. jobs: sites at a time.
    """

    name: str
    exchange: Exchange[Any]
    members: Mapping[str, Any]
    schedule: Schedule
    end: Callable[[Payload], None]
    jobs: int = 1


def run_phases(
    phases: Iterable[Phase],
    names: Iterable[str],
    *,
    ledger: Ledger,
    state_dir: Path | None = None,
    resume: bool = False,
    stage: Stage | None = None,
    on_round: Callable[[int, Payload], None] | None = None,
) -> None:
    """Run all rounds of all phases, in their order; a phase is made when the one before is over.

    names: of the phases. Raises as `run_rounds` does.
    """
    folders = {name: None if state_dir is None else state_dir / name for name in names}
    # a phase killed in its first round has a folder, and no state that knows the rounds before
    begun = [name for name, folder in folders.items() if folder is not None and has_state(folder)]
    for phase in phases:
        folder = folders[phase.name]
        over = load_state(folder) if resume and folder and phase.name in begun[:-1] else None
        if over is not None:  # its costs are in the state of the phase that came next
            phase.end(over.merged)
            continue
        phase.end(
            run_rounds(
                phase.exchange,
                phase.members,
                phase.schedule,
                ledger=ledger,
                state_dir=folder,
                resume=resume and phase.name in begun,
                jobs=phase.jobs,
                on_step=None if stage is None else lambda round_, site: stage(),
                on_round=on_round,
            )
        )
