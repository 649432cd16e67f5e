"""The simulation of `benchmarks/scale.py`, on drawn patches: a script's folder is no package."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path

import numpy as np
import pytest

SCRIPT = run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "scale.py"))


@pytest.mark.parametrize("robust", [True, False])
def test_a_tree_of_a_hundred_sites_learns_what_is_normal_and_not_what_liars_say(
    robust: bool,
) -> None:
    rng = np.random.default_rng(0)
    modes = 3 * rng.normal(size=(5, 12))
    wrong = 9 * rng.normal(size=12)
    normal = [
        (modes[rng.integers(0, 5, 40)] + 0.3 * rng.normal(size=(40, 12))).astype(np.float32)
        for _ in range(30)
    ]
    defects = [(wrong + 0.3 * rng.normal(size=(40, 12))).astype(np.float32) for _ in range(5)]
    bank, reported = SCRIPT["simulate"](
        normal, defects, sites=100, region=10, rows=8, sizes=(40, 200), robust=robust
    )
    assert reported["sites"] == 100
    assert reported["up_mb"] > reported["regions_up_mb"] > 0
    near = np.linalg.norm(bank.vectors - modes[:, None], axis=2).min(axis=1)
    assert near.max() < 2  # every normal mode is remembered, though sites come and go
    taught = (np.linalg.norm(bank.vectors - wrong, axis=1) < 3).mean()
    assert taught < 0.02 if robust else taught > 0.1
