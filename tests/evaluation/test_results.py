"""Typed results: the same JSON as ever, by attribute and by key; older and later files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import fedvad
from fedvad.errors import ArtefactError
from fedvad.evaluation.results import Results

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = (GOLDEN / "results" / "train.json", GOLDEN / "run-without-digests" / "results.json")


@pytest.mark.parametrize("file", FILES, ids=["today", "earlier"])
def test_a_file_is_read_and_written_back_to_the_byte(file: Path) -> None:
    text = file.read_text()
    found = Results.parse(json.loads(text), file.name)
    assert json.dumps(found.to_dict(), indent=2) == text


def test_figures_are_read_by_attribute_and_by_key() -> None:
    values = json.loads(FILES[0].read_text())
    found = Results.parse(values, "it")
    assert found == values
    assert dict(found) == values
    assert found.image_auroc.mean == found["image_auroc"]["mean"] == values["image_auroc"]["mean"]
    local = found.compare["local"]
    assert local.threshold.sites["alder"].promise is not None
    assert found["compare"]["local"] == local.to_dict() == values["compare"]["local"]
    assert found.sites == ["alder", "birch", "elm", "cedar"]
    gains = found.gain["local"]
    assert gains is not None
    assert gains.mean.includes_zero == (gains.mean.low <= 0 <= gains.mean.high)


def test_what_an_earlier_file_lacks_has_a_default_and_is_no_key() -> None:
    found = Results.parse({"method": "feddymem"}, "it")
    assert found.image_auroc.mean is None
    assert found.ledger.rounds == 0
    assert list(found) == ["method"]
    assert "image_auroc" not in found
    assert found.get("image_auroc") is None
    with pytest.raises(KeyError):
        found["image_auroc"]


def test_what_a_later_file_adds_is_kept() -> None:
    values: dict[str, Any] = {"image_auroc": {"mean": 0.5, "median": 0.6}, "colour": {"red": [1]}}
    found = Results.parse(values, "it")
    assert found.to_dict() == values
    assert found["colour"] == {"red": [1]}


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"image_auroc": {"mean": "0.9"}}, "image_auroc.mean"),
        ({"threshold": {"sites": {"a": {"n": 2.5}}}}, "threshold.sites.a.n"),
        ({"compare": [1]}, "compare"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], place: str) -> None:
    with pytest.raises(ArtefactError, match=rf"results\.json is incomplete or damaged: {place}"):
        Results.parse(values, "results.json")


def test_the_public_functions_say_what_they_return() -> None:
    for function in (fedvad.train, fedvad.evaluate, fedvad.demo):
        assert get_type_hints(function)["return"] is Results
