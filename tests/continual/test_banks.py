"""Memory banks that learn in a row: the budget holds, and old tasks stay known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvad.continual.banks import BankLearner
from fedvad.continual.base import Task
from fedvad.data.folders import Site, read_set
from fedvad.errors import ArtefactError, ConfigError
from fedvad.evaluation.metrics import image_auroc
from fedvad.features.cache import DescriptorCache
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from tests.helpers import OPTIONS

BUDGET = 20_000


@pytest.fixture(scope="module")
def extractor(shared_cache: Path) -> FeatureExtractor:
    return FeatureExtractor(FeatureConfig(**OPTIONS), DescriptorCache(shared_cache))


@pytest.fixture(scope="module")
def sites(plants: Path) -> list[Site]:
    return [read_set(plants / name, name) for name in ("alder", "birch", "cedar")]


def learned(extractor: FeatureExtractor, sites: list[Site], **options: Any) -> BankLearner:
    found = BankLearner(extractor, **{"budget": BUDGET} | options)
    for site in sites:
        found.learn([Task(site.name, site.train)])
    return found


@pytest.mark.parametrize("kind", ["patchcore", "feddymem"])
def test_the_budget_holds_behind_every_task_and_is_used(
    kind: Any, extractor: FeatureExtractor, sites: list[Site]
) -> None:
    found = BankLearner(extractor, kind=kind, budget=BUDGET)
    for site in sites:
        found.learn([Task(site.name, site.train)])
        assert 0.9 * BUDGET < found.cost().memory <= BUDGET
    assert found.cost().peak <= BUDGET
    assert found.cost().memory == sum(a.nbytes for a in found.state()[0].values())


def test_a_coreset_forgets_its_last_rows_first(
    extractor: FeatureExtractor, sites: list[Site]
) -> None:
    one = learned(extractor, sites[:1])
    three = learned(extractor, sites)
    kept = three._banks["alder"].vectors
    np.testing.assert_array_equal(kept, one._banks["alder"].vectors[: len(kept)])
    assert len(kept) == three.rows // 3


@pytest.mark.parametrize("merge", ["kmeans", "kcenter"])
def test_averages_stand_for_every_patch_seen(
    merge: Any, extractor: FeatureExtractor, sites: list[Site]
) -> None:
    found = learned(extractor, sites, kind="feddymem", merge=merge)
    bank = found._banks["all"]
    one = learned(extractor, sites[:1], kind="feddymem")._banks["all"].total_weight
    assert bank.total_weight == pytest.approx(3 * one, rel=1e-6)  # plants of as many images


@pytest.mark.parametrize("kind", ["patchcore", "feddymem"])
def test_the_first_task_is_still_known_behind_the_last(
    kind: Any, extractor: FeatureExtractor, sites: list[Site]
) -> None:
    found = learned(extractor, sites, kind=kind)
    scores = found.detector("alder").score(sites[0].test.paths)
    auroc = image_auroc(scores.image, sites[0].test.labels)
    assert auroc is not None
    assert auroc >= 0.75


@pytest.mark.parametrize("kind", ["patchcore", "feddymem"])
@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_resumed_it_goes_on_to_the_bit(
    kind: Any, precision: Any, extractor: FeatureExtractor, sites: list[Site]
) -> None:
    options = {"kind": kind, "precision": precision}
    whole = learned(extractor, sites, **options)
    first = learned(extractor, sites[:2], **options)
    second = BankLearner(extractor, budget=BUDGET, **options)
    second.restore(*first.state())
    second.learn([Task(sites[2].name, sites[2].train)])
    mine, theirs = whole.state(), second.state()
    assert mine[1] == theirs[1]
    assert mine[0].keys() == theirs[0].keys()
    for name, array in mine[0].items():
        np.testing.assert_array_equal(array, theirs[0][name])


def test_odd_use_is_refused(extractor: FeatureExtractor) -> None:
    with pytest.raises(ConfigError, match="no row"):
        BankLearner(extractor, budget=50)
    with pytest.raises(ConfigError, match="padim"):
        BankLearner(extractor, kind="padim")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pq"):
        BankLearner(extractor, precision="pq")
    with pytest.raises(TypeError, match="mapp"):
        BankLearner(extractor, scoring={"mapp": "nn1"})
    found = BankLearner(extractor, scoring={"map": "cfa"})
    with pytest.raises(ArtefactError, match="feddymem bank"):
        found.restore({}, {"kind": "feddymem"})
    with pytest.raises(ArtefactError, match="damaged"):
        found.restore({}, {"kind": "patchcore", "banks": ["a"], "tasks": [], "peak": 0})


def test_more_tasks_than_rows_are_refused(extractor: FeatureExtractor, sites: list[Site]) -> None:
    dim = extractor.grid[2]
    found = learned(extractor, sites[:2], budget=2 * (dim + 20), precision="int8")
    assert found.rows == 2
    with pytest.raises(ConfigError, match="holds 2 rows"):
        found.learn([Task("third", sites[2].train)])
