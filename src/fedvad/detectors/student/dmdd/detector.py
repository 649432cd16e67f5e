"""DMDD as a detector: a student that models the normal and the abnormal, and a head that fuses."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from fedvad.data.synthesis import SynthesisConfig
from fedvad.detectors.base import Arrays, Values
from fedvad.detectors.scoring import image_score
from fedvad.detectors.student.detector import StudentDetector
from fedvad.detectors.student.dmdd.options import DualConfig
from fedvad.detectors.student.dmdd.site import DMDDSite
from fedvad.detectors.student.drawing import DEFECTS, check_drawing
from fedvad.detectors.student.loss import Combine
from fedvad.detectors.student.pixels import Mapper, mapped
from fedvad.detectors.student.rd.detector import adam
from fedvad.detectors.student.site import StudentSite
from fedvad.detectors.student.training import TrainConfig, TrainLog
from fedvad.errors import ConfigError, check_choice
from fedvad.features.extractor import FeatureExtractor
from fedvad.memory.bank import FloatArray

if TYPE_CHECKING:
    import torch

    from fedvad.detectors.student.branches import PaSTeNet
    from fedvad.detectors.student.dmdd.decouple import DualMapNet, DualNet

ScoreSource = Literal["seg", "maps", "mix"]
_SOURCES: tuple[ScoreSource, ...] = get_args(ScoreSource)
# A head that is sure of normal images has next to nothing there; in `mix` it must not drown the
# distances, which never come near zero.
_LEAST = 0.01
_SCALED_BY = 256
_PAIRS = 4  # of a batch, for the time of a step
_DUAL, _TRAIN = DualConfig(), replace(adam(20_000), batch=_PAIRS)


@dataclass(frozen=True, eq=False)
class DualMaps:
    """All maps of readable images, (n, h, w) float32 each, neither scaled nor smoothed.

    normality, abnormality: distances of the branches from the teacher; summed: both added; head:
    probabilities. kept: (n,) positions in the list of images. bad: one reason per unreadable one.
    """

    normality: FloatArray
    abnormality: FloatArray
    summed: FloatArray
    head: FloatArray
    kept: npt.NDArray[np.int64]
    bad: tuple[str, ...] = ()


@dataclass(kw_only=True, eq=False, repr=False)
class DMDD(StudentDetector):
    """Dual-modelling decouple distillation (Liu et al., ACM MM 2024, arXiv 2408.03888).

    dual: what is trained, see `DualConfig`. source: what gives the score: `seg`, the head; `maps`,
    the sum of the distances of both branches; `mix`, the mean of these two, each divided before by
    its median image score on the held-out normal images (by at least 0.01). synthesis, textures:
    how defects are drawn on the normal images; no image labelled as anomalous is ever read. train:
    a fixed number of steps, of which the last weights are kept. smooth: applies to the distances,
    not to the head's map. The rest is as for `StudentDetector`.

    scales_: by source, as `scale_`. parts_: the medians that `mix` divides by.
    """

    name: ClassVar[str] = "dmdd"
    recipe: ClassVar[Mapping[str, int]] = {"student": 80_000}  # pairs
    own_values: ClassVar[tuple[str, ...]] = ("scale", "log", "scales", "parts")
    site: ClassVar[type[StudentSite]] = DMDDSite

    dual: DualConfig = _DUAL
    source: ScoreSource = "seg"
    synthesis: SynthesisConfig = DEFECTS
    textures: Path | None = None
    combine: Combine = "sum"
    train: TrainConfig = _TRAIN

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scales_: dict[str, float] | None = None
        self.parts_: dict[str, float] | None = None

    @classmethod
    def round_training(cls) -> TrainConfig:
        """See `StudentDetector.round_training`."""
        return replace(adam(1), batch=_PAIRS, warmup=5, drop=1.0)

    @classmethod
    def round_options(
        cls, table: Mapping[str, Any], train: TrainConfig, steps: int | None
    ) -> dict[str, Any]:
        """See `StudentDetector.round_options`. A site cannot know how many of all steps are behind
        it, so the head learns from the first one.
        """
        given = {"head_start_step": 0} | table.get("dual", {})
        found = super().round_options({**table, "dual": given}, train, steps)
        if found["dual"].head_start_step:
            raise ConfigError("head_start_step must be 0 when sites train in rounds")
        return found

    def network(self) -> DualNet:
        """See `StudentDetector.network`."""
        from fedvad.detectors.student.dmdd.decouple import build_dual

        self._check()
        side = self.extractor.config.side
        net = build_dual(*self._taps(), self.dual, image_size=side, seed=self.seed)
        return net.to(self.extractor.config.device)

    def with_net(self, net: PaSTeNet, normals: Sequence[Path], log: TrainLog | None = None) -> Self:
        """See `StudentDetector.with_net`; the scales of all sources are measured, on the first 256
        of `normals`.
        """
        stacks = super()._compiled(net)
        some = normals[:_SCALED_BY]  # all their maps are in memory at once
        found = [
            stack
            for _, stack, _ in mapped(stacks, some, self.extractor.config)
            if stack is not None
        ]

        def scale(source: ScoreSource) -> float:
            scores = [image_score(self._fused(stack, source), self.top) for stack in found]
            return max(float(np.median(scores)), 1e-12) if scores else 1.0

        apart = {"seg": scale("seg"), "maps": scale("maps")}
        self.parts_ = {source: max(value, _LEAST) for source, value in apart.items()}
        self.scales_ = apart | {"mix": scale("mix")}
        dual: Any = copy.deepcopy(net)  # as `network` makes it
        self.net_, self.log_, self._mapper = dual, log, self._fusing(stacks)
        self.scale_ = self.scales_[self.source]
        return self

    def scoring_by(self, source: ScoreSource) -> Self:
        """A detector of the same trained net that scores by another source."""
        if self.net_ is None or self.scales_ is None:
            raise ConfigError(f"{self.name} has no student yet: call fit() or with_net() first")
        other = copy.copy(self)
        other.source, other._mapper = source, None
        other._check()
        other.scale_ = self.scales_[source]
        return other

    def maps(self, images: Sequence[Path]) -> DualMaps:
        """All maps of image files, apart: for looking at what each branch sees."""
        net, _ = self._trained()
        stacks, kept, bad = [], [], []
        for index, stack, error in mapped(super()._compiled(net), images, self.extractor.config):
            if stack is None:
                bad.append(error or "unknown error")
            else:
                stacks.append(stack)
                kept.append(index)
        found = np.stack(stacks) if stacks else np.zeros((0, 3, *self._grid), np.float32)
        normality, abnormality, head = (found[:, i] for i in range(3))
        positions = np.asarray(kept, np.int64)
        return DualMaps(
            normality, abnormality, normality + abnormality, head, positions, tuple(bad)
        )

    def map_net(self) -> torch.nn.Module:
        """See `Detector.map_net`."""
        from fedvad.detectors.student.dmdd.decouple import FusedMaps
        from fedvad.detectors.student.graphs import ScaledMaps

        net, scale = self._trained()
        assert self.parts_ is not None
        maps = FusedMaps(self._map_net(net), self.source, self.parts_, self.smooth)
        return ScaledMaps(maps, scale, 1)  # its parts are smoothed, each as it needs

    def macs(self) -> int:
        """See `StudentDetector.macs`; the head counts, whatever scores."""
        import torch

        from fedvad.detectors.student.cost import macs

        config = self.extractor.config
        side = config.side
        blank = torch.zeros(1, side, side, 3, dtype=torch.uint8, device=config.device)
        return macs(self._map_net(self.net_ or self.network()), blank)

    def state(self) -> tuple[Arrays, Values]:
        """See `Detector.state`."""
        arrays, values = super().state()
        return arrays, values | {"scales": self.scales_, "parts": self.parts_}

    @classmethod
    def from_state(cls, arrays: Arrays, values: Values, *, extractor: FeatureExtractor) -> Self:
        """See `Detector.from_state`."""
        detector = super().from_state(arrays, values, extractor=extractor)
        detector.scales_ = {source: float(values["scales"][source]) for source in _SOURCES}
        detector.parts_ = {part: float(values["parts"][part]) for part in ("seg", "maps")}
        return detector

    def _fused(self, stack: FloatArray, source: ScoreSource) -> FloatArray:
        """(h, w) map of a source from the maps (3, h, w) of one image."""
        if source == "seg":
            return np.ascontiguousarray(stack[2])
        summed = super()._smooth(stack[0] + stack[1])
        if source == "maps":
            return summed
        assert self.parts_ is not None  # measured before anything is mixed
        seg, maps = (np.float32(self.parts_[part]) for part in ("seg", "maps"))
        mixed: FloatArray = (stack[2] / seg + summed / maps) / np.float32(2)
        return mixed

    def _fusing(self, stacks: Mapper) -> Mapper:
        return lambda images: ((i, self._fused(stack, self.source)) for i, stack in stacks(images))

    def _compiled(self, net: PaSTeNet) -> Mapper:
        return self._fusing(super()._compiled(net))

    def _smooth(self, map_: FloatArray) -> FloatArray:
        return map_  # its parts were smoothed, each as it needs

    def _map_net(self, net: PaSTeNet) -> DualMapNet:
        from fedvad.detectors.student.dmdd.decouple import DualMapNet
        from fedvad.detectors.student.graphs import normaliser

        side = self.extractor.config.side
        return DualMapNet(net, normaliser(self.extractor), side, self.combine)

    def _check(self) -> None:
        super()._check()
        if self.jitter:
            raise ConfigError(f"{self.name} trains on pairs of images: set jitter to 0")
        check_choice("source", self.source, ScoreSource)
        check_drawing(self.synthesis, self.textures)
