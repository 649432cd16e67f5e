"""fedvad: federated, memory-efficient visual anomaly detection.

The verbs are those of the command line; `write_report`, `run_stream` and `distill_backbone` stand
for its `report`, `continual` and `distill`, whose names are those of packages here. They are
imported on first use, so that `import fedvad` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedvad._version import __version__

if TYPE_CHECKING:
    from fedvad.api import (
        TrainOptions,
        backbones,
        bench,
        calibrate,
        connectivity,
        demo,
        distill_backbone,
        doctor,
        drift_state,
        evaluate,
        export,
        feedback,
        forget,
        gallery,
        group,
        inspect,
        list_feedback,
        load,
        plan,
        predict,
        run_stream,
        score_scenes,
        share_feedback,
        train,
        train_signals,
        undo_feedback,
        undo_update,
        update,
        watch,
        week,
        write_report,
    )
    from fedvad.errors import FedvadError

__all__ = [
    "FedvadError",
    "TrainOptions",
    "__version__",
    "backbones",
    "bench",
    "calibrate",
    "connectivity",
    "demo",
    "distill_backbone",
    "doctor",
    "drift_state",
    "evaluate",
    "export",
    "feedback",
    "forget",
    "gallery",
    "group",
    "inspect",
    "list_feedback",
    "load",
    "plan",
    "predict",
    "run_stream",
    "score_scenes",
    "share_feedback",
    "train",
    "train_signals",
    "undo_feedback",
    "undo_update",
    "update",
    "watch",
    "week",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "FedvadError":
        return import_module("fedvad.errors").FedvadError
    if name in __all__:
        return getattr(import_module("fedvad.api"), name)
    raise AttributeError(f"module 'fedvad' has no attribute {name!r}")
