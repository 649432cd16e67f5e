"""Server merge of many simulated sites: seconds and peak memory by number of sites.

    python benchmarks/merge.py [--sites 10,100,1000] [--rows 600] [--dim 384] [--mode kmeans]

Each size runs in a process of its own, so that peak memory is that of the merge and its inputs.
Prints a Markdown table; both columns should grow linearly.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from time import perf_counter

import numpy as np

from fedvad.federation.ledger import peak_rss_mb
from fedvad.memory.bank import MemoryBank
from fedvad.memory.merge import MergeMode, merge_banks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", default="10,100,1000")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--mode", default="kmeans", choices=["kmeans", "kcenter", "concat"])
    parser.add_argument("--size", type=int, default=2000)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments.one, arguments.rows, arguments.dim, arguments.mode, arguments.size)
        return
    print("| sites | rows sent | merged rows | seconds | peak MB, inputs included |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for sites in arguments.sites.split(","):
        same = [f"--{k}={getattr(arguments, k)}" for k in ("rows", "dim", "mode", "size")]
        subprocess.run([sys.executable, __file__, f"--one={sites}", *same], check=True)


def measure(sites: int, rows: int, dim: int, mode: MergeMode, size: int) -> None:
    """Sites share 400 normal modes; each adds its own shift, as real sites do."""
    rng = np.random.default_rng(0)
    modes = 3 * rng.normal(size=(400, dim)).astype(np.float32)
    banks = {}
    for i in range(sites):
        shift = 0.3 * rng.normal(size=dim).astype(np.float32)
        noise = rng.normal(size=(rows, dim)).astype(np.float32)
        banks[f"{i:05}"] = MemoryBank.of_patches(modes[rng.integers(0, 400, rows)] + shift + noise)
    start = perf_counter()
    merged = merge_banks(banks, mode=mode, size=size, seed=0)
    seconds = perf_counter() - start
    cells = [sites, sites * rows, len(merged), f"{seconds:.1f}", f"{peak_rss_mb():.0f}"]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
