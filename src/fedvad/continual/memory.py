"""The replay memory: a bounded number of samples of every task seen, each encoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedvad.continual.codecs import Codec, CodecConfig, Encoded, nbytes
from fedvad.errors import ArtefactError, ConfigError

Array = npt.NDArray[Any]
Remainder = Literal["drop", "fill"]


class ReplayMemory:
    """At most `slots` samples, as many of each task, within `budget` bytes (None: no bound).

    After k tasks each keeps slots // k samples, chosen at random; `remainder` fill gives the
    slots left over to the first tasks, drop leaves them empty. When a task comes, entries of the
    others are dropped; those that stay are the very bytes they were, never encoded again. The
    budget counts the entries and what the codec learned. peak: the largest it ever was.
    """

    def __init__(
        self,
        codec: CodecConfig,
        *,
        slots: int = 100,
        budget: int | None = None,
        remainder: Remainder = "drop",
        seed: int = 0,
    ) -> None:
        if slots < 1 or (budget is not None and budget < 1):
            raise ConfigError("a replay memory needs at least one slot, and a positive budget")
        if remainder not in ("drop", "fill"):
            raise ConfigError(f"remainder is drop or fill, not {remainder!r}")
        self.codec = Codec(codec)
        self.slots = slots
        self.budget = budget
        self.remainder = remainder
        self.seed = seed
        self.tasks: dict[str, list[Encoded]] = {}
        self.peak = 0

    def __len__(self) -> int:
        return sum(map(len, self.tasks.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of the entries."""
        return sum(nbytes(entry) for entries in self.tasks.values() for entry in entries)

    def quotas(self, tasks: int) -> list[int]:
        """Samples that each of this many tasks may keep, in the order in which they came."""
        share, left = divmod(self.slots, tasks)
        extra = left if self.remainder == "fill" else 0
        return [share + (i < extra) for i in range(tasks)]

    def add(self, task: str, count: int, take: Callable[[Sequence[int]], Iterator[Array]]) -> None:
        """Keep samples of a new task of `count`; `take` gives those at the indices chosen.

        Raises `ConfigError` for a task it has already, or when slots or budget have no room for
        one sample of each task.
        """
        if task in self.tasks:
            raise ConfigError(f"task {task!r} is in the memory already: names must be distinct")
        quotas = self.quotas(len(self.tasks) + 1)
        if not quotas[-1]:
            raise ConfigError(f"{self.slots} slots are too few for {len(quotas)} tasks: raise them")
        rng = np.random.default_rng([self.seed, len(self.tasks)])
        chosen = rng.permutation(count)[: quotas[-1]]
        samples = list(take(np.sort(chosen).tolist()))
        self.codec.fit(samples, seed=self.seed)
        for entries, quota in zip(self.tasks.values(), quotas[:-1], strict=True):
            _thin(entries, quota, rng)
        self.tasks[task] = [self.codec.encode(sample) for sample in samples]
        self._keep_budget(rng)
        self.peak = max(self.peak, self.nbytes + self.codec.nbytes)

    def decoded(self) -> Iterator[Array]:
        """Every sample, task by task in the order in which they came."""
        for entries in self.tasks.values():
            yield from (self.codec.decode(entry) for entry in entries)

    def draw(self, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Positions in `decoded` of `count` samples: each from a task drawn evenly."""
        sizes = np.array([len(entries) for entries in self.tasks.values()])
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        filled = np.flatnonzero(sizes)
        tasks = rng.choice(filled, count)
        positions: npt.NDArray[np.int64] = starts[tasks] + (
            rng.random(count) * sizes[tasks]
        ).astype(np.int64)
        return positions

    def arrays(self) -> dict[str, Array]:
        """Everything kept, by names that `restore` understands; the same bytes as counted."""
        named = {f"codec/{name}": array for name, array in self.codec.learned.items()}
        for t, entries in enumerate(self.tasks.values()):
            for i, entry in enumerate(entries):
                named |= {f"entry/{t}/{i}/{name}": array for name, array in entry.items()}
        return named

    def restore(self, arrays: dict[str, Array], tasks: Sequence[str], peak: int) -> None:
        """Continue from what `arrays` gave; raises `ArtefactError` for anything else."""
        self.tasks = {task: [] for task in tasks}
        order = list(self.tasks.values())
        self.codec.learned = {}
        self.codec.fitted = bool(tasks)
        self.peak = peak
        try:
            for name in sorted(arrays, key=_place):
                kind, *rest = name.split("/")
                if kind == "codec":
                    self.codec.learned[rest[0]] = arrays[name]
                    continue
                entries, i = order[int(rest[0])], int(rest[1])
                if i == len(entries):
                    entries.append({})
                entries[i][rest[2]] = arrays[name]
        except (ValueError, IndexError) as error:
            raise ArtefactError(f"damaged replay memory: {error}") from error

    def _keep_budget(self, rng: np.random.Generator) -> None:
        if self.budget is None:
            return
        while self.nbytes + self.codec.nbytes > self.budget:
            largest = max(self.tasks.values(), key=len)
            if len(largest) <= 1:
                raise ConfigError(
                    f"a memory of {self.budget} bytes has no room for one sample of each of "
                    f"{len(self.tasks)} tasks: raise the budget or take a smaller codec"
                )
            _thin(largest, len(largest) - 1, rng)


def _thin(entries: list[Encoded], quota: int, rng: np.random.Generator) -> None:
    if len(entries) > quota:
        kept = np.sort(rng.permutation(len(entries))[:quota])
        entries[:] = [entries[i] for i in kept]


def _place(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split("/") if part.isdigit())
