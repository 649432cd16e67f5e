"""`fedvad report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvad.cli.common import JsonOption, print_json

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file to write [default: report.html in RUN]", show_default=False),
    ] = None,
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures/--no-pictures",
            help="Whether to show test images; without them the page may leave the sites.",
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML file about a run: verdict, sites, pictures, costs. The data is not needed."""
    from fedvad.pipeline.report import report as run_report

    written = run_report(run, out=out, pictures=pictures)
    if as_json:
        print_json(written)
        return
    left_out = written["pictures_left_out"]
    shown = f"{written['pictures']} pictures" + (f", {left_out} left out" if left_out else "")
    typer.echo(f"{written['path']} ({written['bytes'] / 1e6:.1f} MB, {shown})")
