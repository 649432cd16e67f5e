"""Backbones: the real files give what their README says, and wrong ones say what is wrong."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedvad.errors import ConfigError, WeightsError
from fedvad.features import timm_backbone
from fedvad.features.backbones import Backbone, build_backbone, weights_hash
from fedvad.features.compat import import_timm
from fedvad.features.names import bundled_file
from fedvad.features.taps import default_taps

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# a side that is no multiple of 32, so that paddings differ
INPUT = torch.rand(1, 3, 58, 58, generator=torch.Generator().manual_seed(0)) * 4 - 2


def _maps(backbone: Backbone | nn.Module) -> list[Tensor]:
    network = backbone.network if isinstance(backbone, Backbone) else backbone.eval()
    with torch.inference_mode():
        return list(network(INPUT))


def _assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert a.std() > 0


def _apart(a: list[Tensor], b: list[Tensor]) -> float:
    """Relative distance of the last map: what ignoring a file's quirk would cost."""
    return float((a[-1] - b[-1]).norm() / b[-1].norm())


# -- the real files, against the loading snippets of their README -------------------------------


@pytest.mark.real
def test_resnet18(weights: dict[str, Path]) -> None:
    timm = import_timm()
    network = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3))
    network.load_state_dict(load_file(weights["resnet18"]), strict=True)
    found = build_backbone("resnet18", weights=weights["resnet18"], layers=(1, 2, 3))
    _assert_equal(_maps(found), _maps(network))
    assert [m.shape[1] for m in _maps(found)] == [64, 128, 256]
    assert (found.mean, found.std) == IMAGENET
    assert build_backbone("resnet18", weights=weights["resnet18"]).layers == (2, 3)


@pytest.mark.real
def test_resnet50_of_keras_strides_early(weights: dict[str, Path]) -> None:
    timm = import_timm()
    network = timm.create_model("resnet50", features_only=True, out_indices=(1, 2, 3))
    network.load_state_dict(load_file(weights["resnet50"]), strict=True)
    late = _maps(network)
    for layer in (network.layer2, network.layer3):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    found = build_backbone("resnet50", weights=weights["resnet50"], layers=(1, 2, 3))
    _assert_equal(_maps(found), _maps(network))
    assert _apart(late, _maps(found)) > 0.1
    assert [m.shape[1] for m in _maps(found)] == [256, 512, 1024]
    assert (found.mean, found.std) == IMAGENET


@pytest.mark.real
def test_mobilenetv2_of_tensorflow_pads_same(weights: dict[str, Path]) -> None:
    timm = import_timm()
    state = {
        key: value
        for key, value in load_file(weights["mobilenetv2_100"]).items()
        if not key.startswith(("conv_head.", "bn2.", "classifier."))
    }
    make = partial(timm.create_model, "mobilenetv2_100", features_only=True, out_indices=(1, 2, 3))
    network, plain = make(pad_type="same"), make()
    network.load_state_dict(state, strict=True)
    plain.load_state_dict(state, strict=True)
    found = build_backbone(
        "mobilenetv2_100", weights=weights["mobilenetv2_100"], layers=(3, 1, 2, 2)
    )
    assert found.layers == (1, 2, 3)
    _assert_equal(_maps(found), _maps(network))
    assert _apart(_maps(plain), _maps(found)) > 0.1
    assert (found.mean, found.std) == HALF


def _mcunet_of_the_specs(shared: Path, name: str, stem: int) -> nn.Module:
    """The README's own constructor over the block table of specs/mcunet.md."""
    import_timm()
    from timm.models._efficientnet_builder import decode_arch_def, round_channels
    from timm.models.efficientnet import EfficientNet

    text = (shared / "specs" / "mcunet.md").read_text()
    part = text.split(f"- **{name}**")[1].split("\n- **")[0].split("\n## ")[0]
    number = r"(\d+)"
    found = re.findall(rf"\({number},{number},{number},{number},{number},[01]\)", part)
    rows = [tuple(map(int, row)) for row in found]
    blocks = [
        [f"ds_r1_k{k}_s{s}_c{o}" if i == 0 else f"ir_r1_k{k}_s{s}_e{e}_c{o}"]
        for i, (k, e, _, o, s) in enumerate(rows)
    ]
    network: nn.Module = EfficientNet(
        block_args=decode_arch_def(blocks),
        num_classes=1000,
        num_features=0,
        stem_size=stem,
        fix_stem=True,
        act_layer=nn.ReLU6,
        round_chs_fn=partial(round_channels, multiplier=1.0),
    )
    return network


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "stem", "blocks"), [("mcunet_in3", 16, 18), ("mcunet_in4", 32, 17)]
)
def test_mcunet(name: str, stem: int, blocks: int, weights: dict[str, Path], shared: Path) -> None:
    network: Any = _mcunet_of_the_specs(shared, name.removeprefix("mcunet_"), stem)
    network.load_state_dict(load_file(weights[name]), strict=True)
    network.eval()
    expected = []
    with torch.inference_mode():
        x = network.bn1(network.conv_stem(INPUT))
        for block in network.blocks:
            x = block(x)
            expected.append(x)
    assert len(expected) == blocks
    found = build_backbone(name, weights=weights[name], layers=range(blocks))
    _assert_equal(_maps(found), expected)
    default = build_backbone(name, weights=weights[name])
    assert default.layers == (3, 6, 9)
    _assert_equal(_maps(default), [expected[i] for i in (3, 6, 9)])
    assert len(default.network.get_submodule("blocks")) == 10
    assert (found.mean, found.std) == HALF


@pytest.mark.real
def test_same_values_with_another_recipe_are_other_weights(
    weights: dict[str, Path], tmp_path: Path
) -> None:
    # saved anew, the file is no longer known by its hash: it is padded otherwise, features differ
    copy = tmp_path / "copy.safetensors"
    save_file(load_file(weights["mobilenetv2_100"]), copy, metadata={"again": "yes"})
    known = build_backbone("mobilenetv2_100", weights=weights["mobilenetv2_100"])
    unknown = build_backbone("mobilenetv2_100", weights=copy)
    assert weights_hash(known.network) == weights_hash(unknown.network)
    assert known.weights_hash != unknown.weights_hash


@pytest.mark.real
def test_weights_hash_is_repeatable_and_follows_the_taps(resnet18_weights: Path) -> None:
    second, both, third = (
        build_backbone("resnet18", weights=resnet18_weights, layers=layers).weights_hash
        for layers in ((2,), (1, 2), (3,))
    )
    assert second == both  # layer3 does not matter to either
    assert second != third


# -- what does not fit --------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet18", "mobilenetv2_100"),
        ("mobilenetv2_050", "mobilenetv2_100"),
        ("res2net50_26w_4s", "resnet50"),
        ("mcunet_in3", "mcunet_in4"),
    ],
)
def test_file_of_another_architecture(name: str, file: str, weights: dict[str, Path]) -> None:
    with pytest.raises(WeightsError, match=f"does not fit {name}") as caught:
        build_backbone(name, weights=weights[file])
    assert weights[file].name in str(caught.value)


@pytest.mark.real
def test_tap_beyond_the_file(resnet18_weights: Path) -> None:
    with pytest.raises(WeightsError, match=r"missing \(layer4"):
        build_backbone("resnet18", weights=resnet18_weights, layers=(4,))


def _cut(good: bytes) -> bytes:
    return good[: len(good) // 2]


@pytest.mark.parametrize(
    "damage",
    [_cut, lambda good: b"", lambda good: b"\x80\x02}q\x00.", lambda good: b"\xff" * 8 + good[8:]],
    ids=["cut", "empty", "pickle", "header length"],
)
@pytest.mark.parametrize("name", ["resnet18", "mcunet_in3"])
def test_corrupt_file(damage: Callable[[bytes], bytes], name: str, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(WeightsError, match=r"w\.safetensors is not a readable safetensors file"):
        build_backbone(name, weights=file)


@pytest.mark.parametrize("name", ["resnet18", "mcunet_in3"])
def test_missing_file(name: str, tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(WeightsError, match="does not exist"):
            build_backbone(name, weights=path)


def test_mcunet_without_a_file() -> None:
    with pytest.raises(WeightsError, match="--weights FILE"):
        build_backbone("mcunet_in3")


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("resnet17", "resnet18"),
        ("mobilnetv2_100", "mobilenetv2_100"),
        ("mcunet_in5", "mcunet_in3"),
        ("filter_bank", "filterbank"),
        ("wide_resnet50", "wide_resnet50_2"),
    ],
)
def test_unknown_name_suggests(name: str, close: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown backbone {name!r}.*close: .*{close}"):
        build_backbone(name)


@pytest.mark.parametrize("name", ["", "[", "??", "hf-hub:some/model", "../x"])
def test_odd_names(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown backbone"):
        build_backbone(name)


def test_unknown_tag() -> None:
    with pytest.raises(ConfigError, match="nosuchtag"):
        build_backbone("resnet18.nosuchtag")


@pytest.mark.parametrize("layers", [(9,), (-1,), (2, 5)])
@pytest.mark.parametrize("name", ["resnet18", "filterbank"])
def test_unknown_layers(name: str, layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=rf"{name} has layers 0, 1, 2.*not {layers[-1]}"):
        build_backbone(name, layers=layers)


@pytest.mark.real
def test_unknown_mcunet_block(mcunet_in3_weights: Path) -> None:
    with pytest.raises(ConfigError, match=r"not 18$"):
        build_backbone("mcunet_in3", weights=mcunet_in3_weights, layers=(3, 18))


def test_model_without_features(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("features_only not implemented for Odd models.")

    monkeypatch.setattr(import_timm(), "create_model", refuse)
    with pytest.raises(ConfigError, match="cannot give feature maps of 'resnet26': features_only"):
        build_backbone("resnet26")  # known from no other test


# -- timm's own weights -------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub client."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_offline_without_weights_is_quick_and_helps(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_timm()
    monkeypatch.setattr(timm_backbone, "_hub_reachable", lambda: False)
    start = time.perf_counter()
    with pytest.raises(WeightsError) as caught:
        build_backbone("resnet18")
    assert time.perf_counter() - start < 5
    for way in ("--weights FILE.safetensors", "connect once", "HF_HOME", "--backbone fedvad-tiny"):
        assert way in str(caught.value)


def test_failed_download_helps_too(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = import_timm()
    create = timm.create_model

    def failing(name: str, pretrained: bool = False, **kwargs: Any) -> Any:
        if pretrained:
            raise OSError("401 Unauthorized\nmore lines")
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", failing)
    monkeypatch.setattr(timm_backbone, "_hub_reachable", lambda: True)
    with pytest.raises(WeightsError, match=r"\(401 Unauthorized\).*Ways out"):
        build_backbone("test_resnet")


def test_cached_download_is_used_without_asking_the_network(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = import_timm()
    torch.manual_seed(0)
    whole = timm.create_model("test_resnet")
    repository = timm.get_pretrained_cfg("test_resnet").hf_hub_id
    folder = hub / f"models--{repository.replace('/', '--')}"
    commit = "0" * 40
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    save_file(whole.state_dict(), folder / "snapshots" / commit / "model.safetensors")

    def asked() -> bool:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(timm_backbone, "_hub_reachable", asked)
    found = build_backbone("test_resnet")
    state = whole.state_dict()
    for key, value in found.network.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert not found.network.training


def test_hub_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        assert timm_backbone._hub_reachable()
    assert not timm_backbone._hub_reachable()  # closed by now
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert timm_backbone._hub_reachable()  # cannot be known from here, so tried


# -- the rest -----------------------------------------------------------------------------------


def test_filterbank_needs_no_weights_and_takes_none(tmp_path: Path) -> None:
    found = build_backbone("filterbank", layers=(2, 0))
    assert found.layers == (0, 2)
    assert (found.mean, found.std) == ((0.0,) * 3, (1.0,) * 3)
    whole = build_backbone("filterbank")
    assert whole.layers == (0, 1, 2)
    with torch.inference_mode():
        x = torch.rand(1, 3, 64, 64)
        every, some = whole.network(x), found.network(x)
    assert torch.equal(some[0], every[0])
    assert torch.equal(some[1], every[2])
    with pytest.raises(ConfigError, match="analytic"):
        build_backbone("filterbank", weights=tmp_path / "w.safetensors")


def test_filterbank_hash_names_its_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedvad.features.filterbank import FilterBank

    before = build_backbone("filterbank").weights_hash
    assert before == build_backbone("filterbank", layers=(1,)).weights_hash
    monkeypatch.setattr(FilterBank, "recipe", FilterBank.recipe + "x")
    assert build_backbone("filterbank").weights_hash != before


def test_weights_hash_sees_values_names_and_shapes_only() -> None:
    def network(value: float = 0.0, width: int = 4) -> nn.Module:
        norm = nn.BatchNorm2d(width)
        nn.init.constant_(norm.bias, value)
        return nn.Sequential(norm)

    base = weights_hash(network())
    assert base == weights_hash(network())
    assert base != weights_hash(network(value=1e-6))
    assert base != weights_hash(network(width=5))
    assert base != weights_hash(nn.Sequential(nn.Identity(), network()[0]))
    counted = network()
    counted[0].num_batches_tracked += 5
    assert base == weights_hash(counted)


@pytest.mark.parametrize(
    ("reductions", "taps"),
    [
        ([2, 4, 8, 16, 32], (2, 3)),
        ([4, 8, 16, 32], (1, 2)),
        ([16, 16, 16], (2,)),
        ([7, 14, 28], (1, 2)),
        ([32], (0,)),
    ],
)
def test_default_taps_are_strides_8_and_16(reductions: list[int], taps: tuple[int, ...]) -> None:
    assert default_taps(reductions) == taps


def test_the_bundled_backbone_is_there_and_brings_its_weights(tmp_path: Path) -> None:
    backbone = build_backbone("fedvad-tiny")
    assert bundled_file().stat().st_size < 2_000_000
    assert backbone.layers == (1, 2)
    assert backbone.weights_hash == build_backbone(str(bundled_file())).weights_hash
    with torch.inference_mode():
        maps = backbone.network(torch.zeros(1, 3, 256, 256))
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 32, 32), (128, 16, 16)]
    assert "torchvision" in (bundled_file().parent / "NOTICE.txt").read_text()
    assert build_backbone("fedvad-tiny", layers=(2,)).layers == (2,)
    with pytest.raises(ConfigError, match="brings its weights"):
        build_backbone("fedvad-tiny", weights=tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="fedvad-tiny"):
        build_backbone("fedvad-tyni")
