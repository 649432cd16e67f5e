"""The replay memory: quotas, budget, entries that never change, and its bytes in a file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvad.continual.codecs import CodecConfig, Encoded
from fedvad.continual.memory import ReplayMemory
from fedvad.detectors.artefact import read_arrays, write_arrays
from fedvad.errors import ArtefactError, ConfigError

UINT8 = CodecConfig("uint8", granularity="channel")


def maker(task: int) -> Callable[[Sequence[int]], Iterator[Any]]:
    """Samples whose first value tells the task, and whose second tells which they are."""

    def take(indices: Sequence[int]) -> Iterator[Any]:
        for i in indices:
            sample = np.random.default_rng([task, i]).normal(size=(4, 3, 3)).astype(np.float32)
            sample[0, 0, :2] = task, i
            yield sample

    return take


def filled(memory: ReplayMemory, tasks: int, count: int = 60) -> ReplayMemory:
    for t in range(tasks):
        memory.add(f"task {t}", count, maker(t))
    return memory


def test_each_task_has_its_share_and_the_rest_stays_empty_or_not() -> None:
    memory = filled(ReplayMemory(CodecConfig("float32"), slots=100), 3)
    assert [len(e) for e in memory.tasks.values()] == [33, 33, 33]
    full = filled(ReplayMemory(CodecConfig("float32"), slots=100, remainder="fill"), 3)
    assert [len(e) for e in full.tasks.values()] == [34, 33, 33]
    few = filled(ReplayMemory(CodecConfig("float32"), slots=100), 2, count=7)
    assert [len(e) for e in few.tasks.values()] == [7, 7]


def test_never_more_than_its_slots() -> None:
    memory = ReplayMemory(CodecConfig("float16"), slots=10)
    for t in range(10):
        memory.add(str(t), 30, maker(t))
        assert len(memory) <= 10
    assert all(len(entries) == 1 for entries in memory.tasks.values())


def test_an_entry_is_encoded_once_and_never_changes() -> None:
    memory = ReplayMemory(UINT8, slots=60)
    known: set[str] = set()
    for t in range(5):
        memory.add(f"task {t}", 60, maker(t))
        old = {_digest(e) for task in list(memory.tasks)[:-1] for e in memory.tasks[task]}
        assert old <= known
        known = old | {_digest(e) for e in memory.tasks[f"task {t}"]}
    assert len(memory) == 60


def _digest(entry: Encoded) -> str:
    parts = (entry[name].tobytes() for name in sorted(entry))
    return hashlib.sha256(b"|".join(parts)).hexdigest()


def test_a_budget_holds_whatever_the_slots() -> None:
    one = 4 * 9 + 2 * 4 * 4  # codes and ranges
    memory = filled(ReplayMemory(UINT8, slots=100, budget=20 * one), 3)
    assert memory.nbytes <= 20 * one
    assert [len(e) for e in memory.tasks.values()] in ([7, 7, 6], [6, 7, 7], [7, 6, 7])
    assert memory.peak <= 20 * one
    with pytest.raises(ConfigError, match="no room"):
        filled(ReplayMemory(UINT8, slots=100, budget=2 * one), 3)


def test_the_peak_counts_what_the_codec_learned() -> None:
    codec = CodecConfig("uint8", granularity="calibrated")
    memory = filled(ReplayMemory(codec, slots=40), 2)
    assert memory.nbytes == 40 * 36
    assert memory.codec.nbytes == 2 * 4 * 4
    assert memory.peak == 40 * 36 + 32


def test_draws_are_even_over_tasks_not_over_samples() -> None:
    memory = ReplayMemory(CodecConfig("float32"), slots=100)
    memory.add("many", 60, maker(0))
    memory.add("few", 5, maker(1))
    samples = list(memory.decoded())
    drawn = memory.draw(4000, np.random.default_rng(0))
    counts = Counter(int(samples[i][0, 0, 0]) for i in drawn)
    assert counts[1] == pytest.approx(2000, abs=150)
    assert set(drawn) == set(range(len(memory)))


def test_a_file_takes_the_bytes_that_were_counted_and_gives_the_memory_back(
    tmp_path: Path,
) -> None:
    codec = CodecConfig("uint8", granularity="calibrated")
    memory = filled(ReplayMemory(codec, slots=36), 12)  # two-digit names sort as numbers
    path = tmp_path / "memory.safetensors"
    write_arrays(path, memory.arrays(), {})
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size - 8 - header == memory.nbytes + memory.codec.nbytes
    again = ReplayMemory(codec, slots=36)
    again.restore(read_arrays(path)[0], list(memory.tasks), memory.peak)
    for mine, theirs in zip(memory.decoded(), again.decoded(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert again.peak == memory.peak
    memory.add("next", 60, maker(20))
    again.add("next", 60, maker(20))
    mine, theirs = memory.arrays(), again.arrays()
    assert mine.keys() == theirs.keys()
    assert all((mine[name] == theirs[name]).all() for name in mine)


def test_odd_use_is_refused() -> None:
    for options in ({"slots": 0}, {"budget": 0}, {"remainder": "keep"}):
        with pytest.raises(ConfigError):
            ReplayMemory(UINT8, **options)
    memory = filled(ReplayMemory(UINT8), 1)
    with pytest.raises(ConfigError, match="already"):
        memory.add("task 0", 5, maker(0))
    few = filled(ReplayMemory(UINT8, slots=2), 2)
    with pytest.raises(ConfigError, match="2 slots are too few for 3 tasks"):
        few.add("third", 5, maker(0))
    with pytest.raises(ArtefactError, match="damaged"):
        memory.restore({"entry/4/0/codes": np.zeros(3)}, ["a"], 0)
