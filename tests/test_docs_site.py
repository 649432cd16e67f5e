"""The docs as a site in a folder: no server, nothing from elsewhere, and a search that finds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import needs_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@needs_chromium
def test_the_search_works_when_the_site_opens_from_a_folder(
    browser: Browser, tmp_path: Path
) -> None:
    pytest.importorskip("material", reason="needs the extra: pip install 'fedvad[docs]'")
    site = tmp_path / "a folder"  # with a space in its name
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(site)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    page = browser.new_page()
    elsewhere: list[str] = []
    page.on("request", lambda r: r.url.startswith("file:") or elsewhere.append(r.url))
    for start in ("index.html", "howto/plant.html"):
        page.goto((site / start).as_uri())
        page.locator("[data-md-component=search-query]").press_sequentially("hairline")
        found = page.locator(".md-search-result__item a").first
        found.wait_for(timeout=60_000)
        link = found.get_attribute("href") or ""
        assert "howto/hairline-cracks.html" in link
    assert elsewhere == []
    page.close()
