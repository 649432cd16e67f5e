"""Messages for people: names in them read as text, not as Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import pytest

import fedvad
from fedvad.errors import ConfigError, check_choice, join_names


def test_names_are_joined_for_people() -> None:
    assert join_names(["b", "a"]) == "b, a"
    assert join_names({"b", "a"}) == join_names({"b": 1, "a": 2}) == "a, b"
    assert join_names(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    assert join_names([]) == "none"
    assert join_names(["x\ny"]) == r"'x\ny'"  # a name cannot break the line of a log


def test_an_unknown_choice_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"^unknown size 'huge'; choose from small, large$"):
        check_choice("size", "huge", Literal["small", "large"])


def test_no_message_prints_a_list_as_python_does() -> None:
    found = [
        f"{path.name}: {line.strip()}"
        for path in Path(fedvad.__file__).parent.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"[^{]\{(sorted|get_args)\(", line) and re.search(r"\bf['\"]", line)
    ]
    assert not found
