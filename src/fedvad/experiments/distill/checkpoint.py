"""Where a distillation stands, on disk: one file, replaced in one step."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.distillation.stages import MaskedStage, StepLog
from fedvad.errors import ArtefactError, ConfigError
from fedvad.experiments.store import Cell

CHECKPOINT_FILE = "checkpoint.safetensors"
COLUMNS = ("stage", "step", "loss", "masked", "plain", "semantic", "rate")


@dataclass
class Journal:
    """What is known of a distillation so far.

    stage: the one that runs, from 0. rows: one per step, see `COLUMNS`; stages count from 1.
    fidelity: per finished stage and level, see `MaskedStage.fidelity`.
    """

    stage: int = 0
    rows: list[tuple[float, ...]] = field(default_factory=list)
    fidelity: list[list[dict[str, float]]] = field(default_factory=list)

    def add(self, log: StepLog) -> None:
        """One more step of the stage that runs."""
        self.rows.append((self.stage + 1, *astuple(log)))


def write_checkpoint(cell: Cell, stage: MaskedStage, journal: Journal) -> None:
    """Keep all that `read_checkpoint` needs; raises `StorageError`."""
    rows = np.array(journal.rows, dtype=np.float64).reshape(-1, len(COLUMNS))
    record = {"stage": journal.stage, "done": stage.done, "fidelity": journal.fidelity}
    cell.keep(record, {"journal": rows, **stage.state()})


def read_checkpoint(cell: Cell) -> tuple[Journal, int, dict[str, npt.NDArray[Any]]]:
    """The journal, steps done in its stage, and the stage's state.

    Raises `ConfigError` when recipe, images or teachers have changed since, `ArtefactError` when
    the file is missing or damaged.
    """
    folder = cell.path.parent
    stored = cell.read()
    if stored is None:
        raise ArtefactError(f"{folder} holds no checkpoint: omit --resume to start over")
    if changed := cell.differences(stored):
        raise ConfigError(
            f"--resume needs what {folder} was started with; different: {', '.join(changed)}"
        )
    try:
        record, arrays = stored.record, dict(stored.arrays)
        rows = [tuple(row) for row in arrays.pop("journal").tolist()]
        return Journal(record["stage"], rows, record["fidelity"]), int(record["done"]), arrays
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{cell.path} is incomplete or damaged: {error}") from error
