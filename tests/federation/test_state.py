"""State on disk: complete rounds count, anything else does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedvad.errors import ArtefactError, StorageError
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.state import RunState, clear_state, load_state, save_state
from fedvad.memory.bank import MemoryBank
from tests.helpers import make_bank, upload


def _state(round_: int) -> RunState:
    rng = np.random.default_rng(round_)
    banks = {
        "a": make_bank(3),
        "Werk 2 ü": make_bank(4, seed=2),
        "never drawn": MemoryBank.empty(6),
    }
    sites = {
        name: {"vectors": bank.vectors, "weights": bank.weights, "spread": bank.spread}
        for name, bank in banks.items()
    }
    sites["Werk 2 ü"]["generator/weight"] = rng.normal(size=(6, 6)).astype(np.float32)
    return RunState(
        round=round_,
        merged=upload(kind="global", site="", round_=round_),
        server={"a": upload("a", round_), "Werk 2 ü": upload("Werk 2 ü", round_)},
        sites=sites,
        ledger=Ledger(seconds={"local": float(round_)}),
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    state = _state(3)
    save_state(tmp_path, state)
    again = load_state(tmp_path)
    assert again is not None
    assert again.round == 3
    assert again.ledger == state.ledger
    assert again.merged.to_bytes() == state.merged.to_bytes()
    assert {k: v.to_bytes() for k, v in again.server.items()} == {
        k: v.to_bytes() for k, v in state.server.items()
    }
    assert set(again.sites) == set(state.sites)
    for name, arrays in state.sites.items():
        assert set(again.sites[name]) == set(arrays)
        for key, array in arrays.items():
            np.testing.assert_array_equal(again.sites[name][key], array)


def test_only_the_newest_complete_round_stays(tmp_path: Path) -> None:
    for round_ in (1, 2, 11):
        save_state(tmp_path, _state(round_))
    assert [p.name for p in tmp_path.iterdir()] == ["round-0011"]
    again = load_state(tmp_path)
    assert again is not None
    assert again.round == 11


def test_no_state_is_none(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    assert load_state(tmp_path / "missing") is None


def test_clearing_removes_everything(tmp_path: Path) -> None:
    save_state(tmp_path / "state", _state(1))
    clear_state(tmp_path / "state")
    assert not (tmp_path / "state").exists()
    clear_state(tmp_path / "state")


@pytest.mark.parametrize("writes", range(8))
def test_a_disk_that_fills_at_any_write_leaves_the_last_round(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what kill -9 leaves: the files written before, and no mark."""
    save_state(tmp_path, _state(1))
    count = 0

    def full(fd: int) -> None:
        nonlocal count
        count += 1
        if count > writes:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    if writes < 7:  # 1 global, 2 of the server, 3 sites, the mark
        with pytest.raises(StorageError):
            save_state(tmp_path, _state(2))
    else:
        save_state(tmp_path, _state(2))
    again = load_state(tmp_path)
    assert again is not None
    assert again.round == (1 if writes < 7 else 2)
    assert len(again.sites) == 3
    monkeypatch.undo()
    save_state(tmp_path, _state(2))
    assert [p.name for p in tmp_path.iterdir()] == ["round-0002"]


@pytest.mark.parametrize(
    "name",
    ["complete.json", "global.safetensors", "server-0001.safetensors", "site-0002.safetensors"],
)
@pytest.mark.parametrize("how", ["empty", "cut", "foreign"])
def test_damage_is_reported(name: str, how: str, tmp_path: Path) -> None:
    save_state(tmp_path, _state(2))
    file = tmp_path / "round-0002" / name
    data = file.read_bytes()
    file.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "foreign": b"PK" * 50}[how])
    with pytest.raises(ArtefactError, match="round-0002"):
        load_state(tmp_path)


def test_a_lost_global_memory_is_reported(tmp_path: Path) -> None:
    save_state(tmp_path, _state(2))
    (tmp_path / "round-0002" / "global.safetensors").unlink()
    with pytest.raises(ArtefactError, match="round-0002"):
        load_state(tmp_path)
