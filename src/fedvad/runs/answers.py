"""What people said of single images: false alarms that are normal, defects that are confirmed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedvad.data.checked import Stored
from fedvad.detectors.calibration import RowLookup
from fedvad.detectors.scoring import MemoryScorer, ScoringConfig, distance_scale
from fedvad.errors import MemoryBankError
from fedvad.evaluation.thresholds import Threshold
from fedvad.federation.codecs import Precision, rounding
from fedvad.half import as_float32
from fedvad.memory.bank import FloatArray, MemoryBank, concatenate
from fedvad.memory.neighbours import NeighbourIndex

Verdict = Literal["normal", "defect"]
Pixels = Annotated[int, Field(ge=0, le=1 << 30)]
# codecs that keep rows apart, and move them by up to a quarter of their length
_CODECS: tuple[Precision, ...] = ("int8", "int5")


class AnswerValues(Stored):
    """One answer, but for its patches.

    number: of the answer, from 1, over all sites of a run. date, undone: in UTC, ISO 8601; undone
    is "" while the answer counts. image: digest of the image; name: its path or, of one that was
    sent to the service, the name of its file.
    region: x, y, width and height in pixels, None for the whole image. score: of the image when
    it was answered. rows: number of patches kept. shared: round in which they went to all sites, 0
    for none.
    """

    number: Annotated[int, Field(ge=1)]
    date: str
    verdict: Verdict
    image: Annotated[str, Field(max_length=64)]
    name: Annotated[str, Field(max_length=4096)]
    region: tuple[Pixels, Pixels, Pixels, Pixels] | None
    score: float
    rows: Annotated[int, Field(ge=0)]
    undone: str = ""
    shared: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer and its patches, (k, d) float32 in the space of the memory; none once undone."""

    values: AnswerValues
    vectors: FloatArray


def rows_of(answers: Sequence[Answer], verdict: Verdict, dim: int) -> FloatArray:
    """(k, d) patches of all answers of a kind."""
    found = [a.vectors for a in answers if a.values.verdict == verdict]
    return np.concatenate([np.zeros((0, dim), np.float32), *found])


def as_held(patches: FloatArray) -> FloatArray:
    """The forms (3 k, d) in which memories may hold (k, d) patches: as they are, or coded."""
    return np.concatenate([patches, *(rounding(codec)(patches) for codec in _CODECS)])


def with_answers(
    bank: MemoryBank,
    scale: FloatArray | None,
    answers: Sequence[Answer],
    scoring: ScoringConfig,
    embedded: Callable[[FloatArray], FloatArray],
) -> tuple[MemoryBank, FloatArray | None, FloatArray]:
    """The memory, scale of distances and negatives of a site that gave answers.

    Patches of false alarms join the memory; each is as dense as the row that it lies nearest to,
    so that no other distance changes. Rows that are patches of a confirmed defect leave it. The
    negatives are (k, d). embedded: patches of answers as the memory has them. Source: ours.
    """
    if scale is None:
        scale = distance_scale(bank, scoring)
    negatives = rows_of(answers, "defect", bank.dim)
    if len(negatives):
        kept = np.ones(len(bank), np.bool_)
        kept[RowLookup(bank.vectors).rows_of(embedded(as_held(negatives)))] = False
        negatives = embedded(negatives)
        if kept.any():
            bank, scale = bank.take(kept), None if scale is None else scale[kept]
    normals = embedded(rows_of(answers, "normal", bank.dim))
    if len(normals):
        if scale is not None:
            nearest = NeighbourIndex(bank.vectors).query(normals)[1][:, 0]
            scale = np.concatenate([scale, scale[nearest]])
        bank = concatenate([bank, MemoryBank.of_patches(normals)])
    return bank, scale, negatives


def believed(
    negatives: MemoryBank,
    site: str,
    bank: MemoryBank,
    scale: FloatArray | None,
    scoring: ScoringConfig,
    limit: Threshold | None,
) -> FloatArray:
    """Patches (k, d) of defects of other sites that count at a site.

    Those to which its memory, with what was answered there, gives a value above its own threshold:
    what lies closer to what it knows nobody else can make defective. None without a threshold.
    Source: ours.
    """
    others = negatives.vectors[:0]
    if negatives.origin is not None and limit is not None:
        others = negatives.vectors[negatives.origin.share_of(site) == 0]
    if limit is None or not len(others):
        return others
    # the threshold is one of image scores
    scale = None if scale is None else scale[:, :1]
    scorer = MemoryScorer(bank, replace(scoring, smooth=1), scale=scale)
    values = scorer.score(others[None])[1][0]
    counts: FloatArray = others[values > limit.value]
    return counts


def answer_rows(answers: Sequence[Answer]) -> dict[str, npt.NDArray[Any]]:
    """What a run's file keeps of the patches, by name of the array."""
    if not answers:
        return {}
    return {"answers": np.concatenate([answer.vectors for answer in answers])}


def answer_values(answers: Sequence[Answer]) -> dict[str, Any]:
    """What a run's file keeps of the answers besides, nothing where there are none."""
    return {"answers": [a.values.model_dump() for a in answers]} if answers else {}


def answers_from(
    values: Sequence[AnswerValues], vectors: npt.NDArray[Any] | None, dim: int
) -> tuple[Answer, ...]:
    """What `answer_rows` and `answer_values` gave; raises `MemoryBankError` for anything else."""
    counts = [value.rows for value in values]
    if vectors is None and not values:
        return ()
    if (
        vectors is None
        or vectors.dtype.kind != "f"
        or vectors.shape != (sum(counts), dim)
        or not np.isfinite(vectors).all()
    ):
        raise MemoryBankError(f"the patches of {len(values)} answers are incomplete or damaged")
    parts = np.split(as_float32(vectors), np.cumsum(counts)[:-1])
    return tuple(Answer(value, part) for value, part in zip(values, parts, strict=True))
