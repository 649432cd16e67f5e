"""Options of a detector as its file keeps them: JSON values, from which they are made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any


def option_names(kind: type[Any]) -> list[str]:
    """The options of a detector's class, in their order in a file, which has the seed apart."""
    apart = ("extractor", "seed", "train")
    return [*(field.name for field in fields(kind) if field.name not in apart), "train"]


def plain(value: Any) -> Any:
    """An option as JSON holds it."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value) if isinstance(value, Path) else value


def restored(kind: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """What the constructor takes, from options as `plain` made them."""
    made = {
        name: type(getattr(kind, name))(**tupled(options[name]))
        for name in option_names(kind)
        if is_dataclass(getattr(kind, name))
    }
    if options.get("textures") is not None:
        made["textures"] = Path(options["textures"])
    return tupled(options) | made


def tupled(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table whose lists, the only form that files have, become tuples."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in table.items()}
