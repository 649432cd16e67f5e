"""The loss curve of a distillation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedvad.report.overlay import plot_png

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
