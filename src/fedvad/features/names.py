"""What a backbone's name means: the bundled one, a file, or one that needs weights from someone."""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "BUNDLED",
    "IMAGE_SIZE",
    "SPECTRAL",
    "brings_weights",
    "bundled_file",
    "default_backbone",
    "is_backbone_file",
    "name_of_file",
]

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
    return name.endswith(_SUFFIX) or name.startswith(_MARK)


def name_of_file(name: str) -> str:
    """How a configuration calls a file's backbone, wherever the file lies."""
    return f"{_MARK}{name}"


def brings_weights(backbone: str) -> bool:
    """Whether a backbone of this name has its weights: the bundled one, files, the filter bank."""
    return backbone in (BUNDLED, "filterbank") or is_backbone_file(backbone)
