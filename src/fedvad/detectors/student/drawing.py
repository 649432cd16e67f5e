"""How a detector draws defects to learn from: what all such detectors share."""

from __future__ import annotations

from pathlib import Path

from fedvad.data.synthesis import SynthesisConfig
from fedvad.errors import ConfigError

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
