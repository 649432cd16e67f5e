"""Rows of strings as CSV, Markdown and terminal tables; the first row of a table is its header."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from fedvad.data.files import write_atomically
from fedvad.data.reading import data_table

if TYPE_CHECKING:
    from rich.table import Table

Rows = Sequence[Sequence[str]]

UNKNOWN = "–"
# what a gain has after it
INTERVAL = re.compile(r" (\([-\d.]+ to [-\d.]+\))")
_NARROW = 12  # characters: columns up to this width keep it in a narrow terminal


def without_empty(rows: Rows) -> list[list[str]]:
    """Rows without the columns in which nothing is known; the first column stays.

    >>> without_empty([["site", "recall", "gain"], ["a", "0.9", "–"], ["b", "–", "–"]])
    [['site', 'recall'], ['a', '0.9'], ['b', '–']]
    """
    kept = [
        index
        for index in range(len(rows[0]))
        if index == 0 or any(row[index] != UNKNOWN for row in rows[1:])
    ]
    return [[row[index] for index in kept] for row in rows]


def write_csv(rows: Rows, path: Path) -> None:
    """Write rows as a CSV file (UTF-8), in one step; raises StorageError when the disk refuses."""
    buffer = StringIO(newline="")
    neutral = [[neutral_cell(cell) for cell in row] for row in rows]
    csv.writer(buffer, lineterminator="\n").writerows(neutral)
    write_atomically(path, buffer.getvalue().encode(errors="backslashreplace"))


def neutral_cell(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: text with = + - @ in front gets a quote.

    So does text that begins with a tab or line break. Numbers stay, also written as text.
    """
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def to_markdown(rows: Rows) -> str:
    """Rows as a Markdown table, numbers to the right; "" for no rows."""
    if not rows:
        return ""
    header, *body = ([_cell(text) for text in row] for row in rows)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rich_data_table(data: Mapping[str, Any], *, guesses_only: bool = False) -> Table:
    """What was read of a data folder and what was not, for the terminal; see `data_table`."""
    return rich_table("Data", data_table(data, guesses_only=guesses_only), numbers=1)


def rich_table(title: str, rows: Rows, *, numbers: int | None = None) -> Table:
    """A table for the terminal; headings wrap to the figures below, only long cells wrap.

    numbers: the only column that is aligned to the right; None for all but the first.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold")
    table.box, table.padding, table.pad_edge = SIMPLE_HEAD, (0, 1, 0, 0), False
    # an interval stands below its gain, so that no figure is broken in a narrow terminal
    body = [[INTERVAL.sub(r"\n\1", cell) for cell in row] for row in rows[1:]]
    for index, heading in enumerate(rows[0]):
        lines = [line for row in body for line in row[index].split("\n")]
        longest = max(map(len, [*heading.split(), *lines]))
        table.add_column(
            Text("\n".join(wrap(heading, longest))),
            justify="right" if index == numbers or (numbers is None and index) else "left",
            no_wrap=longest <= _NARROW,
            overflow="fold",
        )
    for row in body:
        table.add_row(*map(Text, row))  # Text: a site called "[red]" is a name, not markup
    return table


def spread(values: Mapping[str, Any] | None, form: str = ".3f") -> str:
    """Mean ± standard deviation, or a dash."""
    if values is None or values["mean"] is None:
        return UNKNOWN
    sd = "" if values["sd"] is None else f" ± {values['sd']:{form}}"
    return f"{values['mean']:{form}}{sd}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
