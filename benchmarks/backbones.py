"""The bundled backbone against others: descriptors of images in memory, and of image files.

    python benchmarks/backbones.py NAME=WEIGHTS [NAME=WEIGHTS ...] [--data FOLDER] [--images 32]

NAME is a backbone, WEIGHTS its safetensors file; `filterbank` needs none. All run on OpenVINO and
take turns. FOLDER holds images; without it only images in memory are measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
from common import Clock, Row, alternate, backbones_options, clock_of, report

from fedvad.data.images import IMAGE_SUFFIXES
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor

OURS = "fedvad-tiny"


def run(
    others: dict[str, Path | None],
    *,
    data: Path | None = None,
    images: int = 32,
    image_size: int = 256,
    repeat: int = 7,
    clock: Clock = perf_counter,
) -> list[Row]:
    """Rows of milliseconds per image, one per other backbone and kind of images."""
    extractors = {
        name: FeatureExtractor(FeatureConfig(backbone=name, weights=file, image_size=image_size))
        for name, file in {OURS: None, **others}.items()
    }
    pixels = np.random.default_rng(0).integers(
        0, 256, (images, image_size, image_size, 3), dtype=np.uint8
    )
    kinds: dict[str, dict[str, Callable[[], object]]] = {
        "in memory": {name: lambda e=e: e.describe(pixels) for name, e in extractors.items()}
    }
    if data is not None:
        found = sorted(p for p in data.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)[:images]
        kinds["from files"] = {
            name: lambda e=e: list(e.stream(found)) for name, e in extractors.items()
        }
    rows = []
    for kind, works in kinds.items():
        count = images if kind == "in memory" else len(found)
        seconds = alternate(works, repeat, clock, warm_up=1)
        for name in others:
            ours, theirs = (1000 * seconds[n] / count for n in (OURS, name))
            dims = f"{extractors[OURS].grid[2]} and {extractors[name].grid[2]} dimensions"
            rows.append(Row(f"{OURS} / {name}, {kind}", ours, theirs, "ms per image", dims))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    backbones_options(parser)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=32)
    arguments = parser.parse_args()
    rows = run(
        dict(arguments.backbones),
        data=arguments.data,
        images=arguments.images,
        image_size=arguments.image_size,
        clock=clock_of(arguments),
    )
    report(rows, f"Backbones: {OURS} against others, OpenVINO", arguments)


if __name__ == "__main__":
    main()
