"""From cells to figures: mean and spread over seeds, gains, ranks, and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from fedvad.evaluation.bootstrap import Interval
from fedvad.evaluation.ranking import gain_over, mean_ranks, pareto_front, statement
from fedvad.experiments.bench.suite import Suite

# results by (set, method, seed)
Cells = Mapping[tuple[str, str, int], dict[str, Any]]
_METRICS = ("image_auroc", "average_precision", "pixel_auroc", "aupro")


def summarise_bench(suite: Suite, cells: Cells) -> dict[str, Any]:
    """Everything that tables, plots and `--json` show.

    A method enters a set's table with the seeds that are there; a gain needs the same seeds of
    both methods, a rank needs the method on every set.
    """
    sets: dict[str, Any] = {}
    for item in suite.sets:
        rows = {}
        for method in suite.methods:
            runs = _runs(suite, cells, item.name, method.name)
            if runs:
                rows[method.name] = _row(runs)
        if not rows:
            continue
        points = {
            name: (row["costs"]["bytes_up"], row["image_auroc"]["mean"])
            for name, row in rows.items()
            if row["image_auroc"]["mean"] is not None
        }
        front = pareto_front(points)
        for name, row in rows.items():
            row["pareto"] = name in front
            row["gain"] = {
                other: None if gain is None else asdict(gain)
                for other in suite.baselines
                if other in rows and other != name
                for gain in [_gain(suite, cells, item.name, name, other)]
            }
        sets[item.name] = rows
    return {
        "suite": suite.name,
        "title": suite.title,
        "seeds": list(suite.seeds),
        "sets": sets,
        "ranks": _ranks(sets),
        "statements": _statements(suite, cells, sets),
    }


def _runs(suite: Suite, cells: Cells, set_: str, method: str) -> list[dict[str, Any]]:
    return [cells[k] for seed in suite.seeds if (k := (set_, method, seed)) in cells]


def _row(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"seeds": len(runs)}
    for metric in _METRICS:
        row[metric] = _spread([run[metric]["mean"] for run in runs])
        row[metric]["worst"] = _spread([run[metric]["worst"] for run in runs])["mean"]
        row[metric]["lowest"] = min(
            (run[metric]["worst"] for run in runs if run[metric]["worst"] is not None), default=None
        )
    costs = [run["costs"] for run in runs]
    phases = sorted({phase for cost in costs for phase in cost["seconds"]})
    peaks = [c["peak_rss_mb"] for c in costs if c["peak_rss_mb"] is not None]
    row["costs"] = {
        # of the site that sends or fetches most, over the whole run
        "bytes_up": max(max(c["bytes_up"].values()) for c in costs),
        "bytes_down": max(max(c["bytes_down"].values()) for c in costs),
        "rounds": costs[0]["rounds"],
        "memory_rows": max(c["memory_rows"] for c in costs),
        "seconds": {p: float(np.mean([c["seconds"].get(p, 0.0) for c in costs])) for p in phases},
        "ms_per_test_image": float(
            np.mean([1e3 * c["seconds"]["score"] / max(c["test_images"], 1) for c in costs])
        ),
        "peak_rss_mb": max(peaks) if peaks else None,
        "macs_forward": costs[0]["macs_forward"],
        "macs_search": max(c["macs_search"] for c in costs),
    }
    row["convergence"] = _convergence([run["convergence"] or [] for run in runs])
    return row


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    known = [v for v in values if v is not None]
    if not known:
        return {"mean": None, "sd": None, "values": list(values)}
    return {
        "mean": float(np.mean(known)),
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "values": list(values),
    }


def _convergence(curves: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    rounds = sorted({point["round"] for curve in curves for point in curve})
    merged = []
    for round_ in rounds:
        points = [p for curve in curves for p in curve if p["round"] == round_]
        merged.append(
            {
                "round": round_,
                "mean": _spread([p["mean"] for p in points])["mean"],
                "worst": _spread([p["worst"] for p in points])["mean"],
            }
        )
    return merged


def _gain(suite: Suite, cells: Cells, set_: str, method: str, other: str) -> Interval | None:
    shared = [
        seed
        for seed in suite.seeds
        if (set_, method, seed) in cells and (set_, other, seed) in cells
    ]
    if not shared:
        return None
    return gain_over(
        [cells[set_, method, seed]["scores"] for seed in shared],
        [cells[set_, other, seed]["scores"] for seed in shared],
    )


def _ranks(sets: Mapping[str, Any]) -> dict[str, float]:
    values: dict[str, dict[str, float]] = {}
    for set_, rows in sets.items():
        for name, row in rows.items():
            if row["image_auroc"]["mean"] is not None:
                values.setdefault(name, {})[set_] = row["image_auroc"]["mean"]
    complete = {name: v for name, v in values.items() if len(v) == len(sets)}
    return mean_ranks(complete)


def _statements(suite: Suite, cells: Cells, sets: Mapping[str, Any]) -> list[str]:
    first = suite.methods[0].name
    sentences = []
    for method in suite.methods[1:]:
        shared = [name for name, rows in sets.items() if first in rows and method.name in rows]
        if shared:
            gains = {name: _gain(suite, cells, name, first, method.name) for name in shared}
            sentences.append(statement(first, method.name, gains))
    return sentences
