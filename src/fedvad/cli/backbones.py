"""`fedvad backbones`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json


def backbones(
    pattern: Annotated[
        str | None,
        typer.Argument(help="List the models whose name holds this instead of the families."),
    ] = None,
    as_json: flags.Json = False,
) -> None:
    """List backbones: default layers, their strides, descriptor size, image sizes, weights."""
    from fedvad.features.listing import families, models

    found = families() if pattern is None else models(pattern)
    exit_with_json(as_json, found)
    if pattern is None:
        for row in found:
            row["name"] = f"{row['name']}: {', '.join(row['names'])}"
    for row in found:
        typer.echo(_lines(row))
    if pattern is None:
        typer.echo("Names are timm's; `fedvad backbones NAME` shows single models.")
    elif "dim" not in found[0] and "error" not in found[0]:
        typer.echo(f"{len(found)} models: give a longer name to see their layers and sizes.")


def _lines(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['name']}\n  does not work: {row['error']}"
    if "dim" not in row:
        return str(row["name"])
    layers, strides = (", ".join(map(str, row[key])) for key in ("layers", "strides"))
    example = f"{row['example']}, " if "example" in row else ""
    weights = row["weights"] or "only --weights, timm has none"
    return (
        f"{row['name']}\n"
        f"  {example}layers {layers} of stride {strides}, {row['dim']} channels; "
        f"image size {row['sizes']}\n"
        f"  weights: {weights} ({row['licence'] or 'licence not stated'})"
    )
