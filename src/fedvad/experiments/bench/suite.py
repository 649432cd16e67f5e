"""What a bench runs: sets, methods and seeds, read from a shipped or a user's TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fedvad.data.checked import Closed
from fedvad.errors import ConfigError
from fedvad.experiments.experiment import Experiment, read_experiment
from fedvad.features.names import brings_weights
from fedvad.runs.arguments import AnyPath
from fedvad.runs.config import TrainConfig, resolve_config
from fedvad.runs.families import DEFAULT_METHOD, method_class


class BenchSet(Closed):
    """One data set. path: below the data root; None draws the demo set. split: as `train`'s.

    sites: instead of a path, a folder for each site by name, so that a set can be put together from
    several public ones.
    """

    name: str = Field(min_length=1)
    path: str | None = None
    split: str | None = None
    sites: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.sites and (self.path or self.split):
            raise ValueError("a set of named `sites` takes no path and no split")
        return self

    @property
    def folders(self) -> tuple[str, ...]:
        """All that must be there, below the data root."""
        return tuple(self.sites.values()) or (() if self.path is None else (self.path,))


class BenchMethod(Closed):
    """One row of the table.

    kind: `federated` runs rounds; `local` gives each site only its own rounds, and sends nothing;
    `pooled` fits one k-center memory of the same size on the images of all sites, which it sends.
    options: those of `train`, over the suite's.
    """

    name: str = Field(min_length=1)
    kind: Literal["federated", "local", "pooled"] = "federated"
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _no_weights(cls, values: Any) -> Any:
        if isinstance(values, dict) and (values.get("kind") == "weights" or "weights" in values):
            raise ValueError(
                "kind 'weights' is gone: give a student as options = { method = 'stfpm', student = "
                "{ algorithm = 'fedavg' } }, with kind 'local' for each site alone"
            )
        return values


class Suite(Experiment):
    """A whole bench. options hold for all methods; gains are taken over each of `baselines`."""

    kind: ClassVar[str] = "suite"
    package: ClassVar[str] = "fedvad.experiments.bench"

    options: dict[str, Any] = Field(default_factory=dict)
    baselines: tuple[str, ...] = ("local", "pooled")
    convergence: bool = True
    sets: tuple[BenchSet, ...] = Field(min_length=1)
    methods: tuple[BenchMethod, ...] = Field(min_length=1)

    def config(
        self, method: BenchMethod, split: str | None, seed: int, weights: Path | None = None
    ) -> TrainConfig:
        """The training configuration of one cell; raises `ConfigError`.

        weights: for methods that do not say otherwise, and whose backbone needs any.
        """
        takes = method_class(method.options.get("method", DEFAULT_METHOD)).options
        shared = {"calibration": "none"} | self.options
        # options of all methods mean nothing to some; unknown ones are refused below
        known = set(TrainConfig.model_fields)
        options = {k: v for k, v in shared.items() if k in takes or k not in known}
        options |= method.options
        if given := {"split", "seed"} & set(options):
            raise ConfigError(
                f"{' and '.join(sorted(given))}: a set has its split, and the suite its seeds, "
                "outside of options"
            )
        if weights is not None and not brings_weights(options.get("backbone", "")):
            options = {"weights": weights} | options
        return resolve_config(**options, split=split, seed=seed)


def load_suite(name: AnyPath) -> Suite:
    """A shipped suite by name, or one from a TOML file; every cell's options are checked.

    Raises `ConfigError` naming the file, the key and the mend.
    """
    suite = read_experiment(Suite, name)
    for method in suite.methods:
        try:
            suite.config(method, None, suite.seeds[0])
        except ConfigError as error:
            raise ConfigError(f"suite {name}, method {method.name!r}: {error}") from error
    return suite
