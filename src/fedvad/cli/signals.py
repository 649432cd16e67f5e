"""`fedvad signals`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedvad.cli import flags
from fedvad.cli.common import decision, exit_with_json, showing
from fedvad.cli.options import key_values


def signals(
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder with one folder per site: train.npy, and perhaps test.npy, labels.npy. "
            "With --model: a file of windows."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of scores and models; with --model a JSON file of scores."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Score the windows with this model, one of --out, instead of training."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Rounds of averaging [default: 5]", min=1)
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Training steps of a site in each round [default: 100]", min=1),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of all random choices [default: 0]", min=0)
    ] = None,
    quantile: Annotated[
        float | None,
        typer.Option(
            help="Quantile of held-out normal scores that is the threshold [default: 0.98]"
        ),
    ] = None,
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
    options: dict[str, Any] = {
        "rounds": rounds, "steps": steps, "seed": seed, "quantile": quantile, "option": option,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value not in (None, [])}
    if model is not None:
        if given:
            from fedvad.errors import ConfigError, join_names

            trains = join_names(f"--{name}" for name in given)
            raise ConfigError(f"--model trains nothing: leave out {trains}")
        _score(data, model, out, as_json)
        return
    from fedvad.detectors.student.amsl.options import memories_of
    from fedvad.verbs.signals import train_signals

    memories = memories_of(key_values(given.pop("option", ()), "--option"))
    with showing() as progress:
        found = train_signals(data, out, memories=memories, progress=progress, **given)
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


def _score(windows: Path, model: Path, out: Path | None, as_json: bool) -> None:
    from fedvad.verbs.signals import score_signals

    found = score_signals(windows, model, out)
    said = found.to_dict()
    exit_with_json(as_json, said)
    for i, (score, over) in enumerate(zip(said["scores"], said["anomalous"], strict=True)):
        typer.echo(f"{decision(score, over, found.threshold)}  window {i}")
    typer.echo(f"{found.anomalous.sum()} of {len(found.scores)} windows are anomalous")
