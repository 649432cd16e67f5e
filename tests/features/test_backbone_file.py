"""Backbone files: they come back as they were, wherever they lie, and damaged ones say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fedvad.detectors.student.branches import reinitialise
from fedvad.errors import ConfigError, MismatchError, WeightsError
from fedvad.features.architecture import Architecture
from fedvad.features.backbone_file import BackboneFile, read_backbone, write_backbone
from fedvad.features.backbones import build_backbone
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.features.names import is_backbone_file
from fedvad.features.tiny import TinyConfig

OPTIONS = {"stem": 4, "widths": [4, 8, 12], "inner": [4, 4, 4], "depths": [1, 2, 1]}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


def _write(path: Path, architecture: Architecture | None = None, seed: int = 0) -> BackboneFile:
    architecture = architecture or Architecture.of("tiny", None, OPTIONS, (6, 7))
    network = architecture.build()
    reinitialise(network, seed)
    network.train()
    with torch.no_grad():  # batch statistics that are not those of a new network
        network(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    file = BackboneFile("mine", architecture, network.eval(), MEAN, STD)
    write_backbone(path, file, {"recipe": "none"})
    return file


def _extractor(name: object, **changes: Any) -> FeatureExtractor:
    config = FeatureConfig(str(name), image_size=64, engine="torch", **changes)
    return FeatureExtractor(config)


def test_a_file_gives_the_network_that_was_written(tmp_path: Path) -> None:
    file = _write(tmp_path / "a.safetensors")
    found = build_backbone(str(tmp_path / "a.safetensors"))
    assert (found.mean, found.std, found.layers, found.name) == (MEAN, STD, (1, 2), "mine")
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        maps, wanted = found.network(x), file.network(x)
    assert [tuple(m.shape[1:]) for m in maps] == [(6, 8, 8), (7, 4, 4)]
    for a, b in zip(maps, wanted, strict=True):
        assert float((a - b).norm() / b.norm()) < 2e-3  # float16 kernels
    with safe_open(tmp_path / "a.safetensors", "pt") as stored:
        kinds = {(stored.get_tensor(k).ndim > 1, stored.get_tensor(k).dtype) for k in stored.keys()}  # noqa: SIM118
    assert kinds == {(True, torch.float16), (False, torch.float32)}


@pytest.mark.parametrize("architecture", [
    Architecture.of("test_efficientnet", (1, 2)),
    Architecture.of("mcunet_in3", (3, 6), None, (9, 5)),
])  # fmt: skip
def test_other_architectures_go_into_files_too(tmp_path: Path, architecture: Architecture) -> None:
    _write(tmp_path / "b.safetensors", architecture)
    extractor = _extractor(tmp_path / "b.safetensors")
    assert extractor.config.layers == architecture.layers
    assert extractor.describe(IMAGES).astype(np.float32).std() > 0


def test_identity_is_the_content_and_not_the_place(tmp_path: Path) -> None:
    _write(tmp_path / "a.safetensors")
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "a.safetensors").rename(tmp_path / "elsewhere/b.safetensors")
    _write(tmp_path / "a.safetensors")
    here, there = _extractor(tmp_path / "a.safetensors"), _extractor(moved)
    assert here.config.key() == there.config.key()
    assert here.config.backbone == "file:mine"
    assert str(tmp_path) not in json.dumps(here.config.identity())
    np.testing.assert_array_equal(here.describe(IMAGES), there.describe(IMAGES))
    # a configuration that has been read once can be built from again, also from a new place
    again = FeatureExtractor(there.config)
    assert again.config == there.config
    named = _extractor("gone.safetensors", weights=moved)
    assert named.config.key() == here.config.key()
    _write(tmp_path / "c.safetensors", seed=1)
    other = _extractor(tmp_path / "c.safetensors")
    with pytest.raises(MismatchError, match="weights_hash"):
        here.config.check_same(other.config, "this run")


def test_some_layers_of_a_file(tmp_path: Path) -> None:
    _write(tmp_path / "a.safetensors")
    both, fine = (
        _extractor(tmp_path / "a.safetensors"),
        _extractor(tmp_path / "a.safetensors", layers=(1,)),
    )
    assert (both.grid[2], fine.grid[2]) == (13, 6)
    np.testing.assert_array_equal(both.describe(IMAGES)[..., :6], fine.describe(IMAGES))
    assert both.config.weights_hash == fine.config.weights_hash
    with pytest.raises(ConfigError, match=r"has layers 1, 2,"):
        _extractor(tmp_path / "a.safetensors", layers=(0, 1))


def _changed(source: Path, target: Path, change: Any) -> Path:
    with safe_open(source, "pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["fedvad_backbone"])
    change(tensors, header)
    save_file(tensors, target, {"fedvad_backbone": json.dumps(header)})
    return target


def test_what_is_no_backbone_file_says_how_to_mend_it(tmp_path: Path) -> None:
    good, bad = tmp_path / "a.safetensors", tmp_path / "bad.safetensors"
    _write(good)
    with pytest.raises(WeightsError, match=r"does not exist.*--weights"):
        build_backbone(str(bad))
    bad.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="damaged"):
        build_backbone(str(bad))
    bad.write_bytes(b"no")
    with pytest.raises(WeightsError, match="damaged"):
        build_backbone(str(bad))
    save_file({"x": torch.zeros(2)}, bad)
    with pytest.raises(WeightsError, match="--backbone NAME --weights FILE"):
        build_backbone(str(bad))
    with pytest.raises(WeightsError, match="does not exist"):
        build_backbone("file:mine")


def _drop(tensors: dict[str, torch.Tensor], _: Any) -> None:
    tensors.popitem()


def _spoil(tensors: dict[str, torch.Tensor], _: Any) -> None:
    next(iter(tensors.values())).flatten()[0] = torch.nan


CHANGES = [
    (_drop, "does not hold the values"),
    (_spoil, "not finite"),
    (lambda _, h: h.update(schema=9), "schema 9"),
    (lambda _, h: h["architecture"].update(backbone="no_such_net", options={}), "unknown backbone"),
    (lambda _, h: h["architecture"].update(backbone=3), "the backbone is a name"),
    (lambda _, h: h["architecture"].update(layers=["1"]), "whole numbers"),
    (lambda _, h: h["architecture"].update(layers=[7]), "has layers"),
    (lambda _, h: h["architecture"].update(heads=[10**9, 1]), "1 to 4096"),
    (lambda _, h: h["architecture"]["options"].update(stem=10**9), "from 1 to 1024"),
    (lambda _, h: h["architecture"]["options"].update(secret=1), "stem, widths, inner and depths"),
    (lambda _, h: h.update(std=[0, 1, 1]), "std must be positive"),
    (lambda _, h: h.update(mean=[0]), "no backbone that can be built"),
    (lambda _, h: h.pop("name"), "no backbone that can be built"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_damaged_descriptions_and_values(tmp_path: Path, change: Any, said: str) -> None:
    _write(tmp_path / "a.safetensors")
    bad = _changed(tmp_path / "a.safetensors", tmp_path / "b.safetensors", change)
    with pytest.raises(WeightsError, match=said):
        build_backbone(str(bad))


def test_values_that_do_not_fit_are_not_written(tmp_path: Path) -> None:
    file = _write(tmp_path / "a.safetensors")
    with torch.no_grad():
        next(file.network.parameters()).fill_(1e6)
    with pytest.raises(WeightsError, match="not finite"):
        write_backbone(tmp_path / "b.safetensors", file)
    assert not (tmp_path / "b.safetensors").exists()


def test_names_that_mean_files() -> None:
    assert is_backbone_file("a/b.safetensors")
    assert is_backbone_file("file:mine")
    assert not is_backbone_file("resnet18")
    assert not is_backbone_file("filterbank")


def test_the_tiny_network_has_the_strides_and_size_it_is_for(tmp_path: Path) -> None:
    architecture = Architecture.of("tiny", heads=(64, 128))
    network = architecture.build().eval()
    with torch.inference_mode():
        maps = network(torch.zeros(1, 3, 256, 256))
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 32, 32), (128, 16, 16)]
    size = write_backbone(
        tmp_path / "a.safetensors", BackboneFile("t", architecture, network, MEAN, STD)
    )
    assert size < 2_000_000
    assert read_backbone(tmp_path / "a.safetensors").architecture == architecture
    # stages behind the last tap are left out
    fewer = Architecture.of("tiny", (0, 1)).build()
    assert sum(p.numel() for p in fewer.parameters()) < 150_000


@pytest.mark.parametrize("wrong", [
    {"widths": [8, 8]}, {"stem": 0}, {"depths": [1, 1, 99]},
    {"widths": [], "inner": [], "depths": []}, {"inner": [4, 4]}, {"depths": [0, 1, 1]},
])  # fmt: skip
def test_impossible_tiny_networks_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="tiny"):
        TinyConfig.of(OPTIONS | wrong)


def test_students_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        Architecture.of("filterbank")
    with pytest.raises(ConfigError, match="options are those of a tiny"):
        Architecture.of("resnet18", None, OPTIONS)
    with pytest.raises(ConfigError, match="2 layers need as many heads"):
        Architecture.of("tiny", (1, 2), None, (3,))
