"""Frozen backbones by name: build, load weights, tap, and identify by hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedvad.errors import WeightsError
from fedvad.features.families import builder_of
from fedvad.features.names import brings_weights, is_readable

if TYPE_CHECKING:
    import torch


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
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    if weights is not None and not brings_weights(name) and not is_readable(weights):
        raise WeightsError(
            f"weights file {weights} does not exist or may not be read; docs/backbones.md says "
            "where to get one. Without --weights the backbone is fedvad-tiny, which needs none"
        )
    return builder_of(name).build(name, weights, layers, sides)


def weights_hash(network: torch.nn.Module) -> str:
    """SHA-256 over sorted names, shapes and values of a network's parameters and buffers."""
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        if key.endswith("num_batches_tracked"):
            continue
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
