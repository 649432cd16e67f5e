"""Speed as ratios, each pair measured side by side in this one process.

    python benchmarks/speed.py DATA --weights F [--backbone resnet18] [--rounds 3]

Prints a Markdown table. Seconds depend on the machine and its load; the ratios are what counts.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from common import alternate

import fedvad
from fedvad.data.folders import read_sites
from fedvad.data.images import read_rgb, resize_rgb
from fedvad.detectors.scoring import MemoryScorer, ScoringConfig
from fedvad.features.config import FeatureConfig
from fedvad.features.engine import make_engine
from fedvad.features.extractor import FeatureExtractor
from fedvad.memory.bank import MemoryBank
from fedvad.memory.coreset import k_center


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    config = FeatureConfig(backbone=arguments.backbone, weights=arguments.weights)
    paths = [item.path for site in read_sites(arguments.data) for item in site.train]
    images = np.stack([resize_rgb(read_rgb(p), config.image_size) for p in paths[:32]])
    rows: list[tuple[str, float, float]] = []

    extractor, setup, first = fresh_forward(config, paths)
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "weights": arguments.weights,
            "backbone": arguments.backbone,
            "rounds": arguments.rounds,
        }
        data = training_images_only(arguments.data, Path(folder) / "data")
        cold = train_seconds(data, Path(folder), "cold", options)
        warm = train_seconds(data, Path(folder), "warm", options | {"calibration": "none"})
    _, again, second_pass = fresh_forward(config, paths)
    # before and after, so that a machine that slows down slows both
    forward, setup = (first + second_pass) / 2, (setup + again) / 2
    training = cold["features"] + cold["local"] + cold["merge"]
    whole = cold["wall"] - cold["calibrate"]  # saved states, files and tables, too
    name = f"training, {arguments.rounds} rounds, cold cache"
    rows.append((f"{name} / forward, both with engine set-up", training, forward + setup))
    rows.append((f"{name}, set-up taken off / forward", training - setup, forward))
    rows.append(("with all files written, set-up taken off", whole - setup, forward))
    rows.append(("and with thresholds", whole - setup + cold["calibrate"], forward))
    rows.append(("training, warm cache / forward", warm["wall"], forward))

    kinds = {
        kind: make_engine(extractor.network, image_size=config.image_size, kind=kind)
        for kind in ("openvino", "torch")
    }
    runs = {k: lambda e=e: list(e.run(batches(images, e))) for k, e in kinds.items()}
    seconds = alternate(runs, repeat=5, warm_up=1)
    rows.append(("32 images: OpenVINO / torch eager", seconds["openvino"], seconds["torch"]))

    descriptors = extractor.describe(images)
    patches = descriptors.reshape(-1, descriptors.shape[-1]).astype(np.float32)
    single = images[:1]
    for size in (2000, 7500, 15000):
        if size >= len(patches):
            continue
        chosen = np.random.default_rng(0).permutation(len(patches))[:size]
        bank = MemoryBank.of_patches(patches[chosen])
        fast, exact = (MemoryScorer(bank, ScoringConfig(search=s)) for s in ("fast", "exact"))
        one = descriptors[-1].astype(np.float32)
        seconds = alternate(
            {
                "forward": lambda: extractor.describe(single),
                "fast": lambda f=fast, d=one: f.score(d),
                "exact": lambda e=exact, d=one: e.score(d),
            },
            repeat=15,
            warm_up=1,
        )
        whole = seconds["forward"] + seconds["fast"]
        rows.append((f"one image, {size} rows, fast / forward alone", whole, seconds["forward"]))
        rows.append((f"search in {size} rows: fast / exact", seconds["fast"], seconds["exact"]))

    seconds = alternate(
        {
            "ours": lambda: k_center(patches[:20000], 500, seed=0),
            "plain": lambda: plain_k_center(patches[:20000], 500),
        },
        repeat=3,
        warm_up=1,
    )
    rows.append(("k-center of 20 000 to 500: ours / plain loop", seconds["ours"], seconds["plain"]))

    print("| what | seconds | against | ratio |\n| --- | --- | --- | --- |")
    for name, ours, theirs in rows:
        print(f"| {name} | {ours:.4g} | {theirs:.4g} | {ours / theirs:.3f} |")


def train_seconds(data: Path, folder: Path, name: str, options: dict) -> dict[str, float]:
    start = perf_counter()
    results = fedvad.train(data, folder / name, cache=folder / "cache", **options)
    return results["ledger"]["seconds"] | {"wall": perf_counter() - start}


def training_images_only(data: Path, copy: Path) -> Path:
    """The sites without their test images, so that only training is timed."""
    for site in read_sites(data):
        (copy / site.name / "train").mkdir(parents=True)
        (copy / site.name / "train" / "good").symlink_to(site.train[0].path.parent.resolve())
    return copy


def fresh_forward(
    config: FeatureConfig, paths: list[Path]
) -> tuple[FeatureExtractor, float, float]:
    """An extractor, seconds until its engine was ready, and seconds of a pass over all images."""
    start = perf_counter()
    extractor = FeatureExtractor(config)
    extractor.engine  # noqa: B018 - made on first use
    ready = perf_counter()
    run_all(extractor, paths)
    return extractor, ready - start, perf_counter() - ready


def run_all(extractor: FeatureExtractor, paths: list[Path]) -> None:
    """Decode and one forward pass of every image, nothing kept."""
    for _ in extractor.stream(paths):
        pass


def batches(images: np.ndarray, engine: object) -> list[tuple[int, np.ndarray]]:
    step = engine.batch_size  # type: ignore[attr-defined]
    return [(i, images[i : i + step]) for i in range(0, len(images), step)]


def plain_k_center(points: np.ndarray, m: int) -> list[int]:
    """The textbook loop: one matrix-vector product per centre, norms cached."""
    data = torch.from_numpy(points)
    norms = (data * data).sum(1)
    chosen = [0]
    distances = norms + norms[0] - 2 * data @ data[0]
    while len(chosen) < m:
        i = int(distances.argmax())
        chosen.append(i)
        distances = torch.minimum(distances, norms + norms[i] - 2 * data @ data[i])
    return chosen


if __name__ == "__main__":
    main()
