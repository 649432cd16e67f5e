"""Resumable cells: what is kept is found again, and nothing else is believed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fedvad.detectors.artefact import write_arrays
from fedvad.errors import ArtefactError
from fedvad.experiments.store import Cell, cell_path

IDENTITY = {"seed": 0, "options": {"rounds": 2}}


def test_what_was_kept_is_loaded_under_the_same_identity_only(tmp_path: Path) -> None:
    cell = Cell(tmp_path / "cells" / "a.safetensors", IDENTITY)
    assert cell.load() is None
    kept = cell.keep({"auroc": 0.5, "curve": [1, math.nan]}, {"rows": np.arange(3.0)})
    assert kept.record == {"auroc": 0.5, "curve": [1, None]}
    again = Cell(cell.path, {"options": {"rounds": 2}, "seed": 0}).load()
    assert again is not None
    assert again.record == kept.record
    assert again.arrays["rows"].tolist() == [0, 1, 2]
    other = Cell(cell.path, IDENTITY | {"seed": 1, "version": "2"})
    assert other.load() is None
    stored = other.read()
    assert stored is not None
    assert other.differences(stored) == ["seed", "version"]


@pytest.mark.parametrize("place", [10, -1])
def test_one_flipped_bit_starts_the_work_over(
    tmp_path: Path, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    cell = Cell(tmp_path / "a.safetensors", IDENTITY)
    cell.keep({"done": 3}, {"rows": np.arange(3.0)})
    data = bytearray(cell.path.read_bytes())
    data[place] ^= 1
    cell.path.write_bytes(data)
    assert cell.load() is None
    assert "starting from the beginning" in caplog.text


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    cell = Cell(tmp_path / "a.safetensors", IDENTITY)
    write_arrays(cell.path, {}, {"kind": "detector"})
    with pytest.raises(ArtefactError, match="does not hold the state"):
        cell.read()
    for values in ({"identity": IDENTITY}, {"identity": 3, "record": {}}):
        write_arrays(cell.path, {}, {"kind": "cell", **values})
        with pytest.raises(ArtefactError):
            cell.read()


def test_two_cells_never_share_a_file() -> None:
    names = {cell_path(Path(), *parts) for parts in (("a b", 1), ("a-b", 1), ("a", "b-1"))}
    assert len(names) == 3
