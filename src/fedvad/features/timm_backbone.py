"""Backbones of timm: with its own weights or a file of them, and networks to be trained."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fedvad.errors import WeightsError
from fedvad.features.backbones import Backbone, weights_hash
from fedvad.features.compat import import_timm
from fedvad.features.names import BUNDLED
from fedvad.features.state_file import load_weights
from fedvad.features.taps import check_taps
from fedvad.features.timm_models import TimmModel, describe, resize

if TYPE_CHECKING:
    import torch

_Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
_IMAGENET: _Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF: _Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_OFFLINE_HELP = (
    "Ways out: (1) --weights FILE.safetensors with ImageNet weights of this backbone; "
    "(2) connect once, so that timm can download them into its cache (HF_HOME), then work "
    "offline; (3) copy another machine's HF_HOME folder here; "
    f"(4) --backbone {BUNDLED}, which comes with the package."
)


def trainable(
    name: str, layers: tuple[int, ...] | None
) -> tuple[tuple[int, ...], Callable[[], torch.nn.Module]]:
    """See `families.Builder.trainable`."""
    model = describe(name)
    taps = check_taps(name, layers or model.taps, range(len(model.strides)))
    return taps, partial(model.build, taps)


def build(
    name: str,
    weights: Path | None,
    layers: Sequence[int] | None,
    sides: tuple[int, int] | None,
) -> Backbone:
    """See `families.Builder.build`."""
    model = describe(name)
    taps = check_taps(name, layers or model.taps, range(len(model.strides)))
    if sides is not None:
        for side in dict.fromkeys(sides):
            model.check_side(side)
    quirks = _quirks(name, weights)
    if weights is None:
        network = _download(model, taps)
    else:
        network = model.build(taps, **quirks.options)
        if quirks.early_stride:
            _move_strides_early(network)
        load_weights(network, weights, name)
    mean, std = quirks.statistics or _statistics(network)
    # before position codes are resampled, whose last bits differ between processors
    identity = weights_hash(network)
    if quirks != _Quirks():  # the same values in another network are other weights
        identity = hashlib.sha256(f"{identity}{quirks}".encode()).hexdigest()
    if sides is not None:
        resize(network, sides)
    return Backbone(network.eval(), mean, std, taps, identity)


@dataclass(frozen=True)
class _Quirks:
    """How a converted file departs from timm's own recipe for the same architecture."""

    model: str = ""
    options: dict[str, str] = field(default_factory=dict)
    early_stride: bool = False
    statistics: _Statistics | None = None


# Known conversions, by SHA-256 of the file, since nothing inside them tells.
_KNOWN_FILES = {
    # MobileNetV2 from TensorFlow: asymmetric padding, inputs in -1..1
    "06d4d0422c1bbd301b4f19e416424af9519c5a36d27ebd94c96125a8925bca4e": _Quirks(
        model="mobilenetv2_100", options={"pad_type": "same"}, statistics=_HALF
    ),
    # ResNet-50 from Keras: stride in the first 1x1 convolution of a stage (v1, not v1.5)
    "64405f67a0c968ff1c20605f209e09dd4f707d696eb685b28b2e047abc56590e": _Quirks(
        model="resnet50", early_stride=True
    ),
}


def _quirks(name: str, weights: Path | None) -> _Quirks:
    if weights is None:
        return _Quirks()
    with weights.open("rb") as file:
        found = _KNOWN_FILES.get(hashlib.file_digest(file, "sha256").hexdigest(), _Quirks())
    # given to another architecture the file will not fit, and loading it says so
    return found if found.model == name.split(".")[0] else _Quirks()


def _move_strides_early(network: torch.nn.Module) -> None:
    for stage in ("layer2", "layer3", "layer4"):
        layer = getattr(network, stage, None)
        if layer is not None:
            layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)


def _download(model: TimmModel, taps: tuple[int, ...]) -> torch.nn.Module:
    """timm's own weights: from the local hub cache, else downloaded, else a clear error."""
    name = model.name
    options: dict[str, Any] = {"pretrained": True}
    repository = import_timm().get_pretrained_cfg(name).hf_hub_id
    local = _in_hub_cache(repository) if repository else None
    if local is not None:
        options["pretrained_cfg_overlay"] = {"file": local}
    elif not _hub_reachable():
        raise WeightsError(
            f"no weights for {name}: none in the local cache and no network. {_OFFLINE_HELP}"
        )
    try:
        network = model.build(taps, **options)
    except Exception as error:  # whatever the hub client raises, the ways out are the same
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"no weights for {name}: timm could not find or download them ({reason}). "
            f"{_OFFLINE_HELP}"
        ) from error
    return network


def _in_hub_cache(repository: str) -> str | None:
    from huggingface_hub import hf_hub_download

    try:
        return str(hf_hub_download(repository, "model.safetensors", local_files_only=True))
    except Exception:  # the hub client's own error types; absent is absent
        return None


def _hub_reachable() -> bool:
    """Asked first, because the hub client retries for most of a minute before it gives up."""
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=3):
            return True
    except OSError:
        return False


def _statistics(network: torch.nn.Module) -> _Statistics:
    config = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None) or {}
    return tuple(config.get("mean", _IMAGENET[0])), tuple(config.get("std", _IMAGENET[1]))
