"""Options of attention-aware distillation, and which of them go together; no torch in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedvad.errors import ConfigError, check_choice, check_ranges

Kind = Literal["channel", "spatial", "both", "none"]
On = Literal["student", "both"]
Cosine = Literal["per_channel", "per_location"]
Reduce = Literal["mean", "sum"]
Standardise = Literal["teacher", "own", "none"]


@dataclass(frozen=True)
class AttentionConfig:
    """The attention at every distilled level, and its part in training and at test.

    dcam: `channel`, `spatial`, `both` (channel first, as in CBAM) or `none`. reduction: the
    channel attention has channels / reduction hidden values, and 8 at least. residual: a gain of
    1 + attention, in (1, 2), instead of the attention, in (0, 1).
    on: whose maps are multiplied in the loss, the `student`'s or those of `both` (same weights).
    keep_at_test: whether the multiplication is part of the score too; if not, the attention is
    dropped after training. att_as_weight: the gains, divided by their mean, weigh the loss and
    multiply no map, so that dropping them changes no map.

    Source: Jena et al., arXiv 2405.06467; `on` and `att_as_weight` are ours. Raises `ConfigError`.
    """

    dcam: Kind = "channel"
    reduction: int = 8
    residual: bool = False
    on: On = "student"
    keep_at_test: bool = False
    att_as_weight: bool = False

    def __post_init__(self) -> None:
        check_choice("dcam", self.dcam, Kind)
        check_choice("on", self.on, On)
        check_ranges(self, {"[1, inf)": "reduction"})
        if self.dcam == "none" and (self.keep_at_test or self.att_as_weight):
            raise ConfigError("keep_at_test and att_as_weight need an attention: dcam is 'none'")
        if self.att_as_weight and self.keep_at_test:
            raise ConfigError("att_as_weight leaves the maps as they are: nothing to keep_at_test")
        if self.att_as_weight and self.on == "both":
            raise ConfigError("att_as_weight is computed on the student alone: set on to 'student'")


@dataclass(frozen=True)
class ImitationConfig:
    """The two losses of a level: cosine_weight * cosine + kl_weight * spatial KL.

    cosine: what is one vector, the map of a channel (`per_channel`) or the channels at a location
    (`per_location`, as in STFPM). tau: temperature of the KL; tau_squared: whether it is
    multiplied by tau^2, so that gradients do not shrink with tau. reduce: of the KL over channels.
    standardise: what the maps are divided by before the KL, channel by channel and image by image:
    the deviation over the positions of the `teacher`'s map (both), of each one's `own`, or `none`.
    With `own` the KL cannot see a gain of a channel.

    Source: Jena et al., arXiv 2405.06467 and its public code, where the KL is not used;
    `standardise` and the weights are ours. Raises `ConfigError`.
    """

    cosine: Cosine = "per_channel"
    cosine_weight: float = 1.0
    kl_weight: float = 1.0
    tau: float = 1.0
    tau_squared: bool = True
    reduce: Reduce = "mean"
    standardise: Standardise = "teacher"

    def __post_init__(self) -> None:
        check_choice("cosine", self.cosine, Cosine)
        check_choice("reduce", self.reduce, Reduce)
        check_choice("standardise", self.standardise, Standardise)
        check_ranges(self, {"[0, inf)": "cosine_weight kl_weight", "(0, inf)": "tau"})
        if not (self.cosine_weight or self.kl_weight):
            raise ConfigError("cosine_weight and kl_weight are 0: nothing would be trained")


def is_idle(attention: AttentionConfig, loss: ImitationConfig) -> bool:
    """Whether no loss can see the attention, so that nothing would train it. Ours.

    A positive gain of a channel leaves the cosine per channel and the KL of maps divided by their
    own deviation as they are, a positive gain of a location leaves the cosine per location.
    """
    if attention.att_as_weight:
        return False
    sees_cosine = loss.cosine_weight > 0
    if attention.dcam == "channel":
        return not (
            (sees_cosine and loss.cosine == "per_location")
            or (loss.kl_weight > 0 and loss.standardise != "own")
        )
    if attention.dcam == "spatial":
        return not ((sees_cosine and loss.cosine == "per_channel") or loss.kl_weight > 0)
    return False


def check_pair(attention: AttentionConfig, loss: ImitationConfig) -> None:
    """Raise `ConfigError` when the losses are blind to the attention, see `is_idle`."""
    if is_idle(attention, loss):
        other = "per_location" if attention.dcam == "channel" else "per_channel"
        raise ConfigError(
            f"these losses cannot see the {attention.dcam} attention, so nothing would train it: "
            f"set dcam to 'none' or att_as_weight, or take cosine {other!r}, or give the KL a "
            "weight and standardise 'teacher' or 'none'"
        )
