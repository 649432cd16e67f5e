"""The self-contained page of a stream of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedvad.report.continual_tables import (
    continual_rows,
    forgetting_rows,
    memory_rows,
    overlap_rows,
    selection_rows,
)
from fedvad.report.html.templates import filled, in_base64
from fedvad.report.tables import spread


def render_continual(
    summary: Mapping[str, Any], curves: bytes, heat: bytes, features: bytes | None = None
) -> bytes:
    """One HTML file with tables and all PNG pictures inside; no network."""
    return filled(
        "continual",
        summary=summary,
        verdict=_verdict(summary),
        methods=continual_rows(summary),
        forgetting={
            "image AUROC": forgetting_rows(summary, "image_auroc"),
            "pixel F1 (oracle)": forgetting_rows(summary, "pixel_f1"),
        },
        memory=memory_rows(summary),
        curves=in_base64(curves),
        heat=in_base64(heat),
        features=None if features is None else in_base64(features),
        selection=selection_rows(summary),
        overlaps=overlap_rows(summary),
    )


def _verdict(summary: Mapping[str, Any]) -> str:
    """The method with the highest final mean image AUROC, and what it keeps of the past."""
    figures = {
        name: method["figures"]["image_auroc"]
        for name, method in summary["methods"].items()
        if method["figures"].get("image_auroc", {}).get("mean") is not None
        and method["strategy"] not in ("joint", "single")
    }
    if not figures:
        return (
            "No method here learns one task after another with one detector and has test images "
            "of both kinds."
        )
    best = max(figures, key=lambda name: figures[name]["mean"])
    kept = summary["methods"][best]["costs"]["peak"] / 1e6
    return (
        f"After {len(summary['tasks'])} tasks {best} has the highest mean image AUROC, "
        f"{spread(figures[best])}, and keeps {kept:.2f} MB of the past."
    )
