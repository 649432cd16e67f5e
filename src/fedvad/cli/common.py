"""What all verbs share: progress on a terminal, JSON on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import typer

if TYPE_CHECKING:
    from fedvad.features.cache import DescriptorCache
    from fedvad.runs.progress import Progress

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
            raise typer.BadParameter(f"--weights {value}: a file for {name or 'all'} twice")
        found[name] = Path(file)
    return found


def limit_words(limit: float | None) -> str:
    """A threshold as people read it."""
    return "none" if limit is None else f"{limit:.4g}"


def print_json(value: Any) -> None:
    """One JSON document; NaN and infinity become null."""
    from fedvad.data.sealed import finite

    sys.stdout.write(json.dumps(finite(value), allow_nan=False) + "\n")
    sys.stdout.flush()


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
        from fedvad.cli.lines import StageLines

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
