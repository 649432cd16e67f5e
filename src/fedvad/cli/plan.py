"""`fedvad plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, open_cache, showing
from fedvad.cli.options import given_options


def plan(
    context: typer.Context,
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA...",
            help="Folder of sites, as for train; several, or files of plan DATA --json from sites "
            "apart.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Plan to write, for train --plan.")] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Seconds that an image may take in the backbone on this machine; where there is "
            "time, more of its pixels are read."
        ),
    ] = None,
    suspects: Annotated[
        Path | None,
        typer.Option(
            help="Picture to write of normal images that are unlike the others of their site; the "
            "plan then lists them, for you to leave out."
        ),
    ] = None,
    cache: flags.Cache = None,
    cache_size: flags.CacheSize = "20G",
    as_json: flags.Json = False,
) -> None:
    """Propose options of train from the normal images of each site. No test image is read.

    Options given here are kept in the plan.
    """
    from fedvad.verbs.plan import plan as run_plan

    with showing() as progress:
        made = run_plan(
            places, out, budget=budget, suspects=suspects, cache=open_cache(cache, cache_size),
            progress=progress, **given_options(context),
        )  # fmt: skip
    exit_with_json(as_json, made.to_json())
    typer.echo(made.to_toml(), nl=False)
    if out is not None:
        typer.echo(f"\nWritten to {out}: fedvad train DATA --plan {out} --out run", err=True)
