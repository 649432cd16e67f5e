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
    from fedvad.api import load, train
    from fedvad.errors import FedvadError
    from fedvad.experiments.bench.run import bench
    from fedvad.experiments.continual.run import run_stream
    from fedvad.experiments.distill.run import distill_backbone
    from fedvad.features.listing import backbones
    from fedvad.runs.typed_options import TrainOptions
    from fedvad.serving.export.package import export
    from fedvad.serving.watch.state import drift_state
    from fedvad.serving.watch.watch import watch
    from fedvad.serving.watch.week import week
    from fedvad.verbs.connectivity import connectivity
    from fedvad.verbs.demo import demo
    from fedvad.verbs.doctor import doctor
    from fedvad.verbs.evaluate import evaluate
    from fedvad.verbs.feedback import (
        feedback,
        list_feedback,
        share_feedback,
        undo_feedback,
    )
    from fedvad.verbs.forget import forget
    from fedvad.verbs.gallery import gallery
    from fedvad.verbs.group import group
    from fedvad.verbs.inspect import inspect
    from fedvad.verbs.plan import plan
    from fedvad.verbs.predict import predict
    from fedvad.verbs.recalibrate import calibrate
    from fedvad.verbs.report import write_report
    from fedvad.verbs.signals import score_signals, train_signals
    from fedvad.verbs.spectral import score_scenes
    from fedvad.verbs.update import undo_update, update

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
    "score_signals",
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

# where a name is, if not in the file of `verbs` that has its name
_HOMES = {
    "api": ("load", "train"),
    "errors": ("FedvadError",),
    "experiments.bench.run": ("bench",),
    "experiments.continual.run": ("run_stream",),
    "experiments.distill.run": ("distill_backbone",),
    "features.listing": ("backbones",),
    "runs.typed_options": ("TrainOptions",),
    "serving.export.package": ("export",),
    "serving.watch.state": ("drift_state",),
    "serving.watch.watch": ("watch",),
    "serving.watch.week": ("week",),
    "verbs.feedback": ("list_feedback", "share_feedback", "undo_feedback"),
    "verbs.recalibrate": ("calibrate",),
    "verbs.report": ("write_report",),
    "verbs.signals": ("score_signals", "train_signals"),
    "verbs.spectral": ("score_scenes",),
    "verbs.update": ("undo_update",),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fedvad' has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), f"verbs.{name}")
    return getattr(import_module(f"fedvad.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
