"""Students that learn one task after another, with or without a memory of those before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedvad.continual.base import Arrays, Cost, Task
from fedvad.continual.importance import feature_importance, most_important
from fedvad.continual.memory import ReplayMemory
from fedvad.data.folders import ImageSet
from fedvad.detectors.base import Detector
from fedvad.detectors.student.detector import StudentDetector
from fedvad.detectors.student.parameters import (
    buffers_of,
    load_buffers,
    load_parameters,
    parameters_of,
    under,
)
from fedvad.detectors.student.pixels import pixels_again
from fedvad.detectors.student.site import StudentSite
from fedvad.detectors.student.targets import Batch, TrainingSet
from fedvad.detectors.student.training import make_optimiser
from fedvad.errors import ArtefactError, ConfigError, MismatchError, check_choice
from fedvad.features.extractor import FeatureExtractor

if TYPE_CHECKING:
    import torch

    from fedvad.detectors.student.branches import PaSTeNet

Strategy = Literal["naive", "joint", "single", "replay"]
_SGD = "momentum_buffer"  # its name in SGD's state
_LOOKED_AT = 64  # images of a task by which features are ranked


class StudentLearner:
    """A student of a frozen teacher, trained task by task.

    detector: an untrained STFPM or PaSTe with its options. strategy: `naive` trains on the
    current task only; `joint` on all tasks at once (an upper bound); `single` a new student for
    each task, kept apart; `replay` on as many samples of `memory` as of the current task in each
    step, from the second task on. A memory of features needs a student with a shared trunk, since
    nothing before the trunk's end is trained. carry_optimiser: whether the momentum of one task
    goes on into the next, as in the thesis. top_features: share of the teacher's features, at each
    level those most important for the task (`feature_importance`), on which `naive` trains.

    Memory samples are decoded once per task, and the teacher's answers to them computed then.
    Source: continual-learning thesis and arXiv 2503.02691, less what its specification corrects.
    """

    def __init__(
        self,
        detector: StudentDetector,
        *,
        strategy: Strategy,
        memory: ReplayMemory | None = None,
        carry_optimiser: bool = False,
        top_features: float = 1.0,
    ) -> None:
        check_choice("strategy", strategy, Strategy)
        if (strategy == "replay") != (memory is not None):
            raise ConfigError("a memory goes with strategy replay, and only with it")
        self.strategy: Strategy = strategy
        self.memory = memory
        self.carry_optimiser = carry_optimiser
        self.top_features = top_features
        self._detector = detector
        self._net = detector.network()
        self._tasks: list[str] = []
        self._own: dict[str, StudentDetector] = {}
        self._optimiser: torch.optim.Optimizer | None = None
        if memory is not None and not memory.codec.config.of_images and not self._has_trunk:
            raise ConfigError(
                f"{detector.name} shares no layers between teacher and student, so stored "
                "features would go stale: use paste with a bootstrap, or keep pixels or jpeg"
            )

    @property
    def extractor(self) -> FeatureExtractor:
        """See `Learner`."""
        return self._detector.extractor

    @property
    def _has_trunk(self) -> bool:
        return len(list(self._net.trunk.children())) > 0

    def learn(self, tasks: list[Task]) -> dict[str, Any]:
        """See `Learner.learn`."""
        images = ImageSet(tuple(item for task in tasks for item in task.images))
        if self.strategy == "single" and self._tasks:
            self._net = self._detector.network()
            self._optimiser = None
        site = self._detector.prepare(images, self._net)
        site.choose = False  # what past tasks need is not seen by this task's held-out normals
        replayed: TrainingSet | None = None
        try:
            replayed = self._replayed(site)
            if self.top_features < 1:
                site.select(self._most_important(site))
            if self._optimiser is None or not self.carry_optimiser:
                self._optimiser = make_optimiser(self._net.student, self._detector.train)
            log = site.train(
                seed=site.seed + 1009 * len(self._tasks),
                optimiser=self._optimiser,
                mix=None if replayed is None else self._mixer(replayed),
            )
            name = "+".join(task.name for task in tasks)
            if self.memory is not None:
                self.memory.add(name, len(site), self._taker(site))
            scorer = self._detector
            if self.strategy == "single":
                scorer = self._own[name] = self._detector.fresh()
            scorer.with_net(site.net, site.unseen, log)
            self._tasks += [task.name for task in tasks]
        finally:
            site.close()
            if replayed is not None:
                replayed.close()
        return {
            "images": len(site),
            "steps": log.steps,
            "loss": log.loss[-1],
            "bad": list(site.bad),
        }

    def detector(self, task: str) -> Detector:
        """See `Learner.detector`."""
        return self._own.get(task, self._detector)

    def cost(self) -> Cost:
        """See `Learner.cost`."""
        one = self._detector.memory()
        copies = max(1, len(self._tasks)) if self.strategy == "single" else 1
        # students of single tasks share the trunk and the teacher
        own = sum(a.nbytes for a in parameters_of(self._net.student).values())
        own_buffers = sum(a.nbytes for a in buffers_of(self._net.student).values())
        return Cost(
            parameters=one.parameters + (copies - 1) * own,
            buffers=one.buffers + (copies - 1) * own_buffers,
            memory=0 if self.memory is None else self.memory.nbytes + self.memory.codec.nbytes,
            peak=0 if self.memory is None else self.memory.peak,
            learned=0 if self.memory is None else self.memory.codec.nbytes,
            optimiser=sum(a.nbytes for a in self._momenta().values()),
            macs=self._detector.macs(),
        )

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """See `Learner.state`."""
        arrays = {f"student/{n}": a for n, a in parameters_of(self._net.student).items()}
        arrays |= {f"buffers/{n}": a for n, a in buffers_of(self._net.student).items()}
        arrays |= {f"momentum/{n}": a for n, a in self._momenta().items()}
        peak = 0
        if self.memory is not None:
            arrays |= {f"memory/{n}": a for n, a in self.memory.arrays().items()}
            peak = self.memory.peak
        return arrays, {"tasks": self._tasks, "peak": peak, "strategy": self.strategy}

    def restore(self, arrays: Arrays, values: dict[str, Any]) -> None:
        """See `Learner.restore`."""
        try:
            if values["strategy"] != self.strategy:
                raise ArtefactError(
                    f"a checkpoint of strategy {values['strategy']}, not {self.strategy}"
                )
            self._tasks = list(values["tasks"])
            load_parameters(self._net.student, under("student/", arrays))
            load_buffers(self._net.student, under("buffers/", arrays))
            if self.memory is not None:
                self.memory.restore(under("memory/", arrays), self._tasks, int(values["peak"]))
            self._set_momenta(under("momentum/", arrays))
        except (KeyError, TypeError, ValueError, MismatchError) as error:
            raise ArtefactError(f"damaged checkpoint of a student: {error}") from error

    def _most_important(self, site: StudentSite) -> list[Any]:
        chosen = []
        for level in range(site.levels):
            maps = site.teacher_maps(level, _LOOKED_AT)
            importance = feature_importance(maps.transpose(0, 2, 3, 1)).transpose(2, 0, 1)
            chosen.append(most_important(importance, self.top_features))
        return chosen

    def _replayed(self, site: StudentSite) -> TrainingSet | None:
        if self.memory is None or not len(self.memory):
            return None
        found = site.empty_like(len(self.memory))
        try:
            if self.memory.codec.config.of_images:
                found.extend(self.memory.decoded())
            else:
                found.extend_shared(self.memory.decoded())
        except BaseException:
            found.close()
            raise
        return found

    def _mixer(self, replayed: TrainingSet) -> Callable[[Batch, np.random.Generator], Batch]:
        def mix(batch: Batch, rng: np.random.Generator) -> Batch:
            assert self.memory is not None  # there is something to replay
            return batch.joined(replayed.batch(self.memory.draw(len(batch), rng)))

        return mix

    def _taker(self, site: StudentSite) -> Callable[[Sequence[int]], Iterator[Any]]:
        def take(indices: Sequence[int]) -> Iterator[Any]:
            assert self.memory is not None
            paths = [site.paths[i] for i in indices]
            pixels = pixels_again(paths, self._detector.extractor.config.side)
            if self.memory.codec.config.of_images:
                yield from pixels
                return
            yield from site.shared(pixels)

        return take

    def _momenta(self) -> Arrays:
        if self._optimiser is None or not self.carry_optimiser:
            return {}
        found: Arrays = {}
        for name, parameter in self._trained(self._net):
            for key, kept in self._optimiser.state.get(parameter, {}).items():
                if kept is not None:  # SGD's momentum; Adam's steps and two moments
                    whose = name if key == _SGD else f"{key}:{name}"
                    found[whose] = kept.detach().cpu().numpy().copy()
        return found

    def _set_momenta(self, arrays: Arrays) -> None:
        import torch

        if not arrays:
            return
        self._optimiser = make_optimiser(self._net.student, self._detector.train)
        trained = dict(self._trained(self._net))
        for whose, array in arrays.items():
            key, _, name = whose.rpartition(":")
            kept, parameter = torch.from_numpy(array), trained[name]
            # a number of steps stays where it is made; files give it an axis
            kept = kept.reshape(()) if key == "step" else kept.to(parameter.device)
            self._optimiser.state[parameter][key or _SGD] = kept

    @staticmethod
    def _trained(net: PaSTeNet) -> list[tuple[str, torch.nn.Parameter]]:
        return [(n, p) for n, p in net.student.named_parameters() if p.requires_grad]
