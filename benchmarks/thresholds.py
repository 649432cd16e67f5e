"""Which rule for a threshold keeps its word: rates achieved on fresh normal images of real sets.

    python benchmarks/thresholds.py --data DATA [--backbone resnet18 --weights W] --out OUT

Federations of every set in `threshold_scores.SETS` that lies in DATA, for each seed and number of
normal images per site, are trained and scored once; `OUT/NAME-N-SEED.json` keeps the scores, and
a second call goes on where the first one ended. All rules are then compared on these scores, and
the Markdown tables are printed: mean rate of false alarms over sites and seeds [95 % interval,
bootstrap over sites], by number of normal images; the worst site; recall.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from threshold_scores import SETS, Scores, cell, pools, stored

from fedvad.data.files import write_atomically
from fedvad.evaluation.federated import federated_thresholds
from fedvad.evaluation.histograms import count, threshold_of_counts
from fedvad.evaluation.thresholds import conformal_rank, conformal_threshold
from fedvad.features.cache import DescriptorCache, default_cache_root
from fedvad.features.extractor import FeatureExtractor
from fedvad.runs.config import resolve_config

Rule = Callable[[Scores, float], dict[str, float]]
TARGETS = (0.01, 0.05)


def alone(rule: Callable[[np.ndarray, float], float], kind: str = "left_out") -> Rule:
    """A rule that sees one site's scores at a time."""
    return lambda sites, target: {k: rule(np.sort(v[kind]), target) for k, v in sites.items()}


def split_conformal(scores: np.ndarray, target: float) -> float:
    rank = conformal_rank(len(scores), target)
    return float(scores[rank - 1]) if rank <= len(scores) else math.inf


def pareto(scores: np.ndarray, target: float) -> float:
    """Generalised Pareto tail above the 80 % quantile (Coles 2001), by maximum likelihood."""
    from scipy.stats import genpareto

    start = float(np.quantile(scores, 0.8))
    over = scores[scores > start] - start
    if target >= len(over) / len(scores):
        return float(np.quantile(scores, 1 - target))
    shape, _, scale = genpareto.fit(over, floc=0)
    return start + float(genpareto.ppf(1 - target * len(scores) / len(over), shape, 0, scale))


def summed(sites: Scores, target: float) -> dict[str, float]:
    """One threshold from all sites' counts; the highest score where they are too few."""
    found = threshold_of_counts(
        np.sum([count(v["left_out"]) for v in sites.values()], axis=0), target
    )
    highest = max(max(v["left_out"]) for v in sites.values())
    return dict.fromkeys(sites, highest if found is None else found.value)


def federated(sites: Scores, target: float) -> dict[str, float]:
    found = federated_thresholds({k: np.array(v["left_out"]) for k, v in sites.items()}, target)
    return {name: threshold.value for name, threshold in found.items()}


RULES: dict[str, Rule] = {
    "federated (the default)": federated,
    "own: rank or log-normal bound": alone(lambda s, a: conformal_threshold(s, a).value),
    "split-conformal, a fifth held out": alone(split_conformal, "split/left_out"),
    "highest score or its rank": alone(lambda s, a: min(split_conformal(s, a), float(s[-1]))),
    "one for all, summed counts": summed,
    "generalised Pareto tail": alone(pareto),
    "mean + 3 sd": alone(lambda s, a: float(s.mean() + 3 * s.std(ddof=1))),
}


def measure(folder: Path) -> list[dict]:
    """One row for each stored site, rule and target."""
    rows = []
    for name, n, seed, sites in stored(folder):
        for target in TARGETS:
            for rule, find in RULES.items():
                limits = find(sites, target)
                # the other federation, that holds images out, is the one that is judged
                prefix = "split/" if rule.startswith("split") else ""
                for site, scores in sites.items():
                    rates = {
                        kind: float(np.mean(np.array(scores[prefix + kind]) > limits[site]))
                        for kind in ("fresh", "shifted", "anomalous")
                        if scores[prefix + kind]
                    }
                    where = {"set": name, "n": n, "seed": seed, "site": site}
                    rows.append(where | {"rule": rule, "target": target} | rates)
    return rows


def site_means(rows: Sequence[dict], kind: str) -> dict[tuple[str, str], float]:
    """By set and site the mean over seeds and numbers of images."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if kind in row:
            groups[row["set"], row["site"]].append(row[kind])
    return {where: fmean(values) for where, values in groups.items()}


def with_interval(means: Sequence[float]) -> str:
    if not means:
        return "–"
    rng = np.random.default_rng(0)
    drawn = rng.choice(np.array(means), (2000, len(means))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{100 * fmean(means):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def by_images(rows: Sequence[dict], target: float) -> str:
    """Rates by number of normal images, worst site, recall and shifted images, as Markdown."""
    sizes = sorted({row["n"] for row in rows})
    head = [f"wanted {target:.0%}", *(f"n = {n}" for n in sizes)]
    head += ["worst site", "shifted normals", *(f"recall, n = {n}" for n in sizes)]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for rule in RULES:
        mine = [row for row in rows if row["rule"] == rule and row["target"] == target]
        at = {n: [row for row in mine if row["n"] == n] for n in sizes}
        worst = max(site_means(mine, "fresh").items(), key=lambda item: item[1])
        shifted = list(site_means(mine, "shifted").values())
        cells = [rule]
        cells += [with_interval(list(site_means(at[n], "fresh").values())) for n in sizes]
        cells += [f"{100 * worst[1]:.1f} ({'/'.join(worst[0])})"]
        cells += [f"{100 * fmean(shifted):.1f}" if shifted else "–"]
        cells += [f"{100 * fmean(site_means(at[n], 'anomalous').values()):.0f}" for n in sizes]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def by_set(rows: Sequence[dict], target: float) -> str:
    """Rate / recall by set, and the rate of shifted normals where there are any, as Markdown."""
    names = sorted({row["set"] for row in rows})
    moved = sorted({row["set"] for row in rows if "shifted" in row})
    head = [f"wanted {target:.0%}", *names, *(f"{name}, shifted" for name in moved)]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for rule in RULES:
        mine = [row for row in rows if row["rule"] == rule and row["target"] == target]
        cells = [rule]
        for name in names:
            own = [row for row in mine if row["set"] == name]
            rate, recall = (
                fmean(site_means(own, kind).values()) for kind in ("fresh", "anomalous")
            )
            cells.append(f"{100 * rate:.1f} / {100 * recall:.0f}")
        for name in moved:
            own = [row for row in mine if row["set"] == name]
            cells.append(f"{100 * fmean(site_means(own, 'shifted').values()):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def held_out_against_fresh(folder: Path) -> str:
    """Whether fresh normals score above the left-out ones: 0.5 means that they do not differ."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for name, _, _, sites in stored(folder):
        for scores in sites.values():
            known = np.array(scores["left_out"])
            for kind in ("fresh", "shifted"):
                if scores[kind]:
                    other = np.array(scores[kind])[:, None]
                    found[name, kind].append(float(np.mean((other > known) + (other == known) / 2)))
    lines = ["| set | normals | P(score > that of a left-out image) |", "| --- | --- | --- |"]
    lines += [f"| {name} | {kind} | {fmean(p):.2f} |" for (name, kind), p in sorted(found.items())]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--upload-rows", type=int, default=500, help="per round, of two")
    parser.add_argument("--sets", default=",".join(c.name for c in SETS))
    parser.add_argument("--images", default="10,24,60,120", help="normals per site")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    wanted = [c for c in SETS if c.name in arguments.sets.split(",")]
    for seed in map(int, arguments.seeds.split(",")):
        config = resolve_config(
            backbone=arguments.backbone, weights=arguments.weights,
            image_size=arguments.image_size, upload_rows=arguments.upload_rows, seed=seed,
        )  # fmt: skip
        extractor = FeatureExtractor(config.features(), DescriptorCache(default_cache_root()))
        for collection in wanted:
            if collection.name != "drawn" and not (arguments.data / collection.name).is_dir():
                continue
            for n in map(int, arguments.images.split(",")):
                path = arguments.out / f"{collection.name}-{n}-{seed}.json"
                if path.exists():
                    continue
                sites = pools(collection, arguments.data, arguments.out)
                scores = cell(sites, n, config, extractor)
                if scores is not None:
                    write_atomically(path, json.dumps(scores).encode())
    rows = measure(arguments.out)
    print("# Thresholds: false alarms in % on fresh normal images\n")
    for target in TARGETS:
        print(
            by_images(rows, target) + "\n\nBy set, rate / recall:\n\n" + by_set(rows, target) + "\n"
        )
    print("Left-out against fresh images:\n\n" + held_out_against_fresh(arguments.out))


if __name__ == "__main__":
    main()
