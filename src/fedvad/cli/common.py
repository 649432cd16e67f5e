"""What all verbs share: options, progress on a terminal, JSON on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from fedvad.features.cache import DescriptorCache
    from fedvad.pipeline.progress import Progress

__all__ = [
    "CacheOption",
    "CacheSizeOption",
    "DefectOption",
    "GoodOption",
    "JsonOption",
    "MaxPixelsOption",
    "ReferenceOption",
    "RunArgument",
    "SiteOption",
    "WeightsOption",
    "by_backbone",
    "check_reference",
    "numbers",
    "open_cache",
    "print_json",
    "showing",
]

CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Descriptor cache folder (default: FEDVAD_CACHE, else the user's cache folder).",
        show_default=False,
    ),
]
CacheSizeOption = Annotated[
    str, typer.Option("--cache-size", help="Byte budget of the cache, for example 20G.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print exactly one JSON document on standard output.")
]
GoodOption = Annotated[
    list[str] | None,
    typer.Option(
        "--good",
        metavar="NAME",
        help="Folder name that means normal images, beyond good; may be repeated.",
        show_default=False,
    ),
]
DefectOption = Annotated[
    list[str] | None,
    typer.Option(
        "--defect",
        metavar="NAME",
        help="Folder name that means defects though it sounds normal; may be repeated.",
        show_default=False,
    ),
]
RunArgument = Annotated[Path, typer.Argument(help="Run folder.")]
SiteOption = Annotated[
    str | None, typer.Option(help="Whose generator and threshold to use.", show_default=False)
]
ReferenceOption = Annotated[
    str | None,
    typer.Option(help="global, local or union [default: the run's]", show_default=False),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="Backbone weights (safetensors); none for fedvad-tiny and filterbank.",
        show_default=False,
    ),
]


MaxPixelsOption = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        help="Pixels of an image at most; larger ones count as unreadable [default: 100000000, "
        "or that of the run]",
        show_default=False,
    ),
]


def open_cache(root: Path | None, size: str = "20G") -> DescriptorCache:
    """The descriptor cache at `root` or its default place."""
    from fedvad.features.cache import DescriptorCache, default_cache_root, parse_bytes

    return DescriptorCache(root or default_cache_root(), max_bytes=parse_bytes(size))


def check_reference(reference: str | None) -> Any:
    """A reference set's name; a usage error for anything else."""
    if reference not in (None, "global", "local", "union"):
        raise typer.BadParameter(f"--reference is global, local or union, not {reference!r}")
    return cast(Any, reference)


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


def print_json(value: Any) -> None:
    """One JSON document; NaN and infinity become null."""
    from fedvad.pipeline.run_folder import finite

    sys.stdout.write(json.dumps(finite(value), allow_nan=False) + "\n")
    sys.stdout.flush()


@contextmanager
def showing() -> Iterator[Progress]:
    """Progress bars with time left on standard error; nothing when that is not a terminal."""
    from fedvad.pipeline.progress import silent

    if not sys.stderr.isatty():
        yield silent
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
