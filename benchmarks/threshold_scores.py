"""Scores for `thresholds.py`: federations of real sets, each scored once and kept as JSON.

A set's normal images are divided again into training and fresh ones, seeded, so that both come from
one source. Where a set's own test normals come from another source (screw: darker photographs;
the drawn plants: cloths that a plant never wove) they are scored apart, as "shifted".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedvad.data.folders import read_sites
from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.calibration import held_out_scores
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.scoring import MemoryScorer
from fedvad.drawing.demo import write_demo
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.inprocess import run_rounds
from fedvad.federation.payload import bank_from
from fedvad.memory.bank import MemoryBank
from fedvad.runs.config import TrainConfig
from fedvad.runs.plan import memory_sites, plan

Scores = dict[str, dict[str, list[float]]]
_FRESH, _ANOMALOUS, _LEAST_FRESH = 60, 24, 5


@dataclass(frozen=True)
class Collection:
    """A set and the sites that it makes: its own, or `parts` equal ones; `shifted` see above."""

    name: str
    parts: int = 0
    shifted: bool = False


SETS = (
    Collection("mtd"),
    Collection("screw", parts=4, shifted=True),
    Collection("hazelnut", parts=2),
    Collection("brain_mri"),
    Collection("figurine", parts=1),
    Collection("hazelnut_toy", parts=1),
    Collection("drawn", shifted=True),
)


@dataclass(frozen=True)
class Pool:
    """A site's images by kind."""

    normal: list[Path]
    shifted: list[Path]
    anomalous: list[Path]


def pools(collection: Collection, data: Path, scratch: Path) -> dict[str, Pool]:
    """By site all images there are."""
    folder = data / collection.name
    if collection.name == "drawn":
        folder = scratch / "drawn"
        if not (folder / "complete").exists():
            write_demo(folder / "sites", train=150, test_normal=40, test_defect=24, size=128)
            (folder / "complete").touch()
        folder = folder / "sites"
    found = {}
    for site in read_sites(folder):
        good = [item.path for item in site.test if item.label == 0]
        own = [item.path for item in site.train]
        bad = [item.path for item in site.test if item.label == 1]
        shifted = good if collection.shifted else []
        found[site.name] = Pool(own if collection.shifted else own + good, shifted, bad)
    if not collection.parts:
        return found
    (whole,) = found.values()
    order = np.random.default_rng(0).permutation(len(whole.normal))
    return {
        f"part{k + 1}": Pool([whole.normal[i] for i in part], whole.shifted, whole.anomalous)
        for k, part in enumerate(np.array_split(order, collection.parts))
    }


def cell(
    sites: Mapping[str, Pool], n: int, config: TrainConfig, extractor: FeatureExtractor
) -> Scores | None:
    """Scores by site and kind of one federation of `n` normals per site; None if all have fewer.

    A site with fewer gives what leaves a fifth of its normals fresh. Kinds: `left_out` (training
    images, without their own rows), `fresh`, `shifted`, `anomalous`; the same with the prefix
    `local/` for the site's own memory; with `split/` for a second federation that holds a fifth
    of the training images out, whose scores are `split/left_out`.
    """
    size = {name: min(n, int(0.8 * len(pool.normal))) for name, pool in sites.items()}
    if max(size.values()) < 0.75 * n:
        return None
    train, test = {}, {}
    for k, (name, pool) in enumerate(sites.items()):
        rng = np.random.default_rng((config.seed, n, k))
        order = [pool.normal[i] for i in rng.permutation(len(pool.normal))]
        train[name] = order[: size[name]]
        test[name] = {
            "fresh": order[size[name] :][:_FRESH],
            "shifted": _some(pool.shifted, _FRESH, rng),
            "anomalous": _some(pool.anomalous, _ANOMALOUS, rng),
        }
    whole, own = _fit(train, config, extractor)
    held = {name: paths[: max(1, round(len(paths) / 5))] for name, paths in train.items()}
    rest = {name: paths[len(held[name]) :] for name, paths in train.items()}
    part, _ = _fit(rest, config, extractor)
    scores: Scores = {}
    for name in sites:
        scores[name] = {}
        for prefix, bank in (("", whole), ("local/", own[name]), ("split/", part)):
            known = train[name] if prefix != "split/" else held[name]
            wanted: dict[str, Sequence[Path]] = {"left_out": known, **test[name]}
            for kind, paths in wanted.items():
                leave = kind == "left_out" and prefix != "split/"
                scores[name][prefix + kind] = _score(paths, bank, leave, config, extractor)
    return scores


def _some(paths: Sequence[Path], count: int, rng: np.random.Generator) -> list[Path]:
    return [paths[i] for i in rng.permutation(len(paths))[:count]]


def _fit(
    train: Mapping[str, Sequence[Path]], config: TrainConfig, extractor: FeatureExtractor
) -> tuple[MemoryBank, dict[str, MemoryBank]]:
    features = {name: _features(paths, extractor, name) for name, paths in train.items()}
    exchange, schedule = plan(config, extractor)
    members = memory_sites(config, features, extractor.grid[2])
    merged = bank_from(run_rounds(exchange, members, schedule, ledger=Ledger()))
    return merged, {name: member.bank for name, member in members.items()}


def _features(paths: Sequence[Path], extractor: FeatureExtractor, site: str = "") -> NormalFeatures:
    return NormalFeatures(extractor, paths, max_bad=0, where=site)


def _score(
    paths: Sequence[Path],
    bank: MemoryBank,
    leave_one_out: bool,
    config: TrainConfig,
    extractor: FeatureExtractor,
) -> list[float]:
    identity = Generator.identity(bank.dim)
    features = _features(paths, extractor)
    return list(
        held_out_scores(
            features, MemoryScorer(bank, config.scoring()), identity, leave_one_out=leave_one_out
        )
    )


def stored(folder: Path) -> Iterator[tuple[str, int, int, Scores]]:
    """Set, normals per site, seed and scores of every cell in `folder`."""
    for path in sorted(folder.glob("*.json")):
        name, n, seed = path.stem.rsplit("-", 2)
        yield name, int(n), int(seed), json.loads(path.read_bytes())
