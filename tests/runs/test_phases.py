"""Phases that were interrupted continue where the last complete round was."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.inprocess import Schedule
from fedvad.federation.payload import Manifest, Payload
from fedvad.runs import phases
from fedvad.runs.phases import Phase, run_phases


def test_a_phase_killed_before_its_first_state_leaves_the_ledger_to_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "amplifier/round-0002").mkdir(parents=True)
    (tmp_path / "amplifier/round-0002/complete.json").touch()
    (tmp_path / "student/round-0003").mkdir(parents=True)  # its files, and no mark
    manifest = Manifest(kind="global", round=1, features="key", n_images=1, n_patches=1)
    merged, asked = Payload(manifest, {}), {}

    def rounds(*_: Any, state_dir: Path, resume: bool, **__: Any) -> Payload:
        asked[state_dir.name] = resume
        return merged

    monkeypatch.setattr(phases, "run_rounds", rounds)
    monkeypatch.setattr(phases, "load_state", lambda folder: SimpleNamespace(merged=merged))
    names = ["amplifier", "student"]
    nothing: Any = None
    run_phases(
        [Phase(name, nothing, {}, Schedule(1), lambda given: None) for name in names],
        names, ledger=Ledger(), state_dir=tmp_path, resume=True,
    )  # fmt: skip
    assert asked == {"amplifier": True, "student": False}
