"""`fedvad signals`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, showing
from fedvad.cli.options import key_values


def signals(
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder with one folder per site: train.npy, and perhaps test.npy, labels.npy."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of scores and models.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of averaging.", min=1)] = 5,
    steps: Annotated[
        int, typer.Option(help="Training steps of a site in each round.", min=1)
    ] = 100,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.", min=0)] = 0,
    quantile: Annotated[
        float, typer.Option(help="Quantile of held-out normal scores that is the threshold.")
    ] = 0.98,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Option of the memories, as fedvad.train_signals has them, with text in quotes: "
            "items=200, 'read=\"cosine\"'. May be repeated.",
        ),
    ] = None,
    as_json: flags.Json = False,
) -> None:
    """Find unusual windows of multivariate signals; sites learn together (AMSL).

    Arrays are (n, channels, length) numbers. No window leaves a site.
    """
    from fedvad.detectors.student.amsl.options import memories_of
    from fedvad.verbs.signals import train_signals

    memories = memories_of(key_values(option or (), "--option"))
    with showing() as progress:
        found = train_signals(
            data, out, rounds=rounds, steps=steps, seed=seed, quantile=quantile,
            memories=memories, progress=progress,
        )  # fmt: skip
    exit_with_json(as_json, [result.to_dict() for result in found])
    from rich.console import Console

    from fedvad.report.tables import UNKNOWN, rich_table

    rows = [["site", "AUROC", "F1 at the threshold", "threshold"]]
    for result in found:
        figures = (UNKNOWN if x is None else f"{x:.3f}" for x in (result.auroc, result.f1))
        rows.append([result.site, *figures, f"{result.model.threshold:.4g}"])
    Console().print(rich_table("Signals", rows))
    if out is not None:
        typer.echo(f"scores (signals.json) and a model of each site: {out}")
