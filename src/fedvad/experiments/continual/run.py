"""`continual`: every method of a stream with every seed, resumable, then tables and pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fedvad._version import __version__
from fedvad.continual.forgetting import summarise_matrix
from fedvad.data.files import write_atomically
from fedvad.data.folders import Site
from fedvad.data.labels import LabelNames
from fedvad.data.locks import only_one
from fedvad.data.sealed import finite
from fedvad.drawing.demo import write_demo
from fedvad.errors import ConfigError, FedvadError
from fedvad.experiments.continual.cells import FIGURES, CellContext, make_extractor, run_cell
from fedvad.experiments.continual.features import analyse_features
from fedvad.experiments.continual.stream import Method, Stream, load_stream
from fedvad.experiments.store import cell_path
from fedvad.report.continual_tables import continual_markdown, continual_rows
from fedvad.report.html.continual import render_continual
from fedvad.report.plots import plot_continual, plot_features
from fedvad.report.tables import write_csv
from fedvad.runs.arguments import AnyCache, AnyPath, by_backbone, cache_at, maybe
from fedvad.runs.config import as_path
from fedvad.runs.data import load_set
from fedvad.runs.guards import guard_plain_folder
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.runs.run_folder import write_json

__all__ = ["run_stream"]

log = logging.getLogger(__name__)
_DEMO = "demo"


def run_stream(
    stream: AnyPath | Stream,
    out: AnyPath,
    *,
    data: AnyPath | None = None,
    weights: Mapping[str, AnyPath] | None = None,
    cache: AnyCache | None = None,
    seeds: Iterable[int] | None = None,
    methods: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`fedvad continual`: learn the tasks of a stream one by one, and report what is forgotten.

    Each method and seed is checkpointed after every task, in `out`/cells. Methods that fail are
    named in the summary; the others continue. Tasks `demo/NAME` are drawn where `data` is None.

    Parameters
    ----------
    stream : str, path or Stream
        Shipped name, TOML file, or what `load_stream` read.
    out : path
        Folder; what is finished in it is not computed again.
    weights : mapping of str to path, optional
        A file by backbone name.
    data, cache, seeds, methods, progress
        As those of `bench`.

    Returns
    -------
    dict
        The summary, as it is written into `out`.

    Raises
    ------
    ConfigError, DataError, StorageError
        See `fedvad.errors`.

    Examples
    --------
    Some minutes:

    >>> import fedvad
    >>> summary = fedvad.run_stream("edge", "stream", data="DATA")  # doctest: +SKIP
    """
    progress = progress or no_progress
    chosen = stream if isinstance(stream, Stream) else load_stream(stream)
    chosen = chosen.only(seeds=seeds, methods=methods)
    out, data, files = as_path(out, "out"), maybe(data, "data"), by_backbone(weights)
    cache = cache_at(cache)
    guard_plain_folder(out, "--out", [] if data is None else [data])
    with only_one(out):
        sites = _sites(chosen, data, out)
        records: dict[str, dict[int, dict[str, Any]]] = {}
        failed: dict[str, str] = {}
        cells = [(method, seed) for seed in chosen.seeds for method in chosen.methods]
        stage = Stage(progress, "tasks", sum(_tasks(method, chosen) for method, _ in cells))
        for method, seed in cells:
            where = CellContext(cell_path(out / "cells", method.name, seed), files, cache)
            order = [sites[task.name] for task in chosen.ordered(seed)]
            try:
                records.setdefault(method.name, {})[seed] = run_cell(
                    method, order, seed, where, stage
                )
            except FedvadError as error:
                log.warning("%s, seed %d failed: %s", method.name, seed, error)
                failed[f"{method.name} / {seed}"] = str(error)
        if not any(records.values()):
            raise ConfigError(
                f"stream {chosen.name}: nothing could be run ({next(iter(failed.values()))})"
            )
        methods = {m.name: m for m in chosen.methods}
        summary = {
            "stream": chosen.name,
            "title": chosen.title,
            "version": __version__,
            "tasks": [task.name for task in chosen.tasks],
            "seeds": list(chosen.seeds),
            "order": chosen.order,
            "methods": {
                name: _summarised(methods[name], found, chosen)
                for name, found in records.items()
                if found
            },
            "failed": failed,
            "analysis": None,
        }
        if chosen.analysis is not None:
            where = CellContext(out / "cells", files, cache)
            extractor = make_extractor(chosen.methods[0], where)
            order = [sites[task.name] for task in chosen.tasks]
            summary["analysis"] = analyse_features(
                order, extractor, chosen.analysis, seed=chosen.seeds[0]
            )
        _write(out, summary)
        return summary


def _summarised(
    method: Method, records: Mapping[int, Mapping[str, Any]], stream: Stream
) -> dict[str, Any]:
    """Final figures, forgetting and bytes of a method, as mean and spread over its seeds."""
    finals: dict[str, list[float]] = {}
    forgetting: dict[str, dict[str, list[float]]] = {}
    matrices: dict[str, list[Any]] = {}
    curves: dict[str, list[Any]] = {}
    for seed, record in records.items():
        order = [task.name for task in stream.ordered(seed)]
        last = record["rows"][-1]
        for figure in FIGURES:
            known = [last[name][figure] for name in order if last[name][figure] is not None]
            if known:
                finals.setdefault(figure, []).append(float(np.mean(known)))
            matrix = _matrix(record["rows"], order, figure)
            if matrix is None or not np.isfinite(matrix).any():
                continue
            found = asdict(summarise_matrix(matrix))
            curves.setdefault(figure, []).append(found.pop("curve"))
            found.pop("average")
            matrices.setdefault(figure, []).append(finite(np.round(matrix, 5).tolist()))
            for name, value in found.items():
                if value is not None and len(record["rows"]) > 1:
                    forgetting.setdefault(figure, {}).setdefault(name, []).append(value)
        for name, value in (record["pooled"][-1] or {}).items():
            finals.setdefault(f"pooled_{name}", []).append(value)
    costs = [record["costs"][-1] for record in records.values()]
    seconds = [sum(entry["seconds"] for entry in r["logs"]) for r in records.values()]
    return {
        "detector": method.detector,
        "strategy": "bank" if method.is_bank else method.strategy,
        "backbone": method.features.backbone,
        "top_features": method.top_features,
        "figures": {name: _spread(values) for name, values in finals.items()},
        "forgetting": {
            figure: {name: _spread(values) for name, values in found.items()}
            for figure, found in forgetting.items()
        },
        "matrices": matrices,
        "curves": curves,
        "costs": {name: max(cost[name] for cost in costs) for name in costs[0]},
        "seconds": _spread(seconds),
        "by_task": {
            name: _spread([r["rows"][-1][name]["image_auroc"] for r in records.values()])
            for name in (task.name for task in stream.tasks)
        },
    }


def _matrix(
    rows: Sequence[Mapping[str, Any]], order: Sequence[str], figure: str
) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """R[t, j]; a joint learner has a last row only."""
    tasks = [name for name in order if rows[-1][name][figure] is not None]
    if not tasks:
        return None
    matrix = np.full((len(order), len(order)), np.nan)
    for t, row in zip(range(len(order))[-len(rows) :], rows, strict=True):
        for j, name in enumerate(order):
            if name in row and row[name][figure] is not None:
                matrix[t, j] = row[name][figure]
    return matrix


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    known = [v for v in values if v is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "n": len(known),
    }


def _sites(stream: Stream, data: Path | None, out: Path) -> dict[str, Site]:
    drawn = all(task.path.startswith(f"{_DEMO}/") for task in stream.tasks)
    if data is None and not drawn:
        raise ConfigError(f"stream {stream.name} needs --data, the folder that holds its sets")
    if data is None:
        data = out / "data"
        if not (data / _DEMO / ".done").is_file():
            write_demo(data / _DEMO, plants=len(stream.tasks), size=128, seed=0)
            (data / _DEMO / ".done").touch()
    missing = [str(data / t.path) for t in stream.tasks if not (data / t.path).is_dir()]
    if missing:
        raise ConfigError(f"no folder {', '.join(missing)}; correct --data or the stream's paths")
    names = LabelNames(stream.good, stream.defect)
    return {task.name: load_set(data / task.path, task.name, names) for task in stream.tasks}


def _tasks(method: Method, stream: Stream) -> int:
    return 1 if method.strategy == "joint" and not method.is_bank else len(stream.tasks)


def _write(out: Path, summary: Mapping[str, Any]) -> None:
    write_json(out / "continual.json", dict(summary))
    write_csv(continual_rows(summary), out / "continual.csv")
    write_atomically(out / "continual.md", continual_markdown(summary).encode())
    curves, heat = plot_continual(summary)
    write_atomically(out / "curves.png", curves)
    write_atomically(out / "forgetting.png", heat)
    features = plot_features(summary)
    if features is not None:
        write_atomically(out / "features.png", features)
    write_atomically(out / "report.html", render_continual(summary, curves, heat, features))
