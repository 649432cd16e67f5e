"""Seeded synthetic defects on normal images, for detectors that learn from pairs."""

from fedvad.data.synthesis.config import KINDS, SynthesisConfig
from fedvad.data.synthesis.foreground import find_foreground
from fedvad.data.synthesis.synthesise import FALL_BACK, Defect, synthesise
from fedvad.data.synthesis.textures import TextureFolder

__all__ = [
    "FALL_BACK",
    "KINDS",
    "Defect",
    "SynthesisConfig",
    "TextureFolder",
    "find_foreground",
    "synthesise",
]
