"""`fedvad bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, numbers, open_cache, showing
from fedvad.errors import ConfigError


def bench(
    suite: Annotated[
        str,
        typer.Argument(
            help="quick, mtd, real, ablation, another shipped suite, or one of your own (.toml); "
            "speed and robustness run the scripts of benchmarks/."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder of results, tables and plots; an interrupted bench continues there."
        ),
    ],
    data: flags.Sets = None,
    weights: flags.Weights = None,
    seeds: flags.Seeds = None,
    methods: flags.Methods = None,
    cache: flags.Cache = None,
    cache_size: flags.CacheSize = "20G",
    as_json: flags.Json = False,
) -> None:
    """Compare methods over sets and seeds under one protocol; continue an interrupted bench."""
    from fedvad.experiments.bench.scripts import COLLECTIONS

    if suite in COLLECTIONS:
        if seeds is not None or methods is not None or cache is not None:
            raise ConfigError(
                f"suite {suite} runs scripts, which have seeds, methods and caches of their own: "
                "omit --seeds, --methods and --cache"
            )
        _run_scripts(suite, out, data, weights, as_json)
        return
    from fedvad.experiments.bench.run import bench as run_bench

    with showing() as progress:
        summary = run_bench(
            suite,
            out,
            data=data,
            weights=weights,
            cache=open_cache(cache, cache_size),
            seeds=None if seeds is None else numbers(seeds, "--seeds"),
            methods=None if methods is None else [m.strip() for m in methods.split(";")],
            progress=progress,
        )
    exit_with_json(as_json, summary)
    from rich.console import Console

    from fedvad.report.bench_tables import bench_rich

    console = Console()
    for table in bench_rich(summary):
        console.print(table)
    for sentence in summary["statements"]:
        console.print(f"- {sentence}", markup=False)
    _echo_left_out(summary)
    typer.echo(f"All figures and plots: {out / 'bench.md'}")


def _run_scripts(
    collection: str, out: Path, data: Path | None, weights: Path | None, as_json: bool
) -> None:
    from fedvad.experiments.bench.scripts import run_scripts

    with showing() as progress:
        summary = run_scripts(collection, out, data=data, weights=weights, progress=progress)
    exit_with_json(as_json, summary)
    for name in summary["tables"]:
        typer.echo((out / f"{name}.md").read_text(encoding="utf-8"))
    _echo_left_out(summary)


def _echo_left_out(summary: dict[str, Any]) -> None:
    for kind in ("skipped", "failed"):
        for name, reason in summary[kind].items():
            typer.echo(f"{kind}: {name}: {reason}")
