"""Values out of files become typed objects here, or an error that names the one that is wrong."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
)
from pydantic_core import PydanticCustomError

from fedvad.data.texts import read_text
from fedvad.errors import ArtefactError, ConfigError, FedvadError

_BACKSLASH = ": write paths with / or in single quotes, such as 'C:\\data'"
_Made = TypeVar("_Made")
_Model = TypeVar("_Model", bound=BaseModel)


class Closed(BaseModel):
    """Values that do not change, and no others than those named."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Stored(Closed):
    """What we wrote ourselves: neither numbers as text nor NaN is needed there."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Given(Closed):
    """What people write: numbers as text will do."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: Any, field: ValidationInfo) -> Any:
        """True and false are no numbers, although Python counts with them."""
        if isinstance(value, bool) and field.field_name in cls.model_fields:
            wanted = cls.model_fields[field.field_name].annotation
            kinds = set(get_args(wanted)) or {wanted}
            if kinds & {int, float} and bool not in kinds:
                raise PydanticCustomError("bool_as_number", "Input should be a number")
        return value


def read_toml(file: Path | Traversable, kind: str = "", mend: str = "") -> dict[str, Any]:
    """Values of a TOML file, which is a `kind`; raises `ConfigError`, with how to `mend` it."""
    try:
        return tomllib.loads(read_text(file))
    except OSError as error:
        raise ConfigError(f"cannot read {kind}{file}: {error.strerror or error}{mend}") from error
    except ValueError as error:  # of which TOMLDecodeError is one
        mend = _BACKSLASH if "\\" in str(error) else ""
        raise ConfigError(f"{file} is not valid TOML: {error}{mend}") from error


def parse_values(model: type[_Model], values: Mapping[str, Any], what: str | Path) -> _Model:
    """Checked values; raises `ArtefactError` naming `what` and the first one that is wrong.

    what: a file, or what came in a message.
    """
    mend = "; restore it from a copy" if isinstance(what, Path) else ""
    try:
        return model.model_validate_json(json.dumps(values))
    except ValidationError as error:
        fault = first_fault(error)
        raise ArtefactError(f"{what} is incomplete or damaged: {fault}{mend}") from error
    except (TypeError, ValueError) as error:
        raise ArtefactError(f"{what} is incomplete or damaged: {error}{mend}") from error


def strictly(kind: type[_Made], values: Any, what: str) -> _Made:
    """A dataclass from its `asdict` as JSON gives it back, with every type and number checked.

    Raises `ArtefactError` naming `what` for a wrong type, NaN, a missing or an unknown field, and
    for what the dataclass itself refuses.
    """
    if not isinstance(values, Mapping):
        raise ArtefactError(f"{what} is incomplete or damaged: it is no table of values")
    found = parse_values(_model(kind), values, what)  # type: ignore[arg-type]
    try:
        return kind(**{f.name: getattr(found, f.name) for f in fields(kind)})  # type: ignore[arg-type]
    except (FedvadError, TypeError, ValueError) as error:
        raise ArtefactError(f"{what} is damaged: {error}") from error


def check_finite(
    arrays: Mapping[str, npt.NDArray[Any]], values: Mapping[str, Any], what: str
) -> None:
    """Raise `ArtefactError` naming an array or a value that holds NaN or infinity."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ArtefactError(f"{what} is damaged: {name} holds NaN or infinity")
    stack: list[tuple[str, Any]] = list(values.items())
    while stack:
        name, value = stack.pop()
        if isinstance(value, dict):
            stack += [(f"{name}.{key}", inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            stack += [(name, inner) for inner in value]
        elif isinstance(value, float) and not math.isfinite(value):
            raise ArtefactError(f"{what} is damaged: {name} is {value}")


@cache
def _model(kind: type[Any]) -> type[BaseModel]:
    hints = get_type_hints(kind)
    described: dict[str, Any] = {}
    for field in fields(kind):
        default: Any = ... if field.default is MISSING else field.default
        if field.default_factory is not MISSING:
            default = Field(default_factory=field.default_factory)
        described[field.name] = (hints[field.name], default)
    made: type[BaseModel] = create_model(kind.__name__, __base__=Stored, **described)
    return made


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong, in one short line."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    more = error.error_count() - 1
    rest = f" (and {more} more)" if more else ""
    return f"{where}: {first['msg']}{rest}" if where else f"{first['msg']}{rest}"
