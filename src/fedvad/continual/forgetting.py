"""What a learner of tasks in a row still knows: the matrix of results and what it says.

R[t, j] is a metric of task j after training on task t, higher is better; NaN where it was not
measured. Tasks count from 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Forgetting:
    """One matrix in a few numbers, as of its last row; None where there is nothing to say.

    average: of the tasks seen. curve: that average after each task. relative: see
    `relative_forgetting`; relative_all counts models from before a task was learned, as the
    thesis' code does. absolute: see `absolute_forgetting`. backward: see `backward_transfer`.
    """

    average: float | None
    curve: tuple[float | None, ...]
    relative: float | None
    relative_all: float | None
    absolute: float | None
    backward: float | None


def _mean(values: list[float]) -> float | None:
    known = [v for v in values if np.isfinite(v)]
    return float(np.mean(known)) if known else None


def average(matrix: Matrix, t: int) -> float | None:
    """Mean of R[t, j] over the tasks seen by then."""
    return _mean(matrix[t, : t + 1].tolist())


def relative_forgetting(matrix: Matrix, t: int, *, from_learned: bool = True) -> float | None:
    """Mean over the earlier tasks j of the largest fall max(0, 1 - R[t, j] / R[l, j]).

    l runs over the models from when j was learned to t - 1, or, without `from_learned`, over all
    before t. Where R[l, j] is 0 the term is left out. Source: continual-learning thesis, whose
    code does the latter.
    """
    falls = []
    for j in range(t):
        before = matrix[(j if from_learned else 0) : t, j]
        before = before[np.isfinite(before) & (before > 0)]
        if len(before) and np.isfinite(matrix[t, j]):
            falls.append(max(0.0, float(1 - matrix[t, j] / before.max())))
    return _mean(falls)


def absolute_forgetting(matrix: Matrix, t: int) -> float | None:
    """Mean over the earlier tasks j of max over l from j to t - 1 of R[l, j], less R[t, j].

    Negative when a task gained. Source: Chaudhry et al. 2018.
    """
    falls = []
    for j in range(t):
        before = matrix[j:t, j]
        before = before[np.isfinite(before)]
        if len(before):
            falls.append(float(before.max() - matrix[t, j]))
    return _mean(falls)


def backward_transfer(matrix: Matrix, t: int) -> float | None:
    """Mean over the earlier tasks j of R[t, j] - R[j, j] (Lopez-Paz and Ranzato 2017)."""
    return _mean([float(matrix[t, j] - matrix[j, j]) for j in range(t)])


def summarise_matrix(matrix: Matrix) -> Forgetting:
    """All of the above for a square matrix (tasks, tasks)."""
    last = len(matrix) - 1
    return Forgetting(
        average=average(matrix, last),
        curve=tuple(average(matrix, t) for t in range(len(matrix))),
        relative=relative_forgetting(matrix, last),
        relative_all=relative_forgetting(matrix, last, from_learned=False),
        absolute=absolute_forgetting(matrix, last),
        backward=backward_transfer(matrix, last),
    )
