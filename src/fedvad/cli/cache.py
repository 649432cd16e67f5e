"""`fedvad cache`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, open_cache

cache_app = typer.Typer(help="The on-disk cache of descriptors.", no_args_is_help=True)


@cache_app.command()
def info(
    cache: flags.Cache = None, cache_size: flags.CacheSize = "20G", as_json: flags.Json = False
) -> None:
    """Where the cache is and what it holds."""
    found = open_cache(cache, cache_size).info()
    exit_with_json(as_json, asdict(found))
    typer.echo(f"{found.root}: {found.entries} entries, {found.bytes / 2**20:.1f} MiB")
    for name, (entries, size) in sorted(found.configurations.items()):
        typer.echo(f"  {name}: {entries} entries, {size / 2**20:.1f} MiB")


@cache_app.command()
def clear(cache: flags.Cache = None) -> None:
    """Remove every entry."""
    freed = open_cache(cache).clear()
    typer.echo(f"freed {freed / 2**20:.1f} MiB")
