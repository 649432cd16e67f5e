"""`fedvad evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fedvad.cli.common import (
    CacheOption,
    DefectOption,
    DeviceOption,
    EngineOption,
    GoodOption,
    JsonOption,
    MaxPixelsOption,
    ReferenceOption,
    RunArgument,
    WeightsOption,
    open_cache,
    print_json,
    showing,
)
from fedvad.cli.results import show_results

__all__ = ["evaluate"]


def evaluate(
    run: RunArgument,
    data: Annotated[Path, typer.Argument(help="Folder of sites or one set, with test images.")],
    reference: ReferenceOption = None,
    weights: WeightsOption = None,
    max_pixels: MaxPixelsOption = None,
    engine: EngineOption = None,
    device: DeviceOption = None,
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
    good: GoodOption = None,
    defect: DefectOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
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
    if as_json:
        print_json(results.to_dict())
    else:
        show_results(results, out)
