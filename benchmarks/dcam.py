"""One model for several classes: STFPM, DCAM and its variants, trained alike, and a memory.

    python benchmarks/dcam.py --data SET SET … --weights F [--backbone resnet18] [--layers 1,2,3]
        [--size 256] [--seeds 0,1,2] [--epochs 100] [--batch 8] [--rate 0.4] [--steps N]
        [--device cuda] [--pixels] [--only "stfpm;channel"]

Every set (in MVTec's layout) is a class. A model is trained on the normal images of all of them
and tested on each; a part of the normal images chooses the epoch, no test image does. Prints a
Markdown table per metric, mean ± standard deviation over the seeds: by class, the mean of the
classes (macro), and the test images of all classes ranked together by raw score (pooled).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from common import backbone_options, extractor, machine, spread

from fedvad.data.folders import ImageSet, Site, read_set
from fedvad.detectors.registry import create
from fedvad.detectors.student.dcam.options import AttentionConfig, ImitationConfig
from fedvad.detectors.student.training import TrainConfig
from fedvad.evaluation.sites import evaluate_site, summarise

# The first of each kind is the shipped default.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "stfpm": ("stfpm", {}),
    "stfpm, sum of levels": ("stfpm", {"combine": "sum"}),
    "channel": ("dcam", {}),
    "channel, kept at test": ("dcam", {"attention": AttentionConfig(keep_at_test=True)}),
    "channel, on both": ("dcam", {"attention": AttentionConfig(on="both")}),
    "channel, as weight": ("dcam", {"attention": AttentionConfig(att_as_weight=True)}),
    "channel, as weight, residual": (
        "dcam",
        {"attention": AttentionConfig(att_as_weight=True, residual=True)},
    ),
    "channel, residual": ("dcam", {"attention": AttentionConfig(residual=True)}),
    "spatial": ("dcam", {"attention": AttentionConfig("spatial")}),
    "channel and spatial": ("dcam", {"attention": AttentionConfig("both")}),
    "no attention": ("dcam", {"attention": AttentionConfig("none")}),
    "no attention, cosine alone (the public code)": (
        "dcam",
        {"attention": AttentionConfig("none"), "loss": ImitationConfig(kl_weight=0)},
    ),
    "channel, cosine per location": ("dcam", {"loss": ImitationConfig(cosine="per_location")}),
    "no attention, cosine per location": (
        "dcam",
        {"attention": AttentionConfig("none"), "loss": ImitationConfig(cosine="per_location")},
    ),
    "patchcore": ("patchcore", {}),
    "channel, plain KL at tau 4": ("dcam", {"loss": ImitationConfig(standardise="none", tau=4)}),
}
METRICS = ("image_auroc", "pixel_auroc", "aupro")


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    classes = [read_set(path) for path in arguments.data]
    if len({c.name for c in classes}) < len(classes):
        raise SystemExit("classes are told apart by the names of their folders: give each its own")
    names = arguments.only.split(";") if arguments.only else list(VARIANTS)
    seeds = [int(s) for s in arguments.seeds.split(",")]
    found: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        found[name] = [run(name, seed, classes, arguments) for seed in seeds]
    print(f"{machine()}. {train_config(arguments)}, seeds {seeds}.")
    for metric in METRICS if arguments.pixels else METRICS[:1]:
        print(f"\n{metric}\n\n{table(metric, [c.name for c in classes], found)}")


def run(
    name: str, seed: int, classes: Sequence[Site], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train one variant on all classes and test it on each."""
    kind, options = VARIANTS[name]
    if kind != "patchcore":
        options = options | {"train": train_config(arguments), "smooth": 1, "top": 0.0}
    detector = create(kind, extractor=extractor(arguments), seed=seed, **options)
    start = perf_counter()
    detector.fit(pooled(classes))
    seconds = perf_counter() - start
    results = [
        evaluate_site(
            c.name,
            c.test,
            detector.score(c.test.paths),
            None,
            image_size=arguments.size,
            pixel_metrics=arguments.pixels,
        )
        for c in classes
    ]
    summary = summarise(results, target_fpr=0.01, pixel_metrics=arguments.pixels)
    log = getattr(detector, "log_", None)  # a memory has none
    # mean maps of the held-out normals, as they score: of the plain student wherever the attention
    # is dropped, so that such variants compare
    summary["held_out"] = None if log is None else min(log.validation, default=None)
    summary["steps"], summary["seconds"] = 0 if log is None else log.steps, seconds
    macro = summary["image_auroc"]["mean"]
    print(f"{name}, seed {seed}: {macro} after {seconds:.0f} s", file=sys.stderr, flush=True)
    return summary


def pooled(classes: Sequence[Site]) -> ImageSet:
    """The training images of all classes as one set."""
    return sum((c.train for c in classes[1:]), classes[0].train)


def table(metric: str, classes: Sequence[str], found: Mapping[str, list[dict[str, Any]]]) -> str:
    """One metric of all variants as a Markdown table."""
    heads = ["variant", *classes, "macro", "pooled", "held-out maps", "steps", "training"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name, runs in found.items():
        cells = [name]
        cells += [spread([r[metric]["sites"][c] for r in runs]) for c in classes]
        cells += [spread([r[metric][which] for r in runs]) for which in ("mean", "pooled")]
        cells.append(spread([r["held_out"] for r in runs], 3))
        cells.append(f"{np.mean([r['steps'] for r in runs]):.0f}")
        cells.append(f"{np.median([r['seconds'] for r in runs]):.0f} s")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def train_config(arguments: argparse.Namespace) -> TrainConfig:
    return TrainConfig(
        epochs=arguments.epochs,
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.rate,
        patience=arguments.patience,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="SET")
    backbone_options(parser)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--steps", type=int, help="optimiser steps, instead of epochs")
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--rate", type=float, default=0.4)
    parser.add_argument("--patience", type=int, help="epochs without a better one (default: all)")
    parser.add_argument("--pixels", action="store_true", help="pixel AUROC and AUPRO, too")
    parser.add_argument("--only", help="names of variants, separated by semicolons")
    return parser.parse_args()


if __name__ == "__main__":
    main()
