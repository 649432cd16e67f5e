"""The study of `benchmarks/thresholds.py`, on drawn images."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from fedvad.features.extractor import FeatureExtractor
from fedvad.runs.config import resolve_config
from tests.helpers import OPTIONS

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("thresholds"), importlib.import_module("threshold_scores")


def test_scores_are_kept_and_every_rule_is_judged_on_fresh_images(
    study: tuple[ModuleType, ModuleType], plants: Path, tmp_path: Path
) -> None:
    rules, scores = study
    config = resolve_config(upload_rows=20, rounds=1, **OPTIONS)
    collection = scores.Collection(plants.name)
    sites = scores.pools(collection, plants.parent, tmp_path)
    del sites["cedar"]
    assert scores.cell(sites, 40, config, FeatureExtractor(config.features())) is None
    found = scores.cell(sites, 6, config, FeatureExtractor(config.features()))
    for name, kinds in found.items():
        assert len(kinds["left_out"]) == 6
        assert len(kinds["fresh"]) == len(sites[name].normal) - 6
        assert len(kinds["split/left_out"]) == 1
    (tmp_path / "plants-6-0.json").write_text(json.dumps(found))
    rows = rules.measure(tmp_path)
    assert len(rows) == len(found) * len(rules.RULES) * len(rules.TARGETS)
    assert all(0 <= row["fresh"] <= 1 for row in rows)
    assert "federated (the default)" in rules.by_images(rows, 0.01)
    assert "| plants | fresh |" in rules.held_out_against_fresh(tmp_path)


def test_the_rules_that_others_use_by_hand(study: tuple[ModuleType, ModuleType]) -> None:
    rules, _ = study
    kept = [float(i) for i in range(1, 100)]
    sites = {"a": {"left_out": kept, "split/left_out": kept[:20]}}
    limits = {name: rule(sites, 0.01)["a"] for name, rule in rules.RULES.items()}
    assert limits["own: rank or log-normal bound"] == 99
    assert limits["split-conformal, a fifth held out"] == float("inf")
    assert limits["mean + 3 sd"] == pytest.approx(50 + 3 * 28.7228, rel=1e-4)
    assert 97 < limits["generalised Pareto tail"] < 103
    assert 99 <= limits["one for all, summed counts"] < 99 * 1.015
