"""`fedvad doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fedvad.cli import flags
from fedvad.cli.common import open_cache, print_json

_MARKS = {"ok": "ok     ", "warning": "warning", "wrong": "WRONG  "}


def doctor(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="Run, folder of images, or folder of fedvad deploy to examine as well."
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port on which serve would listen.")
    ] = 8000,
    weights: flags.Weights = None,
    engine: flags.Engine = None,
    device: flags.Device = None,
    cache: flags.Cache = None,
    as_json: flags.Json = False,
) -> None:
    """Check packages, backbone, cache, disk, port and clock; say how to fix what is wrong.

    Exit code 1 when something is wrong. Nothing is changed.
    """
    from fedvad.verbs.doctor import doctor as run_doctor

    found = run_doctor(
        path, cache=open_cache(cache), weights=weights, engine=cast(Any, engine), device=device,
        port=port,
    )  # fmt: skip
    if as_json:
        print_json(found)
    else:
        for check in found["checks"]:
            typer.echo(f"{_MARKS[check['state']]}  {check['name']}: {check['says']}")
            if check["mend"]:
                typer.echo(f"         fix: {check['mend']}")
        typer.echo("all is well" if found["ok"] else "something is wrong: see above")
    if not found["ok"]:
        raise typer.Exit(1)
