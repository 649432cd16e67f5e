"""The picture of one scored image says its decision in colour, in words and by a line."""

from __future__ import annotations

import numpy as np
import pytest

from fedvad.report.lettering import Fonts, fit
from fedvad.report.overlay import FOUND, LINE
from fedvad.report.result_picture import _LEGEND, _LINE, _SMALLEST, result_picture

RED = (198, 40, 40)


@pytest.fixture(scope="module")
def fonts() -> Fonts:
    return Fonts()


def _has(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((picture == np.array(colour, np.uint8)).all(axis=2).any())


@pytest.mark.parametrize(
    ("score", "limit", "framed", "lined"),
    [(1.4, 1.0, True, True), (0.8, 1.0, False, True), (0.8, 2.5, False, False),
     (1.4, None, False, False)],
)  # fmt: skip
def test_frame_and_line(
    score: float, limit: float | None, framed: bool, lined: bool, fonts: Fonts
) -> None:
    # as yellow as the heat map at its brightest
    photograph = np.full((200, 400, 3), (240, 249, 33), np.uint8)
    map_ = np.full((10, 20), 0.5, np.float32)
    map_[4:6, 8:12] = 2.0
    picture = result_picture(
        photograph, map_, score=score, limit=limit, name="line1  a.png", fonts=fonts
    )
    assert picture.shape[1] > 2 * 400
    assert _has(picture, RED) == framed
    assert _has(picture, FOUND) == lined
    assert not _has(picture, LINE)  # which is the ground truth


@pytest.mark.parametrize("line", _LINE.values())
def test_what_the_line_means_fits_under_the_smallest_picture(line: str, fonts: Fonts) -> None:
    assert fit(_LEGEND + line, 2 * _SMALLEST, fonts, 12) == _LEGEND + line


@pytest.mark.parametrize(
    ("score", "high", "said"),
    [(1.4, 2.0, _LINE[True]), (0.8, 2.0, _LINE[False]), (0.8, 0.9, "")],
)
def test_below_a_picture_that_is_normal_stands_why_a_line_is_drawn(
    score: float, high: float, said: str, fonts: Fonts, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        "fedvad.report.result_picture.write", lambda _, at, text, *rest, **kw: written.append(text)
    )
    map_ = np.full((10, 20), 0.5, np.float32)
    map_[4:6, 8:12] = high
    result_picture(
        np.zeros((200, 400, 3), np.uint8), map_, score=score, limit=1.0, name="", fonts=fonts
    )
    assert written[-1] == _LEGEND + said


@pytest.mark.parametrize("shape", [(40, 8), (7, 2100)])
def test_any_proportions(shape: tuple[int, int], fonts: Fonts) -> None:
    picture = result_picture(
        np.zeros((*shape, 3), np.uint8), np.ones((3, 3), np.float32), score=1.0, limit=None,
        name="x" * 300, fonts=fonts,
    )  # fmt: skip
    assert picture.dtype == np.uint8
    assert max(picture.shape) < 3400
