"""`train` with a student instead of a memory: rounds of weights, files, and what is refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedvad
from fedvad.data.folders import ImageSet, Site, read_set
from fedvad.data.synthesis import SynthesisConfig
from fedvad.deploy.settings import to_toml
from fedvad.detectors.artefact import read_arrays, write_arrays
from fedvad.detectors.student.dcam.options import AttentionConfig, ImitationConfig
from fedvad.detectors.student.parameters import buffers_of, under
from fedvad.detectors.student.site import StudentSite
from fedvad.errors import ArtefactError, ConfigError
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.exchange.weights import WeightExchange
from fedvad.federation.ledger import Ledger
from fedvad.federation.payload import Payload
from fedvad.report.contact_sheet import contact_sheet
from fedvad.runs.config import resolve_config
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.method_student import StudentMethod
from fedvad.runs.student_run import StudentModel, StudentRun
from fedvad.runs.students import averaged, make_student, prepare_sites
from tests.detectors.student import support
from tests.helpers import run_main, sheets

SITES = ["alder", "birch", "cedar"]
Run = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    tiny = support.write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")
    return {
        "student": {"steps": 3, "warmup": 0},
        "rounds": 2,
        "holdout": 0.5,
        **support.options(tiny),
    }


@pytest.fixture(scope="module")
def steps() -> set[tuple[int, int]]:
    """Images and steps of each training behind `trained`."""
    return set()


@pytest.fixture(scope="module")
def trained(
    plants: Path,
    options: dict[str, Any],
    steps: set[tuple[int, int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    out = tmp_path_factory.mktemp("students") / "run"
    train = StudentSite.train

    def counted(self: StudentSite, **given: Any) -> Any:
        log = train(self, **given)
        steps.add((len(self), log.steps))
        return log

    with pytest.MonkeyPatch.context() as patch, sheets(contact_sheet):
        patch.setattr(StudentSite, "train", counted)
        return out, fedvad.train(plants, out, method="paste", compare="local,pooled", **options)


@pytest.fixture(scope="module")
def whole(
    plants: Path,
    options: dict[str, Any],
    trained: Run,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Run]:
    """A finished run of a method; read only."""

    @cache
    def train(method: str) -> Run:
        if method == "paste":
            return trained
        out = tmp_path_factory.mktemp("whole") / "run"
        return out, fedvad.train(plants, out, **_given(method, options))

    return train


def test_a_threshold_is_found_again_from_normal_images(
    trained: Run, plants: Path, tmp_path: Path
) -> None:
    run, normals = tmp_path / "run", plants / "birch/test/good"
    shutil.copytree(trained[0], run)
    reported = fedvad.calibrate(run, normals, site="birch", target_fpr=0.2)
    assert set(reported["thresholds"]) == {"global"}
    rows = list(fedvad.predict(run, normals, site="birch"))
    kept = fedvad.load(run).sites["birch"].thresholds["global"]
    assert kept.scores == pytest.approx(sorted(row["score"] for row in rows))
    assert {row["threshold"] for row in rows} == {reported["thresholds"]["global"]["now"]}


class TestARun:
    def test_tells_what_a_memory_tells(self, trained: Run) -> None:
        out, results = trained
        assert results["method"] == "paste"
        assert set(results["compare"]) == {"local", "pooled"}
        assert results["training_images"] == dict.fromkeys(SITES, 6)
        assert sorted(results["image_auroc"]["sites"]) == SITES
        student = under("student/", read_arrays(out / "detector.safetensors")[0])
        size = sum(array.nbytes for array in student.values())
        assert size < results["ledger"]["bytes_up_max"] < 1.1 * size + 5000
        assert results["learning"]["birch"]["at"] == [3, 6]
        assert len(results["learning"]["birch"]["held_out"]) == 2
        page = (out / "report.html").read_text()
        assert "held-out loss, birch" in page
        assert "student network in float32" in page
        assert "only the weights described below" in page
        assert "one real patch" not in page
        assert "or model weight" not in page
        assert "hash of the backbone" in page
        assert "upload_rows" not in page
        for name in ("report.html", "heatmaps.png", "tables/results.md", "ledger.json"):
            assert (out / name).stat().st_size > 0
        assert not (out / "state").exists()

    def test_evaluate_gives_the_same_figures(self, trained: Run, plants: Path) -> None:
        again = fedvad.evaluate(trained[0], plants)
        assert again["image_auroc"] == trained[1]["image_auroc"]
        assert again["threshold"] == trained[1]["threshold"]

    def test_thresholds_come_from_images_that_nobody_trained_on(
        self, trained: Run, plants: Path, options: dict[str, Any]
    ) -> None:
        run = fedvad.load(trained[0])
        config = resolve_config(method="paste", **options)
        images = {name: read_set(plants / name).train for name in SITES}
        extractor = FeatureExtractor(config.features())
        for name, site in prepare_sites(images, config, extractor).items():
            assert not set(site.unseen) & set(site.paths)
            scores = run.detector(name, extractor).score(site.unseen).image
            assert run.sites[name].thresholds["global"].scores == pytest.approx(sorted(scores))
            site.close()

    def test_the_pooled_student_takes_the_steps_of_all_sites(
        self, trained: Run, steps: set[tuple[int, int]]
    ) -> None:
        assert steps == {(3, 3), (9, 9)}

    def test_sites_share_weights_and_keep_their_statistics(
        self, trained: Run, plants: Path
    ) -> None:
        run = fedvad.load(trained[0])
        assert isinstance(run, StudentRun)
        assert sorted(run.sites) == SITES
        first, second = (run.sites[name].buffers for name in SITES[:2])
        assert any(not np.array_equal(first[name], second[name]) for name in first)
        assert all(np.isfinite(m.own["scale"]) and m.own["scale"] > 0 for m in run.sites.values())
        rows = {
            site: list(fedvad.predict(trained[0], plants / "alder" / "test", site=site))
            for site in SITES[:2]
        }
        scores = [[row["score"] for row in rows[site]] for site in SITES[:2]]
        assert scores[0] != scores[1]
        limit = run.sites["alder"].thresholds["global"].value
        assert all(row["threshold"] == limit for row in rows["alder"])
        assert all(row["anomalous"] == (row["score"] > limit) for row in rows["alder"])

    def test_a_site_that_never_trained_scores_with_all_sites_statistics(
        self, trained: Run, plants: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "dogwood").symlink_to(plants / "alder")
        results = fedvad.evaluate(trained[0], tmp_path)
        assert results["sites_never_trained_on"] == ["dogwood"]
        # alder's images, which the student was trained on: alder's threshold, not one of these
        reported = fedvad.evaluate(trained[0], plants)["threshold"]["sites"]["alder"]
        assert results["threshold"]["sites"]["dogwood"] == reported
        rows = list(fedvad.predict(trained[0], plants / "alder" / "test"))
        assert all(np.isfinite(row["score"]) for row in rows)

    def test_inspect_names_the_student(self, trained: Run) -> None:
        reported = fedvad.inspect(trained[0])
        assert reported["kind"] == "student run"
        assert {site["name"] for site in reported["sites"]} == set(SITES)

    @pytest.mark.parametrize("reference", ["local", "union"])
    def test_there_is_no_memory_to_choose(self, trained: Run, plants: Path, reference: Any) -> None:
        with pytest.raises(ConfigError, match="this run has a student"):
            fedvad.evaluate(trained[0], plants, reference=reference)

    def test_who_needs_a_memory_learns_that_there_is_none(self, trained: Run) -> None:
        with pytest.raises(ArtefactError, match="a student and no memory"):
            TrainedRun.load(trained[0])

    def test_int8_was_never_measured(self, trained: Run, plants: Path) -> None:
        with pytest.raises(ConfigError, match="has not been measured"):
            fedvad.export(trained[0], format="openvino", int8=True, data=plants)

    @pytest.mark.parametrize("key", ["student", "sites", "features", "method"])
    def test_damage_is_reported(self, trained: Run, tmp_path: Path, key: str) -> None:
        arrays, values = read_arrays(trained[0] / "detector.safetensors")
        del values[key]
        (tmp_path / "config.json").write_bytes((trained[0] / "config.json").read_bytes())
        write_arrays(tmp_path / "detector.safetensors", arrays, values)
        with pytest.raises(ArtefactError, match=r"damaged|lacks its feature"):
            fedvad.load(tmp_path)


def test_the_commands_of_the_page(
    plants: Path, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs/methods/stfpm.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "train" in b)
    flat = {name: value for name, value in options.items() if name != "student"}
    table = to_toml(options["student"] | {"steps": 2})
    (tmp_path / "quick.toml").write_text(f"{to_toml(flat)}[student]\n{table}")
    monkeypatch.chdir(tmp_path)
    for line in block.replace("DATA", str(plants)).splitlines():
        own = "--backbone mcunet_in3 --weights mcunet_in3.safetensors"
        words = line.replace(own, "--config quick.toml").split()
        assert words.pop(0) == "fedvad"
        assert run_main(monkeypatch, *words) == 0
    assert (tmp_path / "run" / "report.html").is_file()


MORE = {
    "aand": {"options": {"amplify": {"items": 4, "pairs": 8}}, "amplify_rounds": 1},
    "dmdd": {"options": {"dual": {"pairs": 8}, "source": "mix"}},
}


def _given(method: str, options: dict[str, Any]) -> dict[str, Any]:
    return options | {"method": method, "student": options["student"] | MORE.get(method, {})}


@pytest.mark.parametrize(("method", "last"), [("paste", 2), ("aand", 3), ("dmdd", 2)])
def test_interrupted_training_goes_on_to_the_bit(
    method: str,
    last: int,
    plants: Path,
    options: dict[str, Any],
    whole: Callable[[str], Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = WeightExchange.site_step
    given = _given(method, options)

    def stopped(self: Any, state: Any, incoming: Any, round_: int) -> Any:
        if round_ == last:
            raise KeyboardInterrupt
        return step(self, state, incoming, round_)

    with monkeypatch.context() as patch:
        patch.setattr(WeightExchange, "site_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            fedvad.train(plants, tmp_path / "run", **given)
    with pytest.raises(ConfigError, match="--resume"):
        fedvad.train(plants, tmp_path / "run", **given)
    resumed = fedvad.train(plants, tmp_path / "run", resume=True, **given)
    assert resumed["ledger"]["rounds"] == last
    first, again = (fedvad.load(run) for run in (whole(method)[0], tmp_path / "run"))
    assert isinstance(first, StudentRun)
    assert isinstance(again, StudentRun)
    assert first.shared.keys() == again.shared.keys()
    for name, array in first.shared.items():
        np.testing.assert_array_equal(array, again.shared[name])
    assert first.threshold("birch") == again.threshold("birch")
    log = first.sites["birch"].own["log"]
    assert log["at"] == [3, 6]  # of two rounds
    assert len(log["validation"]) == 2
    assert again.sites["birch"].own["log"] == log


@pytest.mark.parametrize(
    ("student", "reason"),
    [
        ({"algorithm": "scaffold"}, "scaffold corrects plain SGD, and rd trains with adam"),
        ({"options": {"widthz": 1}}, "do not fit rd: .*widthz"),
        ({"options": {"loss": "none"}}, "unknown loss"),
    ],
)
def test_options_that_do_not_fit_the_method(
    student: dict[str, Any], reason: str, plants: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    given = options | {"student": student}
    with pytest.raises(ConfigError, match=reason):
        fedvad.train(plants, tmp_path / "run", method="rd", **given)


def test_how_long_it_takes_is_said_before_a_long_training(
    plants: Path, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    given = options | {"student": {"batch": 3}, "rounds": 4, "compare": ("local",)}
    config = resolve_config(method="paste", **given)
    method = StudentMethod(config, FeatureExtractor(config.features()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StudentSite, "seconds_per_step", lambda self: 0.5)
        method.read([Site("alder", read_set(plants / "alder").train, ImageSet(()))])
    # the recipe's 25 600 images in batches of 3: 2134 steps of each round
    assert "about 142 min: 8536 steps of 0.5 s for 2 students" in caplog.text
    assert "--student-steps 50 for each of 4 rounds" in caplog.text
    member = method.members["alder"]
    before = buffers_of(member.student)
    assert member.seconds_per_step() > 0
    for name, buffer in buffers_of(member.student).items():
        np.testing.assert_array_equal(before[name], buffer)
    assert not any(p.grad is not None for p in member.student.parameters())
    method.close()


def test_one_threshold_for_all_sites(plants: Path, options: dict[str, Any], tmp_path: Path) -> None:
    given = options | {"shared_threshold": True, "target_fpr": 0.3}
    fedvad.train(plants, tmp_path / "run", method="stfpm", **given)
    found = {m.thresholds["global"].value for m in fedvad.load(tmp_path / "run").sites.values()}
    assert len(found) == 1


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            {"method": "paste", "merge": "kmeans"},
            "paste has no use for merge: .*--method feddymem",
        ),
        ({"method": "stfpm", "upload_bytes": 5000, "pool": 5}, "pool, upload_bytes"),
        (
            {"method": "feddymem", "student": {"steps": 3}},
            r"no use for student\.steps: .*--method aand",
        ),
        ({"method": "paste", "student": {"stepz": 3}}, "stepz"),
        ({"method": "paste", "student": {"learning_rate": -1}}, "learning_rate"),
        (
            {"method": "stfpm", "student": {"bootstrap": 2}},
            "student.bootstrap is an option of paste",
        ),
        ({"method": "rd", "student": {"amplify_rounds": 3}}, "amplify_rounds is an option of aand"),
        ({"method": "paste", "compare": "identity"}, "paste has none"),
    ],
)
def test_options_without_an_effect_are_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        resolve_config(**given)


def test_mixed_statistics_are_those_of_all_images_together() -> None:
    rng = np.random.default_rng(0)
    parts = {"a": rng.normal(1, 2, (30, 4)), "b": rng.normal(-3, 1, (10, 4))}
    sites = {
        name: StudentModel(
            {"bn.running_mean": part.mean(0), "bn.running_var": part.var(0)}, {}, n_images=len(part)
        )
        for name, part in parts.items()
    }
    run = StudentRun({}, {}, sites, None, "stfpm")  # type: ignore[arg-type]
    both = np.concatenate(list(parts.values()))
    np.testing.assert_allclose(run._mixed()["bn.running_mean"], both.mean(0))
    np.testing.assert_allclose(run._mixed()["bn.running_var"], both.var(0))


def test_layers_of_the_papers_unless_others_are_given() -> None:
    assert resolve_config(method="stfpm", backbone="resnet18").features().layers == (1, 2, 3)
    assert resolve_config(method="paste", backbone="mcunet_in3").features().layers == (6, 10, 14)
    assert resolve_config(method="paste", layers=(2, 3)).features().layers == (2, 3)
    assert resolve_config(method="feddymem", backbone="resnet18").features().layers is None


@pytest.mark.parametrize("method", ["paste", "rd", "aand", "dmdd"])
def test_mixed_precision_reaches_every_stage(method: str) -> None:
    config = resolve_config(method=method, layers=(1, 2), student={"mixed_precision": True})
    detector = make_student(config, FeatureExtractor(config.features()))
    stages = [getattr(detector, n) for n in ("train", "stage1") if hasattr(detector, n)]
    assert len(stages) == (2 if method == "aand" else 1)
    assert all(stage.mixed_precision for stage in stages)


def test_scaffold_has_no_momentum() -> None:
    for algorithm, momentum in (("scaffold", 0.0), ("fedavg", 0.9)):
        config = resolve_config(method="stfpm", layers=(1, 2), student={"algorithm": algorithm})
        detector = make_student(config, FeatureExtractor(config.features()))
        assert detector.train.momentum == momentum


def test_a_round_ends_with_its_last_step(plants: Path, options: dict[str, Any]) -> None:
    config = resolve_config(method="stfpm", **options)
    images = {"alder": read_set(plants / "alder").train}
    sites = prepare_sites(images, config, FeatureExtractor(config.features()))
    log = sites["alder"].train(config=replace(sites["alder"].config, validate_every=1))
    assert len(log.validation) == log.steps == 3
    assert log.best == 2
    sites["alder"].close()


def test_a_site_counts_by_its_images(
    plants: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, reported = WeightExchange.accept, {}

    def seen(self: WeightExchange, payload: Payload) -> None:
        reported[payload.manifest.site] = payload.manifest.n_images
        accept(self, payload)

    monkeypatch.setattr(WeightExchange, "accept", seen)
    config = resolve_config(method="stfpm", **options | {"rounds": 1})
    images = {
        "alder": read_set(plants / "alder").train,
        "birch": read_set(plants / "birch").train[:3],
    }
    extractor = FeatureExtractor(config.features())
    sites = prepare_sites(images, config, extractor)
    averaged(sites, config, extractor, ledger=Ledger())
    assert reported == {"alder": 6, "birch": 3}
    for site in sites.values():
        site.close()


@pytest.mark.parametrize(
    ("method", "table", "name", "value"),
    [
        (
            "dmdd",
            {"synthesis": {"foreground": "otsu"}},
            "synthesis",
            SynthesisConfig(foreground="otsu", area=(0.01, 0.15)),
        ),
        (
            "aand",
            {"synthesis": {"area": [0.1, 0.2]}},
            "synthesis",
            SynthesisConfig(area=(0.1, 0.2)),
        ),
        ("dcam", {"attention": {"dcam": "spatial"}}, "attention", AttentionConfig("spatial")),
        ("dcam", {"loss": {"tau": 4.0}}, "loss", ImitationConfig(tau=4.0)),
    ],
)
def test_tables_become_what_a_method_takes(
    method: str, table: dict[str, Any], name: str, value: Any
) -> None:
    config = resolve_config(method=method, layers=(1, 2), student={"options": table})
    assert getattr(make_student(config, FeatureExtractor(config.features())), name) == value


@pytest.mark.parametrize(
    ("method", "table", "reason"),
    [
        ("dmdd", {"synthesis": {"source": "others"}}, "not from 'others'"),
        ("dmdd", {"synthesis": {"colour": 1}}, "colour"),
        ("dmdd", {"dual": {"head_start_step": 9}}, "must be 0 when sites train in rounds"),
        ("dcam", {"loss": {"taus": 4.0}}, "taus"),
    ],
)
def test_tables_that_do_not_fit(method: str, table: dict[str, Any], reason: str) -> None:
    config = resolve_config(method=method, layers=(1, 2), student={"options": table})
    with pytest.raises(ConfigError, match=reason):
        make_student(config, FeatureExtractor(config.features())).network()


def test_weights_travel_to_other_machines_only_where_it_is_allowed(
    plants: Path, tmp_path: Path
) -> None:
    from fedvad.deploy.init import init
    from fedvad.deploy.server import begin
    from fedvad.deploy.settings import read_server
    from fedvad.federation.signed import generate_keys
    from fedvad.verbs.bank import export_upload

    init(tmp_path / "dep", ["localhost"], SITES)
    (tmp_path / "dep/server/federation.toml").write_text('method = "paste"\n')
    with pytest.raises(ConfigError, match=r"allow_weights = true in server\.toml"):
        begin(read_server(tmp_path / "dep"), "run")
    generate_keys(tmp_path / "keys", "alder")
    with pytest.raises(ConfigError, match=r"stfpm trains a student .*\n.*--allow-weights"):
        export_upload(
            plants / "alder", tmp_path / "state", tmp_path / "keys/alder.key", tmp_path / "up",
            index=0, options={"method": "stfpm"},
        )  # fmt: skip
