"""What all verbs share: progress on a terminal, JSON on standard output."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click
import typer

if TYPE_CHECKING:
    from fedvad.features.cache import DescriptorCache
    from fedvad.runs.progress import Progress


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


QUIET = "quiet"  # what the root command leaves for the verbs


def open_cache(root: Path | None, size: str = "20G") -> DescriptorCache:
    """The descriptor cache at `root` or its default place."""
    from fedvad.features.cache import DescriptorCache, default_cache_root, parse_bytes

    return DescriptorCache(root or default_cache_root(), max_bytes=parse_bytes(size))


def numbers(text: str, option: str) -> list[int]:
    """Whole numbers separated by commas; a usage error for anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{option} takes numbers like 0,1,2, not {text!r}") from error


def by_backbone(values: list[str]) -> dict[str, Path]:
    """Files given as NAME=FILE, or FILE for any name (""); a usage error for a name twice."""
    found: dict[str, Path] = {}
    for value in values:
        name, _, file = value.rpartition("=")
        if name in found:
            raise typer.BadParameter(f"--weights {value}: two files for {name or 'all'}, give one")
        found[name] = Path(file)
    return found


def one_line(text: str) -> str:
    """Text that stays on its line: what a name may hold and no terminal shows, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def limit_words(limit: float | None) -> str:
    """A threshold as people read it."""
    return "none" if limit is None else f"{limit:.4g}"


def print_json(value: Any) -> None:
    """One JSON document; NaN and infinity become null."""
    from fedvad.data.sealed import finite

    sys.stdout.write(json.dumps(finite(value), allow_nan=False) + "\n")
    sys.stdout.flush()


def decision(score: float, anomalous: bool | None, threshold: float | None = None) -> str:
    """A score with its decision, and with the threshold where one is given.

    >>> decision(0.512, True, 0.4)
    'ANOMALOUS  0.512 > 0.4'
    """
    verdict = {True: "ANOMALOUS", False: "normal   ", None: "scored   "}[anomalous]
    limit = "" if threshold is None else f" {'>' if anomalous else '<='} {threshold:.4g}"
    return f"{verdict}  {score:.4g}{limit}"


def exit_with_json(asked: bool, value: Any) -> None:
    """Where JSON is asked for, print that and end the command."""
    if asked:
        print_json(value)
        raise typer.Exit


@contextmanager
def showing() -> Iterator[Progress]:
    """Progress on standard error: bars with the time left on a terminal, else a line per stage.

    Nothing with `--quiet`.
    """
    from fedvad.runs.progress import no_progress

    context = click.get_current_context(silent=True)
    if context is not None and context.find_root().obj == QUIET:
        yield no_progress
        return
    if not sys.stderr.isatty():
        with StageLines(lambda line: typer.echo(line, err=True)) as lines:
            yield lines
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    tasks: dict[str, TaskID] = {}
    with Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        # what scripts read must not go through the bars' console, unless both are one terminal
        redirect_stdout=sys.stdout.isatty(),
    ) as bars:

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield update
