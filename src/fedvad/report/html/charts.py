"""Small inline drawings (SVG) of a page. Colours come from its style sheet, so dark mode works.

Every text goes through `Markup.format`, which escapes it: names are the users'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

_MAX_POINTS = 120
_SIDE = 180
_LEFT, _TOP, _BOTTOM, _RIGHT = 30, 8, 30, 8
_BINS = 28

Floats = NDArray[np.float64]


def roc(
    site: str, labels: Sequence[int], scores: Mapping[str, Sequence[float]], *, at: float | None
) -> Markup | None:
    """The ROC curve of each method at one site, the first drawn strongest; None without classes.

    `scores` holds (n,) scores by method, `labels` (n,) 0 or 1. `at`: threshold of the first method,
    marked where it puts the false alarms and the recall.
    """
    bad = np.asarray(labels, dtype=bool)
    if bad.all() or not bad.any():
        return None
    side, left, top = _SIDE, _LEFT, _TOP

    def place(fpr: float, recall: float) -> str:
        return f"{left + fpr * side:.1f},{top + (1 - recall) * side:.1f}"

    drawn = [_square(side, "false-alarm rate", "recall")]
    drawn.append(Markup('<path class="chance" d="M{} L{}"/>').format(place(0, 0), place(1, 1)))
    # the first method last, so that it lies on top
    for order, values in reversed(list(enumerate(scores.values()))):
        points = _roc_points(np.asarray(values, dtype=np.float64), bad)
        path = "M" + " L".join(place(x, y) for x, y in points)
        drawn.append(Markup('<path class="curve m{}" d="{}"/>').format(min(order, 3), path))
    if at is not None and scores:
        first = np.asarray(next(iter(scores.values())), dtype=np.float64)
        fpr, recall = float((first[~bad] > at).mean()), float((first[bad] > at).mean())
        x, y = place(fpr, recall).split(",")
        drawn.append(
            Markup(
                '<circle class="mark" cx="{}" cy="{}" r="4.5"><title>at the threshold: false '
                "alarms {}, recall {}</title></circle>"
            ).format(x, y, f"{fpr:.1%}", f"{recall:.1%}")
        )
    size = (side + left + _RIGHT, side + top + _BOTTOM)
    return _svg(drawn, size, f"ROC curve of {site}")


def histogram(
    site: str, labels: Sequence[int], scores: Sequence[float], *, threshold: float | None
) -> Markup | None:
    """Scores of one site: normal images upwards, defects downwards, the threshold as a line.

    Each class is drawn to its own tallest bar. None when there is no score.
    """
    values, bad = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    span = (high - low) or max(abs(high), 1.0) * 1e-3
    low, high = low - 0.02 * span, high + 0.02 * span
    width, left, top, half = 260, 8, 8, 84
    middle = top + half
    bar = width / _BINS
    drawn = []
    for flagged, name, direction in ((False, "normal", -1), (True, "defect", 1)):
        counts, _ = np.histogram(values[bad == flagged], bins=_BINS, range=(low, high))
        tallest = max(int(counts.max()), 1)
        # one path per class: hundreds of rectangles would weigh more than the numbers they show
        path = "".join(
            f"M{left + i * bar:.1f},{middle}v{direction * half * n / tallest:.1f}"
            f"h{bar - 0.8:.1f}V{middle}z"
            for i, n in enumerate(counts)
            if n
        )
        drawn.append(Markup('<path class="bars {}" d="{}"/>').format(name, path))
    drawn.append(Markup('<path class="axis" d="M{},{}h{}"/>').format(left, middle, width))
    if threshold is not None:
        x = left + (threshold - low) / (high - low) * width
        drawn.append(
            Markup('<path class="limit" d="M{:.1f},2V{}"/>').format(x, middle + half + top)
        )
    size = (width + 2 * left, 2 * (half + top))
    return _svg(drawn, size, f"Scores of the test images of {site}")


def steps(
    title: str,
    values: Sequence[float | None],
    *,
    limit: float | None = None,
    at: tuple[str, Sequence[int]] | None = None,
) -> Markup:
    """One figure per round as a line; None (unknown, infinite) breaks it. `limit`: a warning.

    at: what the figures belong to in place of rounds, and its numbers, equally spaced.
    """
    unit, numbers = at or ("round", range(1, len(values) + 1))
    known = [v for v in values if v is not None]
    top = max([*known, *([] if limit is None or not known else [min(limit, 2 * max(known))]), 1e-9])
    width, height, left, head = 220, 70, 8, 22
    gap = width / max(len(values) - 1, 1)
    path, joined, dots = "", False, []
    for i, value in enumerate(values):
        if value is None:
            joined = False
            continue
        x, y = left + i * gap, head + (1 - value / top) * height
        path += f"{'L' if joined else 'M'}{x:.1f},{y:.1f}"
        joined = True
        dots.append((x, y, value, numbers[i]))
    drawn = [
        Markup('<path class="axis" d="M{},{}h{}"/>').format(left, head + height, width),
        Markup('<path class="curve m0" d="{}"/>').format(path),
    ]
    if limit is not None and limit <= top:
        y = head + (1 - limit / top) * height
        drawn.append(Markup('<path class="limit" d="M{},{:.1f}h{}"/>').format(left, y, width))
    for x, y, value, number in dots if len(dots) <= 40 else dots[-1:]:
        drawn.append(
            Markup(
                '<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3"><title>{} {}: {}</title>'
                "</circle>"
            ).format(x, y, unit, number, f"{value:,.4g}")
        )
    if dots:
        last = dots[-1][2]
        drawn.append(
            Markup('<text x="{}" y="14" text-anchor="end">{}</text>').format(
                left + width, f"{last:,.0f}" if last >= 100 else f"{last:.3g}"
            )
        )
    drawn.append(Markup('<text class="name" x="{}" y="14">{}</text>').format(left, title))
    drawn.append(
        Markup('<text x="{}" y="{}">{} {}</text>').format(
            left, head + height + 15, unit, numbers[0]
        )
    )
    if len(values) > 1:
        drawn.append(
            Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(
                left + width, head + height + 15, numbers[-1]
            )
        )
    return _svg(drawn, (width + 2 * left, head + height + 22), f"{title} by {unit}")


def _roc_points(scores: Floats, bad: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Corners of the curve from (0, 0) to (1, 1); ties are one sloping step."""
    order = np.argsort(-scores, kind="stable")
    hits, alarms = np.cumsum(bad[order]), np.cumsum(~bad[order])
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    x = np.append(0.0, alarms[ends] / max(int((~bad).sum()), 1))
    y = np.append(0.0, hits[ends] / max(int(bad.sum()), 1))
    # points within a straight stretch change nothing
    bend = np.ones(len(x), dtype=bool)
    bend[1:-1] = (np.diff(x)[:-1] * np.diff(y)[1:]) != (np.diff(y)[:-1] * np.diff(x)[1:])
    kept = np.flatnonzero(bend)
    if len(kept) > _MAX_POINTS:
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, _MAX_POINTS).round().astype(int))]
    return [(float(x[i]), float(y[i])) for i in kept]


def _square(side: int, across: str, up: str) -> Markup:
    left, top = _LEFT, _TOP
    return Markup(
        '<path class="axis" d="M{},{}v{}h{}"/>'
        '<text x="{}" y="{}" text-anchor="middle">{}</text>'
        '<text transform="translate({} {}) rotate(-90)" text-anchor="middle">{}</text>'
        '<text x="{}" y="{}" text-anchor="end">0</text><text x="{}" y="{}" text-anchor="end">1'
        '</text><text x="{}" y="{}" text-anchor="end">1</text>'
    ).format(
        left, top, side, side,
        left + side / 2, top + side + 24, across,
        left - 14, top + side / 2, up,
        left - 6, top + side + 12, left + side, top + side + 14, left - 6, top + 8,
    )  # fmt: skip


def _svg(parts: Sequence[Markup], size: tuple[int, int], title: str) -> Markup:
    return Markup(
        '<svg role="img" viewBox="0 0 {} {}" width="{}" height="{}"><title>{}</title>{}</svg>'
    ).format(*size, *size, title, Markup("").join(parts))
