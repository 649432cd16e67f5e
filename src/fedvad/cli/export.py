"""`fedvad export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, showing


def export(
    run: flags.Run,
    format: Annotated[str, typer.Option(help="onnx or openvino.")] = "onnx",
    int8: Annotated[
        bool, typer.Option("--int8", help="Backbone in int8; the memory stays in float.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="With --int8: data folder, whose normal training images set the ranges."),
    ] = None,
    site: flags.Site = None,
    reference: flags.Reference = None,
    threshold: flags.Threshold = None,
    target_fpr: flags.TargetFpr = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write [default: RUN/export]")] = None,
    weights: flags.Weights = None,
    engine: flags.Engine = None,
    device: flags.Device = None,
    opset: Annotated[
        int | None, typer.Option(help="ONNX operator set, 14 to 20 [default: 17]")
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA", help="Data folder on whose images the model must score like the run."
        ),
    ] = None,
    as_json: flags.Json = False,
) -> None:
    """Write one model file: image in; score, heat-map and decision out. Needs no fedvad to run."""
    from fedvad.serving.export.package import EXAMPLE_FILE
    from fedvad.serving.export.package import export as run_export

    with showing() as progress:
        written = run_export(
            run,
            format=format,
            int8=int8,
            data=data,
            site=site,
            reference=cast(Any, reference),
            threshold=threshold,
            target_fpr=target_fpr,
            out=out,
            weights=weights,
            engine=cast(Any, engine),
            device=device,
            opset=opset,
            verify=verify,
            progress=progress,
        )
    exit_with_json(as_json, written)
    folder = Path(written["folder"])
    size = sum(file["bytes"] for file in written["files"].values())
    found = written["threshold"]
    decides = "no threshold" if found is None else f"threshold {found['value']:.4g}"
    whose = "any site" if written["site"] is None else written["site"]
    if found is not None and written["site"] is None and found["method"] != "given":
        decides += ", the median of all sites"
    typer.echo(f"{folder / written['model']} ({size / 1e6:.1f} MB, for {whose}, {decides})")
    if found is not None and found["promised"] and written["site"] is not None:
        typer.echo(found["promised"])
    worst = max(written["difference_from_run"].values())
    if int8:
        typer.echo(
            f"int8 moves the scores of normal images, here by {worst:.1%}: measure its effect"
        )
    else:
        typer.echo(f"scores like the run: largest relative difference {worst:.1e}")
    found = written["verified"]
    if found is not None:
        typer.echo(
            f"verified on {found['images']} images: largest difference of the score "
            f"{found['score']:.1e}, of the map {found['map']:.1e}; "
            f"{found['decisions']} decisions differ"
        )
    typer.echo(f"try it: python {folder / EXAMPLE_FILE} {folder / written['model']} IMAGE...")
