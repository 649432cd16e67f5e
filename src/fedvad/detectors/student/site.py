"""One site's students: its normal images prepared once, then trained as often as wanted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from fedvad.detectors.student.jitter import VIEWS, jittered
from fedvad.detectors.student.layout import memory_format
from fedvad.detectors.student.loss import cosine_loss
from fedvad.detectors.student.parameters import buffers_of, load_buffers
from fedvad.detectors.student.pixels import pixels_again, read_pixels
from fedvad.detectors.student.targets import Batch, TrainingSet
from fedvad.detectors.student.training import TrainConfig, Trainer, TrainLog, train_student
from fedvad.errors import DataError
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import check_bad_share
from fedvad.features.near_copies import confirmed, copies_of, thumbnail
from fedvad.memory.bank import FloatArray

if TYPE_CHECKING:
    import torch

    from fedvad.detectors.student.branches import PaSTeNet
    from fedvad.detectors.student.graphs import Normalise

log = logging.getLogger(__name__)
_RECALIBRATED = 16  # batches, before each validation


class StudentSite(Trainer):
    """A net and the frozen features of a site's readable normal images.

    n_images: readable images. bad: why images were left out. paths: files of the images trained
    on. unseen: files of the held-out normals, which only validate (all files, when there is a
    single one). copies: number of near copies, of which none is held out. choose: whether the
    held-out images choose the pass whose weights are kept; else it is the last. Raises
    `DataError` when no image, or less than the share 1 - max_bad, can be read.
    """

    # of a detector, named as there, that it takes besides
    options: ClassVar[tuple[str, ...]] = ()
    # whether the held-out normals choose the weights that are kept where training has no patience;
    # else they serve the scale of the scores alone
    always_chooses: ClassVar[bool] = True

    def __init__(
        self,
        net: PaSTeNet,
        normalise: Normalise,
        paths: Sequence[Path],
        *,
        config: FeatureConfig,
        train: TrainConfig,
        held_out: float,
        cache_bytes: int,
        seed: int,
        max_bad: float,
        where: str,
        jitter: float = 0.0,
    ) -> None:
        self.net = net
        net.student.to(memory_format=memory_format(net.student))  # type: ignore[call-overload]
        self.config = self.settings = train
        self.seed = seed
        self.choose = True
        self._masks: list[torch.Tensor] | None = None
        self._set = TrainingSet(
            net,
            normalise,
            image_size=config.side,
            capacity=len(paths) * (1 + VIEWS * bool(jitter)),
            engine=config.engine,
            device=config.device,
            budget=cache_bytes,
        )
        bad: list[str] = []
        kept: list[Path] = []
        small: list[FloatArray] = []

        def readable() -> Iterator[npt.NDArray[np.uint8]]:
            for item in read_pixels(paths, config.side, max_pixels=config.max_pixels):
                if item.pixels is None:
                    bad.append(item.error or "unknown error")
                else:
                    kept.append(paths[item.index])
                    small.append(thumbnail(item.pixels))
                    yield item.pixels

        try:
            self._set.extend(readable())
            check_bad_share(bad, len(paths), max_bad, where)
            if not kept:
                raise DataError(f"{where}: no readable normal image to train on")
        except BaseException:
            self.close()
            raise
        self.bad, self.n_images = tuple(bad), len(kept)
        suspects = [[kept[i] for i in group] for group in copies_of(np.stack(small))]
        copies = confirmed(suspects, max_pixels=config.max_pixels)
        again = {path for same in copies.values() for path in same}
        self.copies = len(again)
        able = np.array([i for i, path in enumerate(kept) if path not in again])
        order = np.random.default_rng(seed).permutation(able)
        count = min(len(able) - 1, max(1, round(held_out * len(able)))) if held_out else 0
        if count <= 0:
            log.warning("%s: nothing held out; training runs its full length", where)
        self._held_out = np.sort(order[:count])
        held = [kept[i] for i in self._held_out]
        out = {*held, *(path for own in held for path in copies.get(own, []))}
        self._own = np.array([i for i, path in enumerate(kept) if path not in out])
        self.paths = [kept[i] for i in self._own]
        self.unseen = [kept[i] for i in self._held_out] if count > 0 else self.paths
        self._trained = self._own
        if jitter:
            self._set.extend(self._views(jitter, config))
            self._trained = np.append(self._own, np.arange(len(kept), len(self._set)))

    def __len__(self) -> int:
        """Number of images trained on."""
        return len(self._own)

    def train(
        self,
        *,
        seed: int | None = None,
        penalty: Callable[[torch.nn.Module, Batch], torch.Tensor] | None = None,
        correction: Mapping[str, torch.Tensor] | None = None,
        config: TrainConfig | None = None,
        optimiser: torch.optim.Optimizer | None = None,
        mix: Callable[[Batch, np.random.Generator], Batch] | None = None,
        on_step: Callable[[int, float], None] | None = None,
    ) -> TrainLog:
        """Train the student of `net` from where it stands; see `train_student`. The held-out loss
        is measured where it chooses the weights, or as `validate_every` says.

        mix: makes of each batch the one that is trained on, with images of elsewhere for instance.
        """
        settings = config or self.config
        if settings.whole is None and settings.steps is None:  # passes of a known length
            steps = -(-len(self._trained) // settings.batch)
            settings = replace(settings, whole=settings.epochs * steps)

        chooses = self._chooses(settings)
        measured = chooses or (settings.validate_every is not None and len(self._held_out) > 0)

        def batches(rng: np.random.Generator) -> Iterator[Batch]:
            own = self._batches(settings.batch, rng)
            return own if mix is None else (mix(batch, rng) for batch in own)

        return train_student(
            self.student,
            self.loss,
            batches,
            settings,
            seed=self.seed if seed is None else seed,
            penalty=penalty,
            correction=correction,
            validate=self._measured if measured else None,
            choose=chooses,
            optimiser=optimiser,
            on_step=on_step,
        )

    def empty_like(self, capacity: int) -> TrainingSet:
        """An empty set for `capacity` images of elsewhere; see `TrainingSet.empty_like`."""
        return self._set.empty_like(capacity)

    def shared(self, images: Iterable[npt.NDArray[np.uint8]]) -> Iterator[npt.NDArray[np.float32]]:
        """The shared feature (c, h, w) of uint8 (S, S, 3) images, in order."""
        return self._set.shared(images)

    @property
    def levels(self) -> int:
        """Number of the teacher's maps."""
        return len(self._set.grids)

    def teacher_maps(self, level: int, images: int) -> npt.NDArray[np.float32]:
        """The teacher's maps (n, c, h, w) of the first `images` trained on, at one level."""
        found = self._set.batches(self._own[:images], self.config.batch)
        return np.concatenate([batch.teacher[level].cpu().numpy() for batch in found])

    def select(self, chosen: Sequence[npt.NDArray[np.bool_]]) -> None:
        """From here on train on these of the teacher's features alone, (c, h, w) by level."""
        import torch

        self._masks = [torch.from_numpy(own / own.mean()).float() for own in chosen]

    def part(self, name: str) -> Any:
        """What trains a part of `StudentDetector.starts`, as the weight exchange wants it."""
        return self

    def end(self, name: str) -> None:
        """A part has its final weights: here the student's statistics are measured."""
        self.recalibrate_batch_norm()

    @property
    def student(self) -> torch.nn.Module:
        """The part that is trained."""
        return self.net.student

    def represent(self, student: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """(b, c) mean over the positions of the last level, of any student of the same shape."""
        last: torch.Tensor = student(batch.inputs)[-1]
        return last.mean((2, 3))

    def recalibrate_batch_norm(self, most: int | None = None) -> None:
        """Give the student the batch statistics of this site's images, by its weights as they are:
        those averaged elsewhere have none, and at a high rate running means lag behind.

        most: batches to measure, evenly spaced over the images (None: all).
        """
        import torch

        norms = [
            m for m in self.student.modules() if isinstance(m, torch.nn.modules.batchnorm._NormBase)
        ]
        momenta = [m.momentum for m in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
        self.student.train()
        stride = 1 if most is None else max(1, len(self._trained) // (most * self.config.batch))
        with torch.inference_mode():
            for batch in islice(self._batches(self.config.batch), 0, None, stride):
                self._run(batch)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.student.eval()

    def losses(self, seed: int) -> Callable[[Batch], torch.Tensor]:
        """See `Trainer.losses`."""
        return self.loss

    def batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        """See `Trainer.batches`."""
        return self._batches(self.config.batch, rng)

    def loss(self, batch: Batch) -> torch.Tensor:
        """What training lowers for one batch: here the cosine loss of the maps that score."""
        if self._masks is None:
            return self._score_loss(batch)
        masks = [mask.to(batch.teacher[0].device) for mask in self._masks]
        return cosine_loss(*self.net.compared(batch.teacher, batch.inputs), masks=masks)

    def validate(self) -> float:
        """Mean cosine loss of the held-out normal images, in the mode in which the student is. It
        is the mean of the maps that score, whatever loss a method trains with.
        """
        return self._mean_loss(self._held_out)

    def mean_loss(self) -> float:
        """As `validate`, of all readable normal images, trained on or not."""
        return self._mean_loss(np.arange(self.n_images))

    def seconds_per_step(self) -> float:
        """Seconds of a training step's two passes through the student, which stays as it is."""
        batch, before = next(self._batches(self.config.batch)), buffers_of(self.student)
        self.student.train()
        seconds = []
        for _ in range(2):  # the first one also makes what is made once
            start = perf_counter()
            self.loss(batch).backward()  # type: ignore[no-untyped-call]
            seconds.append(perf_counter() - start)
            self.student.zero_grad()
        load_buffers(self.student, before)
        self.student.eval()
        return min(seconds)

    def _measured(self) -> float:
        """`validate` after a stretch of steps, with batch statistics of the weights as they are."""
        self.recalibrate_batch_norm(_RECALIBRATED)
        return self.validate()

    def close(self) -> None:
        """Give back what was kept for training."""
        self._set.close()

    def _mean_loss(self, indices: npt.NDArray[np.int64]) -> float:
        import torch

        total = 0.0
        with torch.inference_mode():
            for batch in self._set.batches(indices, self.config.batch):
                total += float(self._score_loss(batch)) * len(batch)
        return total / len(indices)

    def _chooses(self, config: TrainConfig) -> bool:
        """Whether the held-out normals choose the pass whose weights a training keeps."""
        patient = self.always_chooses or config.patience is not None
        return self.choose and patient and len(self._held_out) > 0

    def _batches(self, size: int, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """One pass over what the site trains on; in order without a generator."""
        return self._set.batches(self._trained, size, rng)

    def _views(self, jitter: float, config: FeatureConfig) -> Iterator[npt.NDArray[np.uint8]]:
        """The images trained on, each under `VIEWS` other lights."""
        again = pixels_again(self.paths, config.side)
        for index, pixels in enumerate(again):
            rng = np.random.default_rng([self.seed, index])
            for _ in range(VIEWS):
                yield jittered(pixels, jitter, rng)

    def _run(self, batch: Batch) -> None:
        """One pass of a batch through the whole student."""
        self.student(batch.inputs)

    def _score_loss(self, batch: Batch) -> torch.Tensor:
        return cosine_loss(*self.net.compared(batch.teacher, batch.inputs))
