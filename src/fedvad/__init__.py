"""fedvad: federated, memory-efficient visual anomaly detection.

The verbs are `train`, `evaluate`, `predict`, `export`, `inspect`, `bench` and `demo`, as on the
command line, and `write_report` for its `report`, whose name is that of a package here. They are
imported on first use, so that `import fedvad` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedvad._version import __version__

if TYPE_CHECKING:
    from fedvad.api import (
        bench,
        demo,
        evaluate,
        export,
        inspect,
        load,
        predict,
        train,
        write_report,
    )
    from fedvad.errors import FedvadError

__all__ = [
    "FedvadError",
    "__version__",
    "bench",
    "demo",
    "evaluate",
    "export",
    "inspect",
    "load",
    "predict",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "FedvadError":
        return import_module("fedvad.errors").FedvadError
    if name in __all__:
        return getattr(import_module("fedvad.api"), name)
    raise AttributeError(f"module 'fedvad' has no attribute {name!r}")
