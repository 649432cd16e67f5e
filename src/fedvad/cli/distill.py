"""`fedvad distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedvad.cli import flags
from fedvad.cli.common import by_backbone, exit_with_json, showing


def distill(
    recipe: Annotated[
        str, typer.Argument(help="tiny, quick, another shipped recipe, or one of your own (.toml).")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the backbone file, curve and card.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of images in addition to the drawn ones; may be repeated."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="TEACHER=FILE.safetensors, or FILE where there is one teacher; may be repeated."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted distillation in --out.")
    ] = False,
    as_json: flags.Json = False,
) -> None:
    """Train a small backbone to imitate large ones. Its file is a --backbone everywhere."""
    from fedvad.experiments.distill.run import distill_backbone

    with showing() as progress:
        summary = distill_backbone(
            recipe,
            out,
            data=data or [],
            weights=by_backbone(weights or []),
            resume=resume,
            progress=progress,
        )
    exit_with_json(as_json, summary)
    _show(summary, out)


def _show(summary: dict[str, Any], out: Path) -> None:
    from rich.console import Console

    from fedvad.report.tables import rich_table

    rows = [["stage", "teacher", "steps", "loss, first", "loss, last", "cosine by level"]]
    for number, stage in enumerate(summary["stages"], start=1):
        cosines = ", ".join(f"{level['cosine']:.3f}" for level in stage["levels"])
        first, last = f"{stage['loss_first']:.4f}", f"{stage['loss_last']:.4f}"
        rows.append([str(number), stage["teacher"], str(stage["steps"]), first, last, cosines])
    Console().print(rich_table("Stages", rows))
    made = summary["backbone"]
    size = f"{made['bytes'] / 1e6:.2f} MB, {made['parameters'] / 1e6:.2f} million parameters"
    typer.echo(f"Backbone: {out / made['file']} ({size})   Card: {out / 'card.md'}")
