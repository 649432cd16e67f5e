"""The pictures of a page: one card each, what they can be filtered by, and how many are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedvad.evaluation.judgement import Outcome, is_borderline, outcome
from fedvad.report.html.record import Picture, Scores
from fedvad.report.html.templates import in_base64
from fedvad.report.panels import score_in_words

_WORDS = 1500  # bytes of a card's words and tags, without its names
_NAMES = 32  # bytes that one byte of a name takes: it comes several times, escaped


@dataclass(frozen=True)
class Card:
    """One picture as the page shows it. photo, heat: data URIs. border: "borderline" or "clear"."""

    site: str
    defect: str
    file: str
    outcome: str
    border: str
    score: str
    photo: str
    heat: str
    width: int
    height: int
    alt: str
    alt_heat: str

    @property
    def cost(self) -> int:
        """About how many bytes of the page it takes, never less."""
        names = len(f"{self.site}{self.defect}{self.file}".encode())
        return len(self.photo) + len(self.heat) + _WORDS + _NAMES * names


def make_card(picture: Picture, read: Callable[[str], bytes | None]) -> Card | None:
    """The card of a stored picture; None where one of its files is gone."""
    photo, heat = read(picture.photo), read(picture.heat)
    if photo is None or heat is None:
        return None
    found = outcome(picture.label, picture.score, picture.threshold)
    near = is_borderline(picture.score, picture.threshold)
    kind = f"defect {picture.defect}" if picture.label else "normal image"
    where = f"{kind} of {picture.site}, {picture.file}"
    truth = ", ground truth outlined" if picture.outlined else ""
    return Card(
        site=picture.site,
        defect=picture.defect,
        file=picture.file,
        outcome=found,
        border="borderline" if near else "clear",
        score=score_in_words(picture.score, picture.threshold),
        photo=_uri(photo),
        heat=_uri(heat),
        width=picture.width,
        height=picture.height,
        alt=f"Photograph: {where}; {found}{', borderline' if near else ''}",
        alt_heat=f"Heat map{truth}: {where}",
    )


def choices(cards: Sequence[Card]) -> dict[str, list[tuple[str, int]]]:
    """By what a page filters its cards: (value, cards that have it)."""
    return {
        key: sorted(Counter(getattr(card, key) for card in cards).items())
        for key in ("site", "defect", "outcome", "border")
    }


def outcomes(scores: Scores | None, cards: Sequence[Card]) -> list[tuple[str, int, int]]:
    """(outcome, images shown, images tested), mistakes first; empty without scores."""
    if scores is None:
        return []
    tested = Counter(
        outcome(label, score, site.threshold)
        for site in scores.sites.values()
        for label, score in zip(site.labels, site.scores, strict=True)
    )
    shown: Counter[str] = Counter(card.outcome for card in cards)
    order: tuple[Outcome, ...] = ("missed", "false alarm", "caught", "passed", "not judged")
    return [(name, shown[name], tested[name]) for name in order if tested[name]]


def _uri(data: bytes) -> str:
    return f"data:image/webp;base64,{in_base64(data)}"
