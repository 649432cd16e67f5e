"""Configuration of `train`: one model, from presets, a TOML file and flags, in that order."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedvad.data.bounds import MAX_PIXELS
from fedvad.data.labels import LabelNames
from fedvad.data.region import parse_region
from fedvad.data.view_choice import USUAL_SIZE
from fedvad.data.views import Size, is_plain, parse_size
from fedvad.detectors.memory_site import Anchors, FedDyMemConfig, Reduce, Update
from fedvad.detectors.metric_loss import LossMode, MetricLossConfig
from fedvad.detectors.scoring import MapMode, ScoringConfig
from fedvad.errors import ConfigError
from fedvad.features.config import Engine, FeatureConfig
from fedvad.features.names import BUNDLED, default_backbone, is_backbone_file
from fedvad.federation.codecs import Precision, compact, overhead_bytes, rounding, row_bytes
from fedvad.memory.bank import FloatArray
from fedvad.memory.merge import MergeMode
from fedvad.memory.neighbours import SearchMode
from fedvad.pipeline.student_config import (
    STUDENT_METHODS,
    StudentOptions,
    check_student_options,
    student_layers,
)

__all__ = [
    "COMPARISONS",
    "METHODS",
    "Defence",
    "Reference",
    "ThresholdRule",
    "TrainConfig",
    "as_path",
    "at_size",
    "check_reference",
    "check_share",
    "resolve_config",
]

Reference = Literal["global", "local", "union"]
Defence = Literal["none", "robust"]
ThresholdRule = Literal["federated", "own"]
# scoring takes time and memory with every row: many sites' rows are thinned out to these
_LARGEST_MEMORY = 32_768
COMPARISONS = ("local", "pooled", "identity")

# What `--method` means: defaults that a file or a flag may still change.
METHODS: dict[str, dict[str, Any]] = {
    "feddymem": {},
    "feddymem-trained": {"train_generator": True, "update": "ema", "merge": "kmeans"},
    "feddymem-cluster": {"reduce": "cluster", "update": "ema", "merge": "kmeans"},
    "feddymem-position": {"reduce": "position", "update": "ema", "merge": "kmeans"},
    "patchcore": {"rounds": 1, "merge": "kcenter", "memory_rows": 2000, "candidates": 0.25},
    **STUDENT_METHODS,
}


class TrainConfig(BaseModel):
    """Every option of a training run; `docs/configuration.md` explains each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = "feddymem"
    # features
    backbone: str = BUNDLED
    weights: Path | None = None
    image_size: Size = "auto"
    tiles: int | None = None
    overlap: int = 64
    region: str | None = None
    layers: tuple[int, ...] | None = None
    pool: int = 3
    engine: Engine = "openvino"
    device: str = "cpu"
    # data
    split: str | None = None
    good: tuple[str, ...] = ()
    defect: tuple[str, ...] = ()
    max_bad: float = Field(default=0.05, ge=0, le=1)
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    # federation
    rounds: int = Field(default=2, ge=1)
    participation: float = Field(default=1.0, gt=0, le=1)
    join: dict[str, int] = Field(default_factory=dict)
    upload_bytes: int = Field(default=1_000_000, ge=4096)
    upload_rows: int = Field(default=1500, ge=1)
    precision: Precision = "float16"
    merge: MergeMode = "concat"
    memory_rows: int | None = Field(default=None, ge=1)
    defence: Defence = "none"
    malicious: float = Field(default=1 / 3, gt=0, lt=0.5)
    # memory
    reduce: Reduce = "coreset"
    pull: float = Field(default=0.0, ge=0, le=1)
    update: Update = "grow"
    ema: float = 0.5
    candidates: float = Field(default=0.5, gt=0, le=1)
    candidate_bytes: int = Field(default=64 << 20, ge=1)
    projection: int | None = Field(default=64, ge=1)
    # privacy
    min_count: int = Field(default=1, ge=1)
    clip: float | None = Field(default=None, gt=0)
    noise: float = Field(default=0.0, ge=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    # generator
    train_generator: bool = False
    anchors: Anchors = "global"
    loss: LossMode = "hypersphere"
    epochs: int = 1
    learning_rate: float = Field(default=1e-3, gt=0)
    identity_weight: float = Field(default=0.01, ge=0)
    # scoring
    map: MapMode = "nn1"
    density: float = Field(default=0.5, ge=0, le=1)
    density_neighbours: int = Field(default=5, ge=1)
    smooth: int = 3
    top: float = 0.03
    top_cells: int = Field(default=32, ge=1)
    search: SearchMode = "fast"
    reference: Reference = "global"
    # thresholds
    target_fpr: float = Field(default=0.01, gt=0, le=0.5)
    calibration: Literal["auto", "leave-one-out", "holdout", "none"] = "auto"
    calibration_images: int = Field(default=128, ge=3)
    holdout: float = Field(default=0.2, gt=0, lt=1)
    threshold_rule: ThresholdRule = "federated"
    shared_threshold: bool = False
    # students, where the method trains one
    student: StudentOptions = Field(default_factory=StudentOptions)
    # run
    compare: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0, lt=2**31)
    jobs: int = Field(default=2, ge=1)

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
        unknown = sorted(set(self.compare) - set(COMPARISONS))
        if unknown:
            raise ValueError(f"compare: unknown {unknown}; choose from {list(COMPARISONS)}")
        if self.has_student and "identity" in self.compare:
            raise ValueError("compare 'identity' leaves the generator away, and a student has none")
        if self.calibration == "leave-one-out" and not self.keeps_patches:
            raise ValueError(
                "calibration 'leave-one-out' needs a memory of real patches (reduce coreset, pull "
                "0, update grow, merge concat or kcenter, precision float16 or int8); use 'holdout'"
            )
        if self.merge == "average" and self.reduce != "position":
            raise ValueError("merge 'average' needs reduce 'position': other rows have no partners")
        if self.defence == "robust":
            if self.merge == "average":
                raise ValueError("defence 'robust' leaves rows out, merge 'average' needs all")
            if self.shared_threshold:
                raise ValueError(
                    "shared_threshold believes every site's counts, one liar could silence all "
                    "alarms: with defence 'robust' each site keeps its own threshold"
                )
            if "threshold_rule" not in self.model_fields_set:
                object.__setattr__(self, "threshold_rule", "own")
            elif self.threshold_rule == "federated":
                raise ValueError(
                    "threshold_rule 'federated' believes every site's scores, one liar could raise "
                    "all thresholds: with defence 'robust' use 'own'"
                )
            if "reference" not in self.model_fields_set:
                # a rare mode that only one site has is left out, but stays normal at home
                object.__setattr__(self, "reference", "union")
        if "backbone" not in self.model_fields_set:
            object.__setattr__(self, "backbone", default_backbone(self.weights))
        if self.merge != "average" and self.memory_rows is None:
            rows = _LARGEST_MEMORY if self.merge == "concat" else 2000
            object.__setattr__(self, "memory_rows", rows)
        return self

    @property
    def has_student(self) -> bool:
        """Whether the method trains a student, whose weights sites average, and has no memory."""
        return self.method in STUDENT_METHODS

    @property
    def keeps_patches(self) -> bool:
        """Whether the rows of the memory are real patches, not averages or moved vectors."""
        return (
            self.reduce == "coreset"
            and self.pull == 0
            and self.update == "grow"
            and self.merge != "kmeans"
            and self.precision in ("float16", "int8")
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
        if layers is None and self.has_student:
            layers = student_layers(self.backbone)
        return FeatureConfig(
            backbone=self.backbone,
            weights=self.weights,
            image_size=self._plain_size(),
            tiles=self.tiles,
            overlap=self.overlap,
            region=self.region,
            layers=layers,
            pool=self.pool,
            engine=self.engine,
            device=self.device,
            max_pixels=self.max_pixels,
        )

    def _plain_size(self) -> Size:
        if is_plain(self.image_size):
            return self.image_size
        if self.image_size == "auto" and self.tiles is None:
            return USUAL_SIZE
        raise ConfigError(
            f"image size {self.image_size!r}"
            + f" in tiles of {self.tiles}" * bool(self.tiles)
            + " follows from the images of all sites, which only `fedvad train` sees; here give "
            "the size itself, such as fit:512x704, the same at every site"
        )

    def label_names(self) -> LabelNames:
        """Names of folders with normal images and with defects; raises `ConfigError` for both."""
        return LabelNames(self.good, self.defect)

    def scoring(self) -> ScoringConfig:
        """The scoring part."""
        return ScoringConfig(
            map=self.map,
            density=self.density,
            density_neighbours=self.density_neighbours,
            smooth=self.smooth,
            top=self.top,
            top_cells=self.top_cells,
            search=self.search,
        )

    def rows(self, dim: int) -> int:
        """Rows a site may send per round: `upload_rows`, or fewer if `upload_bytes` says so."""
        return max(1, min(self.upload_rows, self.affordable_rows(dim)))

    def affordable_rows(self, dim: int) -> int:
        """Rows of `dim` values that fit into `upload_bytes`."""
        spread = 2 if compact(self.precision) == "float16" else 4
        room = self.upload_bytes - 2048 - overhead_bytes(self.precision, dim)
        return room // (row_bytes(self.precision, dim) + spread + 4)

    def memory(self, dim: int) -> FedDyMemConfig:
        """The memory part, for descriptors of length `dim`."""
        return FedDyMemConfig(
            rows=self.rows(dim),
            reduce=self.reduce,
            pull=self.pull,
            update=self.update,
            ema=self.ema,
            # looked at over the whole run: more rounds must not mean more work
            candidates=self.candidates / self.rounds,
            candidate_bytes=self.candidate_bytes,
            projection=self.projection,
            train=self.train_generator,
            anchors=self.anchors,
            min_count=self.min_count,
            clip=self.clip,
            noise=self.noise,
            loss=MetricLossConfig(
                loss=self.loss,
                epochs=self.epochs,
                learning_rate=self.learning_rate,
                identity=self.identity_weight,
            ),
            scoring=self.scoring(),
        )


def at_size(config: TrainConfig, size: Size) -> TrainConfig:
    """The configuration with the size at which images are read."""
    return config.model_copy(update={"image_size": size})


def check_reference(reference: str | None) -> Reference | None:
    """A reference set's exact name, or None; raises `ConfigError` for anything else."""
    if reference is None or reference in get_args(Reference):
        return cast(Reference | None, reference)
    raise ConfigError(f"unknown reference {reference!r}; choose global, local or union")


def check_share(value: float, name: str) -> float:
    """A share in [0, 1]; raises `ConfigError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value!r}; it must be a share from 0 to 1, for example 0.05")
    return float(value)


def as_path(value: Any, name: str) -> Path:
    """A path given as text or path object; raises `ConfigError` for anything else."""
    if isinstance(value, str | PathLike) and isinstance(path := fspath(value), str):
        return Path(path)
    raise ConfigError(f"{name} is {value!r}; give a path, as text or pathlib.Path")


def resolve_config(file: Path | None = None, **flags: Any) -> TrainConfig:
    """Merge method preset, TOML file and flags (None means not given) into a checked config.

    Raises `ConfigError` naming the key and the mend.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read configuration {file}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} is not valid TOML: {error}") from error
    values |= {key: value for key, value in flags.items() if value is not None}
    method = values.get("method", "feddymem")
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(f"unknown method {method!r}; choose from {sorted(METHODS)}")
    check_student_options(method, values)
    try:
        config = TrainConfig(**(METHODS[method] | _absolute(values)))
        config.memory(1)
        config.label_names()
        at_size(config, config.image_size if is_plain(config.image_size) else USUAL_SIZE).features()
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error
    return config


def _absolute(values: Mapping[str, Any]) -> dict[str, Any]:
    """With the paths of files as they are found from any folder."""
    placed = dict(values)
    if isinstance(placed.get("weights"), str | Path):
        placed["weights"] = Path(placed["weights"]).absolute()
    if isinstance(placed.get("region"), str | Path):
        placed["region"] = parse_region(str(placed["region"]))
    backbone = placed.get("backbone")
    if isinstance(backbone, str) and is_backbone_file(backbone):
        placed["backbone"] = str(Path(backbone).absolute())
    return placed


def _explain(error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            fields = sorted(TrainConfig.model_fields)
            near = get_close_matches(key, fields, n=1)
            known = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(fields)}"
            parts.append(f"unknown configuration key {key!r}; {known}")
        else:
            parts.append(f"{key}: {problem['msg']} (got {problem['input']!r})" if key else
                         str(problem["msg"]))  # fmt: skip
    return "; ".join(parts)
