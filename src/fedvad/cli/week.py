"""`fedvad week`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json


def week(
    folder: Annotated[Path, typer.Argument(help="Folder that watch wrote.")],
    out: Annotated[Path, typer.Option(help="File to write: .pdf or .html.")] = Path("week.pdf"),
    until: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"], help="Last of the seven days [default: that of the last image]"
        ),
    ] = None,
    as_json: flags.Json = False,
) -> None:
    """Write one page about the last week of a watch: images, alarms, scores, what changed."""
    from fedvad.serving.watch.week import week as run_week

    written = run_week(folder, out, until=None if until is None else until.date())
    exit_with_json(as_json, written)
    typer.echo(
        f"{written['path']}: {written['images']} images, {written['stopped']} stopped, "
        f"{written['unreadable']} unreadable, {written['first']} to {written['last']}"
    )
