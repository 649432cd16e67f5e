"""Students trained in mixed precision against float32: milliseconds per image and step.

    python benchmarks/mixed_precision.py NAME=WEIGHTS [NAME=WEIGHTS ...] [--methods stfpm,rd]

NAME is a backbone, WEIGHTS its safetensors file; `fedvad-tiny` needs none. Layers and batches are
those of `fedvad train --method`. The images are noise: the time of a step does not depend on them.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
from common import Clock, Row, alternate, backbones_options, clock_of, report
from PIL import Image

from fedvad.data.folders import ImageItem, ImageSet
from fedvad.features.extractor import FeatureExtractor
from fedvad.runs.config import resolve_config
from fedvad.runs.students import make_student


def run(
    backbones: dict[str, Path | None],
    methods: list[str],
    *,
    image_size: int = 256,
    steps: int = 5,
    repeat: int = 3,
    clock: Clock = perf_counter,
) -> list[Row]:
    """One row per backbone and method: mixed precision as ours, float32 as theirs."""
    rows = []
    for name, weights in backbones.items():
        for method in methods:
            with tempfile.TemporaryDirectory() as folder:
                images = _noise(Path(folder), image_size)
                config = resolve_config(
                    method=method, backbone=name, weights=weights, image_size=image_size
                )
                detector = make_student(config, FeatureExtractor(config.features()))
                plain = replace(detector.train, steps=steps)
                site = detector.prepare(images)
                configs = {
                    "mixed": replace(plain, mixed_precision=True),
                    "float32": replace(plain, mixed_precision=False),
                }
                works = {n: lambda s=site, c=c: s.train(config=c) for n, c in configs.items()}
                seconds = alternate(works, repeat, clock, warm_up=1)
                site.close()
            ours, theirs = (1000 * s / steps / plain.batch for s in seconds.values())
            rows.append(Row(f"{method}, {name}", ours, theirs, "ms per image and step"))
    return rows


def _noise(folder: Path, size: int) -> ImageSet:
    rng = np.random.default_rng(0)
    items = []
    for i in range(20):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
        items.append(ImageItem(path, 0, "good", None))
    return ImageSet(tuple(items))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    backbones_options(parser)
    parser.add_argument("--methods", default="stfpm,paste,rd,aand,dmdd")
    arguments = parser.parse_args()
    rows = run(
        dict(arguments.backbones),
        arguments.methods.split(","),
        image_size=arguments.image_size,
        clock=clock_of(arguments),
    )
    report(rows, "Students: mixed precision against float32", arguments)


if __name__ == "__main__":
    main()
