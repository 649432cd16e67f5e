"""Options of dual modelling: the two branches, their losses, the fusion head; no torch in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fedvad.errors import check_choice, check_ranges

InitialStudent = Literal["decoder", "encoder"]
Aim = Literal["l1mask", "margin", "cos", "away_only"]
Reference = Literal["self", "paired"]
MaskCells = Literal["bilinear", "max"]
HeadInput = Literal["map", "product"]
HeadSees = Literal["pairs", "defects"]


@dataclass(frozen=True)
class DualConfig:
    """What each branch of the student is to learn, and how their maps are fused.

    student: `decoder` rebuilds the teacher's maps from their bottleneck, `encoder` is a network of
    the backbone's family that reads the image. width: of the decoder, in shares of the taps'
    channels. layers, factor: 1 x 1 convolutions of a decoupler before it splits, and the channels
    that they give in shares of the level's.
    self_weight: w0, of the normal image's own term in the guidance. flatten: whether the guidance
    takes one cosine per map, not one per position.
    aim: form of the loss that drives the abnormality branch away; margin: its m. aim_reference:
    what it is held against, the teacher's maps of the image itself or of the paired normal one.
    mask: how a mask becomes cells, `bilinear` and at least a half, or the maximum. anomaly_prob:
    chance that an image of a batch has its defect. pairs: synthetic images of a pass, and at least
    one of each normal image: the student sees no others. fresh: whether each pass has defects drawn
    for it, as the relatives' recipes do, or all passes have the same.
    head_input: of the fusion head, one `map` per level and branch or the `product` of unit
    features. head_channels: its width. head_sees: both images of a pair, or the defective alone.
    joint: whether its loss moves the branches, too. head_start_step: optimiser step of a site from
    which it is trained; None takes a fifth of the configured steps. head_rate: its learning rate;
    None takes the student's.
    aim_weight, head_weight: of the two losses. focal_gamma: of the head's.

    Source: DMDD (arXiv 2408.03888) names the parts; nearly all values are of its relatives or
    inferred, see docs/methods/dmdd.md. Raises `ConfigError`.
    """

    student: InitialStudent = "decoder"
    width: float = 0.5
    layers: int = 2
    factor: float = 2.0
    self_weight: float = 1.0
    flatten: bool = False
    aim: Aim = "l1mask"
    margin: float = 1.0
    aim_reference: Reference = "self"
    mask: MaskCells = "bilinear"
    anomaly_prob: float = 1.0
    pairs: int = 200
    fresh: bool = True
    head_input: HeadInput = "map"
    head_channels: int = 16
    head_sees: HeadSees = "pairs"
    joint: bool = False
    head_start_step: int | None = None
    head_rate: float | None = 1e-3
    aim_weight: float = 1.0
    head_weight: float = 1.0
    focal_gamma: float = 4.0

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            check_choice(name, getattr(self, name), kind)
        ranges = {
            "[1, inf)": "layers pairs head_channels",
            "[0, inf)": "self_weight aim_weight head_weight focal_gamma head_start_step",
            "(0, inf)": "width factor head_rate",
            "(0, 2]": "margin",
            "(0, 1]": "anomaly_prob",
        }
        check_ranges(self, ranges)

    def head_start(self, steps: int | None) -> int:
        """Steps of the branches alone, in a training of this many steps in all (None: unknown)."""
        if self.head_start_step is not None:
            return self.head_start_step
        return 0 if steps is None else steps // 5


_CHOICES: dict[str, Any] = {
    "student": InitialStudent,
    "aim": Aim,
    "aim_reference": Reference,
    "mask": MaskCells,
    "head_input": HeadInput,
    "head_sees": HeadSees,
}
