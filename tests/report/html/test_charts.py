"""Drawings: right in their corners, small, and escaped."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np

from fedvad.report.html.charts import histogram, roc, steps

LABELS = [0, 0, 1, 1]


def points(svg: str, name: str) -> list[tuple[float, float]]:
    (path,) = re.findall(rf'class="curve {name}" d="M([^"]*)"', svg)
    pairs = [p.split(",") for p in path.split(" L")]
    return [((float(x) - 30) / 180, 1 - (float(y) - 8) / 180) for x, y in pairs]


def test_roc_curves() -> None:
    svg = roc("a", LABELS, {"m": [1, 2, 3, 4], "local": [4, 3, 2, 1]}, at=2.5)
    assert svg is not None
    assert points(svg, "m0") == [(0, 0), (0, 1), (1, 1)]
    assert points(svg, "m1") == [(0, 0), (1, 0), (1, 1)]
    assert "false alarms 0.0%, recall 100.0%" in svg
    tied = roc("a", LABELS, {"m": [1, 1, 1, 1]}, at=None)
    assert tied is not None
    assert points(tied, "m0") == [(0, 0), (1, 1)]
    assert "circle" not in tied
    assert roc("a", [1, 1], {"m": [1, 2]}, at=1) is None
    assert roc("a", [], {"m": []}, at=1) is None


def test_drawings_are_small_and_sound_for_many_images() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 5000).tolist()
    scores = (rng.normal(size=5000) + np.array(labels)).tolist()
    for svg in (
        roc("<&\"'>", labels, {"m": scores, "local": scores[::-1]}, at=0.5),
        histogram("<&\"'>", labels, scores, threshold=0.5),
        steps("<&\"'>", list(np.linspace(0, 5, 300)), limit=3.0),
    ):
        assert svg is not None
        assert len(svg) < 8000
        tree = ElementTree.fromstring(svg)
        assert "<&\"'>" in "".join(tree.itertext())


def test_histograms_of_little() -> None:
    assert histogram("a", [], [], threshold=1.0) is None
    for scores, labels in (([0.5], [0]), ([2.0, 2.0], [1, 1]), ([0.0, 0.0], [0, 1])):
        svg = histogram("a", labels, scores, threshold=None)
        assert svg is not None
        assert "nan" not in svg
    svg = histogram("a", [0], [0.5], threshold=99.0)
    assert svg is not None
    assert 'class="limit"' in svg


def test_unknown_rounds_break_the_line() -> None:
    svg = steps("drift", [None, 1.0, 2.0, None, 1.0])
    assert svg.count("<circle") == 3
    (path,) = re.findall(r'class="curve m0" d="([^"]*)"', svg)
    assert path.count("M") == 2
    assert "circle" not in steps("nothing", [None])
    assert 'class="limit"' in steps("coverage", [1.0, 4.0], limit=3.0)
    assert 'class="limit"' not in steps("coverage", [0.0, 0.1], limit=3.0)
