"""Runs that change after training, against runs that were trained as they are then.

    python benchmarks/living.py SITES --weights F [--seeds 3] [--rows 1500] [--leaves SITE]

SITES is a folder of sites in MVTec's layout. Two comparisons, in image AUROC (mean, worst site):
half of the normal images and the rest by `update` against all of them at once; all sites of which
one is forgotten, the others filling in, against those others alone. Seeds draw the halves too.
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
from fedvad.features.cache import DescriptorCache, default_cache_root
from fedvad.runs.opening import open_memory_run

CACHE = DescriptorCache(default_cache_root())


def report(seed: int, name: str, run: Path, data: Path, weights: Path | None) -> None:
    """One row: AUROC of the run at the sites that it has, and rows of its memory."""
    found, _, extractor = open_memory_run(run, weights=weights, cache=CACHE)
    detector = found.detector(None, extractor)
    values = [
        image_auroc(detector.score(site.test.paths).image, site.test.labels)
        for site in read_sites(data)
        if site.name in found.sites
    ]
    mean, worst = np.mean(np.array(values, np.float64)), min(v for v in values if v is not None)
    print(f"| {seed} | {name} | {mean:.4f} | {worst:.4f} | {len(found.memory)} |", flush=True)


def parts(data: Path, target: Path, seed: int) -> tuple[Path, Path]:
    """The normal images of the sites: a random half of each site's, and the other half."""
    rng = np.random.default_rng(seed)
    halves = target / "first", target / "rest"
    for site in sorted(path for path in data.iterdir() if path.is_dir()):
        images = sorted((site / "train/good").iterdir())
        order = rng.permutation(len(images))
        for half, chosen in zip(halves, np.array_split(order, 2), strict=True):
            folder = half / site.name / "train/good"
            folder.mkdir(parents=True)
            for i in chosen:
                shutil.copy(images[i], folder)
    return halves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--leaves")
    given = parser.parse_args()
    leaves = given.leaves or sorted(path.name for path in given.data.iterdir() if path.is_dir())[-1]
    print("| seed | run | AUROC | worst | rows |\n|" + " --- |" * 5)
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as work:
            here = Path(work)
            first, rest = parts(given.data, here, seed)
            options: dict[str, Any] = {
                "seed": seed, "backbone": given.backbone, "image_size": 256,
                "weights": given.weights, "calibration": "none", "upload_rows": given.rows,
            }  # fmt: skip

            def row(name: str, *, seed: int = seed, here: Path = here) -> None:
                report(seed, name, here / name, given.data, given.weights)

            fedvad.train(first, here / "half", **options)
            row("half")
            fedvad.update(here / "half", rest, weights=given.weights)
            (here / "half").rename(here / "updated")
            row("updated")
            shutil.copytree(rest, first, dirs_exist_ok=True)
            fedvad.train(first, here / "all", **options)
            row("all")
            shutil.rmtree(first / leaves)
            fedvad.forget(here / "all", site=leaves, data=first, weights=given.weights)
            (here / "all").rename(here / "forgot")
            row("forgot")
            fedvad.train(first, here / "never", **options)
            row("never")


if __name__ == "__main__":
    main()
