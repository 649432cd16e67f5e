"""`fedvad calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, limit_words, open_cache, showing


def calibrate(
    run: flags.Run,
    normals: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Images of good parts of the site, no defect among them: files or folders."
        ),
    ] = None,
    target_fpr: Annotated[
        float | None,
        typer.Option(
            click_type=flags.NUMBER,
            help="Wanted false-alarm rate, above 0 and at most 0.5 [default: that of the training]",
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(help="Site whose images these are; may be omitted if the run has only one."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Accept also a threshold far above the present one.")
    ] = False,
    undo: Annotated[
        bool,
        typer.Option("--undo", help="Restore the site's thresholds before the last calibration."),
    ] = False,
    weights: flags.Weights = None,
    max_pixels: flags.MaxPixels = None,
    engine: flags.Engine = None,
    device: flags.Device = None,
    cache: flags.Cache = None,
    as_json: flags.Json = False,
) -> None:
    """Find a site's thresholds again from normal images, without training.

    The run keeps the new thresholds; its results and report stay those of the old ones.
    """
    from fedvad.verbs.recalibrate import calibrate as find_threshold

    with showing() as progress:
        answer = find_threshold(
            run, normals or [], site=site, target_fpr=target_fpr, force=force, undo=undo,
            weights=weights, engine=cast(Any, engine), device=device, max_pixels=max_pixels,
            cache=open_cache(cache), progress=progress,
        )  # fmt: skip
    exit_with_json(as_json, answer)
    found = answer["thresholds"][answer["reference"]]
    before = limit_words(found["before"])
    change = f"threshold of {answer['site']}: {found['now']:.4g} (before: {before})"
    if undo:
        typer.echo(f"{change}, as it was before the last calibration")
        return
    typer.echo(
        f"{change}, from {answer['images']} good images, for "
        f"{100 * answer['target_fpr']:g} % false alarms"
    )
    typer.echo(answer["promised"])
    if high := answer["above_before"]:
        typer.echo(
            f"{len(high)} of {answer['images']} images score above the threshold before: look "
            f"whether these are good parts, {', '.join(one['path'] for one in high[:3])}"
            + (", ..." if len(high) > 3 else "")
        )
    whose = f" --site {answer['site']}" if site is not None else ""
    typer.echo(f"Measure it on labelled images: fedvad evaluate {run} DATA")
    typer.echo(f"The threshold before: fedvad calibrate {run}{whose} --undo")
