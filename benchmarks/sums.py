"""Sums under noise: AUROC and membership against epsilon, by number of images.

    python benchmarks/sums.py DATA --weights F [--cache DIR] [--seeds 0,1,2] [--out JSON]

Each federation is that of `fedvad train --method sums`, by its own exchange and with masks. Sizes:
`all` normal images of each site; `half` of them, drawn by the seed, when the other half are the
outsiders of the attack; `6000`, drawn with replacement from all of a site, which shows what noise
costs there and not what more images would teach. The seed draws halves, noise and projection. The
attacker sees the totals that are handed out, and without masks one site's sums; half of the
outsiders of all sites are its reference. Prints a Markdown table of means over sites and seeds.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from leaks_sums import sums_statistics

from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.scoring import mean_of_highest, smooth
from fedvad.detectors.sums.gaussian import Gaussian, SumsScorer
from fedvad.detectors.sums.site import SumsConfig, SumsSite
from fedvad.detectors.sums.statistics import Array, Space, clipped
from fedvad.evaluation.leaks import View, membership
from fedvad.evaluation.metrics import image_auroc
from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.exchange.sums import SumsExchange, gaussian_from, start_of
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.inprocess import Schedule, run_rounds
from fedvad.federation.privacy import gaussian_mu
from fedvad.half import HalfArray, to_float
from fedvad.memory.bank import FloatArray
from fedvad.runs.config import resolve_config
from fedvad.runs.data import load_sites

EPSILONS = (math.inf, 8.0, 4.0, 2.0, 1.0)
DELTA = 1e-5


class Image:
    """An image's mean and second moment, from which its scatter about any mean follows."""

    def __init__(self, points: Array) -> None:
        self.mean = points.mean(axis=0)
        self.second = points.T @ points / len(points)

    def clipped_mean(self) -> Array:
        return clipped(self.mean[None], 1.0)

    def scatter(self, centre: Array, bound: float) -> Array:
        cross = np.outer(self.mean, centre[0])
        whole = self.second - cross - cross.T + np.outer(centre[0], centre[0])
        above = np.triu_indices(len(whole))
        packed: Array = whole[above] * np.where(above[0] == above[1], 1.0, math.sqrt(2.0))
        return clipped(packed[None], bound)


class Held(SumsSite):
    """A site whose images' moments are in memory, each counted as often as `times` says."""

    def __init__(self, name: str, held: list[Image], space: Space, times: Any, seed: Any) -> None:
        features = _Features(name, int(times.sum()), SimpleNamespace(grid=(32, 32, 1)))
        rng = np.random.default_rng(seed)
        super().__init__(cast(NormalFeatures, features), space, rng=rng)
        self.held, self.times = held, times

    def mean_sum(self, noise: float) -> Array:
        terms = [n * own.clipped_mean() for own, n in self._counted()]
        return self._leaving("mean", np.sum(terms, axis=0), noise)

    def scatter_sum(self, mean: Array, bound: float, noise: float) -> Array:
        terms = [n * own.scatter(mean, bound) for own, n in self._counted()]
        return self._leaving("scatter", np.sum(terms, axis=0), noise)

    def _counted(self) -> Iterator[tuple[Image, int]]:
        return ((own, int(n)) for own, n in zip(self.held, self.times, strict=True) if n)


class _Features:
    def __init__(self, where: str, length: int, extractor: Any) -> None:
        self.where, self.length, self.extractor = where, length, extractor

    def __len__(self) -> int:
        return self.length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--dimensions", type=int, default=SumsConfig.dimensions)
    parser.add_argument("--sizes", default="half,all,6000")
    parser.add_argument("--out", type=Path, help="keeps finished cells")
    arguments = parser.parse_args()
    cells: dict[str, Any] = {}
    if arguments.out and arguments.out.is_file():
        cells = json.loads(arguments.out.read_text())
    config = resolve_config(backbone=arguments.backbone, weights=arguments.weights, image_size=256)
    cache = DescriptorCache(arguments.cache) if arguments.cache else None
    extractor = FeatureExtractor(config.features(), cache)
    sites = {s.name: s for s in load_sites(arguments.data, None, 0)}
    normals = {
        name: described(extractor, [i.path for i in site.train if i.label == 0])
        for name, site in sites.items()
    }
    tests = {
        name: (described(extractor, [i.path for i in site.test]), [i.label for i in site.test])
        for name, site in sites.items()
    }
    for seed in map(int, arguments.seeds.split(",")):
        space = Space.of(extractor.grid[2], arguments.dimensions, 1, seed)
        points = {
            name: [Image(space.points(to_float(d))[0]) for d in own]
            for name, own in normals.items()
        }
        seen = {
            name: (np.stack([space.points(to_float(d))[0] for d in own]).astype("f"), labels)
            for name, (own, labels) in tests.items()
        }
        for size in arguments.sizes.split(","):
            for epsilon in EPSILONS if size in ("half", "all") else (4.0, 1.0):
                key = f"{size}|{epsilon}|{seed}"
                if key in cells:
                    continue
                cells[key] = measure(points, seen, space, size, epsilon, seed, config.scoring())
                print(key, json.dumps(cells[key]), flush=True)
                if arguments.out:
                    arguments.out.write_text(json.dumps(cells))
    print(table(cells))


def described(extractor: FeatureExtractor, paths: list[Path]) -> list[HalfArray]:
    return [x.descriptors for x in extractor.stream(paths) if x.descriptors is not None]


def measure(
    points: dict[str, list[Image]],
    tests: dict[str, tuple[FloatArray, list[int]]],
    space: Space,
    size: str,
    epsilon: float,
    seed: int,
    scoring: Any,
) -> dict[str, Any]:
    """One federation: AUROC with its sums and with each site's own, and the attack on it."""
    times, outside = {}, {}
    for i, (name, own) in enumerate(points.items()):
        rng = np.random.default_rng([seed, i])
        order = rng.permutation(len(own))
        times[name] = np.ones(len(own), np.int64)
        if size == "half":
            outside[name] = order[len(own) // 2 :]
            times[name][outside[name]] = 0
        elif size != "all":
            times[name] = rng.multinomial(int(size), np.full(len(own), 1 / len(own)))
    found = federate(points, space, times, epsilon, seed)
    scorer = SumsScorer(space, found, scoring)
    reported: dict[str, Any] = {"auroc": [auroc(scorer, *tests[name]) for name in points]}
    if math.isinf(epsilon):
        alone = [federate({name: points[name]}, space, times, epsilon, seed) for name in points]
        reported["alone"] = [
            auroc(SumsScorer(space, own, scoring), *tests[name])
            for name, own in zip(points, alone, strict=True)
        ]
    if size == "half":
        reported["membership"] = attack(points, space, times, outside, found, seed, list(points))
        reported["membership_site"] = []
        for one in points:
            bare = federate({one: points[one]}, space, times, epsilon, seed)
            found_out = attack(points, space, times, outside, bare, seed, [one])
            reported["membership_site"].append(found_out)
    return reported


def federate(
    points: dict[str, list[Image]],
    space: Space,
    times: dict[str, Any],
    epsilon: float,
    seed: int,
) -> Gaussian:
    level = None if math.isinf(epsilon) else epsilon
    config = SumsConfig(epsilon=level, delta=DELTA, secure=len(points) > 1)
    exchange = SumsExchange(
        features="key", config=config, size=space.size, dim=len(space.projection),
        start=start_of(space, config),
    )  # fmt: skip
    members = {
        name: Held(name, own, space, times[name], [seed, 7, i])
        for i, (name, own) in enumerate(points.items())
    }
    return gaussian_from(run_rounds(exchange, members, Schedule(3), ledger=Ledger()), space)


def attack(
    points: dict[str, list[Image]],
    space: Space,
    times: dict[str, Any],
    outside: dict[str, Any],
    found: Gaussian,
    seed: int,
    names: list[str],
) -> float:
    """AUC of the best statistic on the handed-out averages of the sites `names`."""
    centre = found.centre(space)

    def term(name: str, i: int) -> Array:
        own = points[name][i]
        return np.concatenate([own.clipped_mean()[0], own.scatter(centre, found.bound)[0]])

    half = {name: len(own) // 2 for name, own in outside.items()}
    reference = np.stack([term(name, i) for name in points for i in outside[name][: half[name]]])
    asked = [(name, i) for name in names for i in outside[name][half[name] :]]
    inside = [(name, i) for name in names for i in np.flatnonzero(times[name])]
    drawn = np.random.default_rng(seed).permutation(len(inside))[: len(asked)]
    inside = [inside[k] for k in drawn]
    images = found.images
    total = images * np.concatenate([found.mean.ravel(), found.scatter.ravel()])
    # the mean's noise follows from the scatter's by the shares of the budget
    sides = (found.mean.size, found.scatter.size)
    ratio = math.sqrt(2 * 0.7 / 0.3) / max(found.bound, 1e-12)
    noise = images * found.noise * np.repeat([ratio, 1.0], sides)
    views = []
    for group in (inside, asked):
        terms = np.stack([term(name, i) for name, i in group])
        statistics = sums_statistics(terms, total, images, reference, noise)
        views.append(View(statistics, np.zeros(0, "f"), np.zeros(0, "i8"), np.zeros(0, "i8")))
    return membership(views[0], views[1], seed=seed).auc


def auroc(scorer: SumsScorer, images: FloatArray, labels: list[int]) -> float:
    """Of projected (n, h w, k) images: what `SumsScorer.score` makes of their descriptors."""
    centre, root = scorer.centre[0].astype("f"), scorer.roots[0].astype("f")
    side = math.isqrt(images.shape[1])
    scores = []
    for points in images:
        map_ = smooth(
            np.linalg.norm((points - centre) @ root, axis=1).reshape(side, side),
            scorer.config.smooth,
        )
        scores.append(mean_of_highest(map_, scorer.config.count(map_.size)))
    return image_auroc(np.array(scores), labels) or 0.0


def table(cells: dict[str, Any]) -> str:
    """Means over sites, and their deviation over seeds, as Markdown."""
    lines = [
        "| images per site | epsilon | worst attacker | AUROC | worst site | alone | membership | "
        "of one site's sums |",
        "| --- " * 8 + "|",
    ]
    for size, epsilon in dict.fromkeys(tuple(key.split("|")[:2]) for key in cells):
        runs = [cell for key, cell in cells.items() if key.startswith(f"{size}|{epsilon}|")]
        bound = 1.0
        if epsilon != "inf":
            from scipy.special import ndtr

            bound = float(ndtr(gaussian_mu(float(epsilon), DELTA) / math.sqrt(2)))
        shown = [_spread([mean(run["auroc"]) for run in runs])]
        shown.append(_spread([min(run["auroc"]) for run in runs]))
        for key in ("alone", "membership", "membership_site"):
            values = [np.mean(run[key]).item() for run in runs if key in run]
            shown.append(_spread(values) if values else "")
        lines.append(f"| {size} | {epsilon} | {bound:.2f} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    more = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{more}"


if __name__ == "__main__":
    main()
