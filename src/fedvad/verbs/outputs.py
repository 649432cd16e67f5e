"""What a finished run leaves for people and scripts: results, tables, pictures."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvad.data.files import write_atomically
from fedvad.errors import ArtefactError, ConfigError
from fedvad.evaluation.results import Costs, DataRead, OwnNormals, Privacy, Results
from fedvad.evaluation.sites import SiteResult, figures_of, gains, summarise
from fedvad.federation.ledger import Ledger
from fedvad.report.contact_sheet import contact_sheet
from fedvad.report.panels import Panel
from fedvad.report.results_tables import (
    own_normals_table,
    results_table,
    sites_table,
    tradeoff_table,
)
from fedvad.report.tables import to_markdown, without_empty, write_csv
from fedvad.report.verdict import total, verdict
from fedvad.runs.config import TrainConfig
from fedvad.runs.plan import privacy
from fedvad.runs.run import Run
from fedvad.runs.run_folder import (
    RESULTS_FILE,
    read_config,
    read_ledger,
    read_results,
    write_config,
    write_json,
    write_ledger,
)
from fedvad.runs.tradeoff import tradeoff
from fedvad.verbs.report import keep_record, write_report

log = logging.getLogger(__name__)

_HEADINGS = {
    "method": "By method",
    "site": "By site",
    "rate": "At other false-alarm rates, over all sites",
    "own normals": "Each site's own unseen normals",
}


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained run, with calibration done.

    n_images: by site, normal images that could be read. unreadable: why others could not.
    own_normals: see `Calibration`.
    """

    run: Run
    n_images: Mapping[str, int]
    unreadable: Sequence[str]
    own_normals: Mapping[str, Any] = field(default_factory=dict)


def write_outputs(
    out: Path,
    config: TrainConfig,
    fitted: Fitted,
    results: Sequence[SiteResult],
    comparisons: Mapping[str, Sequence[SiteResult]],
    ledger: Ledger,
    data: DataRead,
) -> Results:
    """Write ledger, results, tables, contact sheet and the HTML report; returns the results.

    data: what was read of the data folder, see `DataReading.to_json`.
    """
    run = fitted.run
    found = _results_of(config, fitted, results, comparisons, ledger, data)
    write_json(out / RESULTS_FILE, found.to_dict())
    write_ledger(out, ledger, vouches_for=[RESULTS_FILE])
    _write_tables(out, found, run.method)
    if any(len(r.test) for r in results):
        contact_sheet(
            panels(results),
            out / "heatmaps.png",
            title=_title(found),
            image_size=run.features.view,
        )
    _write_report(out, results, comparisons)
    return found


def _results_of(
    config: TrainConfig,
    fitted: Fitted,
    results: Sequence[SiteResult],
    comparisons: Mapping[str, Sequence[SiteResult]],
    ledger: Ledger,
    data: DataRead,
) -> Results:
    """The results of a training, verdict included."""
    run = fitted.run
    ours = summarise(results, target_fpr=config.target_fpr)
    limits = {name: run.threshold(name) for name in run.sites}
    untested = {  # a site without test images has a threshold all the same
        name: figures_of(limit)
        for name, limit in limits.items()
        if limit is not None and name not in ours.threshold.sites
    }
    thresholds = ours.threshold.model_copy(update={"sites": {**ours.threshold.sites, **untested}})
    promised = privacy(config)
    found = Results.of(
        ours.model_copy(update={"threshold": thresholds}),
        compare={
            name: summarise(other, target_fpr=config.target_fpr)
            for name, other in comparisons.items()
        },
        gain={name: gains(results, other, seed=config.seed) for name, other in comparisons.items()},
        tradeoff=tradeoff(results, limits),
        own_normals={site: OwnNormals(**moved) for site, moved in fitted.own_normals.items()},
        learning=run.learning(),
        method=run.method,
        backbone=run.features.backbone,
        seed=config.seed,
        training_images=dict(fitted.n_images),
        unreadable=[*fitted.unreadable, *(reason for r in results for reason in r.bad)],
        data=data,
        ledger=Costs.model_validate(ledger.summary()),
        privacy=None if promised is None else Privacy(**promised),
    )
    return found.model_copy(update={"verdict": verdict(found)})


def keeps_evaluation(run: Path, out: Path | None) -> Path | None:
    """Where an evaluation is kept for `report`, None for nowhere.

    In `out`; without one in the run folder itself, if it holds no results of a training: that of a
    site after a rollout. Raises `ConfigError` when `out` is the folder of a training.
    """
    target = run if out is None else out
    if (target / "state").exists() or not _replaceable(target):
        if out is not None:
            raise ConfigError(f"{out} holds a training and its results: choose another --out")
        return None
    return target


def _replaceable(folder: Path) -> bool:
    if not (folder / RESULTS_FILE).exists():
        return True
    try:
        return read_results(folder).of_evaluate
    except ArtefactError as error:  # whose they are, nobody can say
        log.warning("%s", error)
        return False


def keep_evaluation(run: Path, target: Path, found: Results, results: Sequence[SiteResult]) -> None:
    """Store in `target` what `report` needs; raises `StorageError` when the disk refuses.

    Another folder than that of the run gets copies of its configuration and ledger.
    """
    ledger = read_ledger(run)
    write_ledger(target, ledger)  # which vouches for no results while they are written
    write_json(target / RESULTS_FILE, found.to_dict())
    write_ledger(target, ledger, vouches_for=[RESULTS_FILE])
    if target != run:
        write_config(target, read_config(run))
    keep_record(target, results, {}, panels(results))
    write_report(target)


def _write_tables(out: Path, found: Results, method: str) -> None:
    tables = {
        "method": results_table(found, name=method),
        "site": sites_table(found, name=method),
    }
    if found.tradeoff:
        tables["rate"] = tradeoff_table(found)
    if found.own_normals:
        tables["own normals"] = own_normals_table(found)
    for name, rows in tables.items():
        write_csv(rows, out / "tables" / f"{name.replace(' ', '-')}.csv")
    text = "\n".join(
        [f"# {method} on {len(found.training_images)} sites", "", found.verdict or "", ""]
        + [
            f"## {_HEADINGS[name]}\n\n{to_markdown(without_empty(rows))}\n"
            for name, rows in tables.items()
        ]
    )
    write_atomically(out / "tables" / "results.md", text.encode())


def _write_report(
    out: Path,
    results: Sequence[SiteResult],
    comparisons: Mapping[str, Sequence[SiteResult]],
) -> None:
    try:
        keep_record(out, results, comparisons, panels(results))
        write_report(out)
    # whatever goes wrong: hours of training are worth more than a page about them
    except Exception as error:
        log.warning(
            "the training is complete, but its report could not be written: %s; try again with "
            "`fedvad report %s`", str(error) or type(error).__name__, out,
        )  # fmt: skip


def _title(found: Results) -> str:
    counts = total(found)
    parts = []
    if counts.defects:
        parts.append(f"caught {counts.caught} of {counts.defects} defects")
    if counts.good:
        parts.append(f"stopped {counts.stopped} of {counts.good} good parts")
    title = f"{found.method}, {len(found.training_images)} sites"
    return f"{title}: {', '.join(parts)}" if parts else title


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
