"""One stage of masked distillation: one teacher, a number of steps, to be stopped and continued."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedvad.detectors.student.branches import reinitialise
from fedvad.detectors.student.graphs import Normalise
from fedvad.detectors.student.layout import memory_format
from fedvad.detectors.student.parameters import under
from fedvad.detectors.student.training import TrainConfig, train_student
from fedvad.distillation.masked import MaskedHeads, distance
from fedvad.distillation.options import MaskedConfig
from fedvad.distillation.teacher import Images, Pair, Teacher
from fedvad.errors import ConfigError, MismatchError

_Arrays = dict[str, npt.NDArray[Any]]
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_CALIBRATION = 64  # images by which the units of a teacher's channels are settled


@dataclass(frozen=True)
class StageConfig(MaskedConfig):
    """How long and how fast a stage learns, and what.

    The rate rises linearly over `warmup` steps and falls to 0 along a half cosine. clip: largest
    norm of the whole gradient.
    """

    steps: int = 1000
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup: int = 100
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ConfigError(f"a stage needs at least one step, got {self.steps}")
        self.training(0)  # the checks there

    def training(self, done: int) -> CosineConfig:
        """What the training loop takes, after `done` steps."""
        return CosineConfig(
            steps=max(1, self.steps - done),
            batch=self.batch,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
            clip=self.clip,
            patience=None,
            done=done,
            total=self.steps,
        )


@dataclass(frozen=True)
class CosineConfig(TrainConfig):
    """A training of `total` steps, of which `done` are behind, with a rate that ends at 0."""

    done: int = 0
    total: int = 1

    def rate(self, step: int) -> float:
        """Learning rate of the step-th step from here, from 1."""
        step += self.done
        fall = 0.5 * (1 + math.cos(math.pi * (step - 1) / max(1, self.total)))
        return super().rate(step) * fall


@dataclass(frozen=True)
class StepLog:
    """What one step cost: `loss` and its terms, before their weights. step: from 1."""

    step: int
    loss: float
    masked: float
    plain: float
    semantic: float
    rate: float


class MaskedStage:
    """A student taught by one teacher through masked heads.

    student: images (b, 3, S, S) to one map per tap; trained in place, so that the next stage goes
    on with it. normalise: of the student's inputs. seed: of heads, order and masks; every step
    depends on it and on the step's number alone, so a continued stage is the same stage to the
    bit. first: number of the first image that is drawn, where images never repeat.

    Raises `ConfigError` when student and teacher have taps that do not pair.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        images: Images,
        config: StageConfig,
        *,
        normalise: Normalise,
        seed: int,
        first: int = 0,
        device: str = "cpu",
    ) -> None:
        self.student, self.teacher, self.images = student, teacher, images
        self.config, self.seed, self.first, self.device = config, seed, first, device
        self.done = 0
        self.normalise = normalise.to(device)
        self._form = memory_format(student)
        student.to(device, memory_format=self._form)  # type: ignore[call-overload]
        size = teacher.image_size
        with torch.inference_mode():
            maps = student.eval()(torch.zeros(1, 3, size, size, device=device))
        shapes = [(int(m.shape[1]), int(m.shape[2]), int(m.shape[3])) for m in maps]
        self.heads = MaskedHeads(teacher.shapes, shapes, config)
        reinitialise(self.heads, seed)
        for name, parameter in self.heads.named_parameters():
            if name.endswith("balance"):
                nn.init.zeros_(parameter)
        self.heads.to(device, memory_format=self._form)  # type: ignore[call-overload]
        self._module = nn.ModuleDict({"student": student, "heads": self.heads})
        self._optimiser = _adamw(self._module, config)
        self._calibrated = False

    def run(self, on_step: Callable[[StepLog], None] | None = None) -> None:
        """Train to the stage's last step; `on_step` is called after each.

        Raises what `train_student` and the images raise.
        """
        if self.done >= self.config.steps:
            return
        if not self._calibrated:
            self._calibrate()
        training = self.config.training(self.done)
        behind = self.done
        terms: dict[str, Tensor] = {}

        def loss(batch: tuple[int, Pair]) -> Tensor:
            step, (pixels, wanted) = batch
            terms.update(self._losses(step, pixels, wanted))
            return self.heads.total(terms)

        def report_step(step: int, value: float) -> None:
            self.done = behind + step
            if on_step is not None:
                parts = {name: float(term.detach()) for name, term in terms.items()}
                on_step(StepLog(self.done, value, rate=training.rate(step), **parts))

        def batches(_: np.random.Generator) -> Iterator[tuple[int, Pair]]:
            return enumerate(self._pairs(), start=behind)

        train_student(
            self._module,
            loss,
            batches,
            training,
            seed=self.seed,
            optimiser=self._optimiser,
            on_step=report_step,
        )

    @torch.no_grad()
    def fidelity(self, images: Images, numbers: npt.NDArray[np.int64]) -> list[dict[str, float]]:
        """How near A(S) is to the teacher, per level, on other images.

        cosine: mean over positions. explained: share of the teacher's variance around each
        channel's mean over these images, 1 at best; below 0 is worse than that mean.
        """
        self._module.eval()
        sums: list[list[tuple[float, Tensor, Tensor, Tensor]]] = []
        batches = np.array_split(numbers, max(1, -(-len(numbers) // self.config.batch)))
        for pixels, wanted in self.teacher.stream(images, batches):
            found = self.heads.aligned(self.student(self._inputs(pixels)))
            resized = [
                nn.functional.interpolate(t, f.shape[2:], mode="bilinear", align_corners=False)
                for t, f in zip(wanted, found, strict=True)
            ]
            sums.append([_agreement(f, t) for f, t in zip(found, resized, strict=True)])
        levels = []
        for parts in zip(*sums, strict=True):
            weights = np.array([len(b) for b in batches], dtype=np.float64)
            cosine, error, mean, square = (
                np.average([np.asarray(p[i]) for p in parts], axis=0, weights=weights)
                for i in range(4)
            )
            variance = float((square - mean**2).sum())
            explained = 1 - float(error.sum()) / variance if variance > 0 else math.nan
            levels.append({"cosine": float(cosine), "explained": explained})
        return levels

    def state(self) -> _Arrays:
        """All that the stage needs to continue: weights, statistics, moments of the optimiser."""
        arrays = {f"module/{n}": _array(t) for n, t in self._module.state_dict().items()}
        for name, parameter in self._module.named_parameters():
            moments = self._optimiser.state.get(parameter, {})
            arrays |= {f"{m}/{name}": _array(moments[m]) for m in _MOMENTS if m in moments}
        return arrays

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]], done: int) -> None:
        """What `state` gave after `done` steps; raises `MismatchError` for anything else."""
        wanted = self._module.state_dict()
        stored = {n: torch.from_numpy(a.copy()) for n, a in under("module/", arrays).items()}
        # files know no numbers without an axis
        stored = {
            n: t.reshape(()) if n in wanted and wanted[n].ndim == 0 and t.numel() == 1 else t
            for n, t in stored.items()
        }
        shapes = {n: tuple(t.shape) for n, t in stored.items()}
        if shapes != {n: tuple(t.shape) for n, t in wanted.items()} or done > self.config.steps:
            raise MismatchError(
                "the checkpoint is of another student or stage; train again, in another folder"
            )
        self._module.load_state_dict(stored)
        for name, parameter in self._module.named_parameters():
            moments = {m: arrays.get(f"{m}/{name}") for m in _MOMENTS}
            if any(value is None for value in moments.values()):
                continue
            state: dict[str, Tensor] = {}
            for moment, value in moments.items():
                tensor = torch.from_numpy(np.array(value))
                # in the memory format of the parameter, as the optimiser made it
                state[moment] = (
                    tensor.reshape(())
                    if moment == "step"
                    else torch.zeros_like(parameter).copy_(tensor.reshape(parameter.shape))
                )
            self._optimiser.state[parameter] = state
        self.done = done
        self._calibrated = True

    def _losses(self, step: int, pixels: npt.NDArray[np.uint8], wanted: list[Tensor]) -> Any:
        draw = torch.Generator().manual_seed(seed_of(self.seed, step))
        return self.heads.losses(wanted, self.student(self._inputs(pixels)), draw)

    def _inputs(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        x: Tensor = self.normalise(torch.from_numpy(pixels).to(self.device))
        return x.contiguous(memory_format=self._form)

    def _pairs(self) -> Iterator[Pair]:
        count, batch = self.images.count, self.config.batch
        # images that all come at least once pass the teacher once; of a larger set only those
        # that the stage has time for
        repeats = count is not None and count <= self.config.steps * batch
        ask = self.teacher.kept if repeats else self.teacher.stream
        return ask(self.images, self._numbers())

    def _numbers(self) -> Iterator[npt.NDArray[np.int64]]:
        """Numbers of the images of each step that is left."""
        count, batch = self.images.count, self.config.batch
        for step in range(self.done, self.config.steps):
            positions = np.arange(step * batch, (step + 1) * batch)
            if count is None:
                yield positions + self.first
                continue
            orders = {
                int(p): np.random.default_rng([self.seed, int(p)]).permutation(count)
                for p in np.unique(positions // count)
            }
            yield np.array([orders[int(p // count)][p % count] for p in positions])

    def _calibrate(self) -> None:
        self._calibrated = True
        if self.config.distance == "cosine":
            return
        n = _CALIBRATION if self.images.count is None else min(_CALIBRATION, self.images.count)
        numbers = np.arange(n) + (self.first if self.images.count is None else 0)
        groups = np.array_split(numbers, max(1, -(-n // self.config.batch)))
        wanted, found = [], []
        self.student.eval()
        with torch.no_grad():
            for pixels, maps in self.teacher.stream(self.images, groups):
                wanted.append(maps)
                found.append(self.student(self._inputs(pixels)))
        self.heads.calibrate(
            *([torch.cat(level) for level in zip(*maps, strict=True)] for maps in (wanted, found))
        )


def seed_of(*numbers: int) -> int:
    """A seed of PyTorch's for several numbers that together mean one thing."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return int(state) >> 1  # PyTorch takes signed ones


def _adamw(module: nn.Module, config: StageConfig) -> torch.optim.AdamW:
    """AdamW; vectors (biases, scales of normalisations) do not decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise ConfigError("the student has no trainable parameter")
    return torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
    )


def _agreement(found: Tensor, wanted: Tensor) -> tuple[float, Tensor, Tensor, Tensor]:
    """Mean cosine; per channel mean squared error, mean and mean square of the teacher's values."""
    over = (0, 2, 3)
    return (
        1 - float(distance(found, wanted, "cosine")),
        (found - wanted).square().mean(over).double().cpu(),
        wanted.mean(over).double().cpu(),
        wanted.square().mean(over).double().cpu(),
    )


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.detach().cpu().contiguous().numpy().copy()
    return array
