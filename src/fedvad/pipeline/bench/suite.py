"""What a bench runs: sets, methods and seeds, read from a shipped or a user's TOML file."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedvad.errors import ConfigError
from fedvad.pipeline.bench.weights import WeightOptions
from fedvad.pipeline.config import TrainConfig, resolve_config

__all__ = ["BenchMethod", "BenchSet", "Suite", "load_suite", "shipped_suites"]

_PACKAGE = "fedvad.pipeline.bench"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BenchSet(_Strict):
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


class BenchMethod(_Strict):
    """One row of the table.

    kind: `federated` runs rounds; `local` gives each site only its own rounds, and sends nothing;
    `pooled` fits one k-center memory of the same size on the images of all sites, which it sends.
    `weights` averages the weights of a small trainable part instead of merging memories.
    options: those of `train`, over the suite's. weights: what a `weights` row trains, and how.
    """

    name: str = Field(min_length=1)
    kind: Literal["federated", "local", "pooled", "weights"] = "federated"
    options: dict[str, Any] = Field(default_factory=dict)
    weights: WeightOptions | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.weights is not None) != (self.kind == "weights"):
            raise ValueError("`weights` goes with kind 'weights', and only with it")
        return self


class Suite(_Strict):
    """A whole bench. options hold for all methods; gains are taken over each of `baselines`."""

    name: str = Field(min_length=1)
    title: str = ""
    seeds: tuple[int, ...] = (0, 1, 2)
    options: dict[str, Any] = Field(default_factory=dict)
    baselines: tuple[str, ...] = ("local", "pooled")
    convergence: bool = True
    sets: tuple[BenchSet, ...] = Field(min_length=1)
    methods: tuple[BenchMethod, ...] = Field(min_length=1)

    @field_validator("seeds", "sets", "methods")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [getattr(item, "name", item) for item in value]
        if not names or len(set(names)) < len(names):
            raise ValueError("needs at least one entry, and each name or seed only once")
        return value

    def config(self, method: BenchMethod, split: str | None, seed: int) -> TrainConfig:
        """The training configuration of one cell; raises `ConfigError`."""
        options = {"calibration": "none"} | self.options | method.options
        return resolve_config(**options, split=split, seed=seed)

    def only(self, *, seeds: list[int] | None = None, methods: list[str] | None = None) -> Suite:
        """The suite cut down to some seeds and methods; raises `ConfigError` for unknown ones."""
        names = [method.name for method in self.methods]
        unknown = sorted(set(methods or ()) - set(names))
        if unknown:
            raise ConfigError(f"suite {self.name} has no methods {unknown}; it has {names}")
        if seeds is not None and (not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0):
            raise ConfigError(f"seeds must be distinct and not negative, got {seeds}")
        kept = [m for m in self.methods if methods is None or m.name in methods]
        return self.model_copy(update={"seeds": tuple(seeds or self.seeds), "methods": tuple(kept)})


def shipped_suites() -> list[str]:
    """Names of the suites in the package."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in (files(_PACKAGE) / "suites").iterdir()
        if entry.name.endswith(".toml")
    )


def load_suite(name: str) -> Suite:
    """A shipped suite by name, or one from a TOML file; every cell's options are checked.

    Raises `ConfigError` naming the file, the key and the mend.
    """
    path = Path(name)
    try:
        if path.suffix == ".toml":
            text = path.read_text(encoding="utf-8")
        elif name in shipped_suites():
            text = (files(_PACKAGE) / "suites" / f"{name}.toml").read_text(encoding="utf-8")
        else:
            raise ConfigError(
                f"no suite {name!r}; shipped are {', '.join(shipped_suites())}; "
                "or give a .toml file"
            )
        suite = Suite(**tomllib.loads(text))
    except OSError as error:
        raise ConfigError(f"cannot read suite {name}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} is not valid TOML: {error}") from error
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        where = ".".join(map(str, first["loc"])) if first else ""
        raise ConfigError(f"suite {name}: {where}: {first['msg'] if first else error}") from error
    for method in suite.methods:
        try:
            suite.config(method, None, suite.seeds[0])
        except ConfigError as error:
            raise ConfigError(f"suite {name}, method {method.name!r}: {error}") from error
    return suite
