"""Runs made of a few numbers: what scores where, and what decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.scoring import ScoringConfig
from fedvad.errors import ArtefactError, ConfigError
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.memory.bank import MemoryBank
from fedvad.runs.config import Reference, resolve_config
from fedvad.runs.families import method_class
from fedvad.runs.memory_run import SiteMemory, TrainedRun
from fedvad.runs.renewal import check_growing
from fedvad.runs.run import Run
from fedvad.runs.student_run import StudentModel, StudentRun
from tests.helpers import make_bank

DIM = 6
FEATURES = FeatureConfig(layers=(0,))
EXTRACTOR = cast(FeatureExtractor, SimpleNamespace(config=FEATURES, grid=(4, 5, DIM)))


def limit(value: float) -> Threshold:
    return Threshold(value, 5, "conformal", 0.1)


def memory_run(reference: Reference = "global") -> TrainedRun:
    """Site a has all that a site may have; site b took part in no round."""
    rng = np.random.default_rng(0)
    generator = Generator(
        rng.normal(size=(DIM, DIM)).astype(np.float32), rng.normal(size=DIM).astype(np.float32)
    )
    own = {"global": limit(2.0), "local": limit(3.0), "union": limit(1.0)}
    sites = {
        "a": SiteMemory(make_bank(4, seed=1), generator, thresholds=own, n_images=7),
        "b": SiteMemory(
            MemoryBank.empty(DIM), Generator.identity(DIM), thresholds={"global": limit(5.0)}
        ),
    }
    return TrainedRun(make_bank(9), sites, ScoringConfig(), reference, FEATURES, "feddymem")


@pytest.mark.parametrize(("reference", "count"), [("global", 9), ("local", 4), ("union", 13)])
def test_a_site_scores_by_the_reference_with_its_own_generator(
    reference: Reference, count: int
) -> None:
    for run, wanted in ((memory_run(), reference), (memory_run(reference), None)):
        detector = run.detector("a", EXTRACTOR, wanted)
        assert detector.bank_ is not None
        assert len(detector.bank_) == count
        generator = run.sites["a"].generator
        assert detector.generator_ is generator
        rows = {"global": [run.memory], "local": [run.sites["a"].bank]}
        rows["union"] = rows["global"] + rows["local"]
        expected = generator(np.concatenate([bank.vectors for bank in rows[reference]]))
        np.testing.assert_array_equal(detector.bank_.vectors, expected)
        assert run.threshold("a", wanted) == run.sites["a"].thresholds[reference]


def test_rows_that_an_earlier_version_embedded_are_not_embedded_again(tmp_path: Path) -> None:
    run = memory_run()
    assert run.schema == 3  # which that version refuses
    run.save(tmp_path)
    assert TrainedRun.load(tmp_path).sites["a"].raw
    before = replace(run.sites["a"], raw=False)
    old = replace(run, sites=run.sites | {"a": before})
    assert old.schema == 1
    old.save(tmp_path)
    again = TrainedRun.load(tmp_path)
    assert not again.sites["a"].raw
    detector = again.detector("a", EXTRACTOR)
    assert detector.bank_ is again.memory
    assert detector.generator_ is again.sites["a"].generator


@pytest.mark.parametrize("reference", ["local", "union"])
def test_a_site_without_a_memory_of_its_own_scores_by_the_global_one(reference: Reference) -> None:
    run = memory_run(reference)
    assert run.detector("b", EXTRACTOR).bank_ is run.memory
    assert run.threshold("b") == limit(5.0)
    with pytest.raises(ConfigError, match="took part in no round"):
        run.detector("b", EXTRACTOR, "local")


@pytest.mark.parametrize(
    ("scoring", "lent"),
    [
        (ScoringConfig(density=0.0), True),
        (ScoringConfig(density=0.5), False),  # more rows change what distances are divided by
        (ScoringConfig(density=0.0, map="cfa"), False),
    ],
)
def test_the_threshold_of_the_global_memory_is_lent_where_it_bounds_the_union(
    scoring: ScoringConfig, lent: bool
) -> None:
    whole = memory_run()
    site = replace(whole.sites["a"], thresholds={"global": limit(2.0)})
    run = replace(whole, sites={"a": site}, scoring=scoring)
    assert run.threshold("a", "union") == (limit(2.0) if lent else None)
    assert run.threshold("a", "local") is None
    assert run.threshold("a") == limit(2.0)
    if not lent:
        held = replace(site, bank=run.memory)
        again = replace(run, sites={"a": held}).threshold("a", "union")
        assert again == (limit(2.0) if scoring.map == "nn1" else None)


def test_a_stranger_scores_by_the_global_memory_and_the_median() -> None:
    run = memory_run("local")
    for name in ("c", None):
        detector = run.detector(name, EXTRACTOR)
        assert detector.bank_ is run.memory
        assert detector.generator_ is not None
        assert detector.generator_.is_identity
        assert run.threshold(name) == limit(5.0)  # the upper one of two
        with pytest.raises(ConfigError, match="reference 'local'"):
            run.detector(name, EXTRACTOR, "local")


def test_other_features_are_refused() -> None:
    other = cast(Any, SimpleNamespace(config=FeatureConfig(layers=(1,)), grid=(4, 5, DIM)))
    wide = cast(Any, SimpleNamespace(config=FEATURES, grid=(4, 5, DIM + 1)))
    with pytest.raises(Exception, match="layers"):
        memory_run().detector("a", other)
    with pytest.raises(ArtefactError, match="6 values a row"):
        memory_run().detector("a", wide)


def test_a_saved_run_is_read_as_its_kind(tmp_path: Path) -> None:
    memory_run("union").save(tmp_path)
    run = Run.load(tmp_path)
    assert isinstance(run, TrainedRun)
    assert run.reference == "union"
    assert run.sites["a"].n_images == 7
    assert run.sites["a"].thresholds == memory_run().sites["a"].thresholds
    assert run.sites["a"].generator.hash() == memory_run().sites["a"].generator.hash()
    with pytest.raises(ArtefactError, match="holds a memory, and a student"):
        StudentRun.load(tmp_path)


def test_a_student_has_no_memory_to_choose(tmp_path: Path) -> None:
    sites = {
        name: StudentModel(
            {"m": np.full(2, i, np.float32)}, {"scale": 1.0}, thresholds={"global": limit(float(i))}
        )
        for i, name in enumerate("abc")
    }
    run = StudentRun({"student/w": np.ones(2, np.float32)}, {}, sites, FEATURES, "stfpm")
    assert run.reference == run.chosen_reference("a", None) == "global"
    assert run.threshold("c") == limit(2.0)
    assert run.threshold(None) == limit(1.0)
    with pytest.raises(ConfigError, match="this run has a student"):
        run.threshold("a", "union")
    run.save(tmp_path)
    again = StudentRun.load(tmp_path)
    np.testing.assert_array_equal(again.sites["c"].buffers["m"], [2, 2])
    with pytest.raises(ArtefactError, match="a student and no memory"):
        TrainedRun.load(tmp_path)


def test_a_site_scores_by_its_own_statistics_and_a_stranger_by_the_middle_scale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = SimpleNamespace(from_state=lambda arrays, values, *, extractor: (arrays, values))
    monkeypatch.setattr("fedvad.runs.student_run.detector_class", lambda name: made)
    sites = {
        name: StudentModel({"m": np.full(2, mean, np.float32)}, {"scale": scale}, n_images=1)
        for name, mean, scale in (("a", 3, 3.0), ("b", 0, 1.0), ("c", 6, 2.0))
    }
    shared = {"student/w": np.ones(2, np.float32)}
    run = StudentRun(shared, {"seed": 4}, sites, FEATURES, "stfpm")
    for site, mean, scale in (("a", 3, 3.0), ("c", 6, 2.0), (None, 3, 2.0), ("z", 3, 2.0)):
        arrays, values = cast(Any, run.detector(site, EXTRACTOR))
        assert arrays.keys() == {"student/w", "buffers/m"}
        np.testing.assert_array_equal(arrays["buffers/m"], [mean, mean])
        assert values == {"seed": 4, "scale": scale}


def test_every_method_has_a_family() -> None:
    assert not method_class("patchcore").sends_weights
    assert method_class("paste").sends_weights


def test_no_rows_are_added_to_memories_that_generators_were_trained_against() -> None:
    check_growing(resolve_config(), "run")
    with pytest.raises(ConfigError, match="trained against its memory"):
        check_growing(resolve_config(train_generator=True), "run")
