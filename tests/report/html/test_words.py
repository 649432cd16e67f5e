"""Sentences: honest about gains and losses, and about what is not known."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from fedvad.evaluation.results import Results
from fedvad.evaluation.thresholds import promise
from fedvad.report.html.record import Scores
from fedvad.report.html.words import warnings, what_is_sent, what_left
from tests.report.html.support import ledger, results, site_scores


def test_warnings_tell_what_is_wrong_and_nothing_else() -> None:
    scores = Scores(sites={"alder": site_scores(1, normal=100)})
    values = results(scores)
    values["threshold"]["sites"]["alder"]["fpr"] = 0.01
    costs = ledger(("alder",))
    assert warnings(Results.parse(values, "it"), costs, scores) == []
    costs.rounds[1].rejected["alder"] = "it was too large"
    costs.rounds[1].coverage = 7.25
    values["threshold"]["sites"]["alder"] |= {"fpr": 0.2, "method": "log-normal-tail"}
    values["unreadable"] = ["a.png: is empty"]
    values["gain"]["local"]["sites"]["alder"] = {"gain": -0.2, "low": -0.3, "high": -0.1}
    text = "\n".join(warnings(Results.parse(values, "it"), costs, scores))
    for part in (
        "Round 2: the upload of alder was refused: it was too large", "coverage 7.2 is above 3",
        "alder does worse with federation than alone", "20 of 100 normal test images (20.0%)",
        "an assumed distribution", "1 image could not be read",
    ):  # fmt: skip
        assert part in text


def test_a_promise_replaces_the_warning_of_a_bound_and_says_when_it_is_broken() -> None:
    scores = Scores(sites={"alder": site_scores(1, normal=24)})
    values = results(scores)
    values["threshold"]["target_fpr"] = 0.01
    alder = values["threshold"]["sites"]["alder"]
    alder |= {"fpr": 0, "method": "federated-tail", "promise": asdict(promise(24))}
    assert warnings(Results.parse(values, "it"), ledger(("alder",)), scores) == []
    alder["fpr"] = 3 / 24  # more than was wanted, but within the promise
    text = " ".join(warnings(Results.parse(values, "it"), ledger(("alder",)), scores))
    assert "3 of 24 normal test images" in text
    assert "of another kind" not in text
    alder["fpr"] = 12 / 24
    assert "of another kind" in " ".join(
        warnings(Results.parse(values, "it"), ledger(("alder",)), scores)
    )


def test_few_alarms_are_chance() -> None:
    scores = Scores(sites={"alder": site_scores(1, normal=20)})
    values = results(scores)
    values["threshold"]["sites"]["alder"]["fpr"] = 0.05
    assert warnings(Results.parse(values, "it"), ledger(("alder",)), scores) == []


def test_warnings_are_bounded() -> None:
    costs = ledger(("a",), rounds=100)
    for entry in costs.rounds:
        entry.rejected["a"] = "no"
    found = warnings(Results(), costs, None)
    assert len(found) == 41
    assert "60 more" in found[-1]


@pytest.mark.parametrize(
    ("config", "real"),
    [
        ({}, True),
        ({"reduce": "coreset", "update": "grow", "pull": 0.0, "train_generator": False}, True),
        ({"merge": "kmeans"}, True),  # averages at the server: what left is still a real patch
        ({"reduce": "cluster"}, False),
        ({"pull": 0.5}, False),
        ({"update": "ema"}, False),
        ({"train_generator": True}, False),
    ],
)
def test_what_a_row_is(config: dict[str, Any], real: bool) -> None:
    text = what_is_sent(config, 72, "rows")
    assert "72 numbers in float16" in text
    assert ("one real patch" in text) == real
    assert ("averages or shifted values" in text) == (not real)
    assert "float32" in what_is_sent(config | {"precision": "float32"}, None, "rows")


def test_what_left_each_site() -> None:
    costs = ledger(("a", "b"))
    del costs.rounds[1].bytes_up["b"], costs.rounds[1].rows_up["b"]
    costs.rounds[0].rejected["a"] = "no"
    sentences = dict(what_left(Results(training_images={"a": 3, "b": 4, "c": 5}), costs, 10))
    assert sentences == {
        "a": "sent 2 times, together 600 rows (6,000 values), 100 kB; its 3 training images "
        "stayed; 1 of its uploads refused.",
        "b": "sent once, together 300 rows (3,000 values), 50 kB; its 4 training images stayed.",
        "c": "sent nothing: it took part in no round.",
    }


def test_sums_are_no_rows_and_their_noise_is_said() -> None:
    config = {"masks": True, "epsilon": 8.0}
    text = what_is_sent(config, None, "sums")
    assert "masks that cancel" in text
    assert "epsilon 8" in text
    assert "patch of a normal training image" not in text
    assert "no noise" in what_is_sent({"masks": False, "epsilon": None}, None, "sums")
