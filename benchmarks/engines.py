"""OpenVINO against eager PyTorch, for the whole way from pixels to patch descriptors.

    python benchmarks/engines.py NAME=WEIGHTS [NAME=WEIGHTS ...] [--images 16]

NAME is a backbone, WEIGHTS its safetensors file; `filterbank` needs none.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np
from common import Clock, Row, alternate, backbones_options, clock_of, report

from fedvad.features.config import FeatureConfig
from fedvad.features.engine import make_engine
from fedvad.features.extractor import FeatureExtractor


def run(
    backbones: dict[str, Path | None],
    *,
    images: int = 16,
    image_size: int = 256,
    repeat: int = 5,
    clock: Clock = perf_counter,
) -> list[Row]:
    """One row per backbone: milliseconds per image of each engine in its own batches."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (images, image_size // 8, image_size // 8, 3), dtype=np.uint8)
    pixels = coarse.repeat(8, 1).repeat(8, 2)
    rows = []
    for name, weights in backbones.items():
        config = FeatureConfig(backbone=name, weights=weights, image_size=image_size)
        network = FeatureExtractor(config).network

        def describe(engine: object) -> np.ndarray:
            step = engine.batch_size  # type: ignore[attr-defined]
            batches = ((s, pixels[s : s + step]) for s in range(0, images, step))
            return np.concatenate([out for _, out in engine.run(batches)])  # type: ignore[attr-defined]

        engines = {
            kind: make_engine(network, image_size=image_size, kind=kind)
            for kind in ("openvino", "torch")
        }
        made = {kind: describe(engine) for kind, engine in engines.items()}  # and warm-up
        error = float(np.abs(made["openvino"] - made["torch"]).max())
        scale = float(np.abs(made["torch"]).max())
        seconds = alternate(
            {kind: lambda e=engine: describe(e) for kind, engine in engines.items()}, repeat, clock
        )
        ours, theirs = (1000 * seconds[kind] / images for kind in ("openvino", "torch"))
        note = f"largest difference {error:.1e} of values up to {scale:.3g}"
        rows.append(Row(f"{name}, {image_size} px", ours, theirs, "ms per image", note))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    backbones_options(parser)
    parser.add_argument("--images", type=int, default=16)
    arguments = parser.parse_args()
    rows = run(
        dict(arguments.backbones),
        images=arguments.images,
        image_size=arguments.image_size,
        clock=clock_of(arguments),
    )
    report(rows, "Engines: OpenVINO against eager PyTorch", arguments)


if __name__ == "__main__":
    main()
