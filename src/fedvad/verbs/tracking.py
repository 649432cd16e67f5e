"""A finished run's figures for an experiment tracker: MLflow or TensorBoard, each its own extra.

What is reported comes from the files of the run folder, which hold all of it in any case.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, cast

from fedvad.data.sealed import read_sealed
from fedvad.errors import ConfigError, StorageError, check_choice
from fedvad.runs.run_folder import CONFIG_FILE, read_ledger, read_results

Tracker = Literal["mlflow", "tensorboard"]
_LONGEST_VALUE = 500  # characters of a parameter in MLflow


def check_tracker(name: str) -> Tracker:
    """The tracker of that name; raises `ConfigError` when it is unknown or not installed.

    To be called before a training, so that hours of work do not end in a missing package.
    """
    check_choice("tracker", name, Tracker)
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"--track {name} needs its package: pip install 'fedvad[track]'")
    return cast(Tracker, name)


def track(run: Path, tracker: Tracker) -> str:
    """Write a run folder's configuration, rounds and results to a tracker; returns where.

    TensorBoard: events in RUN/tensorboard. MLflow: the server of MLFLOW_TRACKING_URI, else a
    database in RUN/mlflow. Raises `StorageError` when the tracker cannot be written to.
    """
    config = read_sealed(run / CONFIG_FILE, editable=True)
    results = read_results(run)
    rounds = [
        (entry.round, dict(_numbers(entry.model_dump(), "round")))
        for entry in read_ledger(run).rounds
    ]
    write = {"tensorboard": _tensorboard, "mlflow": _mlflow}[tracker]
    try:
        return write(run, config, rounds, dict(_numbers(results.to_dict(), "")))
    # trackers raise what their transports and databases raise
    except Exception as error:
        raise StorageError(
            f"the run in {run} is complete, but {tracker} could not be reached: {error}"
        ) from error


def _numbers(values: object, name: str) -> Iterator[tuple[str, float]]:
    """Every finite number under its path, such as "image_auroc/mean"."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _numbers(value, f"{name}/{key}" if name else str(key))
    elif isinstance(values, int | float) and not isinstance(values, bool) and math.isfinite(values):
        yield name, float(values)


_Rounds = list[tuple[int, dict[str, float]]]


def _tensorboard(
    run: Path, config: Mapping[str, object], rounds: _Rounds, results: dict[str, float]
) -> str:
    from torch.utils.tensorboard import SummaryWriter

    folder = run / "tensorboard"
    with SummaryWriter(str(folder)) as writer:
        text = "\n".join(f"    {key} = {value}" for key, value in config.items())
        writer.add_text("config", text)
        for step, numbers in rounds:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)
        for name, value in results.items():
            writer.add_scalar(name, value, len(rounds))
    return str(folder)


def _mlflow(
    run: Path, config: Mapping[str, object], rounds: _Rounds, results: dict[str, float]
) -> str:
    import mlflow

    where = os.environ.get("MLFLOW_TRACKING_URI")
    if not where:
        (run / "mlflow").mkdir(exist_ok=True)
        where = f"sqlite:///{(run / 'mlflow' / 'mlflow.db').resolve()}"
    client = mlflow.MlflowClient(where)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fedvad")
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    created = client.create_run(experiment, run_name=run.resolve().name)
    for key, value in config.items():
        client.log_param(created.info.run_id, key, str(value)[:_LONGEST_VALUE])
    for step, numbers in rounds:
        for key, value in numbers.items():
            client.log_metric(created.info.run_id, _allowed(key), value, step=step)
    for key, value in results.items():
        client.log_metric(created.info.run_id, _allowed(key), value, step=len(rounds))
    client.set_terminated(created.info.run_id)
    return where


def _allowed(name: str) -> str:
    """Only letters, digits and a few signs may be in a name; sites are called what they like."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-. /") else "_" for c in name)
