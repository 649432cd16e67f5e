"""How long work tells where it stands, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable

# called with (stage, done, total)
Progress = Callable[[str, int, int], None]


def no_progress(stage: str, done: int, total: int) -> None:
    """The progress of nobody."""


class Stage:
    """A counted stretch of work; call it once per unit done."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self._progress = progress
        self._name = name
        self._total = total
        self._done = 0
        progress(name, 0, total)

    def __call__(self) -> None:
        self._done += 1
        self._progress(self._name, self._done, self._total)
