"""`fedvad group`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, open_cache, showing
from fedvad.cli.options import given_options

if TYPE_CHECKING:
    from fedvad.features.cache import DescriptorCache
    from fedvad.runs.config import TrainConfig

TOLERANCE = 0.25  # as in `federation.grouping`, which takes long to import


def group(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder with one folder per site.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Also train a federation within each group: OUT/group1, OUT/group2, ..."),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            help="Share of a site's normal images that may look odd to another of its group."
        ),
    ] = TOLERANCE,
    config: flags.Config = None,
    cache: flags.Cache = None,
    cache_size: flags.CacheSize = "20G",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted runs in --out.")
    ] = False,
    as_json: flags.Json = False,
) -> None:
    """Find which sites look at the same kind of product, from their normal images.

    Sites exchange means and covariances of a few numbers per image, never images.
    """
    from fedvad.runs.config import resolve_config

    resolved = resolve_config(config, **given_options(context))
    show_groups(
        data, out, resolved, tolerance=tolerance, cache=open_cache(cache, cache_size),
        resume=resume, as_json=as_json,
    )  # fmt: skip


def show_groups(
    data: Path,
    out: Path | None,
    config: TrainConfig,
    *,
    cache: DescriptorCache,
    resume: bool,
    as_json: bool,
    tolerance: float = TOLERANCE,
) -> None:
    """Find groups of sites, train within each where `out` is given, and print what came out."""
    from fedvad.verbs.group import train_groups

    with showing() as progress:
        found = train_groups(
            data, out, config, tolerance=tolerance, cache=cache, resume=resume, progress=progress
        )
    exit_with_json(as_json, found.to_json())
    for number, names in enumerate(found.groups, 1):
        typer.echo(f"group{number}: {', '.join(names)}")
    typer.echo(f"Each site sends {found.bytes_per_site:,} bytes: moments, no image.")
    if out is not None:
        from fedvad.cli.results import show_results

        for name, result in found.runs.items():
            typer.echo(f"\n{name}")
            show_results(result, out / name)
