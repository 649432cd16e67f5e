"""A printed page, written from its top downwards with text, tables, charts and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from textwrap import shorten, wrap
from typing import TYPE_CHECKING

import numpy as np

from fedvad._version import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, _HEIGHT, MARGIN = 595.0, 842.0, 40.0  # points: A4
SMALL, TEXT, LARGE = 7.0, 8.0, 14.0
_CAPTION = 6.5
_LEADING = 1.35
_GLYPH = 0.53  # mean width of a letter, in font sizes
_CELL = 24  # characters of a table's cell
_INK, QUIET, _RULE = "#1b2127", "#5a646e", "#c5ccd2"


def pdf_of(figure: Figure, title: str) -> bytes:
    """A PDF file of one page; the same figure gives the same bytes."""
    buffer = BytesIO()
    # without its date, so that one page has one file
    metadata = {"Title": title, "Creator": f"fedvad {__version__}", "CreationDate": None}
    figure.savefig(buffer, format="pdf", metadata=metadata)
    return buffer.getvalue()


class Sheet:
    """Writes from the top of a page downwards; what would lie below its foot is not drawn."""

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(WIDTH / 72, _HEIGHT / 72))
        FigureCanvasAgg(self.figure)
        self.y = _HEIGHT - MARGIN
        self._foot = MARGIN + 40

    def room(self, height: float) -> bool:
        return self.y - height >= self._foot

    def line(self, text: str, points: float, *, bold: bool = False, colour: str = _INK) -> None:
        self.y -= points * _LEADING
        if self.y >= self._foot:
            self._write(MARGIN, self.y, text, points, bold=bold, colour=colour)

    def paragraph(self, text: str) -> None:
        for line in wrap(text, int((WIDTH - 2 * MARGIN) / (TEXT * _GLYPH))):
            self.line(line, TEXT)
        self.y -= 2

    def heading(self, text: str) -> None:
        self.y -= 8
        self._rule(self.y + 2)
        self.line(text, TEXT + 1, bold=True)
        self.y -= 2

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Columns as wide as their longest cell needs; headings are broken."""
        cells = [[shorten(cell, _CELL, placeholder="…") for cell in row] for row in rows[1:]]
        needs = [
            max(map(len, [*rows[0][i].split(), *(row[i] for row in cells)]), default=1) + 2
            for i in range(len(rows[0]))
        ]
        unit = min((WIDTH - 2 * MARGIN) / sum(needs), SMALL * _GLYPH * 1.15)
        points = min(SMALL, unit / _GLYPH)
        ends = np.cumsum(needs) * unit + MARGIN
        heads = [wrap(text, need) for text, need in zip(rows[0], needs, strict=True)]
        deep = max(map(len, heads))
        padded = [[""] * (deep - len(head)) + head for head in heads]
        body = [*(list(line) for line in zip(*padded, strict=True)), *cells]
        for number, row in enumerate(body):
            self.y -= points * _LEADING
            if self.y < self._foot:
                return
            for index, cell in enumerate(row):
                right = index > 0
                x = ends[index] - unit if right else MARGIN
                colour = QUIET if number < deep else _INK
                self._write(x, self.y, cell, points, colour=colour, right=right)
        self.y -= 4

    def chart(self, height: float) -> Axes:
        """Room for a drawing, `height` points high with the numbers below it."""
        self.y -= height
        left, low = MARGIN + 26, self.y + 14
        box = (
            left / WIDTH,
            low / _HEIGHT,
            (WIDTH - MARGIN - left) / WIDTH,
            (height - 20) / _HEIGHT,
        )
        axes = self.figure.add_axes(box)
        axes.tick_params(labelsize=SMALL - 1, length=2, colors=QUIET)
        for side in axes.spines.values():
            side.set_color(_RULE)
        return axes

    def pictures(
        self, shown: Sequence[tuple[np.ndarray, Sequence[str]]], side: float,
        *, height: float | None = None,
    ) -> None:  # fmt: skip
        """Pictures side by side, each as large as fits into `side` by `height`, and its captions.

        Nothing is drawn where there is no room for them.
        """
        height = height or side
        lines = max(len(captions) for _, captions in shown)
        below = lines * _CAPTION * _LEADING
        if not self.room(height + 4 + below):
            return
        top = self.y - 4
        for index, (image, captions) in enumerate(shown):
            left = MARGIN + index * (side + 6)
            scale = min(side / image.shape[1], height / image.shape[0])
            high, wide = image.shape[0] * scale, image.shape[1] * scale
            box = (left / WIDTH, (top - high) / _HEIGHT, wide / WIDTH, high / _HEIGHT)
            axes = self.figure.add_axes(box)
            axes.imshow(image)
            axes.set_axis_off()
            for place, caption in enumerate(captions):
                y = top - height - (place + 1) * _CAPTION * _LEADING
                width = int(side / (_CAPTION * _GLYPH))
                self._write(left, y, shorten(caption, width, placeholder="…"), _CAPTION)
        self.y = top - height - below - 6

    def foot(self, lines: Sequence[str]) -> None:
        y = MARGIN + 24
        self._rule(y + 10)
        for line in lines:
            self._write(MARGIN, y, line, 5.5, colour=QUIET)
            y -= 14

    def _write(
        self, x: float, y: float, text: str, points: float, *, bold: bool = False,
        colour: str = _INK, right: bool = False,
    ) -> None:  # fmt: skip
        self.figure.text(
            x / WIDTH, y / _HEIGHT, text, size=points, color=colour,
            weight="bold" if bold else "normal", ha="right" if right else "left",
            family="DejaVu Sans", parse_math=False,
        )  # fmt: skip

    def _rule(self, y: float) -> None:
        from matplotlib.lines import Line2D

        ends = [MARGIN / WIDTH, 1 - MARGIN / WIDTH]
        self.figure.add_artist(Line2D(ends, [y / _HEIGHT] * 2, color=_RULE, linewidth=0.6))
