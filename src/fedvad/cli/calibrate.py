"""`fedvad calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fedvad.cli.common import (
    CacheOption,
    DeviceOption,
    EngineOption,
    JsonOption,
    MaxPixelsOption,
    RunArgument,
    WeightsOption,
    open_cache,
    print_json,
    showing,
)

__all__ = ["calibrate"]


def calibrate(
    run: RunArgument,
    normals: Annotated[
        list[Path], typer.Argument(help="Normal images of the site: files or folders.")
    ],
    target_fpr: Annotated[
        float | None,
        typer.Option(
            help="Wanted false-alarm rate, above 0 and at most 0.5 [default: that of the training]",
            show_default=False,
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            help="Site whose images these are; may be omitted if the run has only one.",
            show_default=False,
        ),
    ] = None,
    weights: WeightsOption = None,
    max_pixels: MaxPixelsOption = None,
    engine: EngineOption = None,
    device: DeviceOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find a site's thresholds again from normal images, without training.

    The run keeps the new thresholds; its results and report stay those of the old ones.
    """
    from fedvad.verbs.recalibrate import recalibrate

    with showing() as progress:
        told = recalibrate(
            run, normals, site=site, target_fpr=target_fpr, weights=weights,
            engine=cast(Any, engine), device=device, max_pixels=max_pixels,
            cache=open_cache(cache), progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(told)
        return
    found = told["thresholds"][told["reference"]]
    before = "none" if found["before"] is None else f"{found['before']:.4g}"
    typer.echo(
        f"threshold of {told['site']}: {found['now']:.4g} (before: {before}), from "
        f"{told['images']} normal images, for {100 * told['target_fpr']:g} % false alarms"
    )
    typer.echo(f"Measure it on labelled images: fedvad evaluate {run} DATA")
