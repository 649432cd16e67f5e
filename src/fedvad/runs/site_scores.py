"""Thresholds that sites on machines of their own find together: their scores of normal images go
up, each site's thresholds come back.

The server gets, of each site, the ascending scores of the normal images that its threshold rests
on (`calibration_images` at most), without their order or names; no site sees those of another.
The rule is that of `fedvad train`, see `evaluation.federated`; so are the thresholds, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from fedvad.data.checked import Stored, parse_values
from fedvad.data.locks import only_one
from fedvad.errors import ArtefactError, PayloadError, join_names
from fedvad.evaluation.federated import federated_thresholds
from fedvad.evaluation.thresholds import Threshold
from fedvad.runs.config import Reference
from fedvad.runs.run import Run

# what `facts` of a message calls them
SCORES, THRESHOLDS = "scores", "thresholds"
# a site's own memory is what it would have alone, and so is its threshold
_Shared = Literal["union", "global"]
_MOST = 10_000  # scores of one site and reference
Scores = dict[str, list[float]]


class _Scores(Stored):
    scores: dict[_Shared, Annotated[list[float], Field(max_length=_MOST)]]


class Found(Stored):
    """One threshold as it travels."""

    value: float
    method: Annotated[str, Field(max_length=40)]


class _Thresholds(Stored):
    thresholds: dict[_Shared, Found]


def scores_of(folder: Path, site: str) -> Scores:
    """Scores by reference, ascending, behind a site's thresholds in its run folder.

    Raises `ArtefactError` for a run that is damaged, or is not of the site.
    """
    return {name: list(found.scores) for name, found in _shared(Run.load(folder).sites, site)}


def parsed(facts: Mapping[str, Any], most: int | None = None) -> Scores:
    """A site's scores in the facts it sent; raises `PayloadError` for more than `most` scores."""
    try:
        scores = parse_values(_Scores, {SCORES: facts[SCORES]}, "the scores").scores
    except (KeyError, ArtefactError) as error:
        raise PayloadError(f"the scores of normal images cannot be read: {error}") from error
    for name, own in scores.items():
        if most is not None and len(own) > most:
            raise PayloadError(f"{len(own)} scores ({name}) of {most} normal images")
    return {str(name): own for name, own in scores.items()}


def federated(
    by_site: Mapping[str, Scores], target_fpr: float
) -> dict[str, dict[str, dict[str, Any]]]:
    """Thresholds by site and reference, as `adopt` takes them, from the scores of all sites."""
    found: dict[str, dict[str, dict[str, Any]]] = {site: {} for site in by_site}
    for name in sorted({name for scores in by_site.values() for name in scores}):
        given = {site: by_site[site][name] for site in sorted(by_site) if name in by_site[site]}
        for site, threshold in federated_thresholds(given, target_fpr).items():
            found[site][name] = {"value": threshold.value, "method": threshold.method}
    return found


def adopt(folder: Path, site: str, facts: Mapping[str, Any]) -> None:
    """Give a site's run folder the thresholds that were found with the scores of all sites.

    Raises `PayloadError` for what are none, `ArtefactError` for a damaged run, `StorageError`, and
    `InUseError` when another process works on the folder.
    """
    try:
        found = parse_values(_Thresholds, {THRESHOLDS: facts[THRESHOLDS]}, "the thresholds")
    except (KeyError, ArtefactError) as error:
        raise PayloadError(f"the thresholds of all sites cannot be read: {error}") from error
    with only_one(folder):  # an answer that is being written would bring the old ones back
        run = Run.load(folder)
        for name, own in _shared(run.sites, site):
            if name in found.thresholds:
                new = found.thresholds[name]
                run.sites[site].thresholds[name] = replace(own, value=new.value, method=new.method)
        run.save(folder)


def _shared(sites: Mapping[str, Any], site: str) -> Iterator[tuple[_Shared, Threshold]]:
    if site not in sites:
        raise ArtefactError(f"this run is of {join_names(sites)}, and not of site {site}")
    thresholds: dict[Reference, Threshold] = sites[site].thresholds
    for name in ("union", "global"):
        if name in thresholds and thresholds[name].scores:
            yield name, thresholds[name]
