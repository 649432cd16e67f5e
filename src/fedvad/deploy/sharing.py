"""Thresholds of a deployment's sites that need one another: what goes up, and what comes back.

One for all sites: the server sees each site's counts of scores, and hands back only the sum, from
which every site finds the same threshold. One for each: see `site_scores`. Source: ours.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fedvad.data.files import write_atomically
from fedvad.data.locks import only_one
from fedvad.errors import ArtefactError, DataError, PayloadError
from fedvad.evaluation.histograms import from_pairs, threshold_of_counts, to_pairs
from fedvad.federation.mailboxes.flower.rounds import RemoteRounds
from fedvad.mergeable import merge_by_name
from fedvad.runs.config import Reference
from fedvad.runs.run import Run
from fedvad.runs.site_scores import SCORES, THRESHOLDS, federated, parsed
from fedvad.runs.thresholds import Counts, share_threshold

log = logging.getLogger(__name__)
KEY = "score_counts"
_FILE = "score_counts.json"
_REFERENCES: tuple[Reference, ...] = (
    "union",
    "global",
)  # a site's own memory keeps its own threshold
_MOST = 1 << 40
_Part = TypeVar("_Part")


def write_counts(folder: Path, counts: Counts) -> None:
    """Keep a site's counts next to its run; raises `StorageError`."""
    facts = {name: to_pairs(counts[name]) for name in _REFERENCES if name in counts}
    write_atomically(folder / _FILE, json.dumps(facts).encode())


def read_counts(folder: Path) -> dict[str, Any]:
    """What `write_counts` kept; raises `ArtefactError`."""
    try:
        return dict(json.loads((folder / _FILE).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise ArtefactError(f"{folder / _FILE} cannot be read: {error}") from error


def take(folder: Path, facts: Mapping[str, Any], target_fpr: float) -> None:
    """Give a site's run the threshold of all sites.

    Raises `PayloadError` for damaged counts, and otherwise as `site_scores.adopt`.
    """
    counts = _parsed(facts, _MOST)
    with only_one(folder):
        run = Run.load(folder)
        share_threshold(run.sites, counts, target_fpr)
        run.save(folder)


def hand_back(
    rounds: RemoteRounds,
    finished: Mapping[str, dict[str, Any]],
    facts: Mapping[str, dict[str, Any]],
    round_: int,
) -> set[str]:
    """Send finished sites what `facts` has for each, but for those that took exactly this before.

    Marks in `finished` who took it; returns who is still to get it.
    """
    digests = {
        site: hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
        for site, own in facts.items()
    }
    waiting = {
        site: own for site, own in facts.items() if finished[site].get("shared") != digests[site]
    }
    took, missing = rounds.tell(waiting, round_)
    for site in took:
        finished[site]["shared"] = digests[site]
    return missing


def together(
    rounds: RemoteRounds, finished: Mapping[str, dict[str, Any]], target_fpr: float
) -> dict[str, dict[str, Any]]:
    """Each finished site's thresholds, found with the scores of all; none for a single site."""
    scores = {site: own for site, own in _heard(rounds, finished, SCORES, parsed) if own}
    if len(scores) < 2:
        return {}
    return {site: {THRESHOLDS: own} for site, own in federated(scores, target_fpr).items()}


def shared_values(summed_counts: Counts, target_fpr: float) -> dict[str, Any]:
    """By reference: the shared threshold and how many scores are behind it, for the results."""
    values: dict[str, Any] = {}
    for name, counts in summed_counts.items():
        threshold = threshold_of_counts(counts, target_fpr)
        value = None if threshold is None else threshold.value
        values[name] = {"value": value, "n": int(counts.sum())}
    return values


def summed(rounds: RemoteRounds, finished: Mapping[str, dict[str, Any]]) -> Counts:
    """What finished sites counted, by reference, summed."""
    return merge_by_name(counts for _, counts in _heard(rounds, finished, KEY, _parsed))


def _heard(
    rounds: RemoteRounds,
    finished: Mapping[str, dict[str, Any]],
    key: str,
    parse: Callable[[Mapping[str, Any], int], _Part],
) -> Iterator[tuple[str, _Part]]:
    """What finished sites said under `key`, parsed. A site whose part is damaged, or rests on more
    scores than it has images, is left out, with a warning.
    """
    known = {site: rounds.images_of(site) for site in finished}
    largest = max((n for n in known.values() if n is not None), default=0)
    for site, facts in sorted(finished.items()):
        if key not in facts and key == SCORES:
            continue  # a site may keep them
        images = known[site]
        try:
            # one that made no round reported no number of images: it has no more than the largest
            yield site, parse(facts, largest if images is None else images)
        except PayloadError as error:
            log.warning("%s has no part in the shared threshold: %s", site, error)


def _parsed(facts: Mapping[str, Any], most: int) -> Counts:
    try:
        pairs: dict[str, Any] = dict(facts[KEY])
        return {name: from_pairs(pairs[name], most) for name in _REFERENCES if name in pairs}
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise PayloadError(f"the counts of scores cannot be read: {error}") from error
