"""`fedvad update`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, limit_words, open_cache, print_json, showing


def update(
    run: flags.Run,
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of new normal images of a site, or of sites as train reads them."
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            help="Site whose images these are, of the run or a new one; may be omitted if DATA "
            "has sites, or the run has only one."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Restore the run as it was before the last update.")
    ] = False,
    weights: flags.Weights = None,
    engine: flags.Engine = None,
    device: flags.Device = None,
    cache: flags.Cache = None,
    as_json: flags.Json = False,
) -> None:
    """Let new normal images join a trained run, without reading the old ones.

    A site of DATA that the run does not know joins, too. Thresholds are found again.
    """
    from fedvad.verbs.update import undo_update
    from fedvad.verbs.update import update as run_update

    if undo == (data is not None):
        raise typer.BadParameter("give either DATA, the new images, or --undo")
    if data is None:
        done = undo_update(run)
        print_json(done) if as_json else typer.echo(f"{run} is as it was before the update")
        return
    with showing() as progress:
        done = run_update(
            run, data, site=site, dry_run=dry_run, weights=weights, engine=cast(Any, engine),
            device=device, cache=open_cache(cache), progress=progress,
        )  # fmt: skip
    exit_with_json(as_json, done)
    for name, found in done["sites"].items():
        limit = " to ".join(map(limit_words, found["threshold"].values()))
        typer.echo(
            f"{name}: {found['images']} new images; rows {found['rows']['before']} to "
            f"{found['rows']['now']}; threshold {limit}; alarms among {found['scored']} of them: "
            f"{_known(found['alarms']['before'])} before, {_known(found['alarms']['now'])} now"
        )
    rows = done["memory_rows"]
    typer.echo(f"memory of all sites: {rows['before']} to {rows['now']} rows")
    typer.echo(
        "nothing was changed" if dry_run else f"To take this back: fedvad update {run} --undo"
    )


def _known(count: int | None) -> str:
    return "unknown" if count is None else str(count)
