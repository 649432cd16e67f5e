"""`fedvad predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fedvad.cli import flags
from fedvad.cli.common import decision, one_line, print_json, showing


def predict(
    run: flags.Run,
    paths: Annotated[list[Path], typer.Argument(help="Image files or folders.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for what --save names; no input lies in it.")
    ] = None,
    save: Annotated[
        str | None,
        typer.Option(
            help="What to write into --out: overlays, maps (.npy), maps16 (PNG), masks, boxes "
            "(COCO JSON), csv; separated by commas [default: overlays]"
        ),
    ] = None,
    site: flags.Site = None,
    reference: flags.Reference = None,
    threshold: flags.Threshold = None,
    target_fpr: flags.TargetFpr = None,
    weights: flags.Weights = None,
    max_pixels: flags.MaxPixels = None,
    engine: flags.Engine = None,
    device: flags.Device = None,
    as_json: flags.JsonLines = False,
) -> None:
    """Score images: decision and heat-map overlay for each. Exit code 3 if any has no score."""
    from fedvad.errors import DataError
    from fedvad.verbs.predict import predict as run_predict

    count = stopped = bad = 0
    reasons = set[str]()
    with showing() as progress:
        rows = run_predict(
            run,
            paths,
            site=site,
            reference=cast(Any, reference),
            threshold=threshold,
            target_fpr=target_fpr,
            out=out,
            save=save,
            weights=weights,
            max_pixels=max_pixels,
            engine=cast(Any, engine),
            device=device,
            progress=progress,
        )
        for row in rows:
            count, stopped = count + 1, stopped + bool(row["anomalous"])
            bad += row["error"] is not None
            if as_json:
                print_json(row)
            elif row["error"]:
                typer.echo(one_line(f"unreadable  {row['error']}"))
            else:
                shown = f"  {row['overlay']}" if row["overlay"] else ""
                said = decision(row["score"], row["anomalous"], row["threshold"])
                typer.echo(one_line(f"{said}  {row['path']}{shown}"))
                if row["reason"]:
                    reasons.add(row["reason"])
        for reason in sorted(reasons):
            typer.echo(f"no decision: {reason}", err=True)
        if not as_json and not reasons:
            typer.echo(f"{stopped} of {count} stopped" + f", {bad} unreadable" * bool(bad))
    if bad:
        raise DataError(
            f"{bad} image{'s' * (bad != 1)} could not be scored; the lines above say why"
        )
