"""What a threshold says about a score."""

from __future__ import annotations

import math

import pytest

from fedvad.evaluation.judgement import is_borderline, outcome


@pytest.mark.parametrize(
    ("label", "score", "threshold", "expected"),
    [
        (1, 1.1, 1.0, "caught"), (1, 1.0, 1.0, "missed"), (0, 1.1, 1.0, "false alarm"),
        (0, 1.0, 1.0, "passed"), (1, 1.0, None, "not judged"), (0, 1.0, math.inf, "not judged"),
    ],
)  # fmt: skip
def test_an_image_is_flagged_only_above_its_threshold(
    label: int, score: float, threshold: float | None, expected: str
) -> None:
    assert outcome(label, score, threshold) == expected


def test_a_tenth_on_either_side_is_borderline_in_the_unit_of_the_threshold() -> None:
    near = [score for score in range(1, 61) if is_borderline(score, 40.0)]
    assert near == list(range(36, 45))
    assert not any(is_borderline(0.0, limit) for limit in (None, 0.0, -1.0, math.inf, math.nan))
