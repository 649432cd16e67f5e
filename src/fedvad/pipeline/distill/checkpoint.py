"""Where a distillation stands, on disk: one file, replaced in one step."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.detectors.artefact import read_arrays, write_arrays
from fedvad.distill.stages import MaskedStage, StepLog
from fedvad.errors import ArtefactError, ConfigError

__all__ = ["CHECKPOINT_FILE", "COLUMNS", "Journal", "read_checkpoint", "write_checkpoint"]

CHECKPOINT_FILE = "checkpoint.safetensors"
COLUMNS = ("stage", "step", "loss", "masked", "plain", "semantic", "rate")
_KIND = "distillation"


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


def write_checkpoint(
    folder: Path, stage: MaskedStage, journal: Journal, identity: dict[str, Any]
) -> None:
    """Keep all that `read_checkpoint` needs; raises `StorageError`."""
    rows = np.array(journal.rows, dtype=np.float64).reshape(-1, len(COLUMNS))
    values = {
        "kind": _KIND,
        "identity": identity,
        "stage": journal.stage,
        "done": stage.done,
        "fidelity": journal.fidelity,
    }
    write_arrays(folder / CHECKPOINT_FILE, {"journal": rows, **stage.state()}, values)


def read_checkpoint(
    folder: Path, identity: dict[str, Any]
) -> tuple[Journal, int, dict[str, npt.NDArray[Any]]]:
    """The journal, steps done in its stage, and the stage's state.

    Raises `ConfigError` when recipe, images or teachers have changed since, `ArtefactError` when
    the file is missing or damaged.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        raise ArtefactError(f"{folder} holds no checkpoint to go on from: leave --resume away")
    arrays, values = read_arrays(path)
    if values.get("kind") != _KIND:
        raise ArtefactError(f"{path} is no checkpoint of a distillation")
    before = values.get("identity")
    if not isinstance(before, dict) or before != identity:
        known = before if isinstance(before, dict) else {}
        changed = sorted(k for k in known | identity if known.get(k) != identity.get(k))
        raise ConfigError(
            f"--resume needs what {folder} was started with; different: {', '.join(changed)}"
        )
    try:
        rows = [tuple(row) for row in arrays.pop("journal").tolist()]
        return Journal(values["stage"], rows, values["fidelity"]), int(values["done"]), arrays
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path} is incomplete or damaged: {error}") from error
