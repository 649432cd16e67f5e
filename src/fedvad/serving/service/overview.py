"""The sites of one run or of several, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fedvad.errors import ArtefactError
from fedvad.runs.memory_run import SiteMemory
from fedvad.runs.run import Run
from fedvad.runs.run_folder import read_results
from fedvad.serving.service.models import SiteInfo


def sites_of(runs: Iterable[Path]) -> list[SiteInfo]:
    """What run folders say of their sites as they are now; raises `ArtefactError`."""
    return [row for folder in runs for row in _rows(folder)]


def _rows(folder: Path) -> list[SiteInfo]:
    run, measured = Run.load(folder), _measured(folder)
    rows = []
    for name, site in sorted(run.sites.items()):
        limit = run.threshold(name)
        answers = site.answers if isinstance(site, SiteMemory) else ()
        row = SiteInfo(
            run=folder.resolve().name,
            site=name,
            threshold=None if limit is None else limit.value,
            promised=None if limit is None else limit.promised,
            n_images=site.n_images,
            image_auroc=measured.get(name),
            answers=sum(not answer.values.undone for answer in answers),
        )
        rows.append(row)
    return rows


def _measured(folder: Path) -> dict[str, float | None]:
    try:
        return dict(read_results(folder)["image_auroc"]["sites"])
    except (ArtefactError, KeyError, TypeError):  # of a run that was never evaluated, or changed
        return {}
