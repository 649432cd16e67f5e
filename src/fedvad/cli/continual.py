"""`fedvad continual`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvad.cli import flags
from fedvad.cli.common import by_backbone, exit_with_json, numbers, open_cache, showing


def continual(
    stream: Annotated[
        str, typer.Argument(help="demo, edge, another shipped stream, or one of your own (.toml).")
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder of checkpoints and report; an interrupted run continues there."),
    ],
    data: flags.Sets = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="safetensors file of the backbone, or BACKBONE=FILE where methods have several; "
            "may be repeated."
        ),
    ] = None,
    seeds: flags.Seeds = None,
    methods: flags.Methods = None,
    cache: flags.Cache = None,
    cache_size: flags.CacheSize = "20G",
    as_json: flags.Json = False,
) -> None:
    """Learn a stream of tasks one after another and report what was forgotten."""
    from fedvad.experiments.continual.run import run_stream

    with showing() as progress:
        summary = run_stream(
            stream,
            out,
            data=data,
            weights=by_backbone(weights or []),
            cache=open_cache(cache, cache_size),
            seeds=None if seeds is None else numbers(seeds, "--seeds"),
            methods=None if methods is None else [m.strip() for m in methods.split(";")],
            progress=progress,
        )
    exit_with_json(as_json, summary)
    from rich.console import Console

    from fedvad.report.continual_tables import brief_rows
    from fedvad.report.tables import rich_table

    Console().print(rich_table("Methods", brief_rows(summary)))
    for name, reason in summary["failed"].items():
        typer.echo(f"failed: {name}: {reason}")
    typer.echo(f"Report: {out / 'report.html'}   Tables: {out / 'continual.md'}")
