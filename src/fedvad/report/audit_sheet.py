"""One page for a review board: data, what leaves a site, thresholds, results, doubtful images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from textwrap import shorten, wrap
from typing import TYPE_CHECKING

import numpy as np

from fedvad._version import __version__
from fedvad.evaluation.judgement import BORDER, is_borderline, outcome
from fedvad.evaluation.results import Results
from fedvad.report.bench_tables import size
from fedvad.report.html import words
from fedvad.report.html.page import Contents
from fedvad.report.html.record import Picture
from fedvad.report.panels import score_in_words
from fedvad.report.results_tables import sites_table
from fedvad.report.tables import without_empty
from fedvad.report.verdict import advice, fitness, gain, percent, worst_first

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TITLE", "audit_sheet", "drawn"]

TITLE = "fedvad audit sheet"
_WIDTH, _HEIGHT, _MARGIN = 595.0, 842.0, 40.0  # points: A4
_SMALL, _TEXT, _LARGE = 7.0, 8.0, 14.0
_LEADING = 1.35
_GLYPH = 0.53  # mean width of a letter, in font sizes
_SITES, _WARNINGS, _PICTURES = 12, 4, 6
_CELL = 24  # characters of a table's cell
_INK, _QUIET, _RULE = "#1b2127", "#5a646e", "#c5ccd2"


def audit_sheet(contents: Contents) -> bytes:
    """A PDF file of one A4 page; the same contents give the same bytes.

    Of more than twelve sites those that catch the smallest share of their defects are listed; of
    the pictures, the six whose scores lie closest to their thresholds are shown.
    """
    buffer = BytesIO()
    # without its date, so that one run has one sheet
    metadata = {"Title": TITLE, "Creator": f"fedvad {__version__}", "CreationDate": None}
    drawn(contents).savefig(buffer, format="pdf", metadata=metadata)
    return buffer.getvalue()


def drawn(contents: Contents) -> Figure:
    """The page as a figure, not yet written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72))
    FigureCanvasAgg(figure)
    sheet = _Sheet(figure)
    results = contents.results
    parts = [results.method, results.backbone, f"fedvad {__version__}"]
    sheet.line(f"Audit sheet of run {contents.name}", _LARGE, bold=True)
    sheet.line(" · ".join(part for part in parts if part), _TEXT, colour=_QUIET)
    for sentence in (fitness(results), gain(results)):
        sheet.paragraph(sentence)
    sheet.heading("Data")
    for sentence in _data(contents):
        sheet.paragraph(sentence)
    sheet.heading("What leaves a site")
    for sentence in _left(contents):
        sheet.paragraph(sentence)
    sheet.heading(
        "Thresholds, highest false-alarm rates to expect (95 % sure), and results by site"
    )
    listed = worst_first(results)[:_SITES]
    rows = without_empty(sites_table(results, brief=True))
    shown = [row for row in rows[1:] if row[0] in listed]
    sheet.table([rows[0], *shown])
    if len(rows) - 1 > len(shown):
        sheet.line(f"{len(rows) - 1 - len(shown)} more sites: see the report.", _SMALL)
    sheet.paragraph(_worst(results))
    found = words.warnings(results, contents.ledger, contents.scores, weights=contents.weights)
    remarks = [*advice(results), *found]
    if remarks:
        sheet.heading("Remarks")
        for sentence in remarks[:_WARNINGS]:
            sheet.paragraph(f"– {sentence}")
        if len(remarks) > _WARNINGS:
            sheet.line(f"{len(remarks) - _WARNINGS} more: see the report.", _SMALL)
    _doubtful(sheet, contents)
    hashes = [f"{name} {digest[:16]}…" for name, digest in contents.hashes.items()]
    sheet.foot(["SHA-256: " + ", ".join(hashes) if hashes else "", "Reviewed by, date, signature:"])
    return figure


class _Sheet:
    """Writes from the top of a page downwards; what would lie below its foot is not drawn."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.y = _HEIGHT - _MARGIN
        self._foot = _MARGIN + 40

    def room(self, height: float) -> bool:
        return self.y - height >= self._foot

    def line(self, text: str, points: float, *, bold: bool = False, colour: str = _INK) -> None:
        self.y -= points * _LEADING
        if self.y >= self._foot:
            self._write(_MARGIN, self.y, text, points, bold=bold, colour=colour)

    def paragraph(self, text: str) -> None:
        for line in wrap(text, int((_WIDTH - 2 * _MARGIN) / (_TEXT * _GLYPH))):
            self.line(line, _TEXT)
        self.y -= 2

    def heading(self, text: str) -> None:
        self.y -= 8
        self._rule(self.y + 2)
        self.line(text, _TEXT + 1, bold=True)
        self.y -= 2

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Columns as wide as their longest cell needs; headings are broken."""
        cells = [[shorten(cell, _CELL, placeholder="…") for cell in row] for row in rows[1:]]
        needs = [
            max(map(len, [*rows[0][i].split(), *(row[i] for row in cells)]), default=1) + 2
            for i in range(len(rows[0]))
        ]
        unit = min((_WIDTH - 2 * _MARGIN) / sum(needs), _SMALL * _GLYPH * 1.15)
        points = min(_SMALL, unit / _GLYPH)
        ends = np.cumsum(needs) * unit + _MARGIN
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
                x = ends[index] - unit if right else _MARGIN
                colour = _QUIET if number < deep else _INK
                self._write(x, self.y, cell, points, colour=colour, right=right)
        self.y -= 4

    def pictures(self, shown: Sequence[tuple[np.ndarray, Sequence[str]]], side: float) -> None:
        top = self.y - 4
        for index, (image, captions) in enumerate(shown):
            left = _MARGIN + index * (side + 6)
            scale = side / max(image.shape[:2])
            height, width = image.shape[0] * scale, image.shape[1] * scale
            box = (left / _WIDTH, (top - height) / _HEIGHT, width / _WIDTH, height / _HEIGHT)
            axes = self.figure.add_axes(box)
            axes.imshow(image)
            axes.set_axis_off()
            for place, caption in enumerate(captions):
                y = top - side - (place + 1) * 5.5 * _LEADING
                self._write(left, y, shorten(caption, 30, placeholder="…"), 5.5)
        self.y = top - side - 30

    def foot(self, lines: Sequence[str]) -> None:
        y = _MARGIN + 24
        self._rule(y + 10)
        for line in lines:
            self._write(_MARGIN, y, line, 5.5, colour=_QUIET)
            y -= 14

    def _write(
        self, x: float, y: float, text: str, points: float, *, bold: bool = False,
        colour: str = _INK, right: bool = False,
    ) -> None:  # fmt: skip
        self.figure.text(
            x / _WIDTH, y / _HEIGHT, text, size=points, color=colour,
            weight="bold" if bold else "normal", ha="right" if right else "left",
            family="DejaVu Sans", parse_math=False,
        )  # fmt: skip

    def _rule(self, y: float) -> None:
        from matplotlib.lines import Line2D

        ends = [_MARGIN / _WIDTH, 1 - _MARGIN / _WIDTH]
        self.figure.add_artist(Line2D(ends, [y / _HEIGHT] * 2, color=_RULE, linewidth=0.6))


def _data(contents: Contents) -> list[str]:
    results = contents.results
    counts = [limit.counts for limit in results.threshold.sites.values() if limit.counts]
    good, defects = sum(c.good for c in counts), sum(c.defects for c in counts)
    sentences = [f"{len(results.sites)} site{'s' * (len(results.sites) != 1)}"]
    if results.training_images:
        sentences.append(f"{sum(results.training_images.values())} normal images to train on")
    if counts:
        sentences.append(f"{good} normal images and {defects} with defects to test on")
    if results.unreadable:
        sentences.append(f"{len(results.unreadable)} images that could not be read")
    notes = [] if results.data is None else [
        *results.data.notes, *(note for site in results.data.sites.values() for note in site.notes)
    ]  # fmt: skip
    return [f"{'; '.join(sentences)}.", *notes[:2]]


def _left(contents: Contents) -> list[str]:
    ledger, results = contents.ledger, contents.results
    what = words.what_weights_are() if contents.weights else (
        words.what_rows_are(contents.config, contents.dim)
    )  # fmt: skip
    sent = sum(sum(entry.bytes_up.values()) for entry in ledger.rounds)
    rounds = len(ledger.rounds)
    sentences = [f"No image leaves a site. {what}"]
    if rounds:
        each = size(ledger.bytes_up_per_site_round)
        sentences.append(
            f"{size(sent)} went up in {rounds} round{'s' * (rounds != 1)}, {each} per site and "
            f"round; {results.ledger.rejected} uploads were refused."
        )
    if results.privacy is not None and results.privacy.epsilon is not None:
        sentences.append(
            f"Differential privacy: epsilon {results.privacy.epsilon:.3g} at delta "
            f"{results.privacy.delta:.1g}."
        )
    return sentences


def _worst(results: Results) -> str:
    site = next(iter(worst_first(results)), None)
    limit = None if site is None else results.threshold.sites.get(site)
    if site is None or limit is None or limit.recall is None:
        return ""
    n = limit.counts
    caught = f"{n.caught} of {n.defects}" if n else percent(limit.recall)
    auroc = results.image_auroc.sites.get(site)
    ranked = "" if auroc is None else f", image AUROC {auroc:.3f}"
    return f"Worst site: {site}, which catches {caught} of its defects{ranked}."


def _doubtful(sheet: _Sheet, contents: Contents) -> None:
    """The pictures closest to their thresholds, if there is room for them."""
    gallery = contents.gallery
    pictures = [p for p in (gallery.pictures if gallery else []) if p.threshold]
    near = sorted(pictures, key=lambda p: abs(p.score / (p.threshold or 1) - 1))[:_PICTURES]
    found = [(image, p) for p in near if (image := _image(contents.picture, p)) is not None]
    side = (_WIDTH - 2 * _MARGIN - (_PICTURES - 1) * 6) / _PICTURES
    if not found or not sheet.room(side + 60):
        return
    count = sum(
        is_borderline(score, site.threshold)
        for site in (contents.scores.sites.values() if contents.scores else ())
        for score in site.scores
    )
    sheet.heading("Doubtful images")
    sheet.paragraph(
        f"{count} test images are borderline: their scores lie within {100 * BORDER:.0f} % of the "
        "threshold. Those closest to it, under their heat maps:"
    )
    sheet.pictures(
        [
            (
                image,
                (
                    f"{p.site} · {p.defect}",
                    p.file,
                    f"{outcome(p.label, p.score, p.threshold)}, "
                    f"{score_in_words(p.score, p.threshold)}",
                ),
            )
            for image, p in found
        ],
        side,
    )


def _image(read: Callable[[str], bytes | None], picture: Picture) -> np.ndarray | None:
    from PIL import Image

    data = read(picture.heat)
    return None if data is None else np.asarray(Image.open(BytesIO(data)).convert("RGB"))
