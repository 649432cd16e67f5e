"""`fedvad report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[
        Path | None,
        typer.Option(help="File to write [default: report.html or audit.pdf in RUN]"),
    ] = None,
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures/--no-pictures",
            help="Whether to show test images; without them the page may leave the sites.",
        ),
    ] = True,
    pdf: Annotated[
        bool, typer.Option("--pdf", help="One page to print, for a review board, as a PDF file.")
    ] = False,
    as_json: flags.Json = False,
) -> None:
    """Write one HTML file about a run: verdict, sites, pictures, costs. The data is not needed."""
    from fedvad.report.bench_tables import size
    from fedvad.verbs.report import write_report

    written = write_report(run, out=out, pictures=pictures, pdf=pdf)
    exit_with_json(as_json, written)
    if pdf:
        typer.echo(f"{written['path']} ({size(written['bytes'])})")
        return
    left_out = written["pictures_left_out"]
    shown = f"{written['pictures']} pictures" + (f", {left_out} left out" if left_out else "")
    typer.echo(f"{written['path']} ({size(written['bytes'])}, {shown})")
