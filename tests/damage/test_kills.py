"""Killed at any write, a training that goes on gives the same detector to the bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedvad
from fedvad.detectors.memory.site import FedDyMemConfig, MemorySite
from fedvad.errors import ArtefactError, ConfigError
from fedvad.federation.exchange.memory import MemoryExchange
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.inprocess import Schedule, run_rounds
from fedvad.federation.mailboxes.state import load_state
from tests.helpers import FLAGS, OPTIONS, fake_site

NAMES = ("east", "west")


class Killed(BaseException):
    """Stands for kill -9: no handler of errors takes it."""


@contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> Iterator[list[str]]:
    """Die at the k-th file that is replaced or removed, just before or right after that.

    Yields what was done to which file. Not counted: the cache, and what a process does to its own
    unfinished files and its lock, which a killed one leaves.
    """
    replace, unlink, steps = Path.replace, os.unlink, []

    def dies(what: str, now: bool) -> None:
        if now == after and len(steps) == step and not what.endswith((".tmp", ".lock")):
            raise Killed

    def replaced(self: Path, target: Path) -> Path:
        if target.suffix == ".npy":
            return replace(self, target)
        steps.append(f"write {target.name}")
        dies(steps[-1], False)
        done = replace(self, target)
        dies(steps[-1], True)
        return done

    def removed(path: Any, **options: Any) -> None:
        name = Path(path).name
        if name.endswith((".tmp", ".lock")) or (not os.path.lexists(path) and not options):
            return unlink(path, **options)
        steps.append(f"remove {name}")
        dies(steps[-1], False)
        unlink(path, **options)
        dies(steps[-1], True)
        return None

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replaced)
        patch.setattr(os, "unlink", removed)
        yield steps


def _rounds(folder: Path | None, *, resume: bool = False, seed: int = 0) -> tuple[bytes, Any]:
    config = FedDyMemConfig(rows=6)
    sites: dict[str, MemorySite] = {name: fake_site(name, config, n=5) for name in NAMES}
    exchange = MemoryExchange(features="k", dim=6, size=12, seed=seed)
    ledger = Ledger(options=f"seed {seed}")
    merged = run_rounds(
        exchange, sites, Schedule(rounds=2), ledger=ledger, state_dir=folder, resume=resume
    )
    kept = {
        name: {k: np.asarray(a).tobytes() for k, a in site.snapshot().items()}
        for name, site in sites.items()
    }
    return merged.to_bytes(), kept


@pytest.mark.parametrize("after", [False, True], ids=["before it counts", "right after"])
def test_rounds_killed_at_every_write(
    after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _rounds(None)
    with killed_at(0, monkeypatch, after=after) as steps:
        assert _rounds(tmp_path / "whole") == expected
    files = (
        1 + 2 + 2 + 1
    )  # global, server, sites, mark: all written, those of the first round removed
    assert len(steps) == 2 * files + files
    for step in range(1, len(steps) + 1):
        folder = tmp_path / str(step)
        with killed_at(step, monkeypatch, after=after), pytest.raises(Killed):
            _rounds(folder)
        assert _rounds(folder, resume=True) == expected, f"step {step}: {steps[step - 1]}"


@pytest.mark.slow
def test_a_training_killed_at_every_write(
    plants: Path,
    shared_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of `train` but its pictures: no step leaves what a resume takes for something else."""
    for name in ("contact_sheet", "_write_report"):
        monkeypatch.setattr(f"fedvad.verbs.outputs.{name}", lambda *a, **k: None)
    for site in ("alder", "birch"):
        shutil.copytree(plants / site, tmp_path / "plants" / site)
    few = {"method": "feddymem-trained", "upload_rows": 20, "memory_rows": 20, "rounds": 1}
    options = {**OPTIONS, **few, "cache": shared_cache, "compare": "local"}
    with killed_at(0, monkeypatch, after=False) as steps:
        whole = fedvad.train(tmp_path / "plants", tmp_path / "whole", **options)
    expected = (tmp_path / "whole" / "detector.safetensors").read_bytes()
    # config, 6 of the state, detector, results, ledger, 4 tables, 6 removed
    assert len(steps) == 20
    for step in range(1, len(steps) + 1):
        out = tmp_path / str(step)
        with killed_at(step, monkeypatch, after=step % 2 == 0), pytest.raises(Killed):
            fedvad.train(tmp_path / "plants", out, **options)
        again = fedvad.train(tmp_path / "plants", out, resume=True, **options)
        assert (out / "detector.safetensors").read_bytes() == expected, steps[step - 1]
        assert again["image_auroc"] == whole["image_auroc"]
        assert again["compare"] == whole["compare"]
        assert not (out / "state").exists()
        shutil.rmtree(out)


def test_more_comparisons_are_made_even_after_a_kill(
    plants: Path, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration knew of them already, the results did not."""
    for name in ("contact_sheet", "_write_report"):
        monkeypatch.setattr(f"fedvad.verbs.outputs.{name}", lambda *a, **k: None)
    out, options = tmp_path / "run", {**OPTIONS, "cache": shared_cache}
    fedvad.train(plants, out, **options)
    with killed_at(1, monkeypatch, after=True) as steps, pytest.raises(Killed):
        fedvad.train(plants, out, resume=True, compare="local", **options)
    assert steps == ["write config.json"]
    more = fedvad.train(plants, out, resume=True, compare="local", **options)
    assert set(more["compare"]) == {"local"}


def test_rounds_killed_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, deaths = _rounds(None), 0
    while True:
        try:
            with killed_at(8, monkeypatch, after=False):
                found = _rounds(tmp_path, resume=deaths > 0)
            break
        except Killed:
            deaths += 1
    assert found == expected
    assert deaths == 2


class TestAStateThatWasTouched:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The first round is complete, the second was killed."""
        with killed_at(9, monkeypatch, after=False), pytest.raises(Killed):
            _rounds(tmp_path / "state")
        state = load_state(tmp_path / "state")
        assert state is not None
        assert state.round == 1
        return tmp_path / "state"

    @pytest.mark.parametrize(
        "name", ["server-0001.safetensors", "site-0001.safetensors", "global.safetensors"]
    )
    def test_a_file_that_is_gone(self, name: str, folder: Path) -> None:
        (folder / "round-0001" / name).unlink()
        with pytest.raises(ArtefactError, match=f"{name} is missing"):
            _rounds(folder, resume=True)

    def test_a_round_that_was_renamed(self, folder: Path) -> None:
        (folder / "round-0001").rename(folder / "round-0009")
        with pytest.raises(ArtefactError, match="renamed"):
            _rounds(folder, resume=True)

    def test_two_files_that_changed_places(self, folder: Path) -> None:
        one, two = (folder / "round-0001" / f"server-000{i}.safetensors" for i in (0, 1))
        data = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(data)
        with pytest.raises(ArtefactError, match="changed"):
            _rounds(folder, resume=True)

    def test_a_file_more_is_not_read(self, folder: Path) -> None:
        shutil.copy(folder / "round-0001/site-0001.safetensors", folder / "round-0001/site-0009.safetensors")  # fmt: skip  # noqa: E501
        assert _rounds(folder, resume=True) == _rounds(None)

    def test_the_state_of_another_run(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match="another configuration"):
            _rounds(folder, resume=True, seed=1)

    def test_a_mark_that_is_gone_begins_at_the_beginning(self, folder: Path) -> None:
        (folder / "round-0001" / "complete.json").unlink()
        assert _rounds(folder, resume=True) == _rounds(None)


@pytest.mark.slow
def test_a_process_killed_at_any_time_goes_on_to_the_same_detector(
    plants: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """SIGKILL of a real process at six times, each followed by --resume until it is done."""
    expected = (trained[0] / "detector.safetensors").read_bytes()
    out, cache = tmp_path / "run", tmp_path / "cache"
    command = [
        sys.executable, "-m", "fedvad", "train", str(plants), "--out", str(out), *FLAGS,
        "--cache", str(cache), "--resume",
    ]  # fmt: skip
    for seconds in (2.0, 2.5, 3.0, 3.5, 4.0, 4.5):
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(seconds)
            process.kill()
    fedvad.train(plants, out, cache=cache, resume=True, **OPTIONS)
    assert (out / "detector.safetensors").read_bytes() == expected
    assert not list(out.rglob(".*"))
