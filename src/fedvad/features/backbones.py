"""Frozen backbones by name: build, load weights, tap, and identify by hash."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fedvad.errors import ConfigError, WeightsError
from fedvad.features.backbone_file import is_readable, read_backbone
from fedvad.features.compat import import_timm
from fedvad.features.mcunet import MCUNET, build_mcunet
from fedvad.features.names import BUNDLED, SPECTRAL, bundled_file, is_backbone_file
from fedvad.features.state_file import load_weights
from fedvad.features.taps import check_taps
from fedvad.features.timm_models import TimmModel, describe, resize

if TYPE_CHECKING:
    import torch

__all__ = ["Backbone", "build_backbone", "weights_hash"]

_Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
_IMAGENET: _Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF: _Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IDENTITY: _Statistics = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
_OFFLINE_HELP = (
    "Ways out: (1) --weights FILE.safetensors with ImageNet weights of this backbone; "
    "(2) connect once, so that timm can download them into its cache (HF_HOME), then work "
    "offline; (3) copy another machine's HF_HOME folder here; "
    f"(4) --backbone {BUNDLED}, which comes with the package."
)


@dataclass(frozen=True)
class Backbone:
    """A frozen network and what is needed to feed it.

    network: maps float32 (b, 3, S, S) RGB, normalised by mean and std, to one map per tap.
    mean, std: of RGB scaled to 0..1. bands: of cubes that the network takes as they are; 0 where it
    takes pictures.
    layers: the taps.
    weights_hash: SHA-256 over names and values of the parameters that matter to the taps, and
        over what else was changed in the network to suit them.
    name: what a backbone file calls itself; empty for other backbones.
    """

    network: torch.nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layers: tuple[int, ...]
    weights_hash: str
    name: str = ""
    bands: int = 0


def build_backbone(
    name: str,
    *,
    weights: Path | None = None,
    layers: Sequence[int] | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Backbone:
    """Build backbone `name` with its weights, tapped at `layers` (None: a default per family).

    `fedvad-tiny` comes with the package. A name that ends in .safetensors is the path of a backbone
    file; `weights` then is where that file lies now, if it was moved. image_size: side, or
    (height, width), in pixels of the images to come, None for the side of the published weights; it
    does not change the hash of the weights. Raises `ConfigError` for an unknown name, tap or a size
    that does not fit, `WeightsError` when weights are missing or do not fit.
    """
    weights = None if weights is None else Path(weights)
    if name == "filterbank":
        return _filterbank(weights, layers)
    if name == SPECTRAL:
        return _spectral(weights, layers)
    if name == BUNDLED:
        return _bundled(weights, layers)
    if is_backbone_file(name):
        return _file(name, weights, layers)
    if weights is not None and not is_readable(weights):
        raise WeightsError(
            f"weights file {weights} does not exist or may not be read; docs/backbones.md says "
            "where to get one. Without --weights the backbone is fedvad-tiny, which needs none"
        )
    if name in MCUNET:
        return _mcunet(name, weights, layers)
    return _timm(name, weights, layers, image_size)


def weights_hash(network: torch.nn.Module) -> str:
    """SHA-256 over sorted names, shapes and values of a network's parameters and buffers."""
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        if key.endswith("num_batches_tracked"):
            continue
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _bundled(weights: Path | None, layers: Sequence[int] | None) -> Backbone:
    if weights is not None:
        raise ConfigError(
            f"{BUNDLED} brings its weights: take --weights away, or name the backbone that they "
            "are of with --backbone"
        )
    return replace(_file(str(bundled_file()), None, layers), name="")


def _file(name: str, weights: Path | None, layers: Sequence[int] | None) -> Backbone:
    from fedvad.features.modules import Taps

    file = read_backbone(weights or Path(name))
    own = file.architecture.layers
    chosen = check_taps(f"backbone file {file.name}", layers or own, own)
    network = file.network.eval()
    # of the whole file, also where only some of its layers are taken
    identity = hashlib.sha256(f"{weights_hash(network)}{file.described()}".encode()).hexdigest()
    if chosen != own:
        network = Taps(network, [own.index(tap) for tap in chosen]).eval()
    return Backbone(network, file.mean, file.std, chosen, identity, file.name)


def _filterbank(weights: Path | None, layers: Sequence[int] | None) -> Backbone:
    from fedvad.features.filterbank import FilterBank
    from fedvad.features.modules import Taps

    if weights is not None:
        raise ConfigError("the filter bank is analytic: --weights does not go with it")
    bank = FilterBank()
    chosen = check_taps("filterbank", layers or (0, 1, 2), range(len(bank.channels)))
    # Not a hash of the kernels: their last bits differ between processors, and sites must agree.
    identity = hashlib.sha256(FilterBank.recipe.encode()).hexdigest()
    return Backbone(Taps(bank, chosen).eval(), *_IDENTITY, chosen, identity)


def _spectral(weights: Path | None, layers: Sequence[int] | None) -> Backbone:
    from fedvad.features.bands import read_bands_file

    if weights is None:
        raise WeightsError(
            "spectral has weights of the sites' own normal pixels. fedvad train finds them; else "
            "write them, fedvad spectral --moments FILE --save-backbone FILE, and give --weights"
        )
    network = read_bands_file(weights).eval()
    chosen = check_taps(SPECTRAL, layers or (0,), range(1))
    bands = network.mean.numel()
    # what undoes the scaling of pictures to 0..1
    as_they_are = (0.0,) * bands, (1 / 255,) * bands
    return Backbone(network, *as_they_are, chosen, weights_hash(network), bands=bands)


def _mcunet(name: str, weights: Path | None, layers: Sequence[int] | None) -> Backbone:
    from fedvad.features.modules import BlockTaps

    if weights is None:
        raise WeightsError(
            f"{name} has no automatic download: give --weights FILE.safetensors "
            "(state dict of mit-han-lab/mcunet in timm's key names), or another --backbone"
        )
    network = build_mcunet(name)
    load_weights(network, weights, name, of_timm=False)
    chosen = check_taps(name, layers or (3, 6, 9), range(len(MCUNET[name][1])))
    tapped = BlockTaps(network, chosen).eval()
    return Backbone(tapped, *_HALF, chosen, weights_hash(tapped))


def _timm(
    name: str,
    weights: Path | None,
    layers: Sequence[int] | None,
    image_size: int | tuple[int, int] | None,
) -> Backbone:
    model = describe(name)
    taps = check_taps(name, layers or model.taps, range(len(model.strides)))
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
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
