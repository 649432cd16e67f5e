"""What every learner of a task stream is: learn the next task, score, say what it keeps."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy.typing as npt

from fedvad.data.folders import ImageSet
from fedvad.detectors.base import Detector
from fedvad.features.extractor import FeatureExtractor

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Task:
    """One task of a stream: its name and its normal images."""

    name: str
    images: ImageSet


@dataclass(frozen=True)
class Cost:
    """Bytes that a learner keeps.

    parameters, buffers: of all networks needed to score, what they share once. memory: of the
    past, now; peak: at most so far; learned: of these, what a codec learned. optimiser: carried
    from task to task. macs: multiply-accumulates for one image.
    """

    parameters: int
    buffers: int
    memory: int
    peak: int
    learned: int
    optimiser: int
    macs: int

    def as_dict(self) -> dict[str, int]:
        """The values by name."""
        return asdict(self)


class Learner(Protocol):
    """Learns tasks one after another; what it may keep of the past is its strategy's matter.

    extractor: of the features that all it has learned is made of.
    """

    @property
    def extractor(self) -> FeatureExtractor: ...

    def learn(self, tasks: list[Task]) -> dict[str, Any]:
        """Learn new tasks (one; several at once for a joint learner); what happened, for logs."""
        ...

    def detector(self, task: str) -> Detector:
        """What scores the images of a task now; one for all tasks, unless each has its own."""
        ...

    def cost(self) -> Cost:
        """What is kept now."""
        ...

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """All that `restore` needs to continue, to the bit."""
        ...

    def restore(self, arrays: Arrays, values: dict[str, Any]) -> None:
        """Continue from a `state`; raises `ArtefactError` when it is not one of this learner's."""
        ...
