"""Progress without a terminal: a line per stage with the time, and signs of life between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

_HEARTBEAT = 15.0  # seconds without a line, while there is work
# what the stages count; others count steps
_UNITS = {
    "features": "images",
    "scoring": "images",
    "thresholds": "image scores",
    "rounds": "uploads",
    "drawing": "pictures",
    "tasks": "tasks",
    "cells": "cells",
    "reading": "images",
}


class StageLines:
    """Progress that writes lines such as "12:03:04 features: 120 images, 34 s".

    One when a stage is complete, and one every 15 seconds while none is. Use it as a context
    manager: the signs of life come from a thread of its own, so that a long step gives them, too.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        heartbeat: float = _HEARTBEAT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._heartbeat = heartbeat
        self._clock = clock
        self._begun: dict[str, float] = {}
        self._running: tuple[str, int, int] | None = None
        self._spoke = clock()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="fedvad-progress", daemon=True)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """See `Progress`."""
        with self._lock:
            if done == 0 or stage not in self._begun:
                self._begun[stage] = self._clock()
            if done < total or not total:
                self._running = (stage, done, total) if total else self._running
                return
            self._running = None
            unit = _UNITS.get(stage.split()[0], "steps")
            count = f"{total} {unit[:-1] if total == 1 else unit}, "
            # one step of no known kind is no count
            self._say(f"{stage}: {'' if count == '1 step, ' else count}{self._took(stage)}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def beat(self) -> None:
        """Say where the work stands, if nothing was said for long."""
        with self._lock:
            if self._clock() - self._spoke < self._heartbeat:
                return
            if self._running is None:
                self._say("still working")
                return
            stage, done, total = self._running
            count = f"{done} of {total}, " if total > 1 else ""
            self._say(f"{stage}: {count}{self._took(stage)} so far")

    def _beat(self) -> None:
        while not self._over.wait(min(1.0, self._heartbeat)):
            self.beat()

    def _took(self, stage: str) -> str:
        return f"{self._clock() - self._begun[stage]:.0f} s"

    def _say(self, text: str) -> None:
        self._spoke = self._clock()
        self._write(f"{time.strftime('%H:%M:%S')} {text}")
