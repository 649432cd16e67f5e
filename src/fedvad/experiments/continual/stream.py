"""What `fedvad continual` runs: tasks in order, methods and seeds, from a TOML file."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fedvad.continual.banks import BankKind
from fedvad.continual.codecs import CodecConfig
from fedvad.continual.memory import Remainder
from fedvad.continual.students import Strategy
from fedvad.data.checked import Closed
from fedvad.experiments.experiment import (
    Experiment,
    read_experiment,
    with_defaults,
)
from fedvad.features.config import Engine
from fedvad.features.names import BUNDLED, IMAGE_SIZE
from fedvad.runs.arguments import AnyPath


class TaskSpec(Closed):
    """One task: a set in MVTec's layout, at `path` below --data."""

    name: str = Field(min_length=1)
    path: str = Field(min_length=1)


class Features(Closed):
    """The frozen backbone of a method; layers: its default when none are given."""

    backbone: str = BUNDLED
    layers: tuple[int, ...] | None = None
    image_size: int = IMAGE_SIZE
    engine: Engine = "openvino"
    device: str = "cpu"


class Training(Closed):
    """How a student learns one task: `epochs` passes over it, or `steps` steps."""

    epochs: int = Field(default=10, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=0.4, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    warmup: int = Field(default=20, ge=0)
    clip: float | None = 1.0
    mixed_precision: bool = False
    held_out: float = Field(default=0.1, ge=0, lt=1)
    carry_optimiser: bool = False


class Method(Closed):
    """One row of the table.

    detector: `stfpm` and `paste` learn by `strategy`; `patchcore` and `feddymem` keep a bank of
    at most `budget` bytes. codec: how the replay memory of at most `slots` samples and `budget`
    bytes keeps what it keeps. top_features: share of the teacher's features, those most important
    for a task, on which a `naive` student trains. options: more of the detector's constructor.
    """

    name: str = Field(min_length=1)
    detector: Literal["stfpm", "paste"] | BankKind
    strategy: Strategy = "replay"
    codec: CodecConfig | None = None
    slots: int = Field(default=100, ge=1)
    budget: int | None = Field(default=None, ge=1)
    remainder: Remainder = "drop"
    top_features: float = Field(default=1.0, gt=0, le=1)
    features: Features = Features()
    train: Training = Training()
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def is_bank(self) -> bool:
        """Whether it keeps a bank rather than a student."""
        return self.detector in ("patchcore", "feddymem")

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.is_bank and self.codec is not None:
            raise ValueError("a bank takes no codec: its rows are kept by options.precision")
        if not self.is_bank and (self.codec is not None) != (self.strategy == "replay"):
            raise ValueError("strategy replay needs a codec (pixels keeps images), others none")
        if self.top_features < 1 and (self.is_bank or self.strategy != "naive"):
            raise ValueError("top_features below 1 goes with a student and strategy naive")
        return self


class Analysis(Closed):
    """What the report says of the features of tasks: of at most `images` normal images of each, the
    share `top` that is most important, over all tasks.
    """

    top: float = Field(default=0.01, gt=0, le=1)
    images: int = Field(default=20, ge=2)


class Stream(Experiment):
    """Tasks, methods and seeds. order: `given`, or `random` by each seed. good, defect: names of
    folders with normal images and with defects, beyond `good`. analysis: of the first method's
    features.
    """

    kind: ClassVar[str] = "stream"
    package: ClassVar[str] = "fedvad.experiments.continual"

    order: Literal["given", "random"] = "given"
    good: tuple[str, ...] = ()
    defect: tuple[str, ...] = ()
    analysis: Analysis | None = None
    tasks: tuple[TaskSpec, ...] = Field(min_length=2)
    methods: tuple[Method, ...] = Field(min_length=1)

    def ordered(self, seed: int) -> list[TaskSpec]:
        """The tasks in the order in which a seed learns them."""
        if self.order == "given":
            return list(self.tasks)
        return [self.tasks[i] for i in np.random.default_rng(seed).permutation(len(self.tasks))]


def load_stream(name: AnyPath) -> Stream:
    """A shipped stream by name, or one from a TOML file.

    In a file, `[defaults]` holds values for every method, whose own keys go before. Raises
    `ConfigError` naming the file, the key and the mend.
    """
    return read_experiment(Stream, name, with_defaults("methods"))
