"""`fedvad bank forget`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvad.cli import flags
from fedvad.cli.common import print_json


def forget(
    site: Annotated[str, typer.Argument(help="Name of the site that leaves.")],
    state: flags.State,
    key: flags.Key,
    out: Annotated[Path, typer.Option(help="Signed global memory to write.")],
    receipt: Annotated[
        Path | None, typer.Option(help="Signed statement to write of what left.")
    ] = None,
    as_json: flags.Json = False,
) -> None:
    """At the server: take a site out of the memory, in a round without it."""
    from fedvad.verbs.bank_forget import forget_site

    result = forget_site(site, state, key, out, receipt=receipt)
    if as_json:
        print_json(result)
        return
    typer.echo(
        f"{site} left: {result['rows_removed'][site]} rows; round {result['round']} holds "
        f"{result['rows_now']['global']} rows of {', '.join(result['sites_left'])}   {out}"
    )
    typer.echo(f"bank merge refuses files of {site} from now on, unless --take-back {site}.")
