"""calibrate: what joining did to a site's own normal images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.generator import Generator
from fedvad.detectors.scoring import ScoringConfig
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.memory.bank import MemoryBank
from fedvad.pipeline.config import resolve_config
from fedvad.pipeline.progress import silent
from fedvad.pipeline.run_folder import SiteModel, TrainedRun
from fedvad.pipeline.thresholds import calibrate
from tests.helpers import OPTIONS, FakeFeatures


def test_normals_that_came_nearer_are_counted() -> None:
    values = np.arange(1, 8, dtype=np.float16)
    features = FakeFeatures("a", np.broadcast_to(values[:, None, None, None], (7, 2, 2, 1)))
    # away from the memory by 1 to 7, and then by 3, 2, 1, 0, 1, 2, 3
    alone, joined = (MemoryBank.of_patches(np.full((4, 1), v, np.float32)) for v in (0, 4))
    run = TrainedRun(
        memory=joined,
        sites={"a": SiteModel(alone, Generator.identity(1))},
        scoring=ScoringConfig(),
        reference="global",
        features=FeatureConfig(**OPTIONS),
        method="feddymem",
    )
    config = resolve_config(calibration="holdout", **OPTIONS)
    extractor = cast(FeatureExtractor, SimpleNamespace(config=run.features))
    held_out = {"a": cast(NormalFeatures, features)}
    found = calibrate(run, held_out, extractor, config, silent)
    assert found.own_normals == {
        "a": {
            "median_alone": pytest.approx(4),
            "median_federated": pytest.approx(2),
            "share_nearer": pytest.approx(5 / 7),
        }
    }
