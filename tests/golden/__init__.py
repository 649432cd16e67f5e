"""Files of earlier versions, which every later one must read and score by as they did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from fedvad.features.compat import import_timm

__all__ = ["FOLDER", "TEACHER", "images", "write_teacher"]

FOLDER = Path(__file__).parent
TEACHER = "test_efficientnet"


def images() -> npt.NDArray[np.uint8]:
    """The two images that were scored."""
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


def write_teacher(path: Path) -> Path:
    """The weights of the teacher, which NumPy draws alike everywhere."""
    rng = np.random.default_rng(1)
    values = import_timm().create_model(TEACHER, features_only=True).state_dict()
    for name in sorted(values):
        if values[name].ndim > 1:
            fan_in = values[name][0].numel()
            drawn = rng.integers(-4, 5, values[name].shape) / (3 * fan_in**0.5)
            values[name] = torch.from_numpy(drawn.astype(np.float32))
    save_file(values, path)
    return path
