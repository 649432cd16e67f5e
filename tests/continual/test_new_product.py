"""A new product at one site: the others accept it without its images, and forget nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvad.data.folders import Site, read_set
from fedvad.detectors.memory.feddymem import FedDyMem
from fedvad.detectors.memory.site import MemorySite
from fedvad.drawing.demo import write_demo
from fedvad.errors import ConfigError
from fedvad.evaluation.metrics import image_auroc
from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.inprocess import Schedule, run_rounds
from fedvad.federation.payload import Payload, bank_from
from fedvad.runs.config import TrainConfig, resolve_config
from fedvad.runs.data import warm_up
from fedvad.runs.plan import memory_sites, plan, site_seed
from fedvad.runs.progress import no_progress
from tests.helpers import OPTIONS


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return resolve_config(**OPTIONS, rounds=1, calibration="none", upload_bytes=60_000)


@pytest.fixture(scope="module")
def extractor(config: TrainConfig, shared_cache: Path) -> FeatureExtractor:
    return FeatureExtractor(config.features(), DescriptorCache(shared_cache))


@pytest.fixture(scope="module")
def old(plants: Path) -> list[Site]:
    return [read_set(plants / name, name) for name in ("alder", "birch")]


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The same kind of cloth in colours that nobody has seen."""
    root = tmp_path_factory.mktemp("new")
    write_demo(root, plants=1, train=6, test_normal=6, test_defect=8, size=64, seed=5)
    for path in (root / "alder").rglob("*.png"):
        if "ground_truth" not in path.parts:
            Image.fromarray(255 - np.asarray(Image.open(path).convert("RGB"))).save(path)
    return read_set(root / "alder", "new")


def auroc(merged: Payload, site: Site, extractor: FeatureExtractor, config: TrainConfig) -> float:
    detector = FedDyMem(extractor=extractor, scoring=config.scoring())
    found = detector.with_memory(bank_from(merged)).score(site.test.paths)
    value = image_auroc(found.image, site.test.labels)
    assert value is not None
    return value


def test_one_round_of_one_site_teaches_the_others(
    config: TrainConfig, extractor: FeatureExtractor, old: list[Site], new: Site
) -> None:
    exchange, schedule = plan(config, extractor)
    features = warm_up(old, extractor, config.max_bad, no_progress)
    members = memory_sites(config, features, extractor.grid[2])
    ledger = Ledger()
    before = run_rounds(exchange, members, schedule, ledger=ledger)
    both = Site("alder", old[0].train + new.train, old[0].test)
    grown = MemorySite(
        warm_up([both], extractor, config.max_bad, no_progress)["alder"],
        config.memory(extractor.grid[2]),
        seed=site_seed(config.seed, 0),
    )
    grown.restore(members["alder"].snapshot())
    last = Schedule(rounds=2)
    after = run_rounds(exchange, {"alder": grown}, last, ledger=ledger, after=(1, before))

    assert [entry.sites for entry in ledger.rounds] == [["alder", "birch"], ["alder"]]
    assert ledger.rounds[1].rejected == {}
    assert ledger.rounds[1].bytes_up["alder"] <= config.upload_bytes
    for site in old:
        kept = auroc(after, site, extractor, config)
        assert kept >= auroc(before, site, extractor, config) - 0.02
    learned = auroc(after, new, extractor, config)
    assert learned >= auroc(before, new, extractor, config) + 0.05
    assert learned >= 0.8


def test_a_run_that_goes_on_needs_a_round_to_make(
    config: TrainConfig, extractor: FeatureExtractor, old: list[Site]
) -> None:
    exchange, schedule = plan(config, extractor)
    features = warm_up(old, extractor, config.max_bad, no_progress)
    members = memory_sites(config, features, extractor.grid[2])
    merged = run_rounds(exchange, members, schedule, ledger=Ledger())
    with pytest.raises(ConfigError, match="nothing follows round 1"):
        run_rounds(exchange, members, schedule, ledger=Ledger(), after=(1, merged))
