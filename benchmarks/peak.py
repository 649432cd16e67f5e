"""The peak memory of a block of code, as scripts here measure it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Peak:
    """Largest number of bytes above those in use at the start; known when the block has ended."""

    bytes: int = 0


@contextmanager
def peak_memory(device: str = "cpu", *, interval: float = 0.002) -> Iterator[Peak]:
    """Measure the block's peak memory: exactly on CUDA, by sampling the process on the CPU.

    On the CPU it is the growth of the resident set, read every `interval` seconds: allocators keep
    what was freed, so measure what is to be compared in processes of their own.
    """
    peak = Peak()
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    import psutil

    process = psutil.Process()
    start = process.memory_info().rss
    done = threading.Event()

    def sample() -> None:
        while not done.wait(interval):
            peak.bytes = max(peak.bytes, process.memory_info().rss - start)

    thread = threading.Thread(target=sample, name="fedvad-memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak.bytes = max(peak.bytes, process.memory_info().rss - start)
