"""The methods that `train` knows, and the family of each: one line per family."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from fedvad.detectors.memory.site import FedDyMemConfig
from fedvad.detectors.registry import list_detectors
from fedvad.errors import ConfigError

if TYPE_CHECKING:
    from fedvad.runs.method import Method
    from fedvad.runs.run import Run


class Family(NamedTuple):
    """Methods whose sites exchange the same kind of thing.

    method, run: where its `Method` and its `Run` are, as MODULE:CLASS of this folder. kind: what
    the file of such a run says it is. sends: what travels, in words. preset: options of `train`
    that its methods set unless given.
    """

    method: str
    run: str
    kind: str
    sends: str
    preset: dict[str, Any] = {}  # noqa: RUF012  # never written to


# By the family that a detector is registered with. Files of every earlier version must load: a new
# form of run gets a new kind and a line of its own.
FAMILIES = {
    "memory": Family("method_memory:MemoryMethod", "memory_run:TrainedRun", "run", "patch vectors"),
    "student": Family(
        "method_student:StudentMethod", "student_run:StudentRun", "student run",
        "the weights of a small network", {"rounds": 5},
    ),
    "sums": Family(
        "method_sums:SumsMethod", "sums_run:SumsRun", "sums run", "sums over images",
        {"rounds": 3, "threshold_rule": "own"},
    ),
}  # fmt: skip

# what single methods set besides; DETECTOR-WORD is a method that trains this detector
_PRESETS: dict[str, dict[str, Any]] = {
    "feddymem-trained": {"train_generator": True, "update": "ema", "merge": "kmeans"},
    "feddymem-cluster": {"reduce": "cluster", "update": "ema", "merge": "kmeans"},
    "feddymem-position": {"reduce": "position", "update": "ema", "merge": "kmeans"},
    "patchcore": {
        "rounds": 1,
        "merge": "kcenter",
        "memory_rows": 2000,
        "candidates": FedDyMemConfig.candidates,
    },
}

_MADE = {
    method: (family, detector)
    for family in FAMILIES
    for detector in list_detectors(family=family)
    for method in (detector, *(name for name in _PRESETS if name.startswith(f"{detector}-")))
}
DEFAULT_METHOD = "feddymem"
# What `--method` means: defaults that a file or a flag may still change.
METHODS = {
    method: FAMILIES[family].preset | _PRESETS.get(method, {})
    for method, (family, _) in _MADE.items()
}


def family_of(method: object) -> str:
    """The family of a method that `--method` takes; raises `ConfigError` for any other."""
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
    return _MADE[method][0]


def detector_of(method: str) -> str:
    """The registered detector that a method makes."""
    return _MADE[method][1]


def method_class(method: object) -> type[Method]:
    """The class of a method that `--method` takes; imported when first asked for."""
    return cast("type[Method]", _found(FAMILIES[family_of(method)].method))


def run_class(kind: object) -> type[Run] | None:
    """The class that reads and writes the file of a run of this kind; None for an unknown kind."""
    where = next((family.run for family in FAMILIES.values() if family.kind == kind), None)
    return None if where is None else cast("type[Run]", _found(where))


def _found(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(f"{__package__}.{module}"), name)
