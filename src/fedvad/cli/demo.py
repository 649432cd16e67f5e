"""`fedvad demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, showing
from fedvad.cli.results import show_results


def demo(
    out: Annotated[Path, typer.Option(help="Folder for images and run.")] = Path("fedvad-demo"),
    seed: Annotated[int, typer.Option(help="Seed of the drawn images and of the run.")] = 0,
    as_json: flags.Json = False,
) -> None:
    """Draw images of a few plants, train on them and report: offline, about a minute."""
    from fedvad.verbs.demo import demo as run_demo

    with showing() as progress:
        results = run_demo(out, seed=seed, progress=progress)
    exit_with_json(as_json, results.to_dict())
    show_results(results, out)
