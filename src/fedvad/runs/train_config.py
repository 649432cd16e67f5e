"""The checked configuration of a training run, and what its parts are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal, Self, TypeVar

from pydantic import field_validator, model_validator

from fedvad.data.labels import LabelNames
from fedvad.data.view_choice import USUAL_SIZE
from fedvad.data.views import Size, is_plain, parse_size
from fedvad.detectors.memory.metric_loss import MetricLossConfig
from fedvad.detectors.memory.site import FedDyMemConfig
from fedvad.detectors.scoring import ScoringConfig
from fedvad.errors import ConfigError, join_names
from fedvad.features.config import FeatureConfig
from fedvad.features.names import SPECTRAL, default_backbone
from fedvad.federation.codecs import overhead_bytes, plain_dtype, rounding, row_bytes
from fedvad.memory.bank import FloatArray
from fedvad.runs.families import METHODS, method_class
from fedvad.runs.options import COMPARISONS, DeclaredOptions

_Part = TypeVar("_Part")
# scoring takes time and memory with every row: many sites' rows are thinned out to these
LARGEST_MEMORY = 32_768


class TrainConfig(DeclaredOptions):
    """Every option of a training run, checked together; `docs/configuration.md` explains each."""

    @field_validator("image_size", mode="before")
    @classmethod
    def _size_as_text(cls, value: Any) -> Any:
        """[256, 512] means 256x512; other types become text, so that the error names the forms."""
        if isinstance(value, int | str) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
        pair = isinstance(value, list | tuple) and len(value) == 2
        return "x".join(map(str, value)) if pair else str(value)

    @field_validator("compare", mode="before")
    @classmethod
    def _comma_separated(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("good", "defect", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_view(self) -> Self:
        size = parse_size(self.image_size, self.tiles, self.overlap)
        object.__setattr__(self, "image_size", size)
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.method not in METHODS:
            raise ValueError(
                f"unknown method {self.method[:50]!r}; choose from {join_names(METHODS, 20)}"
            )
        unknown = sorted(set(self.compare) - set(COMPARISONS))
        if unknown:
            raise ValueError(
                f"compare: {', '.join(map(repr, unknown))} is unknown; choose local (each site "
                "alone), pooled (all images in one place) or identity, several with a comma between"
            )
        takes = method_class(self.method).options
        if "identity" in self.compare and "train_generator" not in takes:
            raise ValueError(f"compare 'identity' omits the generator, and {self.method} has none")
        if method_class(self.method).sends_weights and self.backbone == SPECTRAL:
            raise ValueError(
                "backbone 'spectral' gives the spectra of cubes, which no student can reproduce: "
                "choose feddymem or patchcore"
            )
        if self.calibration == "leave-one-out" and not self.keeps_patches:
            raise ValueError(
                "calibration 'leave-one-out' needs a memory of real patches (reduce coreset, pull "
                "0, update grow, merge concat or kcenter, precision float16, int8 or int5); use "
                "'holdout'"
            )
        if self.merge == "average" and self.reduce != "position":
            raise ValueError(
                "merge 'average' needs reduce 'position': only its rows can be matched"
            )
        if self.merge != "kmeans" and self.merge_weights != 1:
            raise ValueError(f"merge_weights needs merge 'kmeans'; merge is {self.merge!r}")
        if self.defence == "robust":
            if self.merge == "average":
                raise ValueError("defence 'robust' leaves rows out, merge 'average' needs all")
            if self.shared_threshold:
                raise ValueError(
                    "shared_threshold trusts the counts of every site, so one that lies could "
                    "silence all alarms: with defence 'robust' omit shared_threshold"
                )
            if "threshold_rule" not in self.model_fields_set:
                object.__setattr__(self, "threshold_rule", "own")
            elif self.threshold_rule == "federated":
                raise ValueError(
                    "threshold_rule 'federated' trusts the scores of every site, so one that lies "
                    "could raise all thresholds: with defence 'robust' use 'own'"
                )
            if "reference" not in self.model_fields_set:
                # a rare mode that only one site has is left out, but stays normal at home
                object.__setattr__(self, "reference", "union")
        if "backbone" not in self.model_fields_set:
            object.__setattr__(self, "backbone", default_backbone(self.weights))
        if self.merge != "average" and self.memory_rows is None:
            rows = LARGEST_MEMORY if self.merge == "concat" else 2000
            object.__setattr__(self, "memory_rows", rows)
        return self

    @property
    def keeps_patches(self) -> bool:
        """Whether the rows of the memory are real patches, not averages or moved vectors."""
        return (
            self.reduce == "coreset"
            and self.pull == 0
            and self.update == "grow"
            and self.merge != "kmeans"
            and self.precision in ("float16", "int8", "int5")
        )

    def stored_form(self) -> Callable[[FloatArray], FloatArray] | None:
        """What a memory makes of (n, d) patches, where it does not hold them as they are."""
        return None if self.precision == "float16" else rounding(self.precision)

    @property
    def calibration_mode(self) -> Literal["leave-one-out", "holdout", "none"]:
        """`auto` resolved: leave-one-out needs rows that can be told apart by image."""
        if self.calibration == "auto":
            return "leave-one-out" if self.keeps_patches else "holdout"
        return self.calibration

    def features(self) -> FeatureConfig:
        """The feature part."""
        layers = self.layers
        if layers is None:
            layers = method_class(self.method).layers(self.backbone)
        return self._part(FeatureConfig, layers=layers, image_size=self._plain_size())

    def _plain_size(self) -> Size:
        if is_plain(self.image_size):
            return self.image_size
        if self.image_size == "auto" and self.tiles is None:
            return f"fit:{USUAL_SIZE}x{USUAL_SIZE}" if self.backbone == SPECTRAL else USUAL_SIZE
        raise ConfigError(
            f"image size {self.image_size!r}"
            + f" in tiles of {self.tiles}" * bool(self.tiles)
            + " follows from the images of all sites, which only `fedvad train` sees; here give "
            "the size itself, such as fit:512x704, the same at every site"
        )

    def label_names(self) -> LabelNames:
        """Names of folders with normal images and with defects; raises `ConfigError` for both."""
        cubes = self.backbone == SPECTRAL
        return LabelNames(self.good, self.defect, left_out=self.leave_out, cubes=cubes)

    def scoring(self) -> ScoringConfig:
        """The scoring part."""
        return self._part(ScoringConfig)

    def rows(self, dim: int) -> int:
        """Rows a site may send per round: `upload_rows`, or fewer if `upload_bytes` says so."""
        return max(1, min(self.upload_rows, self.affordable_rows(dim)))

    def affordable_rows(self, dim: int) -> int:
        """Rows of `dim` values that fit into `upload_bytes`."""
        spread = 2 if plain_dtype(self.precision) == "float16" else 4
        room = self.upload_bytes - 2048 - overhead_bytes(self.precision, dim)
        return room // (row_bytes(self.precision, dim) + spread + 4)

    def memory(self, dim: int) -> FedDyMemConfig:
        """The memory part, for descriptors of length `dim`."""
        return self._part(
            FedDyMemConfig,
            rows=self.rows(dim),
            # looked at over the whole run: more rounds must not mean more work
            candidates=self.candidates / self.rounds,
            train=self.train_generator,
            loss=self._part(MetricLossConfig, identity=self.identity_weight),
            scoring=self.scoring(),
        )

    def _part(self, kind: type[_Part], **own: Any) -> _Part:
        """What an object's options are called here as there, and `own`, which are not."""
        shared = {field.name for field in fields(kind)} & set(type(self).model_fields)  # type: ignore[arg-type]
        return kind(**{name: getattr(self, name) for name in shared} | own)
