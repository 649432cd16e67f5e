"""What every family of backbones promises: one list, read from the table."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fedvad.errors import ConfigError, WeightsError
from fedvad.features.architecture import Architecture
from fedvad.features.backbones import Backbone, build_backbone
from fedvad.features.bands import write_bands_file
from fedvad.features.families import FAMILIES, FILE, Family, builder_of, family_of, own_names
from fedvad.features.modules import DescriptorNet
from fedvad.features.names import brings_weights

# their smallest have tens of millions of values, and are looked at without
HEAVY = ("ResNet", "ConvNeXt (v1, v2, DINOv3)", "Swin (v1, v2)", "ViT, DeiT, CLIP, BEiT", "DINOv2",
         "DINOv3")  # fmt: skip
SIDE = 64


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of the light families that need some, of no meaning."""
    folder, found = tmp_path_factory.mktemp("weights"), {}
    for family in FAMILIES:
        if family.module == "bands":
            found[family.name] = folder / "spectral.safetensors"
            write_bands_file(found[family.name], np.ones(24), np.diag(np.arange(1.0, 25)))
        elif family.name not in HEAVY and not family.brings_weights:
            torch.manual_seed(0)
            network = Architecture.of(family.example).build()
            found[family.name] = folder / f"{family.example}.safetensors"
            save_file(network.state_dict(), found[family.name])
    return found


@pytest.fixture
def built(family: Family, files: dict[str, Path]) -> Backbone:
    if family.name in HEAVY:
        pytest.skip("too large to be built in a test")
    return build_backbone(family.example, weights=files.get(family.name), image_size=SIDE)


def test_a_name_leads_to_its_family(family: Family) -> None:
    assert any(fnmatchcase(family.example, pattern) for pattern in family.names)
    ours = family.module != "timm_backbone"
    assert family_of(family.example) == (family if ours else None)
    assert (family.example in own_names()) == ours
    assert brings_weights(family.example) == family.brings_weights
    assert builder_of(family.example).__name__ == f"fedvad.features.{family.module}"


def test_a_file_of_any_name_is_one(tmp_path: Path) -> None:
    assert family_of("file:mine") is family_of("a/filterbank.safetensors") is FILE
    assert builder_of("x.safetensors").__name__ == "fedvad.features.backbone_file"


def test_everything_is_said_of_it(family: Family) -> None:
    assert family.licence
    assert family.weights
    assert family.sizes.startswith(("any", "multiples of ", "cubes of bands"))
    assert len(family.layers) == len(family.strides) > 0


def test_it_gives_what_the_table_says(family: Family, built: Backbone) -> None:
    assert built.layers == family.layers
    channels = built.bands or 3
    with torch.inference_mode():
        maps = built.network(torch.rand(2, channels, SIDE, SIDE))
    assert [SIDE // m.shape[2] for m in maps] == list(family.strides)
    assert sum(m.shape[1] for m in maps) == family.dim
    assert len(built.weights_hash) == 64
    assert min(built.std) > 0
    net = DescriptorNet(
        built.network, mean=built.mean, std=built.std, pool=3, image_size=SIDE
    ).eval()
    with torch.inference_mode():
        found = net(torch.randint(0, 256, (1, SIDE, SIDE, channels), dtype=torch.uint8))
    side = SIDE // min(family.strides)
    assert found.shape == (1, side, side, family.dim)
    assert bool(found.isfinite().all())
    shares = [(min(family.strides) / stride) ** 2 for stride in family.strides]
    assert net.shares.tolist() == np.repeat(shares, [m.shape[1] for m in maps]).tolist()


def test_the_same_weights_have_the_same_hash(
    family: Family, built: Backbone, files: dict[str, Path]
) -> None:
    weights = files.get(family.name)
    again = build_backbone(family.example, weights=weights)
    assert again.weights_hash == built.weights_hash
    fewer = build_backbone(family.example, weights=weights, layers=family.layers[:1])
    assert fewer.layers == family.layers[:1]
    with torch.inference_mode():
        assert len(fewer.network(torch.rand(1, built.bands or 3, SIDE, SIDE))) == 1


def test_layers_that_it_has_not_are_refused(
    family: Family, built: Backbone, files: dict[str, Path]
) -> None:
    with pytest.raises(ConfigError, match="has layers"):
        build_backbone(family.example, weights=files.get(family.name), layers=(99,))


def test_weights_that_it_cannot_take_are_refused(family: Family, tmp_path: Path) -> None:
    if family.brings_weights:
        with pytest.raises(ConfigError, match="--weights"):
            build_backbone(family.example, weights=tmp_path / "none.safetensors")
        return
    with pytest.raises(WeightsError, match="does not exist"):
        build_backbone(family.example, weights=tmp_path / "none.safetensors")
    save_file({"x": torch.ones(3)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"does not fit|holds no weights of"):
        build_backbone(family.example, weights=tmp_path / "x.safetensors")


def test_it_can_be_trained_or_says_why_not(family: Family) -> None:
    if family.brings_weights or family.module == "bands":
        with pytest.raises(ConfigError, match="train"):
            Architecture.of(family.example)
        return
    made = Architecture.of(family.example)
    assert made.layers == family.layers
    assert Architecture.from_values(made.values()) == made
