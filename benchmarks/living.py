"""Runs that change after training, against runs that were trained as they are then.

    python benchmarks/living.py update SITES --weights F [--seeds 0 1 2] [--rows 500] [--rounds 2]
    python benchmarks/living.py forget SITES --weights F [--leaves SITE]

SITES is a folder of sites in MVTec's layout. Image AUROC of the shared memory, mean over sites and
worst site.

update: a random half of each site's normal images and the rest by `update`, against all of them at
once. forget: a site leaves after all rounds as it does by files and over a network: the server
merges what the others sent, then each sends once more what that lacks. Against the federation that
never had the site. *other draw*: the same training whose sites sample other patches, which says how
much of a difference is chance.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fedvad
from fedvad.data.folders import Site, read_sites
from fedvad.detectors.base import Detector
from fedvad.evaluation.metrics import image_auroc
from fedvad.features.cache import DescriptorCache, default_cache_root
from fedvad.features.extractor import FeatureExtractor
from fedvad.runs.config import TrainConfig
from fedvad.runs.method_memory import MemoryMethod
from fedvad.runs.opening import open_memory_run

CACHE = DescriptorCache(default_cache_root())
OTHER = 1000  # added to a seed


def report(seed: int, name: str, detector: Detector, sites: Sequence[Site], rows: int) -> None:
    values = [
        image_auroc(detector.score(site.test.paths).image, site.test.labels) for site in sites
    ]
    mean, worst = np.mean(np.array(values, np.float64)), min(v for v in values if v is not None)
    print(f"| {seed} | {name} | {mean:.4f} | {worst:.4f} | {rows} |", flush=True)


def halves(data: Path, target: Path, seed: int) -> tuple[Path, Path]:
    """The normal images of the sites: a random half of each site's, and the other half."""
    rng = np.random.default_rng(seed)
    found = target / "first", target / "rest"
    for site in sorted(path for path in data.iterdir() if path.is_dir()):
        images = sorted((site / "train/good").iterdir())
        order = rng.permutation(len(images))
        for half, chosen in zip(found, np.array_split(order, 2), strict=True):
            folder = half / site.name / "train/good"
            folder.mkdir(parents=True)
            for i in chosen:
                shutil.copy(images[i], folder)
    return found


def update(data: Path, seed: int, options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as work:
        here = Path(work)
        first, rest = halves(data, here, seed)

        def row(name: str, folder: str) -> None:
            run, _, extractor = open_memory_run(
                here / folder, weights=options["weights"], cache=CACHE
            )
            report(seed, name, run.detector(None, extractor), read_sites(data), len(run.memory))

        fedvad.train(first, here / "half", seed=seed, **options)
        row("half", "half")
        fedvad.update(here / "half", rest, weights=options["weights"])
        row("updated", "half")
        shutil.copytree(rest, first, dirs_exist_ok=True)
        for name, draw in (("all", seed), ("all, other draw", seed + OTHER)):
            fedvad.train(first, here / name, seed=draw, **options)
            row(name, name)


def forget(data: Path, seed: int, options: dict[str, Any], leaves: str | None) -> None:
    config = TrainConfig(seed=seed, **options)
    extractor = FeatureExtractor(config.features(), CACHE)
    every = read_sites(data)
    left = leaves or every[-1].name
    staying = [site for site in every if site.name != left]

    def row(name: str, method: MemoryMethod, merged: Any) -> None:
        detector = method.round_detector(merged)
        assert detector is not None
        report(seed, name, detector, staying, merged.rows)

    def trained(config: TrainConfig, sites: Sequence[Site]) -> tuple[MemoryMethod, Any, Any]:
        method = MemoryMethod(config, extractor)
        method.read(sites)
        (phase,) = method.phases()
        merged = None
        for round_ in range(1, config.rounds + 1):
            merged = one_round(phase, phase.members, merged, round_)
        return method, phase, merged

    method, phase, merged = trained(config, every)
    row("with all sites", method, merged)
    held = {n: sent for n, sent in phase.exchange.server_state().items() if n != left}
    phase.exchange.restore(held)
    merged = phase.exchange.merge(config.rounds + 1)
    row("forgotten", method, merged)
    members = {n: member for n, member in phase.members.items() if n != left}
    row("one more round", method, one_round(phase, members, merged, config.rounds + 2))
    for name, draw in (("never", seed), ("never, other draw", seed + OTHER)):
        method, _, merged = trained(config.model_copy(update={"seed": draw}), staying)
        row(name, method, merged)


def one_round(phase: Any, members: dict[str, Any], merged: Any, round_: int) -> Any:
    for member in members.values():
        phase.exchange.accept(phase.exchange.site_step(member, merged, round_))
    return phase.exchange.merge(round_)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["update", "forget"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--leaves")
    given = parser.parse_args()
    options: dict[str, Any] = {
        "backbone": given.backbone, "image_size": 256, "weights": given.weights,
        "calibration": "none", "upload_rows": given.rows, "rounds": given.rounds,
    }  # fmt: skip
    print("| seed | run | AUROC | worst | rows |\n|" + " --- |" * 5)
    for seed in given.seeds:
        if given.what == "update":
            update(given.data, seed, options)
        else:
            forget(given.data, seed, options, given.leaves)


if __name__ == "__main__":
    main()
