"""A tiny teacher for tests: a real architecture of timm with seeded random weights in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fedvad.detectors.student.aand.options import AmplifyConfig
from fedvad.detectors.student.amsl.options import MemoriesConfig
from fedvad.detectors.student.branches import reinitialise
from fedvad.detectors.student.daad.options import BlockConfig
from fedvad.detectors.student.dmdd.options import DualConfig
from fedvad.detectors.student.training import TrainConfig
from fedvad.features.compat import import_timm

NAME = "test_efficientnet"
LAYERS = (1, 2)
# one batch of five images per epoch
QUICK = TrainConfig(epochs=60, learning_rate=0.4, warmup=5, patience=None)
# for students of maps: the papers' optimiser, in a few steps
QUICK_ADAM = TrainConfig(
    steps=25, learning_rate=0.005, warmup=3, patience=None, optimiser="adam", momentum=0.5
)
MEMORIES = MemoriesConfig(items=8)
BLOCKS = BlockConfig(items=8, adversary=0.01)
AMPLIFY = AmplifyConfig(items=4, pairs=8)


def write_weights(path: Path, name: str = NAME) -> Path:
    """Random weights with batch statistics of smooth random images, so that maps differ."""
    network = import_timm().create_model(name, features_only=True)
    reinitialise(network, seed=11)
    generator = torch.Generator().manual_seed(12)
    coarse = torch.randn(8, 3, 8, 8, generator=generator)
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic"))
    save_file(network.state_dict(), path)
    return path


def options(weights: Path, **changes: Any) -> dict[str, Any]:
    """Options of a feature configuration with the tiny teacher."""
    base = {"backbone": NAME, "weights": weights, "layers": LAYERS, "image_size": 64}
    return base | {"engine": "torch"} | changes


DUAL = DualConfig(pairs=8, head_channels=8, head_start_step=5)
