"""PatchCore and FedDyMem as anomalib models, for its Engine and its command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from anomalib.metrics import Evaluator
from anomalib.visualization import Visualizer
from torch import nn

from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.memory.site import ROUNDS, FedDyMemConfig, round_seed
from fedvad.detectors.scoring import MapMode, ScoringConfig
from fedvad.errors import ConfigError, join_names
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.features.names import IMAGE_SIZE
from fedvad.integrations.anomalib.base import (
    MemoryModule,
    check_weights,
    make_extractor,
    make_pre_processor,
)
from fedvad.memory.bank import MemoryBank, concatenate
from fedvad.memory.neighbours import SearchMode
from fedvad.memory.reduce import reduce_patches
from fedvad.runs.config import TARGET_FPR, Reference
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.opening import open_memory_run
from fedvad.runs.run_folder import read_config


class PatchCore(MemoryModule):
    """A k-center coreset of normal patches (Roth et al. 2022), as `fedvad`'s PatchCore keeps it.

    Args:
        backbone: a timm model, `mcunet_in3`, `mcunet_in4`; `fedvad-tiny`, `filterbank` or a
            backbone file, which need no weights. None takes `resnet18` with weights, else
            `fedvad-tiny`.
        weights: safetensors file with the backbone's weights; nothing is ever downloaded.
        image_size: side in pixels to which images are resized.
        layers: taps of the backbone; None takes its default (strides 8 and 16).
        pool: side of the neighbourhood average, in cells.
        rows: vectors of the memory.
        candidates: share of all patches that the memory is chosen from.
        projection: dimensions in which it is chosen; None takes all.
        map: how distances become a map; density, smooth, top, search: see `ScoringConfig`.
        target_fpr: false-alarm rate that the threshold from normal images aims at.
        seed: of everything random.
        pre_processor: True resizes; another one must not normalise.
        post_processor: True decides by a threshold from normal images; anomalib's `PostProcessor`
            searches one on labelled validation images.
        evaluator: as in anomalib.
        visualizer: as in anomalib.
    """

    def __init__(
        self,
        backbone: str | None = None,
        weights: str | Path | None = None,
        image_size: int = IMAGE_SIZE,
        layers: Sequence[int] | None = None,
        pool: int = FeatureConfig.pool,
        rows: int = FedDyMemConfig.rows,
        candidates: float = FedDyMemConfig.candidates,
        projection: int | None = FedDyMemConfig.projection,
        map: MapMode = ScoringConfig.map,
        density: float = ScoringConfig.density,
        smooth: int = ScoringConfig.smooth,
        top: float = ScoringConfig.top,
        search: SearchMode = ScoringConfig.search,
        target_fpr: float = TARGET_FPR,
        seed: int = 0,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        scoring = ScoringConfig(map=map, density=density, smooth=smooth, top=top, search=search)
        extractor = make_extractor(backbone, weights, image_size, layers, pool)
        super().__init__(
            pre_processor=make_pre_processor(pre_processor, image_size),
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self._prepare(extractor, scoring, candidates=candidates, target_fpr=target_fpr, seed=seed)
        self.rows = rows
        self.projection = projection

    def _remember(self, patches: npt.NDArray[np.float32]) -> None:
        bank = reduce_patches(
            patches,
            self.rows,
            mode="coreset",
            seed=round_seed(self.seed, 1),
            projection=self.projection,
        )
        self.model.set_memory(bank)


class FedDyMem(MemoryModule):
    """The memory of a federation, imported from a `fedvad` run; or the memory of one site alone.

    With `run`, images are scored as the run scores them, before any training. Training then keeps
    the memory and finds a threshold on the normal images (a site of the run keeps the one it has);
    with `grow` it adds the `rows` patches that the federation's memory covers worst. Without `run`,
    training makes the coreset memory that a single site has before it meets others.

    Args:
        run: run folder of `fedvad train`; backbone, image size and scoring are then the run's.
        site: the site of the run whose generator, threshold and reference to use; None for images
            that the run never saw: their own patches must not be in its memory.
        reference: `global`, `local` or `union`, the memory that scores; None takes the run's.
        grow: whether training adds to an imported memory.
        backbone, weights, image_size, layers, pool: see `PatchCore`. With `run`, only `weights`
            counts, for a run that was moved to another machine.
        rows: vectors that training chooses.
        candidates, projection, map, smooth, top, search, target_fpr, seed: see `PatchCore`.
        pre_processor, post_processor, evaluator, visualizer: see `PatchCore`.
    """

    def __init__(
        self,
        run: str | Path | None = None,
        site: str | None = None,
        reference: Reference | None = None,
        grow: bool = False,
        backbone: str | None = None,
        weights: str | Path | None = None,
        image_size: int = IMAGE_SIZE,
        layers: Sequence[int] | None = None,
        pool: int = FeatureConfig.pool,
        rows: int = ROUNDS * FedDyMemConfig.rows,
        candidates: float = ROUNDS * FedDyMemConfig.candidates,
        projection: int | None = FedDyMemConfig.projection,
        map: MapMode = ScoringConfig.map,
        density: float = ScoringConfig.density,
        smooth: int = ScoringConfig.smooth,
        top: float = ScoringConfig.top,
        search: SearchMode = ScoringConfig.search,
        target_fpr: float = TARGET_FPR,
        seed: int = 0,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        bank: MemoryBank | None = None
        generator: Generator | None = None
        threshold: Threshold | None = None
        if run is None:
            if site is not None or reference is not None or grow:
                raise ConfigError("site, reference and grow belong to an imported run: give run")
            scoring = ScoringConfig(map=map, density=density, smooth=smooth, top=top, search=search)
            extractor = make_extractor(backbone, weights, image_size, layers, pool)
        else:
            trained, extractor = _open(Path(run), site, weights)
            detector = trained.detector(site, extractor, reference)
            bank, generator, scoring = detector.bank_, detector.generator_, trained.scoring
            threshold = trained.threshold(site, reference)
            if grow and generator is not None and not generator.is_identity:
                raise ConfigError(
                    f"site {site!r} trained a generator: patches that grow adds would lie in its "
                    "space, where a threshold cannot tell them from the images' own"
                )
        super().__init__(
            pre_processor=make_pre_processor(pre_processor, extractor.config.side),
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self._prepare(extractor, scoring, candidates=candidates, target_fpr=target_fpr, seed=seed)
        self.rows = rows
        self.projection = projection
        self.grow = grow
        self.imported = bank
        if bank is not None:
            self.model.set_memory(bank, generator)
            # its normal images may be in the memory already, so they cannot tell; more rows only
            # lower scores, so the threshold holds for a grown memory, too
            self.calibrates = site is None
            self._set_threshold(None if threshold is None else threshold.value)

    @classmethod
    def from_run(cls, run: str | Path, **options: Any) -> Self:
        """The model of a run folder; `options` as for the constructor."""
        return cls(run=run, **options)

    def _remember(self, patches: npt.NDArray[np.float32]) -> None:
        if self.imported is not None and not self.grow:
            return
        generator = self.model.generator
        new = reduce_patches(
            generator(patches),
            self.rows,
            mode="coreset",
            seed=round_seed(self.seed, 1),
            initial=None if self.imported is None else self.imported.vectors,
            projection=self.projection,
        )
        bank = new if self.imported is None else concatenate([self.imported, new])
        self.model.set_memory(bank, generator)


def _open(
    folder: Path, site: str | None, weights: str | Path | None
) -> tuple[TrainedRun, FeatureExtractor]:
    config = read_config(folder)
    check_weights(config.backbone, weights or config.weights)
    run, _, extractor = open_memory_run(folder, weights=None if weights is None else Path(weights))
    if site is not None and site not in run.sites:
        raise ConfigError(
            f"site {site!r} is not in {folder}: there are {join_names(run.sites)}; "
            "omit site for one that never trained"
        )
    return run, extractor
