"""The configuration of `train`: from presets, a TOML file and flags, in that order."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from os import PathLike, fspath
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import ValidationError

from fedvad.data.checked import read_toml
from fedvad.data.region import parse_region
from fedvad.data.view_choice import USUAL_SIZE
from fedvad.data.views import Size, is_plain
from fedvad.errors import ConfigError
from fedvad.features.config import FeatureConfig
from fedvad.features.names import is_backbone_file
from fedvad.runs.families import DEFAULT_METHOD, METHODS, method_class
from fedvad.runs.option import declared
from fedvad.runs.options import (
    CALIBRATION_IMAGES,
    COMMON_OPTIONS,
    COMPARISONS,
    FREE_ON_RESUME,
    OWN_OF_SITE,
    TARGET_FPR,
    Reference,
    ThresholdRule,
)
from fedvad.runs.options_sites import Defence
from fedvad.runs.student_config import StudentOptions
from fedvad.runs.train_config import TrainConfig

__all__ = [
    "CALIBRATION_IMAGES",
    "COMMON_OPTIONS",
    "COMPARISONS",
    "FREE_ON_RESUME",
    "METHODS",
    "OWN_OF_SITE",
    "TARGET_FPR",
    "Defence",
    "Reference",
    "ThresholdRule",
    "TrainConfig",
    "as_path",
    "at_size",
    "check_reference",
    "check_share",
    "given_values",
    "resolve_config",
]

# what pydantic calls a value that a declaration does not allow
_OUTSIDE = (
    "greater_than", "greater_than_equal", "less_than", "less_than_equal", "literal_error",
)  # fmt: skip
# of `fedvad train`, in no configuration file
_OF_THE_COMMAND = frozenset({"data", "out", "config", "plan", "cache", "resume"})


def check_reference(reference: str | None) -> Reference | None:
    """A reference set's exact name, or None; raises `ConfigError` for anything else."""
    if reference is None or reference in get_args(Reference):
        return cast(Reference | None, reference)
    raise ConfigError(f"unknown reference {reference!r}; choose global, local or union")


def check_share(value: float, name: str) -> float:
    """A share in [0, 1]; raises `ConfigError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value!r}; it must be a share from 0 to 1, for example 0.05")
    return float(value)


def at_size(config: TrainConfig, size: Size) -> TrainConfig:
    """The configuration with the size at which images are read."""
    return config.model_copy(update={"image_size": size})


def as_path(value: Any, name: str) -> Path:
    """A path given as text or path object; raises `ConfigError` for anything else, and ""."""
    if isinstance(value, str | PathLike) and isinstance(path := fspath(value), str) and path:
        return Path(path)
    raise ConfigError(f"{name} is {value!r}; give a path, as text or pathlib.Path")


def resolve_config(
    file: Path | None = None, *, plan: Path | None = None, **flags: Any
) -> TrainConfig:
    """Merge method preset, TOML files and flags (None means not given) into a checked config.

    plan: what `fedvad plan` wrote; `file` wins over it. Of the table `student`, flags replace
    single keys of the file's. Raises `ConfigError` naming the key and the mend.
    """
    values = given_values(plan) | given_values(file, **flags)
    method = values.get("method", DEFAULT_METHOD)
    _check_meaning(method, values)
    try:
        config = TrainConfig(**(METHODS[method] | _absolute(values)))
        config.memory(1)
        config.label_names()
        at_size(config, config.image_size if is_plain(config.image_size) else USUAL_SIZE).features()
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error
    return config


def given_values(file: Path | None = None, **flags: Any) -> dict[str, Any]:
    """What a TOML file and flags say (None means not given), by key; raises `ConfigError`."""
    values = {} if file is None else read_toml(file, "configuration ")
    given = {key: value for key, value in flags.items() if value is not None}
    table = values.get("student")
    if isinstance(table, dict) and isinstance(given.get("student"), dict):
        given["student"] = table | given["student"]
    return values | given


def _absolute(values: Mapping[str, Any]) -> dict[str, Any]:
    """With the paths of files as they are found from any folder."""
    placed = dict(values)
    if isinstance(placed.get("weights"), str | Path):
        placed["weights"] = Path(placed["weights"]).absolute()
    if isinstance(placed.get("region"), str | Path):
        placed["region"] = parse_region(str(placed["region"]))
    backbone = placed.get("backbone")
    if isinstance(backbone, str) and is_backbone_file(backbone):
        placed["backbone"] = str(Path(backbone).absolute())
    return placed


def _check_meaning(method: str, values: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for options that the method has no use for."""
    table = values.get("student") or {}
    # a whole configuration, as a site keeps it, has the table with its defaults
    default = StudentOptions().model_dump()
    changed = isinstance(table, Mapping) and default | dict(table) != default
    given = set(values) & set(TrainConfig.model_fields) - ({"student"} if not changed else set())
    if foreign := given - method_class(method).options:
        fit = ", ".join(name for name in METHODS if foreign <= method_class(name).options)
        keys = [f"student.{key}" for key in table if table[key] != default.get(key)]
        names = ", ".join(sorted(foreign - {"student"}) + keys * ("student" in foreign))
        raise ConfigError(
            f"{method} has no use for {names}: omit what changes nothing"
            + (f", or choose --method {fit}" if fit else "")
        )
    if values.get("overlap") not in (None, FeatureConfig.overlap) and values.get("tiles") is None:
        raise ConfigError("overlap needs tiles: give --tiles too, or leave out --overlap")
    for option in declared(StudentOptions) if changed else ():
        if option.only and option.only != method and table.get(option.name) not in (
            None, option.default,
        ):  # fmt: skip
            raise ConfigError(
                f"student.{option.name} is an option of {option.only}: {method} has no use for it"
            )


def _explain(error: ValidationError) -> str:
    known = {option.name: option for option in declared(TrainConfig)}
    parts = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = get_close_matches(key, known, n=1)
            mend = f"did you mean {near[0]!r}?" if near else "`fedvad config` lists all keys"
            if key in _OF_THE_COMMAND:
                mend = (
                    "it belongs on the command line: `fedvad train DATA --out FOLDER --config FILE`"
                )
            parts.append(f"unknown configuration key {key!r}; {mend}")
        elif key in known and problem["type"] != "value_error":
            allowed = known[key].allowed if problem["type"] in _OUTSIDE else known[key].wanted
            parts.append(f"{key} is {problem['input']!r}; it must be {allowed}")
        else:
            said = str(problem["msg"]).removeprefix("Value error, ")
            parts.append(f"{key}: {said} (got {problem['input']!r})" if key else said)
    return "; ".join(parts)
