"""Write what is made of the declared options: tables of the documentation, types of the Python API.

python scripts/write_reference.py
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from fedvad.runs.config import FREE_ON_RESUME, TrainConfig
from fedvad.runs.families import FAMILIES, METHODS, family_of, method_class
from fedvad.runs.option import Option, declared
from fedvad.runs.student_config import StudentOptions
from fedvad.runs.template import as_toml

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/configuration.md"
TYPES = ROOT / "src/fedvad/runs/typed_options.py"
BEGIN = "<!-- written by scripts/write_reference.py: change the declarations instead -->\n"
END = "<!-- end of what is written by scripts/write_reference.py -->\n"

_HEAD = '''"""Types of `fedvad.train`'s options; written by scripts/write_reference.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

__all__ = ["StudentTable", "TrainOptions"]
'''


def page(text: str) -> str:
    """The page of the documentation with its tables written again."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + tables() + "\n" + END + after


def tables() -> str:
    """Tables of all options by group, of the presets, and what --resume may change."""
    lines = []
    for group, members in groupby(declared(TrainConfig), key=lambda one: one.group):
        lines += [f"## {group}", "", "| key | default | allowed | methods | meaning |"]
        lines += ["| --- | --- | --- | --- | --- |", *map(_row, members), ""]
    lines += ["## Presets", "", "| `method` | sets, unless given |", "| --- | --- |"]
    for method, values in METHODS.items():
        said = ", ".join(f"`{key} = {as_toml(value)}`" for key, value in values.items())
        lines.append(f"| `{method}` | {said or 'nothing'} |")
    free = ", ".join(f"`{name}`" for name in sorted(FREE_ON_RESUME))
    lines += ["", f"An interrupted run and its `--resume` may differ in {free}; in nothing else."]
    return "\n".join(lines) + "\n"


def _row(one: Option) -> str:
    key = f"**`{one.name}`**" if one.everyday else f"`{one.name}`"
    taking = _taking(one.name.partition(".")[0])
    families = [key for key in FAMILIES if any(family_of(name) == key for name in taking)]
    methods = one.only or ("all" if one.common else ", ".join(families))
    cells = [key, one.default_text, one.allowed, methods, one.help]
    return f"| {' | '.join(cells)} |"


def _taking(option: str) -> list[str]:
    """Methods that have a use for an option."""
    return [name for name in METHODS if option in method_class(name).options]


def typed() -> str:
    """The module of types that `fedvad.train` is annotated with."""
    student = _typed_dict(
        "StudentTable",
        f"The table `student`, for the methods {', '.join(_taking('student'))}.",
        StudentOptions,
    )
    train = _typed_dict(
        "TrainOptions", "Options of `fedvad.train`; those left out have defaults.", TrainConfig
    )
    return "\n\n".join([_HEAD, student, train])


def _typed_dict(name: str, purpose: str, model: type[BaseModel]) -> str:
    own = [one for one in declared(model) if "." not in one.name]
    everyday_first = sorted(own, key=lambda one: not one.everyday)
    lines = [f"class {name}(TypedDict, total=False):", f'    """{purpose}', ""]
    lines += [line for one in everyday_first for line in _documented(one)]
    if "student" in model.model_fields:
        lines += ["    student: see `StudentTable`. Options of student methods."]
    lines += ['    """', ""]
    for key, field in model.model_fields.items():
        line = f"    {key}: {_type(field.annotation)}"
        lines.append(line if len(line) <= 100 else _broken(key, field.annotation))
    return "\n".join(lines) + "\n"


def _documented(one: Option) -> Iterable[str]:
    facts = "; ".join(part for part in (one.allowed, f"default: {one.default_text}") if part)
    return wrap(
        f"{one.name}: {one.help} [{facts}]",
        100,
        initial_indent="    ",
        subsequent_indent="        ",
        break_on_hyphens=False,
    )


def _type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " | ".join(map(_type, parts))
    if origin is Literal:
        return f"Literal[{', '.join(as_toml(part) for part in parts)}]"
    if origin is tuple:
        items = f"Sequence[{parts[0].__name__}]"
        return items if parts[0] is int else f"str | {items}"
    if origin is dict:
        return f"Mapping[{', '.join(map(_type, parts))}]"
    if annotation is Path:
        return "str | PathLike[str]"
    if annotation is type(None):
        return "None"
    if annotation is StudentOptions:
        return "StudentTable"
    return "Any" if annotation is Any else str(annotation.__name__)


def _broken(key: str, annotation: Any) -> str:
    values = ", ".join(as_toml(part) for part in get_args(annotation))
    return f"    {key}: Literal[\n        {values}\n    ]"


def main() -> None:
    """Write the page and the module."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    TYPES.write_text(typed(), encoding="utf-8")


if __name__ == "__main__":
    main()
