"""Options of a stage of masked distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedvad.distillation.masks import MaskMode
from fedvad.errors import ConfigError, check_ranges

Distance = Literal["cosine", "mse"]
Grid = Literal["teacher", "student", "min"]
SemStats = Literal["batch", "sample"]


@dataclass(frozen=True)
class MaskedConfig:
    """What a student is asked for at each level; see `level_losses`.

    rho_s, rho_c: shares of positions and of channels that are hidden. mode, temperature: which,
    see `mask`. enhance: how much the masks adapt to the student, see `enhanced`; 0 is not at all,
    and later stages take more. generator: whether a small network fills in what is hidden; hidden:
    its inner channels (None: the teacher's). w_m, w_a, w_sem: weights of the masked, the plain and
    the semantic term. distance: `cosine` per position, or `mse` in units of the teacher's spread: 0
    is perfect, 1 as wrong as each channel's mean; it also fixes the scale of what is learned.
    sem_stats: what L_sem standardises over: the `batch`, or each `sample` by itself. grid: on
    which grid levels are compared. pool: cells whose mean is compared instead of each alone, 3 for
    those that descriptors average over.

    Switches for ablations: rho_s = rho_c = 0 (no mask), enhance = 0, generator = False, w_sem = 0
    (no alignment of semantics), mode = "random"; one stage is one stage in the list.
    """

    rho_s: float = 0.4
    rho_c: float = 0.15
    temperature: float = 0.5
    mode: MaskMode = "attention"
    enhance: float = 0.0
    generator: bool = True
    hidden: int | None = None
    w_m: float = 1.0
    w_a: float = 1.0
    w_sem: float = 0.5
    distance: Distance = "cosine"
    sem_stats: SemStats = "batch"
    grid: Grid = "teacher"
    pool: int = 1

    def __post_init__(self) -> None:
        ranges = {
            "[0, 1)": "rho_s rho_c",
            "(0, inf)": "temperature",
            "[0, 4]": "enhance",  # beyond, one cell would be hidden again and again
            "[1, inf)": "hidden pool",
            "[0, inf)": "w_m w_a w_sem",
        }
        check_ranges(self, ranges)
        if self.pool % 2 == 0:
            raise ConfigError(f"pool must be an odd number of cells, got {self.pool}")
        if self.w_a == 0:
            raise ConfigError(
                "w_a must be positive: what is used later is the unmasked map, and nothing else "
                "trains it"
            )
