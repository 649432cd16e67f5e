"""One threshold for all sites of a deployment: counts go up, their sum comes back.

The server sees each site's counts of scores, and hands back only the sum, from which every site
finds the same threshold. Source: ours.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedvad.data.files import write_atomically
from fedvad.errors import ArtefactError, DataError, PayloadError
from fedvad.evaluation.histograms import from_pairs, threshold_of_counts, to_pairs
from fedvad.federation.runners.flower.rounds import RemoteRounds
from fedvad.pipeline.config import Reference
from fedvad.pipeline.memory_run import TrainedRun
from fedvad.pipeline.thresholds import Counts, share_threshold

__all__ = ["KEY", "read_counts", "share", "shared_values", "summed", "take", "write_counts"]

log = logging.getLogger(__name__)
KEY = "score_counts"
_FILE = "score_counts.json"
_REFERENCES: tuple[Reference, ...] = (
    "union",
    "global",
)  # a site's own memory keeps its own threshold
_MOST = 1 << 40


def write_counts(folder: Path, counts: Counts) -> None:
    """Keep a site's counts beside its run; raises `StorageError`."""
    told = {name: to_pairs(counts[name]) for name in _REFERENCES if name in counts}
    write_atomically(folder / _FILE, json.dumps(told).encode())


def read_counts(folder: Path) -> dict[str, Any]:
    """What `write_counts` kept; raises `ArtefactError`."""
    try:
        return dict(json.loads((folder / _FILE).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise ArtefactError(f"{folder / _FILE} cannot be read: {error}") from error


def take(folder: Path, told: Mapping[str, Any], target_fpr: float) -> None:
    """Give a site's run the threshold of all sites; raises `PayloadError` for damaged counts."""
    counts = _parsed(told, _MOST)
    run = TrainedRun.load(folder)
    share_threshold(run.sites, counts, target_fpr)
    run.save(folder)


def share(
    rounds: RemoteRounds, finished: Mapping[str, dict[str, Any]], counts: Counts, round_: int
) -> set[str]:
    """Tell the summed counts to those finished sites that have not heard this sum yet.

    Marks in `finished` who took it; returns who is still to get it.
    """
    total = {name: to_pairs(own) for name, own in counts.items()}
    if not total:
        return set()
    digest = hashlib.sha256(json.dumps(total).encode()).hexdigest()
    waiting = [site for site, told in finished.items() if told.get("shared") != digest]
    took, missing = rounds.tell({KEY: total}, round_, waiting)
    for site in took:
        finished[site]["shared"] = digest
    return missing


def shared_values(summed_counts: Counts, target_fpr: float) -> dict[str, Any]:
    """By reference: the shared threshold and how many scores are behind it, for the results."""
    values: dict[str, Any] = {}
    for name, counts in summed_counts.items():
        threshold = threshold_of_counts(counts, target_fpr)
        value = None if threshold is None else threshold.value
        values[name] = {"value": value, "n": int(counts.sum())}
    return values


def summed(rounds: RemoteRounds, finished: Mapping[str, dict[str, Any]]) -> Counts:
    """What finished sites counted, by reference. A site whose counts are damaged, or more than it
    has images, is left out, with a warning.
    """
    known = {site: rounds.images_of(site) for site in finished}
    largest = max((n for n in known.values() if n is not None), default=0)
    total: Counts = {}
    for site, told in sorted(finished.items()):
        images = known[site]
        try:
            # one that made no round told no number of images: it has no more than the largest
            counts = _parsed(told, largest if images is None else images)
        except PayloadError as error:
            log.warning("%s has no part in the shared threshold: %s", site, error)
            continue
        for name, own in counts.items():
            total[name] = total.get(name, 0) + own
    return total


def _parsed(told: Mapping[str, Any], most: int) -> Counts:
    try:
        pairs: dict[str, Any] = dict(told[KEY])
        return {name: from_pairs(pairs[name], most) for name in _REFERENCES if name in pairs}
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise PayloadError(f"the counts of scores cannot be read: {error}") from error
