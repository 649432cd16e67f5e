"""Every error that fedvad raises on purpose, with the exit code the command line gives it.

Exit codes: 0 ok, 2 usage or configuration, 3 data or files, 4 federation, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any, get_args

__all__ = [
    "ArtefactError",
    "ConfigError",
    "DataError",
    "FederationError",
    "FedvadError",
    "ImageError",
    "InUseError",
    "MemoryBankError",
    "MismatchError",
    "PayloadError",
    "StorageError",
    "WeightsError",
    "check_choice",
    "check_ranges",
    "join_names",
]


class FedvadError(Exception):
    """Base of all fedvad errors; the message names what is wrong and how to fix it."""

    exit_code = 1


class ConfigError(FedvadError):
    """A wrong option, an unknown configuration key, an impossible combination."""

    exit_code = 2


class InUseError(ConfigError):
    """Another process, or thread, works on the folder."""


class WeightsError(ConfigError):
    """Backbone weights are missing or do not fit the backbone."""


class MismatchError(ConfigError):
    """A detector meets another backbone, other weights or another feature configuration."""


class DataError(FedvadError):
    """A missing folder, too many unreadable images, an empty site."""

    exit_code = 3


class ImageError(DataError):
    """One image that cannot be decoded, with its path in the message."""


class ArtefactError(DataError):
    """A run folder or detector file that is incomplete, damaged or of an unknown version."""


class StorageError(DataError):
    """The disk refuses: full, read-only, or gone."""


class MemoryBankError(DataError):
    """A memory bank that breaks its invariants (shape, finiteness, positive weights)."""


class FederationError(FedvadError):
    """A round that cannot continue: no site answered, or sites that do not fit together."""

    exit_code = 4


class PayloadError(FederationError):
    """A message that cannot be accepted: damaged, oversized, or of another federation."""


def check_choice(name: str, value: object, kind: Any) -> None:
    """Raise `ConfigError` for a value that the `Literal` type `kind` of an option does not have."""
    if value not in get_args(kind):
        raise ConfigError(f"unknown {name} {value!r}; choose from {join_names(get_args(kind))}")


def check_ranges(options: object, ranges: Mapping[str, str]) -> None:
    """Raise `ConfigError` for an option outside its interval, such as "(0, 1]"; None is in each.

    ranges: names, separated by spaces, by interval.
    """
    for interval, names in ranges.items():
        low, high = map(float, interval[1:-1].split(","))
        for name in names.split():
            value = getattr(options, name)
            if value is None or low < value < high:
                continue
            if not ((value == low and "[" in interval) or (value == high and "]" in interval)):
                raise ConfigError(f"{name} must lie in {interval}, got {value}")


def join_names(names: Iterable[object], most: int = 8) -> str:
    """Names for a message, those of a set or mapping sorted: "a, b and 3 more" beyond `most`.

    >>> join_names({"b", "a", "d", "c"}, 2)
    'a, b and 2 more'
    """
    names = sorted(names, key=str) if isinstance(names, Set | Mapping) else names
    shown = [text if (text := str(name)).isprintable() else repr(text) for name in names]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return (", ".join(shown[:most]) or "none") + more
