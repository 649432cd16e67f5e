"""`fedvad bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvad.cli.common import (
    CacheOption,
    CacheSizeOption,
    JsonOption,
    WeightsOption,
    open_cache,
    print_json,
    showing,
)

__all__ = ["bench"]


def bench(
    suite: Annotated[
        str, typer.Argument(help="quick, mtd, real, ablation or a suite of your own (.toml).")
    ],
    out: Annotated[Path, typer.Option(help="Folder of cells, tables and plots; goes on there.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder that holds the sets.", show_default=False)
    ] = None,
    weights: WeightsOption = None,
    seeds: Annotated[
        str | None, typer.Option(help="Only these, for example 0,1.", show_default=False)
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Only these, separated by semicolons.", show_default=False),
    ] = None,
    cache: CacheOption = None,
    cache_size: CacheSizeOption = "20G",
    as_json: JsonOption = False,
) -> None:
    """Compare methods over sets and seeds under one protocol; finished cells are kept."""
    from fedvad.pipeline.bench.run import bench as run_bench
    from fedvad.pipeline.bench.suite import load_suite

    chosen = load_suite(suite).only(
        seeds=None if seeds is None else _numbers(seeds),
        methods=None if methods is None else [m.strip() for m in methods.split(";")],
    )
    with showing() as progress:
        summary = run_bench(
            chosen,
            out,
            data=data,
            weights=weights,
            cache=open_cache(cache, cache_size),
            progress=progress,
        )
    if as_json:
        print_json(summary)
        return
    from rich.console import Console

    from fedvad.report.bench_tables import bench_rich

    console = Console()
    for table in bench_rich(summary):
        console.print(table)
    for sentence in summary["statements"]:
        console.print(f"- {sentence}", markup=False)
    for kind in ("skipped", "failed"):
        for name, reason in summary[kind].items():
            console.print(f"{kind}: {name}: {reason}", markup=False)
    console.print(f"All figures and plots: {out / 'bench.md'}", markup=False)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"--seeds takes numbers like 0,1,2, not {text!r}") from error
