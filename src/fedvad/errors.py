"""Every error that fedvad raises on purpose, with the exit code the command line gives it.

Exit codes: 0 ok, 2 usage or configuration, 3 data or files, 4 federation, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from numbers import Integral, Real
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
    "check_values",
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


def check_values(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for values of another type than a function's defaults, or options that it
    does not have. function: also a class, whose options are those of its constructor.

    >>> check_values(sorted, {"reverse": 7})
    Traceback (most recent call last):
        ...
    fedvad.errors.ConfigError: reverse is 7; give true or false, such as False
    """
    from inspect import signature

    parts = signature(function).parameters.items()
    defaults = {name: part.default for name, part in parts if part.default is not part.empty}
    for name, value in given.items():
        if name not in defaults:
            raise ConfigError(f"{name} is no option here: choose from {', '.join(defaults)}")
        if not _like(value, default := defaults[name]):
            said = _KINDS[type(default)]
            raise ConfigError(f"{name} is {value!r}; give {said}, such as {default!r}")


_KINDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text",
    tuple: "a list",
}  # fmt: skip


def _like(value: object, default: object) -> bool:
    """Whether a value has the type of a default; a list of numbers also its length."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int | float):
        kind = Integral if isinstance(default, int) else Real
        return isinstance(value, kind) and not isinstance(value, bool)
    if isinstance(default, str):  # an object may stand for its name
        return not isinstance(value, int | float | list | tuple | dict)
    if isinstance(default, tuple) and default:
        if not isinstance(value, list | tuple) or not all(_like(v, default[0]) for v in value):
            return False
        return isinstance(default[0], str) or len(value) == len(default)
    return True


def join_names(names: Iterable[object], most: int = 8) -> str:
    """Names for a message, those of a set or mapping sorted: "a, b and 3 more" beyond `most`.

    >>> join_names({"b", "a", "d", "c"}, 2)
    'a, b and 2 more'
    """
    names = sorted(names, key=str) if isinstance(names, Set | Mapping) else names
    shown = [text if (text := str(name)).isprintable() else repr(text) for name in names]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return (", ".join(shown[:most]) or "none") + more
