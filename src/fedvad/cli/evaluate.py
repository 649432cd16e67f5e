"""`fedvad evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fedvad.cli.common import (
    CacheOption,
    JsonOption,
    WeightsOption,
    open_cache,
    print_json,
    showing,
)

__all__ = ["check_reference", "evaluate"]


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    data: Annotated[Path, typer.Argument(help="Folder of sites or one set, with test images.")],
    reference: Annotated[
        str | None,
        typer.Option(help="global, local or union [default: the run's]", show_default=False),
    ] = None,
    weights: WeightsOption = None,
    heatmaps: Annotated[
        Path | None, typer.Option(help="Write a contact sheet (PNG) there.", show_default=False)
    ] = None,
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
            cache=open_cache(cache),
            heatmaps=heatmaps,
            progress=progress,
        )
    if as_json:
        print_json(results)
    else:
        show_results(results, None)


def check_reference(reference: str | None) -> Any:
    """A reference set's name; a usage error for anything else."""
    if reference not in (None, "global", "local", "union"):
        raise typer.BadParameter(f"--reference is global, local or union, not {reference!r}")
    return cast(Any, reference)
