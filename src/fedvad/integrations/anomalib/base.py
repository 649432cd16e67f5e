"""What the plugin's models share: one pass over normal images, then a memory and a threshold."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from anomalib import LearningType
from anomalib.data import Batch
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from torch import nn
from torchvision.transforms.v2 import Resize

from fedvad.detectors.calibration import choose_images, held_out_scores
from fedvad.detectors.memory.site import FedDyMemConfig, round_seed
from fedvad.detectors.scoring import MemoryScorer, ScoringConfig
from fedvad.errors import WeightsError
from fedvad.evaluation.sites import site_threshold
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.features.names import BUNDLED, IMAGE_SIZE, brings_weights, default_backbone
from fedvad.half import HalfArray, to_half
from fedvad.integrations.anomalib.net import MemoryNet
from fedvad.integrations.anomalib.post_processor import NormalOnlyPostProcessor
from fedvad.memory.coreset import CandidateSampler
from fedvad.runs.config import CALIBRATION_IMAGES

log = logging.getLogger(__name__)


class _Collected:
    """What one epoch leaves behind: sampled patches, and whole images to find a threshold on."""

    def __init__(self, n_images: int, network: Any, fraction: float, seed: int) -> None:
        height, width = network.grid
        self.sampler = CandidateSampler(
            n_images=n_images,
            patches_per_image=height * width,
            dim=network.dim,
            fraction=fraction,
            max_bytes=FedDyMemConfig.candidate_bytes,
            seed=round_seed(seed, 1),
        )
        self._wanted = set(choose_images(n_images, CALIBRATION_IMAGES, seed))
        self._seen = 0
        self.images: list[HalfArray] = []

    def add(self, descriptors: HalfArray) -> None:
        """Take (b, h, w, d) descriptors."""
        for image in descriptors:
            self.sampler.add(image)
            if self._seen in self._wanted:
                self.images.append(image.copy())
            self._seen += 1


class MemoryModule(AnomalibModule):  # type: ignore[misc]
    """What the models share; they call `_prepare` at the end of their constructors."""

    model: MemoryNet

    def _prepare(
        self,
        extractor: FeatureExtractor,
        scoring: ScoringConfig,
        *,
        candidates: float,
        target_fpr: float,
        seed: int,
    ) -> None:
        self.model = MemoryNet(extractor.network, scoring, extractor.config.side)
        self.candidates = candidates
        self.target_fpr = target_fpr
        self.seed = seed
        self.calibrates = True
        self._collected: _Collected | None = None

    def _remember(self, patches: npt.NDArray[np.float32]) -> None:
        """Make the memory of (n, d) normal patches, raw descriptors."""
        raise NotImplementedError

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Resize only: the descriptor network normalises as its backbone wants it."""
        return PreProcessor(
            transform=Resize(image_size or (IMAGE_SIZE, IMAGE_SIZE), antialias=True)
        )

    def configure_post_processor(self) -> NormalOnlyPostProcessor:
        """Thresholds from normal images."""
        return NormalOnlyPostProcessor()

    @staticmethod
    def configure_optimizers() -> None:
        """Nothing is trained by gradients."""

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One pass over the normal images, on one device."""
        return {
            "max_epochs": 1,
            "num_sanity_val_steps": 0,
            "val_check_interval": 1.0,
            "devices": 1,
            "gradient_clip_val": 0,
        }

    @property
    def learning_type(self) -> LearningType:
        """Normal images only."""
        return LearningType.ONE_CLASS

    def on_train_epoch_start(self) -> None:
        """Every fit starts afresh, and so would every further epoch."""
        n_images = len(self.trainer.train_dataloader.dataset)
        self._collected = _Collected(n_images, self.model.network, self.candidates, self.seed)

    def training_step(self, batch: Batch, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Look at a batch of normal images; the loss is a stand-in that nothing depends on."""
        assert self._collected is not None
        with torch.inference_mode():
            descriptors = self.model.describe(batch.image).float().cpu()
        self._collected.add(to_half(descriptors.contiguous().numpy()))
        return torch.zeros((), device=self.device, requires_grad=True)

    def validation_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Any:
        """Scores and maps of a batch."""
        return batch.update(**self.model(batch.image)._asdict())

    def on_validation_start(self) -> None:
        """anomalib validates before an epoch ends, and needs the memory for it."""
        self._finish()

    def on_train_epoch_end(self) -> None:
        """Without validation data the epoch's end is the time."""
        self._finish()

    def _finish(self) -> None:
        collected, self._collected = self._collected, None
        if collected is None:
            return
        self._remember(collected.sampler.result())
        if self.calibrates:
            self._set_threshold(self._own_threshold(collected.images))

    def _own_threshold(self, images: Sequence[HalfArray]) -> float | None:
        """From normal images, each scored by the memory without its own patches."""
        scores = held_out_scores(
            images,
            MemoryScorer(self.model.bank, self.model.scoring),
            self.model.generator,
            leave_one_out=True,
        )
        found = site_threshold(scores, self.target_fpr)
        if found is None:
            log.warning("%d normal images are too few for a threshold", len(scores))
        return None if found is None else found.value

    def _set_threshold(self, value: float | None) -> None:
        if value is not None and isinstance(self.post_processor, NormalOnlyPostProcessor):
            self.post_processor.set_threshold(value)


def make_extractor(
    backbone: str | None,
    weights: str | Path | None,
    image_size: int,
    layers: Sequence[int] | None,
    pool: int,
) -> FeatureExtractor:
    """The extractor of a constructor's options; raises `WeightsError`, `ConfigError`."""
    backbone = backbone or default_backbone(weights)
    check_weights(backbone, weights)
    return FeatureExtractor(
        FeatureConfig(
            backbone=backbone,
            weights=None if weights is None else Path(weights),
            image_size=image_size,
            layers=None if layers is None else tuple(layers),
            pool=pool,
            engine="torch",
        )
    )


def check_weights(backbone: str, weights: str | Path | None) -> None:
    """Raise `WeightsError` where weights would have to be downloaded."""
    if weights is None and not brings_weights(backbone):
        raise WeightsError(
            f"give weights=FILE.safetensors for backbone {backbone} (--model.weights): the plugin "
            f"downloads nothing; backbone {BUNDLED}, filterbank or a backbone file needs none"
        )


def make_pre_processor(given: nn.Module | bool, image_size: int) -> nn.Module | bool:
    """What a constructor was given, or for True the resize to the model's image size."""
    if given is not True:
        return given
    made: nn.Module = MemoryModule.configure_pre_processor((image_size, image_size))
    return made
