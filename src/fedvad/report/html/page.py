"""One HTML file that tells what a run achieved, showed and cost; it fetches nothing.

Everything named by users is escaped by the template (autoescape) and by `Markup.format` in the
drawings. A content security policy forbids any request and any script but the one whose hash it
names, so that even a name that slipped through could run nothing.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fedvad._version import __version__
from fedvad.data.reading import data_table
from fedvad.errors import DataError
from fedvad.federation.ledger import Ledger
from fedvad.memory.merge import COVERAGE_WARNING
from fedvad.report.bench_tables import size
from fedvad.report.html import charts, costs, words
from fedvad.report.html.gallery import RULE
from fedvad.report.html.record import Gallery, Picture, Scores, outcome
from fedvad.report.tables import own_normals_table, results_table, sites_table

__all__ = ["AIM_BYTES", "MAX_BYTES", "Contents", "Page", "render"]

AIM_BYTES = 4_000_000  # pictures are added up to here
MAX_BYTES = 10_000_000  # no page is larger
_MOST_CHARTS = 48  # sites with drawings, about 6 kB each
_CARD = 1400  # bytes of a picture's words and tags; each name comes five times, escaped
_NAME = "federated"


@dataclass(frozen=True)
class Contents:
    """All that a page is made of.

    results: as in results.json. config: as in config.json. hashes: by file name. dim: numbers per
    row, if known. picture: bytes of one stored file, None where it is gone. missing: sentences on
    what the run does not hold.
    """

    name: str
    results: Mapping[str, Any]
    ledger: Ledger
    config: Mapping[str, Any]
    scores: Scores | None = None
    gallery: Gallery | None = None
    picture: Callable[[str], bytes | None] = lambda name: None
    hashes: Mapping[str, str] = field(default_factory=dict)
    identity: Mapping[str, str] = field(default_factory=dict)
    dim: int | None = None
    missing: Sequence[str] = ()
    weights: bool = False


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
    shown: list[dict[str, Any]] = []
    for picture in contents.gallery.pictures if contents.gallery else []:
        card = _card(picture, contents.picture)
        if card is None:
            continue
        names = len(f"{picture.site}{picture.defect}{picture.file}".encode())
        cost = len(card["photo"]) + len(card["heat"]) + _CARD + 32 * names
        if cost > room:
            break  # not skipped: what is shown is always the beginning of the stated order
        room -= cost
        shown.append(card)
    html = _filled(values, shown, contents)
    while shown and len(html) > min(aim, limit):  # names that grew more than reckoned
        del shown[-max(1, len(shown) // 10) :]
        html = _filled(values, shown, contents)
    total = len(contents.gallery.pictures) if contents.gallery else 0
    return Page(html, len(shown), total - len(shown))


def _values(contents: Contents) -> dict[str, Any]:
    """What the template shows besides the pictures."""
    results, ledger = contents.results, contents.ledger
    drawn, undrawn = _drawings(contents.scores)
    summary = words.at(results, "ledger") or {}
    return {
        "run": contents.name,
        "version": __version__,
        "verdict": words.headline(results),
        "tiles": _tiles(results, ledger, "weights" if contents.weights else "rows"),
        "warnings": words.warnings(results, ledger, contents.scores, weights=contents.weights),
        "missing": list(contents.missing),
        "data": _data(results),
        "methods": results_table(results, name=_NAME),
        "sites": sites_table(results, name=_NAME),
        "own_normals": own_normals_table(results),
        "target": words.number(results, "threshold", "target_fpr"),
        "compared": list(words.at(results, "compare") or {}),
        "drawn": drawn,
        "undrawn": undrawn,
        "rounds": costs.rounds_table(ledger),
        "rounds_drawn": _round_drawings(ledger),
        "coverage_warning": COVERAGE_WARNING,
        "site_bytes": costs.site_bytes_table(ledger),
        "traffic": costs.traffic_table(ledger) if len(ledger.rounds) > 1 else None,
        "phases": costs.phases_table(ledger),
        "seconds": sum(ledger.seconds.values()),
        "peak": ledger.peak_rss_mb or words.number(summary, "peak_rss_mb"),
        "computed": ledger.images_computed,
        "weights": contents.weights,
        "rows_are": words.what_weights_are()
        if contents.weights
        else words.what_rows_are(contents.config, contents.dim),
        "left": words.what_left(results, ledger, contents.dim, weights=contents.weights),
        "config": costs.config_table(contents.config),
        "identity": contents.identity,
        "hashes": contents.hashes,
        "rule": RULE,
        "backbone": words.at(results, "backbone"),
        "method": words.at(results, "method"),
    }


def _data(results: Mapping[str, Any]) -> list[list[str]]:
    """What was read of the data, where anything was omitted or guessed; else nothing."""
    data = words.at(results, "data")
    if not isinstance(data, Mapping) or data.get("complete", True):
        return []
    return data_table(data)


def _filled(
    values: Mapping[str, Any], cards: Sequence[dict[str, Any]], contents: Contents
) -> bytes:
    template, style, script = _parts()
    gallery = contents.gallery
    total = len(gallery.pictures) if gallery else 0
    html: str = template.render(
        **values,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        gallery=gallery,
        cards=cards,
        left_out=total - len(cards),
        unreadable=gallery.unreadable if gallery else 0,
        choices={
            "site": _counted(cards, "site"),
            "defect": _counted(cards, "defect"),
            "outcome": _counted(cards, "outcome"),
        },
        outcomes=_outcomes(contents.scores, cards),
    )
    return html.encode("utf-8", "replace")


@cache
def _parts() -> tuple[Any, str, str]:
    """Template, style sheet and script, as shipped beside this file."""
    folder = files("fedvad.report.html")
    # the extension decides nothing: names are escaped in every template
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    read = {
        name: (folder / name).read_text(encoding="utf-8").replace("\r\n", "\n")
        for name in ("report.html.j2", "report.css", "report.js")
    }
    return environment.from_string(read["report.html.j2"]), read["report.css"], read["report.js"]


def _tiles(results: Mapping[str, Any], ledger: Ledger, sent_is: str) -> list[tuple[str, str, str]]:
    """The figures at the top: (name, value, remark)."""
    tiles = []
    mean = words.number(results, "image_auroc", "mean")
    alone = words.number(results, "compare", "local", "image_auroc", "mean")
    if mean is not None:
        remark = "" if alone is None else f"alone {alone:.3f}"
        tiles.append(("mean image AUROC", f"{mean:.3f}", remark))
    worst = words.number(results, "image_auroc", "worst")
    if worst is not None:
        alone = words.number(results, "compare", "local", "image_auroc", "worst")
        tiles.append(("lowest site", f"{worst:.3f}", "" if alone is None else f"alone {alone:.3f}"))
    target = words.number(results, "threshold", "target_fpr")
    fpr = words.number(results, "threshold", "mean_fpr")
    if fpr is not None:
        remark = "" if target is None else f"wanted {target:.1%}"
        tiles.append(("false alarms, mean", f"{fpr:.1%}", remark))
    recall = words.number(results, "threshold", "mean_recall")
    if recall is not None:
        tiles.append(("defects caught, mean", f"{recall:.1%}", "at these thresholds"))
    if ledger.rounds:
        sent = ledger.bytes_up_per_site_round
        rounds = len(ledger.rounds)
        each = f"per site and round, {rounds} round{'s' * (rounds > 1)}"
        tiles.append(("sent up", size(sent), each))
        tiles.append(("images sent", "0", f"only the {sent_is} described below"))
    return tiles


def _drawings(scores: Scores | None) -> tuple[list[dict[str, Any]], int]:
    """ROC and histogram of each of the first sites, and how many sites go without."""
    drawn = []
    tested = {n: s for n, s in (scores.sites if scores else {}).items() if s.files}
    for name, site in list(tested.items())[:_MOST_CHARTS]:
        methods = {_NAME: site.scores}
        if "local" in site.compared:
            methods["local"] = site.compared["local"]
        drawn.append(
            {
                "site": name,
                "local": "local" in methods,
                "normals": site.labels.count(0),
                "defects": site.labels.count(1),
                "threshold": None if site.threshold is None else f"{site.threshold:.4g}",
                "roc": charts.roc(name, site.labels, methods, at=site.threshold),
                "histogram": charts.histogram(
                    name, site.labels, site.scores, threshold=site.threshold
                ),
            }
        )
    return drawn, len(tested) - len(drawn)


def _round_drawings(ledger: Ledger) -> list[Markup]:
    if len(ledger.rounds) < 2:
        return []
    entries = ledger.rounds
    drawn = [
        charts.steps("rows in the global memory", [float(e.memory_rows) for e in entries]),
        charts.steps("coverage", [_finite(e.coverage) for e in entries], limit=COVERAGE_WARNING),
    ]
    if any(e.drift is not None for e in entries):
        drawn.append(charts.steps("drift of the memory", [_finite(e.drift) for e in entries]))
    return drawn


def _card(picture: Picture, read: Callable[[str], bytes | None]) -> dict[str, Any] | None:
    photo, heat = read(picture.photo), read(picture.heat)
    if photo is None or heat is None:
        return None
    verdict = outcome(picture.label, picture.score, picture.threshold)
    kind = f"defect {picture.defect}" if picture.label else "normal image"
    where = f"{kind} of {picture.site}, {picture.file}"
    truth = ", ground truth outlined" if picture.outlined else ""
    return {
        "site": picture.site,
        "defect": picture.defect,
        "file": picture.file,
        "outcome": verdict,
        "score": _score(picture),
        "photo": _uri(photo),
        "heat": _uri(heat),
        "width": picture.width,
        "height": picture.height,
        "alt": f"Photograph: {where}; {verdict}",
        "alt_heat": f"Heat map{truth}: {where}",
    }


def _score(picture: Picture) -> str:
    if picture.threshold is None or picture.threshold <= 0:
        return f"score {picture.score:.3g}"
    ratio = picture.score / picture.threshold
    # near 1, two decimals would round a missed 0.998 to the threshold itself
    return f"{ratio:.{3 if abs(ratio - 1) < 0.005 else 2}f} × threshold"


def _uri(data: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def _counted(cards: Sequence[Mapping[str, Any]], key: str) -> list[tuple[str, int]]:
    return sorted(Counter(card[key] for card in cards).items())


def _outcomes(
    scores: Scores | None, cards: Sequence[Mapping[str, Any]]
) -> list[tuple[str, int, int]]:
    """(outcome, images shown, images tested), mistakes first; empty without scores."""
    if scores is None:
        return []
    tested = Counter(
        outcome(label, score, site.threshold)
        for site in scores.sites.values()
        for label, score in zip(site.labels, site.scores, strict=True)
    )
    shown = Counter(card["outcome"] for card in cards)
    order = ("missed", "false alarm", "caught", "passed", "not judged")
    return [(name, shown[name], tested[name]) for name in order if tested[name]]


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
