"""What a backbone's name means: a file, or one that may need weights from someone."""

from __future__ import annotations

__all__ = ["brings_weights", "is_backbone_file", "name_of_file"]

_SUFFIX = ".safetensors"
_MARK = "file:"  # before the name of a file's backbone in configurations that know its content


def is_backbone_file(name: str) -> bool:
    """Whether a backbone's name means a file: its path, or `file:` and what it calls itself."""
    return name.endswith(_SUFFIX) or name.startswith(_MARK)


def name_of_file(name: str) -> str:
    """How a configuration calls a file's backbone, wherever the file lies."""
    return f"{_MARK}{name}"


def brings_weights(backbone: str) -> bool:
    """Whether a backbone of this name has its weights: files, and the filter bank needs none."""
    return backbone == "filterbank" or is_backbone_file(backbone)
