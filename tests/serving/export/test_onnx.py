"""ONNX files as other runtimes want them, and exports verified on images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedvad
from fedvad.errors import ArtefactError, ConfigError, DataError
from fedvad.serving.export import onnx as ours
from tests.helpers import SIZE, run_main

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
Run = tuple[Path, dict[str, Any]]
SITE = "birch"


def _model(manifest: dict[str, Any]) -> Any:
    model = onnx.load(Path(manifest["folder"]) / manifest["model"])
    onnx.checker.check_model(model, full_check=True)
    return model


def _shape(value: Any) -> list[str | int]:
    return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]


@pytest.fixture(scope="module")
def verified(
    trained: Run, plants: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("verified")
    return fedvad.export(trained[0], site=SITE, out=out, verify=plants)


def test_constants_are_folded_and_the_k_of_topk_is_one(verified: dict[str, Any]) -> None:
    graph = _model(verified).graph
    stored = {tensor.name for tensor in graph.initializer}
    sorts = [node for node in graph.node if node.op_type == "TopK"]
    assert len(sorts) >= 2
    assert all(node.input[1] in stored for node in sorts)
    assert not any(node.op_type in {"Constant", "Identity"} for node in graph.node)
    # what is left of constant inputs alone is the memory, kept in float16
    left = {n.op_type for n in graph.node if n.input and set(n.input) <= stored}
    assert left <= {"Transpose", "Cast"}


def test_shapes_and_names_are_those_of_the_docs(verified: dict[str, Any], trained: Run) -> None:
    graph = _model(verified).graph
    (images,) = graph.input
    assert (images.name, _shape(images)) == ("images", ["batch", SIZE, SIZE, 3])
    cells = fedvad.load(trained[0]).features.image_size // 4  # the filter bank's finest stride
    shapes = {output.name: _shape(output) for output in graph.output}
    assert shapes == {
        "score": ["batch"],
        "map": ["batch", cells, cells],
        "anomalous": ["batch"],
    }


def test_the_memory_is_stored_once_and_in_half(verified: dict[str, Any]) -> None:
    rows, dim = verified["memory"]["rows"], verified["memory"]["dim"]
    sizes = [
        int(np.prod(tensor.dims))
        for tensor in _model(verified).graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT16
    ]
    assert sizes.count(rows * dim) == 1
    # and what the fast search compares, at most 96 components and an energy in float32
    searched = 4 * rows * (min(96, dim) + 1)
    assert verified["files"]["model.onnx"]["bytes"] < 2 * rows * dim + searched + 300_000


@pytest.mark.parametrize("opset", [14, 20])
def test_operator_sets(opset: int, trained: Run, tmp_path: Path) -> None:
    manifest = fedvad.export(trained[0], site=SITE, out=tmp_path, opset=opset)
    assert [entry.version for entry in _model(manifest).opset_import] == [opset]
    assert manifest["difference_from_run"]["score"] < 1e-3


def test_operator_sets_out_of_range_or_of_another_format(trained: Run, tmp_path: Path) -> None:
    for opset in (13, 21):
        with pytest.raises(ConfigError, match=f"{opset} cannot be written: choose 14 to 20"):
            fedvad.export(trained[0], out=tmp_path / "out", opset=opset)
    with pytest.raises(ConfigError, match="--format onnx"):
        fedvad.export(trained[0], format="openvino", out=tmp_path / "out", opset=17)
    assert not (tmp_path / "out").exists()


def test_verified_on_the_test_images_of_the_site(verified: dict[str, Any], plants: Path) -> None:
    found = verified["verified"]
    assert found["images"] == len(list((plants / SITE / "test").rglob("*.png"))) == 7
    assert 0 < found["score"] < 1e-3
    assert found["map"] < 1e-3
    assert found["decisions"] == 0
    assert found["tolerance"] == {"score": 1e-3, "map": 2e-2}


def test_verified_on_a_plain_folder_and_printed(
    trained: Run, plants: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    images = shutil.copytree(plants / SITE / "test/good", tmp_path / "some")
    flags = ("--out", tmp_path / "out", "--verify", images, "--format", "openvino")
    assert run_main(monkeypatch, "export", trained[0], *flags) == 0
    assert "verified on 3 images: largest difference of the score" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out/model.xml.json").read_text())
    assert manifest["verified"]["images"] == 3


def test_a_package_beyond_the_tolerance_fails_and_is_not_written(
    trained: Run, plants: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    honest = ours.load

    def wrong(path: Path) -> Any:
        outputs = honest(path)
        # right on the drawn images (three at a time), wrong on these
        return lambda x: [v * (1 if len(x) == 3 else 1.01) for v in outputs(x)[:2]]

    monkeypatch.setattr(ours, "load", wrong)
    with pytest.raises(ArtefactError, match="on 7 images its score differs by up to 1"):
        fedvad.export(trained[0], site=SITE, out=tmp_path / "out", verify=plants)
    flags = ("--site", SITE, "--out", tmp_path / "out", "--verify", plants, "--json")
    assert run_main(monkeypatch, "export", trained[0], *flags) == 3
    assert "does not score like the run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_to_verify_on(trained: Run, plants: Path, tmp_path: Path) -> None:
    shutil.copytree(plants / SITE / "train", tmp_path / "data" / SITE / "train")
    with pytest.raises(DataError, match="no test images"):
        fedvad.export(trained[0], out=tmp_path / "out", verify=tmp_path / "data")
    with pytest.raises(DataError, match="nowhere"):
        fedvad.export(trained[0], out=tmp_path / "out", verify=tmp_path / "nowhere")
