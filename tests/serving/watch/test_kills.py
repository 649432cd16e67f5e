"""Killed at random times, a watch loses nothing that it gave and scores nothing twice."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

from fedvad.serving.watch.log import read_log

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks/kills_living.py"


@pytest.mark.slow
def test_twenty_kills_lose_no_row_and_no_image(
    trained: tuple[Path, dict[str, Any]], plants: Path, tmp_path: Path
) -> None:
    watch_kills = run_path(str(SCRIPT))["watch_kills"]
    image = plants / "alder/test/good/000.png"
    assert watch_kills(trained[0], image, tmp_path, kills=20, seed=0) == []
    rows = list(read_log(tmp_path / "out"))
    assert [row["number"] for row in rows] == list(range(1, 169))
