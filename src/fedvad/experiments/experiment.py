"""What the TOML files of `bench`, `continual` and `distill` have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from importlib.resources import files
from os import fspath
from typing import Any, ClassVar, Self, TypeVar

from pydantic import Field, ValidationError, field_validator

from fedvad.data.bounds import check_limit
from fedvad.data.checked import Closed, read_toml
from fedvad.errors import ConfigError, join_names
from fedvad.runs.arguments import AnyPath
from fedvad.runs.config import as_path

E = TypeVar("E", bound="Named")


class Named(Closed):
    """What a file describes, under a name.

    kind: what such a file is called in messages. package: where those that are shipped lie, in the
    folder `kind`s.
    """

    kind: ClassVar[str]
    package: ClassVar[str]

    name: str = Field(min_length=1)
    title: str = ""


class Experiment(Named):
    """Methods and seeds under a name."""

    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[Any, ...] = Field(min_length=1)

    @field_validator("seeds", "methods", "sets", "tasks", check_fields=False)
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [getattr(item, "name", item) for item in value]
        if not names or len(set(names)) < len(names):
            raise ValueError("needs at least one entry, and each name or seed only once")
        return value

    def only(
        self, *, seeds: Iterable[int] | None = None, methods: Iterable[str] | None = None
    ) -> Self:
        """Cut down to some seeds and methods (None: all); raises `ConfigError` for unknown ones."""
        seeds = None if seeds is None else list(seeds)
        methods = None if methods is None else list(methods)
        names = [method.name for method in self.methods]
        unknown = sorted(set(methods or ()) - set(names))
        if unknown:
            raise ConfigError(
                f"{self.kind} {self.name} has no methods {join_names(unknown)}; it has "
                f"{join_names(names)}"
            )
        for seed in seeds or ():
            check_limit(seed, "seed", least=0)
        if seeds is not None and (not seeds or len(set(seeds)) < len(seeds)):
            raise ConfigError(f"seeds must be distinct, and at least one, got {seeds}")
        kept = [m for m in self.methods if methods is None or m.name in methods]
        return self.model_copy(update={"seeds": tuple(seeds or self.seeds), "methods": tuple(kept)})


def shipped(kind: type[Named]) -> list[str]:
    """Names of the experiments of a kind in the package."""
    entries = (files(kind.package) / f"{kind.kind}s").iterdir()
    return sorted(e.name.removesuffix(".toml") for e in entries if e.name.endswith(".toml"))


def read_experiment(
    kind: type[E], name: AnyPath, prepare: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> E:
    """A shipped experiment by name, or one from a TOML file, whose values `prepare` may change.

    Raises `ConfigError` naming the file, the key and the mend.
    """
    path, what = as_path(name, kind.kind), kind.kind
    name = fspath(name)
    own = path.suffix == ".toml"
    if not own and name not in shipped(kind):
        raise ConfigError(
            f"no {what} {name!r}; shipped are {', '.join(shipped(kind))}; or give a .toml file"
        )
    file = path if own else files(kind.package) / f"{what}s" / f"{name}.toml"
    values = read_toml(file, f"{what} ")
    try:
        return kind(**prepare(values))
    except ValidationError as error:
        found = "; ".join(
            f"{_place(e['loc'])}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
        )
        raise ConfigError(f"{what} {name}: {found}") from error
    except (TypeError, AttributeError, ConfigError) as error:
        raise ConfigError(f"{what} {name}: {error}") from error


def _place(where: tuple[int | str, ...]) -> str:
    """`stage 2: steps` for the key `steps` of the second of the `stages`."""
    keys = ".".join(map(str, where))
    return re.sub(
        r"^(\w+)s\.(\d+)\.?", lambda found: f"{found[1]} {int(found[2]) + 1}: ", keys
    ).removesuffix(": ")


def with_defaults(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """For `read_experiment`: the table `[defaults]` holds values for every entry of list `key`."""

    def prepare(values: dict[str, Any]) -> dict[str, Any]:
        defaults = values.pop("defaults", {})
        return values | {key: [_merged(defaults, entry) for entry in values.get(key, [])]}

    return prepare


def _merged(defaults: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Own values before defaults; tables are merged key by key."""
    found = dict(defaults)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = found[key] | value if both else value
    return found
