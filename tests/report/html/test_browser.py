"""The report in a real browser: filters, the heat-map at a tap, light and dark, a phone's width."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import expect

from fedvad.evaluation.results import Promised
from fedvad.evaluation.thresholds import promise
from fedvad.report.html.page import render
from tests.browser import Open, needs_chromium
from tests.report.html.support import contents

pytestmark = [pytest.mark.slow, needs_chromium]


@pytest.fixture
def address(trained: tuple[Path, dict[str, Any]]) -> str:
    return (trained[0] / "report.html").as_uri()


def test_filters_leave_the_pictures_they_name(page: Open, address: str) -> None:
    shown = page(address)
    cards = shown.locator(".card")
    everything = cards.count()
    assert everything > 3
    expect(shown.locator("#count")).to_have_text(f"{everything} of {everything} pictures")
    shown.select_option("select[name=site]", "birch")
    left = shown.locator(".card:visible")
    assert 0 < left.count() < everything
    assert {card.get_attribute("data-site") for card in left.all()} == {"birch"}
    expect(shown.locator("#count")).to_have_text(f"{left.count()} of {everything} pictures")
    shown.select_option("select[name=site]", "")
    assert shown.locator(".card:visible").count() == everything


def test_a_tap_takes_the_heat_map_off_the_picture(page: Open, address: str) -> None:
    shown = page(address, width=390)
    button = shown.locator(".card button").first
    expect(button.locator(".heat")).to_have_css("opacity", "1")
    before = button.screenshot()
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    shown.mouse.move(0, 0)
    assert button.screenshot() != before
    width = shown.evaluate("document.documentElement.scrollWidth")
    assert width <= 390  # nothing to scroll sideways on a phone


def test_a_phone_shows_thirty_pictures_and_more_at_a_tap(page: Open, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_bytes(render(contents()).html)
    shown = page(file.as_uri(), width=390)
    expect(shown.locator(".card:visible")).to_have_count(30)
    shown.get_by_text("Show 6 more pictures").click()
    expect(shown.locator(".card:visible")).to_have_count(36)
    expect(shown.locator("#more")).to_be_hidden()
    wide = page(file.as_uri())
    expect(wide.locator(".card:visible")).to_have_count(36)
    expect(wide.locator("#more")).to_be_hidden()


def test_no_table_is_cut_at_1280_pixels(page: Open, tmp_path: Path) -> None:
    sites = tuple(f"hospital_north_east_{i}" for i in range(4))
    made = contents(sites)
    other = made.results.compare["local"]
    compare = dict.fromkeys(("local", "pooled", "identity"), other)
    limits = {
        site: limit.model_copy(update={"promise": Promised(**asdict(promise(24)))})
        for site, limit in made.results.threshold.sites.items()
    }
    threshold = made.results.threshold.model_copy(update={"sites": limits})
    found = made.results.model_copy(update={"compare": compare, "threshold": threshold})
    file = tmp_path / "page.html"
    file.write_bytes(render(replace(made, results=found)).html)
    shown = page(file.as_uri(), width=1280)
    assert shown.locator(".scroll").count() > 3
    cut = shown.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
        ".map(e => e.getAttribute('aria-label'))"
    )
    assert cut == []


def test_it_paints_at_once_and_in_the_dark_darkly(page: Open, address: str) -> None:
    shown = page(address)
    painted = shown.evaluate(
        """new Promise(found => new PerformanceObserver(
            list => found(list.getEntries()[0].startTime)
        ).observe({type: "paint", buffered: true}))"""
    )
    assert painted < 5000  # a second on an idle machine; this one may be busy
    dark = page(address)
    dark.emulate_media(color_scheme="dark")
    lights = [p.evaluate("getComputedStyle(document.body).backgroundColor") for p in (shown, dark)]
    assert lights[0] != lights[1]
