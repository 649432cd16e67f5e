"""`fedvad train`, and `fedvad config`, which prints its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, open_cache, showing
from fedvad.cli.options import given_options
from fedvad.cli.results import show_results


def train(
    context: typer.Context,
    data: Annotated[
        Path, typer.Argument(help="Folder with one folder per site, or one image set with --split.")
    ],
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    config: flags.Config = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="File that fedvad plan wrote. --config and flags win over it."),
    ] = None,
    cache: flags.Cache = None,
    cache_size: flags.CacheSize = "20G",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run in --out.")
    ] = False,
    track: Annotated[
        str | None,
        typer.Option(help="Report to an experiment tracker too: mlflow or tensorboard."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="auto",
            help="auto: first find which sites look at the same kind of product, as fedvad group "
            "does, then train within each group: OUT/group1, OUT/group2, ...",
        ),
    ] = None,
    as_json: flags.Json = False,
) -> None:
    """Train one detector per site. No image leaves its site.

    For example: fedvad train DATA --out run --compare local

    Memory methods exchange vectors of image patches, student methods network weights.
    """
    from fedvad.runs.config import resolve_config
    from fedvad.verbs.tracking import check_tracker
    from fedvad.verbs.tracking import track as run_track
    from fedvad.verbs.train import train as run_train

    if group not in (None, "auto"):
        raise typer.BadParameter(f"--group takes auto, not {group!r}")
    if group and track:
        raise typer.BadParameter("--track takes one run, and --group trains several: omit one")
    tracker = None if track is None else check_tracker(track)
    resolved = resolve_config(config, plan=plan, **given_options(context))
    if group is not None:
        from fedvad.cli.group import show_groups

        show_groups(
            data, out, resolved, cache=open_cache(cache, cache_size), resume=resume, as_json=as_json
        )
        return
    with showing() as progress:
        results = run_train(
            data, out, resolved, cache=open_cache(cache, cache_size), resume=resume,
            progress=progress,
        )  # fmt: skip
    tracked = None if tracker is None else run_track(out, tracker)
    exit_with_json(as_json, results.to_dict())
    show_results(results, out)
    if tracked is not None:
        typer.echo(f"Tracked by {tracker}: {tracked}")


def config(context: typer.Context, config: flags.Config = None) -> None:
    """Print a configuration file with every option of train, its default and its meaning.

    Options given here, by flags or --config, are set in it; the others stand there as comments.
    """
    from fedvad.runs.template import template

    typer.echo(template(config, **given_options(context)), nl=False)
