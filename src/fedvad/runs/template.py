"""A configuration file to edit: every option with its default and its meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import Any

from fedvad.runs.config import given_values, resolve_config
from fedvad.runs.families import method_class
from fedvad.runs.option import Option, declared
from fedvad.runs.train_config import TrainConfig


def template(file: Path | None = None, **flags: Any) -> str:
    """The text of a TOML file that has all options of a method.

    What `file` and `flags` say is set; every other option is a comment with the value that it has
    by default: removing the `#` changes nothing until the value is changed, too. Raises
    `ConfigError` as `resolve_config` does.
    """
    config = resolve_config(file, **flags)
    given = _flat(given_values(file, **flags)) | {"method": config.method}
    values = _flat(config.model_dump(mode="json", exclude_none=True))
    takes = method_class(config.method).options
    options = [
        one
        for one in declared(TrainConfig)
        if one.name.partition(".")[0] in takes and one.only in ("", config.method)
    ]
    # in TOML, the keys of a table follow all others
    options.sort(key=lambda one: "." in one.name)
    lines = ["# Configuration of `fedvad train`. Remove the # of a line to set its option."]
    for group, members in groupby(options, key=lambda one: one.group):
        table = group == "Students"
        lines += ["", f"# ---- {group} ----", *(["[student]"] if table else [])]
        for one in members:
            lines += ["", *_entry(one, values.get(one.name), one.name in given)]
    return "\n".join(lines) + "\n"


def _entry(one: Option, value: Any, given: bool) -> list[str]:
    facts = f" {one.allowed[0].upper() + one.allowed[1:]}." if one.allowed else ""
    said = [f"# {line}" for line in wrap(one.help + facts, 96, break_on_hyphens=False)]
    key = one.name.rpartition(".")[2]
    if value in (None, [], {}) and not given:
        return [
            *said,
            f"# {key} = {as_toml(one.example)}  # an example; default: {one.default_text}",
        ]
    return [*said, f"{'' if given else '# '}{key} = {as_toml(value)}"]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """With the keys of the table `student` as `student.KEY`."""
    table = values.get("student") or {}
    flat = {key: value for key, value in values.items() if key != "student"}
    return flat | {f"student.{key}": value for key, value in table.items()}


def as_toml(value: Any) -> str:
    """A value of the configuration as TOML writes it on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{as_toml(key)} = {as_toml(v)}" for key, v in value.items()) + " }"
    if isinstance(value, float):
        return repr(value)  # infinity, too
    # the same text in JSON and TOML; paths as text
    return json.dumps(value, ensure_ascii=False, default=str)
