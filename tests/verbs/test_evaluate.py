"""evaluate(): every reference set, sites that never trained, and runs that are not sound."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedvad
from fedvad.detectors.artefact import read_arrays, write_arrays
from fedvad.errors import ArtefactError, ConfigError, DataError, MismatchError
from fedvad.runs.memory_run import TrainedRun
from tests.helpers import OPTIONS, TRAIN, without_masks
from tests.verbs.test_train import SITES, check_shape

Run = tuple[Path, dict[str, Any]]


def test_the_shape_is_that_of_train(trained: Run, plants: Path, shared_cache: Path) -> None:
    results = fedvad.evaluate(trained[0], plants, cache=shared_cache)
    check_shape(results, SITES, main=True)
    assert results["ledger"]["rounds"] == trained[1]["ledger"]["rounds"]
    for key in ("bytes_up_per_site_round", "bytes_down_per_site_round"):
        assert results["ledger"][key] == trained[1]["ledger"][key]
    assert results["ledger"]["seconds"]["score"] > 0
    assert results["ledger"]["seconds"]["local"] == 0
    assert results["sites_never_trained_on"] == []


@pytest.mark.parametrize("reference", ["global", "local", "union"])
def test_every_reference_set(
    reference: Any, trained: Run, plants: Path, shared_cache: Path
) -> None:
    out, results = trained
    again = fedvad.evaluate(out, plants, reference=reference, cache=shared_cache)
    assert again["reference"] == reference
    check_shape(again, SITES, main=True)
    if reference == "local":
        # the same memories and scoring as the comparison that training made
        assert again["image_auroc"] == results["compare"]["local"]["image_auroc"]
        assert again["threshold"] == results["compare"]["local"]["threshold"]
        assert again["image_auroc"]["mean"] < results["image_auroc"]["mean"]
    elif reference == "union":
        # all that a site knows is in the global memory already
        assert again["image_auroc"] == results["image_auroc"]


@pytest.fixture(scope="module")
def newcomer(plants: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one site of the run and one that never trained."""
    root = tmp_path_factory.mktemp("new") / "plants"
    shutil.copytree(plants / "alder", root / "alder")
    shutil.copytree(plants / "birch", root / "oak")
    return root


class TestNewSites:
    def test_with_normals_the_threshold_is_its_own(
        self, trained: Run, newcomer: Path, shared_cache: Path
    ) -> None:
        results = fedvad.evaluate(trained[0], newcomer, cache=shared_cache)
        assert results["sites_never_trained_on"] == ["oak"]
        assert results["threshold"]["sites"]["oak"]["n"] == TRAIN
        # its images are birch's, whose rows in the memory must not lower it
        assert results["threshold"]["sites"]["oak"]["threshold"] == pytest.approx(
            trained[1]["threshold"]["sites"]["birch"]["threshold"], rel=1e-5
        )
        reported = results["image_auroc"]["sites"]
        assert reported["oak"] == trained[1]["image_auroc"]["sites"]["birch"]
        assert reported["alder"] == trained[1]["image_auroc"]["sites"]["alder"]

    def test_without_normals_it_borrows_the_median(
        self, trained: Run, newcomer: Path, shared_cache: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(newcomer / "oak" / "test", tmp_path / "oak" / "test")
        results = fedvad.evaluate(trained[0], tmp_path, cache=shared_cache)
        known = [v["threshold"] for v in trained[1]["threshold"]["sites"].values()]
        assert results["threshold"]["sites"]["oak"]["threshold"] == np.median(known)
        assert results["pixel_auroc"]["mean"] is None  # its masks stayed behind

    def test_it_uses_the_global_memory_whatever_the_others_use(
        self, trained: Run, newcomer: Path, shared_cache: Path
    ) -> None:
        results = fedvad.evaluate(trained[0], newcomer, reference="local", cache=shared_cache)
        expected = fedvad.evaluate(trained[0], newcomer, cache=shared_cache)
        assert results["image_auroc"]["sites"]["oak"] == expected["image_auroc"]["sites"]["oak"]
        assert results["threshold"]["sites"]["oak"] == expected["threshold"]["sites"]["oak"]

    @pytest.mark.parametrize("reference", ["local", "union"])
    def test_also_of_a_run_that_was_trained_for_own_memories(
        self,
        reference: str,
        plants: Path,
        newcomer: Path,
        shared_cache: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        results = fedvad.train(
            plants, tmp_path / "run", cache=shared_cache, reference=reference, **OPTIONS
        )
        for values in results["threshold"]["sites"].values():
            assert values["threshold"] is not None
        again = fedvad.evaluate(tmp_path / "run", newcomer, cache=shared_cache)
        assert again["image_auroc"]["sites"]["oak"] is not None
        shutil.copytree(newcomer / "oak" / "test", tmp_path / "oak" / "test")
        borrowed = fedvad.evaluate(tmp_path / "run", tmp_path / "oak", cache=shared_cache)
        assert borrowed["threshold"]["sites"]["oak"]["threshold"] is not None
        row = next(fedvad.predict(tmp_path / "run", newcomer / "oak/test/good"))
        assert row["anomalous"] is not None


def test_masks_that_are_missing_give_null(
    trained: Run, plants: Path, shared_cache: Path, tmp_path: Path
) -> None:
    data = without_masks(plants, tmp_path / "plants")
    results = fedvad.evaluate(trained[0], data, cache=shared_cache)
    assert results["image_auroc"] == trained[1]["image_auroc"]
    assert results["pixel_auroc"]["pooled"] is None
    assert results["aupro"]["sites"] == dict.fromkeys(SITES)


def test_normal_test_images_alone_give_rates_but_no_ranking(
    trained: Run, plants: Path, shared_cache: Path, tmp_path: Path
) -> None:
    shutil.copytree(plants / "alder/test/good", tmp_path / "alder/test/good")
    results = fedvad.evaluate(trained[0], tmp_path, cache=shared_cache)
    assert results["image_auroc"]["sites"] == {"alder": None}
    assert results["threshold"]["sites"]["alder"]["fpr"] is not None
    assert results["threshold"]["sites"]["alder"]["recall"] is None


def test_a_contact_sheet_on_request(
    trained: Run, newcomer: Path, shared_cache: Path, tmp_path: Path
) -> None:
    fedvad.evaluate(trained[0], newcomer, cache=shared_cache, heatmaps=tmp_path / "s" / "sheet.png")
    assert (tmp_path / "s" / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_no_test_images(trained: Run, plants: Path, shared_cache: Path, tmp_path: Path) -> None:
    shutil.copytree(plants / "alder" / "train", tmp_path / "alder" / "train")
    with pytest.raises(DataError, match="no test images"):
        fedvad.evaluate(trained[0], tmp_path, cache=shared_cache)


@pytest.fixture
def copy(trained: Run, tmp_path: Path) -> Path:
    """A run that may be damaged."""
    target = tmp_path / "copy"
    target.mkdir()
    for name in ("config.json", "detector.safetensors"):
        shutil.copy(trained[0] / name, target / name)
    return target


class TestRunsThatAreNotSound:
    def test_no_run(self, plants: Path, tmp_path: Path) -> None:
        with pytest.raises(ArtefactError, match="does not exist"):
            fedvad.evaluate(tmp_path / "none", plants)
        with pytest.raises(ArtefactError, match=r"no detector\.safetensors"):
            fedvad.evaluate(tmp_path, plants)
        (tmp_path / "state").mkdir()
        with pytest.raises(ArtefactError, match="--resume"):
            fedvad.evaluate(tmp_path, plants)

    def test_without_its_ledger_it_still_serves(
        self, copy: Path, plants: Path, shared_cache: Path
    ) -> None:
        results = fedvad.evaluate(copy, plants, cache=shared_cache)
        assert results["ledger"]["rounds"] == 0

    @pytest.mark.parametrize("text", [None, "", "{", "[]", '{"method": "x", "what": 1}'])
    def test_its_configuration(self, text: str | None, copy: Path, plants: Path) -> None:
        (copy / "config.json").unlink()
        if text is not None:
            (copy / "config.json").write_text(text)
        with pytest.raises(ArtefactError, match=r"config\.json"):
            fedvad.evaluate(copy, plants)

    @pytest.mark.parametrize("cut", [0, 5, 300, -1])
    def test_truncated(self, cut: int, copy: Path) -> None:
        file = copy / "detector.safetensors"
        file.write_bytes(file.read_bytes()[:cut])
        with pytest.raises(ArtefactError, match="damaged"):
            TrainedRun.load(copy)

    @pytest.mark.parametrize(
        "change",
        [
            {"schema": 99}, {"kind": "detector"}, {"features": None}, {"features": {"layers": 1}},
            {"sites": None}, {"sites": [{"name": "x"}]}, {"scoring": {"what": 1}},
        ],
    )  # fmt: skip
    def test_foreign_or_of_another_schema(self, change: dict[str, Any], copy: Path) -> None:
        file = copy / "detector.safetensors"
        arrays, values = read_arrays(file)
        write_arrays(file, arrays, values | change)
        with pytest.raises(ArtefactError, match="detector"):
            TrainedRun.load(copy)

    @pytest.mark.parametrize("how", ["missing", "NaN", "short", "negative"])
    def test_broken_arrays(self, how: str, copy: Path) -> None:
        file = copy / "detector.safetensors"
        arrays, values = read_arrays(file)
        vectors = arrays["site1/vectors"]
        changed = {
            "missing": {}, "NaN": {"site1/vectors": vectors * np.float32("nan")},
            "short": {"site1/vectors": vectors[1:]},
            "negative": {"site1/vectors": vectors, "site1/weights": -arrays["site1/weights"]},
        }[how]  # fmt: skip
        del arrays["site1/vectors"]
        write_arrays(file, arrays | changed, values)
        with pytest.raises(ArtefactError, match="detector"):
            TrainedRun.load(copy)

    @pytest.mark.parametrize("field", ["weights_hash", "image_size", "pool"])
    def test_other_features_are_refused(self, field: str, copy: Path, plants: Path) -> None:
        file = copy / "detector.safetensors"
        arrays, values = read_arrays(file)
        other = "0" * 64 if field == "weights_hash" else {"image_size": 96, "pool": 1}[field]
        write_arrays(file, arrays, values | {"features": values["features"] | {field: other}})
        with pytest.raises(MismatchError, match=field):
            fedvad.evaluate(copy, plants)
        with pytest.raises(MismatchError, match=field):
            next(fedvad.predict(copy, plants / "alder/test/good"))


def test_a_site_that_the_run_does_not_know_has_no_memory_of_its_own(trained: Run) -> None:
    from fedvad.features.config import FeatureConfig
    from fedvad.features.extractor import FeatureExtractor

    run = fedvad.load(trained[0])
    extractor = FeatureExtractor(FeatureConfig(**OPTIONS))
    with pytest.raises(ConfigError, match="oak"):
        run.detector("oak", extractor, "local")
    assert run.detector("oak", extractor).bank_ is run.memory
    assert run.threshold("oak") == run.threshold(None)
