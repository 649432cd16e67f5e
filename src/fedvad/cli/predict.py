"""`fedvad predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvad.cli.common import (
    MaxPixelsOption,
    ReferenceOption,
    RunArgument,
    SiteOption,
    WeightsOption,
    check_reference,
    print_json,
    showing,
)

__all__ = ["predict"]


def predict(
    run: RunArgument,
    paths: Annotated[list[Path], typer.Argument(help="Image files or folders.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for heat-map overlays.", show_default=False)
    ] = None,
    site: SiteOption = None,
    reference: ReferenceOption = None,
    weights: WeightsOption = None,
    max_pixels: MaxPixelsOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per image and line.")
    ] = False,
) -> None:
    """Score images: decision and heat-map overlay for each. Exit code 3 if any is unreadable."""
    from fedvad.errors import DataError
    from fedvad.pipeline.predict import predict as run_predict

    bad = 0
    with showing() as progress:
        rows = run_predict(
            run,
            paths,
            site=site,
            reference=check_reference(reference),
            out=out,
            weights=weights,
            max_pixels=max_pixels,
            progress=progress,
        )
        for row in rows:
            bad += row["error"] is not None
            if as_json:
                print_json(row)
            elif row["error"]:
                typer.echo(f"unreadable  {row['error']}")
            else:
                verdict = {True: "ANOMALOUS", False: "normal   ", None: "scored   "}
                limit = f" / {row['threshold']:.4g}" if row["threshold"] is not None else ""
                shown = f"  {row['overlay']}" if row["overlay"] else ""
                typer.echo(
                    f"{verdict[row['anomalous']]}  {row['score']:.4g}{limit}  {row['path']}{shown}"
                )
    if bad:
        raise DataError(f"{bad} images could not be read")
