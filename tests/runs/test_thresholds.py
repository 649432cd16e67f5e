"""calibrate: what joining did to a site's own normal images, and whose scores count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.scoring import ScoringConfig
from fedvad.errors import ConfigError
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.memory.bank import MemoryBank
from fedvad.runs.config import resolve_config
from fedvad.runs.memory_run import SiteMemory, TrainedRun
from fedvad.runs.progress import no_progress
from fedvad.runs.thresholds import calibrate
from tests.helpers import OPTIONS, FakeFeatures


def _extractor(run: TrainedRun) -> FeatureExtractor:
    network = SimpleNamespace(shares=np.ones(1, np.float32))
    stand_in = SimpleNamespace(config=run.features, grid=(2, 2, 1), network=network)
    return cast(FeatureExtractor, stand_in)


def test_normals_that_came_nearer_are_counted() -> None:
    values = np.arange(1, 8, dtype=np.float16)
    features = FakeFeatures("a", np.broadcast_to(values[:, None, None, None], (7, 2, 2, 1)))
    # away from the memory by 1 to 7, and then by 3, 2, 1, 0, 1, 2, 3
    alone, joined = (MemoryBank.of_patches(np.full((4, 1), v, np.float32)) for v in (0, 4))
    run = TrainedRun(
        memory=joined,
        sites={"a": SiteMemory(alone, Generator.identity(1))},
        scoring=ScoringConfig(),
        reference="global",
        features=FeatureConfig(**OPTIONS),
        method="feddymem",
    )
    config = resolve_config(calibration="holdout", **OPTIONS)
    extractor = _extractor(run)
    held_out = {"a": cast(NormalFeatures, features)}
    found = calibrate(run, held_out, extractor, config, no_progress)
    assert found.own_normals == {
        "a": {
            "median_alone": pytest.approx(4),
            "median_federated": pytest.approx(2),
            "share_nearer": pytest.approx(5 / 7),
        }
    }


def test_a_site_of_narrow_data_learns_from_the_others_unless_it_keeps_its_own() -> None:
    rng = np.random.default_rng(0)
    bank = MemoryBank.of_patches(np.zeros((4, 1), np.float32))
    held_out = {}
    for name, spread in (("even", 0.02), ("mixed", 0.3), ("varied", 0.3)):
        values = np.exp(rng.normal(0, spread, 24)).astype(np.float16)
        grid = np.broadcast_to(values[:, None, None, None], (24, 2, 2, 1))
        held_out[name] = cast(NormalFeatures, FakeFeatures(name, grid))
    values = {}
    for rule in ("own", "federated"):
        run = TrainedRun(
            memory=bank,
            sites={name: SiteMemory(bank, Generator.identity(1)) for name in held_out},
            scoring=ScoringConfig(),
            reference="global",
            features=FeatureConfig(**OPTIONS),
            method="feddymem",
        )
        config = resolve_config(calibration="holdout", threshold_rule=rule, **OPTIONS)
        extractor = _extractor(run)
        calibrate(run, held_out, extractor, config, no_progress)
        values[rule] = run.sites["even"].thresholds
    assert values["own"]["global"].method == "log-normal-tail"
    assert values["federated"]["global"].method == "federated-tail"
    assert values["federated"]["global"].value > 1.2 * values["own"]["global"].value
    # what a site would have alone knows nothing of the others
    assert values["federated"]["local"] == values["own"]["local"]


def test_a_liar_among_the_sites_cannot_raise_the_thresholds_of_others() -> None:
    assert resolve_config(defence="robust", **OPTIONS).threshold_rule == "own"
    assert resolve_config(**OPTIONS).threshold_rule == "federated"
    with pytest.raises(ConfigError, match="threshold_rule 'federated'"):
        resolve_config(defence="robust", threshold_rule="federated", **OPTIONS)
