"""A student's weights as plain arrays, for files and for exchanges between sites."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedvad.errors import MismatchError, join_names

if TYPE_CHECKING:
    import torch

_Array = npt.NDArray[Any]


def under(prefix: str, arrays: Mapping[str, _Array]) -> dict[str, _Array]:
    """The arrays whose names begin with `prefix`, by the rest of their names."""
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def parameters_of(module: torch.nn.Module) -> dict[str, _Array]:
    """Copies of the trainable parameters, by name, in the order in which they were defined."""
    return {name: _copy(p) for name, p in _parameters(module)}


def load_parameters(module: torch.nn.Module, arrays: Mapping[str, _Array]) -> None:
    """Set every trainable parameter to its array, of the same shape.

    Raises `MismatchError`, before anything is changed, when names or shapes differ or a value is
    not finite.
    """
    _load(dict(_parameters(module)), arrays, "parameter")


def buffers_of(module: torch.nn.Module) -> dict[str, _Array]:
    """Copies of the floating-point buffers that belong to the state, as the BN statistics.

    Counters (`num_batches_tracked`) are left out: nothing uses them, and averages of them would
    be no counts.
    """
    return {name: _copy(b) for name, b in _buffers(module)}


def load_buffers(module: torch.nn.Module, arrays: Mapping[str, _Array]) -> None:
    """Set every such buffer to its array; raises `MismatchError` as `load_parameters` does."""
    _load(dict(_buffers(module)), arrays, "buffer")


def _parameters(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def _buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    stored = module.state_dict().keys()
    return (
        (name, b) for name, b in module.named_buffers() if name in stored and b.is_floating_point()
    )


def _copy(tensor: torch.Tensor) -> _Array:
    array: _Array = tensor.detach().cpu().numpy().copy()
    return array


def _load(own: Mapping[str, torch.Tensor], arrays: Mapping[str, _Array], what: str) -> None:
    import torch

    missing = sorted(own.keys() - arrays.keys())
    foreign = sorted(arrays.keys() - own.keys())
    if missing or foreign:
        raise MismatchError(
            f"these are the {what}s of another student: {len(missing)} missing "
            f"({join_names(missing, 3)}), {len(foreign)} unknown ({join_names(foreign, 3)}); use "
            "the same backbone, layers and bootstrap"
        )
    for name, tensor in own.items():
        if tuple(tensor.shape) != arrays[name].shape:
            raise MismatchError(
                f"{what} {name} has shape {arrays[name].shape}, this student's has "
                f"{tuple(tensor.shape)}; use the same backbone, layers and bootstrap"
            )
        if not np.isfinite(arrays[name]).all():
            raise MismatchError(f"{what} {name} holds values that are not finite")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(torch.from_numpy(np.array(arrays[name], dtype=np.float32)))


def weights_hash(weights: Mapping[str, npt.NDArray[np.float32]]) -> str:
    """16 hex digits over names and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + b"\0" + np.ascontiguousarray(weights[name]).tobytes())
    return digest.hexdigest()[:16]
