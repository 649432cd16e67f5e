"""Killed at any write, a training that goes on gives the same detector to the bit."""

from __future__ import annotations

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
from fedvad.detectors.memory_site import FedDyMemConfig, MemorySite
from fedvad.errors import ArtefactError, ConfigError
from fedvad.federation.exchange.memory import MemoryExchange
from fedvad.federation.ledger import Ledger
from fedvad.federation.runners.inprocess import Schedule, run_rounds
from fedvad.federation.runners.state import load_state
from tests.helpers import FLAGS, OPTIONS, fake_site

NAMES = ("east", "north", "west")


class Killed(BaseException):
    """Stands for kill -9: no handler of errors takes it."""


@contextmanager
def killed_at(write: int, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> Iterator[list[str]]:
    """Die at the k-th replacement of a file, before it counts or right after; yields the names."""
    replace, names = Path.replace, []

    def once(self: Path, target: Path) -> Path:
        names.append(Path(target).name)
        if len(names) == write and not after:
            raise Killed
        done = replace(self, target)
        if len(names) == write:
            raise Killed
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", once)
        yield names


def _rounds(folder: Path | None, *, resume: bool = False, seed: int = 0) -> tuple[bytes, Any]:
    config = FedDyMemConfig(rows=6)
    sites: dict[str, MemorySite] = {name: fake_site(name, config, n=5) for name in NAMES}
    exchange = MemoryExchange(features="k", dim=6, size=12, seed=seed)
    ledger = Ledger(options=f"seed {seed}")
    merged = run_rounds(
        exchange, sites, Schedule(rounds=3), ledger=ledger, state_dir=folder, resume=resume
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
    with killed_at(0, monkeypatch, after=after) as names:
        assert _rounds(tmp_path / "whole") == expected
    assert len(names) == 3 * (1 + 3 + 3 + 1)  # global, server, sites, mark
    for write in range(1, len(names) + 1):
        folder = tmp_path / str(write)
        with killed_at(write, monkeypatch, after=after), pytest.raises(Killed):
            _rounds(folder)
        assert _rounds(folder, resume=True) == expected, f"write {write}: {names[write - 1]}"


def test_rounds_killed_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, deaths = _rounds(None), 0
    while True:
        try:
            with killed_at(9, monkeypatch, after=False):
                found = _rounds(tmp_path, resume=deaths > 0)
            break
        except Killed:
            deaths += 1
    assert found == expected
    assert deaths == 2


class TestAStateThatWasTouched:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Two rounds are complete, the third was killed."""
        with killed_at(20, monkeypatch, after=False), pytest.raises(Killed):
            _rounds(tmp_path / "state")
        state = load_state(tmp_path / "state")
        assert state is not None
        assert state.round == 2
        return tmp_path / "state"

    @pytest.mark.parametrize(
        "name", ["server-0001.safetensors", "site-0002.safetensors", "global.safetensors"]
    )
    def test_a_file_that_is_gone(self, name: str, folder: Path) -> None:
        (folder / "round-0002" / name).unlink()
        with pytest.raises(ArtefactError, match=f"{name} is missing"):
            _rounds(folder, resume=True)

    def test_a_round_that_was_renamed(self, folder: Path) -> None:
        (folder / "round-0002").rename(folder / "round-0001")
        with pytest.raises(ArtefactError, match="renamed"):
            _rounds(folder, resume=True)

    def test_two_files_that_changed_places(self, folder: Path) -> None:
        one, two = (folder / "round-0002" / f"server-000{i}.safetensors" for i in (0, 1))
        data = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(data)
        with pytest.raises(ArtefactError, match="changed"):
            _rounds(folder, resume=True)

    def test_a_file_more_is_not_read(self, folder: Path) -> None:
        shutil.copy(folder / "round-0002/site-0001.safetensors", folder / "round-0002/site-0009.safetensors")  # fmt: skip  # noqa: E501
        assert _rounds(folder, resume=True) == _rounds(None)

    def test_the_state_of_another_run(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match="another configuration"):
            _rounds(folder, resume=True, seed=1)

    def test_a_mark_that_is_gone_begins_at_the_beginning(self, folder: Path) -> None:
        (folder / "round-0002" / "complete.json").unlink()
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
