"""`fedvad group`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, open_cache, showing
from fedvad.cli.options import given_options

if TYPE_CHECKING:
    from fedvad.features.cache import DescriptorCache
    from fedvad.runs.config import TrainConfig
    from fedvad.verbs.group import Grouping

TOLERANCE = 0.25  # as in `federation.grouping`, which takes long to import


def group(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(help="Folder with one folder per site; with --save-... the folder of one."),
    ] = None,
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
    save_summary: Annotated[
        Path | None,
        typer.Option(help="For sites apart: write the summary of the site DATA here, for others."),
    ] = None,
    summaries: Annotated[
        list[Path] | None,
        typer.Option(help="Summaries of all sites, for --save-shares. May be repeated."),
    ] = None,
    save_shares: Annotated[
        Path | None,
        typer.Option(help="Write which share of DATA looks normal by each of --summaries here."),
    ] = None,
    shares: Annotated[
        list[Path] | None,
        typer.Option(
            help="Find the groups from these files of --save-shares, one from each site, without "
            "images. May be repeated."
        ),
    ] = None,
    as_json: flags.Json = False,
) -> None:
    """Find which sites look at the same kind of product, from their normal images.

    Sites exchange means and covariances of a few numbers per image, never images.
    """
    from fedvad.runs.config import resolve_config

    apart = [path for path in (save_summary, save_shares, shares) if path]
    if (data is None) != bool(shares) or len(apart) > 1 or (apart and out is not None):
        raise typer.BadParameter(
            "give DATA with at most one of --out, --save-summary and --save-shares, or --shares "
            "without DATA"
        )
    if bool(summaries) != (save_shares is not None):
        raise typer.BadParameter("--summaries and --save-shares go together")
    if shares:
        from fedvad.verbs.group_apart import group_shares

        _print_groups(group_shares(shares, tolerance=tolerance), as_json)
        return
    assert data is not None
    if apart:
        given = {"config": config, "cache": open_cache(cache, cache_size), **given_options(context)}
        _save(data, save_summary, summaries or [], save_shares, given, as_json)
        return
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
    _print_groups(found, as_json)
    typer.echo(f"Each site sends {found.bytes_per_site:,} bytes: moments, no image.")
    if out is not None:
        from fedvad.cli.results import show_results

        for name, result in found.runs.items():
            typer.echo(f"\n{name}")
            show_results(result, out / name)


def _print_groups(found: Grouping, as_json: bool) -> None:
    exit_with_json(as_json, found.to_json())
    for number, names in enumerate(found.groups, 1):
        typer.echo(f"group{number}: {', '.join(names)}")


def _save(
    data: Path,
    summary: Path | None,
    summaries: list[Path],
    shares: Path | None,
    given: dict[str, Any],
    as_json: bool,
) -> None:
    """Write a site's summary, or its shares by the summaries of all sites."""
    from fedvad.verbs.group_apart import site_shares, site_summary

    with showing() as progress:
        if summary is not None:
            size = site_summary(data, summary, progress=progress, **given)
            said: dict[str, Any] = {"summary": str(summary), "bytes": size}
            lines = [f"{summary} ({size:,} bytes): moments, no image."]
        else:
            assert shares is not None
            found = site_shares(data, summaries, shares, progress=progress, **given)
            said = {"file": str(shares), "shares": found}
            words = ", ".join(f"{name} {share:.0%}" for name, share in found.items())
            lines = [f"looks normal to {words}", f"shares of the site's images: {shares}"]
    exit_with_json(as_json, said)
    for line in lines:
        typer.echo(line)
