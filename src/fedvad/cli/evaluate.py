"""`fedvad evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, open_cache, showing
from fedvad.cli.results import show_results


def evaluate(
    run: flags.Run,
    data: Annotated[Path, typer.Argument(help="Folder of sites or one set, with test images.")],
    reference: flags.Reference = None,
    weights: flags.Weights = None,
    max_pixels: flags.MaxPixels = None,
    engine: flags.Engine = None,
    device: flags.Device = None,
    max_bad: Annotated[
        float | None,
        typer.Option(help="Share of unreadable images tolerated per site [default: the run's]"),
    ] = None,
    heatmaps: Annotated[
        Path | None, typer.Option(help="Write a contact sheet (PNG) there.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for results, pictures and report.html [default: RUN, if it holds no "
            "results of a training]"
        ),
    ] = None,
    good: flags.Good = None,
    defect: flags.Defect = None,
    cache: flags.Cache = None,
    as_json: flags.Json = False,
) -> None:
    """Measure a run on labelled images, also of sites that never trained."""
    from fedvad.verbs.evaluate import evaluate as run_evaluate

    with showing() as progress:
        results = run_evaluate(
            run,
            data,
            reference=cast(Any, reference),
            weights=weights,
            max_pixels=max_pixels,
            engine=cast(Any, engine),
            device=device,
            max_bad=max_bad,
            cache=open_cache(cache),
            heatmaps=heatmaps,
            out=out,
            good=good or (),
            defect=defect or (),
            progress=progress,
        )
    exit_with_json(as_json, results.to_dict())
    show_results(results, out)
