"""How a detector draws defects to learn from: what all such detectors share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedvad.data.synthesis import SynthesisConfig
from fedvad.errors import ConfigError

__all__ = ["DEFECTS", "check_drawing", "given_drawing", "kept_drawing", "restored_drawing"]

# As large as a cell of the coarsest taps: a defect that covers none of them teaches them nothing.
DEFECTS = SynthesisConfig(area=(0.01, 0.15))


def check_drawing(synthesis: SynthesisConfig, textures: Path | None) -> None:
    """Raise `ConfigError` for what cannot be drawn, or not be kept in a detector's file."""
    if callable(synthesis.foreground):
        raise ConfigError(
            "a foreground function cannot be kept in a detector's file: use 'otsu' or a grey level"
        )
    if synthesis.source == "others":
        raise ConfigError("a detector draws from textures or procedurally, not from 'others'")
    if synthesis.source == "textures" and textures is None:
        raise ConfigError("source 'textures' needs pictures: give textures a folder of them")


def kept_drawing(options: dict[str, Any]) -> None:
    """Make the options of a detector's `state`, in place, such that a file can hold them."""
    if options["textures"] is not None:
        options["textures"] = str(options["textures"])


def restored_drawing(options: dict[str, Any]) -> dict[str, Any]:
    """`synthesis` and `textures` as a constructor takes them, from the options of `state`."""
    textures = options["textures"]
    return {
        "synthesis": _drawing_of(options["synthesis"]),
        "textures": None if textures is None else Path(textures),
    }


def given_drawing(table: Mapping[str, Any]) -> dict[str, Any]:
    """`synthesis` as a constructor takes it, if a configuration's table has it."""
    return {"synthesis": _drawing_of(table["synthesis"])} if "synthesis" in table else {}


def _drawing_of(table: Mapping[str, Any]) -> SynthesisConfig:
    """From a table, whose lists become pairs; what it leaves out is as in `DEFECTS`.

    Raises `TypeError` for keys that do not belong there.
    """
    given: dict[str, Any] = dict(table)
    for name in ("area", "beta"):
        if name in given:
            given[name] = tuple(given[name])
    return replace(DEFECTS, **given)
