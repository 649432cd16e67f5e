"""One page for a review board: data, what leaves a site, thresholds, results, doubtful images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from io import BytesIO
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
from fedvad.report.sheet import LARGE, MARGIN, QUIET, SMALL, TEXT, WIDTH, Sheet, pdf_of
from fedvad.report.tables import without_empty
from fedvad.report.verdict import advice, fitness, gain, percent, worst_first

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
TITLE = "fedvad audit sheet"
_SITES, _WARNINGS, _PICTURES = 12, 4, 6


def audit_sheet(contents: Contents) -> bytes:
    """A PDF file of one A4 page; the same contents give the same bytes.

    Of more than twelve sites those that catch the smallest share of their defects are listed; of
    the pictures, the six whose scores lie closest to their thresholds are shown.
    """
    return pdf_of(drawn(contents), TITLE)


def drawn(contents: Contents) -> Figure:
    """The page as a figure, not yet written."""
    sheet = Sheet()
    results = contents.results
    parts = [results.method, results.backbone, f"fedvad {__version__}"]
    sheet.line(f"Audit sheet of run {contents.name}", LARGE, bold=True)
    sheet.line(" · ".join(part for part in parts if part), TEXT, colour=QUIET)
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
        sheet.line(f"{len(rows) - 1 - len(shown)} more sites: see the report.", SMALL)
    sheet.paragraph(_worst(results))
    found = words.warnings(results, contents.ledger, contents.scores, sends=contents.sends)
    remarks = [*advice(results), *found]
    if remarks:
        sheet.heading("Remarks")
        for sentence in remarks[:_WARNINGS]:
            sheet.paragraph(f"– {sentence}")
        if len(remarks) > _WARNINGS:
            sheet.line(f"{len(remarks) - _WARNINGS} more: see the report.", SMALL)
    _doubtful(sheet, contents)
    hashes = [f"{name} {digest[:16]}…" for name, digest in contents.hashes.items()]
    sheet.foot(["SHA-256: " + ", ".join(hashes) if hashes else "", "Reviewed by, date, signature:"])
    return sheet.figure


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
    what = words.what_is_sent(contents.config, contents.dim, contents.sends)
    sent = sum(sum(entry.bytes_up.values()) for entry in ledger.rounds)
    rounds = len(ledger.rounds)
    sentences = [f"No image leaves a site. {what}"]
    if rounds:
        each = size(ledger.bytes_up_per_site_round)
        sentences.append(
            f"{size(sent)} were sent in {rounds} round{'s' * (rounds != 1)}, {each} per site and "
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


def _doubtful(sheet: Sheet, contents: Contents) -> None:
    """The pictures closest to their thresholds, if there is room for them."""
    gallery = contents.gallery
    pictures = [p for p in (gallery.pictures if gallery else []) if p.threshold]
    near = sorted(pictures, key=lambda p: abs(p.score / (p.threshold or 1) - 1))[:_PICTURES]
    found = [(image, p) for p in near if (image := _image(contents.picture, p)) is not None]
    side = (WIDTH - 2 * MARGIN - (_PICTURES - 1) * 6) / _PICTURES
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
    if data is None:
        return None
    try:
        return np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # what PIL raises for broken files
        log.warning("%s is damaged and left out: %s", picture.heat, error)
        return None
