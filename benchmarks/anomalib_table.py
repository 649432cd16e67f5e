"""Memory detectors side by side: fedvad's, anomalib's PatchCore and its MH-PatchCore.

    python benchmarks/anomalib_table.py SET --weights F [--rows 1000] [--cpu-time]

SET is a folder in MVTec's layout, F weights of timm's ResNet-18. All see the same images from
files, have the same backbone and weights, and as many rows of memory where that can be said.
anomalib's torch models are used without Lightning around them, with its own steps and sizes:
MH-PatchCore passes over the images three times and sees their middle 224 of 256 pixels. RAD and
SuperADD need weights of DINOv3, which nobody here has.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib_patchcore import Theirs
from common import Clock, clock_of, options, timed

from fedvad.data.folders import ImageSet, read_set
from fedvad.detectors.memory.feddymem import FedDyMem, MemoryDetector, PatchCore
from fedvad.evaluation.metrics import image_auroc
from fedvad.features.compat import import_timm
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor

_CUT = slice(16, 240)


class Hierarchical(Theirs):
    """anomalib's MH-PatchCore, at its defaults but for the backbone."""

    def __init__(self, weights: Path) -> None:
        super().__init__(weights, 256)
        import_timm()
        from anomalib.models.image.mh_patchcore.torch_model import MHPatchcoreModel

        self.make = lambda: MHPatchcoreModel(backbone="resnet18", pre_trained=False)

    def fit(self, images: ImageSet, rows: int) -> None:
        self.model = model = self.make()
        network = model.feature_extractor.feature_extractor
        network.load_state_dict(self.state, strict=False)
        model.memory_bank.memory_bank_size = rows
        model.train()
        model.feature_extractor.eval()
        steps: list[tuple[Callable[[Any], Any], Any]] = [
            (lambda found: found, model.pca),
            (model.pca, model.covariance),
            (lambda found: model.covariance(model.pca(found)), model.memory_bank),
        ]
        with torch.no_grad():
            for before, part in steps:
                for batch in self.batches(images):
                    part.update(before(model(batch)))
                part.finalize()
        model.eval()

    def batches(self, images: ImageSet) -> Any:
        for batch in super().batches(images):
            yield batch[:, :, _CUT, _CUT]


def megabytes(model: Any) -> float:
    """What a detector keeps besides its backbone."""
    if isinstance(model, MemoryDetector):
        assert model.bank_ is not None
        return float(model.bank_.vectors.nbytes) / 1e6
    kept = [b for n, b in model.named_buffers() if not n.startswith("feature_extractor")]
    return sum(b.numel() * b.element_size() for b in kept) / 1e6


def run(data: Path, weights: Path, *, rows: int, clock: Clock) -> Iterator[list[str]]:
    """A row for each detector, as soon as it is measured: image AUROC, fit, score, memory."""
    config = FeatureConfig(backbone="resnet18", weights=weights)
    site = read_set(data)
    train, test = site.train, site.test
    extractor = FeatureExtractor(config)
    extractor.describe(np.zeros((1, config.image_size, config.image_size, 3), np.uint8))
    ours = {
        "fedvad, FedDyMem": FedDyMem(extractor=extractor),
        f"fedvad, PatchCore of {rows} rows": PatchCore(extractor=extractor, rows=rows),
    }
    for name, detector in ours.items():
        fit = timed(lambda detector=detector: detector.fit(train), clock)  # type: ignore[misc]
        found: list[Any] = []
        score = timed(lambda d=detector, f=found: f.append(d.score(test.paths).image), clock)  # type: ignore[misc]
        yield _row(name, image_auroc(found[0], test.labels), fit, score, len(test), detector)
    theirs = {
        f"anomalib, PatchCore of {rows} rows": Theirs(weights, config.image_size),
        f"anomalib, MH-PatchCore of {rows} rows": Hierarchical(weights),
    }
    for name, model in theirs.items():
        fit = timed(lambda model=model: model.fit(train, rows), clock)  # type: ignore[misc]
        scores: list[Any] = []
        score = timed(lambda m=model, s=scores: s.append(m.score(test)), clock)  # type: ignore[misc]
        yield _row(name, image_auroc(scores[0], test.labels), fit, score, len(test), model.model)


def _row(
    name: str, auroc: float | None, fit: float, score: float, images: int, model: Any
) -> list[str]:
    milliseconds = f"{1000 * score / images:.1f}"
    return [name, f"{auroc:.4f}", f"{fit:.1f}", milliseconds, f"{megabytes(model):.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1000)
    options(parser)
    arguments = parser.parse_args()
    print("| detector | image AUROC | fit, s | score, ms per image | memory, MB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in run(
        arguments.data, arguments.weights, rows=arguments.rows, clock=clock_of(arguments)
    ):
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
