"""MCUNet backbones (Lin et al. 2020, 2021) expressed with timm's EfficientNet blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedvad.errors import WeightsError
from fedvad.features.backbones import Backbone, weights_hash
from fedvad.features.compat import import_timm
from fedvad.features.state_file import load_weights
from fedvad.features.taps import check_taps

if TYPE_CHECKING:
    import torch

_HALF = (0.5, 0.5, 0.5)

# (kernel, expand, out, stride) of each block, after a 3x3 stride-2 stem of `stem` channels; read
# from the released configurations of mit-han-lab/mcunet (MIT). The names are the paper's.
MCUNET: dict[str, tuple[int, tuple[tuple[int, int, int, int], ...]]] = {
    "mcunet_in3": (
        16,
        (
            (3, 1, 8, 1), (7, 3, 16, 2), (3, 5, 16, 1), (7, 5, 16, 1), (5, 4, 16, 1),
            (5, 5, 24, 2), (5, 5, 24, 1), (5, 5, 24, 1), (3, 5, 40, 2), (7, 6, 40, 1),
            (5, 4, 40, 1), (5, 5, 48, 1), (7, 5, 48, 1), (3, 5, 48, 1), (3, 6, 96, 2),
            (7, 5, 96, 1), (3, 4, 96, 1), (7, 5, 160, 1),
        ),
    ),
    "mcunet_in4": (
        32,
        (
            (3, 1, 16, 1), (7, 3, 24, 2), (3, 5, 24, 1), (5, 4, 24, 1), (7, 5, 40, 2),
            (3, 4, 40, 1), (7, 4, 40, 1), (7, 3, 80, 2), (3, 3, 80, 1), (7, 3, 80, 1),
            (3, 4, 96, 1), (5, 3, 96, 1), (5, 3, 96, 1), (7, 4, 192, 2), (7, 3, 192, 1),
            (5, 3, 192, 1), (5, 4, 320, 1),
        ),
    ),
}  # fmt: skip


def build(
    name: str,
    weights: Path | None,
    layers: Sequence[int] | None,
    sides: tuple[int, int] | None,
) -> Backbone:
    """See `families.Builder.build`."""
    from fedvad.features.modules import BlockTaps

    if weights is None:
        raise WeightsError(
            f"{name} has no automatic download: give --weights FILE.safetensors "
            "(state dict of mit-han-lab/mcunet in timm's key names), or another --backbone"
        )
    chosen = _taps(name, layers)
    network = BlockTaps(build_mcunet(name), chosen).eval()
    load_weights(network, weights, name, of_timm=False)
    return Backbone(network, _HALF, _HALF, chosen, weights_hash(network))


def trainable(
    name: str, layers: tuple[int, ...] | None
) -> tuple[tuple[int, ...], Callable[[], torch.nn.Module]]:
    """See `families.Builder.trainable`."""
    from fedvad.features.modules import BlockTaps

    chosen = _taps(name, layers)
    return chosen, lambda: BlockTaps(build_mcunet(name), chosen)


def _taps(name: str, layers: Sequence[int] | None) -> tuple[int, ...]:
    return check_taps(name, layers or (3, 6, 9), range(len(MCUNET[name][1])))


def build_mcunet(name: str) -> torch.nn.Module:
    """The whole untrained network; taps count its blocks from 0 (a tap is a block's output)."""
    import_timm()
    import torch
    from timm.models._efficientnet_builder import decode_arch_def, round_channels
    from timm.models.efficientnet import EfficientNet

    stem, rows = MCUNET[name]
    blocks = [
        [f"ds_r1_k{k}_s{s}_c{out}" if i == 0 else f"ir_r1_k{k}_s{s}_e{expand}_c{out}"]
        for i, (k, expand, out, s) in enumerate(rows)
    ]
    network: torch.nn.Module = EfficientNet(
        block_args=decode_arch_def(blocks),
        num_features=0,
        stem_size=stem,
        fix_stem=True,
        act_layer=torch.nn.ReLU6,
        round_chs_fn=partial(round_channels, multiplier=1.0),
    )
    return network
