"""The report in a real browser: filters, the heat-map at a tap, light and dark, a phone's width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import expect

from tests.browser import Open, needs_chromium

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


def test_a_tap_lays_the_heat_map_over_the_picture(page: Open, address: str) -> None:
    shown = page(address, width=390)
    button = shown.locator(".card button").first
    before = button.screenshot()
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    shown.mouse.move(0, 0)
    assert button.screenshot() != before
    width = shown.evaluate("document.documentElement.scrollWidth")
    assert width <= 390  # nothing to scroll sideways on a phone


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
