"""`fedvad bank scores`, `thresholds` and `apply`: thresholds that sites by file find together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, limit_words

RunArgument = Annotated[Path, typer.Argument(help="Run folder of this site.")]


def scores(
    run: RunArgument,
    key: flags.Key,
    out: Annotated[Path, typer.Option(help="Signed file to write.")],
    as_json: flags.Json = False,
) -> None:
    """Write the scores of this site's normal images, for thresholds found with other sites."""
    from fedvad.verbs.bank_thresholds import export_scores

    made = export_scores(run, key, out)
    exit_with_json(as_json, made)
    shown = ", ".join(f"{count} ({name})" for name, count in made["scores"].items())
    typer.echo(f"scores of site {made['site']}: {shown or 'none'}   {made['path']}")


def thresholds(
    files: Annotated[list[Path], typer.Argument(help="Signed scores of the sites.")],
    trust: Annotated[Path, typer.Option(help="Folder of the sites' public keys, SITE.pub.")],
    key: flags.Key,
    out: Annotated[Path, typer.Option(help="Signed thresholds to write.")],
    as_json: flags.Json = False,
) -> None:
    """At the server: find each site's threshold from the scores of all."""
    from fedvad.verbs.bank_thresholds import merge_scores

    made = merge_scores(files, trust, key, out)
    for path, reason in made["refused"].items():
        typer.echo(f"refused {path}: {reason}", err=True)
    exit_with_json(as_json, made)
    typer.echo(f"thresholds of {', '.join(made['sites'])}   {made['path']}")


def apply(
    file: Annotated[Path, typer.Argument(help="Signed thresholds of the server.")],
    run: RunArgument,
    trust: Annotated[Path, typer.Option(help="The server's public key.")],
    as_json: flags.Json = False,
) -> None:
    """Give a run folder the thresholds found with the scores of all sites."""
    from fedvad.verbs.bank_thresholds import apply_thresholds

    made = apply_thresholds(file, run, trust)
    exit_with_json(as_json, made)
    limit = limit_words(made["threshold"])
    typer.echo(f"threshold of {made['site']}: {limit}   Run folder: {run}")
