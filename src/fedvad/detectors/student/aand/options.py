"""Options of residual anomaly amplification; no torch in here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedvad.errors import ConfigError, check_choice

Margin = Literal["sub", "mul"]
ResidualKind = Literal["scale", "additive"]


@dataclass(frozen=True)
class AmplifyConfig:
    """What is added to the teacher's maps, where, and how that is trained on synthetic defects.

    items: vectors of the gate's memory for normal and as many for anomalous features. tau:
    temperature of the softmax over them. hidden: width of the two perceptrons; None takes twice
    the channels of the level, 1024 at most. residual: `scale` multiplies each value by a factor in
    (-1, 1), `additive` adds any value.
    margin, alpha: an amplified anomaly is to be less similar to normal features than before, by
    alpha (`sub`) or to the share alpha (`mul`). gate_forcing: whether the true mask takes the
    gate's place in training.
    focal_weight, amplify_weight, keep_weight: of the three losses. focal_alpha, focal_gamma: of
    the focal loss. mask_share: a cell is anomalous if the mask covers more of it than this.
    anomaly_prob: share of the images of a batch that have a defect. normals, anomalies: most cells
    of a batch and level that the amplification loss compares.
    pairs: how many synthetic images a pass has. fresh: whether they are drawn for each pass, or
    once.

    Source: arXiv 2405.02068 and its public code, defaults too; `pairs`, `additive` and `mul` are
    not from there. Raises `ConfigError`.
    """

    items: int = 50
    tau: float = 0.2
    hidden: int | None = None
    residual: ResidualKind = "scale"
    margin: Margin = "sub"
    alpha: float = 0.3
    gate_forcing: bool = True
    focal_weight: float = 1.0
    amplify_weight: float = 0.1
    keep_weight: float = 0.0
    focal_alpha: float = 0.8
    focal_gamma: float = 2.0
    mask_share: float = 0.3
    anomaly_prob: float = 0.8
    normals: int = 5000
    anomalies: int = 1000
    pairs: int = 200
    fresh: bool = True

    def __post_init__(self) -> None:
        check_choice("residual", self.residual, ResidualKind)
        check_choice("margin", self.margin, Margin)
        counts = ("items", "normals", "anomalies", "pairs")
        for name in counts if self.hidden is None else (*counts, "hidden"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.tau) and self.tau > 0):
            raise ConfigError(f"tau must be positive, got {self.tau}")
        if not 0 <= self.alpha <= 2:
            raise ConfigError(f"alpha must lie in [0, 2], got {self.alpha}")
        weights = (self.focal_weight, self.amplify_weight, self.keep_weight)
        if not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights[:2]):
            raise ConfigError(f"the losses need weights >= 0, focal or amplify > 0, got {weights}")
        if not 0 < self.focal_alpha < 1 or not self.focal_gamma >= 0:
            raise ConfigError(
                f"focal_alpha must lie in (0, 1) and focal_gamma be at least 0, got "
                f"{self.focal_alpha} and {self.focal_gamma}"
            )
        if not 0 <= self.mask_share < 1 or not 0 < self.anomaly_prob <= 1:
            raise ConfigError(
                f"mask_share must lie in [0, 1) and anomaly_prob in (0, 1], got "
                f"{self.mask_share} and {self.anomaly_prob}"
            )

    def width(self, channels: int) -> int:
        """Hidden width of a level with this many channels."""
        return self.hidden or min(2 * channels, 1024)
