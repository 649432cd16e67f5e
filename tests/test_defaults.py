"""One default for each option, whichever way a detector is made; and so the same scores."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

import fedvad
from fedvad.cli.common import open_cache
from fedvad.data.folders import read_set
from fedvad.data.view_choice import USUAL_SIZE
from fedvad.detectors.memory.feddymem import FedDyMem, PatchCore
from fedvad.detectors.memory.metric_loss import MetricLossConfig
from fedvad.detectors.memory.site import FedDyMemConfig
from fedvad.detectors.registry import create, detector_class
from fedvad.features.cache import DescriptorCache
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.features.names import IMAGE_SIZE
from fedvad.runs.arguments import cache_at
from fedvad.runs.config import resolve_config
from fedvad.serving.predictor import Predictor
from fedvad.serving.service.app import create_app
from fedvad.serving.service.settings import ServiceSettings
from tests.helpers import FLAGS, OPTIONS, run_main

# what options of a training are called by a detector's constructor
NAMES = {"rows": "upload_rows", "held_out": "holdout", "cache_bytes": "student.cache_bytes"}
METHODS = ("feddymem", "patchcore")
STUDENTS = ("stfpm", "paste", "dcam", "rd", "aand", "dmdd", "daad", "amsl")


def _default(option: str, method: str) -> Any:
    value: Any = resolve_config(method=method)
    for part in option.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("name", METHODS + STUDENTS)
def test_detectors_have_the_defaults_of_the_command_line(name: str) -> None:
    known = resolve_config().model_dump()
    compared = 0
    for key, parameter in inspect.signature(detector_class(name)).parameters.items():
        option = NAMES.get(key, key)
        if option.split(".")[0] not in known or parameter.default is parameter.empty:
            continue
        if key in ("layers", "loss"):  # None: the method's; a student's loss is its own
            continue
        compared += 1
        assert parameter.default == _default(option, name), key
    assert compared >= 2


def test_parts_of_a_detector_have_the_defaults_of_the_command_line() -> None:
    config = resolve_config()
    memory = config.memory(dim=64)
    assert memory == FedDyMemConfig()
    assert memory.loss == MetricLossConfig()
    assert config.features() == FeatureConfig()
    assert FeatureConfig().image_size == IMAGE_SIZE
    assert FedDyMem(extractor=FeatureExtractor(FeatureConfig())).scoring == config.scoring()
    sizes = {cache_at(None).max_bytes, open_cache(None).max_bytes}
    assert len(sizes) == 1


@pytest.fixture(scope="module")
def plant(plants: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the one site alder."""
    root = tmp_path_factory.mktemp("one")
    shutil.copytree(plants / "alder", root / "alder")
    return root


@pytest.fixture(scope="module")
def by_command_line(
    plant: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Run folder by method."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        for method in METHODS:
            out = folder / method
            options = ("--out", out, "--method", method, "--cache", shared_cache, *FLAGS)
            assert run_main(patch, "train", plant, *options, "--json") == 0
    return {method: folder / method for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_the_same_through_every_door(
    method: str,
    by_command_line: dict[str, Path],
    plant: Path,
    shared_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = read_set(plant / "alder")
    paths = images.test.paths
    run = by_command_line[method]

    capsys.readouterr()
    assert run_main(monkeypatch, "predict", run, *paths, "--site", "alder", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    scores = np.array([row["score"] for row in rows])
    assert len(set(scores.round(6))) == len(paths)

    fedvad.train(plant, tmp_path / "run", method=method, cache=shared_cache, **OPTIONS)
    in_python = [row["score"] for row in fedvad.predict(tmp_path / "run", paths, site="alder")]
    np.testing.assert_array_equal(in_python, scores)

    extractor = FeatureExtractor(FeatureConfig(**OPTIONS), DescriptorCache(shared_cache))
    detector = create(method, extractor=extractor).fit(images.train)
    assert isinstance(detector, FedDyMem | PatchCore)
    np.testing.assert_allclose(detector.score(paths).image, scores, rtol=1e-5)

    files = [("files", (path.name, path.read_bytes())) for path in paths]
    with (
        Predictor.load(run, site="alder") as predictor,
        TestClient(create_app(predictor, ServiceSettings())) as client,
    ):
        served = [r["score"] for r in client.post("/v1/predict", files=files).json()["results"]]
    np.testing.assert_allclose(served, scores, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_anomalib_models_have_the_same_defaults(method: str) -> None:
    models = pytest.importorskip("fedvad.integrations.anomalib.models", exc_type=ImportError)
    model = {"feddymem": models.FedDyMem, "patchcore": models.PatchCore}[method]
    config = resolve_config(method=method)
    defaults = {k: p.default for k, p in inspect.signature(model).parameters.items()}
    # it sees all images in one round
    assert defaults.pop("rows") == config.rounds * config.upload_rows
    for key, value in defaults.items():
        if key in type(config).model_fields and value is not None:
            wanted = USUAL_SIZE if key == "image_size" else getattr(config, key)  # it reads squares
            assert value == wanted, key


def test_no_progress_is_none_for_every_function_that_tells_it(
    trained: tuple[Path, dict[str, Any]], plants: Path, tmp_path: Path
) -> None:
    functions = {name: getattr(fedvad, name) for name in fedvad.__all__}
    found = {
        name: inspect.signature(function).parameters["progress"].default
        for name, function in functions.items()
        if inspect.isfunction(function) and "progress" in inspect.signature(function).parameters
    }
    assert set(found.values()) == {None}
    assert len(found) >= 15
    image = next((plants / "alder").rglob("*.png"))
    made = fedvad.predict(trained[0], image, site="alder", out=tmp_path / "o", progress=None)
    assert len(list(made)) == 1
