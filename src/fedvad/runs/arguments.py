"""Arguments of the verbs, as people give them in Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from fedvad.errors import ConfigError
from fedvad.features.cache import DescriptorCache, default_cache_root
from fedvad.runs.config import as_path

AnyPath = str | PathLike[str]
AnyCache = DescriptorCache | AnyPath


def maybe(value: AnyPath | None, name: str) -> Path | None:
    """A path, or None where none is given."""
    return None if value is None else as_path(value, name)


def listed(values: Any, name: str) -> list[Any]:
    """A list of what can be gone through; raises `ConfigError`."""
    if isinstance(values, bytes) or not isinstance(values, Iterable):
        raise ConfigError(f"{name} is a {type(values).__name__}; give a list")
    return list(values)


def by_backbone(weights: Mapping[str, AnyPath] | None) -> dict[str, Path]:
    """Files by the name of a backbone; raises `ConfigError`."""
    if weights is not None and not isinstance(weights, Mapping):
        raise ConfigError('weights is a mapping here: {"NAME of the backbone": FILE}')
    return {name: as_path(file, f"weights of {name}") for name, file in (weights or {}).items()}


def paths_of(values: AnyPath | Iterable[AnyPath], name: str) -> list[Path]:
    """Paths of one or of a list; raises `ConfigError`."""
    several = [values] if isinstance(values, str | PathLike) else listed(values, name)
    return [as_path(value, name) for value in several]


def cache_at(root: AnyCache | None) -> DescriptorCache:
    """The descriptor cache itself, or that at `root`, or at its default place."""
    if isinstance(root, DescriptorCache):
        return root
    return DescriptorCache(default_cache_root() if root is None else as_path(root, "cache"))
