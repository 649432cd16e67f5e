"""`fedvad config`."""

from __future__ import annotations

import typer

from fedvad.cli import flags
from fedvad.cli.options import given_options


def config(context: typer.Context, config: flags.Config = None) -> None:
    """Print a configuration file with every option of train, its default and its meaning.

    Options given here, by flags or --config, are set in it; the others stand there as comments.
    """
    from fedvad.runs.template import template

    typer.echo(template(config, **given_options(context)), nl=False)
