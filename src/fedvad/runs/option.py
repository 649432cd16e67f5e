"""What an option declares: the model checks it; flags, templates and the docs are made of it."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

Kind = Literal["bool", "int", "float", "text", "path", "texts", "ints", "table"]
_SCALARS: dict[type, Kind] = {bool: "bool", int: "int", float: "float", str: "text", Path: "path"}
_LIMITS = ("ge", "gt", "le", "lt")
_KINDS: dict[Kind, str] = {
    "bool": "true or false", "int": "a whole number", "float": "a number", "text": "text",
    "path": "a path", "texts": "a list of texts", "ints": "a list of whole numbers",
    "table": "a table",
}  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One option of `train`, as its declaration says.

    name: key in a configuration file; dotted for a key of a table, as `student.steps`.
    kind: what it holds; `choices` its values where only these are allowed.
    default: None where it depends on other options; `default_text` then says how. example: a
    value, where there is none by default.
    limits: of its values, by `ge`, `gt`, `le`, `lt`. unit: of a number, in the plural.
    everyday: shown by `--help`; the others by `--help-all` only.
    free: may differ between an interrupted run and its `--resume`. own: a site's own affair in a
    federation of real machines. common: means something to every method; for any other option,
    `Method.options` says to which. only: the one method that has it, where there is just one.
    """

    name: str
    kind: Kind
    default: Any
    example: Any
    help: str
    group: str
    default_text: str
    choices: tuple[str, ...]
    limits: dict[str, float]
    unit: str
    everyday: bool
    free: bool
    own: bool
    common: bool
    only: str

    @property
    def flag(self) -> str:
        """The option's name on the command line."""
        return "--" + self.name.replace(".", "-").replace("_", "-")

    @property
    def allowed(self) -> str:
        """Which values are allowed, in words; empty where all of the type are."""
        if self.choices:
            return ("any of " if self.kind == "texts" else "one of ") + ", ".join(self.choices)
        parts = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
        bounds = {key: _number(value) for key, value in self.limits.items()}
        if {"ge", "le"} <= bounds.keys():
            said = f"from {bounds['ge']} to {bounds['le']}"
        else:
            said = " and ".join(parts[key].format(value) for key, value in bounds.items())
        unit = self.unit.removesuffix("s") if said.endswith(" 1") else self.unit
        return f"{said} {unit}".strip()

    @property
    def wanted(self) -> str:
        """What a value must be, in words: its type, and which of its values are allowed."""
        if self.choices:
            return self.allowed
        return ", ".join(part for part in (_KINDS[self.kind], self.allowed) if part)


def option(
    default: Any,
    help: str,
    *,
    group: str,
    unit: str = "",
    example: Any = None,
    default_text: str = "",
    choices: tuple[str, ...] = (),
    everyday: bool = False,
    free: bool = False,
    own: bool = False,
    common: bool = False,
    only: str = "",
    **limits: float,
) -> Any:
    """A pydantic field with everything that `Option` tells about it.

    default: a value, or a function that makes one. choices: only where the type does not say them.
    """
    extra = {
        "group": group, "example": example, "unit": unit, "default_text": default_text,
        "choices": list(choices), "everyday": everyday, "free": free, "own": own,
        "common": common, "only": only,
    }  # fmt: skip
    made: Callable[..., Any] = Field
    if callable(default):
        return made(default_factory=default, description=help, json_schema_extra=extra, **limits)
    return made(default, description=help, json_schema_extra=extra, **limits)


def declared(model: type[BaseModel], prefix: str = "") -> Iterator[Option]:
    """All options of a model in the order of their declaration, those of its tables included."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from declared(annotation, f"{prefix}{name}.")
        else:
            yield _read(prefix + name, field)


def names_of(model: type[BaseModel], keep: Callable[[Option], bool]) -> frozenset[str]:
    """Keys of a model's options that `keep` chooses; a table belongs when one of its keys does."""
    return frozenset(found.name.split(".")[0] for found in declared(model) if keep(found))


def _read(name: str, field: FieldInfo) -> Option:
    extra: dict[str, Any] = dict(field.json_schema_extra or {})  # type: ignore[arg-type]
    kind, choices = _kind(field.annotation)
    default = field.get_default(call_default_factory=True)
    limits = {
        key: getattr(rule, key)
        for rule in field.metadata
        for key in _LIMITS
        if getattr(rule, key, None) is not None
    }
    return Option(
        name=name,
        kind=kind,
        default=default,
        help=field.description or "",
        default_text=extra.pop("default_text") or _text(default),
        choices=choices or tuple(extra["choices"]),
        limits=limits,
        **{
            key: extra[key]
            for key in ("group", "example", "unit", "everyday", "free", "own", "common", "only")
        },
    )


def _kind(annotation: Any) -> tuple[Kind, tuple[str, ...]]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        return _kind(parts[0]) if len(parts) == 1 else ("text", ())
    if origin is Literal:
        values = get_args(annotation)
        return _SCALARS[type(values[0])], tuple(str(value) for value in values)
    if origin is tuple:
        return ("ints" if get_args(annotation)[0] is int else "texts"), ()
    if origin is dict:
        return "table", ()
    return _SCALARS[annotation], ()


def _text(default: Any) -> str:
    if default is None or default in ((), {}):
        return "none"
    if isinstance(default, bool):
        return "true" if default else "false"
    return _number(default) if isinstance(default, int | float) else str(default)


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
