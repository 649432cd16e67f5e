"""The results of a run on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedvad.evaluation.results import Results


def show_results(results: Results, out: Path | None) -> None:
    """Verdict, tables and advice on the terminal, and where the files are."""
    from rich.console import Console

    from fedvad.report.results_tables import rich_tables
    from fedvad.report.verdict import advice, fitness, gain

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False)

    console = Console()
    for sentence in filter(None, (fitness(results), gain(results))):
        say(sentence, "bold")
    say("")
    for table in rich_tables(results):
        console.print(table)
    if strangers := results.sites_never_trained_on:
        say(
            f"Not sites of this run: {', '.join(strangers)}. Their thresholds are found now, from "
            "their own training images where there are any."
        )
    for sentence in advice(results):
        say(sentence)
    shown = [] if results.backbone is None else [f"Backbone: {results.backbone}"]
    if out is not None:
        page = out / "report.html"
        shown += [f"Report: {page}"] if page.exists() else []
        shown.append(f"Run folder: {out}")
    if shown:
        console.print("   ".join(shown), soft_wrap=True, highlight=False, markup=False)
