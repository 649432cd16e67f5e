"""Messages for people: names in them read as text, not as Python."""

from __future__ import annotations

import re
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

import fedvad
from fedvad.errors import ConfigError, check_choice, check_ranges, join_names


def test_names_are_joined_for_people() -> None:
    assert join_names(["b", "a"]) == "b, a"
    assert join_names({"b", "a"}) == join_names({"b": 1, "a": 2}) == "a, b"
    assert join_names(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    assert join_names([]) == "none"
    assert join_names(["x\ny"]) == r"'x\ny'"  # a name cannot break the line of a log


def test_an_unknown_choice_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"^unknown size 'huge'; choose from small, large$"):
        check_choice("size", "huge", Literal["small", "large"])


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1)", (0, 0.5, None), (-0.1, 1, nan)),
        ("(0, 1]", (0.5, 1, None), (0, 1.1, nan)),
        ("[1, inf)", (1, 1e9, None), (0, inf, nan)),
    ],
)
def test_an_option_outside_its_interval_is_named(
    interval: str, inside: tuple[float | None, ...], outside: tuple[float, ...]
) -> None:
    for value in inside:
        check_ranges(SimpleNamespace(a=value, b=value), {interval: "a b"})
    for value in outside:
        message = re.escape(f"b must lie in {interval}, got {value}")
        with pytest.raises(ConfigError, match=message):
            check_ranges(SimpleNamespace(a=inside[0], b=value), {interval: "a b"})


def test_no_message_prints_a_list_as_python_does() -> None:
    found = [
        f"{path.name}: {line.strip()}"
        for path in Path(fedvad.__file__).parent.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"[^{]\{(sorted|get_args)\(", line) and re.search(r"\bf['\"]", line)
    ]
    assert not found
