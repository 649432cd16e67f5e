"""Server merge of many simulated sites: seconds and peak memory by number of sites.

    python benchmarks/merge.py [--sites 10,100,1000] [--rows 600] [--dim 384] [--mode kmeans]
                               [--size 2000] [--tree 30]

Each size runs in a process of its own, by the real server: what is measured is taking float16
uploads, merging them and making the message for all sites, and the peak memory of all that.
"theirs" is the previous size's figure continued linearly (memory: above that of a merge of two
sites), so a ratio of 1 or more means that time and memory grow no faster than the sites. With
`--tree N` the sites of N are also merged in two halves, and the halves then, as two regional
servers would: "theirs" is the merge of all at once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from time import perf_counter, process_time

import numpy as np
from common import Clock, Row, clock_of, options, report
from scale import upload

from fedvad.federation.exchange.memory import MemoryExchange
from fedvad.federation.ledger import peak_rss_mb
from fedvad.federation.server import Server
from fedvad.memory.bank import MemoryBank, concatenate
from fedvad.memory.merge import MergeMode, merge_banks


def run(
    sites: list[int],
    *,
    rows: int = 600,
    dim: int = 384,
    mode: MergeMode = "kmeans",
    size: int = 2000,
    tree: int = 0,
    clock: Clock = perf_counter,
) -> list[Row]:
    """Seconds and memory of each number of sites against the one before, and of a tree."""
    shape = {"rows": rows, "dim": dim, "mode": mode, "size": size}
    _, base, _ = apart(2, shape, clock)
    out = []
    before: tuple[int, float, float] | None = None
    for count in sites:
        seconds, peak, merged = apart(count, shape, clock)
        own = max(peak - base, 1.0)
        growth = None if before is None else count / before[0]
        name = f"{count} sites of {rows}, {mode}"
        note = f"{count * rows} rows to {merged}"
        then = None if growth is None or before is None else growth * before[1]
        out.append(Row(f"{name}: time", seconds, then, "s", note))
        then = None if growth is None or before is None else growth * before[2]
        out.append(Row(f"{name}: memory", own, then, "MB", f"{note}; inputs included"))
        before = count, seconds, own
    if tree:
        out += compare_tree(tree, rows, dim, mode, size, clock)
    return out


def apart(count: int, shape: dict[str, object], clock: Clock) -> tuple[float, float, int]:
    """Seconds, peak MB and rows of a merge in a process of its own."""
    flags = [f"--{name}={value}" for name, value in shape.items()]
    if clock is process_time:
        flags.append("--cpu-time")
    command = [sys.executable, __file__, f"--one={count}", *flags]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak, merged = json.loads(done.stdout)
    return seconds, peak, merged


def compare_tree(
    sites: int, rows: int, dim: int, mode: MergeMode, size: int, clock: Clock
) -> list[Row]:
    """A merge of the merges of two halves, against the merge of all."""
    banks = dict(drawn_banks(sites, rows, dim))
    names = sorted(banks)
    every = concatenate([banks[name] for name in names])

    start = clock()
    flat = merge_banks(banks, mode=mode, size=size, seed=0)
    middle = clock()
    halves = {
        str(i): merge_banks({n: banks[n] for n in names[i::2]}, mode=mode, size=size, seed=1 + i)
        for i in range(2)
    }
    deep = merge_banks(halves, mode=mode, size=size, seed=0)
    end = clock()
    if abs(deep.total_weight - every.total_weight) > 1e-6 * every.total_weight:
        raise AssertionError("a tree of merges lost weight")
    name = f"tree of two halves, {sites} sites of {rows}, {mode}"
    (mean, worst), (mean_flat, worst_flat) = (distances(every, bank) for bank in (deep, flat))
    return [
        Row(f"{name}: time", end - middle, middle - start, "s", "total weight is the same"),
        Row(f"{name}: mean squared distance", mean, mean_flat, "of the rows to the merged", ""),
        Row(f"{name}: covering radius", worst, worst_flat, "of the rows by the merged", ""),
    ]


def distances(rows: MemoryBank, merged: MemoryBank) -> tuple[float, float]:
    """Mean squared and largest distance of the rows to the nearest merged one."""
    import torch

    from fedvad.memory.distances import nearest

    squared, _ = nearest(torch.from_numpy(rows.vectors), torch.from_numpy(merged.vectors))
    return float(squared.double().mean()), float(squared.max().sqrt())


def drawn_banks(sites: int, rows: int, dim: int) -> Iterator[tuple[str, MemoryBank]]:
    """Sites share 400 normal modes; each adds its own shift, as real sites do."""
    rng = np.random.default_rng(0)
    modes = 3 * rng.normal(size=(400, dim)).astype(np.float32)
    for i in range(sites):
        shift = 0.3 * rng.normal(size=dim).astype(np.float32)
        noise = rng.normal(size=(rows, dim)).astype(np.float32)
        vectors = modes[rng.integers(0, 400, rows)] + shift + noise
        yield f"{i:05}", MemoryBank.of_patches(vectors)


def measure(sites: int, *, rows: int, dim: int, mode: MergeMode, size: int, clock: Clock) -> None:
    limit = None if mode == "concat" else size
    server = Server(MemoryExchange(features="scale", dim=dim, merge_mode=mode, size=limit))
    server.open(1)
    seconds = 0.0
    for name, bank in drawn_banks(sites, rows, dim):
        message = upload(name, 1, bank).to_bytes()
        start = clock()
        server.receive(name, [message])
        seconds += clock() - start
    start = clock()
    merged = server.close()
    seconds += clock() - start
    print(json.dumps([seconds, peak_rss_mb(), merged.rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", default="10,100,1000")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--mode", default="kmeans", choices=["kmeans", "kcenter", "concat"])
    parser.add_argument("--size", type=int, default=2000)
    parser.add_argument("--tree", type=int, default=0, metavar="SITES")
    options(parser)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = {k: getattr(arguments, k) for k in ("rows", "dim", "mode", "size")}
    if arguments.one:
        measure(arguments.one, **shape, clock=clock_of(arguments))
        return
    sites = [int(count) for count in arguments.sites.split(",")]
    rows = run(sites, **shape, tree=arguments.tree, clock=clock_of(arguments))
    remark = (
        '"theirs" is the previous size continued linearly; for the tree, the merge of all at once.'
    )
    report(rows, "Server merge of many sites", arguments, remark)


if __name__ == "__main__":
    main()
