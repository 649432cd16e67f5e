"""Weights files: every usual way to name the same values, and what is said of those that differ."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fedvad.errors import ConfigError, WeightsError
from fedvad.features.backbones import build_backbone
from fedvad.features.compat import import_timm
from fedvad.features.families import FAMILIES
from fedvad.features.listing import families, models
from fedvad.features.names import BUNDLED
from fedvad.features.state_file import load_weights, recognise
from fedvad.features.timm_models import describe

State = dict[str, Tensor]
SMALL = ["test_resnet", "test_convnext", "test_efficientnet", "test_vit", "mobilenetv3_small_050"]


def _model(name: str, **options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return import_timm().create_model(name, **options).eval()


def _file(state: State, path: Path) -> Path:
    save_file({key: value.clone().contiguous() for key, value in state.items()}, path)
    return path


def _features_only(name: str) -> State:
    """The same values as timm's wrapper for feature maps names them."""
    wrapped = _model(name, features_only=True)
    load_weights(wrapped, _file(_model(name).state_dict(), Path("w.safetensors")), name)
    return dict(wrapped.state_dict())


def _headless(name: str) -> State:
    state = _model(name).state_dict()
    return {k: v for k, v in state.items() if not k.startswith(("head.", "fc.", "classifier."))}


FORMS: dict[str, Callable[[str], State]] = {
    "without classifier": _headless,
    "as features_only": _features_only,
    "of data parallel": lambda name: {
        f"module.{k}": v for k, v in _model(name).state_dict().items()
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SMALL)
def test_the_same_values_under_any_names_are_the_same_backbone(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = build_backbone(name, weights=_file(_model(name).state_dict(), Path("a.safetensors")))
    other = build_backbone(name, weights=_file(FORMS[form](name), Path("b.safetensors")))
    assert other.weights_hash == whole.weights_hash
    assert other.layers == whole.layers


def _of_facebook(state: State) -> State:
    """ConvNeXt's values under the names of its authors' files."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key)
        key = key.replace("stem.", "downsample_layers.0.").replace(".blocks.", ".")
        key = key.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        key = key.replace("head.norm.", "norm.").replace("head.fc.", "head.")
        renamed[key] = value
    return renamed


def _of_dinov2(state: State) -> State:
    """Values of a DINOv2 with registers as its authors store them: a position for the class."""
    state = dict(state)
    nothing = torch.zeros_like(state["cls_token"])
    state["pos_embed"] = torch.cat([nothing, state["pos_embed"]], 1)
    state["register_tokens"] = state.pop("reg_token")
    return state | {"mask_token": torch.zeros(1, state["cls_token"].shape[-1])}


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        ("convnext_atto", _of_facebook),
        pytest.param("vit_small_patch14_reg4_dinov2", _of_dinov2, marks=pytest.mark.slow),
    ],
)
def test_names_of_the_authors(
    name: str, renamed: Callable[[State], State], tmp_path: Path, caplog: Any
) -> None:
    state = _model(name).state_dict()
    whole = build_backbone(name, weights=_file(state, tmp_path / "a.safetensors"))
    other = build_backbone(name, weights=_file(renamed(state), tmp_path / "b.safetensors"))
    assert other.weights_hash == whole.weights_hash
    assert "not used" not in caplog.text


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_pickle_is_refused_with_the_command_that_converts_it(name: str, tmp_path: Path) -> None:
    state = _model("test_resnet").state_dict()
    torch.save({"state_dict": state}, tmp_path / name)
    with pytest.raises(WeightsError, match="a pickle, which can run code") as caught:
        build_backbone("test_resnet", weights=tmp_path / name)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    if name == "w.pth":
        program = lines[1].split('"')[1]
        subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
        converted = build_backbone("test_resnet", weights=tmp_path / "w.safetensors")
        whole = build_backbone("test_resnet", weights=_file(state, tmp_path / "a.safetensors"))
        assert converted.weights_hash == whole.weights_hash


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("resnet18", "convnext_atto"),
        ("convnext_atto", "resnet18"),
        ("mobilenetv3_small_100", "mobilenetv3_small_050"),
    ],
)
def test_a_file_of_another_architecture_is_recognised(
    asked: str, given: str, tmp_path: Path
) -> None:
    file = _file(_model(given).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=rf"keys missing.*\n.*like {given}: give") as caught:
        build_backbone(asked, weights=file)
    assert len(str(caught.value).splitlines()) <= 3


def test_what_is_like_nothing_known_is_not_guessed() -> None:
    assert recognise({"layer1.0.conv1.weight": torch.zeros(3, 3)}) == ""
    assert recognise({"something": torch.zeros(1)}) == ""


def test_names_of_transformers_are_called_by_that(tmp_path: Path) -> None:
    file = _file({"encoder.layer.0.norm1.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="Hugging Face transformers: take timm's"):
        build_backbone("test_vit", weights=file)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = _model("test_resnet").state_dict()
    state["layer1.0.conv1.weight"][0] = torch.nan
    file = _file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"not finite: layer1"):
        build_backbone("test_resnet", weights=file)


def test_values_that_mean_nothing_are_reported(tmp_path: Path, caplog: Any) -> None:
    state = _model("test_resnet").state_dict() | {"layer1.0.adapter.weight": torch.zeros(3)}
    with caplog.at_level(logging.WARNING):
        build_backbone("test_resnet", weights=_file(state, tmp_path / "w.safetensors"))
    assert "1 values are no part of test_resnet and are not used: layer1.0.ad" in caplog.text


# -- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "side", "fit"),
    [
        ("vit_small_patch14_dinov2", 256, "252 or 266"),
        ("vit_tiny_patch16_224", 250, "240 or 256"),
        ("swin_tiny_patch4_window7_224", 34, "32 or 36"),
        ("levit_128s", 96, "224"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_weights_are_read(
    name: str, side: int, fit: str, tmp_path: Path
) -> None:
    (tmp_path / "w.safetensors").write_text("no weights at all")
    with pytest.raises(ConfigError, match=f"cannot take images of {side}.*--image-size {fit}"):
        build_backbone(name, weights=tmp_path / "w.safetensors", image_size=side)


def test_the_size_is_no_part_of_the_weights(tmp_path: Path) -> None:
    file = _file(_model("test_vit").state_dict(), tmp_path / "w.safetensors")
    native, larger = (build_backbone("test_vit", weights=file, image_size=s) for s in (None, 192))
    assert native.weights_hash == larger.weights_hash
    with torch.inference_mode():
        assert larger.network(torch.zeros(1, 3, 192, 192))[0].shape[2:] == (12, 12)


# -- what is listed -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.mark], ids=lambda f: f.name)
def test_the_registry_says_what_the_models_do(family: Any) -> None:
    timm = import_timm()
    model = describe(family.example)
    assert model.taps == family.layers
    assert tuple(model.strides[tap] for tap in model.taps) == family.strides
    assert sum(model.channels[tap] for tap in model.taps) == family.dim
    assert (model.patch == 1) == (family.sizes == "any")
    for pattern in family.names:
        assert timm.list_models(pattern), pattern
    assert all(map(timm.is_model, family.variants))


def test_listings() -> None:
    assert families()[0]["name"] == BUNDLED
    (row,) = models("vit_tiny_patch16_224")
    assert (row["layers"], row["dim"], row["sizes"]) == ((5, 8), 384, "multiples of 16")
    assert row["weights"].startswith("timm/vit_tiny_patch16_224")
    assert set(models("resnet")[0]) == {"name"}  # too many to look into
    with pytest.raises(ConfigError, match="no timm model's name matches 'nosuch'"):
        models("nosuch")
