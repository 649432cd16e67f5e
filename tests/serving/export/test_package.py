"""Exported files: they score like the run, say what they are, and work without fedvad."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import fedvad
from fedvad.data.images import read_rgb, resize_rgb
from fedvad.detectors.memory.generator import Generator
from fedvad.errors import ArtefactError, ConfigError, DataError, StorageError
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.opening import open_memory_run as open_run
from fedvad.runs.run_folder import read_config, write_config
from fedvad.serving.export.package import EXAMPLE_FILE
from tests.helpers import SIZE, TRAIN

Run = tuple[Path, dict[str, Any]]
SITE = "birch"
FORMATS = ("onnx", "openvino")
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def files(plants: Path) -> list[Path]:
    return sorted((plants / SITE / "test").rglob("*.png"))


@pytest.fixture(scope="module")
def written(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Manifests of one site's exports, both in one folder; made on demand."""
    folder = tmp_path_factory.mktemp("export")
    made: dict[str, Any] = {}
    for format in FORMATS:
        if format == "onnx":
            pytest.importorskip("onnx")
            pytest.importorskip("onnxruntime")
        made[format] = fedvad.export(trained[0], format=format, site=SITE, out=folder)
    return made


def _backend(format: str) -> ModuleType:
    from fedvad.serving.export import onnx, openvino

    return {"onnx": onnx, "openvino": openvino}[format]


def _run(manifest: dict[str, Any], images: npt.NDArray[np.uint8]) -> dict[str, Any]:
    path = Path(manifest["folder"]) / manifest["model"]
    values = _backend(manifest["format"]).load(path)(images)
    return dict(zip(manifest["outputs"], values, strict=True))


def _images(files: list[Path], size: int = SIZE) -> npt.NDArray[np.uint8]:
    return np.stack([resize_rgb(read_rgb(path), size) for path in files])


def _maps(folder: Path, site: str, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    run, _, extractor = open_run(folder)
    detector = run.detector(site, extractor)
    return np.stack([map_ for _, map_ in detector.score_pixels(images)])


def _assert_parity(
    out: dict[str, Any], rows: list[dict[str, Any]], maps: npt.NDArray[np.float32]
) -> None:
    scores = np.array([row["score"] for row in rows])
    np.testing.assert_allclose(out["score"], scores, rtol=TOLERANCE)
    assert (np.abs(out["map"] - maps).max((1, 2)) < TOLERANCE * maps.max((1, 2))).all()
    assert out["anomalous"].dtype == bool
    assert out["anomalous"].tolist() == [row["anomalous"] for row in rows]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("format", FORMATS)
def test_it_scores_like_predict(
    format: str, batch: int, written: dict[str, Any], trained: Run, files: list[Path]
) -> None:
    chosen = files[-batch:]
    images = _images(chosen)
    out = _run(written[format], images)
    assert out["score"].shape == (batch,)
    assert out["map"].dtype == out["score"].dtype == np.float32
    rows = list(fedvad.predict(trained[0], chosen, site=SITE))
    _assert_parity(out, rows, _maps(trained[0], SITE, images))


@pytest.mark.parametrize("format", FORMATS)
def test_the_manifest_vouches_for_the_files(
    format: str, written: dict[str, Any], trained: Run
) -> None:
    manifest = dict(written[format])
    folder = Path(manifest.pop("folder"))
    assert json.loads((folder / f"{manifest['model']}.json").read_text()) == manifest
    for name, file in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert file == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert manifest["schema"] == 1
    assert manifest["input"]["shape"] == ["batch", SIZE, SIZE, 3]
    assert manifest["site"] == SITE
    assert manifest["threshold"]["value"] == trained[1]["threshold"]["sites"][SITE]["threshold"]
    assert manifest["threshold"]["promise"]["images"] == 6
    assert "6 normal images promise at most 39.3 %" in manifest["threshold"]["promised"]
    assert manifest["features"]["key"] == open_run(trained[0])[2].config.key()
    detector = (trained[0] / "detector.safetensors").read_bytes()
    assert manifest["run"]["sha256"] == hashlib.sha256(detector).hexdigest()
    assert max(manifest["difference_from_run"].values()) < 1e-4


@pytest.mark.parametrize("format", FORMATS)
def test_the_example_needs_no_fedvad(
    format: str, written: dict[str, Any], trained: Run, plants: Path, tmp_path: Path
) -> None:
    # of another size than the model's, turned by its EXIF tag
    source = Image.open(plants / SITE / "test/good/000.png").resize((90, 70)).rotate(90)
    turned = Image.Exif()
    turned[0x0112] = 6
    source.save(tmp_path / "a.png", exif=turned)
    folder = Path(written[format]["folder"])
    lines = (folder / EXAMPLE_FILE).read_text().splitlines()
    assert not any("fedvad" in line for line in lines if "import" in line)
    program = (
        "import sys, runpy; sys.modules['fedvad'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder / EXAMPLE_FILE, folder / written[format]["model"],
         tmp_path / "a.png"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = next(fedvad.predict(trained[0], tmp_path / "a.png", site=SITE))
    assert f"anomalous {row['anomalous']}" in done.stdout
    score = float(done.stdout.split("score ")[1].split(",")[0])
    assert score == pytest.approx(row["score"], rel=1e-3)


def test_the_default_folder_and_the_median_threshold(trained: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(trained[0], tmp_path / "run")
    manifest = fedvad.export(folder, format="openvino")
    assert Path(manifest["folder"]) == folder / "export"
    assert {path.name for path in (folder / "export").iterdir()} == {
        "model.xml", "model.bin", "model.xml.json", EXAMPLE_FILE,
    }  # fmt: skip
    assert manifest["site"] is None
    assert manifest["reference"] == "global"
    known = sorted(v["threshold"] for v in trained[1]["threshold"]["sites"].values())
    assert manifest["threshold"]["value"] == known[1]


def test_another_site_does_not_replace_the_first(trained: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(trained[0], tmp_path / "run")
    fedvad.export(folder, format="openvino", site=SITE)
    before = {path.name: path.read_bytes() for path in (folder / "export").iterdir()}
    for site in ("alder", None):
        for format in ("openvino", "onnx"):  # the example and its pictures are shared
            with pytest.raises(ConfigError, match=f"holds a model for {SITE}"):
                fedvad.export(folder, format=format, site=site)
    assert {path.name: path.read_bytes() for path in (folder / "export").iterdir()} == before
    (folder / "export" / "model.xml.json").write_text("[]")
    with pytest.raises(ConfigError, match="no manifest"):
        fedvad.export(folder, format="openvino", site=SITE)


def _changed(trained: Run, target: Path, **changes: Any) -> Path:
    """A copy of the run whose sites or scoring differ."""
    folder = Path(shutil.copytree(trained[0], target))
    run = TrainedRun.load(folder)
    sites = {name: replace(model, **changes.get("model", {})) for name, model in run.sites.items()}
    replace(run, sites=sites, scoring=replace(run.scoring, **changes.get("scoring", {}))).save(
        folder
    )
    return folder


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_without_thresholds_gives_no_decision(
    format: str, trained: Run, files: list[Path], tmp_path: Path
) -> None:
    folder = _changed(trained, tmp_path / "run", model={"thresholds": {}})
    manifest = fedvad.export(folder, format=format, site=SITE)
    assert manifest["threshold"] is None
    out = _run(manifest, _images(files[:1]))
    assert set(out) == {"score", "map"}
    done = subprocess.run(
        [sys.executable, Path(manifest["folder"]) / EXAMPLE_FILE,
         Path(manifest["folder"]) / manifest["model"], files[0]],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert "anomalous unknown" in done.stdout, done.stderr


@pytest.mark.parametrize("map_", ["cfa", "patchcore", "spread"])
def test_every_map_and_a_generator_in_onnx(
    map_: str, trained: Run, files: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    dim = open_run(trained[0])[0].memory.dim
    rng = np.random.default_rng(0)
    generator = Generator(
        rng.normal(scale=0.01, size=(dim, dim)).astype(np.float32),
        rng.normal(scale=0.01, size=dim).astype(np.float32),
    )
    folder = _changed(
        trained, tmp_path / "run", model={"generator": generator}, scoring={"map": map_}
    )
    images = _images(files[:3])
    out = _run(fedvad.export(folder, site=SITE, reference="union"), images)
    rows = list(fedvad.predict(folder, files[:3], site=SITE, reference="union"))
    scores = [row["score"] for row in rows]
    np.testing.assert_allclose(out["score"], scores, rtol=TOLERANCE)


def test_int8_is_calibrated_on_normal_training_images_alone(
    trained: Run, plants: Path, monkeypatch: Any
) -> None:
    from fedvad.serving.export import quantise

    read: list[Path] = []
    monkeypatch.setattr(
        quantise, "read_rgb", lambda path, **limits: read.append(path) or read_rgb(path)
    )
    run, config, _ = open_run(trained[0])
    ticks: list[tuple[str, int, int]] = []
    images = quantise.calibration_images(
        plants, run, config, SITE, lambda *stage: ticks.append(stage)
    )
    assert {path.parent for path in read} == {plants / SITE / "train/good"}
    assert [image.shape for image in images] == TRAIN * [(1, SIZE, SIZE, 3)]
    assert ticks[-1] == ("reading", TRAIN, TRAIN)
    with pytest.raises(DataError, match="oak"):
        quantise.calibration_images(plants, run, config, "oak", lambda *stage: None)


def test_what_cannot_be_done_is_reported(trained: Run, plants: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="known sites"):
        fedvad.export(trained[0], site="oak", out=out)
    with pytest.raises(ConfigError, match="onnx or openvino"):
        fedvad.export(trained[0], format="tflite", out=out)
    with pytest.raises(ConfigError, match="--data"):
        fedvad.export(trained[0], int8=True, out=out)
    with pytest.raises(ConfigError, match="filter bank"):
        fedvad.export(trained[0], int8=True, data=plants, out=out)
    with pytest.raises(ArtefactError, match="does not exist"):
        fedvad.export(tmp_path / "none", out=out)
    broken = Path(shutil.copytree(trained[0], tmp_path / "run"))
    detector = broken / "detector.safetensors"
    detector.write_bytes(detector.read_bytes()[:-100])
    with pytest.raises(ArtefactError, match="damaged"):
        fedvad.export(broken, out=out)
    assert not out.exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_packages_are_named(
    package: str, trained: Run, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"fedvad\[export\]"):
        fedvad.export(trained[0], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("factor", [1.05, float("nan")])
def test_a_model_that_scores_otherwise_is_refused(
    factor: float, trained: Run, tmp_path: Path, monkeypatch: Any
) -> None:
    backend = _backend("openvino")
    honest = backend.load

    def wrong(path: Path) -> Any:
        def outputs(images: npt.NDArray[np.uint8]) -> list[Any]:
            score, map_, *rest = honest(path)(images)
            return [score, map_ * factor, *rest]

        return outputs

    monkeypatch.setattr(backend, "load", wrong)
    with pytest.raises(ArtefactError, match="does not score like the run"):
        fedvad.export(trained[0], format="openvino", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_reported(trained: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        fedvad.export(trained[0], format="openvino", out=tmp_path / "file" / "out")


@pytest.mark.real
@pytest.mark.slow
def test_a_real_backbone_scores_like_predict(
    shared: Path, resnet18_weights: Path, shared_cache: Path, tmp_path: Path, capfd: Any
) -> None:
    for package in ("onnxruntime", "nncf"):
        pytest.importorskip(package)
    data = shared / "data/hazelnut_toy"
    fedvad.train(
        data, tmp_path / "run", backbone="resnet18", weights=resnet18_weights, image_size=128,
        calibration="holdout", cache=shared_cache,
    )  # fmt: skip
    files = sorted((data / "test").rglob("*.jpg"))[::4]
    rows = list(fedvad.predict(tmp_path / "run", files))
    images = _images(files, 128)
    maps = _maps(tmp_path / "run", rows[0]["site"], images)
    capfd.readouterr()
    for format in FORMATS:
        manifest = fedvad.export(tmp_path / "run", format=format, out=tmp_path / "export")
        assert manifest["memory"]["rows"] >= 1000  # the shortlist search is in the graph
        _assert_parity(_run(manifest, images), rows, maps)
    coarse = fedvad.export(tmp_path / "run", int8=True, data=data, out=tmp_path / "export")
    assert capfd.readouterr().out == ""
    assert coarse["model"] == "model-int8.onnx"
    assert coarse["int8"]["calibration_images"] == 28
    assert 1e-6 < coarse["difference_from_run"]["score"] < 0.5
    scores = _run(coarse, images)["score"]
    np.testing.assert_allclose(scores, [row["score"] for row in rows], rtol=0.25)


def test_a_run_of_a_graphics_processor_is_exported_without_one(
    trained: Run, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained[0], tmp_path / "run"))
    config = read_config(folder).model_copy(update={"engine": "torch", "device": "cuda"})
    write_config(folder, config)
    assert fedvad.export(folder, format="openvino", site=SITE)["site"] == SITE
