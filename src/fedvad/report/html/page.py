"""One HTML file that tells what a run achieved, showed and cost; it fetches nothing.

Everything named by users is escaped by the template (autoescape) and by `Markup.format` in the
drawings. A content security policy forbids any request and any script but the one whose hash it
names, so that even a name that slipped through could run nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from fedvad._version import __version__
from fedvad.data.reading import data_table
from fedvad.data.sealed import finite
from fedvad.errors import DataError
from fedvad.evaluation.judgement import BORDER
from fedvad.evaluation.results import Results
from fedvad.federation.ledger import Ledger
from fedvad.memory.merge import COVERAGE_WARNING
from fedvad.report.bench_tables import size
from fedvad.report.choice import RULE
from fedvad.report.html import charts, costs, words
from fedvad.report.html.cards import Card, choices, make_card, outcomes
from fedvad.report.html.record import Gallery, Scores
from fedvad.report.html.templates import filled, in_base64, shipped
from fedvad.report.results_tables import (
    own_normals_table,
    results_table,
    sites_table,
    tradeoff_table,
)
from fedvad.report.tables import without_empty
from fedvad.report.verdict import ALONE, advice, fitness, gain, total

AIM_BYTES = 4_000_000  # pictures are added up to here
MAX_BYTES = 10_000_000  # no page is larger
_MOST_CHARTS = 48  # sites with drawings, about 6 kB each
_NAME = "federated"


@dataclass(frozen=True)
class Contents:
    """All that a page is made of.

    results: as in results.json. config: as in config.json. hashes: by file name. dim: numbers per
    row, if known. picture: bytes of one stored file, None where it is gone. missing: sentences on
    what the run does not hold.
    """

    name: str
    results: Results
    ledger: Ledger
    config: Mapping[str, object]
    scores: Scores | None = None
    gallery: Gallery | None = None
    picture: Callable[[str], bytes | None] = lambda name: None
    hashes: Mapping[str, str] = field(default_factory=dict)
    identity: Mapping[str, str] = field(default_factory=dict)
    dim: int | None = None
    missing: Sequence[str] = ()
    sends: words.Sends = "rows"


@dataclass(frozen=True)
class Page:
    """A finished page: its bytes, and how many of the gallery's pictures are in it or are not."""

    html: bytes
    shown: int
    left_out: int


def render(contents: Contents, *, aim: int = AIM_BYTES, limit: int = MAX_BYTES) -> Page:
    """Make the page; pictures are added in their order as long as it stays within `aim` bytes.

    Sites beyond the 48th go without drawings. Raises DataError when the page is larger than `limit`
    bytes even without pictures (some ten thousand sites).
    """
    values = _values(contents)
    bare = len(_filled(values, [], contents))
    if bare > limit:
        raise DataError(
            f"the report of {contents.name} would take {bare / 1e6:.0f} MB without any picture, "
            f"over {limit / 1e6:.0f} MB: read results.json and tables/ instead"
        )
    room = min(aim, limit) - bare
    shown: list[Card] = []
    for picture in contents.gallery.pictures if contents.gallery else []:
        card = make_card(picture, contents.picture)
        if card is None:
            continue
        if card.cost > room:
            break  # not skipped: what is shown is always the beginning of the stated order
        room -= card.cost
        shown.append(card)
    html = _filled(values, shown, contents)
    while shown and len(html) > min(aim, limit):  # names that grew more than reckoned
        del shown[-max(1, len(shown) // 10) :]
        html = _filled(values, shown, contents)
    drawn = len(contents.gallery.pictures) if contents.gallery else 0
    return Page(html, len(shown), drawn - len(shown))


def _values(contents: Contents) -> dict[str, object]:
    """What the template shows besides the pictures."""
    results, ledger = contents.results, contents.ledger
    drawn, undrawn = _drawings(contents.scores)
    lines = [line for line in (fitness(results), gain(results)) if line]
    data = results.data
    return {
        "run": contents.name,
        "version": __version__,
        "verdict": lines[0],
        "more": lines[1:],
        "advice": advice(results),
        "tiles": _tiles(results, ledger, contents.sends),
        "warnings": words.warnings(results, ledger, contents.scores, sends=contents.sends),
        "missing": list(contents.missing),
        "data": [] if data is None or data.complete else data_table(data.to_dict()),
        "methods": without_empty(results_table(results, name=_NAME)),
        "sites": without_empty(sites_table(results, name=_NAME)),
        "tradeoff": tradeoff_table(results),
        "own_normals": own_normals_table(results),
        "target": results.threshold.target_fpr,
        "compared": list(results.compare),
        "drawn": drawn,
        "undrawn": undrawn,
        "rounds": costs.rounds_table(ledger),
        "rounds_drawn": _round_drawings(ledger),
        "learned": _learned(results),
        "covered": costs.is_covered(ledger),
        "coverage_warning": COVERAGE_WARNING,
        "site_bytes": costs.site_bytes_table(ledger),
        "traffic": costs.traffic_table(ledger) if len(ledger.rounds) > 1 else None,
        "phases": costs.phases_table(ledger),
        "seconds": sum(ledger.seconds.values()),
        "peak": ledger.peak_rss_mb or results.ledger.peak_rss_mb,
        "computed": ledger.images_computed,
        "weights": contents.sends == "weights",
        "rows_are": words.what_is_sent(contents.config, contents.dim, contents.sends),
        "left": words.what_left(results, ledger, contents.dim, sends=contents.sends),
        "config": costs.config_table(contents.config),
        "identity": contents.identity,
        "hashes": contents.hashes,
        "rule": RULE,
        "border": f"{BORDER:.0%}".replace("%", " %"),
        "backbone": results.backbone,
        "method": results.method,
    }


def _filled(values: Mapping[str, object], cards: Sequence[Card], contents: Contents) -> bytes:
    script = shipped("report.js")
    gallery = contents.gallery
    drawn = len(gallery.pictures) if gallery else 0
    return filled(
        "report",
        **values,
        script=Markup(script),
        script_hash=in_base64(hashlib.sha256(script.encode()).digest()),
        gallery=gallery,
        cards=cards,
        left_out=drawn - len(cards),
        unreadable=gallery.unreadable if gallery else 0,
        choices=choices(cards),
        outcomes=outcomes(contents.scores, cards),
    )


def _tiles(results: Results, ledger: Ledger, sent_is: str) -> list[tuple[str, str, str]]:
    """The figures at the top: (name, value, remark); what people count comes first."""
    tiles = []
    target = results.threshold.target_fpr
    wanted = "" if target is None else f"wanted {target:.1%}"
    counts = total(results)
    rates = results.threshold
    if counts.good:
        share = f"{counts.stopped / counts.good:.1%}" + (f", {wanted}" if wanted else "")
        tiles.append(("good images stopped", f"{counts.stopped} of {counts.good}", share))
    elif rates.mean_fpr is not None:
        tiles.append(("false alarms, mean", f"{rates.mean_fpr:.1%}", wanted))
    if counts.defects:
        share = f"{counts.caught / counts.defects:.1%}, at these thresholds"
        tiles.append(("defects caught", f"{counts.caught} of {counts.defects}", share))
    elif rates.mean_recall is not None:
        tiles.append(("defects caught, mean", f"{rates.mean_recall:.1%}", "at these thresholds"))
    ours, local = results.image_auroc, results.compare.get(ALONE)
    alone = None if local is None else local.image_auroc
    if ours.mean is not None:
        remark = "" if alone is None or alone.mean is None else f"alone {alone.mean:.3f}"
        tiles.append(("mean image AUROC", f"{ours.mean:.3f}", remark))
    if ours.worst is not None and len(ours.sites) > 1:
        remark = "" if alone is None or alone.worst is None else f"alone {alone.worst:.3f}"
        tiles.append(("image AUROC, lowest site", f"{ours.worst:.3f}", remark))
    if ledger.rounds:
        sent = ledger.bytes_up_per_site_round
        rounds = len(ledger.rounds)
        each = f"per site and round, {rounds} round{'s' * (rounds > 1)}"
        tiles.append(("sent", size(sent), each))
        tiles.append(("images sent", "0", f"only the {sent_is} described below"))
    return tiles


@dataclass(frozen=True)
class _Drawing:
    """Curves of one site: ROC and histogram, None where it has no such thing."""

    site: str
    local: bool
    normals: int
    defects: int
    threshold: str | None
    roc: Markup | None
    histogram: Markup | None


def _drawings(scores: Scores | None) -> tuple[list[_Drawing], int]:
    """ROC and histogram of each of the first sites, and how many sites go without."""
    drawn = []
    tested = {n: s for n, s in (scores.sites if scores else {}).items() if s.files}
    for name, site in list(tested.items())[:_MOST_CHARTS]:
        methods = {_NAME: site.scores}
        if "local" in site.compared:
            methods["local"] = site.compared["local"]
        drawn.append(
            _Drawing(
                site=name,
                local="local" in methods,
                normals=site.labels.count(0),
                defects=site.labels.count(1),
                threshold=None if site.threshold is None else f"{site.threshold:.4g}",
                roc=charts.roc(name, site.labels, methods, at=site.threshold),
                histogram=charts.histogram(
                    name, site.labels, site.scores, threshold=site.threshold
                ),
            )
        )
    return drawn, len(tested) - len(drawn)


def _round_drawings(ledger: Ledger) -> list[Markup]:
    if len(ledger.rounds) < 2:
        return []
    entries = ledger.rounds
    drawn = [
        charts.steps("rows in the global memory", [float(e.memory_rows) for e in entries]),
    ]
    if not costs.is_covered(ledger):
        covered = [finite(e.coverage) for e in entries]
        drawn.append(charts.steps("coverage", covered, limit=COVERAGE_WARNING))
    if any(e.drift is not None for e in entries):
        drawn.append(charts.steps("drift of the memory", [finite(e.drift) for e in entries]))
    return drawn


def _learned(results: Results) -> list[Markup]:
    """The held-out loss of each of the first sites over its training."""
    return [
        charts.steps(f"held-out loss, {site}", curve.held_out, at=("step", curve.at))
        for site, curve in list(results.learning.items())[:_MOST_CHARTS]
        if len(curve.at) > 1
    ]
