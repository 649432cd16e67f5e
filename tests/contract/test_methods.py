"""What every method of training promises: one list, read from the registry."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, cast, get_type_hints

import numpy as np
import pytest

import fedvad
from fedvad.data.folders import read_sites
from fedvad.detectors.memory.feddymem import FedDyMem, MemoryDetector
from fedvad.detectors.registry import detector_class, list_detectors
from fedvad.errors import ConfigError, PayloadError
from fedvad.experiments.bench.cells import Prepared, run_cell
from fedvad.experiments.bench.suite import BenchMethod, Suite
from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger
from fedvad.runs.config import COMMON_OPTIONS, TrainConfig, resolve_config
from fedvad.runs.data import warm_up
from fedvad.runs.families import FAMILIES, METHODS, detector_of, family_of, method_class, run_class
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.method import Method, make_method
from fedvad.runs.opening import open_run
from fedvad.runs.progress import no_progress
from fedvad.runs.student_config import StudentOptions
from fedvad.serving.predictor import Predictor
from tests.detectors.student import support
from tests.helpers import OPTIONS

ALL = sorted(METHODS)
TRAINABLE = [name for family in FAMILIES for name in list_detectors(family=family)]
STUDENTS = [name for name in ALL if "student" in method_class(name).options]
Finished = tuple[Path, dict[str, Any], dict[str, Any]]
# a few steps; a site must not amplify or draw for long
MORE: dict[str, dict[str, Any]] = {
    "aand": {"amplify_rounds": 1, "options": {"amplify": {"items": 4, "pairs": 8}}},
    "dmdd": {"options": {"dual": {"pairs": 8, "head_channels": 8}}},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return support.write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def given(tiny: Path) -> Callable[[str], dict[str, Any]]:
    """Options of a short training by a method."""

    def options(name: str) -> dict[str, Any]:
        if name not in STUDENTS:
            own = {"upload_rows": 300, "memory_rows": 300}
            takes = method_class(name).options
            return OPTIONS | {"method": name} | {k: v for k, v in own.items() if k in takes}
        student = {"steps": 2, "warmup": 0} | MORE.get(name, {})
        more = {"method": name, "rounds": 1, "holdout": 0.5, "student": student}
        return support.options(tiny) | more

    return options


@pytest.fixture(scope="module")
def finished(
    given: Callable[[str], dict[str, Any]],
    plants: Path,
    shared_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Finished]:
    """Run folder, results and options of a training by a method; read only."""

    @cache
    def train(name: str) -> Finished:
        out, options = tmp_path_factory.mktemp(name) / "run", given(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fedvad.verbs.outputs._write_report", lambda *a, **k: None)
            return out, fedvad.train(plants, out, cache=shared_cache, **options), options

    return train


@pytest.fixture(scope="module")
def prepared(plants: Path, shared_cache: Path) -> Callable[[TrainConfig], Prepared]:
    """What bench cells of one feature configuration share."""
    made: dict[str, Prepared] = {}

    def prepare(config: TrainConfig) -> Prepared:
        if (key := config.features().key()) not in made:
            extractor = FeatureExtractor(config.features(), DescriptorCache(shared_cache))
            sites = read_sites(plants)
            features = warm_up(sites, extractor, 0.05, no_progress)
            made[key] = Prepared(sites, features, extractor, 1.0)
        return made[key]

    return prepare


def test_every_trainable_detector_is_a_method() -> None:
    assert set(TRAINABLE) <= set(ALL)
    assert set(list_detectors()) == set(TRAINABLE)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_one_class_of_methods_and_one_of_runs(name: str) -> None:
    family = FAMILIES[name]
    methods = [method for method in METHODS if family_of(method) == name]
    assert len({method_class(method) for method in methods}) == 1
    kind = run_class(family.kind)
    assert kind is not None
    assert kind.kind == family.kind
    assert get_type_hints(method_class(methods[0]).run)["return"] is kind
    help_ = TrainConfig.model_fields["method"].description or ""
    verb = "exchanges" if len(methods) == 1 else "exchange"
    assert f"{methods[-1]} {verb} {family.sends}" in help_


@pytest.mark.parametrize("name", ALL)
class TestEveryMethod:
    def test_its_run_is_predicted_and_served_alike(
        self, name: str, finished: Callable[[str], Finished], plants: Path
    ) -> None:
        out, results, _ = finished(name)
        run, _, extractor = open_run(out)
        assert run.method == name
        assert type(run.detector("birch", extractor)) is detector_class(detector_of(name))
        assert set(run.sites) == {"alder", "birch", "cedar"}
        if isinstance(run, TrainedRun):  # rows kept at home read as those that travel, in float16
            for model in run.sites.values():
                half = model.bank.vectors.astype(np.float16)
                np.testing.assert_array_equal(half.astype(np.float32), model.bank.vectors)
        files = sorted((plants / "birch/test").rglob("*.png"))[:3]
        rows = list(fedvad.predict(out, files, site="birch"))
        with Predictor.load(out, site="birch") as predictor:
            served = predictor.predict(files)
        assert [found.score for found in served] == [row["score"] for row in rows]
        assert [found.anomalous for found in served] == [row["anomalous"] for row in rows]
        limit = results["threshold"]["sites"]["birch"]["threshold"]
        assert all(row["threshold"] == limit for row in rows)

    def test_evaluated_it_has_the_results_of_its_training(
        self, name: str, finished: Callable[[str], Finished], plants: Path, shared_cache: Path
    ) -> None:
        out, results, _ = finished(name)
        again = fedvad.evaluate(out, plants, cache=shared_cache)
        for key in ("image_auroc", "pixel_auroc", "threshold"):
            assert again[key] == results[key]

    def test_it_is_inspected_by_its_name(
        self, name: str, finished: Callable[[str], Finished]
    ) -> None:
        reported = fedvad.inspect(finished(name)[0])
        assert reported["method"] == name
        assert [site["name"] for site in reported["sites"]] == ["alder", "birch", "cedar"]

    def test_it_is_exported(
        self, name: str, finished: Callable[[str], Finished], plants: Path, tmp_path: Path
    ) -> None:
        reported = fedvad.export(
            finished(name)[0], format="openvino", site="alder", out=tmp_path, verify=plants
        )
        assert reported["difference_from_run"]["score"] < 1e-3
        assert reported["verified"]["images"] == 7
        assert reported["verified"]["score"] < 1e-3
        assert reported["run"]["method"] == name

    def test_it_has_a_cell_in_a_bench(
        self,
        name: str,
        finished: Callable[[str], Finished],
        prepared: Callable[[TrainConfig], Prepared],
    ) -> None:
        _, results, options = finished(name)
        options = {key: value for key, value in options.items() if key != "cache"}
        method = BenchMethod(name=name, options=options)
        # options of all methods that mean nothing to a student are left to the others
        shared = {"density": 0.75}
        suite = Suite.model_validate(
            {"name": "s", "options": shared, "sets": [{"name": "a"}], "methods": [method]}
        )
        config = suite.config(method, None, 0)
        cell = run_cell(method, config, prepared(config), convergence=True, progress=no_progress)
        kept_apart = "calibration" in method_class(name).options and (
            resolve_config(**options).calibration_mode == "holdout"
        )
        if not kept_apart:  # or the training had fewer images to learn from
            for site, auroc in results["image_auroc"]["sites"].items():
                assert cell["image_auroc"]["sites"][site] == auroc
        assert cell["costs"]["rounds"] == method_class(name).rounds(config)
        assert min(cell["costs"]["bytes_up"].values()) > 0
        assert (cell["costs"]["memory_rows"] > 0) == ("memory_rows" in method_class(name).options)

    @pytest.mark.parametrize("baseline", ["local", "pooled"])
    def test_it_is_compared_with_others(
        self,
        name: str,
        baseline: Any,
        given: Callable[[str], dict[str, Any]],
        prepared: Callable[[TrainConfig], Prepared],
        plants: Path,
    ) -> None:
        config = resolve_config(**given(name))
        ready = prepared(config)
        files = sorted((plants / "birch/test").rglob("*.png"))[:1]
        with closing(make_method(config, ready.extractor)) as method:
            method.take(ready.features)
            made = method.baseline(baseline)
            assert made is not None
            assert set(made) == {"alder", "birch", "cedar"}
            scores = {site: found.detector.score(files).image[0] for site, found in made.items()}
            assert (len(set(scores.values())) == 1) == (baseline == "pooled")
            assert np.isfinite(list(scores.values())).all()
            detector = made["alder"].detector
            size, dim = method.downlink_bytes(detector), ready.extractor.grid[2]
            if detector.memory_rows:  # vectors in float16
                assert size == 2 * detector.memory_rows * dim
            else:
                assert size > 0
            if name in ("feddymem", "feddymem-trained") and baseline == "local":
                if name == "feddymem":  # it grows in every round
                    assert detector.memory_rows == config.rounds * config.upload_rows
                memory = config.memory(dim)
                alone = FedDyMem(extractor=ready.extractor, config=memory, rounds=config.rounds)
                alone.fit(read_sites(plants)[0].train)
                found = cast(MemoryDetector, detector)
                assert found.bank_ is not None
                assert alone.bank_ is not None
                np.testing.assert_array_equal(found.bank_.vectors, alone.bank_.vectors)
                assert found.generator_ is not None
                assert alone.generator_ is not None
                assert found.generator_.hash() == alone.generator_.hash()

    def test_where_only_rows_travel(
        self, name: str, given: Callable[[str], dict[str, Any]], plants: Path, tmp_path: Path
    ) -> None:
        from fedvad.verbs.audit import audit

        config = resolve_config(**given(name))
        rows = "memory_rows" in method_class(name).options
        wanted = "no such file" if rows else f"bank audit: {name} has"
        with pytest.raises((ConfigError, PayloadError), match=wanted):
            audit(tmp_path / "nothing", plants / "alder", config)

    def test_its_options_are_those_of_a_configuration(self, name: str) -> None:
        family: type[Method] = method_class(name)
        assert family.options <= set(TrainConfig.model_fields)
        assert family.options >= COMMON_OPTIONS
        assert set(METHODS[name]) <= family.options
        assert resolve_config(method=name).method == name


@pytest.mark.parametrize(
    ("name", "split", "known"),
    [("feddymem", "iid:2", True), ("feddymem-cluster", "iid:2", False),
     ("feddymem-cluster", None, True)],
)  # fmt: skip
def test_a_stranger_gets_a_threshold_where_own_rows_can_be_distinguished_from_others(
    name: str,
    split: str | None,
    known: bool,
    given: Callable[[str], dict[str, Any]],
    prepared: Callable[[TrainConfig], Prepared],
) -> None:
    config = resolve_config(**given(name), split=split)
    ready = prepared(config)
    method = make_method(config, ready.extractor)
    method.take(ready.features)
    made = method.baseline("pooled")
    assert made is not None
    assert made["alder"].detector is made["birch"].detector  # one memory, indexed once
    limit = method.new_threshold(made["alder"].detector, ready.sites[0].train.paths, "new")
    assert (limit is not None) == known


def test_the_identity_is_the_same_federation_without_trained_generators(
    given: Callable[[str], dict[str, Any]], prepared: Callable[[TrainConfig], Prepared]
) -> None:
    config = resolve_config(**given("feddymem-trained"))
    ready = prepared(config)
    method = make_method(config, ready.extractor)
    method.take(ready.features)
    made = method.baseline("identity")
    assert made is not None
    plain = make_method(config.model_copy(update={"train_generator": False}), ready.extractor)
    plain.take(ready.features)
    assert plain.baseline("identity") is None  # that is the method itself
    memory = cast(TrainedRun, plain.train(Ledger())).memory
    bank = cast(MemoryDetector, made["alder"].detector).bank_
    assert bank is not None
    np.testing.assert_array_equal(bank.vectors, memory.vectors)
    student = make_method(resolve_config(**given("stfpm")), ready.extractor)
    with pytest.raises(ConfigError, match="no generator"):
        student.baseline("identity")


def baseline_scores(
    ready: Prepared, config: TrainConfig, baseline: Any, *, trained: bool = False
) -> dict[str, list[float]]:
    """Scores of three test images by each site's detector of a baseline."""
    with closing(make_method(config, ready.extractor)) as method:
        method.take(ready.features)
        if trained:
            method.train(Ledger())
        made = method.baseline(baseline)
        assert made is not None
        files = ready.sites[0].test.paths[:3]
        return {site: one.detector.score(files).image.tolist() for site, one in made.items()}


@pytest.mark.parametrize("baseline", ["local", "pooled"])
def test_whoever_joins_late_has_all_rounds_in_a_baseline(
    baseline: str,
    given: Callable[[str], dict[str, Any]],
    prepared: Callable[[TrainConfig], Prepared],
) -> None:
    config = resolve_config(**given("stfpm") | {"rounds": 2})
    late = config.model_copy(update={"join": {"birch": 2}})
    ready = prepared(config)
    assert baseline_scores(ready, late, baseline) == baseline_scores(ready, config, baseline)


def test_a_site_alone_has_seen_nothing_of_the_federation(
    given: Callable[[str], dict[str, Any]], prepared: Callable[[TrainConfig], Prepared]
) -> None:
    config = resolve_config(**given("aand"))  # whose sites amplify a common teacher first
    ready = prepared(config)
    after = baseline_scores(ready, config, "local", trained=True)
    assert after == baseline_scores(ready, config, "local")


def test_the_pooled_memory_is_chosen_in_the_dimensions_that_were_asked_for(
    given: Callable[[str], dict[str, Any]], prepared: Callable[[TrainConfig], Prepared]
) -> None:
    config = resolve_config(**given("patchcore"), projection=4)
    ready = prepared(config)
    whole = config.model_copy(update={"projection": None})
    assert baseline_scores(ready, config, "pooled") != baseline_scores(ready, whole, "pooled")


@pytest.mark.parametrize("name", STUDENTS)
def test_options_of_one_student_alone_are_in_the_table_of_all(name: str) -> None:
    assert set(detector_class(name).own_options) <= set(StudentOptions.model_fields)
