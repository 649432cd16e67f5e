"""Backbones of every family, with random weights: train, predict, export."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import fedvad
from fedvad.features.backbones import build_backbone
from fedvad.features.compat import import_timm
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor

# a small member of each family, and a size that is not the one of its weights
MODELS = [
    ("resnet18", 64),
    ("regnety_002", 64),
    ("efficientnet_b0", 64),
    ("mobilenetv2_035", 64),
    ("mobilenetv3_small_050", 64),
    ("mobilenetv4_conv_small", 64),
    ("convnext_atto", 64),
    ("vit_tiny_patch16_224", 64),
    pytest.param("swin_tiny_patch4_window7_224", 64, marks=pytest.mark.slow),
    pytest.param("vit_small_patch14_reg4_dinov2", 56, marks=pytest.mark.slow),
    pytest.param("vit_small_patch16_dinov3", 64, marks=pytest.mark.slow),
    pytest.param("levit_128s", 224, marks=pytest.mark.slow),
]
ENGINES = ["convnext_atto", "vit_tiny_patch16_224", "mobilenetv4_conv_small"]


@pytest.fixture(scope="module")
def one_site(plants: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two normal images to learn from, one normal and one defect to test on."""
    root = tmp_path_factory.mktemp("few") / "alder"
    source = plants / "alder"
    chosen = sorted((source / "train/good").iterdir())[:2]
    chosen += sorted((source / "test/good").iterdir())[:1]
    chosen += sorted(path for path in (source / "test").rglob("*.png") if "good" not in path.parts)[
        :1
    ]
    for path in chosen:
        target = root / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return root.parent


def _whole(name: str) -> Any:
    """timm's own model with its classifier and seeded random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return import_timm().create_model(name).eval()


def _save(model: Any, path: Path) -> Path:
    state = {key: value.clone().contiguous() for key, value in model.state_dict().items()}
    save_file(state, path)
    return path


def _apart(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())


@pytest.mark.parametrize(("name", "side"), MODELS)
def test_train_predict_and_export(name: str, side: int, one_site: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    whole = _whole(name)
    file = _save(whole, tmp_path / "w.safetensors")
    backbone = build_backbone(name, weights=file, image_size=side)
    if hasattr(whole, "set_input_size"):
        whole.set_input_size(img_size=(side, side))
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        maps: list[Tensor] = list(backbone.network(x))
        wanted = whole.forward_intermediates(
            x, indices=list(backbone.layers), output_fmt="NCHW", intermediates_only=True
        )
    for made, reference in zip(maps, wanted, strict=True):
        torch.testing.assert_close(made, reference, rtol=1e-4, atol=1e-5)

    run = tmp_path / "run"
    fedvad.train(
        one_site, run, backbone=name, weights=file, image_size=side, engine="torch",
        cache=tmp_path / "cache",
    )  # fmt: skip
    image = next((one_site / "alder/test/good").iterdir())
    (row,) = fedvad.predict(run, image)
    assert row["error"] is None
    assert row["score"] > 0
    manifest = fedvad.export(run, verify=one_site)
    assert manifest["verified"]["images"] == 2
    assert manifest["verified"]["score"] < 1e-3
    assert manifest["verified"]["map"] < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_openvino_agrees_with_torch(name: str, tmp_path: Path) -> None:
    file = _save(_whole(name), tmp_path / "w.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    openvino, reference = (
        FeatureExtractor(FeatureConfig(name, weights=file, image_size=64, engine=engine)).describe(
            images
        )
        for engine in ("openvino", "torch")
    )
    assert _apart(openvino.astype(np.float32), reference.astype(np.float32)) < 2e-3  # float16
