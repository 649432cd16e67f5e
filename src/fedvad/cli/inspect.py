"""`fedvad inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedvad.cli import flags
from fedvad.cli.common import print_json
from fedvad.errors import FederationError

_FEW, _SHOWN = 4, 12


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            help="Run folder, detector file, message, receipt, public key, or folder of images."
        ),
    ],
    trust: Annotated[
        Path | None,
        typer.Option(
            help="Public key, or folder of them, that the file must be signed with: exit code 4 "
            "when it is not."
        ),
    ] = None,
    good: flags.Good = None,
    defect: flags.Defect = None,
    as_json: flags.Json = False,
) -> None:
    """Describe a run or a file of fedvad, or how a data folder will be read."""
    from fedvad.verbs.inspect import inspect as run_inspect

    described = run_inspect(path, trust=trust, good=good or (), defect=defect or ())
    print_json(described) if as_json else _print(described)
    if described.get("trusted") is False:
        raise typer.Exit(FederationError.exit_code)


def _print(described: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if "data" in described and "arrays" not in described:
        from fedvad.report.tables import rich_data_table

        console.print(rich_data_table(described["data"]))
        return
    described = dict(described)
    arrays: dict[str, dict[str, Any]] = described.pop("arrays")
    if summary := described.pop("summary", ""):
        console.print(summary, style="bold", highlight=False, markup=False)
    says: list[str] = described.pop("says", [])
    for sentence in says:
        console.print(f"• {escape(sentence)}", highlight=False, soft_wrap=True)
    shares = described.pop("provenance", {})
    if shares is None:
        console.print("Provenance unknown: an earlier fedvad wrote it.", highlight=False)
    elif shares:
        whose = Table("site", "rows", "of the rows", "of the patches", "rounds")
        for site, share in shares.items():
            whose.add_row(
                escape(site), f"{share['rows']:g}", f"{share['share_of_rows']:.1%}",
                f"{share['share_of_patches']:.1%}", ", ".join(map(str, share["rounds"])),
            )  # fmt: skip
        console.print(whose)
    for key, value in described.items():
        if key == "image" and value is None:  # a receipt of a whole site
            continue
        if isinstance(value, dict | list):
            console.print(f"[bold]{key}[/bold]")
            console.print_json(json.dumps(_brief(value)))
        else:
            console.print(f"[bold]{key}[/bold] {escape(str(value))}", highlight=False)
    table = Table("array", "shape", "type", "bytes", "min", "max")
    for name, a in arrays.items():
        limits = [f"{v:.4g}" if v is not None else "" for v in (a["min"], a["max"])]
        shape = " × ".join(map(str, a["shape"]))
        table.add_row(escape(name), shape, a["dtype"], f"{a['bytes']:,}", *limits)
    if arrays:
        console.print(table)


def _brief(value: Any) -> Any:
    """A value for people: long lists of numbers as their range, others as their first entries."""
    rest = len(value) - _SHOWN if isinstance(value, dict | list) else 0
    if isinstance(value, dict):
        kept = {key: _brief(value[key]) for key in list(value)[:_SHOWN]}
        return kept | {f"... {rest} more": "--json shows all"} if rest > 0 else kept
    if not isinstance(value, list):
        return value
    if len(value) > _FEW and all(isinstance(entry, int | float) for entry in value):
        return f"{len(value)} numbers from {min(value):.4g} to {max(value):.4g}"
    first = [_brief(entry) for entry in value[:_SHOWN]]
    return [*first, f"... {rest} more: --json shows all"] if rest > 0 else first
