"""`fedvad connectivity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, open_cache, showing


def connectivity(
    run_a: Annotated[Path, typer.Argument(help="Run folder of a student.")],
    run_b: Annotated[Path, typer.Argument(help="Run folder of another one, of the same shape.")],
    data: Annotated[Path, typer.Argument(help="Folder of the sites that both trained on.")],
    out: Annotated[Path | None, typer.Option(help="HTML page with the curve.")] = None,
    beside: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="A second pair of runs for the same picture, for instance trained with WSA."
        ),
    ] = None,
    points: Annotated[int, typer.Option(help="Points of a curve, with both ends.", min=2)] = 21,
    cache: flags.Cache = None,
    cache_size: flags.CacheSize = "20G",
    as_json: flags.Json = False,
) -> None:
    """Measure loss and AUROC on the line between the weights of two trained students."""
    from fedvad.report.html.connectivity import connectivity_rows
    from fedvad.report.tables import rich_table
    from fedvad.verbs.connectivity import connectivity as run_connectivity

    with showing() as progress:
        curves = run_connectivity(
            run_a,
            run_b,
            data,
            beside=beside,
            out=out,
            points=points,
            cache=open_cache(cache, cache_size),
            progress=progress,
        )
    found = [curve.to_dict() for curve in curves]
    exit_with_json(as_json, found)
    from rich.console import Console

    Console().print(rich_table("Connectivity", connectivity_rows(found)))
    if out is not None:
        typer.echo(f"Curve: {out}")
