"""`fedvad evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvad.cli.common import (
    CacheOption,
    DefectOption,
    GoodOption,
    JsonOption,
    MaxPixelsOption,
    ReferenceOption,
    RunArgument,
    WeightsOption,
    check_reference,
    open_cache,
    print_json,
    showing,
)

__all__ = ["evaluate"]


def evaluate(
    run: RunArgument,
    data: Annotated[Path, typer.Argument(help="Folder of sites or one set, with test images.")],
    reference: ReferenceOption = None,
    weights: WeightsOption = None,
    max_pixels: MaxPixelsOption = None,
    heatmaps: Annotated[
        Path | None, typer.Option(help="Write a contact sheet (PNG) there.", show_default=False)
    ] = None,
    good: GoodOption = None,
    defect: DefectOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a run on labelled images, also of sites that never trained."""
    from fedvad.cli.train import show_results
    from fedvad.pipeline.evaluate import evaluate as run_evaluate

    with showing() as progress:
        results = run_evaluate(
            run,
            data,
            reference=check_reference(reference),
            weights=weights,
            max_pixels=max_pixels,
            cache=open_cache(cache),
            heatmaps=heatmaps,
            good=good or (),
            defect=defect or (),
            progress=progress,
        )
    if as_json:
        print_json(results)
    else:
        show_results(results, None)
