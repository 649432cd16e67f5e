"""Plots of a bench: AUROC against bytes, convergence by round, worst site."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedvad.data.files import write_atomically
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
