"""Our PatchCore against anomalib's: same backbone, weights, images and size of memory.

    python benchmarks/anomalib_patchcore.py SET --weights F [--images 40] [--rows 1000]

SET is a folder in MVTec's layout, F weights of timm's ResNet-18. anomalib's torch model is used
without Lightning around it. Both start from image files and see each once.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from common import Clock, Row, alternate, clock_of, options, report, timed

from fedvad.data.folders import ImageSet, read_set
from fedvad.data.images import read_rgb, resize_rgb
from fedvad.detectors.memory.feddymem import PatchCore
from fedvad.evaluation.metrics import image_auroc
from fedvad.features.compat import import_timm
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor

_BATCH = 8
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


class Theirs:
    """anomalib's PatchCore with the steps that its Lightning module does around it."""

    def __init__(self, weights: Path, image_size: int) -> None:
        import_timm()
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel
        from safetensors.torch import load_file

        self.make = lambda: PatchcoreModel(
            layers=["layer2", "layer3"], backbone="resnet18", pre_trained=False
        )
        self.state = load_file(weights)
        self.image_size = image_size
        self.model: Any = None

    def fit(self, images: ImageSet, rows: int) -> None:
        self.model = self.make()
        network = self.model.feature_extractor.feature_extractor
        missing = network.load_state_dict(self.state, strict=False).missing_keys
        assert not [key for key in missing if "num_batches" not in key], missing
        self.model.train()
        self.model.feature_extractor.eval()
        for batch in self.batches(images):
            self.model(batch)
        patches = sum(map(len, self.model.embedding_store))
        self.model.subsample_embedding((rows + 0.5) / patches)
        self.model.eval()

    def score(self, images: ImageSet) -> np.ndarray:
        with torch.inference_mode():
            return np.concatenate([self.model(b).pred_score.numpy() for b in self.batches(images)])

    def batches(self, images: ImageSet) -> Any:
        paths = images.paths
        for start in range(0, len(paths), _BATCH):
            stack = np.stack(
                [resize_rgb(read_rgb(p), self.image_size) for p in paths[start : start + _BATCH]]
            )
            yield (torch.from_numpy(stack).permute(0, 3, 1, 2) / 255 - _MEAN) / _STD


def run(
    data: Path,
    weights: Path,
    *,
    images: int = 40,
    rows: int = 1000,
    repeat: int = 3,
    clock: Clock = perf_counter,
) -> list[Row]:
    """Rows for fitting (a quarter of the patches as candidates, and all) and for scoring."""
    config = FeatureConfig(backbone="resnet18", weights=weights)
    site = read_set(data)
    train, test = site.train[:images], site.test
    extractor = FeatureExtractor(config)
    extractor.describe(np.zeros((1, config.image_size, config.image_size, 3), np.uint8))
    default = PatchCore(extractor=extractor, rows=rows)
    every = PatchCore(extractor=extractor, rows=rows, candidates=1.0)
    theirs = Theirs(weights, config.image_size)
    # theirs takes most of a minute
    slow = timed(lambda: theirs.fit(train, rows), clock)
    fits = alternate(
        {"default": lambda: default.fit(train), "all": lambda: every.fit(train)}, 1, clock
    )
    assert len(theirs.model.memory_bank) == rows
    name = f"fit on {len(train)} images, memory of {rows}"
    out = [
        Row(f"{name}, default (a quarter of the patches)", fits["default"], slow, "s"),
        Row(f"{name}, every patch a candidate", fits["all"], slow, "s"),
    ]
    works = {"ours": lambda: default.score(test.paths), "theirs": lambda: theirs.score(test)}
    seconds = alternate(works, repeat, clock)
    aurocs = {
        "ours": image_auroc(default.score(test.paths).image, test.labels),
        "every": image_auroc(every.score(test.paths).image, test.labels),
        "theirs": image_auroc(theirs.score(test), test.labels),
    }
    ours, others = (1000 * seconds[k] / len(test) for k in ("ours", "theirs"))
    note = f"image AUROC {aurocs['ours']:.4f} (every patch: {aurocs['every']:.4f}), "
    note += f"theirs {aurocs['theirs']:.4f}"
    out.append(Row(f"score {len(test)} images", ours, others, "ms per image", note))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    options(parser)
    arguments = parser.parse_args()
    rows = run(
        arguments.data,
        arguments.weights,
        images=arguments.images,
        rows=arguments.rows,
        repeat=arguments.repeat,
        clock=clock_of(arguments),
    )
    remark = (
        "Features: ours OpenVINO, theirs eager PyTorch; both on the CPU. Ours scores by the mean "
        "of the highest cells of a smoothed map, theirs by the re-weighted maximum."
    )
    report(rows, "PatchCore against anomalib's", arguments, remark)


if __name__ == "__main__":
    main()
