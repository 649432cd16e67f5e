"""Rows in memory and on disk are the same rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedvad.detectors.student.store import RowStore
from fedvad.errors import DataError, StorageError

ROWS = np.random.default_rng(0).normal(size=(7, 3, 2)).astype(np.float16)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders appear."""
    folder = tmp_path / "disk"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.parametrize("budget", [ROWS.nbytes, ROWS.nbytes - 1])
def test_rows_come_back_in_any_order(budget: int, disk: Path) -> None:
    store = RowStore(7, (3, 2), np.float16, budget=budget)
    assert store.on_disk == (budget < ROWS.nbytes) == bool(list(disk.iterdir()))
    for rows in np.split(ROWS, [1, 4]):
        store.append(rows)
    assert len(store) == 7
    np.testing.assert_array_equal(store.take([6, 0, 0, 3]), ROWS[[6, 0, 0, 3]])
    taken = store.take(np.array([1]))
    taken[:] = 0  # a copy
    np.testing.assert_array_equal(store.take([1]), ROWS[[1]])
    store.close()
    assert len(store) == 0
    assert not list(disk.iterdir())


def test_rows_can_be_taken_while_others_are_still_to_come(disk: Path) -> None:
    store = RowStore(7, (3, 2), np.float16, budget=0)
    store.append(ROWS[:2])
    np.testing.assert_array_equal(store.take([1]), ROWS[[1]])
    store.append(ROWS[2:])
    np.testing.assert_array_equal(store.take([6, 1]), ROWS[[6, 1]])


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_an_index_beyond_what_was_appended_is_an_error(budget: int, disk: Path) -> None:
    store = RowStore(7, (3, 2), np.float16, budget=budget)
    store.append(ROWS[:2])
    with pytest.raises(IndexError):
        store.take([2])


def test_what_does_not_fit_is_refused(disk: Path) -> None:
    store = RowStore(2, (3, 2), np.float16, budget=0)
    for rows in (ROWS[:3], ROWS[:1].astype(np.float32), ROWS[:1, :2]):
        with pytest.raises(DataError, match="do not fit"):
            store.append(rows)


def test_a_full_disk_is_an_error_with_a_way_out(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RowStore(7, (3, 2), np.float16, budget=0)

    class Full:
        name = "rows"

        def write(self, _: bytes) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_file", Full())
    with pytest.raises(StorageError, match="TMPDIR"):
        store.append(ROWS)
