"""What a finished run leaves for people and scripts: results, tables, pictures."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedvad.data.files import write_atomically
from fedvad.evaluation.sites import SiteResult, gains, summarise, told_threshold
from fedvad.federation.ledger import Ledger
from fedvad.pipeline.config import TrainConfig
from fedvad.pipeline.fitted import Fitted
from fedvad.pipeline.plan import privacy
from fedvad.pipeline.report import keep_record, report
from fedvad.pipeline.run_folder import RESULTS_FILE, write_json, write_ledger
from fedvad.report.contact_sheet import contact_sheet
from fedvad.report.panels import Panel
from fedvad.report.tables import (
    own_normals_table,
    results_table,
    sites_table,
    to_markdown,
    verdict,
    write_csv,
)

__all__ = ["panels", "write_outputs"]

log = logging.getLogger(__name__)

_HEADINGS = {
    "method": "By method",
    "site": "By site",
    "own normals": "Each site's own unseen normals",
}


def write_outputs(
    out: Path,
    config: TrainConfig,
    fitted: Fitted,
    results: Sequence[SiteResult],
    comparisons: Mapping[str, Sequence[SiteResult]],
    ledger: Ledger,
    data: Mapping[str, Any],
) -> dict[str, Any]:
    """Write ledger, results, tables, contact sheet and the HTML report; returns the results.

    data: what was read of the data folder, see `DataReading.to_json`.
    """
    run, own_normals = fitted.run, fitted.own_normals

    def summary_of(site_results: Sequence[SiteResult]) -> dict[str, Any]:
        return summarise(site_results, target_fpr=config.target_fpr)

    summary = summary_of(results)
    summary["compare"] = {name: summary_of(other) for name, other in comparisons.items()}
    summary["gain"] = {
        name: gains(results, other, seed=config.seed) for name, other in comparisons.items()
    }
    for name in run.sites:  # a site without test images has a threshold all the same
        limit = run.threshold(name)
        if name not in summary["threshold"]["sites"] and limit is not None:
            summary["threshold"]["sites"][name] = told_threshold(limit)
    summary["own_normals"] = dict(own_normals)
    summary["method"] = run.method
    summary["backbone"] = run.features.backbone
    summary["seed"] = config.seed
    summary["training_images"] = dict(fitted.n_images)
    summary["unreadable"] = [*fitted.unreadable, *(reason for r in results for reason in r.bad)]
    summary["data"] = dict(data)
    summary["ledger"] = ledger.summary()
    summary["privacy"] = privacy(config)
    summary["verdict"] = verdict(summary)
    write_json(out / RESULTS_FILE, summary)
    write_ledger(out, ledger, vouches_for=[RESULTS_FILE])
    tables = {
        "method": results_table(summary, name=run.method),
        "site": sites_table(summary, name=run.method),
    }
    if own_normals:
        tables["own normals"] = own_normals_table(summary)
    for name, rows in tables.items():
        write_csv(rows, out / "tables" / f"{name.replace(' ', '-')}.csv")
    text = "\n".join(
        [f"# {run.method} on {len(run.sites)} sites", "", summary["verdict"], ""]
        + [f"## {_HEADINGS[name]}\n\n{to_markdown(rows)}\n" for name, rows in tables.items()]
    )
    write_atomically(out / "tables" / "results.md", text.encode())
    if any(len(r.test) for r in results):
        contact_sheet(
            panels(results),
            out / "heatmaps.png",
            title=_title(summary),
            image_size=run.features.view,
        )
    _write_report(out, results, comparisons)
    return summary


def _write_report(
    out: Path,
    results: Sequence[SiteResult],
    comparisons: Mapping[str, Sequence[SiteResult]],
) -> None:
    try:
        keep_record(out, results, comparisons, panels(results))
        report(out)
    # whatever goes wrong: hours of training are worth more than a page about them
    except Exception as error:
        log.warning(
            "the training is complete, but its report could not be written: %s; try again with "
            "`fedvad report %s`", str(error) or type(error).__name__, out,
        )  # fmt: skip


def _title(summary: Mapping[str, Any]) -> str:
    mean = summary["image_auroc"]["mean"]
    alone = summary["compare"].get("local", {}).get("image_auroc", {}).get("mean")
    title = f"{summary['method']}, {len(summary['training_images'])} sites"
    if mean is not None:
        title += f": image AUROC {mean:.3f}"
    if alone is not None:
        title += f" (each site alone {alone:.3f})"
    return title


def panels(results: Sequence[SiteResult]) -> list[Panel]:
    """Every scored test image as a panel."""
    return [
        Panel(
            site=result.name,
            path=item.path,
            defect=item.defect,
            label=item.label,
            score=float(score),
            threshold=None if result.threshold is None else result.threshold.value,
            map=map_,
            mask=item.mask,
            other_masks=item.other_masks,
        )
        for result in results
        for item, score, map_ in zip(result.test, result.scores, result.maps, strict=True)
    ]
