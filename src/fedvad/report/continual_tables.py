"""Tables of methods that learned a stream of tasks: quality, forgetting, bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedvad.report.bench_tables import size
from fedvad.report.tables import spread, to_markdown

Rows = list[list[str]]
_FIGURES = {
    "image_auroc": "image AUROC",
    "image_f1": "image F1 (oracle)",
    "pixel_auroc": "pixel AUROC",
    "pixel_f1": "pixel F1 (oracle)",
    "pixel_ap": "pixel PR-AUC",
    "aupro": "AUPRO",
    "pooled_image_auroc": "image AUROC, all tasks under one threshold",
}
_FORGETTING = {
    "relative": "relative",
    "relative_all": "relative, counting models from before the task",
    "absolute": "absolute",
    "backward": "backward transfer",
}


def continual_rows(summary: Mapping[str, Any]) -> Rows:
    """Per method: figures at the end as the mean over tasks, bytes, and relative forgetting."""
    header = ["method", *_FIGURES.values(), "networks MB", "memory MB", "avg forgetting, pixel F1"]
    rows = [[*header, "avg forgetting, image AUROC", "training s"]]
    for name, method in summary["methods"].items():
        costs, lost = method["costs"], method["forgetting"]
        rows.append(
            [
                name,
                *(spread(method["figures"].get(figure)) for figure in _FIGURES),
                f"{costs['parameters'] / 1e6:.2f}",
                f"{costs['peak'] / 1e6:.2f}",
                spread(lost.get("pixel_f1", {}).get("relative")),
                spread(lost.get("image_auroc", {}).get("relative")),
                spread(method["seconds"], ".0f"),
            ]
        )
    return rows


def brief_rows(summary: Mapping[str, Any]) -> Rows:
    """Per method, what fits a terminal."""
    rows = [["method", "image AUROC", "pixel F1", "networks MB", "memory MB", "forgetting"]]
    for name, method in summary["methods"].items():
        costs, figures = method["costs"], method["figures"]
        rows.append(
            [
                name,
                spread(figures.get("image_auroc")),
                spread(figures.get("pixel_f1")),
                f"{costs['parameters'] / 1e6:.2f}",
                f"{costs['peak'] / 1e6:.2f}",
                spread(method["forgetting"].get("image_auroc", {}).get("relative")),
            ]
        )
    return rows


def forgetting_rows(summary: Mapping[str, Any], figure: str) -> Rows:
    """Per method: every way to say how much of a figure was lost."""
    rows = [["method", *_FORGETTING.values()]]
    for name, method in summary["methods"].items():
        lost = method["forgetting"].get(figure)
        if lost:
            rows.append([name, *(spread(lost.get(kind)) for kind in _FORGETTING)])
    return rows if len(rows) > 1 else []


def memory_rows(summary: Mapping[str, Any]) -> Rows:
    """Per method: every byte kept, by what it is for."""
    header = ["method", "parameters", "buffers", "memory of the past, at most", "of it, codec"]
    rows = [[*header, "optimiser, carried", "MACs per image"]]
    for name, method in summary["methods"].items():
        costs = method["costs"]
        kept = [costs[k] for k in ("parameters", "buffers", "peak", "learned", "optimiser")]
        rows.append(
            [
                name,
                *(f"{n} ({size(n)}, {n / 2**20:.2f} MiB)" if n else "0" for n in kept),
                f"{costs['macs'] / 1e6:.0f} M",
            ]
        )
    return rows


def selection(summary: Mapping[str, Any]) -> list[tuple[float, str]]:
    """Share of the features trained on, and the method, where methods differ in that share."""
    found = [
        (method["top_features"], name)
        for name, method in summary["methods"].items()
        if method["strategy"] == "naive"
    ]
    return sorted(found) if len({share for share, _ in found}) > 1 else []


def selection_rows(summary: Mapping[str, Any]) -> Rows:
    """F1 by share of the features trained on; empty where nothing was selected."""
    rows = [["p", "method", "image F1 (oracle)", "pixel F1 (oracle)", "image AUROC"]]
    for share, name in selection(summary):
        figures = summary["methods"][name]["figures"]
        known = (spread(figures.get(key)) for key in ("image_f1", "pixel_f1", "image_auroc"))
        rows.append([f"{share:.1%}", name, *known])
    return rows if len(rows) > 1 else []


def overlap_rows(summary: Mapping[str, Any]) -> Rows:
    """Overlap of important features by pair of tasks; empty without an analysis."""
    found = summary["analysis"]
    if found is None:
        return []
    return [["tasks", "overlap"], *([f"{a}, {b}", f"{x:.2f}"] for a, b, x in found["overlaps"])]


def continual_markdown(summary: Mapping[str, Any]) -> str:
    """All tables, with what they mean."""
    seeds, tasks = summary["seeds"], summary["tasks"]
    parts = [
        f"# {summary['title'] or summary['stream']}\n\n",
        f"{len(tasks)} tasks ({', '.join(tasks)}; order {summary['order']}), seeds "
        f"{', '.join(map(str, seeds))}; mean ± standard deviation over seeds. Figures are means "
        "over all tasks after the last one. F1 is the best over all thresholds, so it reads the "
        "test labels. Networks: parameters of everything needed to score. Memory: the most bytes "
        "kept of past tasks, codec included.\n\n",
        to_markdown(continual_rows(summary)),
        "\n## Forgetting\n",
    ]
    for figure, title in _FIGURES.items():
        rows = forgetting_rows(summary, figure)
        if rows and figure in ("image_auroc", "pixel_f1"):
            parts += [f"\n{title}:\n\n", to_markdown(rows)]
    parts += ["\n## Bytes\n\n", to_markdown(memory_rows(summary))]
    parts += ["\n## Image AUROC of each task at the end\n\n", to_markdown(_by_task(summary))]
    if rows := selection_rows(summary):
        parts += ["\n## F1 by share p of the features trained on\n\n", to_markdown(rows)]
    if rows := overlap_rows(summary):
        parts += ["\n## Overlap of the most important features\n\n", to_markdown(rows)]
    for name, reason in summary["failed"].items():
        parts.append(f"\nfailed: {name}: {reason}\n")
    return "".join(parts)


def _by_task(summary: Mapping[str, Any]) -> Rows:
    tasks: Sequence[str] = summary["tasks"]
    return [["method", *tasks]] + [
        [name, *(spread(method["by_task"][task]) for task in tasks)]
        for name, method in summary["methods"].items()
    ]
