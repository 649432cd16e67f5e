"""Options of students, alone or averaged over sites, for `train`'s and `bench`'s files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fedvad.detectors.registry import detector_class, list_detectors
from fedvad.distill.loss import Combine
from fedvad.distill.scope import Fusion, WSAConfig
from fedvad.errors import ConfigError
from fedvad.features.names import is_backbone_file
from fedvad.federation.exchange.terms import Algorithm, WeightConfig

__all__ = [
    "STUDENT_METHODS",
    "STUDENT_OPTIONS",
    "Averaging",
    "StudentOptions",
    "check_student_options",
    "student_layers",
]

STUDENT_METHODS: dict[str, dict[str, Any]] = {
    name: {"rounds": 5} for name in list_detectors(family="student")
}
# what else of `TrainConfig` means something where there is no memory
STUDENT_OPTIONS = {
    "method", "backbone", "weights", "image_size", "layers", "engine", "device", "split", "good",
    "defect", "max_bad", "max_pixels",
    "rounds", "participation", "join", "smooth", "top", "target_fpr", "holdout", "shared_threshold",
    "threshold_rule",
    "compare", "seed", "jobs", "student",
}  # fmt: skip
# levels of the papers, where a memory takes fewer
_LAYERS = {"resnet": (1, 2, 3), "mcunet": (6, 10, 14)}


def student_layers(backbone: str) -> tuple[int, ...] | None:
    """Taps that a student of the backbone imitates; None for the backbone's own default."""
    if is_backbone_file(backbone):
        return None
    return next((taps for name, taps in _LAYERS.items() if backbone.startswith(name)), None)


class Averaging(BaseModel):
    """How sites' weights become one; see `federation.exchange.terms`.

    wsa: strength of weight-scope alignment, 0 for none. steps: per site and round.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    algorithm: Algorithm = "fedavg"
    prox: float = Field(default=0.01, ge=0)
    moon: float = Field(default=1.0, ge=0)
    wsa: float = Field(default=0.0, ge=0)
    fusion: Fusion = "average"
    steps: int | None = Field(default=None, ge=1)

    def terms(self) -> WeightConfig:
        """As the exchange takes them."""
        wsa = WSAConfig(strength=self.wsa, fusion=self.fusion) if self.wsa else None
        return WeightConfig(algorithm=self.algorithm, prox=self.prox, moon=self.moon, wsa=wsa)


class StudentOptions(Averaging):
    """The table `[student]`: the averaging, and what a student is and how it trains.

    bootstrap: last layer that `paste` shares; None takes the one before the first tap. combine:
    how maps of the layers become one. batch, learning_rate: of the sites' optimiser; warmup: steps
    of each round over which the rate rises. mixed_precision: see `distill.training.TrainConfig`.
    None takes the method's. amplify_rounds: those in
    which the sites of `aand` advance their common teacher, before those of the student. options:
    what else the method's detector takes, such as `width` of `rd`; those of `amplify` (of
    `aand`) and of `dual` (of `dmdd`) are tables.
    """

    steps: int | None = Field(default=50, ge=1)
    bootstrap: int | None = None
    combine: Combine | None = None
    batch: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    warmup: int = Field(default=5, ge=0)
    mixed_precision: bool = False
    amplify_rounds: int = Field(default=2, ge=1)
    cache_bytes: int = Field(default=256 << 20, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)


def check_student_options(method: str, values: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for options that the method has no use for."""
    if method not in STUDENT_METHODS:
        # a whole configuration, as a site keeps it, has the table with its defaults
        given, default = values.get("student") or {}, StudentOptions()
        if given != default and default.model_dump() | dict(given) != default.model_dump():
            raise ConfigError(
                f"the table [student] is for --method {', '.join(sorted(STUDENT_METHODS))}; "
                f"{method} has a memory and no student"
            )
        return
    table = values.get("student")
    owned = {o: name for name in STUDENT_METHODS for o in detector_class(name).own_options}
    for option, owner in owned.items():
        default = getattr(StudentOptions(), option)
        if isinstance(table, Mapping) and method != owner and table.get(option, default) != default:
            raise ConfigError(f"student.{option} is of {owner}: {method} has no use for it")
    foreign = sorted(set(values) - STUDENT_OPTIONS)
    if foreign:
        raise ConfigError(
            f"{method} has a student and no memory: {', '.join(foreign)} would change nothing; "
            "take it away, or choose another --method"
        )
