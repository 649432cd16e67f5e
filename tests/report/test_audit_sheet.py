"""The audit sheet: one page, the figures of the run, and nothing beyond its foot."""

from __future__ import annotations

from dataclasses import replace

from fedvad.report.audit_sheet import TITLE, audit_sheet, drawn
from fedvad.report.html.page import Contents
from fedvad.report.verdict import fitness, gain
from tests.report.html.support import contents


def texts(made: Contents) -> list[str]:
    return [text.get_text() for text in drawn(made).texts]


def test_one_page_and_the_same_bytes_again() -> None:
    made = contents()
    data = audit_sheet(made)
    assert data.startswith(b"%PDF")
    assert TITLE.encode() in data
    assert data.count(b"/Type /Page ") == 1
    assert audit_sheet(made) == data


def test_it_says_what_a_board_asks() -> None:
    made = replace(contents(), hashes={"results.json": "ab" * 32})
    reported = texts(made)
    whole = " ".join(reported)
    for sentence in (fitness(made.results), gain(made.results)):
        assert sentence in whole
    for heading in ("Data", "What leaves a site", "Doubtful images"):
        assert heading in reported
    for part in ("24 normal images to train on", "one real patch", "Worst site:", "abab"):
        assert part in whole
    for site, limit in made.results.threshold.sites.items():
        assert limit.counts is not None
        assert site in reported
        assert f"{limit.counts.caught} of {limit.counts.defects}" in reported
    assert len(drawn(made).axes) == 6


def test_many_sites_with_long_names_stay_on_the_page() -> None:
    made = contents(tuple(f"the plant of the north, hall {i}" for i in range(60)))
    figure = drawn(made)
    assert all(0 < text.get_position()[1] < 1 for text in figure.texts)
    assert "48 more sites: see the report." in texts(made)


def test_without_scores_and_pictures() -> None:
    reported = texts(contents(scores=None, gallery=None))
    assert "Doubtful images" not in reported
    assert "Data" in reported
