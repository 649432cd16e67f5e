"""Coverage-guided fuzzing of what arrives from outside: messages and signed files.

    pip install atheris && python benchmarks/fuzz.py -max_total_time=300 -rss_limit_mb=2048

Everything after the script is libFuzzer's. Only `PayloadError` may come out; anything else, a hang
or too much memory is a finding, and libFuzzer writes the input that makes it. Inputs begin as
valid messages of every codec, which a mutator then changes by bytes or by their header.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fedvad", "safetensors"]):
    import numpy as np

    from fedvad.errors import PayloadError
    from fedvad.federation.codecs import Precision
    from fedvad.federation.payload import Manifest, Payload, bank_arrays, bank_from
    from fedvad.federation.signed import SignedMessage
    from fedvad.memory.bank import MemoryBank

_CODECS: tuple[Precision, ...] = ("float16", "float32", "int8", "pca", "pq")


def one(data: bytes) -> None:
    with contextlib.suppress(PayloadError):
        SignedMessage.parse(data)
    with contextlib.suppress(PayloadError):
        bank_from(Payload.from_bytes(data, max_bytes=1 << 24), max_rows=100_000)


def mutate(data: bytes, limit: int, seed: int) -> bytes:
    """Half of the time some value of the header, which blind changes of bytes mostly break."""
    rng = random.Random(seed)
    length = int.from_bytes(data[:8], "little") if len(data) > 8 else 0
    if rng.random() < 0.5 or not 0 < length <= len(data) - 8:
        return bytes(atheris.Mutate(data, limit))
    try:
        header = json.loads(data[8 : 8 + length])
        name = rng.choice(sorted(header))
        entry = header[name]
        odd = [0, -1, 2**31, 2**63, 1.5, None, "", "F16", "U8", [], [0], [2**40, 2], {}]
        if isinstance(entry, dict) and entry and rng.random() < 0.8:
            entry[rng.choice(sorted(entry))] = rng.choice(odd)
        else:
            header[rng.choice(["vectors", "weights", name])] = rng.choice([entry, *odd])
    except (ValueError, TypeError, AttributeError):
        return bytes(atheris.Mutate(data, limit))
    text = json.dumps(header).encode()
    return (len(text).to_bytes(8, "little") + text + data[8 + length :])[:limit]


def seeds(folder: Path) -> None:
    rng = np.random.default_rng(0)
    manifest = Manifest(kind="upload", site="a", round=1, features="k", n_images=3, n_patches=9)
    for precision in _CODECS:
        bank = MemoryBank.of_patches(rng.random((6, 16), dtype=np.float32))
        data = Payload(manifest, bank_arrays(bank, precision)).to_bytes()
        (folder / precision).write_bytes(data)


def main() -> None:
    with tempfile.TemporaryDirectory() as corpus:
        seeds(Path(corpus))
        arguments = [sys.argv[0], corpus, "-max_len=20000", *sys.argv[1:]]
        atheris.Setup(arguments, one, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
