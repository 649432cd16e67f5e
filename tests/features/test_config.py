"""The feature configuration: what its key depends on, and what a mismatch says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedvad.errors import ConfigError, MismatchError
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor

BASE = FeatureConfig("resnet18", weights_hash="ab" * 32, layers=(2, 3), tiles=256)
IDENTITY = [
    {"backbone": "resnet50"},
    {"weights_hash": "cd" * 32},
    {"image_size": 224},
    {"image_size": "fit:256x256"},
    {"tiles": 128},
    {"overlap": 32},
    {"layers": (2,)},
    {"layers": None},
    {"pool": 1},
]
WAYS = [
    {"engine": "torch"},
    {"device": "cuda"},
    {"weights": Path("elsewhere.safetensors")},
    {"max_pixels": 5},
    {"region": "0,0,50,50"},
]


@pytest.mark.parametrize("change", IDENTITY)
def test_identity_fields_change_the_key_and_equality(change: dict[str, Any]) -> None:
    other = replace(BASE, **change)
    assert other.key() != BASE.key()
    assert other != BASE
    with pytest.raises(MismatchError) as caught:
        BASE.check_same(other, "this run")
    (name,) = change
    stored, here = BASE.identity()[name], other.identity()[name]
    assert f"{name}: this run has {stored!r}, here is {here!r}" in str(caught.value)
    # only what differs is named
    assert sum(f"{field}: this run" in str(caught.value) for field in BASE.identity()) == 1


@pytest.mark.parametrize("change", WAYS)
def test_ways_change_neither_key_nor_equality(change: dict[str, Any]) -> None:
    other = replace(BASE, **change)
    assert other.key() == BASE.key()
    assert other == BASE
    assert hash(other) == hash(BASE)
    BASE.check_same(other, "this run")


def test_every_field_is_either_identity_or_way() -> None:
    named = {name for change in IDENTITY for name in change}
    assert named == set(BASE.identity())
    assert named | {name for change in WAYS for name in change} == set(
        FeatureConfig.__dataclass_fields__
    )


def test_key_is_stable_over_versions_and_16_hex_digits() -> None:
    # a change of this value throws away every user's cache: do it on purpose
    assert FeatureConfig("filterbank").key() == "7f28c33e06526be1"
    assert len(BASE.key()) == 16


def test_every_difference_is_named_at_once() -> None:
    other = replace(BASE, image_size=128, pool=5)
    with pytest.raises(MismatchError, match=r"image_size: .*256.*128; pool: .*3.*5"):
        BASE.check_same(other, "detector")


def test_identity_survives_json_as_lists() -> None:
    assert BASE.identity()["layers"] == [2, 3]
    assert replace(BASE, layers=None).identity()["layers"] is None


def test_with_hash_fills_in_and_leaves_the_original() -> None:
    plain = FeatureConfig("resnet18", weights=Path("w"), engine="torch")
    known = plain.with_hash("ff", (1, 2))
    assert (known.weights_hash, known.layers) == ("ff", (1, 2))
    assert (plain.weights_hash, plain.layers) == ("", None)
    assert (known.weights, known.engine) == (Path("w"), "torch")


@pytest.mark.parametrize("size", [31, 2049, 0, -256])
def test_image_sizes_out_of_range(size: int) -> None:
    with pytest.raises(ConfigError, match=r"image size must"):
        FeatureConfig(image_size=size)


@pytest.mark.parametrize("size", ["64", "256x256", "fit:64", "auto", True])
def test_image_sizes_are_in_their_plain_form(size: int | str) -> None:
    with pytest.raises(ConfigError, match=r"image.size"):
        FeatureConfig(image_size=size)


@pytest.mark.parametrize("size", [32, 2048])
def test_image_sizes_at_the_ends(size: int) -> None:
    assert FeatureConfig(image_size=size).image_size == size


@pytest.mark.parametrize("pool", [0, 2, 4, 9, -1])
def test_wrong_pools(pool: int) -> None:
    with pytest.raises(ConfigError, match="1, 3, 5 or 7"):
        FeatureConfig(pool=pool)


@pytest.mark.real
@pytest.mark.parametrize(
    ("backbone", "key"),
    [
        ("filterbank", "284a0017747a0504"),
        ("fedvad-tiny", "c9e57754b78790de"),
        ("resnet18", "542334ed97da6696"),
        ("resnet50", "68913700aef10903"),
        ("mobilenetv2_100", "77a78a0bf194bd37"),
        ("mcunet_in3", "e2ad923d00914185"),
        ("mcunet_in4", "da0cf43f4b9b1fb5"),
    ],
)
def test_keys_of_backbones_are_those_of_older_versions(
    backbone: str, key: str, weights: dict[str, Path]
) -> None:
    config = FeatureConfig(backbone, weights=weights.get(backbone))
    assert FeatureExtractor(config).config.key() == key


def test_a_layer_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="layers 2,2: name each layer once"):
        replace(BASE, layers=(2, 2))
