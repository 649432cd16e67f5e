"""Options of residual anomaly amplification; no torch in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedvad.errors import ConfigError, check_choice, check_ranges

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
        ranges = {
            "[1, inf)": "items hidden normals anomalies pairs",
            "[0, inf)": "focal_weight amplify_weight keep_weight focal_gamma",
            "(0, inf)": "tau",
            "[0, 2]": "alpha",
            "(0, 1)": "focal_alpha",
            "[0, 1)": "mask_share",
            "(0, 1]": "anomaly_prob",
        }
        check_ranges(self, ranges)
        if not (self.focal_weight or self.amplify_weight):
            raise ConfigError("focal_weight and amplify_weight are 0: nothing would be trained")

    def width(self, channels: int) -> int:
        """Hidden width of a level with this many channels."""
        return self.hidden or min(2 * channels, 1024)
