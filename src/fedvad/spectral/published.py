"""HyperSIGMA's published weights: which of their names are which of ours."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvad.errors import WeightsError, join_names
from fedvad.features.state_file import read_tensors
from fedvad.spectral.sigma import Branch

__all__ = ["load_branch"]

# of a block, ours and theirs
_NAMES = {
    "before": "norm1",
    "attention.qkv": "attn.qkv",
    "attention.offsets": "attn.sampling_offsets",
    "attention.out": "attn.proj",
    "between": "norm2",
    "layers.0": "mlp.fc1",
    "layers.2": "mlp.fc2",
}
_PREFIXES = ("module.", "encoder.")
_PLACES = "pos_embed"


def load_branch(branch: Branch, path: Path) -> None:
    """Fill a branch with published weights, in place.

    Parameters
    ----------
    branch : Branch
        Of the size that the file is of.
    path : Path
        A safetensors file with the names of the public code: `blocks.N.norm1`, `attn.qkv`,
        `attn.proj`, `norm2`, `mlp.fc1`, `mlp.fc2` and, where it was fine-tuned with sampling,
        `attn.sampling_offsets`; `pos_embed`. Tokens of another grid have their places resampled.
        What embeds pixels or bands depends on the scene and is learned, as in the public code;
        decoders are not needed.

    Raises
    ------
    WeightsError
        For a pickle, with the command that converts it; for a file of another size, naming both
        sizes; for values that are not finite.

    Source: Wang et al., IEEE TPAMI 47(8), 2025, and its public code.
    """
    tensors = read_tensors(path)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    found: dict[str, Tensor] = {}
    wrong: list[str] = []
    for ours, value in branch.blocks.state_dict().items():
        number, rest = ours.split(".", 1)
        part, kind = rest.rsplit(".", 1)
        theirs = f"blocks.{number}.{_NAMES[part]}.{kind}"
        if theirs not in tensors and part == "attention.offsets":
            continue  # of pre-training, which attends to all tokens
        if theirs not in tensors or tensors[theirs].shape != value.shape:
            wrong.append(theirs)
        else:
            found[f"blocks.{ours}"] = tensors[theirs]
    places = tensors.get(_PLACES)
    if places is None or places.ndim != 3 or places.shape[2] != branch.size.dim:
        wrong.append(_PLACES)
    else:
        found["places"] = _resampled(places, branch.grid)
    if wrong:
        raise WeightsError(
            f"{path.name} does not fit a branch of depth {branch.size.depth} and dim "
            f"{branch.size.dim}: {len(wrong)} values are missing or of another shape "
            f"({join_names(wrong, 3)}); it is {_described(tensors)}: choose that --size, "
            "or another file"
        )
    broken = [name for name, value in found.items() if not bool(value.isfinite().all())]
    if broken:
        raise WeightsError(f"{path.name} holds values that are not finite: {join_names(broken, 3)}")
    branch.load_state_dict(found, strict=False)


def _resampled(places: Tensor, grid: tuple[int, int]) -> Tensor:
    side = math.isqrt(places.shape[1])
    if (side, side) == grid or side * side != places.shape[1]:
        return places
    maps = places.float().transpose(1, 2).reshape(1, -1, side, side)
    wide = F.interpolate(maps, grid, mode="bicubic", align_corners=False)
    return wide.flatten(2).transpose(1, 2)


def _described(tensors: dict[str, Tensor]) -> str:
    numbers = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    norm = tensors.get("blocks.0.norm1.weight", torch.zeros(0))
    return f"of depth {len(numbers)} and dim {len(norm)}" if numbers else "no HyperSIGMA at all"
