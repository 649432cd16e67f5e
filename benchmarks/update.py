"""Half of the normal images first, the rest by `update`, against training on all of them.

    python benchmarks/update.py SITES --weights F [--seeds 3] [--backbone resnet18]

SITES is a folder of sites in MVTec's layout. Prints image AUROC, mean and worst over sites, and
the false alarms at the thresholds, of a run of half the images, updated with the rest, and of all.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import fedvad
from fedvad.data.folders import read_sites
from fedvad.evaluation.metrics import image_auroc
from fedvad.evaluation.thresholds import achieved
from fedvad.features.cache import DescriptorCache, default_cache_root
from fedvad.runs.opening import open_memory_run

CACHE = DescriptorCache(default_cache_root())


def figures(run: Path, data: Path, weights: Path | None) -> tuple[float, float, float, float]:
    """Mean and worst image AUROC, mean false-alarm rate and recall over sites."""
    found, _, extractor = open_memory_run(run, weights=weights, cache=CACHE)
    per_site = []
    for site in read_sites(data):
        scores = found.detector(site.name, extractor).score(site.test.paths).image
        limit = found.threshold(site.name)
        assert limit is not None
        auroc = image_auroc(scores, site.test.labels)
        per_site.append((auroc, *achieved(scores, site.test.labels, limit)))
    table = np.array(per_site, np.float64)
    return float(table[:, 0].mean()), float(table[:, 0].min()), *table[:, 1:].mean(0).tolist()


def halves(data: Path, target: Path, seed: int) -> tuple[Path, Path]:
    """The sites with a random half of their normal images, and with the other half."""
    rng = np.random.default_rng(seed)
    parts = target / "first", target / "rest"
    for site in sorted(path for path in data.iterdir() if path.is_dir()):
        images = sorted((site / "train/good").iterdir())
        order = rng.permutation(len(images))
        for part, chosen in zip(parts, np.array_split(order, 2), strict=True):
            folder = part / site.name / "train/good"
            folder.mkdir(parents=True)
            for i in chosen:
                shutil.copy(images[i], folder)
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    print("| seed | run | AUROC | worst | false alarms | recall | rows |\n|" + " --- |" * 7)
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as work:
            first, rest = halves(given.data, Path(work), seed)
            options: dict[str, Any] = {
                "seed": seed, "backbone": given.backbone, "image_size": 256,
                "weights": given.weights,
            }  # fmt: skip
            runs = {name: Path(work, f"run-{name}") for name in ("half", "updated", "all")}
            fedvad.train(first, runs["half"], **options)
            shutil.copytree(runs["half"], runs["updated"])
            fedvad.update(runs["updated"], rest, weights=given.weights)
            shutil.copytree(rest, first, dirs_exist_ok=True)
            fedvad.train(first, runs["all"], **options)
            for name, run in runs.items():
                values = " | ".join(f"{v:.4f}" for v in figures(run, given.data, given.weights))
                print(
                    f"| {seed} | {name} | {values} | {len(fedvad.load(run).memory)} |", flush=True
                )


if __name__ == "__main__":
    main()
