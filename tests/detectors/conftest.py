"""What detectors' tests share: a small network with random weights, and one site's normals."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvad.data.folders import ImageSet, read_set
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from tests.detectors.student import support


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return support.write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def extractor(tiny: Path) -> FeatureExtractor:
    return FeatureExtractor(FeatureConfig(**support.options(tiny)))


@pytest.fixture(scope="module")
def images(plants: Path) -> ImageSet:
    return read_set(plants / "alder").train
