"""The page of curves between the weights of trained students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedvad._version import __version__
from fedvad.report.html.templates import filled, in_base64
from fedvad.report.overlay import plot_png

Curves = Sequence[Mapping[str, Any]]


def render_connectivity(curves: Curves) -> bytes:
    """One HTML file with a plot of loss and AUROC, and a table; no network."""
    return filled(
        "connectivity",
        rows=connectivity_rows(curves),
        plot=in_base64(_plot(curves)),
        version=__version__,
    )


def connectivity_rows(curves: Curves) -> list[list[str]]:
    """Ends and extremes of each curve."""
    rows = [["runs", "loss at the ends", "highest loss", "barrier", "AUROC at the ends", "lowest"]]
    for curve in curves:
        loss, known = curve["loss"], [x for x in curve["auroc"] if x is not None]
        ends = f"{known[0]:.4f}, {known[-1]:.4f}" if known else "–"
        rows.append(
            [
                curve["name"],
                f"{loss[0]:.4f}, {loss[-1]:.4f}",
                f"{max(loss):.4f}",
                f"{curve['barrier']:.4f}",
                ends,
                f"{min(known):.4f}" if known else "–",
            ]
        )
    return rows


def _plot(curves: Curves) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.5), layout="constrained")
    axes = figure.subplots(1, 2)
    kinds = (("loss", "loss of normal images"), ("auroc", "image AUROC"))
    for axis, (key, label) in zip(axes, kinds, strict=True):
        for curve in curves:
            values = [float("nan") if value is None else value for value in curve[key]]
            axis.plot(curve["at"], values, marker="o", markersize=3, label=curve["name"])
        axis.set(xlabel="share of the second run in the weights", ylabel=label, title=label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    return plot_png(figure)
