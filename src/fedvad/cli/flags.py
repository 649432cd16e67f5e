"""Options and arguments that several verbs take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import click
import typer


class _Number(click.types.FloatParamType):
    """Numbers, with an answer for those who write percent."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return float(super().convert(value, param, ctx))
        except click.BadParameter:
            share = str(value).strip().removesuffix("%")
            if share == str(value).strip():
                raise
            try:
                given = f"{float(share) / 100:g}"
            except ValueError:
                given = "0.01"
            self.fail(f"{value!r} is no number: give a share, {given} for {value}", param, ctx)


NUMBER = _Number()

_NO_NUMBER = re.compile(r"'(.*)' is not a valid (integer|float)(?: range)?\.")
_GROUPS = re.compile(r"[0-9]{1,3}(?:([,.' ])[0-9]{3})(?:\1[0-9]{3})*")
_UNIT = re.compile(r"([0-9.,]+) ?([kmg]?)i?b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def plainer_number(message: str) -> str:
    """What click says of an option's value; of a number in another spelling, how to write it.

    >>> plainer_number("'1MB' is not a valid integer.")
    "'1MB' is no whole number: write 1000000"
    >>> plainer_number("'0,01' is not a valid float.")
    "'0,01' is no number: write 0.01"
    """
    found = _NO_NUMBER.fullmatch(message)
    if found is None:
        return message
    given, whole = found[1].strip(), found[2] == "integer"
    if whole and _GROUPS.fullmatch(given):
        return f"'{found[1]}' is no whole number: write {re.sub('[^0-9]', '', given)}"
    unit = _UNIT.fullmatch(given)
    number, factor = (unit[1], _UNITS[unit[2].lower()]) if unit and whole else (given, 1)
    try:
        value = float(number.replace(",", ".")) * factor
    except ValueError:
        return message
    if not whole:
        return f"'{found[1]}' is no number: write {value:g}"
    if not value.is_integer():
        return f"'{found[1]}' is no whole number"
    return f"'{found[1]}' is no whole number: write {value:.0f}"


Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Folder of the descriptor cache [default: FEDVAD_CACHE, else the user's cache folder]",
    ),
]
CacheSize = Annotated[
    str, typer.Option("--cache-size", help="Greatest size of the cache, in bytes, for example 20G.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON document on standard output.")
]
JsonLines = Annotated[bool, typer.Option("--json", help="One JSON object per image and line.")]
Good = Annotated[
    list[str] | None,
    typer.Option(
        "--good",
        metavar="NAME",
        help="Folder name that means normal images, besides good. May be repeated.",
    ),
]
Defect = Annotated[
    list[str] | None,
    typer.Option(
        "--defect",
        metavar="NAME",
        help="Folder name that means defects although it sounds normal. May be repeated.",
    ),
]
Run = Annotated[Path, typer.Argument(help="Run folder that train wrote.")]
Site = Annotated[
    str | None,
    typer.Option(help="Site of the run whose own parts and threshold are used."),
]
Reference = Annotated[
    str | None,
    typer.Option(
        help="Memory that scores: of all sites (global), the site's own (local) or both (union) "
        "[default: the run's]"
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="File with the weights of the backbone, in safetensors format. fedvad-tiny and "
        "filterbank need none.",
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        help="Greatest number of pixels of an image; a larger one counts as unreadable [default: "
        "100000000, or that of the run]",
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        click_type=NUMBER,
        help="Decide by this score instead of the run's threshold.",
    ),
]
TargetFpr = Annotated[
    float | None,
    typer.Option(
        "--target-fpr",
        click_type=NUMBER,
        help="Decide by the threshold for this false-alarm rate, above 0 and at most 0.5; it is "
        "found from the scores that the run keeps.",
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="Library that runs the backbone: openvino, openvino-bf16 (in bfloat16, on processors "
        "that have it) or torch [default: the run's]",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Device that runs the backbone: cpu, or cuda or mps with --engine torch [default: the "
        "run's, or cpu where that is not available]",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", help="TOML file of options, as fedvad config prints one. Flags win over it."
    ),
]
Key = Annotated[Path, typer.Option(help="Own private key (.key).")]
State = Annotated[Path, typer.Option(help="Folder for state that is kept between the steps.")]
Sets = Annotated[Path | None, typer.Option("--data", help="Folder that holds the sets.")]
Seeds = Annotated[str | None, typer.Option("--seeds", help="Only these, for example 0,1.")]
Methods = Annotated[
    str | None, typer.Option("--methods", help="Only these, separated by semicolons.")
]
