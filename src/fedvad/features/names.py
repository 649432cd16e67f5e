"""What a backbone's name means: the bundled one, a file, or one that needs weights from someone."""

from __future__ import annotations

import os
from pathlib import Path

from fedvad.features.families import FILE, family_of

BUNDLED = "fedvad-tiny"
SPECTRAL = "spectral"  # for cubes of bands, not for pictures
IMAGE_SIZE = 256  # side in pixels, by default
_SUFFIX = ".safetensors"
_MARK = "file:"  # before the name of a file's backbone in configurations that know its content


def bundled_file() -> Path:
    """Where the package keeps the backbone file of `BUNDLED`."""
    return Path(__file__).parent / "weights" / f"{BUNDLED}{_SUFFIX}"


def default_backbone(weights: str | Path | None) -> str:
    """Whose weights they are taken to be where nobody names a backbone."""
    return BUNDLED if weights is None else "resnet18"


def is_backbone_file(name: str) -> bool:
    """Whether a backbone's name means a file: its path, or `file:` and what it calls itself."""
    return family_of(name) is FILE


def name_of_file(name: str) -> str:
    """How a configuration calls a file's backbone, wherever the file lies."""
    return f"{_MARK}{name}"


def brings_weights(backbone: str) -> bool:
    """Whether a backbone of this name needs weights from nobody, as files and some families do."""
    family = family_of(backbone)
    return family is not None and family.brings_weights


def is_readable(path: Path) -> bool:
    """Whether it is a file that this process may read, in folders that it may enter."""
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except OSError:
        return False
