"""Plots of benches, streams of tasks and distillations, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedvad.data.files import write_atomically
from fedvad.report.continual_tables import selection
from fedvad.report.overlay import plot_png

_NOTHING = 1e3  # bytes at which a method that sends none is drawn on the logarithmic axis


def plot_bench(summary: Mapping[str, Any], path: Path) -> None:
    """Write a PNG with one row of three panels per set; raises `StorageError`."""
    from matplotlib.figure import Figure

    sets = summary["sets"]
    methods = list(dict.fromkeys(name for rows in sets.values() for name in rows))
    colours = {name: f"C{i % 10}" for i, name in enumerate(methods)}
    markers = {name: "osD^vP*X<>"[(i // 10) % 10] for i, name in enumerate(methods)}
    figure = Figure(figsize=(15, 4.2 * len(sets) + 0.3 * len(methods) / 4), layout="constrained")
    axes = figure.subplots(len(sets), 3, squeeze=False)
    for (name, rows), line in zip(sets.items(), axes, strict=True):
        known = {m: r for m, r in rows.items() if r["image_auroc"]["mean"] is not None}
        for method, row in known.items():
            style = {"color": colours[method], "marker": markers[method]}
            quality = row["image_auroc"]
            line[0].errorbar(
                max(row["costs"]["bytes_up"], _NOTHING),
                quality["mean"],
                yerr=quality["sd"] or 0,
                linestyle="none",
                label=method,
                **style,
            )
            curve = [p for p in row["convergence"] if p["mean"] is not None]
            if curve:
                line[1].plot([p["round"] for p in curve], [p["mean"] for p in curve], **style)
        order = sorted(known, key=lambda m: known[m]["image_auroc"]["worst"])
        line[2].barh(
            order,
            [known[m]["image_auroc"]["worst"] for m in order],
            color=[colours[m] for m in order],
        )
        if known:
            low = min(r["image_auroc"]["worst"] for r in known.values())
            line[2].set_xlim(max(0.0, low - 0.1), 1.0)
        line[0].set(
            xscale="log",
            xlabel="bytes up per site, whole run (none: at the left)",
            ylabel="image AUROC, mean over sites",
            title=f"{name}: quality against traffic",
        )
        line[1].set(xlabel="round", ylabel="image AUROC, mean over sites", title="convergence")
        line[1].xaxis.get_major_locator().set_params(integer=True)
        line[2].set(xlabel="image AUROC of the worst site", title="worst site")
        line[2].tick_params(axis="y", labelsize=8)
        for axis in line:
            axis.grid(alpha=0.3)
    handles: dict[str, Any] = {}
    for line in axes:
        for handle, label in zip(*line[0].get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8
        )
    write_atomically(path, plot_png(figure))


_ACROSS = 4


def plot_continual(summary: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Two PNG pictures: learning curves of all methods, and a heat-map R[t, j] of each."""
    return _curves(summary), _heat_maps(summary)


def _curves(summary: Mapping[str, Any]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.5), layout="constrained")
    axes = figure.subplots(1, 2)
    kinds = (("image_auroc", "image AUROC"), ("pixel_f1", "pixel F1 (oracle)"))
    for axis, (key, label) in zip(axes, kinds, strict=True):
        for i, (name, method) in enumerate(summary["methods"].items()):
            curves = np.array(method["curves"].get(key, []), dtype=float)
            if not curves.size:
                continue
            steps = np.arange(1, curves.shape[1] + 1)
            with np.errstate(invalid="ignore"):
                known = np.isfinite(curves).all(0)
            mean = curves.mean(0)
            style = {"color": f"C{i % 10}", "marker": "osD^vP*X<>"[(i // 10 + i) % 10]}
            axis.plot(steps[known], mean[known], label=name, **style)
        axis.set(xlabel="tasks learned", ylabel=f"{label}, mean of the tasks seen", title=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    return plot_png(figure)


def _heat_maps(summary: Mapping[str, Any]) -> bytes:
    from matplotlib.figure import Figure

    methods = {n: m for n, m in summary["methods"].items() if m["matrices"].get("image_auroc")}
    across = max(1, min(_ACROSS, len(methods)))
    down = max(1, -(-len(methods) // across))
    figure = Figure(figsize=(4.2 * across, 4.0 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    tasks = summary["tasks"] if summary["order"] == "given" else None
    for axis in axes[len(methods) :]:
        axis.set_axis_off()
    drawn = None
    for axis, (name, method) in zip(axes, methods.items(), strict=False):
        matrix = np.array(method["matrices"]["image_auroc"], dtype=float).mean(0)
        drawn = axis.imshow(matrix, vmin=0.5, vmax=1.0, cmap="viridis")
        for t, j in zip(*np.nonzero(np.isfinite(matrix)), strict=True):
            dark = matrix[t, j] < 0.8
            axis.text(
                j, t, f"{matrix[t, j]:.2f}", ha="center", va="center", fontsize=7,
                color="white" if dark else "black",
            )  # fmt: skip
        places = range(len(matrix))
        axis.set(title=name, ylabel="after learning", xticks=places, yticks=places)
        labels = [str(i + 1) for i in places] if tasks is None else tasks
        axis.set_xticklabels(labels, rotation=45, ha="right", fontsize=7)
        axis.set_yticklabels(labels, fontsize=7)
    if drawn is not None:
        figure.colorbar(drawn, ax=axes.tolist(), shrink=0.6, label="image AUROC")
    return plot_png(figure)


def plot_features(summary: Mapping[str, Any]) -> bytes | None:
    """PNG of the tasks in the plane of their important features, and of F1 by the share of the
    features trained on; None where there is neither.
    """
    from matplotlib.figure import Figure

    analysis, chosen = summary["analysis"], selection(summary)
    if analysis is None and not chosen:
        return None
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    if analysis is None:
        left.set_axis_off()
    else:
        for name, points in analysis["points"].items():
            left.scatter(*np.array(points).T, s=12, label=name)
        title = f"t-SNE of the {analysis['features']} most important features, one point an image"
        left.set(title=title, xticks=[], yticks=[])
        left.legend(fontsize="small")
    if not chosen:
        right.set_axis_off()
        return plot_png(figure)
    shares = [100 * share for share, _ in chosen]
    for key, label in (("image_f1", "image F1 (oracle)"), ("pixel_f1", "pixel F1 (oracle)")):
        known = [summary["methods"][name]["figures"].get(key) or {} for _, name in chosen]
        if all(value.get("mean") is not None for value in known):
            means, spreads = ([value[k] or 0 for value in known] for k in ("mean", "sd"))
            right.errorbar(shares, means, spreads, marker="o", capsize=3, label=label)
    right.set(xscale="log", xlabel="p, % of the features trained on", ylabel="mean of all tasks")
    right.set_title("F1 by share of features")
    right.grid(alpha=0.3)
    right.legend(fontsize="small")
    return plot_png(figure)


_POINTS = 300


def plot_losses(rows: Sequence[Sequence[float]], columns: Sequence[str]) -> bytes:
    """A PNG of loss and terms over all steps, averaged to at most 300 points; stages are marked.

    rows: one per step, by `columns`, which begin with stage and step.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    values = np.array(rows, dtype=np.float64)
    stages = values[:, 0]
    parts = np.array_split(np.arange(len(values)), min(_POINTS, len(values)))
    steps = [float(part.mean()) + 1 for part in parts]
    for name in ("loss", "masked", "plain", "semantic"):
        column = values[:, list(columns).index(name)]
        width = 2.0 if name == "loss" else 1.0
        axis.plot(steps, [column[part].mean() for part in parts], label=name, linewidth=width)
    for start in np.flatnonzero(np.diff(stages)) + 1:
        axis.axvline(float(start) + 0.5, color="grey", linestyle=":")
    axis.set(xlabel="step", ylabel="mean over steps", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend()
    return plot_png(figure)
