"""One bit of a file turned over, at places that a seed chooses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

FLIPS = 100


def flipped(path: Path, *, count: int = FLIPS, seed: int = 0) -> Iterator[int]:
    """Turn one bit of a file after another, `count` times, and put each back; yields its place."""
    good = path.read_bytes()
    rng = np.random.default_rng([seed, len(good)])
    try:
        for place in rng.choice(8 * len(good), min(count, 8 * len(good)), replace=False).tolist():
            bad = bytearray(good)
            bad[place // 8] ^= 1 << (place % 8)
            path.write_bytes(bad)
            yield place
    finally:
        path.write_bytes(good)
