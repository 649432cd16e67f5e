"""What is made of the declared options is up to date: documentation, types, help of the API."""

from __future__ import annotations

import pydoc
import runpy
from pathlib import Path
from typing import Any

import pytest
from mypy import api as mypy

import fedvad
from fedvad.runs.config import TrainConfig
from fedvad.runs.option import declared

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts/write_reference.py"))


def test_the_page_of_the_configuration_is_made_of_the_declarations(script: dict[str, Any]) -> None:
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert script["page"](text) == text, "run: python scripts/write_reference.py"
    for option in declared(TrainConfig):
        assert f"`{option.name}`" in text
        assert option.help in text


def test_the_types_of_the_api_are_made_of_the_declarations(script: dict[str, Any]) -> None:
    text = script["TYPES"].read_text(encoding="utf-8")
    assert script["typed"]() == text, "run: python scripts/write_reference.py"
    assert set(fedvad.TrainOptions.__annotations__) == set(TrainConfig.model_fields)


def test_help_of_train_documents_every_option() -> None:
    text = pydoc.plain(pydoc.render_doc(fedvad.train))
    assert "**options: 'Unpack[TrainOptions]'" in text
    for option in declared(TrainConfig):
        if "." not in option.name:
            assert f"{option.name}: {option.help[:20]}" in text


def test_a_wrong_option_in_a_users_script_is_found_by_mypy(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import fedvad
options: fedvad.TrainOptions = {"rounds": 3, "student": {"steps": 3}}
fedvad.train("data", "out", **options)
fedvad.train("data", "out", image_size=128, layers=[1, 2], compare="local")
fedvad.train("data", "out", image_sise=128)
fedvad.train("data", "out", rounds="three")
fedvad.train("data", "out", precision="float8")
fedvad.train("data", "out", student={"stepz": 3})
""",
        encoding="utf-8",
    )
    config = tmp_path / "mypy.ini"
    # the types of the API alone: all of fedvad and what it imports would take half a minute
    config.write_text(
        f"""[mypy]
strict = true
follow_imports = skip
mypy_path = {ROOT / "src"}
cache_dir = {tmp_path / "cache"}
[mypy-fedvad,fedvad.api,fedvad.runs.arguments,fedvad.runs.typed_options]
follow_imports = silent
""",
        encoding="utf-8",
    )
    said, failed, status = mypy.run(["--config-file", str(config), str(script)])
    errors = [line for line in said.splitlines() if ": error:" in line]
    assert status == 1, failed
    assert [int(line.split(":")[1]) for line in errors] == [6, 7, 8, 9]
    assert "image_sise" in errors[0]
