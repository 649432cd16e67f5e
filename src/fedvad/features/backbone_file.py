"""Backbones as single files: architecture and normalisation in the metadata, values beside them.

A backbone file is a safetensors file whose metadata say how to build the network, so that a path
is all that anyone has to give. Kernels are stored in float16, vectors (normalisation, biases) in
float32; computing is in float32. Nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvad._version import __version__
from fedvad.data.files import write_atomically
from fedvad.errors import ConfigError, WeightsError, join_names
from fedvad.features.architecture import Architecture
from fedvad.features.backbones import Backbone, weights_hash
from fedvad.features.names import BUNDLED, bundled_file, is_readable
from fedvad.features.state_file import shapes_of
from fedvad.features.taps import check_taps

if TYPE_CHECKING:
    from torch import Tensor, nn

_KEY = "fedvad_backbone"
_SCHEMA = 1
_Triple = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class BackboneFile:
    """What a file holds: a network in float32, and how to feed it.

    name: what it calls itself. mean, std: of RGB scaled to 0..1.
    """

    name: str
    architecture: Architecture
    network: nn.Module
    mean: _Triple
    std: _Triple

    def described(self) -> str:
        """All that its maps depend on besides the values, as text."""
        parts = (self.architecture.values(), self.mean, self.std)
        return json.dumps(parts, sort_keys=True)


def write_backbone(path: Path, file: BackboneFile, values: dict[str, Any] | None = None) -> int:
    """Write a backbone file atomically; returns its size in bytes.

    values: more to be kept in the metadata (where it comes from), which nothing reads back.
    Raises `WeightsError` when values are not finite, or beyond float16.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    for key, value in file.network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        stored = value.detach().cpu().contiguous()
        stored = stored.half() if stored.ndim > 1 else stored.float()
        if not bool(stored.isfinite().all()):
            raise WeightsError(f"{key} holds values that are not finite in {stored.dtype}")
        tensors[key] = stored
    header = {
        "schema": _SCHEMA,
        "version": __version__,
        "name": file.name,
        "architecture": file.architecture.values(),
        "mean": list(file.mean),
        "std": list(file.std),
        "from": values or {},
    }
    data = save(tensors, {_KEY: json.dumps(header)})
    write_atomically(path, data)
    return len(data)


def read_backbone(path: Path) -> BackboneFile:
    """Read a backbone file and build its network.

    Raises `WeightsError` when the file is missing, damaged, of a newer version, or no such file.
    """
    from safetensors import SafetensorError, safe_open

    if not is_readable(path):
        raise WeightsError(
            f"backbone file {path} does not exist or may not be read; where it was moved, give its "
            "new place with --weights FILE.safetensors"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged or not a safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise WeightsError(
            f"{path} is a safetensors file, but no backbone file of `fedvad distill`; if it holds "
            "weights of a known architecture, give --backbone NAME --weights FILE.safetensors"
        )
    if header.get("schema") != _SCHEMA:
        raise WeightsError(
            f"{path} has schema {header.get('schema')}, this fedvad ({__version__}) reads "
            f"{_SCHEMA}; it was written by fedvad {header.get('version')}"
        )
    try:
        architecture = Architecture.from_values(header["architecture"])
        network = architecture.build()
        mean, std = _triple(header["mean"]), _triple(header["std"])
        if min(std) <= 0:
            raise ValueError("std must be positive")
        name = str(header["name"])
    except (ConfigError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path} describes no backbone that can be built: {error}") from error
    _load(network, tensors, path)
    return BackboneFile(name, architecture, network, mean, std)


def build(
    name: str,
    weights: Path | None,
    layers: Sequence[int] | None,
    sides: tuple[int, int] | None,
) -> Backbone:
    """See `families.Builder.build`: of a file, or of the bundled one."""
    from fedvad.features.modules import Taps

    if name == BUNDLED:
        if weights is not None:
            raise ConfigError(
                f"{BUNDLED} brings its weights: omit --weights, or name the backbone that "
                "they are of with --backbone"
            )
        return replace(build(str(bundled_file()), None, layers, sides), name="")
    file = read_backbone(weights or Path(name))
    own = file.architecture.layers
    chosen = check_taps(f"backbone file {file.name}", layers or own, own)
    network = file.network.eval()
    # of the whole file, also where only some of its layers are taken
    identity = hashlib.sha256(f"{weights_hash(network)}{file.described()}".encode()).hexdigest()
    if chosen != own:
        network = Taps(network, [own.index(tap) for tap in chosen]).eval()
    return Backbone(network, file.mean, file.std, chosen, identity, file.name)


def trainable(
    name: str, layers: tuple[int, ...] | None
) -> tuple[tuple[int, ...], Callable[[], nn.Module]]:
    """See `families.Builder.trainable`: a file is trained already."""
    raise ConfigError(f"{name} is trained already: distil the student `tiny`, or another backbone")


def _triple(values: Any) -> _Triple:
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def _load(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    wanted = shapes_of(network)
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if wanted != found:
        wrong = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
        raise WeightsError(
            f"{path} does not hold the values of the backbone that it describes: {len(wrong)} "
            f"missing, unknown or of another shape ({join_names(wrong, 3)}); fetch the file again"
        )
    broken = [key for key, value in tensors.items() if not bool(value.isfinite().all())]
    if broken:
        raise WeightsError(f"{path} holds values that are not finite ({join_names(broken, 3)})")
    network.load_state_dict({key: value.float() for key, value in tensors.items()}, strict=False)
