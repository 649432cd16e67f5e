"""The adaptor as a detector, and as the trainable part of a site whose weights are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from fedvad.data.folders import ImageSet
from fedvad.detectors.base import (
    Arrays,
    NormalFeatures,
    Values,
)
from fedvad.detectors.patches import PatchDetector
from fedvad.detectors.scoring import ScoringConfig, mean_of_highest, smooth
from fedvad.detectors.student.parameters import load_parameters, parameters_of
from fedvad.detectors.student.training import TrainConfig, Trainer
from fedvad.errors import ConfigError, MismatchError
from fedvad.features.extractor import FeatureExtractor
from fedvad.memory.bank import FloatArray
from fedvad.memory.coreset import CandidateSampler

if TYPE_CHECKING:
    import torch

    from fedvad.detectors.memory.adaptor_net import Adaptor


def _training() -> TrainConfig:
    # plain SGD: SCAFFOLD's control variates assume it, and all algorithms shall train alike
    return TrainConfig(
        steps=300, batch=256, learning_rate=2.0, momentum=0.0, weight_decay=0.0, warmup=20
    )


@dataclass(frozen=True)
class AdaptorConfig:
    """Options of an adaptor and its training.

    hidden, bottleneck: widths. jitter: noise on the input, relative to a descriptor's size.
    candidates: share of all patches it trains on; candidate_bytes: their bound.
    """

    hidden: int = 128
    bottleneck: int = 32
    jitter: float = 0.5
    candidates: float = 0.1
    candidate_bytes: int = 64 << 20
    train: TrainConfig = field(default_factory=_training)

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.bottleneck < 1 or self.jitter < 0:
            raise ConfigError("an adaptor needs hidden, bottleneck >= 1 and jitter >= 0")


class AdaptorScorer:
    """Scores descriptors by how badly an adaptor rebuilds them."""

    def __init__(self, student: Adaptor, config: ScoringConfig) -> None:
        self.student = student
        self.config = config

    def score(self, descriptors: FloatArray) -> tuple[float, FloatArray]:
        """Image score and smoothed (h, w) map of one image's (h, w, d) descriptors."""
        import torch

        height, width, dim = descriptors.shape
        with torch.inference_mode():
            raw = self.student.distances(torch.from_numpy(descriptors.reshape(-1, dim)))
        map_ = smooth(raw.numpy().reshape(height, width), self.config.smooth)
        return mean_of_highest(map_, self.config.count(map_.size)), map_


class AdaptorSite(Trainer):
    """One site's adaptor and the sample of normal patches that it trains on.

    start: seed of the common initial weights; seed: the site's own.
    """

    def __init__(
        self, features: NormalFeatures, config: AdaptorConfig, *, seed: int, start: int = 0
    ) -> None:
        self.features = features
        self.config, self.settings = config, config.train
        self.seed = seed
        self.device = features.extractor.config.device
        self._student = _student(config, features.extractor.grid[2], start).to(self.device)

    @property
    def student(self) -> Adaptor:
        """See `Trainer.student`."""
        return self._student

    def losses(self, seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """See `Trainer.losses`."""
        import torch

        from fedvad.detectors.memory.adaptor_net import adaptor_loss

        noise = torch.Generator(self.device).manual_seed(seed)

        def loss(batch: torch.Tensor) -> torch.Tensor:
            drawn = torch.randn(batch.shape, generator=noise, device=self.device)
            return adaptor_loss(self.student, batch, drawn, self.config.jitter)

        return loss

    def represent(self, student: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        """(n, bottleneck) of a batch of (n, d) patches."""
        encoded: torch.Tensor = student.encode(batch)  # type: ignore[operator]
        return encoded

    def batches(self, rng: np.random.Generator) -> Iterator[torch.Tensor]:
        """See `Trainer.batches`."""
        import torch

        order = torch.from_numpy(rng.permutation(len(self._patches))).to(self.device)
        for rows in torch.split(order, self.config.train.batch):
            yield self._patches[rows]

    @cached_property
    def _patches(self) -> torch.Tensor:
        import torch

        height, width, dim = self.features.extractor.grid
        sampler = CandidateSampler(
            n_images=len(self.features),
            patches_per_image=height * width,
            dim=dim,
            fraction=self.config.candidates,
            max_bytes=self.config.candidate_bytes,
            seed=self.seed,
        )
        for descriptors in self.features:
            sampler.add(descriptors)
        return torch.from_numpy(sampler.result()).to(self.device)


_CONFIG = AdaptorConfig()


@dataclass(kw_only=True, eq=False, repr=False)
class AdaptorDetector(PatchDetector):
    """Scores by how badly a patch's descriptor is rebuilt through a bottleneck; ours."""

    name: ClassVar[str] = "adaptor"

    config: AdaptorConfig = _CONFIG

    def __post_init__(self) -> None:
        self.student_: torch.nn.Module | None = None

    def fit(self, images: ImageSet) -> Self:
        """See `Detector.fit`."""
        site = AdaptorSite(self._features(images), self.config, seed=self.seed, start=self.seed)
        site.train(seed=self.seed)
        self.student_ = site.student.cpu()
        return self

    def with_parameters(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Adopt weights trained elsewhere; raises `MismatchError` for those of another adaptor."""
        student = _student(self.config, self.extractor.grid[2], 0)
        load_parameters(student, arrays)
        self.student_ = student.eval()
        return self

    @property
    def scorer(self) -> AdaptorScorer:
        """See `PatchDetector.scorer`."""
        return AdaptorScorer(self._student(), self.scoring)

    def facts(self) -> dict[str, Any]:
        """See `Detector.facts`."""
        return {"scoring": {"smooth": self.scoring.smooth, "top": self.scoring.top}}

    def map_net(self) -> torch.nn.Module:
        """See `Detector.map_net`."""
        from fedvad.detectors.memory.adaptor_net import AdaptorMaps

        return AdaptorMaps(self.extractor.network, self._student(), self.scoring.smooth)

    def state(self) -> tuple[Arrays, Values]:
        """See `Detector.state`."""
        student = self._student()
        values = {"scoring": asdict(self.scoring), "config": asdict(self.config), "seed": self.seed}
        return parameters_of(student), values

    @classmethod
    def from_state(cls, arrays: Arrays, values: Values, *, extractor: FeatureExtractor) -> Self:
        """See `Detector.from_state`."""
        options = dict(values["config"])
        config = AdaptorConfig(**options | {"train": TrainConfig(**options["train"])})
        detector = cls(
            extractor=extractor,
            config=config,
            scoring=ScoringConfig.from_values(values["scoring"]),
            seed=values["seed"],
        )
        try:
            return detector.with_parameters(arrays)
        except MismatchError as error:  # in a file of its own it is damage
            raise ValueError(str(error)) from error

    def _student(self) -> Adaptor:
        if self.student_ is None:
            raise ConfigError(f"{self.name} has learned nothing yet: call fit() first")
        return self.student_  # type: ignore[return-value]


def _student(config: AdaptorConfig, dim: int, seed: int) -> Adaptor:
    from fedvad.detectors.memory.adaptor_net import Adaptor

    return Adaptor(dim, hidden=config.hidden, bottleneck=config.bottleneck, seed=seed)
