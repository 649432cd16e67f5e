"""The measurement of `benchmarks/peak.py`: a script's folder is no package."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
peak_memory = run_path(str(ROOT / "benchmarks" / "peak.py"))["peak_memory"]


def test_peak_memory_sees_a_large_array_come_and_go() -> None:
    # in a process of its own: a large one may have as much memory to spare
    code = "from tests.test_peak import check_a_large_array as check; check()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def check_a_large_array() -> None:
    """Of 64 MB that come and go, and 96 MB that stay."""
    before = threading.active_count()
    with peak_memory() as peak:
        block = np.ones(64 << 20, np.uint8)
        deadline = time.monotonic() + 30
        while peak.bytes < 60 << 20 and time.monotonic() < deadline:
            time.sleep(0.001)
        del block
    assert peak.bytes >= 60 << 20
    with peak_memory() as kept:
        block = np.ones(96 << 20, np.uint8)
    assert kept.bytes >= 90 << 20
    assert block.nbytes == 96 << 20
    assert threading.active_count() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_peak_memory_on_cuda_counts_the_allocator() -> None:
    with peak_memory("cuda") as peak:
        torch.ones(1 << 20, device="cuda")
    assert peak.bytes >= 4 << 20
